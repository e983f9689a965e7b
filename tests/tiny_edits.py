"""Edits of the random two-layer model, and the slow way to apply them: into the weights themselves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from gguf_forget.checkpoint.architecture import mlps
from gguf_forget.unlearning.code_moves import ROLES, CodeMoves

NEURONS = {0: (3, 100, 511), 1: (0, 7, 8, 200)}


def make_edits(*, floor: int = 1, seed: int = 0, size: float = 0.02) -> list[CodeMoves]:
    """Grids of 16 codes with steps of either sign near ``size``; every 50th weight's grid is degenerate."""
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for layer, neurons in NEURONS.items():
        for role in ROLES:
            shape = (len(neurons), 256)
            step = size * (0.5 + torch.rand(shape, generator=generator))
            step *= torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
            step.flatten()[::50] = 0.0
            codes = torch.randint(0, 16, shape, generator=generator).float()
            edits.append(CodeMoves(layer, role, torch.tensor(neurons), step, -codes, 15 - codes, floor=floor))
    return edits


def randomise(edits: Sequence[CodeMoves], *, seed: int = 1, spread: float = 2.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for edit in edits:
        edit.latent = spread * torch.randn(edit.step.shape, generator=generator)
        edit.refresh()


def own_part(weight: torch.Tensor, edit: CodeMoves) -> torch.Tensor:
    """The edited rows or columns of a whole weight, neuron-major [n, d]."""
    return weight[:, edit.neurons].T if edit.role == "down" else weight[edit.neurons]


def dense_copy(model: Any, edits: Sequence[CodeMoves]) -> Any:
    """A copy of ``model`` whose weights hold the edits."""
    edited = copy.deepcopy(model)
    layers = mlps(edited)
    with torch.no_grad():
        for edit in edits:
            weight = getattr(layers[edit.layer], edit.role).weight
            for row, neuron in enumerate(edit.neurons.tolist()):
                if edit.role == "down":
                    weight[:, neuron] += edit.delta[row]
                else:
                    weight[neuron] += edit.delta[row]
    return edited
