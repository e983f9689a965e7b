"""Numbers that can be checked with a pencil."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gguf_forget.errors import EvaluationError
from gguf_forget.verification.memorisation import (
    answer_probability,
    exact_memorisation,
    extraction_strength,
    forget_quality,
    leak_at_k,
    rouge_l_recall,
    truth_ratio,
    two_sided_truth_ratio,
)


def test_answer_probability_is_the_geometric_mean_of_the_tokens() -> None:
    assert answer_probability(np.log([0.5, 0.125])) == pytest.approx(0.25)
    assert math.isnan(answer_probability([]))


@pytest.mark.parametrize(
    ("matches", "strength", "exact"),
    [
        ([True, True, True, True], 1.0, 1.0),
        ([False, True, True, True], 0.75, 0.75),
        ([True, False, True, True], 0.5, 0.75),
        ([True, True, True, False], 0.0, 0.75),
        ([False, False], 0.0, 0.0),
    ],
)
def test_extraction_strength_looks_at_the_end_and_exact_memorisation_everywhere(
    matches: list[bool], strength: float, exact: float
) -> None:
    assert extraction_strength(matches) == strength
    assert exact_memorisation(matches) == exact


def test_nothing_to_match_is_not_a_number() -> None:
    assert math.isnan(extraction_strength([]))
    assert math.isnan(exact_memorisation([]))


@pytest.mark.parametrize(
    ("text", "reference", "recall"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("the gunman police killed", "police killed the gunman", 2 / 4),
        ("It is Paris!", "paris", 1.0),
        ("", "Paris", 0.0),
        ("a b c d", "d c b a", 1 / 4),
        ("Malmö, Sweden", "malmo sweden", 1.0),
    ],
)
def test_rouge_l_recall(text: str, reference: str, recall: float) -> None:
    assert rouge_l_recall(text, reference) == pytest.approx(recall)


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    """Every subsequence of ``a``, tried."""

    def within(part: tuple[str, ...]) -> bool:
        rest = iter(b)
        return all(word in rest for word in part)

    return max(n for n in range(len(a) + 1) if any(within(c) for c in itertools.combinations(a, n)))


def test_rouge_l_against_every_subsequence() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        a, b = (["x", "y", "z"][i] for i in generator.integers(0, 3, 7)), generator.integers(0, 3, 6)
        wanted, found = list(a), [["x", "y", "z"][i] for i in b]
        expected = longest_common_subsequence(wanted, found) / len(wanted)
        assert rouge_l_recall(" ".join(found), " ".join(wanted)) == pytest.approx(expected)


def test_a_reference_without_words_has_no_recall() -> None:
    assert math.isnan(rouge_l_recall("anything", "…"))


def test_truth_ratio_is_wrong_over_right_and_its_two_sided_form_at_most_one() -> None:
    assert truth_ratio([0.1, 0.3], 0.8) == pytest.approx(0.25)
    assert two_sided_truth_ratio(0.25) == 0.25
    assert two_sided_truth_ratio(4.0) == 0.25
    assert two_sided_truth_ratio(0.0) == 0.0
    assert math.isnan(truth_ratio([], 0.5))
    assert math.isnan(truth_ratio([0.1], 0.0))
    assert math.isnan(two_sided_truth_ratio(math.nan))


def exact_p_value(a: list[float], b: list[float]) -> float:
    """Every way to split the pooled values into two samples, counted."""

    def gap(first: list[float], second: list[float]) -> float:
        return max(abs(np.mean(np.array(first) <= x) - np.mean(np.array(second) <= x)) for x in first + second)

    pooled, observed, beyond, total = a + b, gap(a, b), 0, 0
    for chosen in itertools.combinations(range(len(pooled)), len(a)):
        rest = [pooled[i] for i in range(len(pooled)) if i not in chosen]
        beyond += gap([pooled[i] for i in chosen], rest) >= observed - 1e-12
        total += 1
    return beyond / total


def test_forget_quality_is_one_for_equal_samples_and_small_for_different_ones() -> None:
    values = np.linspace(0.1, 0.9, 40)
    assert forget_quality(values, values) == 1.0
    assert forget_quality(values, values + 0.85) < 1e-12
    assert math.isnan(forget_quality([], values))
    assert math.isnan(forget_quality([math.nan], values))


@pytest.mark.parametrize("sizes", [(6, 6), (7, 4), (3, 8)])
def test_forget_quality_counts_every_split_of_the_pooled_values(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(sum(sizes))
    for shift in (0.0, 0.3, 0.8):
        a, b = generator.uniform(size=sizes[0]).tolist(), (shift + generator.uniform(size=sizes[1])).tolist()
        assert forget_quality(a, b) == pytest.approx(exact_p_value(a, b))


def test_leak_at_k_counts_every_choice_of_k_samples() -> None:
    for n, c, k in itertools.product((5, 6), (0, 1, 3, 5), (1, 2, 4)):
        draws = list(itertools.combinations([i < c for i in range(n)], k))
        assert leak_at_k(n, c, k) == pytest.approx(np.mean([any(draw) for draw in draws]))
    assert leak_at_k(100, 1, 100) == 1.0
    assert leak_at_k(200, 1, 100) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)])
def test_counts_that_make_no_sense_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(EvaluationError, match="leak@"):
        leak_at_k(n, c, k)
