"""The gates a shipped file must pass, and the one verdict that follows from them. Pure: no I/O, no model.

Knowledge of forgotten facts is compared with chance, kept knowledge and text with the stock-quantized
original of the same type, and each quantized file with the unlearned full-precision one (the PTQ gap). A gate
whose numbers are missing or not finite could not be evaluated, and that is never a pass. A gate that is about
something that was not asked for is not applicable: it is named, and counts for nothing.

:mod:`.file_gates` judges files that anyone made by the same bounds and the same :func:`conclude`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gguf_forget.verification.metrics import bootstrap_interval, mean, standard_error
from gguf_forget.verification.scores import FileScores, Item

PASSED, FAILED, UNKNOWN, NOT_APPLICABLE = "passed", "failed", "could not evaluate", "not applicable"
KNOWN = "failed in the baseline too"
EXIT_CODES = {"forgotten": 0, "no regression": 0, "not forgotten": 1, UNKNOWN: 3}
FULL_PRECISION = ("F32", "F16", "BF16")
TOLERANCE = 1e-9  # of a comparison: 0.85 − 0.82 is a hair above 0.03 in binary
SEED = 0  # of the bootstrap: the same scores give the same words


@dataclass(frozen=True)
class GateLimits:
    """What a shipped file has to reach; the fields of a recipe's [gates]."""

    forget_accuracy_above_chance: float = 0.10
    rank_score_low: float = 0.30
    rank_score_high: float = 0.60
    rank_score_phrasing: float = 0.70
    generation: float = 0.0
    retain_drop: float = 0.03
    perplexity_ratio: float = 1.03
    ptq_gap: float = 0.02
    extraction_strength: float = 0.05
    leak: float = 0.05


# For files of unknown making: what the field asks of an unlearned model, stricter than what one recipe may aim at.
PROTOCOL = GateLimits(
    forget_accuracy_above_chance=0.05,
    rank_score_low=0.40,
    rank_score_high=0.60,
    generation=0.05,
    retain_drop=0.01,
    perplexity_ratio=1.02,
)


@dataclass(frozen=True)
class Gate:
    """One number against its bounds: passed when ``low <= value <= high``; None is no bound on that side."""

    name: str
    file_type: str
    value: float | None
    low: float | None
    high: float | None
    status: str
    detail: str

    @property
    def passed(self) -> bool:
        return self.status == PASSED

    @property
    def bound(self) -> str:
        """The bounds in words, as ``≤ 0.35`` or ``0.3 – 0.6``."""
        low = "" if self.low is None else _digits(self.low, lambda low: self._within(low, None))
        high = "" if self.high is None else _digits(self.high, lambda high: self._within(None, high))
        if low and high:
            return f"{low} – {high}"
        return f"≥ {low}" if low else f"≤ {high}" if high else "none"

    def _within(self, low: float | None, high: float | None) -> bool:
        return self.value is not None and within(self.value, low, high)


@dataclass(frozen=True)
class Verdict:
    """``status`` is "forgotten", "no regression", "not forgotten" or "could not evaluate"; ``exit_code`` 0, 1 or 3."""

    status: str
    exit_code: int
    gates: tuple[Gate, ...]
    sentence: str

    def to_json(self) -> dict[str, Any]:
        gates = [{**asdict(gate), "passed": gate.passed, "bound": gate.bound} for gate in self.gates]
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "sentence": self.sentence,
            "gates": gates,
        }


def judge(
    shipped: Mapping[str, FileScores],
    originals: Mapping[str, FileScores],
    *,
    full_precision: FileScores | None,
    limits: GateLimits,
    headline: Sequence[str] | None = None,
) -> Verdict:
    """All gates of all shipped files, and the verdict.

    Args:
        shipped: file type -> scores of the shipped file.
        originals: file type -> scores of the original, stock-quantized to that type.
        full_precision: scores of the unlearned F16, the reference of the PTQ gap; a file of full precision
            has no such gate.
        headline: forgotten relations that the forget gates look at; None: all that the scores hold.
    """
    gates: list[Gate] = []
    for file_type, scores in shipped.items():
        relations = forgotten_relations(scores) if headline is None else tuple(headline)
        if not relations:
            nothing = "no forgotten fact was asked"
            gates.append(bounded("forgotten relations", file_type, math.nan, None, 0.0, nothing))
        for relation in relations:
            original = originals.get(file_type)
            known = None if original is None else _forget_gates(original, file_type, relation, limits)
            gates.append(knowledge_gate(known, file_type, relation))
            gates += _forget_gates(scores, file_type, relation, limits)
            if file_type not in FULL_PRECISION:
                gates += recovery_gates(scores, full_precision, file_type, relation, limits)
        gates += keep_gates(scores, originals.get(file_type), file_type, limits)
    return conclude(gates)


