"""Forget and retain terms: short pure functions of log-probabilities, one scalar each.

Shapes: S scored positions, E examples, V vocabulary, T tokens, d = d_model. All in nats, but for ``misdirection``.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def divergence(reference: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
    """Mean over positions of KL(reference || model). Both [S, V], log-probabilities."""
    return functional.kl_div(log_probabilities, reference, reduction="none", log_target=True).sum(dim=-1).mean()


def shortfall(reference: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """What kept answers' tokens lose against the original, mean (ours). Both [S], log-probabilities.

    The divergence counts alike what an answer loses and what it wins; this counts the loss alone. Huber: half the
    square of up to one nat, so that where nothing is lost yet rounding of the last bits does not decide the gradient.
    """
    lost = functional.relu(reference - answer)
    return functional.smooth_l1_loss(lost, torch.zeros_like(lost))


def negative_preference(answer: torch.Tensor, reference_answer: torch.Tensor, *, beta: float = 0.1) -> torch.Tensor:
    """NPO (Zhang et al., arXiv 2404.05868, equation 3): -(2 / beta) log sigmoid(-beta log(p / p_ref)).

    ``answer`` and ``reference_answer``: summed log-probability of each example's answer, [E].
    """
    return -(2.0 / beta) * functional.logsigmoid(-beta * (answer - reference_answer)).mean()


def chance_level(
    answer: torch.Tensor,
    target: torch.Tensor,
    *,
    margin: float = 0.0,
    excess: torch.Tensor | None = None,
    excess_weight: float = 1.0,
) -> torch.Tensor:
    """Distance of each answer's log-probability from chance's, less ``margin`` (ours). All [E], nats.

    Huber: the gradient is one nat a nat far away, as of NPO at its start, and fades within one nat of the
    goal, from either side. So an answer is neither kept nor driven below chance.

    ``excess``: what each answer must lose whatever chance is, where positive; where negative, the most that it may
    gain. Those that must lose count ``excess_weight`` times.
    """
    goal = target - margin
    if excess is None:
        return functional.smooth_l1_loss(answer, goal)
    goal = torch.minimum(goal, (answer - excess).detach())
    counts = torch.where(excess > 0, excess_weight, 1.0)
    return (counts * functional.smooth_l1_loss(answer, goal, reduction="none")).mean()


def gradient_ascent(tokens: torch.Tensor) -> torch.Tensor:
    """GA (TOFU, arXiv 2401.06121, section 4): the mean log-probability of the answers' tokens, [S], made small.

    Unbounded below: nothing but the number of steps ends it.
    """
    return tokens.mean()


def likelihood(tokens: torch.Tensor) -> torch.Tensor:
    """Mean negative log-probability of kept answers' tokens, [S]: the retain term of GradDiff (arXiv 2401.06121)."""
    return -tokens.mean()


def simple_preference(
    answer: torch.Tensor, lengths: torch.Tensor, *, beta: float = 4.5, delta: float = 0.0
) -> torch.Tensor:
    """SimNPO (Fan et al., arXiv 2410.07163, equation 4): -(2 / beta) log sigmoid(-(beta / |y|) log p - delta).

    NPO without a reference, each answer's log-probability divided by its number of tokens. ``answer``: summed
    log-probabilities, [E]; ``lengths``: tokens of each answer, [E]; ``delta``: the margin (the paper's gamma).
    """
    return -(2.0 / beta) * functional.logsigmoid(-beta * answer / lengths - delta).mean()


def misdirection(
    forget: torch.Tensor, target: torch.Tensor, retain: torch.Tensor, reference: torch.Tensor, *, alpha: float = 1200.0
) -> torch.Tensor:
    """RMU (Li et al., WMDP, arXiv 2403.03218, section 4): squared distances of hidden states.

    Mean over tokens and dimensions of (forget - target)^2, plus ``alpha`` times that of (retain - reference)^2.
    ``forget`` [T, d] and ``retain`` [T', d]: hidden states of the trained model; ``target`` [d]: a fixed direction;
    ``reference`` [T', d]: the frozen model's.
    """
    lost = functional.mse_loss(forget, target.expand_as(forget))
    return lost + alpha * functional.mse_loss(retain, reference)
