"""The numbers a file is judged by. Pure functions of numpy arrays; nothing here knows a model or a file.

Shapes:
    n: probe items, or subjects of a relation
    k: distractors of an item
    c: candidates, the distinct answers of a relation
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_forget.errors import EvaluationError
from gguf_forget.words import readings, unspaced

Floats = NDArray[np.float64]


def choice_credits(right: ArrayLike, distractors: ArrayLike) -> Floats:
    """Whether the right answer has the highest log-probability of its options; [n] and [n, k] to [n].

    A tie at the top counts as one over the number of tied options, what a blind pick among them would get.
    Scores that are not finite give NaN, never a credit.
    """
    first = np.asarray(right, dtype=np.float64)
    others = np.asarray(distractors, dtype=np.float64)
    if others.ndim != 2 or first.shape != others.shape[:1] or not others.shape[1]:
        raise EvaluationError(
            f"right answers have shape {first.shape} and distractors {others.shape}, needed [n], [n, k]"
        )
    best = others.max(axis=1)
    tied = (others == first[:, None]).sum(axis=1)
    with np.errstate(invalid="ignore"):
        credit = np.where(first >= best, 1.0 / (1 + tied), 0.0)
    finite = np.isfinite(first) & np.isfinite(others).all(axis=1)
    return np.where(finite, credit, np.nan)


def expected_choice_credit(right: float, others: ArrayLike, k: int) -> float:
    """The mean of :func:`choice_credits` over every way to draw ``k`` distractors from ``others``, at least k of them.

    What a few drawn distractors estimate, without the chance of the draw: on the demo the difference between a file and
    its full precision has a standard error of 0.005, with three drawn 0.023. NaN where a score is not finite.
    """
    values = np.asarray(others, dtype=np.float64)
    if not 0 < k <= values.size:
        raise EvaluationError(f"{k} distractors cannot be drawn from {values.size}")
    if not (math.isfinite(right) and np.isfinite(values).all()):
        return math.nan
    lower, tied = int((values < right).sum()), int((values == right).sum())
    ways = sum(math.comb(tied, j) * math.comb(lower, k - j) / (1 + j) for j in range(min(tied, k) + 1))
    return ways / math.comb(values.size, k)


def four_way_accuracy(right: ArrayLike, distractors: ArrayLike) -> float:
    """Mean of :func:`choice_credits`; chance is 1 / (1 + k), 0.25 with three distractors. NaN when n is 0."""
    return mean(choice_credits(right, distractors))


def four_way_accuracy_normalised(
    right: ArrayLike, distractors: ArrayLike, right_tokens: ArrayLike, distractor_tokens: ArrayLike
) -> float:
    """The same with each summed log-probability divided by its answer's number of tokens, [n] and [n, k]."""
    per_token = np.asarray(distractors, np.float64) / np.asarray(distractor_tokens, np.float64)
    return four_way_accuracy(np.asarray(right, np.float64) / np.asarray(right_tokens, np.float64), per_token)


def rank_wins(
    scores: ArrayLike,
    right: ArrayLike,
    *,
    prior_corrected: bool = True,
    texts: Sequence[str] | None = None,
) -> Floats:
    """For each subject the share of other candidates that its right answer beats, ties one half; [n].

    Args:
        scores: log-probability of every candidate for every subject, [n, c].
        right: column of each subject's right answer, [n].
        prior_corrected: subtract from each candidate its mean over all subjects: what the model says anyway,
            whoever is asked about.
        texts: the candidates' texts, [c]. A candidate of the same text as the right one is not compared with
            it. None: all differ.

    A subject that nothing is left to compare with gets NaN.
    """
    values = np.asarray(scores, dtype=np.float64)
    columns = np.asarray(right, dtype=np.intp)
    if values.ndim != 2 or columns.shape != values.shape[:1]:
        raise EvaluationError(f"scores have shape {values.shape}, right {columns.shape}, needed [n, c] and [n]")
    if not len(columns):
        return np.empty(0)
    if columns.min() < 0 or columns.max() >= values.shape[1]:
        found = f"{columns.min()} … {columns.max()}"
        raise EvaluationError(f"right holds {found}, needed 0 … {values.shape[1] - 1}")
    if prior_corrected:
        values = values - values.mean(axis=0, keepdims=True)
    own = np.take_along_axis(values, columns[:, None], axis=1)  # [n, 1]
    beaten = np.where(own > values, 1.0, np.where(own == values, 0.5, 0.0))
    label = np.arange(values.shape[1]) if texts is None else _numbered(np.array(texts))
    other = label[None, :] != label[columns][:, None]  # [n, c]
    count = other.sum(axis=1)
    wins = np.where(other, beaten, 0.0).sum(axis=1) / np.maximum(count, 1)
    usable = (count > 0) & np.isfinite(values).all(axis=1)
    return np.where(usable, wins, np.nan)


