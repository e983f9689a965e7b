"""Which weights a baseline may change: the rows that forgetting pulls at most, or the neurons of a circuit.

Shapes: a weight's rows are its first dimension; masks are bool and broadcast to the weight.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gguf_forget.checkpoint.architecture import mlps
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.scoring import answer_log_probability, answers, log_probabilities, pack


def _as_columns(rows: torch.Tensor, dimensions: int) -> torch.Tensor:
    return rows.reshape(-1, *[1] * (dimensions - 1))


def salient_rows(
    model: Any, examples: Sequence[Example], *, percentile: float = 90.0, batch_size: int = 32
) -> dict[str, torch.Tensor]:
    """The row mask of SURE (Zhang et al., arXiv 2410.16454, section 5): True for rows with a large forget gradient.

    A row's saliency is the L2 norm of the gradient of the forget loss at the original weights; rows at or above the
    ``percentile`` of those of all weights together may change. For vectors every element is a row of its own. The
    gradient of NPO and of GA at the original differ by a factor alone, so that of the summed log-probability serves.
    """
    pupil = copy.deepcopy(model).requires_grad_(True)
    for first in range(0, len(examples), batch_size):
        batch = pack(answers(examples[first : first + batch_size]))
        answer_log_probability(log_probabilities(pupil, batch), batch).sum().backward()
    norms = {
        name: weight.grad.reshape(len(weight), -1).norm(dim=1)
        for name, weight in pupil.named_parameters()
        if weight.grad is not None
    }
    threshold = float(np.percentile(torch.cat(list(norms.values())).numpy(), percentile))
    dimensions = {name: weight.dim() for name, weight in pupil.named_parameters()}
    return {name: _as_columns(norm >= threshold, dimensions[name]) for name, norm in norms.items()}


def circuit_weights(model: Any, circuit: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """True for the weights of the circuit's neurons: rows of the gate and up projections, columns of the down."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    masks = {}
    for mlp, neurons in zip(mlps(model), circuit, strict=True):
        if not len(neurons):
            continue
        chosen = torch.zeros(mlp.down.weight.shape[1], dtype=torch.bool)
        chosen[torch.from_numpy(np.asarray(neurons))] = True
        masks[names[id(mlp.gate.weight)]] = chosen[:, None]
        masks[names[id(mlp.up.weight)]] = chosen[:, None]
        masks[names[id(mlp.down.weight)]] = chosen[None, :]
    return masks
