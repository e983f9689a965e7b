"""Do two attributions pick the same neurons, and how much of that would chance give?

Shapes: L layers, d_ff neurons a layer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gguf_forget.circuit.ranks import spearman
from gguf_forget.circuit.selection import Circuit
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair


@dataclass(frozen=True)
class Overlap:
    """Neurons that two circuits share.

    ``share`` of the smaller circuit's neurons, ``jaccard`` shared / union, ``chance`` the expected share if each
    circuit drew as many neurons in each layer at random (mean of the hypergeometric distribution).
    """

    shared: int
    share: float
    jaccard: float
    chance: float


def overlap(first: Circuit, second: Circuit) -> Overlap:
    """Compare two circuits of one model; :class:`InputError` when their shapes differ."""
    a, b = first.mask(), second.mask()
    if a.shape != b.shape:
        raise InputError(f"circuits of {a.shape} and {b.shape} neurons cannot be compared, needed equal shapes")
    shared, smaller = int((a & b).sum()), max(1, min(first.size, second.size))
    expected = float((a.sum(axis=1) * b.sum(axis=1) / first.width).sum())
    return Overlap(shared, shared / smaller, shared / max(1, int((a | b).sum())), expected / smaller)


@dataclass(frozen=True)
class Stability:
    """Overlap of the selected neurons, and Spearman's rank correlation of all magnitudes |score|."""

    overlap: Overlap
    rank_correlation: float


def stability(first: np.ndarray, second: np.ndarray, circuits: tuple[Circuit, Circuit]) -> Stability:
    """Compare two attributions [L, d_ff] of one model, and the circuits chosen from them."""
    return Stability(overlap(*circuits), spearman(np.abs(first), np.abs(second)))


def halves(pairs: Sequence[Pair], *, seed: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Two halves that share no fact, drawn by ``seed``; the second may be empty when there is one fact only."""
    facts = sorted({pair.fact for pair in pairs})
    first = set(random.Random(seed).sample(facts, (len(facts) + 1) // 2))
    return (
        tuple(pair for pair in pairs if pair.fact in first),
        tuple(pair for pair in pairs if pair.fact not in first),
    )
