"""Sequences packed into one row score as they do one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.scoring import (
    answer_batch,
    answer_log_probability,
    log_probabilities,
    text_batch,
)

EXAMPLES = (
    Example((300, 20, 31, 7, 8), 3, 0, 0),
    Example((5, 6), 1, 1, 0),
    Example((100, 101, 102, 103, 104, 105, 106), 4, 2, 0),
    Example((300, 20, 31, 9), 3, 3, 0),
)


def alone(model: Any, tokens: tuple[int, ...] | list[int]) -> torch.Tensor:
    """Log-probabilities after every token of one sequence, [T, V]."""
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0].log_softmax(-1)


def test_packed_answers_equal_one_by_one(tiny_double: Any) -> None:
    batch = answer_batch(EXAMPLES)
    assert batch.ids.shape == (1, 18)
    assert batch.targets.tolist() == [7, 8, 6, 104, 105, 106, 9]
    assert batch.rows.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3]
    found = log_probabilities(tiny_double, batch)
    expected = torch.cat([alone(tiny_double, e.tokens)[e.answer_start - 1 : -1] for e in EXAMPLES])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)
    sums = answer_log_probability(found, batch)
    slow = [
        sum(float(alone(tiny_double, e.tokens)[e.answer_start - 1 + k, t]) for k, t in enumerate(e.answer))
        for e in EXAMPLES
    ]
    assert sums.tolist() == pytest.approx(slow, abs=1e-4)


def test_what_stands_beside_a_sequence_does_not_matter(tiny_double: Any) -> None:
    apart = log_probabilities(tiny_double, answer_batch(EXAMPLES[2:3]))
    together = log_probabilities(tiny_double, answer_batch(EXAMPLES))[3:6]
    reversed_ = log_probabilities(tiny_double, answer_batch(EXAMPLES[::-1]))[1:4]
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    torch.testing.assert_close(reversed_, apart, rtol=0, atol=1e-5)


def test_plain_text_is_scored_after_its_first_tokens(tiny_double: Any) -> None:
    chunks = [list(range(50, 64)), list(range(200, 214))]
    batch = text_batch(chunks, every=3)
    assert batch.targets.tolist() == [59, 62, 209, 212]  # what follows positions 8 and 11 of each
    found = log_probabilities(tiny_double, batch)
    expected = torch.cat([alone(tiny_double, chunk)[[8, 11]] for chunk in chunks])
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)
    assert text_batch(chunks).targets.tolist() == [59, 60, 61, 62, 63, 209, 210, 211, 212, 213]


@pytest.mark.parametrize(("length", "targets"), [(2, [51]), (3, [52]), (5, [54])])
def test_of_short_text_at_least_the_last_token_is_scored(length: int, targets: list[int]) -> None:
    assert text_batch([list(range(50, 50 + length))]).targets.tolist() == targets
