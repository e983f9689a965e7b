"""From scores to a circuit: which neurons may be edited.

Shapes: L layers, d_ff neurons a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def normalised(scores: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """|scores|, or the scores where ``signed``, scaled so that the mean of |scores| over all neurons is 1.

    Two sets of facts can then be compared. Zeros stay zeros.
    """
    values = scores if signed else np.abs(scores)
    mean = np.abs(scores).mean()
    return values / mean if mean > 0 else values


def discounted_scores(
    forget: Sequence[np.ndarray],
    retain: Sequence[np.ndarray],
    discount: float,
    *,
    signed: bool,
    text: np.ndarray | None = None,
    text_discount: float = 0.0,
) -> np.ndarray:
    """Normalised forget scores minus ``discount`` times normalised retain scores (ours), [L, d_ff].

    Minus ``text_discount`` times, normalised likewise, what plain text needs (``text``, see :mod:`.text_need`).

    Of each split the mean over its relations, whose scores are given one by one; ``retain`` may be empty. Scores over
    pairs of several relations would cancel where a neuron speaks for the answers of one and against those of another.

    ``signed`` keeps the signs of both: to first order, the neurons with the highest values are then those whose
    ablation costs the facts to forget most for what it costs the facts to keep, where effects of opposite sign cancel.
    Else |forget| and |retain| are taken: how much a neuron matters, whichever way.
    """

    def mean(relations: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray(np.mean([normalised(scores, signed=signed) for scores in relations], axis=0))

    scores = mean(forget)
    if len(retain):
        scores = scores - discount * mean(retain)
    if text is not None:
        scores = scores - text_discount * mean([text])
    return scores


def neurons_for_parameters(share: float, *, parameters: int, per_neuron: int) -> int:
    """How many neurons hold ``share`` of a model's ``parameters``; one neuron owns ``per_neuron`` of them.

    A neuron owns its row of gate and up (with their biases) and its column of down. Never fewer than one.
    """
    return max(1, round(share * parameters / per_neuron))


def layer_capacity(width: int, layer_cap: float) -> int:
    """Neurons that one layer of ``width`` may give: whole ones, at least one."""
    return min(width, max(1, math.floor(layer_cap * width + 1e-9)))  # 0.29 * 100 is 28.999…


def neurons_wanted(
    layers: int, width: int, *, budget: float | None = None, neurons: int | None = None, layer_cap: float = 1.0
) -> int:
    """How many neurons a budget means, see :func:`select_neurons`; at least one.

    Raises:
        InputError: not exactly one of ``budget`` and ``neurons``, or the caps leave no room for them.
    """
    if (budget is None) == (neurons is None):
        raise InputError(f"a budget of {budget} and of {neurons} neurons, needed exactly one of the two")
    wanted = max(1, round(budget * layers * width)) if budget is not None else max(1, neurons or 0)
    capacity = layer_capacity(width, layer_cap)
    if wanted > capacity * layers:
        raise InputError(
            f"a budget of {wanted} neurons does not fit into {layers} layers of at most {capacity} neurons",
            hint="raise attribute.layer_cap or lower attribute.budget",
        )
    return wanted


def select_neurons(
    scores: np.ndarray, *, budget: float | None = None, neurons: int | None = None, layer_cap: float = 1.0
) -> Circuit:
    """The neurons with the highest ``scores`` [L, d_ff] that fill the budget: one of the two must be given.

    ``budget`` is a share of all neurons, and so of the MLPs' parameters, since all neurons own equally many;
    ``neurons`` is their number. No layer gives more than ``layer_cap`` of its own neurons. Ties go to the earlier
    layer and lower index. Raises :class:`InputError` for non-finite scores, or when the caps leave no room for the
    budget.
    """
    layers, width = scores.shape
    wanted = neurons_wanted(layers, width, budget=budget, neurons=neurons, layer_cap=layer_cap)
    if not np.isfinite(scores).all():
        raise InputError(f"{int((~np.isfinite(scores)).sum())} attribution scores are not finite")
    capacity = layer_capacity(width, layer_cap)
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


def grow_until_faithful(
    scores: np.ndarray,
    faithfulness: Callable[[Circuit], float],
    *,
    minimum: float,
    neurons: int,
    layer_cap: float = 1.0,
    growth: float = 1.5,
) -> tuple[Circuit, float]:
    """The first circuit, from ``neurons`` neurons on and ``growth`` times larger each time, that is faithful enough.

    Returns it with its faithfulness. Raises :class:`InputError` with the best that was reached when even the
    largest circuit that the caps allow stays below ``minimum``.
    """
    layers, width = scores.shape
    largest = layer_capacity(width, layer_cap) * layers
    best, size = (-math.inf, 0), min(neurons, largest)
    while True:
        circuit = select_neurons(scores, neurons=size, layer_cap=layer_cap)
        reached = faithfulness(circuit)
        if reached >= minimum:
            return circuit, reached
        best = max(best, (reached, circuit.size))
        if size >= largest:
            raise InputError(
                f"no circuit of {neurons} to {largest} neurons has a faithfulness of {minimum:g}: the best is "
                f"{best[0]:.3f} with {best[1]} neurons",
                hint="lower the minimum faithfulness, raise the cap on layers, or lower the retain discount",
            )
        size = min(largest, math.ceil(size * growth))


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
