"""How often answers are chosen right while training goes on: a by-product of log-probabilities that exist anyway.

Shapes: S scored positions, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import comb

import torch

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.scoring import Batch

DISTRACTORS = 3


class ChoiceAccuracy:
    """4-way accuracy by first tokens: is the answer's more likely than three of other answers to the same question?

    The others are those of the relation's facts in the same split. Every choice of three counts alike, so that nothing
    is drawn and chance is exactly one in four; a relation of fewer answers is asked with fewer. What llama.cpp is asked
    later, whole answers against each fact's own distractors, is the measure; this one only shows the way there.
    """

    def __init__(self, facts: Sequence[Fact], examples: Sequence[Example]) -> None:
        self.facts = facts
        self.firsts: dict[tuple[str, str], set[int]] = defaultdict(set)
        for example in examples:
            self.firsts[self._group(example)].add(example.answer[0])

    def _group(self, example: Example) -> tuple[str, str]:
        fact = self.facts[example.fact]
        return fact.split, fact.relation

    def credits(self, log_probs: torch.Tensor, batch: Batch, examples: Sequence[Example]) -> list[float]:
        """One of 0 to 1 for each of ``examples``, whose batch this is; none for one without other answers.

        ``log_probs``: [S, V] at the batch's scored positions.
        """
        places = torch.searchsorted(batch.rows, torch.arange(batch.sequences, device=batch.rows.device)).tolist()
        found = []
        for place, example in zip(places, examples, strict=True):
            own = example.answer[0]
            others = sorted(self.firsts[self._group(example)] - {own})
            if others:
                beaten = int((log_probs[place, others] < log_probs[place, own]).sum())
                wrong = min(DISTRACTORS, len(others))
                found.append(comb(beaten, wrong) / comb(len(others), wrong))
        return found
