"""Stage 7: gates, verdict, report.json and the model card, from artifacts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gguf_forget.facts.schema import Fact, dump_facts, facts_hash
from gguf_forget.recipe import GatesSection, Recipe
from gguf_forget.report.document import build_report
from gguf_forget.report.html_report import build_html
from gguf_forget.report.leaks import fact_names, leaks_of
from gguf_forget.report.model_card import build_model_card
from gguf_forget.run_directory import read_json, write_json_atomically
from gguf_forget.stages.facts import load_facts
from gguf_forget.stages.machine import environment
from gguf_forget.stages.report_figures import figures_of
from gguf_forget.stages.verify import load_scores
from gguf_forget.verification.gates import GateLimits, Verdict, judge
from gguf_forget.verification.scores import FileScores

REPORT = "report.json"
MODEL_CARD = "MODEL_CARD.md"
HTML = "report.html"


def gate_limits(section: GatesSection) -> GateLimits:
    """The bounds of a recipe's [gates]."""
    return GateLimits(**{field.name: getattr(section, field.name) for field in fields(GateLimits)})


def run_verdict(scores: Mapping[str, FileScores], types: Sequence[str], gates: GateLimits, headline: Any) -> Verdict:
    """The verdict on a run's shipped files. ``scores``: "variant/type" to scores, unlearned and original at least.

    The F16 file is the full-precision reference of the PTQ gap; without it that gate cannot be evaluated.
    """
    return judge(
        {kind: scores[f"unlearned/{kind}"] for kind in types},
        {kind: scores[f"original/{kind}"] for kind in types},
        full_precision=scores.get("unlearned/F16"),
        limits=gates,
        headline=headline or None,
    )


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
    """Write ``out``/report.json, report.html and MODEL_CARD.md.

    Args:
        folders: of the stages load, stock, facts, agreement, attribute, unlearn and export.
        score_folders: "variant/type" to a scored file's folder.
    """
    scores = {row: load_scores(folder) for row, folder in score_folders.items()}
    verdict = run_verdict(scores, recipe.export.types, gate_limits(recipe.gates), recipe.gates.headline)
    facts, _ = load_facts(folders["facts"])
    model = read_json(folders["load"] / "model.json")
    export = read_json(folders["export"] / "export.json")
    training = read_json(folders["unlearn"] / "unlearn.json")
    names = fact_names([asdict(fact) for fact in facts], dump_facts(facts))
    clear = [f"{fact.subject}, {fact.relation}: {fact.answer}" for fact in facts] if recipe.facts.in_clear else None
    document = build_report(
        tools=tools,
        model={**model["summary"], **_without(model, "summary", "schema_version")},
        facts=_facts_summary(facts, read_json(folders["agreement"] / "agreement.json")),
        scores=scores,
        verdict=verdict,
        headline=recipe.gates.headline or None,
        circuit=_without(read_json(folders["attribute"] / "circuit.json"), "schema_version"),
        training=_without(training, "schema_version", "history"),
        recipe=_without(recipe.resolved(), "model", "facts", "text"),
        export={
            kind: {**_without(record, "tensors", "totals"), **record["totals"]}
            for kind, record in export["files"].items()
        },
        figures=figures_of(folders, recipe.export.types, training["history"]),
        leaks={
            f"unlearned/{kind}": leaks_of(scores[f"unlearned/{kind}"].to_json()["items"], names, clear)
            for kind in recipe.export.types
        },
        environment=environment(),
    )
    write_json_atomically(out / REPORT, document)
    (out / HTML).write_text(build_html(document), encoding="utf-8")
    told = [asdict(fact) for fact in facts if fact.split == "forget"] if recipe.facts.in_clear else None
    card = build_model_card(document, facts_in_clear=told, attribution=recipe.facts.attribution or None)
    (out / MODEL_CARD).write_text(card, encoding="utf-8")