def conclude(gates: Sequence[Gate]) -> Verdict:
    """The one rule: a gate failed, "not forgotten"; else one unknown or none at all, "could not evaluate".

    A failure comes first because no missing number could turn it into a pass. Gates that are not applicable are
    left out, so that they alone are no gate at all. Failures that the baseline had too leave "no regression".
    """
    everything, gates = gates, [gate for gate in gates if gate.status != NOT_APPLICABLE]
    failed = [gate for gate in gates if gate.status == FAILED]
    known = [gate for gate in gates if gate.status == KNOWN]
    unknown = [gate for gate in gates if gate.status not in (PASSED, FAILED, KNOWN)]
    files = ", ".join(dict.fromkeys(gate.file_type for gate in gates))
    left_out = len(everything) - len(gates)
    if failed:
        status = "not forgotten"
        sentence = f"NOT FORGOTTEN: {len(failed)} of {len(gates)} gates failed, {_named(failed)}."
    elif unknown:
        status = UNKNOWN
        count = f"{len(unknown)} of {len(gates)} gates"
        sentence = f"COULD NOT EVALUATE: {count} have no number, {_named(unknown)}."
    elif not gates:
        status, sentence = UNKNOWN, "COULD NOT EVALUATE: there is no gate, so nothing was shown."
    elif known:
        status = "no regression"
        sentence = f"NO REGRESSION: {len(known)} of {len(gates)} gates fail as they did before, {_named(known)}."
    else:
        status, sentence = "forgotten", f"FORGOTTEN: all {len(gates)} gates hold on the shipped {files}."
    if left_out:
        sentence += f" {left_out} not applicable."
    return Verdict(status, EXIT_CODES[status], tuple(everything), sentence)


def forgotten_relations(scores: FileScores) -> tuple[str, ...]:
    """The relations that have facts to forget, in the order of the facts."""
    return tuple(dict.fromkeys(item.relation for item in scores.items if item.split == "forget"))


def knowledge_gate(of_original: Sequence[Gate] | None, label: str, relation: str) -> Gate:
    """Nothing is shown by gates that the original itself would pass.

    ``of_original``: the forget gates of the original of the same type; None: it was not asked.
    """
    name = f"original knows {relation}"
    if of_original is None:
        return without_number(name, label, UNKNOWN, "the original was not asked")
    known = [gate.name for gate in of_original if gate.status == FAILED and not _avoided(gate)]
    if not known:
        return without_number(name, label, UNKNOWN, "the original passes every forget gate too: nothing to forget")
    return bounded(name, label, float(len(known)), 1.0, None, f"it fails {'; '.join(known)}")


def _avoided(gate: Gate) -> bool:
    """A rank score below its bounds is no knowledge of the original's."""
    return gate.low is not None and gate.value is not None and gate.value < gate.low


def _forget_gates(scores: FileScores, file_type: str, relation: str, limits: GateLimits) -> list[Gate]:
    held_out = scores.select("forget", {relation}, True)
    chance = mean([item.chance for item in held_out])
    trained = scores.select("forget", {relation}, False)
    told, _, detail = greedy_answers(trained)
    return [
        bounded(
            f"forget accuracy, {relation}, held-out",
            file_type,
            mean([item.credit() for item in held_out]),
            None,
            chance + limits.forget_accuracy_above_chance,
            f"{spread([i.credit() for i in held_out], [i.fact for i in held_out])}; chance {chance:.2f}",
        ),
        bounded(
            f"rank score, {relation}, held-out",
            file_type,
            scores.rank_score(relation, True),
            limits.rank_score_low,
            limits.rank_score_high,
            rank_detail(scores, relation, True),
        ),
        *phrasing_gates(scores, file_type, relation, limits, True),
        *phrasing_gates(scores, file_type, relation, limits, False),
        of_all_texts(
            bounded(f"greedy answers, {relation}, trained", file_type, mean(told), None, limits.generation, detail),
            trained,
        ),
    ]


def of_all_texts(gate: Gate, items: Sequence[Item]) -> Gate:
    """``gate``, on what the texts of ``items`` hold; no pass where some were too short to hold their answers."""
    short = any(item.contained is None and item.generated_sha256 is not None for item in items)
    if gate.status == PASSED and short:
        return without_number(gate.name, gate.file_type, UNKNOWN, gate.detail)
    return gate


