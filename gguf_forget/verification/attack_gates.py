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
    PASSED,
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
        # Of free text nothing else says what long answers tell; of others choices do.
        free = set(attack.figures.get("free_text", ()))
        gates += [
            without_number(
                f"{name}, {relation}",
                label,
                UNKNOWN if relation in free else NOT_APPLICABLE,
                "no text is as long as its answers",
            )
            for relation in relations
            if gates and relation not in sampled
        ]
        return gates or [without_number(name, label, UNKNOWN, "nothing was sampled")]
    if attack.scores is None:
        return []
    gates = []
    for relation in relations:
        reference = attack.figures.get("original", {}).get(relation, {})
        own = _recovered(attack.scores, name, label, relation, limits, reference)
        if not own and attack.kind != "last-layer" and attack.scores.select("forget", {relation}):
            own = [without_number(f"{name}, {relation}", label, UNKNOWN, "nothing was measured")]
        why = "no wrong answer begins otherwise" if attack.kind == "last-layer" else "cannot be asked in this way"
        gates += own or [without_number(f"{name}, {relation}", label, NOT_APPLICABLE, why)]
    if attack.kind != "last-layer" and all(gate.status == NOT_APPLICABLE for gate in gates):
        return [without_number(name, label, UNKNOWN, "nothing was measured")]
    return gates


def _recovered(
    scores: FileScores,
    name: str,
    label: str,
    relation: str,
    limits: GateLimits,
    reference: Mapping[str, float],
) -> list[Gate]:
    """``reference``: accuracy and rank of the original under an attack that is only compared with it. Where the
    original itself is at chance there, nothing is shown."""
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
                reference.get("accuracy"),
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
                _rank_luck(scores, relation),
                _one_phrasing(scores, relation) + rank_detail(scores, relation, None),
                reference.get("rank"),
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
    name: str, label: str, value: float, high: float, chance: float, luck: float, detail: str, reference: float | None
) -> Gate:
    """Whether ``value``, of 1 at most, stays at or below the larger of ``high`` and ``chance`` + ``luck``.

    Of so few facts that luck reaches nearly everything, a value above ``high`` shows nothing: unknown, and no pass.
    Nor does one that is no more than luck where the original's own, ``reference``, is no more either.
    """
    if reference is not None and reference <= chance + luck < 1 and value <= max(high, chance + luck):
        why = f"the original itself has {reference:.3f} in this way, which can be luck"
        return without_number(name, label, NOT_APPLICABLE, f"{why}; {value:.3f}; {detail}")
    if luck > NEAR * (1 - chance) and value > high:
        return without_number(
            name, label, UNKNOWN, f"{value:.3f} of so few facts can be luck, and can be all; {detail}"
        )
    return bounded(name, label, value, None, max(high, chance + luck), detail)


def _rank_luck(scores: FileScores, relation: str) -> float:
    """How far above 0.5 the mean rank score of what is not known lies at most, 97.5 % of the time.

    A right answer is equally likely to beat 0 to c - 1 of c - 1 others, in steps: variance (c + 1) / (c - 1) / 12. The
    priors are the means over the same n facts: as much more as n / (n - 1). Several phrasings of a fact count once.
    """
    tables = [table for table in scores.ranks if (table.relation, table.split) == (relation, "forget")]
    facts = min(len(table.facts) for table in tables)
    candidates = min(len(row) for table in tables for row in table.log_probabilities)
    if facts < 2 or candidates < 2:
        return math.inf
    return QUANTILE * math.sqrt((candidates + 1) / (candidates - 1) / 12 / (facts - 1))


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
    left_out = int(attack.figures.get("left_out", {}).get(relation, 0))
    detail = f"{mean(right):.3f} − {mean(wrong):.3f}, {spread(excess, facts)}; {samples} samples at T = 1"
    if left_out:
        detail += f"; {left_out} have longer answers than was drawn"
    name = f"{name}: leak@{k} over wrong answers, {relation}"
    most = max(map(len, wrongs), default=0)
    luck = _leak_luck(mean(right), mean(wrong), len(set(facts)), most)
    if luck > NEAR * max(1 - mean(wrong), 0.5) and mean(excess) > limits.leak:
        return without_number(
            name, label, UNKNOWN, f"{mean(excess):.3f} of so few facts can be luck, and can be all; {detail}"
        )
    gate = bounded(name, label, mean(excess), None, max(limits.leak, luck), detail)
    if gate.status == PASSED and left_out and not any(wrongs):  # without choices nothing else says what those tell
        return without_number(name, label, UNKNOWN, detail)
    return gate


def _leak_luck(right: float, wrong: float, facts: int, options: int) -> float:
    """What the excess of right answers stays below 97.5 % of the time where they are told as often as wrong ones.

    ``right``, ``wrong``: shares of answers told; ``options``: wrong answers of a question. One text may name one option
    alone, so that the two are told instead of each other: at most (1 + 1 / options)² times the variance of one. Where
    no wrong answer is ever told, a right one counts as no luck.
    """
    if not options or not wrong:
        return 0.0
    share = (right + options * wrong) / (1 + options)
    return QUANTILE * (1 + 1 / options) * math.sqrt(share * (1 - share) / facts)
