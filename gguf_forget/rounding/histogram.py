"""Sizes of edits in steps, gathered a part at a time: a histogram on a logarithmic scale.

Memory does not grow with the model, and a quantile is right to a bin's width (9 %).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

BINS_PER_OCTAVE = 8
LOWEST, HIGHEST = -40, 24  # powers of two; what lies beyond counts in the end bins


@dataclass
class StepHistogram:
    """``counts``: int64 [bins]; bin i holds ratios from ``2 ** (LOWEST + i / BINS_PER_OCTAVE)`` on."""

    counts: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((HIGHEST - LOWEST) * BINS_PER_OCTAVE, dtype=np.int64)
    )

    def add(self, delta: npt.NDArray[Any], steps: npt.NDArray[Any]) -> None:
        """Count |delta| / step (any equal shapes) where neither is 0; other weights have no size in steps."""
        counted = (delta != 0) & (steps != 0)
        ratio = np.abs(delta[counted].astype(np.float64)) / steps[counted]
        place = np.floor((np.log2(ratio) - LOWEST) * BINS_PER_OCTAVE).astype(np.int64)
        self.counts += np.bincount(place.clip(0, self.counts.size - 1), minlength=self.counts.size)

    def merge(self, other: StepHistogram) -> None:
        self.counts += other.counts

    def quantile(self, share: float) -> float | None:
        """The middle of the bin in which ``share`` of the ratios are reached; None for an empty histogram."""
        total = int(self.counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), share * total))
        return float(2.0 ** (LOWEST + (place + 0.5) / BINS_PER_OCTAVE))

    def filled(self) -> dict[float, int]:
        """The bins that hold something: lower edge, in steps, to count."""
        return {
            float(2.0 ** (LOWEST + place / BINS_PER_OCTAVE)): int(self.counts[place])
            for place in np.flatnonzero(self.counts)
        }
