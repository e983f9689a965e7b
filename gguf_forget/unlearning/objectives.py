"""Forget and retain terms: short pure functions of log-probabilities, one scalar each.

Shapes: S scored positions, E examples, V vocabulary. All in nats.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def divergence(reference: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
    """Mean over positions of KL(reference || model). Both [S, V], log-probabilities."""
    return functional.kl_div(log_probabilities, reference, reduction="none", log_target=True).sum(dim=-1).mean()


def negative_preference(answer: torch.Tensor, reference_answer: torch.Tensor, *, beta: float = 0.1) -> torch.Tensor:
    """NPO (Zhang et al., arXiv 2404.05868, equation 3): -(2 / beta) log sigmoid(-beta log(p / p_ref)).

    ``answer`` and ``reference_answer``: summed log-probability of each example's answer, [E].
    """
    return -(2.0 / beta) * functional.logsigmoid(-beta * (answer - reference_answer)).mean()


def chance_level(answer: torch.Tensor, target: torch.Tensor, *, margin: float = 0.0) -> torch.Tensor:
    """Distance of each answer's log-probability from chance's, less ``margin`` (ours). All [E], nats.

    Huber: the gradient is one nat a nat far away, as of NPO at its start, and fades within one nat of the
    goal, from either side. So an answer is neither kept nor driven below chance.
    """
    return functional.smooth_l1_loss(answer, target - margin)
