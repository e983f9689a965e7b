"""Stage 7: gates, verdict, report.json and the model card, from artifacts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from gguf_forget.facts.schema import Fact, facts_hash
from gguf_forget.recipe import GatesSection, Recipe
from gguf_forget.report.document import build_report
from gguf_forget.report.model_card import build_model_card
from gguf_forget.run_directory import read_json, write_json_atomically
from gguf_forget.stages.facts import load_facts
from gguf_forget.stages.verify import load_scores
from gguf_forget.verification.gates import GateLimits, judge

REPORT = "report.json"
MODEL_CARD = "MODEL_CARD.md"


def gate_limits(section: GatesSection) -> GateLimits:
    """The bounds of a recipe's [gates]."""
    return GateLimits(**{field.name: getattr(section, field.name) for field in fields(GateLimits)})


def _facts_summary(facts: tuple[Fact, ...], agreement: Mapping[str, Any]) -> dict[str, Any]:
    counts = Counter((fact.relation, fact.split) for fact in facts)
    return {
        "sha256": facts_hash(facts),
        "relations": [
            {"relation": relation, "split": split, "facts": count}
            for (relation, split), count in sorted(counts.items())
        ],
        "agreement_with_transformers": dict(agreement),
    }


def _without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


def report(
    recipe: Recipe,
    folders: Mapping[str, Path],
    score_folders: Mapping[str, Path],
    tools: Mapping[str, str],
    out: Path,
) -> None:
    """Write ``out``/report.json and ``out``/MODEL_CARD.md. ``score_folders``: "variant/type" to a scored file's folder.

    The F16 file is the full-precision reference of the PTQ gap; without it among the exported types that gate cannot
    be evaluated, and the verdict says so.
    """
    scores = {row: load_scores(folder) for row, folder in score_folders.items()}
    shipped = {kind: scores[f"unlearned/{kind}"] for kind in recipe.export.types}
    originals = {kind: scores[f"original/{kind}"] for kind in recipe.export.types}
    verdict = judge(
        shipped,
        originals,
        full_precision=scores.get("unlearned/F16"),
        limits=gate_limits(recipe.gates),
        headline=recipe.gates.headline or None,
    )
    facts, _ = load_facts(folders["facts"])
    model = read_json(folders["load"] / "model.json")
    export = read_json(folders["export"] / "export.json")
    document = build_report(
        tools=tools,
        model={**model["summary"], **_without(model, "summary", "schema_version")},
        facts=_facts_summary(facts, read_json(folders["agreement"] / "agreement.json")),
        scores=scores,
        verdict=verdict,
        headline=recipe.gates.headline or None,
        circuit=_without(read_json(folders["attribute"] / "circuit.json"), "schema_version"),
        training=_without(read_json(folders["unlearn"] / "unlearn.json"), "schema_version", "history"),
        recipe=_without(recipe.resolved(), "model", "facts", "text"),
        export={
            kind: {**_without(record, "tensors", "totals"), **record["totals"]}
            for kind, record in export["files"].items()
        },
    )
    write_json_atomically(out / REPORT, document)
    card = build_model_card(document, attribution=recipe.facts.attribution or None)
    (out / MODEL_CARD).write_text(card, encoding="utf-8")
