"""Faithfulness by its formula from patched runs, and the areas of its curve by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from gguf_forget.circuit.faithfulness import (
    SHARES,
    curve,
    faithfulness,
    nested_circuits,
    shuffled_within_layers,
)
from gguf_forget.circuit.patching import patched_metrics
from gguf_forget.circuit.selection import Circuit
from gguf_forget.facts.corruption import Pair

PAIRS = (
    Pair((300, 20, 31), (301, 20, 31), 42, (50, 51), 0),
    Pair((7, 8, 9, 10, 11, 12), (7, 8, 99, 98, 11, 12), 60, (61, 62, 63), 1),
)


def test_the_formula_and_its_ends(tiny_double: Any) -> None:
    generator = np.random.default_rng(0)
    some = generator.random((2, 512)) < 0.4
    circuit = Circuit(tuple(np.flatnonzero(row) for row in some), 512)
    everything = Circuit((np.arange(512),) * 2, 512)
    nothing = Circuit((np.array([], dtype=np.int64),) * 2, 512)
    found = faithfulness(tiny_double, PAIRS, [circuit, everything, nothing])
    metrics = patched_metrics(tiny_double, PAIRS, [some, np.zeros_like(some)])
    full, empty = metrics.clean.mean(), metrics.patched[1].mean()
    assert found.full == pytest.approx(full)
    assert found.empty == pytest.approx(empty)
    assert found.corrupted == pytest.approx(metrics.corrupted.mean())
    assert found.values[0] == pytest.approx((metrics.patched[0].mean() - empty) / (full - empty))
    assert found.values[1:] == (1.0, 0.0)
    assert found.pairs == 2


def test_pairs_that_say_nothing_about_neurons_give_no_faithfulness(tiny_double: Any) -> None:
    same = Pair((300, 20, 31), (300, 20, 31), 42, (50, 51), 0)
    circuit = Circuit((np.array([1]), np.array([2])), 512)
    assert np.isnan(faithfulness(tiny_double, [same], [circuit]).values[0])


def test_areas_by_hand() -> None:
    sizes = [Circuit((np.arange(n),), 10) for n in (1, 5, 10)]
    found = curve((0.1, 0.5, 1.0), sizes, (0.2, 1.4, 1.0))
    assert found.neurons == (1, 5, 10)
    assert found.cpr == pytest.approx(0.4 * (0.2 + 1.4) / 2 + 0.5 * (1.4 + 1.0) / 2)
    assert found.cmd == pytest.approx(0.4 * (0.8 + 0.4) / 2 + 0.5 * (0.4 + 0.0) / 2)


def test_a_perfect_circuit_has_all_of_the_interval() -> None:
    sizes = nested_circuits(np.random.default_rng(0).random((3, 400)))
    found = curve(SHARES, sizes, [1.0] * len(SHARES))
    assert found.cpr == pytest.approx(0.999)  # from 0.001 to 1
    assert found.cmd == 0
    assert found.neurons == (1, 2, 6, 12, 24, 60, 120, 240, 600, 1200)


def test_circuits_are_nested_and_controls_have_their_profile() -> None:
    ranking = np.random.default_rng(0).random((3, 400)) * [[3.0], [2.0], [1.0]]
    own, control = nested_circuits(ranking), nested_circuits(shuffled_within_layers(ranking, seed=1))
    for smaller, larger in itertools.pairwise(own):
        assert not (smaller.mask() & ~larger.mask()).any()
    for circuit, other in zip(own, control, strict=True):
        assert [len(layer) for layer in circuit.neurons] == [len(layer) for layer in other.neurons]
    assert (own[5].mask() != control[5].mask()).any()
    again = shuffled_within_layers(ranking, seed=1)
    assert np.array_equal(again, shuffled_within_layers(ranking, seed=1))
    assert not np.array_equal(again, shuffled_within_layers(ranking, seed=2))
