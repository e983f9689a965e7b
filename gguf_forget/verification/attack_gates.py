"""What an attack must not bring back.

An attack looks for the worst case, and the more attacks there are, the more often one is above a bound by luck. So the
upper bounds here are the larger of the gate's own and what a file that knows nothing stays below 97.5 % of the time
with as many facts. Below chance is no success of an attack, so there are no lower bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gguf_forget.verification.evidence import Attack
from gguf_forget.verification.gates import (
    NOT_APPLICABLE,
    UNKNOWN,
    Gate,
    GateLimits,
    bounded,
    greedy_answers,
    of_all_texts,
    rank_detail,
    spread,
    without_number,
)
from gguf_forget.verification.memorisation import leak_at_k
from gguf_forget.verification.metrics import mean
from gguf_forget.verification.scores import FileScores

QUANTILE = 1.96  # of the normal distribution, 97.5 %
NEAR = 0.9  # of the way from chance to everything, or to the original's own figure (see .attacks.last_layer)
RANK_VARIANCE = 1 / 12  # of one subject's rank score by chance, uniform between 0 and 1


def attack_gates(attack: Attack, label: str, relations: Sequence[str], limits: GateLimits) -> list[Gate]:
    """The gates of one attack on one file; none for an attack that is only reported."""
    if attack.kind == "control":
        return []
    name = f"attack, {attack.name}"
    if attack.not_applicable is not None:
        return [without_number(name, label, NOT_APPLICABLE, attack.not_applicable)]
    if attack.problem is not None:
        return [without_number(name, label, UNKNOWN, attack.problem)]
    if attack.kind == "sampling":
        sampled = [relation for relation in relations if relation in attack.figures["relations"]]
        gates = [_leak(attack, name, label, relation, limits) for relation in sampled]
        gates += [
            without_number(f"{name}, {relation}", label, NOT_APPLICABLE, "no text is as long as its answers")
            for relation in relations
            if gates and relation not in sampled
        ]
        return gates or [without_number(name, label, UNKNOWN, "nothing was sampled")]
    if attack.scores is None:
        return []
    gates = []
    for relation in relations:
        reference = attack.figures.get("original", {}).get(relation, {})
        gates += _recovered(attack.scores, name, label, relation, limits, reference)
    return gates or [without_number(name, label, UNKNOWN, "nothing was measured")]


def _recovered(
    scores: FileScores,
    name: str,
    label: str,
    relation: str,
    limits: GateLimits,
    reference: Mapping[str, float],
) -> list[Gate]:
    """``reference``: accuracy and rank of the original under an attack that is only compared with it."""
    gates = []
    asked = [item for item in scores.select("forget", {relation}) if item.is_choice]
    if asked:
        chance = mean([item.chance for item in asked])
        gates.append(
            _no_more_than_luck(
                f"{name}: accuracy, {relation}",
                label,
                mean([item.credit() for item in asked]),
                max(chance + limits.forget_accuracy_above_chance, _near(reference.get("accuracy"), chance)),
                chance,
                QUANTILE * math.sqrt(chance * (1 - chance) / len({item.fact for item in asked})),
                f"{spread([item.credit() for item in asked], [item.fact for item in asked])}; chance {chance:.2f}",
            )
        )
    ranks = scores.rank_wins(relation, None)
    if ranks:
        gates.append(
            _no_more_than_luck(
                f"{name}: rank score, {relation}",
                label,
                scores.rank_score(relation, None),
                max(limits.rank_score_high, _near(reference.get("rank"), 0.5)),
                0.5,
                QUANTILE * math.sqrt(RANK_VARIANCE / len(ranks)),
                _one_phrasing(scores, relation) + rank_detail(scores, relation, None),
            )
        )
    own = scores.select("forget", {relation})
    told, facts, detail = greedy_answers(own)
    if told:
        detail += f"; {spread(told, facts)}"
        gate = bounded(f"{name}: greedy answers, {relation}", label, mean(told), None, limits.generation, detail)
        # Choices say something of long answers as well; without any, the texts that were long enough are not all.
        gates.append(gate if gates else of_all_texts(gate, own))
    return gates


def _no_more_than_luck(
    name: str, label: str, value: float, high: float, chance: float, luck: float, detail: str
) -> Gate:
    """Whether ``value``, of 1 at most, stays at or below the larger of ``high`` and ``chance`` + ``luck``.

    Of so few facts that luck reaches nearly everything, a value above ``high`` shows nothing: unknown, and no pass.
    """
    if luck > NEAR * (1 - chance) and value > high:
        return without_number(
            name, label, UNKNOWN, f"{value:.3f} of so few facts can be luck, and can be all; {detail}"
        )
    return bounded(name, label, value, None, max(high, chance + luck), detail)


def _one_phrasing(scores: FileScores, relation: str) -> str:
    """Which one was asked, where it is one."""
    asked = [table.phrasing for table in scores.ranks if table.relation == relation and table.split == "forget"]
    return f"phrasing {asked[0] + 1}; " if len(asked) == 1 else ""


def _near(original: float | None, chance: float) -> float:
    """Nine tenths of the way from chance to the original's figure; no bound without one."""
    return -math.inf if original is None else chance + NEAR * (original - chance)


def _leak(attack: Attack, name: str, label: str, relation: str, limits: GateLimits) -> Gate:
    """leak@k of the right answers over that of wrong ones: a file that names every capital tells none.

    Of one relation: another that tells nothing would halve it.
    """
    samples, k = int(attack.figures["samples"]), int(attack.figures["k"])
    asked = [place for place, own in enumerate(attack.figures["relations"]) if own == relation]
    facts, rights, wrongs = ([attack.figures[key][place] for place in asked] for key in ("facts", "right", "wrong"))
    right = [leak_at_k(samples, count, k) for count in rights]
    wrong = [mean([leak_at_k(samples, count, k) for count in counts] or [0.0]) for counts in wrongs]
    excess = [a - b for a, b in zip(right, wrong, strict=True)]
    return bounded(
        f"{name}: leak@{k} over wrong answers, {relation}",
        label,
        mean(excess),
        None,
        limits.leak,
        f"{mean(right):.3f} − {mean(wrong):.3f}, {spread(excess, facts)}; {samples} samples at T = 1",
    )
