"""The report: one dictionary of plain JSON values, from which the table and the model card are made.

Schema version 1. None (JSON null) stands for what was not measured::

    schema_version  1
    tools           name -> version of this tool and of the libraries used
    model           what was unlearned: name, source, sha256, architecture, sizes, licence, as given
    facts           hash, counts per relation and split, as given; never the facts themselves
    circuit, training, recipe   summaries of those stages, as given, or null
    export          file type -> sha256, bytes, edits asked / landed / saturated, codes moved, as given
    not_judged      forgotten relations outside ``headline``: [{relation, variant, file_type, rank_held_out,
                    forget_held_out}], shown, but no gate looks at them
    headline        the forgotten relations that the table and the forget gates speak of
    rows            [{variant, file_type, label, the columns below, groups, text}], in the order given
    verdict         status, exit_code, sentence, gates [{name, file_type, value, low, high, status, detail}]
    sha256          of all of the above as canonical JSON
    timings         stage -> seconds; not hashed, so that equal runs have equal hashes
    environment     the machine and its threads, as given; not hashed either

Only where given: ``figures``, what the pictures show (see gguf_forget.stages.report_figures), and ``leaks``,
"variant/file type" -> the facts still told (see gguf_forget.report.leaks), both hashed.

Columns of a row: ``forget_trained``, ``forget_held_out``, ``retain_same`` (kept relations that share their
name with a forgotten one) and ``retain_all`` are 4-way accuracies ``{value, n, standard_error, chance}``,
pooled over items; ``rank_trained`` and
``rank_held_out`` are the prior-corrected rank score (mean over the phrasings ranked),
``answer_log_probability`` the mean of forgotten answers on held-out phrasings in nats, ``generation`` the
share of greedy answers to trained phrasings that hold the answer, ``{value, n}``; ``perplexity`` that of
plain text.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import Any

from gguf_forget.errors import InputError

SCHEMA_VERSION = 1
LABELS = {
    "original": "original, stock",
    "unlearned_stock": "unlearned, stock",
    "unlearned": "unlearned, bin-aware",
    "npo_stock": "plain NPO, stock",
}
NOT_HASHED = ("environment", "timings", "sha256")


def build_report(
    *,
    tools: Mapping[str, str],
    model: Any,
    facts: Any,
    scores: Mapping[str, Any],
    verdict: Any,
    headline: Sequence[str] | None = None,
    circuit: Any = None,
    training: Any = None,
    recipe: Any = None,
    export: Any = None,
    timings: Mapping[str, float] | None = None,
    figures: Any = None,
    leaks: Any = None,
    environment: Any = None,
) -> dict[str, Any]:
    """Gather everything known about a run (see the module's docstring).

    Args:
        scores: "variant/file type" -> scores of that file, with ``to_json()`` or already such a document.
        verdict: with ``to_json()`` or already such a document.
        headline: forgotten relations that the columns are taken over; None: all.

    Raises:
        InputError: a key of ``scores`` without a file type, or scores without groups.
    """
    documents = {key: _plain(value) for key, value in scores.items()}
    found = _forgotten(documents.values())
    chosen = list(found if headline is None else headline)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "tools": dict(tools),
        "model": _plain(model),
        "facts": _plain(facts),
        "recipe": _plain(recipe),
        "circuit": _plain(circuit),
        "training": _plain(training),
        "export": _plain(export),
        "headline": chosen,
        "not_judged": [
            outside(key, document, relation)
            for relation in found
            if relation not in chosen
            for key, document in documents.items()
        ],
        "rows": [row_of(key, document, chosen) for key, document in documents.items()],
        "verdict": _plain(verdict),
    }
    for name, value in (("figures", figures), ("leaks", leaks)):
        if value is not None:
            report[name] = _plain(value)
    report["sha256"] = content_hash(report)
    report["timings"] = dict(timings or {})
    report["environment"] = _plain(environment)
    return report


def content_hash(report: Mapping[str, Any]) -> str:
    """SHA-256 of a report as canonical JSON, timings and machine left out."""
    content = {key: value for key, value in report.items() if key not in NOT_HASHED}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def label_of(variant: str) -> str:
    """A variant in words; unknown ones (ablations) keep their name, underscores as spaces."""
    return LABELS.get(variant, variant.replace("_", " "))


def _forgotten(documents: Iterable[Mapping[str, Any]]) -> list[str]:
    groups = (group for document in documents for group in document.get("groups", ()))
    return list(dict.fromkeys(group["relation"] for group in groups if group["split"] == "forget"))


def outside(key: str, document: Mapping[str, Any], relation: str) -> dict[str, Any]:
    """A forgotten relation that no gate looks at, as one file answers it."""
    variant, _, file_type = key.rpartition("/")
    groups = [g for g in document["groups"] if (g["split"], g["relation"]) == ("forget", relation) and g["held_out"]]
    return {
        "relation": relation,
        "variant": variant,
        "file_type": file_type,
        "rank_held_out": _mean([g["rank_score"] for g in groups if g["rank_score"] is not None]),
        "forget_held_out": _accuracy(groups),
    }


def row_of(key: str, document: Mapping[str, Any], headline: Collection[str]) -> dict[str, Any]:
    """One row of the table (the columns of the module's docstring) from a file's scores as a document."""
    variant, slash, file_type = key.rpartition("/")
    if not (variant and slash and file_type):
        raise InputError(f"the scores are keyed {key!r}, needed 'variant/file type' like 'unlearned/Q4_K_M'")
    if "groups" not in document:
        raise InputError(f"the scores of {key} have no groups, found {', '.join(document) or 'nothing'}")
    groups = list(document["groups"])
    forget = [g for g in groups if g["split"] == "forget" and g["relation"] in headline]
    trained = [g for g in forget if not g["held_out"]]
    held_out = [g for g in forget if g["held_out"]]
    retain = [g for g in groups if g["split"] == "retain"]
    same = [g for g in retain if g["relation"] in _forgotten([document])]
    text = document.get("text", {})
    return {
        "variant": variant,
        "file_type": file_type,
        "label": label_of(variant),
        "forget_trained": _accuracy(trained),
        "forget_held_out": _accuracy(held_out),
        "rank_trained": _mean([g["rank_score"] for g in trained if g["rank_score"] is not None]),
        "rank_held_out": _mean([g["rank_score"] for g in held_out if g["rank_score"] is not None]),
        "answer_log_probability": _pooled(held_out, "answer_log_probability", "n"),
        "generation": {
            "value": _pooled(trained, "generation_rate", "generated"),
            "n": sum(g["generated"] for g in trained),
        },
        "retain_same": _accuracy(same),
        "retain_all": _accuracy(retain),
        "perplexity": text.get("perplexity"),
        "text": {name: text.get(name) for name in ("perplexity", "nats_per_token", "tokens")},
        "groups": groups,
    }


def _accuracy(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    groups = [g for g in groups if g["accuracy"] is not None]  # the others have no options to choose among
    value, n = _pooled(groups, "accuracy", "n"), sum(g["n"] for g in groups)
    # Binomial, items taken as independent; the gates give intervals over facts.
    error = None if value is None else math.sqrt(max(value * (1 - value), 0.0) / n)
    return {"value": value, "n": n, "standard_error": error, "chance": _pooled(groups, "chance", "n")}


def _pooled(groups: Sequence[Mapping[str, Any]], name: str, weight: str) -> float | None:
    weighed = [(g[name], g[weight]) for g in groups if g[name] is not None and g[weight]]
    total = sum(count for _, count in weighed)
    return sum(value * count for value, count in weighed) / total if total else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _plain(value: Any) -> Any:
    """As plain JSON values: dataclasses as dictionaries, paths as text, numbers not finite as None."""
    if hasattr(value, "to_json"):
        value = value.to_json()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(member) for member in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
