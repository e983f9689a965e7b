"""The report as a model card: Markdown with the YAML header that Hugging Face reads."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from gguf_forget.report.terminal import gate_value, left_open, not_judged, number, retain_estimate

TAGS = ("unlearning", "machine-unlearning", "gguf", "llama.cpp", "quantized")
COLUMNS = (
    ("forget, trained", "forget_trained", 3),
    ("forget, held out", "forget_held_out", 3),
    ("rank score, trained", "rank_trained", 3),
    ("rank score, held out", "rank_held_out", 3),
    ("answer log-prob", "answer_log_probability", 2),
    ("greedy answer", "generation", 3),
    ("retain, same relation", "retain_same", 3),
    ("retain, all", "retain_all", 3),
    ("perplexity", "perplexity", 2),
)
LIMITS = """\
- The figures hold for these files, these questions and this text. Other phrasings, other languages, chat \
templates, few-shot prompts and sampled answers were not tried.
- Nobody tried to bring the facts back by further training. Edited weights can be trained again.
- A rank score well below 0.5 would mean that the right answer is avoided, which tells what it was; at 0.5 \
the file does not tell it from other answers of the same kind.
- Related knowledge may have suffered where no question looked. The retain columns speak of the kept facts \
that were asked about, and of nothing else.
- Accuracies over a few dozen facts are coarse; each gate gives n, a standard error and an interval."""


def build_model_card(
    report: Mapping[str, Any],
    *,
    facts_in_clear: Sequence[Mapping[str, Any]] | None = None,
    attribution: str | None = None,
    reproduce: str | None = None,
) -> str:
    """The card as Markdown text.

    Args:
        report: of :func:`~gguf_forget.report.document.build_report`.
        facts_in_clear: forgotten facts with ``subject``, ``relation`` and ``answer`` to print; None: counts
            and hashes only, because a list of what was forgotten gives it away again.
        attribution: a credit that a source of the facts asks for, in paragraphs.
        reproduce: the commands that make these files; None: the pipeline's own.
    """
    model = report["model"] or {}
    verdict = report["verdict"]
    name = _escape(str(model.get("name") or "")) or "model"
    gates = "## Gates\n\n" + _gates(verdict["gates"])
    parts = [
        _header(model),
        f"# {name}, unlearned with gguf_forget\n\n**{_escape(verdict['sentence'])}**",
        *map(_escape, left_open(report)),
        "gguf_forget edited the neurons on which the facts depend most and rounded the weights so that the edits "
        "should survive quantization. Whether they did, the gates say: every figure below was read off "
        "the file named, by llama.cpp.",
        *retain_estimate(report["training"]),
        "## What was forgotten\n\n" + _forgotten(report, facts_in_clear),
        "## Results\n\n" + _results(report),
        gates,
        "## Limits of the evidence\n\n"
        + "\n".join([LIMITS, *(f"- {_escape(line[2:])}" for line in not_judged(report))]),
        "## How to reproduce\n\n" + _reproduce(report, reproduce),
    ]
    if report.get("export"):
        parts.insert(parts.index(gates), "## Files\n\n" + _files(report["export"]))
    if attribution:
        parts += ["## Attribution", *map(_paragraph, re.split(r"\n\s*\n", attribution.strip()))]
    return "\n\n".join(parts) + "\n"


def _header(model: Mapping[str, Any]) -> str:
    lines = ["---"]
    for key in ("license", "base_model"):
        if model.get(key):
            lines.append(f"{key}: {_yaml_text(str(model[key]))}")
    if model.get("base_model"):
        lines.append("base_model_relation: finetune")
    lines += ["library_name: gguf", "pipeline_tag: text-generation", "quantized_by: gguf_forget", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in TAGS), "---"])


def _yaml_text(text: str) -> str:
    """A JSON string is a YAML string, but for what YAML wants escaped too: quoting keeps names from being syntax."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


def _forgotten(report: Mapping[str, Any], facts_in_clear: Sequence[Mapping[str, Any]] | None) -> str:
    facts = report["facts"] or {}
    rows = [
        [key, value if not isinstance(value, (Mapping, list)) else json.dumps(value, ensure_ascii=False)]
        for key, value in facts.items()
    ]
    text = _markdown_table(["", ""], rows) if rows else "No summary of the facts was given."
    if facts_in_clear:
        clear = [[fact["subject"], fact["relation"], fact["answer"]] for fact in facts_in_clear]
        return text + "\n\n" + _markdown_table(["subject", "relation", "answer"], clear)
    return text + "\n\nThe facts are not listed: a list of what was forgotten gives it away again."


def _results(report: Mapping[str, Any]) -> str:
    rows = [
        [row["label"], row["file_type"], *(number(row.get(key), decimals) for _, key, decimals in COLUMNS)]
        for row in report["rows"]
    ]
    table = _markdown_table(["file", "type", *(heading for heading, _, _ in COLUMNS)], rows)
    chances = {number(row["forget_held_out"]["chance"], 2) for row in report["rows"]} - {number(None, 2)}
    chance = " / ".join(sorted(chances)) or "unknown"
    return (
        f"{table}\n\nforget, retain: share of questions whose right answer is the most probable option "
        f"(chance {chance}). Held out: phrasings that no training saw. Rank score: how often the right "
        "answer beats another answer of the relation, priors subtracted (chance 0.50). Greedy answer: "
        "share of greedy texts that hold the answer. Stock: rounded by llama.cpp; bin-aware: rounded by "
        "gguf_forget."
    )


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    if not gates:
        return "There is no gate, so nothing was shown."
    rows = [
        [
            gate["file_type"],
            gate["name"],
            gate_value(gate),
            gate["bound"],
            gate["status"],
            gate["detail"],
        ]
        for gate in gates
    ]
    return _markdown_table(["type", "gate", "value", "needed", "status", "detail"], rows)


def _files(export: Mapping[str, Any]) -> str:
    entries = {name: entry for name, entry in export.items() if isinstance(entry, Mapping)}
    keys = list(dict.fromkeys(key for entry in entries.values() for key in entry))
    keys = [key for key in keys if not any(isinstance(entry.get(key), (Mapping, list)) for entry in entries.values())]
    rows = [[name, *("" if entry.get(key) is None else entry[key] for key in keys)] for name, entry in entries.items()]
    return _markdown_table(["type", *(key.replace("_", " ") for key in keys)], rows)


def _reproduce(report: Mapping[str, Any], reproduce: str | None) -> str:
    commands = (reproduce or "gguf-forget run recipe.toml").strip()
    tools = ", ".join(f"{name} {version}" for name, version in report["tools"].items())
    made = f"Made with {tools or 'unknown versions'}. Report sha256: `{report['sha256']}`."
    return f"```sh\n{commands}\n```\n\n{made}"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_escape(str(cell)) for cell in line) + " |" for line in lines)


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no table, tag, link or formula of its own."""
    escaped = "".join(f"\\{c}" if c in r"\|<>*_`[]~&$@" else c for c in " ".join(text.split()))
    # A bare address would become a link.
    escaped = escaped.replace("://", r"\://").replace("www.", r"www\.")
    # Control characters and halves of surrogate pairs, which no file in UTF-8 can hold.
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in escaped)


def _paragraph(text: str) -> str:
    """Text as a paragraph: no heading, list or rule, whatever it begins with."""
    return re.sub(r"^(\d*)([#+=.)-])", r"\1\\\2", _escape(text))
