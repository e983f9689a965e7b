"""The retain-Fisher projection.

The null space of a diagonal Fisher matrix is the set of coordinates with small entries, so projecting an
update into it masks coordinates: here those whose ratio F_retain / F_forget is above a quantile (MANSU, arXiv
2605.15138, uses the retain Fisher; taking the ratio is ours). F is the mean over examples of the squared
gradient.

Shapes: one float64 array [n, d] for each edited tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gguf_forget.unlearning.code_moves import CodeMoves


def diagonal_fisher(
    edits: Sequence[CodeMoves],
    losses: Sequence[Callable[[], torch.Tensor]],
    progress: Callable[[int], None] = lambda done: None,
) -> list[torch.Tensor]:
    """Mean over ``losses`` of the squared gradient on each edit's weights; a loss is one example's."""
    fisher = [torch.zeros(edit.step.shape, dtype=torch.float64) for edit in edits]
    for loss in losses:
        gradients = torch.autograd.grad(loss(), [edit.delta for edit in edits], allow_unused=True)
        for total, gradient in zip(fisher, gradients, strict=True):
            if gradient is not None:
                total += gradient.double() ** 2
        progress(1)
    return [total / max(len(losses), 1) for total in fisher]


def projection(
    retain: Sequence[torch.Tensor], forget: Sequence[torch.Tensor], *, quantile: float
) -> list[torch.Tensor]:
    """bool masks: True where a weight may move, i.e. F_retain / F_forget is at or below its ``quantile``.

    The quantile is taken over all edited tensors together. A weight that the forget set does not use at all
    (F_forget = 0) has an infinite ratio and is frozen, unless ``quantile`` is 1.
    """
    if quantile >= 1.0:
        return [torch.ones(part.shape, dtype=torch.bool) for part in retain]
    ratios = [
        torch.where(f > 0, r / torch.where(f > 0, f, torch.ones_like(f)), torch.full_like(r, torch.inf))
        for r, f in zip(retain, forget, strict=True)
    ]
    ordered = torch.cat([ratio.flatten() for ratio in ratios]).sort().values
    rank = max(1, int(quantile * len(ordered) + 1e-9))  # the share of weights that stays free
    threshold = ordered[rank - 1]
    return [(ratio <= threshold) & torch.isfinite(ratio) for ratio in ratios]


def retain_bound(retain: Sequence[torch.Tensor], deltas: Sequence[torch.Tensor]) -> float:
    """1/2 * sum of F_retain * delta^2, nats: second-order estimate of what the edit costs the retain set."""
    return 0.5 * sum(float((f * delta.double() ** 2).sum()) for f, delta in zip(retain, deltas, strict=True))