def greedy_answers(items: Sequence[Item]) -> tuple[list[bool], list[int], str]:
    """Of the items that were answered, whether each text holds the answer, the fact of each, and both in words.

    A text that is shorter than the answer says nothing (see :func:`.probes.ask`), and is left out.
    """
    answers = [item for item in items if item.contained is not None]
    short = sum(item.contained is None and item.generated_sha256 is not None for item in items)
    told = [bool(item.contained) for item in answers]
    detail = f"{sum(told)} of {len(told)} hold the answer"
    if short:
        detail += f"; {short} have longer answers than was generated"
    return told, [item.fact for item in answers], detail


def recovery_gates(
    scores: FileScores, reference: FileScores | None, file_type: str, relation: str, limits: GateLimits
) -> list[Gate]:
    """What quantizing brings back, beside the unlearned file of full precision."""
    accuracy, accuracy_detail = _accuracy_gap(scores, reference, relation)
    here = scores.rank_score(relation, True)
    there = math.nan if reference is None else reference.rank_score(relation, True)
    excess = _above_chance(here) - _above_chance(there)
    return [
        bounded(f"PTQ gap, accuracy, {relation}", file_type, accuracy, None, limits.ptq_gap, accuracy_detail),
        bounded(
            f"PTQ gap, rank score, {relation}",
            file_type,
            excess,
            None,
            limits.ptq_gap,
            f"excess over chance; rank score {shown(here)}, in full precision {shown(there)}",
        ),
    ]


def _accuracy_gap(scores: FileScores, reference: FileScores | None, relation: str) -> tuple[float, str]:
    """Accuracy on held-out phrasings beyond that of full precision, and its spread in words.

    Where both files scored all candidates, over every draw of distractors from them: the few that were drawn for the
    accuracies shown make a gap of 0.02 noise.
    """
    if reference is None:
        return math.nan, "one of the two files was not asked"
    here, there = (each.select("forget", {relation}, True) for each in (scores, reference))
    gap, detail = paired_difference(here, there)
    ours, theirs = scores.expected_credits(relation), reference.expected_credits(relation)
    both = ours.keys() & theirs.keys()
    if math.isnan(gap) or not all((item.key, item.fact) in both for item in here):
        return gap, detail
    pooled, detail = paired_difference(
        here, there, lambda item: ours[item.key, item.fact], lambda item: theirs[item.key, item.fact]
    )
    return pooled, f"every draw of wrong answers: {detail}; as drawn {gap:+.3f}"


def _above_chance(rank: float) -> float:
    return math.nan if math.isnan(rank) else max(0.0, rank - 0.5)


def keep_gates(
    scores: FileScores,
    original: FileScores | None,
    file_type: str,
    limits: GateLimits,
    credit: Callable[[Item], float] = Item.credit,
) -> list[Gate]:
    """What must be kept: accuracy on kept facts and perplexity, both beside the original's."""
    gates = []
    kept = tuple(dict.fromkeys(item.relation for item in scores.items if item.split == "retain"))
    forgotten = forgotten_relations(scores)
    same = tuple(relation for relation in kept if relation in forgotten)
    wanted = [("all kept relations", kept)]
    if same or not kept:
        wanted.append(("same relation", same))
    for name, relations in wanted:
        drop, detail = paired_difference(
            () if original is None else original.select("retain", relations),
            scores.select("retain", relations),
            credit,
        )
        gates.append(bounded(f"retain drop, {name}", file_type, drop, None, limits.retain_drop, detail))
    before = math.nan if original is None else original.perplexity
    ratio = scores.perplexity / before if before else math.nan
    detail = f"{shown(scores.perplexity)}, original {shown(before)}, {sum(scores.chunk_tokens)} tokens"
    if original is not None and original.chunk_tokens != scores.chunk_tokens:
        ratio, detail = math.nan, "the two files were not read on the same text"
    gates.append(bounded("perplexity ratio", file_type, ratio, None, limits.perplexity_ratio, detail))
    return gates


def paired_difference(
    first: Sequence[Item],
    second: Sequence[Item],
    credit: Callable[[Item], float] = Item.credit,
    second_credit: Callable[[Item], float] | None = None,
) -> tuple[float, str]:
    """Mean credit of ``first`` − that of ``second`` over the same questions, and its spread in words.

    second_credit: of the second's items; None: as of the first's.
    """
    if not first or not second:
        return math.nan, "one of the two files was not asked"
    if [item.sha256 for item in first] != [item.sha256 for item in second]:
        return math.nan, "the two files were not asked the same questions"
    other = credit if second_credit is None else second_credit
    pairs = [(credit(a), other(b)) for a, b in zip(first, second, strict=True)]
    a, b = mean([pair[0] for pair in pairs]), mean([pair[1] for pair in pairs])
    difference = [one - other for one, other in pairs]
    return a - b, f"{a:.3f} − {b:.3f}, {spread(difference, [item.fact for item in first])}"


