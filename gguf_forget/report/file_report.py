"""The report on files that anyone made: one document, from which the verdict can be recomputed, and its page.

Schema version 1, None (JSON null) for what was not measured::

    schema_version  1
    kind            "verification of files"
    tools           name -> version
    facts           the probe files: name, hash, rows, questions; never the facts themselves
    inputs          original: name, bytes, sha256; text: name ("built-in" where none was given), sha256
    remarks         sentences for the reader that no gate judges
    evidence        files, originals, limits, headline: see gguf_forget.verification.evidence; every probe item's
                    text hash, log-probabilities and outcome are in it
    baseline        the gates of an earlier report beside which the verdict was made, or null
    not_judged      forgotten relations outside the headline, as in gguf_forget.report.document; [] without one
    rows            the table: originals, then files; columns as in gguf_forget.report.document, and memorisation
    verdict         status, exit_code, sentence, gates; it follows from evidence and baseline
    sha256          of all of the above as canonical JSON
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.report.attack_lines import attack_lines
from gguf_forget.report.document import content_hash, outside, row_of
from gguf_forget.report.terminal import explanation, figures_table, left_open, not_judged, number, print_gates
from gguf_forget.verification.evidence import Evidence
from gguf_forget.verification.file_gates import judge_files
from gguf_forget.verification.gates import Verdict, forgotten_relations
from gguf_forget.verification.regressions import beside_baseline

SCHEMA_VERSION = 1
KIND = "verification of files"
# heading, key of a row, decimals
MEMORISATION = (
    ("per-token\naccuracy", "accuracy_normalised", 3),
    ("options\nshown", "choice", 3),
    ("answer\np/token", "answer_probability", 3),
    ("extraction\nstrength", "extraction_strength", 3),
    ("exact\nmemoris.", "exact_memorisation", 3),
    ("ROUGE-L\nrecall", "rouge_l_recall", 3),
    ("truth\nratio", "truth_ratio", 3),
    ("Min-K%", "min_k", 2),
    ("Min-K%++", "min_k_plus_plus", 2),
    ("KL to\noriginal", "divergence", 4),
)


def build_file_report(
    evidence: Evidence,
    *,
    tools: Mapping[str, str],
    facts: Mapping[str, Any],
    inputs: Mapping[str, Any],
    remarks: Sequence[str] = (),
    baseline: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The document (see the module's docstring), verdict included."""
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "tools": dict(tools),
        "facts": dict(facts),
        "inputs": dict(inputs),
        "remarks": list(remarks),
        "evidence": evidence.to_json(),
        "baseline": None if baseline is None else [dict(gate) for gate in baseline],
        **_tables(evidence),
        "verdict": _verdict(evidence, baseline).to_json(),
    }
    report["sha256"] = content_hash(report)
    return report


def recompute_verdict(report: Mapping[str, Any]) -> Verdict:
    """The verdict that follows from a report's evidence.

    Raises:
        InputError: it is no such report.
        EvaluationError: scores do not follow from their items, or the verdict written in it is another one.
    """
    if report.get("kind") != KIND or report.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"the report is a {report.get('kind')!r} of schema version {report.get('schema_version')!r}, "
            f"needed {KIND!r} of version {SCHEMA_VERSION}",
            hint="give a report.json that `gguf-forget verify FILE… --out` wrote",
        )
    evidence = Evidence.from_json(report["evidence"])
    verdict = _verdict(evidence, report["baseline"])
    changed = "the report was changed after it was written, or is another version's"
    if report["verdict"]["status"] != verdict.status:
        raise EvaluationError(
            f"the report says {report['verdict']['status']!r}, but {verdict.status!r} follows from its evidence",
            hint=changed,
        )
    # As read back from a file: what is a tuple here is a list there.
    follows = json.loads(json.dumps({"verdict": verdict.to_json(), **_tables(evidence)}))
    wrong = [name for name, value in follows.items() if report[name] != value]
    if wrong:
        raise EvaluationError(
            f"{', '.join(wrong)} of the report: found something other than what follows from its evidence", hint=changed
        )
    return verdict


def _verdict(evidence: Evidence, baseline: Sequence[Mapping[str, Any]] | None) -> Verdict:
    verdict = judge_files(evidence)
    return verdict if baseline is None else beside_baseline(verdict, baseline)


def _tables(evidence: Evidence) -> dict[str, Any]:
    """What the page shows beside the verdict: all of it follows from the evidence."""
    return {"headline": _headline(evidence), "not_judged": _not_judged(evidence), "rows": _rows(evidence)}


