"""The metric with chosen MLP neurons replaced: the exact interventions that attribution approximates.

A neuron is replaced at every position by what it was in the corrupted run (resample ablation), or by a fixed value
(mean ablation); everything downstream is computed anew, so neurons that are kept see the replaced ones' effect.
"How to use and interpret activation patching" (arXiv 2404.15255), section 2.

Shapes: P pairs, T tokens, L layers, d_ff neurons a layer, K interventions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gguf_forget.circuit.hooks import Replacement, recorded_activations, replaced_activations
from gguf_forget.circuit.inputs import metric, pair_batches
from gguf_forget.circuit.selection import Circuit
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair


@dataclass(frozen=True)
class PatchedMetrics:
    """L of every pair, float64: ``clean`` and ``corrupted`` [P], ``patched`` [K, P], pairs in the same order."""

    clean: np.ndarray
    corrupted: np.ndarray
    patched: np.ndarray


def _replacements(mask: np.ndarray, values: Sequence[torch.Tensor]) -> dict[int, Replacement]:
    """For :func:`replaced_activations`: the neurons outside ``mask`` (bool [L, d_ff]) and their new values."""
    found = {}
    for layer, row in enumerate(mask):
        if not row.all():
            indices = torch.from_numpy(np.flatnonzero(~row)).to(values[layer].device)
            found[layer] = (indices, values[layer][..., indices])
    return found


def patched_metrics(
    model: Any,
    pairs: Sequence[Pair],
    kept: Sequence[np.ndarray],
    *,
    fill: np.ndarray | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> PatchedMetrics:
    """L on the clean prompts with the neurons outside ``kept[k]`` (bool [L, d_ff]) replaced, for every k.

    ``fill`` [L, d_ff] are fixed values to replace them by; without it, each pair's own corrupted run gives them.
    The model is left as found. ``progress`` is told the number of runs of one batch done since the last call;
    there are (K + 2) for each batch of ``batch_size`` pairs.
    """
    if not pairs:
        raise InputError("there are no pairs to patch, needed at least one")
    clean, corrupted, patched = [], [], []
    with torch.no_grad():
        for batch in pair_batches(model, pairs, batch_size):
            clean.append(metric(model, batch.clean, batch))
            with recorded_activations(model) as record:
                corrupted.append(metric(model, batch.corrupted, batch))
            values = list(record.neurons)
            progress(2)
            if fill is not None:
                values = [torch.from_numpy(fill[layer]).to(old) for layer, old in enumerate(values)]
            rows = []
            for mask in kept:
                with replaced_activations(model, neurons=_replacements(mask, values)):
                    rows.append(metric(model, batch.clean, batch))
                progress(1)
            patched.append(torch.stack(rows) if rows else clean[-1].new_zeros(0, len(batch.pairs)))
    return PatchedMetrics(*(torch.cat(part, dim=-1).double().cpu().numpy() for part in (clean, corrupted, patched)))


def runs(pairs: int, interventions: int, *, batch_size: int = 32) -> int:
    """What ``progress`` of :func:`patched_metrics` adds up to."""
    return (interventions + 2) * -(-pairs // batch_size)


def mean_neurons(model: Any, pairs: Sequence[Pair], *, batch_size: int = 32) -> np.ndarray:
    """Mean activation of every neuron over all tokens of the clean prompts, float64 [L, d_ff]."""
    total: np.ndarray | None = None
    tokens = 0
    with torch.no_grad():
        for batch in pair_batches(model, pairs, batch_size):
            with recorded_activations(model) as record:
                metric(model, batch.clean, batch)
            real = batch.mask.bool()
            sums = np.stack([layer[real].double().sum(dim=0).cpu().numpy() for layer in record.neurons])
            total = sums if total is None else total + sums
            tokens += int(real.sum())
    if total is None:
        raise InputError("there are no pairs to take mean activations over, needed at least one")
    return total / tokens


def sample_neurons(scores: np.ndarray, *, top: int, random: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices into [L, d_ff]: the ``top`` neurons by |score|, and ``random`` others, drawn by ``seed``."""
    order = np.argsort(-np.abs(scores), axis=None, kind="stable")
    others = np.random.default_rng(seed).permutation(order[top:])
    return order[:top], others[:random]


def patching_effects(
    model: Any,
    pairs: Sequence[Pair],
    neurons: np.ndarray,
    shape: tuple[int, int],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Exact effect of each neuron: mean over pairs of L(clean) - L(clean, that neuron as in the corrupted run).

    ``neurons`` are flat indices into ``shape`` = [L, d_ff]; float64, one value each, signed like the scores of
    :func:`gguf_forget.circuit.neurons.score_neurons`, which approximate it.
    """
    kept = []
    for neuron in neurons:
        mask = np.ones(shape, dtype=bool)
        mask.flat[neuron] = False
        kept.append(mask)
    found = patched_metrics(model, pairs, kept, batch_size=batch_size, progress=progress)
    return (found.clean - found.patched).mean(axis=1)


@dataclass(frozen=True)
class AblationEffect:
    """What replacing a circuit's neurons does to one set of pairs; L in the metric's own unit (logits or nats).

    ``drop`` is the mean of L(clean) - L(ablated), ``standard_error`` its own; ``share_of_gap`` is the drop over the
    mean of L(clean) - L(corrupted), which comparing two sets needs: one means as lost as with another subject.
    ``right_before``, ``right_after``: share of pairs with L > 0 (the answer above the mean of its distractors; None
    for free text, where L is never positive).
    """

    drop: float
    standard_error: float
    share_of_gap: float
    right_before: float | None
    right_after: float | None
    pairs: int


def ablation_effects(
    model: Any,
    pairs: Sequence[Pair],
    circuits: Sequence[Circuit],
    *,
    fill: np.ndarray | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> list[AblationEffect]:
    """Replace each circuit's neurons (see :func:`patched_metrics` for ``fill``), all else is left alone."""
    kept = [~circuit.mask() for circuit in circuits]
    found = patched_metrics(model, pairs, kept, fill=fill, batch_size=batch_size, progress=progress)
    return [_effect(found, row, choice=not any(pair.answer_tokens for pair in pairs)) for row in found.patched]


def _effect(found: PatchedMetrics, ablated: np.ndarray, *, choice: bool) -> AblationEffect:
    drops = found.clean - ablated
    gap = float((found.clean - found.corrupted).mean())
    return AblationEffect(
        drop=float(drops.mean()),
        standard_error=float(drops.std(ddof=1) / np.sqrt(len(drops))) if len(drops) > 1 else float("nan"),
        share_of_gap=float(drops.mean()) / gap if gap else float("nan"),
        right_before=float((found.clean > 0).mean()) if choice else None,
        right_after=float((ablated > 0).mean()) if choice else None,
        pairs=len(drops),
    )
