"""Sparse edits inside linear maps against a copy of the model whose weights were edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_edits import dense_copy, make_edits, own_part, randomise

from gguf_forget.checkpoint.architecture import mlps
from gguf_forget.unlearning.code_moves import CodeMoves, WeightGrid, _EditedLinear, applied

IDS = torch.tensor([[300, 20, 31, 7, 8], [9, 10, 11, 12, 13]])


def test_the_model_computes_with_the_edited_weights(tiny_double: Any) -> None:
    edits = make_edits()
    randomise(edits)
    with torch.no_grad():
        before = tiny_double(IDS).logits
        with applied(tiny_double, edits):
            found = tiny_double(IDS).logits
        expected = dense_copy(tiny_double, edits)(IDS).logits
        after = tiny_double(IDS).logits
    assert float((expected - before).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(after, before)


@pytest.mark.parametrize("role", ["gate", "up", "down"])
def test_each_role_by_itself(tiny_double: Any, role: str) -> None:
    edits = [edit for edit in make_edits() if edit.role == role]
    randomise(edits)
    with torch.no_grad():
        with applied(tiny_double, edits):
            found = tiny_double(IDS).logits
        expected = dense_copy(tiny_double, edits)(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_gradient_of_the_edit_is_that_of_the_weights(tiny_double: Any) -> None:
    edits = make_edits()
    randomise(edits)
    with applied(tiny_double, edits):
        tiny_double(IDS).logits.log_softmax(-1)[..., 42].sum().backward()
    dense = dense_copy(tiny_double, edits).requires_grad_(True)
    dense(IDS).logits.log_softmax(-1)[..., 42].sum().backward()
    layers = mlps(dense)
    for edit in edits:
        weight = getattr(layers[edit.layer], edit.role).weight
        expected = own_part(weight.grad, edit)
        assert edit.delta.grad is not None
        scale = float(expected.abs().max())
        assert scale > 0
        torch.testing.assert_close(edit.delta.grad.double(), expected, rtol=1e-5, atol=1e-6 * scale)
        straight_through = edit.latent_gradient()
        assert torch.equal(straight_through, torch.where(edit.allowed, edit.delta.grad * edit.step, 0.0))
    assert all(parameter.grad is None for parameter in tiny_double.parameters())


def test_nothing_is_left_of_it_after_an_exception(tiny_double: Any) -> None:
    edits = make_edits()
    randomise(edits)
    with torch.no_grad():
        before = tiny_double(IDS).logits
        with pytest.raises(RuntimeError, match="midway"), applied(tiny_double, edits):
            raise RuntimeError("midway")
        with pytest.raises(IndexError), applied(tiny_double, [edits[0], beyond()]):
            pass
        assert torch.equal(tiny_double(IDS).logits, before)
    assert not any("forward" in vars(module) for module in tiny_double.modules())


def test_a_forward_of_the_module_s_own_is_put_back(tiny_double: Any) -> None:
    edit = make_edits()[0]
    module = getattr(mlps(tiny_double)[edit.layer], edit.role)
    own = module.forward
    module.forward = own
    with applied(tiny_double, [edit]):
        assert module.forward is not own
    assert module.forward is own
    del module.forward


@pytest.mark.parametrize("columns", [False, True])
def test_a_linear_map_with_a_bias(columns: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (4,)))
    neurons = torch.tensor([3, 0])
    delta = torch.randn((2, 4 if columns else 6), generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn((2, 3, 6), generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_EditedLinear.apply, (x, weight, bias, delta, neurons, columns))
    edited = weight.clone()
    (edited.T if columns else edited)[neurons] += delta.detach()
    found = _EditedLinear.apply(x, weight, bias, delta, neurons, columns)
    torch.testing.assert_close(found, x @ edited.T + bias, rtol=0, atol=1e-12)


def beyond() -> CodeMoves:
    one = torch.ones(1, 256)
    return CodeMoves(9, "gate", torch.tensor([0]), one, -one, one)


def test_before_any_update_nothing_is_edited(tiny_model: Any) -> None:
    edits = make_edits()
    with torch.no_grad():
        before = tiny_model(IDS).logits
        with applied(tiny_model, edits):
            assert torch.equal(tiny_model(IDS).logits, before)
    assert all(edit.latent_gradient().eq(0).all() for edit in edits)


def test_a_weight_that_may_not_move_does_not() -> None:
    edit = make_edits()[0]
    assert torch.equal(edit.allowed, edit.step != 0)
    assert int((~edit.allowed).sum()) == 16
    edit.allowed[0] = False
    edit.latent = torch.full_like(edit.step, 5.0)
    edit.refresh()
    assert edit.latent[0].eq(0).all()
    assert edit.delta[~edit.allowed].eq(0).all()
    free = edit.allowed & (edit.highest > 0)
    assert edit.delta[free].ne(0).all()
    edit.delta.grad = torch.ones_like(edit.delta)
    assert edit.latent_gradient()[~edit.allowed].eq(0).all()
    assert torch.equal(edit.latent_gradient()[edit.allowed], edit.step[edit.allowed])


def test_a_soft_edit_lies_between_the_latent_update_and_whole_codes() -> None:
    one = torch.ones(1, 6)
    edit = CodeMoves(0, "gate", torch.tensor([0]), 2.0 * one, -3.0 * one, one)
    edit.allowed[0, 5] = False
    for hardness, codes in (
        (0.0, [0.25, 0.75, -0.75, 1.0, -3.0, 0.0]),  # the latent update, held inside the grid
        (0.5, [0.125, 0.875, -0.875, 1.0, -3.0, 0.0]),
        (1.0, [0.0, 1.0, -1.0, 1.0, -3.0, 0.0]),
    ):
        edit.latent = torch.tensor([[0.25, 0.75, -0.75, 9.0, -9.0, 0.75]])
        edit.refresh(hardness)
        assert (edit.delta.detach()[0] / 2.0).tolist() == codes
        assert edit.moves().tolist() == [[0.0, 1.0, -1.0, 1.0, -3.0, 0.0]]


def test_an_edit_is_whole_codes_times_the_step() -> None:
    for floor in (1, 2):
        for edit in make_edits(floor=floor):
            randomise([edit], spread=4.0)
            moves = edit.moves()
            assert torch.equal(edit.delta.detach(), moves * edit.step)
            assert torch.equal(moves, moves.round())
            assert ((edit.lowest <= moves) & (moves <= edit.highest)).all()
            assert set(range(-floor + 1, floor)) & set(moves.flatten().int().tolist()) == {0}


def test_another_grid_takes_the_nearest_of_its_own_codes_but_never_half_a_step() -> None:
    one = torch.ones(1, 6)
    step = torch.tensor([[3.0, 3.0, -3.0, 5.0, 0.0, 3.0]])
    other = WeightGrid(step, -2.0 * one, torch.tensor([[2.0, 2.0, 2.0, 2.0, 2.0, 0.0]]))
    edit = CodeMoves(0, "gate", torch.tensor([0]), 2.0 * one, -9.0 * one, 9.0 * one, others=(other,))
    edit.latent = torch.tensor([[1.0, 4.0, 1.0, 1.0, 1.0, 1.0]])
    edit.refresh(grid=1)
    # 2 of 3 is a step; 8 of 3 are more than the room of 2; 2 of -3 is a code down; 2 of 5 is less than half a step.
    assert edit.delta.detach().tolist() == [[3.0, 6.0, 3.0, 0.0, 0.0, 0.0]]
    edit.refresh(0.5, grid=1)
    assert edit.delta.detach().tolist() == [[2.5, 7.0, 2.5, 1.0, 1.0, 1.0]]  # half way to the latent update
    edit.refresh()
    assert edit.delta.detach().tolist() == [[2.0, 8.0, 2.0, 2.0, 2.0, 2.0]]
