"""What attacks found, in a line each: the worst of the file types, the control, and what no gate looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf_forget.verification.evidence import Attack, Evidence, FileEvidence
from gguf_forget.verification.gates import forgotten_relations, shown
from gguf_forget.verification.scores import FileScores


def attack_lines(report: Mapping[str, Any]) -> list[str]:
    """Lines for a person, from the document of :mod:`.file_report`."""
    evidence = Evidence.from_json(report["evidence"])
    lines: list[str] = []
    for file in evidence.files:
        relations = report["headline"]
        lines += _worst_type(file, relations) + _control(file, evidence.originals.get(file.compared_with), relations)
        for attack in file.attacks:
            figures = attack.figures
            if attack.kind == "relearning" and figures:
                lines.append(f"{file.label}: relearning, {attack.name}: {_curve(figures)}")
            elif attack.kind == "last-layer" and "relations" in figures:
                found = "; ".join(
                    f"{relation} " + ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                    for relation, values in figures["relations"].items()
                )
                lines.append(f"{file.label}: {attack.name}, not gated: {found}")
    return lines


def _curve(figures: Mapping[str, Any]) -> str:
    curve, back = figures["accuracy"], figures["steps_to_half"]
    half = "is not back"
    if back is not None:
        half = f"is back after {back} steps, {figures['examples_to_half']} examples"
    return (
        f"accuracy {curve[0]:.3f} to {curve[-1]:.3f} in {figures['steps'][-1]} steps (original "
        f"{figures['original']:.3f}, n = {figures['questions']}); half of the loss {half}"
    )


def _figures(scores: FileScores, relations: list[str]) -> str:
    """Accuracy and rank score of the clozes that attacks ask, which are held-out phrasings where there are any."""
    parts = []
    for relation in relations:
        items = scores.select("forget", {relation})
        if items:
            held_out = any(item.held_out for item in items)
            parts.append(
                f"{relation} accuracy {shown(scores.accuracy('forget', {relation}, held_out))}, rank score "
                f"{shown(scores.rank_score(relation, held_out))}"
            )
    return "; ".join(parts) or "nothing was measured"


def _worst_type(file: FileEvidence, relations: list[str]) -> list[str]:
    """The type in which most comes back, by the rank score where there is one, else by accuracy."""
    swept = [attack for attack in file.attacks if attack.kind == "requantize" and attack.scores is not None]
    if not swept:
        return []

    def known(scores: FileScores | None) -> float:
        if scores is None:
            return 0.0
        asked = [relation for relation in relations if relation in forgotten_relations(scores)]
        ranks = [scores.rank_score(relation, None) for relation in asked if scores.rank_wins(relation, None)]
        return max(ranks or [scores.accuracy("forget", {relation}) for relation in asked] or [0.0])

    worst = max(swept, key=lambda attack: known(attack.scores))
    assert worst.scores is not None
    return [f"{file.label}: worst of {len(swept)} other file types: {worst.name}: {_figures(worst.scores, relations)}"]


def _control(file: FileEvidence, original: FileScores | None, relations: list[str]) -> list[str]:
    lines = []
    for attack in file.attacks:
        if attack.kind != "control":
            continue
        if attack.scores is None:
            lines.append(f"{file.label}: no control: {attack.problem or attack.not_applicable}")
            continue
        lines.append(f"{file.label}: control, {attack.name}: {_figures(attack.scores, relations)}")
        for name, scores in (("the original", original), ("the file", file.scores)):
            if scores is not None:
                lines.append(f"{file.label}: the same questions, {name}: {_figures(_of(scores, attack), relations)}")
    return lines


def _of(scores: FileScores, attack: Attack) -> FileScores:
    """What was found for the questions that the attack asked."""
    assert attack.scores is not None
    asked = {item.sha256 for item in attack.scores.items}
    tables = {table.key for table in attack.scores.ranks}
    return replace(
        scores,
        items=tuple(item for item in scores.items if item.sha256 in asked),
        ranks=tuple(table for table in scores.ranks if table.key in tables),
    )
