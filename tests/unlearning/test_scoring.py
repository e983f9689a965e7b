"""Sequences packed into one row score as they do one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.scoring import (
    answer_log_probability,
    answers,
    greedy_lead,
    log_probabilities,
    pack,
    plain_text,
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
    batch = pack(answers(EXAMPLES))
    assert batch.targets.tolist() == [7, 8, 6, 104, 105, 106, 9]
    assert batch.rows.tolist() == [0, 0, 1, 2, 2, 2, 3]
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


def test_greedy_lead_is_that_of_the_answers_weakest_token(tiny_double: Any) -> None:
    batch = pack(answers(EXAMPLES))
    slow = []
    for example in EXAMPLES:
        rows = alone(tiny_double, example.tokens)[example.answer_start - 1 : -1]
        leads = []
        for row, token in zip(rows, example.answer, strict=True):
            best = max(float(value) for other, value in enumerate(row) if other != token)
            leads.append(float(row[token]) - best)
        slow.append(min(leads))
    assert greedy_lead(log_probabilities(tiny_double, batch), batch).tolist() == pytest.approx(slow, abs=1e-5)


def test_a_greedy_decoder_gives_what_leads(tiny_double: Any) -> None:
    prompt = (300, 20, 31)
    first = int(alone(tiny_double, prompt)[-1].argmax())
    second = int(alone(tiny_double, (*prompt, first))[-1].argmax())
    examples = [Example((*prompt, *rest), 3, 0, 0) for rest in ((first, second), (first, second + 1))]
    batch = pack(answers(examples))
    said, other = greedy_lead(log_probabilities(tiny_double, batch), batch).tolist()
    assert said > 0 > other


def test_what_stands_beside_a_sequence_does_not_matter(tiny_double: Any) -> None:
    apart = log_probabilities(tiny_double, pack(answers(EXAMPLES[2:3])))
    together = log_probabilities(tiny_double, pack(answers(EXAMPLES)))[3:6]
    reversed_ = log_probabilities(tiny_double, pack(answers(EXAMPLES[::-1])))[1:4]
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    torch.testing.assert_close(reversed_, apart, rtol=0, atol=1e-5)


def test_a_shared_prefix_is_one_token_of_the_tree(tiny_double: Any) -> None:
    sequences = answers([EXAMPLES[0], EXAMPLES[3], EXAMPLES[0]])  # 300 20 31 7, 300 20 31, the first again
    batch = pack(sequences)
    assert batch.ids.tolist() == [[300, 20, 31, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]]
    assert batch.mask[0, 0].tolist() == torch.ones(4, 4, dtype=torch.bool).tril().tolist()
    assert batch.positions.tolist() == [2, 3, 2, 2, 3]
    apart = pack(sequences, shared=False)
    assert apart.ids.tolist() == [[300, 20, 31, 7], [300, 20, 31, 0], [300, 20, 31, 7]]
    assert apart.positions.tolist() == [2, 3, 6, 10, 11]
    found, slow = log_probabilities(tiny_double, batch), log_probabilities(tiny_double, apart)
    torch.testing.assert_close(found, slow, rtol=0, atol=1e-5)


def test_many_sequences_in_several_rows_score_as_alone(tiny_double: Any) -> None:
    many = [
        Example((5, 6, 7 + i % 3, 40 + i, *range(60, 62 + i % 4), 300 + i, 301 + i), 6 + i % 4, i, 0) for i in range(40)
    ]
    chunks = [list(range(100 + i, 130 + i)) for i in range(0, 60, 10)]
    batch = pack(answers(many) + plain_text(chunks))
    assert len(batch.ids) > 1
    assert batch.ids.numel() < sum(len(e.tokens) for e in many) + sum(map(len, chunks))
    found = log_probabilities(tiny_double, batch)
    expected = [alone(tiny_double, e.tokens)[e.answer_start - 1 : -1] for e in many]
    expected += [alone(tiny_double, chunk)[8:-1] for chunk in chunks]
    torch.testing.assert_close(found, torch.cat(expected).float(), rtol=0, atol=1e-5)


def test_split_scores_the_parts_of_the_same_trees(tiny_double: Any) -> None:
    whole = pack(answers(EXAMPLES))
    first, last = whole.split([3, 1])
    assert (first.sequences, last.sequences) == (3, 1)
    assert first.rows.tolist() == [0, 0, 1, 2, 2, 2]
    assert last.rows.tolist() == [0]
    found = log_probabilities(tiny_double, whole)
    assert torch.equal(torch.cat([log_probabilities(tiny_double, part) for part in (first, last)]), found)
    assert answer_log_probability(found[6:], last).tolist() == answer_log_probability(found, whole)[3:].tolist()


def test_plain_text_is_scored_after_its_first_tokens(tiny_double: Any) -> None:
    chunks = [list(range(50, 64)), list(range(200, 214))]
    batch = pack(plain_text(chunks, every=3))
    assert batch.targets.tolist() == [59, 62, 209, 212]  # what follows positions 8 and 11 of each
    found = log_probabilities(tiny_double, batch)
    expected = torch.cat([alone(tiny_double, chunk)[[8, 11]] for chunk in chunks])
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)
    assert pack(plain_text(chunks)).targets.tolist() == [59, 60, 61, 62, 63, 209, 210, 211, 212, 213]


@pytest.mark.parametrize(("length", "targets"), [(2, [51]), (3, [52]), (5, [54])])
def test_of_short_text_at_least_the_last_token_is_scored(length: int, targets: list[int]) -> None:
    assert pack(plain_text([list(range(50, 50 + length))])).targets.tolist() == targets