def _forgotten(evidence: Evidence) -> list[str]:
    every = [*evidence.originals.values(), *(file.scores for file in evidence.files if file.scores is not None)]
    return list(dict.fromkeys(relation for scores in every for relation in forgotten_relations(scores)))


def _headline(evidence: Evidence) -> list[str]:
    return _forgotten(evidence) if evidence.headline is None else list(evidence.headline)


def _not_judged(evidence: Evidence) -> list[dict[str, Any]]:
    """Every file beside its original, each under the file's label."""
    pairs = [
        (file.label, variant, scores)
        for file in evidence.files
        for variant, scores in (("unlearned", file.scores), ("original", evidence.originals.get(file.compared_with)))
        if scores is not None
    ]
    return [
        {**outside("", scores.to_json(), relation), "variant": variant, "file_type": label}
        for relation in _forgotten(evidence)
        if relation not in _headline(evidence)
        for label, variant, scores in pairs
    ]


def _rows(evidence: Evidence) -> list[dict[str, Any]]:
    headline = _headline(evidence)
    named = [("original", kind, scores) for kind, scores in evidence.originals.items()]
    named += [(file.name, file.file_type, file.scores) for file in evidence.files if file.scores is not None]
    rows = []
    for label, kind, scores in named:
        document = scores.to_json()
        clozes = {**document, "groups": [group for group in document["groups"] if group["form"] == "cloze"]}
        shown = [group for group in document["groups"] if group["form"] == "choice" and group["split"] == "forget"]
        shown = [group for group in shown if group["relation"] in headline]
        forget = [g for g in clozes["groups"] if g["split"] == "forget" and g["relation"] in headline]
        rows.append(
            {
                **row_of(f"{label}/{kind}", clozes, headline),
                "label": label,
                "choice": _pooled(shown, "accuracy"),
                "divergence": scores.divergence if scores.chunk_divergences else None,
                **{key: _pooled(forget, key) for _, key, _ in MEMORISATION if key not in ("choice", "divergence")},
            }
        )
    return rows


def _pooled(groups: Sequence[Mapping[str, Any]], key: str) -> float | None:
    measured = [(group[key], group["n"]) for group in groups if group[key] is not None]
    total = sum(n for _, n in measured)
    return sum(value * n for value, n in measured) / total if total else None


def render_file_report(report: Mapping[str, Any], console: Console) -> None:
    """The page for a person: verdict, figures, gates that did not pass, what the columns are."""
    verdict = report["verdict"]
    colour = {0: "bold green", 1: "bold red"}.get(verdict["exit_code"], "bold yellow")
    console.print(Text(verdict["sentence"], style=colour))
    for line in left_open(report):
        console.print(Text(line, style="yellow"))
    console.print()
    console.print(figures_table(report))
    console.print(_memorisation_table(report))
    print_gates([gate for gate in verdict["gates"] if gate["status"] != "passed"], console)
    passed = sum(gate["status"] == "passed" for gate in verdict["gates"])
    console.print(Text(f"✓ {passed} gates passed", style="green" if passed else "dim"))
    for line in [*(f"! {line}" for line in [*report["remarks"], *attack_lines(report)]), *not_judged(report)]:
        console.print(Text(line, style="yellow"))
    console.print()
    console.print(Text(explanation(report) + " " + _EXPLANATION, style="dim"))


_EXPLANATION = (
    "Second table: forgotten facts, all phrasings asked. per-token accuracy: as forget, log-probabilities divided by "
    "their number of tokens. options shown: accuracy where the prompt lists lettered "
    "options. p/token: probability of the right answer, per token. extraction strength: share of an answer's end that "
    "follows by itself. exact memorisation: share of its tokens that are the most probable ones. truth ratio: 1 where "
    "right and wrong answers are equally probable. Min-K%: mean log-probability of the 40 % least probable tokens of "
    "question and answer (++: standardised). KL to original: nats a token of plain text, a lower bound from the 64 "
    "most probable tokens."
)


def _memorisation_table(report: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("file", overflow="fold", vertical="bottom")
    table.add_column("type", no_wrap=True)
    shown = [column for column in MEMORISATION if any(row[column[1]] is not None for row in report["rows"])]
    for heading, _, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        cells = [number(row[key], decimals) for _, key, decimals in shown]
        table.add_row(Text(row["label"]), Text(row["file_type"]), *cells)
    return table
