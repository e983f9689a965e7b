"""The baseline that the field starts from: NPO on all weights in full precision, blind to the grid.

NPO (Zhang et al., arXiv 2404.05868) plus KL to the original on kept facts. What it writes is meant to be
shipped by stock quantization, as a user without this tool would.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.batches import cycle, retain_cycle
from gguf_forget.unlearning.objectives import divergence, negative_preference
from gguf_forget.unlearning.scoring import answer_batch, answer_log_probability, log_probabilities


def train_dense_npo(
    original: Any,
    facts: Sequence[Fact],
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    steps: int = 30,
    learning_rate: float = 1e-5,
    beta: float = 0.1,
    batch: int = 12,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Any:
    """A copy of ``original`` (float32) with all its weights trained; the original is left as it is."""
    generator = random.Random(seed)
    forget_source, retain_source = cycle(forget, generator), retain_cycle(facts, retain, generator)
    model = copy.deepcopy(original).requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        forget_batch = answer_batch(list(islice(forget_source, batch)))
        retain_batch = answer_batch(list(islice(retain_source, batch)))
        with torch.no_grad():
            known = answer_log_probability(log_probabilities(original, forget_batch), forget_batch)
            expected = log_probabilities(original, retain_batch)
        optimizer.zero_grad(set_to_none=True)
        answer = answer_log_probability(log_probabilities(model, forget_batch), forget_batch)
        negative_preference(answer, known, beta=beta).backward()
        divergence(expected, log_probabilities(model, retain_batch)).backward()
        optimizer.step()
        progress(1)
    return model.requires_grad_(False)
