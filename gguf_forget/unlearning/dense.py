"""Training a copy of the whole model in full precision, blind to the grid: the loop that published methods share.

What it writes is meant to be shipped by stock quantization, as a user without this tool would.

Shapes: S scored positions, V vocabulary; a mask broadcasts to the weight that it is for.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from gguf_forget.errors import EvaluationError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.batches import cycle, retain_cycle
from gguf_forget.unlearning.scoring import Batch, answers, log_probabilities, pack

BATCH = 32  # the effective batch of TOFU (arXiv 2401.06121, appendix) and of what builds on it

# Log-probabilities [S, V] of the model that is trained, what was asked, and the original's (None where not needed).
Term = Callable[[torch.Tensor, Batch, torch.Tensor | None], torch.Tensor]
Masks = Mapping[str, torch.Tensor]  # parameter's name -> bool, True where it may change; others are frozen


@dataclass(frozen=True)
class DenseWork:
    """What a method is given.

    Attributes:
        original: a Hugging Face model in float32; it is left as it is.
        forget, retain: examples of ``facts``.
        text: token chunks of plain text, for methods that keep to it.
        circuit: neurons of each layer, for methods that edit nothing else.
        steps: optimizer steps in place of the method's published number of epochs.
        batch: examples to forget in one step, and as many to keep.
        progress: hears 1 after every step.
    """

    original: Any
    facts: Sequence[Fact]
    forget: Sequence[Example]
    retain: Sequence[Example]
    text: Sequence[Sequence[int]] = ()
    circuit: Sequence[np.ndarray] | None = None
    steps: int | None = None
    batch: int = BATCH
    seed: int = 0
    progress: Callable[[int], None] = lambda done: None

    def steps_of(self, epochs: int) -> int:
        """Steps in which ``epochs`` times all examples to forget are seen, unless told otherwise."""
        return self.steps if self.steps is not None else math.ceil(epochs * len(self.forget) / self.batch)


def token_log_probabilities(log_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of the tokens that really follow, [S]."""
    return log_probs.gather(-1, batch.targets[:, None]).squeeze(-1)


def train_dense(
    work: DenseWork,
    forget_term: Term,
    retain_term: Term | None,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    retain_weight: float = 1.0,
    needs_original: bool = False,
    masks: Masks | None = None,
) -> Any:
    """A copy of the original, trained with AdamW (Loshchilov and Hutter, arXiv 1711.05101) at a constant rate.

    Without ``retain_term`` only examples to forget are seen. With ``masks`` the weights outside are put back after
    every step: momentum and weight decay would move them too.

    Raises:
        EvaluationError: a loss that is not finite.
    """
    generator = random.Random(work.seed)
    forget_source = cycle(work.forget, generator)
    retain_source = retain_cycle(work.facts, work.retain, generator) if retain_term else iter(())
    model = copy.deepcopy(work.original)
    start = dict(work.original.named_parameters())
    trained = {name: weight for name, weight in model.named_parameters() if masks is None or name in masks}
    for weight in trained.values():
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(list(trained.values()), lr=learning_rate, weight_decay=weight_decay)
    for step in range(work.steps_of(epochs)):
        asked = answers(list(islice(forget_source, work.batch)))
        kept = answers(list(islice(retain_source, work.batch)))
        batch = pack(asked + kept)
        parts = batch.split([len(asked), len(kept)])
        sizes = [len(part.rows) for part in parts]
        references: Sequence[torch.Tensor | None] = (None, None)
        if needs_original:
            with torch.no_grad():
                references = log_probabilities(work.original, batch).split(sizes)
        optimizer.zero_grad(set_to_none=True)
        found, held = log_probabilities(model, batch).split(sizes)
        loss = forget_term(found, parts[0], references[0])
        if retain_term:
            loss = loss + retain_weight * retain_term(held, parts[1], references[1])
        if not math.isfinite(float(loss.detach())):
            raise EvaluationError(f"training diverged at step {step + 1}: loss {float(loss.detach())}")
        loss.backward()
        optimizer.step()
        if masks is not None:
            with torch.no_grad():
                for name, weight in trained.items():
                    weight.copy_(torch.where(masks[name], weight, start[name]))
        work.progress(1)
    return model.requires_grad_(False)
