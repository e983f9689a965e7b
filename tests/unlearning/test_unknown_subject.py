"""The chance level against an average written out: one subject, one forward pass at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.unknown_subject import unknown_subject_targets


def fact(relation: str) -> Fact:
    return Fact("s", relation, "a", ("b",), "forget", ("p", "q"))


FACTS = [fact("capital") for _ in range(4)] + [fact("currency") for _ in range(3)]
ANSWERS = [(400,), (401, 402), (403, 404, 405), (401, 406), (407,), (408, 409), (410,)]


def examples() -> list[Example]:
    """Two phrasings of every fact; prompts of 2 to 5 tokens that differ in their first token, the subject."""
    found = []
    for index, answer in enumerate(ANSWERS):
        for phrasing in range(2):
            prompt = (300 + index, *range(20 + 10 * phrasing, 21 + 10 * phrasing + index % 4))
            found.append(Example(prompt + answer, len(prompt), index, phrasing))
    return found


def slow_target(model: Any, own: Example, first_leaves_out: int) -> float:
    """Mean over other subjects of log p(token | their prompt, earlier answer tokens), summed over tokens."""
    total = 0.0
    for place, token in enumerate(own.answer):
        left_out = first_leaves_out if place == 0 else own.fact
        values = []
        for other in examples():
            same = FACTS[other.fact].relation == FACTS[own.fact].relation and other.phrasing == own.phrasing
            if same and other.fact != left_out:
                ids = torch.tensor([[*other.prompt, *own.answer[:place]]])
                with torch.no_grad():
                    values.append(float(model(ids).logits[0, -1].log_softmax(-1)[token]))
        total += math.fsum(values) / len(values)
    return total


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_targets_equal_the_slow_average(tiny_double: Any, batch_size: int) -> None:
    pool = examples()
    forget = [example for example in pool if example.fact in (1, 2, 5, 6)]
    told: list[int] = []
    found = unknown_subject_targets(
        tiny_double,
        FACTS,
        forget,
        pool,
        first_token_subjects=99,
        later_token_subjects=99,
        seed=0,
        batch_size=batch_size,
        progress=told.append,
    )
    # The first token's average is shared: it leaves out the fact that came first in its relation.
    expected = [slow_target(tiny_double, example, 1 if example.fact < 4 else 5) for example in forget]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert told == [1] * len(forget)
    assert not found.requires_grad


def test_few_subjects_are_drawn_with_the_seed(tiny_double: Any) -> None:
    def targets(seed: int) -> list[float]:
        return unknown_subject_targets(
            tiny_double,
            FACTS,
            examples(),
            examples(),
            first_token_subjects=1,
            later_token_subjects=1,
            seed=seed,
        ).tolist()

    assert targets(0) == targets(0)
    assert len({tuple(targets(seed)) for seed in range(6)}) > 1
