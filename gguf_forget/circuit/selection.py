"""From scores to a circuit: which neurons may be edited.

Shapes: L layers, d_ff neurons a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gguf_forget.errors import InputError


@dataclass(frozen=True)
class Circuit:
    """Selected MLP neurons: ``neurons[layer]``, sorted int64 indices below ``width`` (= d_ff)."""

    neurons: tuple[np.ndarray, ...]
    width: int

    @property
    def size(self) -> int:
        return sum(len(layer) for layer in self.neurons)

    @property
    def share(self) -> float:
        return self.size / (len(self.neurons) * self.width)

    def mask(self) -> np.ndarray:
        """bool [L, d_ff]"""
        mask = np.zeros((len(self.neurons), self.width), dtype=bool)
        for layer, indices in enumerate(self.neurons):
            mask[layer, indices] = True
        return mask


def _circuit(mask: np.ndarray) -> Circuit:
    return Circuit(tuple(np.flatnonzero(row).astype(np.int64) for row in mask), mask.shape[1])


def normalised(scores: np.ndarray) -> np.ndarray:
    """|scores| with mean 1 over all neurons, so that two sets of facts can be compared. Zeros stay zeros."""
    magnitude = np.abs(scores)
    mean = magnitude.mean()
    return magnitude / mean if mean > 0 else magnitude


def discounted_scores(forget: np.ndarray, retain: np.ndarray, discount: float) -> np.ndarray:
    """Normalised |forget| minus ``discount`` times normalised |retain| (ours), [L, d_ff]."""
    return normalised(forget) - discount * normalised(retain)


def select_neurons(scores: np.ndarray, *, budget: float, layer_cap: float = 1.0) -> Circuit:
    """The neurons with the highest ``scores`` [L, d_ff] that fill ``budget`` (share of all neurons).

    No layer gives more than ``layer_cap`` of its own neurons. Ties go to the earlier layer and lower index.
    Raises :class:`InputError` for non-finite scores, or when the caps leave no room for the budget.
    """
    layers, width = scores.shape
    if not np.isfinite(scores).all():
        raise InputError(f"{int((~np.isfinite(scores)).sum())} attribution scores are not finite")
    wanted = max(1, round(budget * layers * width))
    capacity = min(width, max(1, math.floor(layer_cap * width + 1e-9)))  # 0.29 * 100 is 28.999…
    if wanted > capacity * layers:
        raise InputError(
            f"a budget of {wanted} neurons does not fit into {layers} layers of at most {capacity} neurons",
            hint="raise attribute.layer_cap or lower attribute.budget",
        )
    order = np.argsort(-scores, axis=None, kind="stable")
    mask = np.zeros(scores.shape, dtype=bool)
    taken = np.zeros(layers, dtype=np.int64)
    for flat in order:
        layer, neuron = divmod(int(flat), width)
        if taken[layer] < capacity:
            mask[layer, neuron] = True
            taken[layer] += 1
            if taken.sum() == wanted:
                break
    return _circuit(mask)


def random_circuit(like: Circuit, *, seed: int) -> Circuit:
    """A control: as many neurons in every layer as ``like`` has, drawn uniformly, none of them in ``like``.

    Where a layer has too few other neurons, the missing ones are drawn from the circuit itself.
    """
    generator = np.random.default_rng(seed)
    mask = like.mask()
    drawn = np.zeros_like(mask)
    for layer, row in enumerate(mask):
        others, own = generator.permutation(np.flatnonzero(~row)), generator.permutation(np.flatnonzero(row))
        drawn[layer, np.concatenate([others, own])[: row.sum()]] = True
    return _circuit(drawn)