def prior_corrected_rank_score(scores: ArrayLike, right: ArrayLike, texts: Sequence[str] | None = None) -> float:
    """The chance that the right answer beats a random other candidate once priors are subtracted.

    Chance 0.5. Two-sided: far below 0.5 the right answer is avoided, which tells what it was. Arguments as in
    :func:`rank_wins`.
    """
    return mean(rank_wins(scores, right, texts=texts))


def rank_score(scores: ArrayLike, right: ArrayLike, texts: Sequence[str] | None = None) -> float:
    """As :func:`prior_corrected_rank_score`, priors left in."""
    return mean(rank_wins(scores, right, prior_corrected=False, texts=texts))


def contains_answer(text: str, answer: str) -> bool:
    """Whether ``answer`` stands in ``text`` as whole words, in any of the :func:`~gguf_forget.words.readings` of both.

    Answers in scripts without spaces count anywhere, and those without a letter or digit as written: a leak
    is rather seen twice than missed.
    """
    wanted = readings(answer)
    if not wanted:
        return bool(answer.strip()) and answer.strip() in text
    found = readings(text)
    if unspaced(answer):
        return any(mine.replace(" ", "") in each.replace(" ", "") for mine in wanted for each in found)
    return any(f" {mine} " in f" {each} " for mine in wanted for each in found)


def contains_any(text: str, names: Iterable[str]) -> bool:
    """Whether :func:`contains_answer` holds for one of the ``names`` of an answer."""
    return any(contains_answer(text, name) for name in names)


def without_answer(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """The readings of ``text`` without any of the ``names`` of an answer as :func:`contains_answer` finds them, the
    longest first; of several readings those that lose most: in another one a name may be one that is not recognised."""
    longest_first = sorted(names, key=len, reverse=True)
    rests = {_without(reading, longest_first): len(reading.replace(" ", "")) for reading in readings(text)}
    lost = {rest: letters - len(rest.replace(" ", "")) for rest, letters in rests.items()}
    return tuple(rest for rest, letters in lost.items() if letters == max(lost.values()))


def _without(reading: str, names: Iterable[str]) -> str:
    rest = f" {reading} "
    for name in names:
        for wanted in readings(name):
            if unspaced(name):
                rest = rest.replace(" ", "").replace(wanted.replace(" ", ""), " ")
            while f" {wanted} " in rest:
                rest = rest.replace(f" {wanted} ", "  ")
    return rest


def perplexity(nats: float) -> float:
    """exp of the mean negative log-probability of a token, in nats."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def bootstrap_interval(
    values: ArrayLike, seed: int, n: int = 2000, clusters: ArrayLike | None = None
) -> tuple[float, float]:
    """95 % percentile interval of the mean, items drawn with replacement ``n`` times.

    With ``clusters`` (a label for each value), whole clusters are drawn: several phrasings of one fact are
    not independent, and an interval over single items would be too narrow. (NaN, NaN) without values or
    where one is not finite.
    """
    items = np.asarray(values, dtype=np.float64)
    if not items.size or not np.isfinite(items).all():
        return math.nan, math.nan
    labels = np.arange(items.size) if clusters is None else _numbered(np.asarray(clusters))
    total = np.bincount(labels, weights=items)
    size = np.bincount(labels).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(total), size=(n, len(total)))
    means = total[drawn].sum(axis=1) / size[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _numbered(labels: NDArray) -> NDArray[np.intp]:
    """The same labels as 0, 1, …"""
    return np.unique(labels, return_inverse=True)[1]


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean of independent values; NaN for fewer than two."""
    items = np.asarray(values, dtype=np.float64)
    return float(items.std(ddof=1) / math.sqrt(items.size)) if items.size > 1 else math.nan


def recovery_rate(quantized_unlearned: float, full_unlearned: float, quantized_original: float) -> float:
    """Share of the removed knowledge that quantizing brings back, for any metric m where more is known.

    (m_q(unlearned) − m_fp(unlearned)) / (m_q(original) − m_fp(unlearned)), our definition: 0 nothing comes
    back, 1 all of it, negative when quantizing forgets more. NaN where nothing had been removed (no
    difference to divide by). Show it beside the raw gap, never alone.
    """
    removed = quantized_original - full_unlearned
    return (quantized_unlearned - full_unlearned) / removed if removed else math.nan


def mean(values: ArrayLike) -> float:
    """The mean as a float, NaN without values (and without numpy's warning)."""
    items = np.asarray(values, dtype=np.float64)
    return float(items.mean()) if items.size else math.nan
