"""The magnitude floor, in units of the target grid's own step.

"Forgetting That Sticks" (MANSU, arXiv 2605.15138): an update survives quantization when its cumulative size
is at least one step of the grid it ships in. Here updates live in code units (one unit = one step of the
weight's own sub-block), so the floor is a rule on integers: a weight moves by at least ``floor`` codes or not
at all.

Shapes: every array [n, d], neuron-major.
"""

from __future__ import annotations

import torch


def floored_moves(latent: torch.Tensor, *, floor: int, lowest: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """Code moves for a latent update in code units; whole ones, unless ``floor`` is 0.

    |latent| < floor / 2: no move. Else: the nearest whole number of codes, at least ``floor`` away from zero,
    and inside [lowest, highest] = the room that the original's code leaves on its grid. A weight whose room
    is smaller than ``floor`` in its own direction stays where it is: a move below the floor is never made.

    A ``floor`` of 0 (an ablation) leaves the latent update as it is, in full precision, inside the grid's ends.
    """
    if floor == 0:
        return torch.minimum(torch.maximum(latent, lowest), highest)
    magnitude = torch.round(latent.abs()).clamp(min=floor)
    moves = torch.where(latent.abs() >= floor / 2, torch.sign(latent) * magnitude, torch.zeros_like(latent))
    moves = torch.minimum(torch.maximum(moves, lowest), highest)
    return torch.where(moves.abs() >= floor, moves, torch.zeros_like(moves))
