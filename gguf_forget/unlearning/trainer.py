"""Training through the grid: what is optimised is what ships.

Each step adds the forget term and the retain terms over one mixed batch, computed with whole code moves applied to
one of the base models in turn (full precision, and the quantized original), and updates the latent code moves with
Adam. The reference of every retain term is the full-precision original.

Shapes: see code_moves (edits) and scoring (batches).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from gguf_forget.errors import EvaluationError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.batches import cycle, retain_cycle
from gguf_forget.unlearning.code_moves import CodeMoves, applied
from gguf_forget.unlearning.objectives import divergence, negative_preference
from gguf_forget.unlearning.scoring import answer_batch, answer_log_probability, log_probabilities, text_batch


@dataclass(frozen=True)
class StepLosses:
    """Unweighted losses of one step in nats, and the moves made so far."""

    step: int
    forget: float
    retain: float
    text: float
    moved: int


@dataclass(frozen=True)
class Mixture:
    """How many of each a step sees; ``text_positions``: every how many tokens the text is scored."""

    forget: int = 38
    retain: int = 36
    text: int = 2
    text_every: int = 4


@dataclass(frozen=True)
class Weights:
    forget: float = 1.0
    retain: float = 8.0
    text: float = 4.0


def train(
    bases: Sequence[Any],
    edits: Sequence[CodeMoves],
    facts: Sequence[Fact],
    forget: Sequence[Example],
    retain: Sequence[Example],
    text: Sequence[Sequence[int]],
    *,
    objective: str,
    targets: Sequence[torch.Tensor],
    steps: int,
    learning_rate: float,
    weights: Weights,
    mixture: Mixture,
    npo_beta: float,
    seed: int,
    progress: Callable[[StepLosses], None] = lambda losses: None,
) -> list[StepLosses]:
    """Optimise ``edits`` in place; ``bases[0]`` is the full-precision original and the reference.

    ``objective``: ``unknown_subject`` (KL to ``targets``, one for each example of ``forget``) or ``npo``.
    """
    generator = random.Random(seed)
    forget_source = cycle(range(len(forget)), generator)
    retain_source = retain_cycle(facts, retain, generator)
    text_source = cycle(text, generator)
    reference = bases[0]
    optimizer = torch.optim.Adam([edit.latent for edit in edits], lr=learning_rate)
    history = []
    for step in range(steps):
        model = bases[step % len(bases)]
        for group in optimizer.param_groups:  # linear decay over the last half
            group["lr"] = learning_rate * min(1.0, 2.0 * (1.0 - step / steps))
        chosen = list(islice(forget_source, mixture.forget))
        forget_batch = answer_batch([forget[index] for index in chosen])
        kept = [
            (weights.retain, answer_batch(list(islice(retain_source, mixture.retain)))),
            (weights.text, text_batch(list(islice(text_source, mixture.text)), every=mixture.text_every)),
        ]
        for edit in edits:
            edit.refresh()
        with torch.no_grad():
            references = [log_probabilities(reference, batch) for _, batch in kept]
            if objective == "npo":
                known = answer_log_probability(log_probabilities(reference, forget_batch), forget_batch)
        values = []
        with applied(model, edits):
            log_probs = log_probabilities(model, forget_batch)
            if objective == "npo":
                loss = negative_preference(
                    answer_log_probability(log_probs, forget_batch), known, beta=npo_beta
                )
            else:
                loss = divergence(torch.cat([targets[index] for index in chosen]), log_probs)
            (weights.forget * loss).backward()
            values.append(float(loss))
            for (weight, batch), expected in zip(kept, references, strict=True):
                loss = divergence(expected, log_probabilities(model, batch))
                (weight * loss).backward()
                values.append(float(loss))
        if not all(value == value and abs(value) != float("inf") for value in values):
            raise EvaluationError(
                f"training diverged at step {step + 1}: losses {values}",
                hint="lower unlearn.learning_rate",
            )
        for edit in edits:
            edit.latent.grad = edit.latent_gradient()
        optimizer.step()
        moved = sum(int((edit.delta.detach() != 0).sum()) for edit in edits)
        history.append(StepLosses(step + 1, *values, moved))
        progress(history[-1])
    for edit in edits:
        edit.refresh()
    return history