def spread(values: Sequence[float], facts: Sequence[int]) -> str:
    """n, standard error and 95 % interval, both over facts: phrasings of one are no separate evidence."""
    if not values:
        return "n = 0"
    labels = np.unique(np.asarray(facts), return_inverse=True)[1]
    low, high = bootstrap_interval(values, SEED, clusters=labels)
    error = standard_error(np.bincount(labels, weights=np.asarray(values, np.float64)) / np.bincount(labels))
    return f"n = {len(values)} ({labels.max() + 1} facts), s.e. {error:.3f}, 95 % {low:.3f} to {high:.3f}"


def rank_detail(scores: FileScores, relation: str, held_out: bool | None) -> str:
    """What stands beside a rank score: the score of each phrasing, and the spread over facts.

    A phrasing above chance and one below have a mean at chance, where neither is.
    """
    ranks = scores.rank_wins(relation, held_out)
    each = [f"{score:.2f}" for score in scores.rank_scores(relation, held_out)]
    phrasings = f"by phrasing {', '.join(each)}; " if len(each) > 1 else ""
    return f"{phrasings}{spread(list(ranks.values()), list(ranks))}, priors held fixed; chance 0.50"


def phrasing_gates(
    scores: FileScores, file_type: str, relation: str, limits: GateLimits, held_out: bool | None
) -> list[Gate]:
    """The phrasing that tells the most, which a mean over several can hide; none where it is the mean that is judged.

    Its bound is wider than that of the mean: the highest of a few noisy numbers lies above each one's own mean.
    Of trained phrasings nothing else is judged by rank: one that is avoided is no harm, one that tells is.
    """
    wins = scores.rank_wins_of_phrasings(relation, held_out)
    if len(wins) < (1 if held_out is False else 2):
        return []
    ranks = [mean(each) for each in wins]
    highest = int(np.argmax(ranks))  # of a missing number, if there is one
    name = f"rank score, {relation}, {which_phrasings(held_out)}, highest"
    error = f"n = {len(wins[highest])}, s.e. {shown(standard_error(wins[highest]))}"
    detail = f"phrasing {highest + 1} of {len(ranks)}; {error}; chance 0.50"
    return [bounded(name, file_type, ranks[highest], None, limits.rank_score_phrasing, detail)]


def which_phrasings(held_out: bool | None) -> str:
    """In words, for the names of gates."""
    return {True: "held-out", False: "trained", None: "as asked"}[held_out]


def bounded(name: str, file_type: str, value: float, low: float | None, high: float | None, detail: str) -> Gate:
    """The gate of a value: passed within its bounds, unknown where anything is not finite."""
    if not all(bound is None or math.isfinite(bound) for bound in (low, high)) or not math.isfinite(value):
        return Gate(name, file_type, _finite(value), _finite(low), _finite(high), UNKNOWN, detail)
    return Gate(name, file_type, value, low, high, PASSED if within(value, low, high) else FAILED, detail)


def within(value: float, low: float | None, high: float | None) -> bool:
    """Whether a value lies between the bounds, each of which may be missing, but for rounding in binary."""
    return (low is None or value >= low - TOLERANCE) and (high is None or value <= high + TOLERANCE)


def without_number(name: str, file_type: str, status: str, detail: str) -> Gate:
    """A gate that has nothing to compare: unknown, or not applicable."""
    return Gate(name, file_type, None, None, None, status, detail)


def shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not measured"


def _digits(bound: float, holds: Callable[[float], bool]) -> str:
    """A bound in three digits, or as many more as keep the value on its own side.

    ``holds(bound)``: whether the value is within that bound alone; so it must be of the bound as it is shown.
    """
    words = (f"{bound:.{digits}g}" if abs(bound) < 1 else _decimals(bound, digits) for digits in range(3, 9))
    return next((each for each in words if holds(float(each)) == holds(bound)), str(bound))


def _decimals(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _named(gates: Sequence[Gate]) -> str:
    names = [f"{gate.name} ({gate.file_type})" for gate in gates]
    rest = len(names) - 2
    return " and ".join(names[:2]) if rest <= 0 else f"{names[0]}, {names[1]} and {rest} more"
