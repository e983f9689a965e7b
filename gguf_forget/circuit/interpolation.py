"""What all levels of attribution share: the points between corrupted and clean, and which positions count.

Shapes: P pairs in a batch, T tokens, R rows: the positions of a batch that can contribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from gguf_forget.circuit.inputs import PairBatch
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair

Variant = Literal["inputs", "activations"]
VARIANTS = ("inputs", "activations")


def check_arguments(pairs: Sequence[Pair], integration_steps: int, variant: str, batch_size: int) -> None:
    """Raise :class:`InputError` for arguments with which nothing can be scored."""
    if not pairs:
        raise InputError("there are no pairs to score, needed at least one")
    if integration_steps < 1 or batch_size < 1:
        raise InputError(
            f"integration_steps is {integration_steps} and batch_size is {batch_size}, needed at least 1 each"
        )
    if variant not in VARIANTS:
        raise InputError(f"the variant is {variant!r}, needed one of {', '.join(VARIANTS)}")


def relative_residual(embedding_score: float, metric_gap: float) -> float:
    """How far the embedding's score is from what it tends to, relative to that."""
    return abs(embedding_score - metric_gap) / max(abs(metric_gap), 1e-12)


def midpoints(steps: int) -> list[float]:
    """alpha_k: the midpoints of ``steps`` equal intervals of [0, 1]."""
    return [(step + 0.5) / steps for step in range(steps)]


def working(tensor: torch.Tensor) -> torch.Tensor:
    """Differences and sums are made in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def between(corrupted: torch.Tensor, clean: torch.Tensor, alpha: float) -> torch.Tensor:
    """A leaf of a new graph: ``corrupted`` at alpha = 0, ``clean`` at 1."""
    return torch.lerp(corrupted, clean, alpha).requires_grad_(True)


@dataclass(frozen=True)
class Rows:
    """Positions of a batch from the first on at which clean and corrupted differ, without the padding.

    Before it both runs have the same activations (attention is causal), so nothing is lost.
    ``index`` int64 [R] into the P * T positions; ``position`` int64 [R] is the position counted so that all
    prompts end together: ``longest`` - 1 is a prompt's last token.
    """

    index: torch.Tensor
    position: torch.Tensor

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """[P, T, ...] to [R, ...]"""
        flat = tensor.flatten(0, 1)
        return flat if len(self.index) == len(flat) else flat[self.index]


def rows_of(batch: PairBatch, longest: int) -> Rows:
    differs = (batch.clean != batch.corrupted).any(dim=-1)  # [P, T]
    counts = differs.cummax(dim=1).values & batch.mask.bool()
    pair, token = counts.nonzero(as_tuple=True)
    return Rows(pair * differs.shape[1] + token, longest - batch.mask.sum(dim=1)[pair] + token)


class RowSums:
    """Scores of shape S added up over pairs, float64: ``total`` S, and ``positions`` [T, *S] when kept apart."""

    def __init__(self, shape: tuple[int, ...], longest: int, *, per_position: bool) -> None:
        self.total = torch.zeros(shape, dtype=torch.float64)
        self.positions = torch.zeros(longest, *shape, dtype=torch.float64) if per_position else None

    def add(self, place: int | slice, values: torch.Tensor, rows: Rows) -> None:
        """Add ``values`` [R, ...] at ``place`` of the first dimension of S."""
        if self.positions is None:
            self.total[place] += values.double().sum(dim=0).to(self.total.device)
        else:
            self.positions[:, place].index_add_(0, rows.position.cpu(), values.double().cpu())

    def mean(self, pairs: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(S, [T, *S] or None), divided by the number of pairs."""
        if self.positions is None:
            return self.total / pairs, None
        return self.positions.sum(dim=0) / pairs, self.positions / pairs
