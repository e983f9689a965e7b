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
from gguf_forget.unlearning.scoring import answer_log_probability, answers, log_probabilities, pack


def train_dense_npo(
    original: Any,
    facts: Sequence[Fact],
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    steps: int = 30,
    learning_rate: float = 1e-5,
    beta: float = 0.1,
    batch: int = 38,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Any:
    """A copy of ``original`` (float32) with all its weights trained; the original is left as it is.

    Each step sees ``batch`` examples to forget and as many to keep.
    """
    generator = random.Random(seed)
    forget_source, retain_source = cycle(forget, generator), retain_cycle(facts, retain, generator)
    model = copy.deepcopy(original).requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        both = pack(answers(list(islice(forget_source, batch))) + answers(list(islice(retain_source, batch))))
        asked, kept = both.split([batch, batch])
        sizes = [len(asked.rows), len(kept.rows)]
        with torch.no_grad():
            reference, expected = log_probabilities(original, both).split(sizes)
        optimizer.zero_grad(set_to_none=True)
        found, held = log_probabilities(model, both).split(sizes)
        known = answer_log_probability(reference, asked)
        loss = negative_preference(answer_log_probability(found, asked), known, beta=beta)
        (loss + divergence(expected, held)).backward()
        optimizer.step()
        progress(1)
    return model.requires_grad_(False)
