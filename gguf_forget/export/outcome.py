"""What became of one tensor's edit in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

COUNTS = ("edited", "asked", "landed", "saturated", "moved", "moved_by_compensation", "widened", "regridded")


@dataclass(frozen=True)
class TensorOutcome:
    """Counts of weights; steps in units of the file's own grid.

    square: Σ edit² over the edited weights, in squared weight units. arrived: Σ (shipped - stock) · edit over them; its
    share of ``square`` says how much of the edit the file holds, 1 where rounding is without bias.
    """

    tensor: str
    type: str
    edited: int  # weights whose edit is not zero
    asked: int  # edits that must land at least one code away, in their direction
    landed: int
    saturated: int
    moved: int
    moved_by_compensation: int
    median_steps: float | None  # median |edit| / step, None where the type has no steps
    arrived: float
    square: float
    protected: bool = True  # False: rounded as anyone would, the type has no codec
    widened: int = 0  # sub-blocks (not weights) that got a grid of their own, so that edits have room
    regridded: int = 0  # weights without an edit that changed because their sub-block did

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"arrived_share": _share(self.arrived, self.square)}


def arrival(edit: np.ndarray, went: np.ndarray) -> tuple[float, float]:
    """``arrived`` and ``square`` of edits and what the shipped weights are away from the stock ones; of one shape."""
    flat = edit.astype(np.float64).ravel()
    return float(np.dot(flat, went.ravel())), float(np.dot(flat, flat))


def totals(outcomes: Sequence[TensorOutcome]) -> dict[str, Any]:
    """The sum of every count over ``outcomes``, and which share of all edits arrived (None where there is none)."""
    counts: dict[str, Any] = {name: sum(getattr(outcome, name) for outcome in outcomes) for name in COUNTS}
    arrived, square = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("arrived", "square"))
    return counts | {"arrived_share": _share(arrived, square)}


def _share(arrived: float, square: float) -> float | None:
    return arrived / square if square else None
