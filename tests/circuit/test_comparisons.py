"""Overlap, rank correlation and divergence of circuits, by numbers that can be followed by eye."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gguf_forget.circuit.divergence import divergence
from gguf_forget.circuit.ranks import ranks, spearman
from gguf_forget.circuit.selection import Circuit
from gguf_forget.circuit.stability import halves, overlap, stability
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair


def circuit(*layers: list[int], width: int = 10) -> Circuit:
    return Circuit(tuple(np.array(layer, dtype=np.int64) for layer in layers), width)


def test_overlap_and_what_chance_would_give() -> None:
    found = overlap(circuit([0, 1, 2, 3], [5]), circuit([2, 3, 4, 5, 6], [7]))
    assert found.shared == 2
    assert found.share == pytest.approx(2 / 5)
    assert found.jaccard == pytest.approx(2 / 9)
    assert found.chance == pytest.approx((4 * 5 / 10 + 1 * 1 / 10) / 5)


def test_the_chance_overlap_is_what_random_draws_share() -> None:
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        drawn = [circuit(generator.permutation(10)[:4].tolist()) for _ in range(2)]
        shares.append(overlap(*drawn).share)
    assert np.mean(shares) == pytest.approx(overlap(circuit([0, 1, 2, 3]), circuit([0, 1, 2, 3])).chance, abs=0.02)


def test_circuits_of_different_models_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(1, 10\) and \(2, 10\)"):
        overlap(circuit([0]), circuit([0], [1]))


def test_ranks_share_their_mean_where_values_are_equal() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]


def test_spearman_by_hand() -> None:
    assert spearman(np.array([1, 2, 3]), np.array([10, 100, 1000])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 3]), np.array([9, 4, 1])) == pytest.approx(-1)
    # no ties: 1 - 6 sum d² / n (n² - 1), with d = 0, 1, -1, 0
    assert spearman(np.array([1, 2, 3, 4]), np.array([1, 3, 2, 4])) == pytest.approx(1 - 6 * 2 / 60)
    assert math.isnan(spearman(np.array([1, 2]), np.array([5, 5])))
    with pytest.raises(InputError, match="2 and 3 values"):
        spearman(np.array([1, 2]), np.array([1, 2, 3]))


def test_stability_compares_magnitudes() -> None:
    scores = np.array([[1.0, -2.0, 3.0]])
    circuits = circuit([2, 1], width=3), circuit([0, 2], width=3)
    found = stability(scores, -scores, circuits)
    assert found.rank_correlation == pytest.approx(1)
    assert found.overlap.shared == 1


def test_halves_share_no_fact() -> None:
    pairs = [Pair((1, index), (2, index), 3, (4,), index // 3) for index in range(15)]
    first, second = halves(pairs, seed=0)
    assert sorted(first + second, key=lambda pair: pair.clean) == pairs
    assert len(first) == 9
    assert {pair.fact for pair in first} & {pair.fact for pair in second} == set()
    assert halves(pairs, seed=0) == (first, second)
    assert len({halves(pairs, seed=seed) for seed in range(8)}) > 1
    assert halves(pairs[:2], seed=0) == (tuple(pairs[:2]), ())


BEFORE = np.array([[1.0, -3.0], [0.0, 4.0]])


def test_divergence_by_hand() -> None:
    after = np.array([[2.0, 0.0], [-2.0, 0.0]])
    found = divergence(BEFORE, after)
    assert found.l1 == pytest.approx(abs(1 / 8 - 1 / 2) + 3 / 8 + 1 / 2 + 4 / 8)
    assert found.one_minus_cosine == pytest.approx(1 - 2 / (math.sqrt(26) * math.sqrt(8)))
    assert found.mass_ratio == pytest.approx(4 / 8)
    assert found.neurons == 4


def test_divergence_does_not_see_signs_and_the_shares_do_not_see_the_mass() -> None:
    found = divergence(BEFORE, -0.5 * BEFORE)
    assert found.l1 == pytest.approx(0)
    assert found.one_minus_cosine == pytest.approx(0)
    assert found.mass_ratio == pytest.approx(0.5)


def test_nothing_in_common_is_the_largest_divergence() -> None:
    found = divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 7.0]]))
    assert (found.l1, found.one_minus_cosine, found.mass_ratio) == (2.0, 1.0, 7.0)


def test_divergence_within_a_circuit() -> None:
    after = np.array([[9.0, 1.0], [9.0, 3.0]])
    found = divergence(BEFORE, after, circuit([1], [1], width=2))
    assert found.l1 == pytest.approx(abs(3 / 7 - 1 / 4) + abs(4 / 7 - 3 / 4))
    assert found.mass_ratio == pytest.approx(4 / 7)
    assert found.neurons == 2


def test_no_attribution_left_has_no_direction() -> None:
    found = divergence(BEFORE, np.zeros((2, 2)))
    assert math.isnan(found.l1)
    assert math.isnan(found.one_minus_cosine)
    assert found.mass_ratio == 0
    assert math.isnan(divergence(np.zeros((2, 2)), BEFORE).mass_ratio)


def test_attributions_of_different_models_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 2\) and \(1, 2\)"):
        divergence(BEFORE, BEFORE[:1])
    with pytest.raises(InputError, match=r"circuit: \(1, 10\)"):
        divergence(BEFORE, BEFORE, circuit([0]))
