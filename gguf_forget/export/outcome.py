"""What became of one tensor's edit in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

COUNTS = ("edited", "asked", "landed", "saturated", "moved", "moved_by_compensation", "widened", "regridded")


@dataclass(frozen=True)
class TensorOutcome:
    """Counts of weights; steps in units of the file's own grid."""

    tensor: str
    type: str
    edited: int  # weights whose edit is not zero
    asked: int  # edits that must land at least one code away, in their direction
    landed: int
    saturated: int
    moved: int
    moved_by_compensation: int
    median_steps: float | None  # median |edit| / step, None where the type has no steps
    protected: bool = True  # False: rounded as anyone would, the type has no codec
    widened: int = 0  # sub-blocks (not weights) that got a grid of their own, so that edits have room
    regridded: int = 0  # weights without an edit that changed because their sub-block did

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def totals(outcomes: Sequence[TensorOutcome]) -> dict[str, int]:
    """The sum of every count over ``outcomes``."""
    return {name: sum(getattr(outcome, name) for outcome in outcomes) for name in COUNTS}
