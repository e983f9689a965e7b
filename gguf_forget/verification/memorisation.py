"""How much of an answer a model still holds: teacher-forced, as text, and over samples. Pure functions.

Shapes:
    T: tokens of an answer
    n: questions; samples of one question in :func:`leak_at_k`
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gguf_forget.errors import EvaluationError
from gguf_forget.words import normalise


def answer_probability(log_probabilities: ArrayLike) -> float:
    """exp of the mean log-probability of an answer's tokens, [T]: the answer's probability to the power 1/T.

    TOFU (arXiv 2401.06121, section 2.2). NaN for no tokens.
    """
    values = np.asarray(log_probabilities, dtype=np.float64)
    return float(np.exp(values.mean())) if values.size else math.nan


def extraction_strength(matches: Sequence[bool]) -> float:
    """1 − k/T, where from token k on every teacher-forced argmax is the answer's own token; none at the end: 0.

    How little of an answer must be given for the rest to follow (Carlini et al., arXiv 2012.07805; as a measure
    of unlearning, arXiv 2406.09179). ``matches``: for each answer token, whether the argmax equals it, [T].
    """
    if not len(matches):
        return math.nan
    tail = 0
    for match in reversed(matches):
        if not match:
            break
        tail += 1
    return tail / len(matches)


def longest_run(matches: Sequence[bool]) -> int:
    """The most tokens in a row, anywhere in the answer, that are the teacher-forced argmax; ``matches``: [T]."""
    longest = run = 0
    for match in matches:
        run = run + 1 if match else 0
        longest = max(longest, run)
    return longest


def exact_memorisation(matches: Sequence[bool]) -> float:
    """Share of answer tokens that are the teacher-forced argmax (Tirumala et al., arXiv 2205.10770, section 3)."""
    return float(np.mean(np.asarray(matches, dtype=np.float64))) if len(matches) else math.nan


def rouge_l_recall(text: str, reference: str) -> float:
    """Longest common subsequence of words, over the words of the reference (Lin 2004, section 3).

    Words are those of :func:`~gguf_forget.words.normalise` (lower case, no accents, no
    punctuation), without stemming. NaN where the reference has no word.
    """
    found, wanted = normalise(text).split(), normalise(reference).split()
    if not wanted:
        return math.nan
    row = [0] * (len(found) + 1)  # row[j]: longest common subsequence with the first j words found
    for word in wanted:
        diagonal = 0
        for j, other in enumerate(found, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1] / len(wanted)


def truth_ratio(wrong: ArrayLike, paraphrase: float) -> float:
    """Mean probability of wrong answers over that of a paraphrase of the right one.

    TOFU (arXiv 2401.06121, equation 1). All are probabilities per token (:func:`answer_probability`); ``wrong`` is
    [k]. Near 0 the model tells right from wrong; near 1 it does not. NaN without wrong answers.
    """
    values = np.asarray(wrong, dtype=np.float64)
    if not values.size or not paraphrase > 0:
        return math.nan
    return float(values.mean() / paraphrase)


def two_sided_truth_ratio(ratio: float) -> float:
    """min(r, 1/r): 1 where right and wrong answers are equally probable, less on either side."""
    if math.isnan(ratio):
        return math.nan
    return min(ratio, 1 / ratio) if ratio > 0 else 0.0


def forget_quality(unlearned: ArrayLike, retrained: ArrayLike) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test on truth ratios, [n] and [m].

    TOFU (arXiv 2401.06121, section 2.2.2): high where the unlearned model cannot be told from one that never saw the
    facts. Exact where no two values are equal: the share of orders of n + m values, seen as lattice paths from (0, 0)
    to (n, m), that stray as far from the diagonal (Hodges 1958). NaN where a sample is empty or not finite.
    """
    first, second = np.sort(np.asarray(unlearned, np.float64)), np.sort(np.asarray(retrained, np.float64))
    n, m = first.size, second.size
    if not n or not m or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return math.nan
    points = np.concatenate([first, second])
    counts = np.searchsorted(first, points, side="right") * m - np.searchsorted(second, points, side="right") * n
    gap = int(np.abs(counts).max())  # the statistic times n · m, a whole number
    strayed = [float(abs(j * n) >= gap) for j in range(m + 1)]
    for j in range(1, m + 1):
        strayed[j] = max(strayed[j], strayed[j - 1])
    for i in range(1, n + 1):
        strayed[0] = 1.0 if i * m >= gap else strayed[0]
        for j in range(1, m + 1):
            # Of the paths to (i, j), i of i + j come from (i − 1, j).
            before = (i * strayed[j] + j * strayed[j - 1]) / (i + j)
            strayed[j] = 1.0 if abs(i * m - j * n) >= gap else before
    return strayed[m]


def leak_at_k(samples: int, leaks: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k): the chance that at least one of k samples leaks, from c leaks in n samples.

    The unbiased estimator of pass@k (Chen et al., arXiv 2107.03374, equation 1), with leaking for passing.

    Raises:
        EvaluationError: fewer samples than k, or counts that make no sense.
    """
    if not 0 <= leaks <= samples or not 1 <= k <= samples:
        raise EvaluationError(f"leak@{k} from {leaks} leaks in {samples} samples, needed 0 ≤ leaks ≤ samples ≥ k ≥ 1")
    return 1 - math.comb(samples - leaks, k) / math.comb(samples, k)
