"""How much of what the model does on clean prompts a circuit does alone.

    f(C) = (m(C) - m(empty)) / (m(M) - m(empty))

m(M) is the mean metric of the whole model on clean prompts, m(C) the same with every MLP neuron outside the circuit
as it was in the corrupted run, m(empty) with all of them so. f is a ratio of means, not a mean of ratios: one pair
with a small gap would decide the latter. f may exceed one (what is left out worked against the answer) and be
negative.

The curve and its two areas follow the benchmark MIB (arXiv 2504.13151, section 3): sizes from 0.1 % to 100 %,
trapezoids on a linear axis of the share kept, from 0.001 to 1: CPR is the area under f, CMD that of |1 - f|. Ours
differs in three ways. Units are MLP neurons, not edges, so attention and embeddings are always clean and m(empty) is
higher than on a wholly corrupted run. Neurons are ranked by |score| for both areas, where MIB ranks by signed score
for CPR. And the axis counts neurons, where MIB weighs edges.

Shapes: P pairs, L layers, d_ff neurons a layer, K circuits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gguf_forget.circuit.patching import patched_metrics
from gguf_forget.circuit.selection import Circuit, select_neurons
from gguf_forget.facts.corruption import Pair

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Faithfulness:
    """``values`` f of each circuit; ``full`` m(M), ``empty`` m(empty) and ``corrupted`` (whole run), means over pairs.

    NaN where m(M) = m(empty): these pairs say nothing about neurons.
    """

    values: tuple[float, ...]
    full: float
    empty: float
    corrupted: float
    pairs: int


def faithfulness(
    model: Any,
    pairs: Sequence[Pair],
    circuits: Sequence[Circuit],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> Faithfulness:
    """f of every circuit. ``progress`` as in :func:`patched_metrics`, with one intervention more than circuits."""
    masks = [circuit.mask() for circuit in circuits]
    kept = [np.zeros_like(masks[0]), *masks]
    found = patched_metrics(model, pairs, kept, batch_size=batch_size, progress=progress)
    empty, *means = found.patched.mean(axis=1).tolist()
    full = float(found.clean.mean())
    gap = full - empty
    values = tuple((mean - empty) / gap if gap else float("nan") for mean in means)
    return Faithfulness(values, full, empty, float(found.corrupted.mean()), len(pairs))


@dataclass(frozen=True)
class Curve:
    """f over circuit sizes: ``shares`` of all neurons, ``neurons`` their numbers; ``cpr`` and ``cmd`` its areas."""

    shares: tuple[float, ...]
    neurons: tuple[int, ...]
    faithfulness: tuple[float, ...]
    cpr: float
    cmd: float


def nested_circuits(ranking: np.ndarray, shares: Sequence[float] = SHARES) -> list[Circuit]:
    """The top neurons of ``ranking`` [L, d_ff] at every size; each holds the one before."""
    return [select_neurons(ranking, budget=share) for share in shares]


def shuffled_within_layers(ranking: np.ndarray, *, seed: int) -> np.ndarray:
    """The ranking of a control: its nested circuits have the same size and layer profile, and are else random.

    Unlike :func:`random_circuit` they may hold neurons of the circuit, as they must at large sizes.
    """
    return np.random.default_rng(seed).permuted(ranking, axis=1)


def curve(shares: Sequence[float], circuits: Sequence[Circuit], values: Sequence[float]) -> Curve:
    """The areas by trapezoids over ``shares``, which must rise."""
    x, f = np.asarray(shares, dtype=np.float64), np.asarray(values, dtype=np.float64)
    widths = np.diff(x)

    def area(y: np.ndarray) -> float:
        return float((widths * (y[1:] + y[:-1]) / 2).sum())

    sizes = tuple(circuit.size for circuit in circuits)
    return Curve(tuple(shares), sizes, tuple(float(v) for v in f), area(f), area(np.abs(1 - f)))
