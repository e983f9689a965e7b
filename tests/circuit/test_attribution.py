"""Scores of two halves are the scores of the whole; what is chosen follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gguf_forget.circuit.attribution import Selection, attribute
from gguf_forget.circuit.neurons import score_neurons
from gguf_forget.circuit.selection import discounted_scores, normalised, select_neurons
from gguf_forget.circuit.stability import halves, stability
from gguf_forget.circuit.text_need import text_need
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair

FORGET = tuple(Pair((300 + i, 20, 31), (301 + i, 20, 31), 42 + i, (50, 51), i) for i in range(5))
RETAIN = tuple(Pair((7, 80 + i, 9, 10), (7, 99, 9, 10), 60 + i, (70, 71), 10 + i) for i in range(4))


@pytest.mark.parametrize("signed", [True, False])
def test_the_halves_together_are_the_whole(tiny_double: Any, signed: bool) -> None:
    steps: list[int] = []
    selection = Selection(budget=0.05, layer_cap=0.08, retain_discount=0.5, signed=signed)
    found = attribute(tiny_double, FORGET, RETAIN, selection=selection, seed=3, progress=steps.append)
    forget, retain = (score_neurons(tiny_double, pairs) for pairs in (FORGET, RETAIN))
    torch.testing.assert_close(found.forget.scores, forget.scores, rtol=1e-9, atol=1e-14)
    assert found.retain is not None
    torch.testing.assert_close(found.retain.scores, retain.scores, rtol=1e-9, atol=1e-14)
    assert found.forget.metric_gap == pytest.approx(forget.metric_gap)
    assert found.forget.embedding_score == pytest.approx(forget.embedding_score)
    assert (found.forget.pairs, found.retain.pairs, sum(steps)) == (5, 4, 9)
    ranking = discounted_scores([forget.scores.numpy()], [retain.scores.numpy()], 0.5, signed=signed)
    np.testing.assert_allclose(found.ranking, ranking, rtol=1e-8)
    expected = select_neurons(ranking, budget=0.05, layer_cap=0.08)
    assert np.array_equal(found.circuit.mask(), expected.mask())

    parts = []
    for half in (0, 1):
        scores = [score_neurons(tiny_double, halves(each, seed=3)[half]).scores.numpy() for each in (FORGET, RETAIN)]
        parts.append((scores[0], selection.circuit(discounted_scores([scores[0]], [scores[1]], 0.5, signed=signed))))
    across = stability(parts[0][0], parts[1][0], (parts[0][1], parts[1][1]))
    assert found.across_halves is not None
    assert found.across_halves.overlap == across.overlap
    assert found.across_halves.rank_correlation == pytest.approx(across.rank_correlation)


def test_without_retain_pairs_nothing_is_discounted(tiny_double: Any) -> None:
    found = attribute(tiny_double, FORGET, selection=Selection(neurons=7, signed=True))
    scores = score_neurons(tiny_double, FORGET).scores.numpy()
    assert found.retain is None
    assert np.array_equal(found.circuit.mask(), select_neurons(scores, neurons=7).mask())
    assert found.across_halves is not None


def test_every_relation_has_an_equal_say(tiny_double: Any) -> None:
    """However many pairs ask about it, and however large its scores are."""

    def relation(pair: Pair) -> str:
        return "a" if pair.fact in (0, 10, 11, 12) else "b"

    selection = Selection(neurons=40, layer_cap=0.5, retain_discount=0.5)
    found = attribute(tiny_double, FORGET, RETAIN, relation=relation, selection=selection)

    def alone(pairs: tuple[Pair, ...], name: str) -> np.ndarray:
        scores = score_neurons(tiny_double, [pair for pair in pairs if relation(pair) == name]).scores.abs().numpy()
        return np.asarray(scores / scores.mean())

    of_forget = (alone(FORGET, "a") + alone(FORGET, "b")) / 2
    of_retain = (alone(RETAIN, "a") + alone(RETAIN, "b")) / 2
    np.testing.assert_allclose(found.ranking, of_forget - 0.5 * of_retain, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.undiscounted, of_forget, rtol=1e-7)
    assert np.array_equal(found.circuit.mask(), select_neurons(found.ranking, neurons=40, layer_cap=0.5).mask())
    together = attribute(tiny_double, FORGET, RETAIN, selection=selection)
    torch.testing.assert_close(found.forget.scores, together.forget.scores, rtol=1e-9, atol=1e-14)
    assert not np.array_equal(found.circuit.mask(), together.circuit.mask())
    assert (found.forget.pairs, found.forget.metric_gap) == (5, pytest.approx(together.forget.metric_gap))


def test_what_text_needs_is_subtracted_from_the_ranking(tiny_double: Any) -> None:
    need = text_need(tiny_double, [[(7 * i + 3 * k) % 250 for k in range(12)] for i in range(6)])
    selection = Selection(neurons=30, layer_cap=0.5)
    plain = attribute(tiny_double, FORGET, RETAIN, selection=selection)
    discounted = Selection(neurons=30, layer_cap=0.5, text=need, text_discount=2.0)
    found = attribute(tiny_double, FORGET, RETAIN, selection=discounted)
    np.testing.assert_allclose(found.ranking, plain.ranking - 2.0 * normalised(need), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.undiscounted, plain.undiscounted)
    assert need[found.circuit.mask()].mean() < 0.8 * need[plain.circuit.mask()].mean()


def test_one_fact_has_no_halves(tiny_double: Any) -> None:
    assert attribute(tiny_double, FORGET[:1], RETAIN).across_halves is None
    assert attribute(tiny_double, FORGET, RETAIN[:1]).across_halves is None


def test_nothing_to_attribute_is_refused(tiny_double: Any) -> None:
    with pytest.raises(InputError, match="no pairs to attribute"):
        attribute(tiny_double, [])
