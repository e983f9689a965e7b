"""What the fitted file is to answer: forgotten facts as the unlearned model, everything else as the original.

Shapes: E examples to forget, see also :mod:`gguf_forget.unlearning.scoring`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch.nn import functional

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.batches import cycle, forget_cycle, retain_cycle
from gguf_forget.unlearning.objectives import divergence
from gguf_forget.unlearning.scoring import (
    Batch,
    answer_log_probability,
    answers,
    log_probabilities,
    pack,
    plain_text,
)

FORGET, RETAIN, TEXT, TEXT_EVERY = 38, 36, 2, 2  # of one batch: prompts, prompts, chunks; tokens between scored ones
AT_ONCE = 64
RETAIN_WEIGHT, TEXT_WEIGHT = 4.0, 2.0  # beside 1 for what is forgotten
FAR = 4.0  # nats from the unlearned model's answer, beyond which a gap counts by its size, not its square


@dataclass(frozen=True)
class Losses:
    """gap: mean log-probability of the forgotten answers less the unlearned model's, nats, the sign kept.

    forget: half its mean square, squared nats (Huber, ``FAR``). retain, text: mean KL from the original, nats; 0 where
    there is none.
    """

    gap: float
    forget: float
    retain: float
    text: float

    def total(self) -> float:
        return self.forget + RETAIN_WEIGHT * self.retain + TEXT_WEIGHT * self.text

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Questions:
    """One batch. targets: [prompts to forget], the unlearned model's log-probabilities; expected: the original's
    log-probabilities at the scored positions of kept facts and of text."""

    batch: Batch
    counts: list[int]
    targets: torch.Tensor
    expected: Sequence[torch.Tensor]


def answers_of(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """log-probability of every answer, float32 [E]."""
    found = []
    with torch.no_grad():
        for start in range(0, len(examples), AT_ONCE):
            batch = pack(answers(examples[start : start + AT_ONCE]))
            found.append(answer_log_probability(log_probabilities(model, batch), batch))
    return torch.cat(found)


def batches(
    original: Any,
    facts: Sequence[Fact],
    examples: Sequence[Example],
    targets: torch.Tensor,
    text: Sequence[Sequence[int]],
    *,
    seed: int,
) -> Iterator[Questions]:
    """Endless; relations in turn, see :mod:`gguf_forget.unlearning.batches`.

    examples: of ``facts``, those to forget and those to keep (which may be none); targets: [E] of those to forget, in
    order. text: chunks of tokens, one at least.
    """
    generator = random.Random(seed)
    forget = [example for example in examples if facts[example.fact].split == "forget"]
    retain = [example for example in examples if facts[example.fact].split == "retain"]
    asked = forget_cycle(facts, forget, generator)
    kept = retain_cycle(facts, retain, generator) if retain else iter(())
    prose = cycle(text, generator)
    while True:
        rows = list(islice(asked, FORGET))
        parts = [
            answers([forget[row] for row in rows]),
            answers(list(islice(kept, RETAIN))),
            plain_text(list(islice(prose, TEXT)), every=TEXT_EVERY),
        ]
        others = pack(parts[1] + parts[2])
        with torch.no_grad():
            sizes = [len(part.rows) for part in others.split([len(part) for part in parts[1:]])]
            expected = log_probabilities(original, others).split(sizes)
        yield Questions(pack(parts[0] + parts[1] + parts[2]), [len(part) for part in parts], targets[rows], expected)


def losses(model: Any, questions: Questions) -> tuple[torch.Tensor, Losses]:
    """The weighted sum of all three terms, a scalar to differentiate, and each by itself."""
    parts = questions.batch.split(questions.counts)
    found = log_probabilities(model, questions.batch).split([len(part.rows) for part in parts])
    gaps = answer_log_probability(found[0], parts[0]) - questions.targets
    terms = [functional.huber_loss(gaps, torch.zeros_like(gaps), delta=FAR)]
    for expected, log_probs in zip(questions.expected, found[1:], strict=True):
        terms.append(divergence(expected, log_probs) if len(log_probs) else torch.zeros(()))
    weighted = torch.stack(terms) @ torch.tensor([1.0, RETAIN_WEIGHT, TEXT_WEIGHT])
    return weighted, Losses(float(gaps.detach().mean()), *(float(term.detach()) for term in terms))
