"""Fisher diagonals against a loop over examples on dense weights; projection and bound by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_edits import make_edits, own_part

from gguf_forget.checkpoint.architecture import mlps
from gguf_forget.unlearning.code_moves import applied
from gguf_forget.unlearning.fisher import diagonal_fisher, projection, retain_bound

SEQUENCES = ((300, 20, 31, 7), (8, 9, 10, 11, 12, 13), (42, 50))


def test_fisher_is_the_mean_of_squared_gradients_over_examples(tiny_double: Any) -> None:
    edits = make_edits()

    def loss(model: Any, sequence: tuple[int, ...]) -> torch.Tensor:
        return -model(torch.tensor([sequence[:-1]])).logits[0, -1].log_softmax(-1)[sequence[-1]]

    told: list[int] = []
    with applied(tiny_double, edits):
        losses = [lambda s=sequence: loss(tiny_double, s) for sequence in SEQUENCES]
        found = diagonal_fisher(edits, losses, progress=told.append)
    assert told == [1, 1, 1]

    expected = [torch.zeros(edit.step.shape, dtype=torch.float64) for edit in edits]
    for sequence in SEQUENCES:
        dense = copy.deepcopy(tiny_double).requires_grad_(True)
        loss(dense, sequence).backward()
        layers = mlps(dense)
        for total, edit in zip(expected, edits, strict=True):
            gradient = getattr(layers[edit.layer], edit.role).weight.grad
            total += own_part(gradient, edit) ** 2 / len(SEQUENCES)
    for own, slow in zip(found, expected, strict=True):
        assert own.dtype == torch.float64
        torch.testing.assert_close(own, slow, rtol=1e-5, atol=1e-6 * float(slow.max()))
    assert all(edit.delta.grad is None for edit in edits)


def test_an_edit_that_a_loss_does_not_reach_has_no_information(tiny_double: Any) -> None:
    edits = make_edits()
    found = diagonal_fisher(edits, [lambda: (edits[0].delta * 3.0).sum()])
    assert found[0].eq(9.0).all()
    assert all(part.eq(0).all() for part in found[1:])


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
