"""How far a circuit has moved: attribution of the same pairs before and after an edit (CAD).

Ours: the paper that names circuit attribution divergence prints values but no formula. Three readings of it, over
all neurons or over those of one circuit, each normalised within what is looked at:

    L1          sum |p - p'| of p = |scores| / sum |scores|, from 0 (same shares) to 2 (nothing in common)
    cosine      1 - cosine of the angle between |scores| before and after, from 0 to 1
    mass ratio  sum |scores| after / before: what is left of the attribution, however it is spread

The first two say that the shares moved, the third that the circuit fell silent; a circuit that is erased shows it in
its own mass ratio, beside that of a random circuit of equal size and layer profile, which should stay near one.

Shapes: L layers, d_ff neurons a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gguf_forget.circuit.selection import Circuit
from gguf_forget.errors import InputError


@dataclass(frozen=True)
class Divergence:
    """``l1`` 0 … 2, ``one_minus_cosine`` 0 … 1, ``mass_ratio`` ≥ 0; NaN where a side has no attribution at all."""

    l1: float
    one_minus_cosine: float
    mass_ratio: float
    neurons: int


def divergence(before: np.ndarray, after: np.ndarray, circuit: Circuit | None = None) -> Divergence:
    """Compare two attributions [L, d_ff] of the same pairs; with ``circuit``, within its neurons alone.

    Raises :class:`InputError` when the shapes differ.
    """
    if before.shape != after.shape or (circuit is not None and circuit.mask().shape != before.shape):
        found = before.shape if circuit is None else circuit.mask().shape
        raise InputError(
            f"attributions of {before.shape} and {after.shape} neurons (circuit: {found}) cannot be compared",
            hint="compare a model with an edited copy of itself",
        )
    inside = np.ones(before.shape, dtype=bool) if circuit is None else circuit.mask()
    old, new = np.abs(before[inside]).astype(np.float64), np.abs(after[inside]).astype(np.float64)
    mass_before, mass_after = float(old.sum()), float(new.sum())
    if mass_before == 0 or mass_after == 0:
        ratio = mass_after / mass_before if mass_before else math.nan
        return Divergence(math.nan, math.nan, ratio, int(inside.sum()))
    cosine = float(old @ new / (np.linalg.norm(old) * np.linalg.norm(new)))
    return Divergence(
        float(np.abs(old / mass_before - new / mass_after).sum()),
        max(0.0, 1.0 - cosine),  # rounding may lift a cosine of one above it
        mass_after / mass_before,
        int(inside.sum()),
    )
