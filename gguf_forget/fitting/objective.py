"""What the fitted file is to answer: what the unlearned model does in full precision.

Of kept facts and of text the whole distribution counts. Of a forgotten answer it would say nothing: that the unlearned
model gives it a probability of 1e-11 and the rounded one 1e-9 hardly shows in their divergence, but is what quantizing
brings back. There the answer's own log-probability counts.

Unlearning mostly takes something from kept facts as well. Fitting can give that back: kept answers then aim at the
original model's log-probability wherever theirs is lower.

Shapes: see :mod:`gguf_forget.unlearning.scoring`.
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
FAR = 4.0  # nats from the unlearned model's answer, beyond which a gap counts by its size, not its square


# What forget, retain and text count in the sum, and then what is lost. Kept answers lack much more than noise takes,
# and giving them back pulls what was forgotten along.
AS_UNLEARNED: tuple[float, ...] = (1.0, 1.0, 1.0)
AS_ORIGINAL: tuple[float, ...] = (4.0, 0.1, 1.0, 1.5)


@dataclass(frozen=True)
class Losses:
    """gap: mean log-probability of the forgotten answers less the unlearned model's, nats, the sign kept.

    forget: half its mean square, squared nats (Huber, ``FAR``). retain, text: mean KL from the unlearned model, nats; 0
    where there is none. lost: what kept answers' log-probabilities lack of the original's, mean, nats; 0 where they are
    to be the unlearned model's. total: what is made small, the weighted sum of forget, retain, text and half the mean
    square of what is lost (Huber).
    """

    gap: float
    forget: float
    retain: float
    text: float
    lost: float
    total: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Questions:
    """One batch. phrasings: of each of its prompts to forget the number of its relation and place among its fact's
    prompts, [forget prompts].

    expected: the unlearned model's log-probabilities at the scored positions of what was forgotten, of kept facts and
    of text, [S, V] each. kept: the original's of kept answers, [kept prompts], where they are aimed at.
    """

    batch: Batch
    counts: list[int]
    phrasings: torch.Tensor
    expected: Sequence[torch.Tensor]
    kept: torch.Tensor | None = None


def batches(
    unlearned: Any,
    facts: Sequence[Fact],
    examples: Sequence[Example],
    text: Sequence[Sequence[int]],
    *,
    seed: int,
    original: Any | None = None,
) -> Iterator[Questions]:
    """Endless; relations in turn, see :mod:`gguf_forget.unlearning.batches`.

    examples: of ``facts``, those to forget and those to keep (which may be none). text: chunks of tokens, one at least.
    original: the model whose kept answers are aimed at, if the unlearned one's are not.
    """
    generator = random.Random(seed)
    forget = [example for example in examples if facts[example.fact].split == "forget"]
    retain = [example for example in examples if facts[example.fact].split == "retain"]
    keys = {_phrasing(facts, example) for example in forget}
    numbers = {key: number for number, key in enumerate(sorted(keys))}
    asked = forget_cycle(facts, forget, generator)
    kept = retain_cycle(facts, retain, generator) if retain else iter(())
    prose = cycle(text, generator)
    while True:
        chosen = [forget[row] for row in islice(asked, FORGET)]
        parts = [
            answers(chosen),
            answers(list(islice(kept, RETAIN))),
            plain_text(list(islice(prose, TEXT)), every=TEXT_EVERY),
        ]
        batch, counts = pack(parts[0] + parts[1] + parts[2]), [len(part) for part in parts]
        with torch.no_grad():
            sizes = [len(part.rows) for part in batch.split(counts)]
            expected = log_probabilities(unlearned, batch).split(sizes)
            before = None if original is None or not len(parts[1]) else _answered(original, pack(parts[1]))
        own = torch.tensor([numbers[_phrasing(facts, example)] for example in chosen])
        yield Questions(batch, counts, own, expected, before)


def _phrasing(facts: Sequence[Fact], example: Example) -> tuple[str, int]:
    return facts[example.fact].relation, example.phrasing


def _answered(model: Any, batch: Batch) -> torch.Tensor:
    return answer_log_probability(log_probabilities(model, batch), batch)


@dataclass(frozen=True)
class Found:
    """losses: as numbers. total: a scalar to differentiate. gaps: of each forgotten answer, nats, [forget prompts],
    differentiable as well. forget_weight: of their term in the total."""

    losses: Losses
    total: torch.Tensor
    gaps: torch.Tensor
    forget_weight: float

    def constrained(self, prices: torch.Tensor) -> torch.Tensor:
        """The total where a nat of each forgotten answer's gap costs more, ``prices`` [forget prompts] in its term."""
        return self.total + self.forget_weight * (prices * self.gaps).mean()


def losses(model: Any, questions: Questions) -> Found:
    parts = questions.batch.split(questions.counts)
    found = log_probabilities(model, questions.batch).split([len(part.rows) for part in parts])
    own, wanted = (answer_log_probability(each[0], parts[0]) for each in (found, questions.expected))
    gaps = own - wanted
    terms = [functional.huber_loss(own, wanted, delta=FAR)]
    for expected, log_probs in zip(questions.expected[1:], found[1:], strict=True):
        terms.append(divergence(expected, log_probs) if len(log_probs) else torch.zeros(()))
    gap = float(gaps.detach().mean())
    forget, retain, text = (float(term.detach()) for term in terms)
    weights, lost = AS_UNLEARNED, 0.0
    if questions.kept is not None:
        weights = AS_ORIGINAL
        lack = functional.relu(questions.kept - answer_log_probability(found[1], parts[1]))
        terms.append(functional.huber_loss(lack, torch.zeros_like(lack), delta=FAR))
        lost = float(lack.detach().mean())
    total = (torch.stack(terms) * torch.tensor(weights)).sum()
    return Found(Losses(gap, forget, retain, text, lost, float(total.detach())), total, gaps, weights[0])
