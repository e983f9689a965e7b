"""What became of an edit: counts of codes, and how large the edit is against the grid's step.

All arrays are [rows, columns] of one tensor, or any other shape that they share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Survival:
    """Counts of weights. ``edits == survived + unmoved + reversed``."""

    edits: int
    survived: int  # moved at least one code in the edit's direction
    unmoved: int
    reversed: int  # moved against the edit
    moved_elsewhere: int  # moved without an edit of their own

    @property
    def rate(self) -> float | None:
        """Share of the edits that survived; None without any edit."""
        return self.survived / self.edits if self.edits else None


@dataclass(frozen=True)
class UpdateToStep:
    """|delta| / |step| over the edited weights that have a step; ratios are None without such a weight."""

    edited: int
    without_step: int  # edited weights of sub-blocks with scale 0: no code can hold their edit
    at_least_half_step: int
    median: float | None
    quantiles: dict[float, float] | None  # by QUANTILES


def surviving(codes_before: npt.NDArray[Any], codes_after: npt.NDArray[Any], delta_sign: npt.NDArray[Any]) -> Survival:
    """Count the edits that moved their code.

    delta_sign: the edit's direction in codes, that is the sign of ``delta * scale`` (scales may be negative);
    0 for weights that are not edited. Raises InputError when the shapes differ.
    """
    if not codes_before.shape == codes_after.shape == delta_sign.shape:
        shapes = [list(array.shape) for array in (codes_before, codes_after, delta_sign)]
        raise InputError(f"codes before, codes after and signs have shapes {shapes}, one shape is needed")
    moved = np.sign(codes_after.astype(np.int64) - codes_before.astype(np.int64))
    direction = np.sign(delta_sign)
    edited = direction != 0
    return Survival(
        edits=int(edited.sum()),
        survived=int((edited & (moved == direction)).sum()),
        unmoved=int((edited & (moved == 0)).sum()),
        reversed=int((edited & (moved == -direction)).sum()),
        moved_elsewhere=int((~edited & (moved != 0)).sum()),
    )


def update_to_step(delta: npt.NDArray[Any], steps: npt.NDArray[Any]) -> UpdateToStep:
    """How large the edits are, measured in ``steps``: each weight's distance to the next level in the edit's direction.

    Raises InputError when the shapes differ or a value is not finite.
    """
    if delta.shape != steps.shape:
        raise InputError(f"delta has shape {list(delta.shape)}, steps have {list(steps.shape)}")
    for name, values in {"delta": delta, "the steps": steps}.items():
        if broken := int(values.size - np.isfinite(values).sum()):
            raise InputError(f"{name} hold {broken} values that are not finite, all must be finite")
    edited = delta != 0
    stepped = edited & (steps != 0)
    ratio = np.abs(delta[stepped].astype(np.float64) / steps[stepped])
    quantiles = None
    if ratio.size:
        quantiles = dict(zip(QUANTILES, np.quantile(ratio, QUANTILES).tolist(), strict=True))
    return UpdateToStep(
        edited=int(edited.sum()),
        without_step=int((edited & ~stepped).sum()),
        at_least_half_step=int((ratio >= 0.5).sum()),
        median=None if quantiles is None else quantiles[0.5],
        quantiles=quantiles,
    )
