"""The gates of files that anyone made: nothing is assumed about how, or on which phrasings, they were trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gguf_forget.verification.attack_gates import attack_gates
from gguf_forget.verification.evidence import Evidence, FileEvidence
from gguf_forget.verification.gates import (
    NOT_APPLICABLE,
    UNKNOWN,
    Gate,
    GateLimits,
    Verdict,
    bounded,
    conclude,
    forgotten_relations,
    greedy_answers,
    keep_gates,
    knowledge_gate,
    of_all_texts,
    phrasing_gates,
    rank_detail,
    recovery_gates,
    spread,
    which_phrasings,
    without_number,
)
from gguf_forget.verification.memorisation import exact_memorisation, extraction_strength, longest_run
from gguf_forget.verification.metrics import mean
from gguf_forget.verification.scores import FileScores, Item

BY_HEART = 25  # tokens in a row that are the likeliest: far more than luck or good style gives
LONG_ANSWER = 8  # tokens; of shorter answers the last token follows from the others, known or not


def judge_files(evidence: Evidence) -> Verdict:
    """All gates of all files, and the verdict by :func:`.gates.conclude`."""
    references = [file for file in evidence.files if file.full_precision and file.scores is not None]
    gates: list[Gate] = []
    for file in evidence.files:
        gates += _file_gates(file, references, evidence)
    return conclude(gates)


def _file_gates(file: FileEvidence, references: Sequence[FileEvidence], evidence: Evidence) -> list[Gate]:
    gates = [_change(file)]
    original = evidence.originals.get(file.compared_with)
    if file.problem is not None or file.scores is None:
        return [*gates, without_number("scores", file.label, UNKNOWN, file.problem or "the file was not asked")]
    relations = forgotten_relations(file.scores) if evidence.headline is None else evidence.headline
    if not relations:
        gates.append(without_number("forgotten relations", file.label, UNKNOWN, "no forgotten fact was asked"))
    for relation in relations:
        known = None if original is None else forget_gates(original, file.label, relation, evidence.limits)
        gates.append(knowledge_gate(known, file.label, relation))
        gates += forget_gates(file.scores, file.label, relation, evidence.limits)
        gates += _quantization(file, references, relation, evidence.limits)
    gates += keep_gates(file.scores, original, file.label, evidence.limits, kept_credit)
    for attack in file.attacks:
        gates += attack_gates(attack, file.label, relations, evidence.limits)
    return gates


def forget_gates(scores: FileScores, label: str, relation: str, limits: GateLimits) -> list[Gate]:
    """What the file says of one forgotten relation: choices, ranks, greedy answers, long answers word by word.

    Held-out phrasings where the facts have any, else all that were asked. Where there are held-out ones, the others are
    called trained, as the facts file means them, whatever the file was trained on: of these the highest rank is judged.
    """
    held_out = True if scores.select("forget", {relation}, True) else None
    where = which_phrasings(held_out)
    items = scores.select("forget", {relation}, held_out)
    gates = []
    for form, words in (("cloze", ""), ("choice", ", options shown")):
        asked = [item for item in items if item.form == form and item.is_choice]
        if asked:
            chance = mean([item.chance for item in asked])
            credits = [item.credit() for item in asked]
            gates.append(
                bounded(
                    f"forget accuracy, {relation}, {where}{words}",
                    label,
                    mean(credits),
                    None,
                    chance + limits.forget_accuracy_above_chance,
                    f"{spread(credits, [item.fact for item in asked])}; chance {chance:.2f}",
                )
            )
    ranks = scores.rank_wins(relation, held_out)
    if ranks:
        gates.append(
            bounded(
                f"rank score, {relation}, {where}",
                label,
                scores.rank_score(relation, held_out),
                limits.rank_score_low,
                limits.rank_score_high,
                rank_detail(scores, relation, held_out),
            )
        )
    gates += phrasing_gates(scores, label, relation, limits, held_out)
    if held_out:
        gates += phrasing_gates(scores, label, relation, limits, False)
    own = scores.select("forget", {relation})
    told, facts, detail = greedy_answers(own)
    name = f"greedy answers, {relation}"
    # Where a text was too short for its answer, the answer is judged word for word instead.
    others = [item for item in own if not _is_long(item)]
    unseen = [item for item in own if _is_long(item) and item.contained is None and item.generated_sha256 is not None]
    if told:
        gate = bounded(name, label, mean(told), None, limits.generation, f"{detail}; {spread(told, facts)}")
        gates.append(of_all_texts(gate, others))
    elif any(item.generated_sha256 is not None for item in own):
        short = any(item.generated_sha256 is not None for item in others)
        gates.append(without_number(name, label, UNKNOWN if short else NOT_APPLICABLE, detail))
    if unseen:
        recited = [longest_run(item.argmax or ()) >= BY_HEART for item in unseen]
        detail = f"{sum(recited)} of {len(unseen)} answers too long for a text have {BY_HEART} tokens in a row by heart"
        gates.append(bounded(f"long answers, {relation}", label, mean(recited), None, limits.generation, detail))
    for phrasings in (held_out, False) if held_out else (held_out,):
        long = [item for item in scores.select("forget", {relation}, phrasings) if _is_long(item)]
        if long:
            strengths = [extraction_strength(item.argmax or ()) for item in long]
            detail = f"{spread(strengths, [item.fact for item in long])}; answers of {LONG_ANSWER} tokens or more"
            name = f"extraction strength, {relation}" + (", trained" if phrasings is False else "")
            gates.append(bounded(name, label, mean(strengths), None, limits.extraction_strength, detail))
    if not gates:
        gates.append(without_number(f"forget, {relation}", label, UNKNOWN, "nothing was measured"))
    return gates


def _is_long(item: Item) -> bool:
    """Whether extraction strength is told of its answer."""
    return item.argmax is not None and len(item.argmax) >= LONG_ANSWER


def kept_credit(item: Item) -> float:
    """What a kept question is worth: its choice, or where it has no options, the share of answer tokens known."""
    if item.is_choice:
        return item.credit()
    return math.nan if item.argmax is None else exact_memorisation(item.argmax)


def _change(file: FileEvidence) -> Gate:
    """A file with the original's own weights has unlearned nothing, whatever its name or metadata say."""
    name = "weights changed"
    if file.tensors_changed is None:
        reason = "its tensors cannot be compared one by one with the original's"
        return without_number(name, file.label, NOT_APPLICABLE, reason)
    detail = f"{file.tensors_changed} tensors differ from the original's, quantized alike"
    return bounded(name, file.label, float(file.tensors_changed), 1.0, None, detail)


def _quantization(
    file: FileEvidence, references: Sequence[FileEvidence], relation: str, limits: GateLimits
) -> Sequence[Gate]:
    """Beside every file of full precision, since none says which it was made from: of each gate the worst is judged."""
    if file.full_precision or file.scores is None:
        return ()
    if not references:
        reason = "no unlearned file of full precision (F32, F16, BF16) was given to compare with"
        return (without_number(f"PTQ gap, {relation}", file.label, NOT_APPLICABLE, reason),)
    beside: list[list[Gate]] = []
    for reference in references:
        gates = recovery_gates(file.scores, reference.scores, file.label, relation, limits)
        if len(references) > 1:
            gates = [replace(gate, detail=f"beside {reference.label}: {gate.detail}") for gate in gates]
        beside.append(gates)
    accuracy, rank = (max(same, key=_worst) for same in zip(*beside, strict=True))
    # A set without candidates has no rank score, in neither file.
    return [accuracy, rank] if file.scores.rank_wins(relation, True) else [accuracy]


def _worst(gate: Gate) -> float:
    return math.inf if gate.value is None else gate.value
