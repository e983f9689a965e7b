"""The metric against the model's own logits, one unpadded pair at a time, and the embeddings that enter it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from gguf_forget.circuit.inputs import metric, pair_batches
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair

CHOICE = Pair((300, 20, 31), (301, 20, 31), 42, (50, 51), 0)
FREE = Pair((7, 8, 9, 10, 11, 12), (7, 8, 99, 98, 11, 12), 11, (), 1, answer_tokens=(11, 12, 13))
ONE_TOKEN_ANSWER = Pair((70, 80), (71, 80), 9, (), 2, answer_tokens=(9,))
STAND_INS = Pair((5, 6, 7, 8), (5, 6, 7, 8), 60, (61, 62, 63), 3, span=(1, 3), stand_ins=(100, 101, 102))
PAIRS = (CHOICE, FREE, ONE_TOKEN_ANSWER, STAND_INS)


class Cap(torch.nn.Module):
    """An output head that squeezes its logits, as Gemma's does."""

    def __init__(self, head: torch.nn.Module, cap: float) -> None:
        super().__init__()
        self.head, self.cap = head, cap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cap * torch.tanh(self.head(x) / self.cap)


def expected_metric(model: Any, ids: tuple[int, ...], pair: Pair, cap: float | None) -> float:
    logits = model(torch.tensor([ids])).logits[0].double()
    if cap is not None:
        logits = cap * (logits / cap).tanh()
    if not pair.answer_tokens:
        return float(
            logits[-1, pair.answer] - sum(logits[-1, wrong] for wrong in pair.distractors) / len(pair.distractors)
        )
    before = logits[-len(pair.answer_tokens) :].log_softmax(dim=-1)
    return float(sum(row[token] for row, token in zip(before, pair.answer_tokens, strict=True)))


@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_metric_is_read_from_the_model_s_own_logits(tiny_double: Any, cap: float | None) -> None:
    model = copy.deepcopy(tiny_double)
    model.config.final_logit_softcapping = cap
    for batch in pair_batches(model, PAIRS, 3):
        found = metric(model, batch.clean, batch)
        expected = [expected_metric(model, pair.clean, pair, cap) for pair in batch.pairs]
        assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_the_cap_is_that_of_the_model_s_head(tiny_double: Any) -> None:
    """The same as with a head that caps its own logits."""
    model = copy.deepcopy(tiny_double)
    model.config.final_logit_softcapping = 2.0
    capped = copy.deepcopy(tiny_double)
    capped.lm_head = Cap(capped.lm_head, 2.0)
    batch = next(pair_batches(model, [CHOICE], 1))
    assert float(metric(model, batch.clean, batch)) == pytest.approx(
        expected_metric(capped, CHOICE.clean, CHOICE, None), rel=1e-9
    )


def test_batches_hold_pairs_of_similar_length_and_their_embeddings(tiny_double: Any) -> None:
    batches = list(pair_batches(tiny_double, PAIRS, 2))
    assert [batch.pairs for batch in batches] == [(ONE_TOKEN_ANSWER, CHOICE), (STAND_INS, FREE)]
    assert batches[0].mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    table = tiny_double.get_input_embeddings().weight
    assert torch.equal(batches[0].clean[1], table[list(CHOICE.clean)])
    assert torch.equal(batches[0].corrupted[1], table[list(CHOICE.corrupted)])
    assert torch.equal(batches[1].corrupted[1], table[list(FREE.corrupted)])


def test_stand_ins_give_their_mean_embedding_at_the_span_alone(tiny_double: Any) -> None:
    batch = next(pair_batches(tiny_double, [STAND_INS], 1))
    table = tiny_double.get_input_embeddings().weight
    mean = (table[100] + table[101] + table[102]) / 3
    expected = torch.stack([table[5], mean, mean, table[8]])
    torch.testing.assert_close(batch.corrupted[0], expected, rtol=1e-12, atol=0)
    assert torch.equal(batch.clean[0], table[[5, 6, 7, 8]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corrupted": (1, 2)}, "prompts of 3 and 2 tokens, needed equal lengths"),
        ({"distractors": ()}, "0 distractors and 0 answer tokens"),
        ({"answer_tokens": (4,)}, "1 distractors and 1 answer tokens"),
        ({"distractors": (), "answer_tokens": (4, 5, 6, 7)}, "has 3 tokens, needed at least 4"),
        ({"span": (0, 1)}, "a span or stand-ins without the other"),
        ({"stand_ins": (8,)}, "a span or stand-ins without the other"),
        ({"span": (2, 4), "stand_ins": (8,)}, r"the span \(2, 4\), needed positions within 3 tokens"),
        ({"clean": (), "corrupted": ()}, "has 0 tokens, needed at least 1"),
    ],
)
def test_pairs_that_cannot_be_read_are_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"clean": (1, 2, 3), "corrupted": (1, 9, 3), "answer": 4, "distractors": (5,), "fact": 0}
    Pair(**good)
    with pytest.raises(InputError, match=message):
        Pair(**(good | fields))


def test_long_answers_in_bfloat16_are_summed_in_float32(tiny_model: Any) -> None:
    """The states are bfloat16, the sum over 120 answer tokens is not: its steps would be 4 nats."""
    model = copy.deepcopy(tiny_model).to(torch.bfloat16)
    answer = tuple(3 + i % 200 for i in range(120))
    pair = Pair((7, 8, *answer[:-1]), (9, 8, *answer[:-1]), answer[0], (), 0, answer_tokens=answer)
    (batch,) = pair_batches(model, [pair], 1)
    found = metric(model, batch.clean, batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected_metric(model, pair.clean, pair, None), abs=0.05)
