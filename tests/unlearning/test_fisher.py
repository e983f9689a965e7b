"""Fisher diagonals against a loop over examples on dense weights; projection and bound by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_edits import make_edits, own_part

from gguf_forget.checkpoint.architecture import mlps
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.fisher import diagonal_fisher, projection, retain_bound

EXAMPLES = (
    Example((300, 20, 31, 7), 3, 0, 0),
    Example((300, 20, 10, 11, 12, 13), 4, 1, 0),
    Example((42, 50), 1, 2, 0),
)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_fisher_is_the_mean_of_squared_gradients_over_examples(tiny_double: Any, batch_size: int) -> None:
    edits = make_edits()
    told: list[int] = []
    found = diagonal_fisher(tiny_double, edits, EXAMPLES, batch_size=batch_size, progress=told.append)
    assert sum(told) == 3

    expected = [torch.zeros(edit.step.shape, dtype=torch.float64) for edit in edits]
    for example in EXAMPLES:
        dense = copy.deepcopy(tiny_double).requires_grad_(True)
        log_probs = dense(torch.tensor([example.tokens[:-1]])).logits[0].log_softmax(-1)
        places = range(example.answer_start - 1, len(example.tokens) - 1)
        sum(log_probs[place, token] for place, token in zip(places, example.answer, strict=True)).backward()
        layers = mlps(dense)
        for total, edit in zip(expected, edits, strict=True):
            gradient = getattr(layers[edit.layer], edit.role).weight.grad
            total += own_part(gradient, edit) ** 2 / len(EXAMPLES)
    for own, slow in zip(found, expected, strict=True):
        assert own.dtype == torch.float64
        torch.testing.assert_close(own, slow, rtol=1e-5, atol=1e-6 * float(slow.max()))


def test_the_model_is_left_as_it_was_found(tiny_double: Any) -> None:
    ids = torch.tensor([[300, 20, 31]])
    before = tiny_double(ids).logits
    diagonal_fisher(tiny_double, make_edits(), EXAMPLES)
    assert torch.equal(tiny_double(ids).logits, before)
    assert not any(parameter.requires_grad for parameter in tiny_double.parameters())
    assert not any(module._forward_hooks for module in tiny_double.modules())


RETAIN = [torch.tensor([[1.0, 6.0], [0.0, 8.0]]), torch.tensor([[5.0, 2.0]])]
FORGET = [torch.tensor([[1.0, 2.0], [0.0, 2.0]]), torch.tensor([[1.0, 4.0]])]
# ratios: 1, 3, unused by the forget set, 4; 5, 0.5


@pytest.mark.parametrize(
    ("quantile", "expected"),
    [
        (0.5, [[[True, True], [False, False]], [[False, True]]]),
        (0.1, [[[False, False], [False, False]], [[False, True]]]),
        (4 / 6, [[[True, True], [False, True]], [[False, True]]]),
        (0.99, [[[True, True], [False, True]], [[True, True]]]),
        (1.0, [[[True, True], [True, True]], [[True, True]]]),
    ],
)
def test_projection_frees_the_smallest_ratios_over_all_tensors(
    quantile: float, expected: list[list[list[bool]]]
) -> None:
    assert [mask.tolist() for mask in projection(RETAIN, FORGET, quantile=quantile)] == expected


def test_what_the_forget_set_does_not_use_is_frozen() -> None:
    retain, forget = [torch.zeros(4)], [torch.zeros(4)]
    assert projection(retain, forget, quantile=0.9)[0].tolist() == [False] * 4


def test_the_share_that_stays_free_is_not_lost_to_rounding() -> None:
    retain, forget = [torch.arange(100.0)], [torch.ones(100)]
    assert int(projection(retain, forget, quantile=0.29)[0].sum()) == 29  # 0.29 * 100 = 28.999999999999996


def test_retain_bound_by_hand() -> None:
    deltas = [torch.tensor([[1.0, 0.0], [9.0, -0.5]]), torch.tensor([[2.0, 0.0]])]
    assert retain_bound(RETAIN, deltas) == 0.5 * (1.0 * 1.0 + 8.0 * 0.25 + 5.0 * 4.0)
    assert retain_bound([], []) == 0.0
