"""Training through the grid: what is optimised is what ships.

Each step adds the forget term and the retain terms over one mixed batch, computed with whole code moves
applied to one of the base models in turn (full precision, and twice as often the quantized original), and
updates the latent code moves with Adam. The reference of every retain term is the full-precision original.

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
from gguf_forget.unlearning.objectives import chance_level, divergence, negative_preference
from gguf_forget.unlearning.optimizer import DampedAdam
from gguf_forget.unlearning.scoring import answer_log_probability, answers, log_probabilities, pack, plain_text
from gguf_forget.unlearning.unknown_subject import Rivals, standing


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
    """Prompts and text chunks in one step; in the text every ``text_every``-th token is scored."""

    forget: int = 38
    retain: int = 36
    text: int = 2
    text_every: int = 2


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
    rivals: Rivals,
    targets: torch.Tensor,
    margin: float,
    steps: int,
    soft_share: float,
    learning_rate: float,
    damping: float,
    weights: Weights,
    mixture: Mixture,
    npo_beta: float,
    seed: int,
    progress: Callable[[StepLosses], None] = lambda losses: None,
) -> list[StepLosses]:
    """Optimise ``edits`` in place; ``bases[0]`` is the full-precision original and the reference.

    ``objective``: ``unknown_subject`` (``targets``: how far each answer may stand out among its ``rivals``,
    less ``margin`` nats) or ``npo``.
    """
    generator = random.Random(seed)
    forget_source = cycle(range(len(forget)), generator)
    retain_source = retain_cycle(facts, retain, generator)
    text_source = cycle(text, generator)
    reference = bases[0]
    # The quantized originals take two turns for one of the reference: what they round differently is what would
    # come back on their grids.
    turns = [reference, *bases[1:], *bases[1:]]
    optimizer = DampedAdam([edit.latent for edit in edits], learning_rate=learning_rate, damping=damping)
    history = []
    for step in range(steps):
        model = turns[step % len(turns)]
        # The learning rate decays over the last half.
        optimizer.learning_rate = learning_rate * min(1.0, 2.0 * (1.0 - step / steps))
        chosen = list(islice(forget_source, mixture.forget))
        asked = answers([forget[index] for index in chosen])
        kept = answers(list(islice(retain_source, mixture.retain)))
        prose = plain_text(list(islice(text_source, mixture.text)), every=mixture.text_every)
        batch = pack(asked + kept + prose)
        forget_part, *kept_parts = batch.split([len(asked), len(kept), len(prose)])
        hardness = 1.0 if soft_share <= 0 else min(1.0, step / (soft_share * steps))
        for edit in edits:
            edit.refresh(hardness)
        with torch.no_grad():
            references = log_probabilities(reference, pack(kept + prose)).split([len(p.rows) for p in kept_parts])
            if objective == "npo":
                known = answer_log_probability(log_probabilities(reference, forget_part), forget_part)
        with applied(model, edits):
            asked_log_probs, *kept_log_probs = log_probabilities(model, batch).split(
                [len(part.rows) for part in (forget_part, *kept_parts)]
            )
            if objective == "npo":
                answer = answer_log_probability(asked_log_probs, forget_part)
                loss = negative_preference(answer, known, beta=npo_beta)
            else:
                found = standing(asked_log_probs, forget_part, rivals, chosen)
                loss = chance_level(found, targets[chosen], margin=margin)
            losses = [loss, *map(divergence, references, kept_log_probs)]
            total = weights.forget * losses[0] + weights.retain * losses[1] + weights.text * losses[2]
            total.backward()
        values = [float(loss.detach()) for loss in losses]
        if not all(value == value and abs(value) != float("inf") for value in values):
            raise EvaluationError(
                f"training diverged at step {step + 1}: losses {values}",
                hint="lower unlearn.learning_rate",
            )
        optimizer.step([edit.latent_gradient() for edit in edits])
        moved = sum(int((edit.moves() != 0).sum()) for edit in edits)
        forget_loss, retain_loss, text_loss = values
        history.append(StepLosses(step + 1, forget_loss, retain_loss, text_loss, moved))
        progress(history[-1])
    for edit in edits:
        edit.refresh()
    return history
