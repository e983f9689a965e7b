"""Losses by hand, and which way they push."""

from __future__ import annotations

import math

import pytest
import torch

from gguf_forget.unlearning.objectives import (
    chance_level,
    divergence,
    gradient_ascent,
    likelihood,
    misdirection,
    negative_preference,
    shortfall,
    simple_preference,
)


def test_divergence_by_hand() -> None:
    reference = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    model = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    expected = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2  # the second position is equal
    assert float(divergence(reference, model)) == pytest.approx(expected, rel=1e-6)
    backwards = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)) / 2
    assert float(divergence(model, reference)) == pytest.approx(backwards, rel=1e-6)


def test_divergence_is_zero_with_zero_gradient_at_equality() -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = logits.clone().requires_grad_(True)
    loss = divergence(logits.log_softmax(-1), own.log_softmax(-1))
    loss.backward()
    assert abs(float(loss.detach())) < 1e-15
    assert own.grad is not None
    assert float(own.grad.abs().max()) < 1e-15


def test_shortfall_counts_losses_alone() -> None:
    reference = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    own = torch.tensor([-1.5, -1.0, -3.0, -7.0], requires_grad=True)
    loss = shortfall(reference, own)
    assert float(loss.detach()) == pytest.approx((0.5 * 0.5**2 + (3.0 - 0.5)) / 4)
    loss.backward()
    assert own.grad is not None
    assert own.grad.tolist() == [-0.125, 0.0, 0.0, -0.25]


def test_negative_preference_by_hand() -> None:
    assert float(negative_preference(torch.tensor([-2.0]), torch.tensor([-2.0]), beta=0.1)) == pytest.approx(
        20 * math.log(2), rel=1e-6
    )
    answer, known = torch.tensor([-1.0, -30.0]), torch.tensor([-3.0, -2.0])
    # -log sigmoid(-0.5 * 2) = log(1 + e^1); -log sigmoid(0.5 * 28) = log(1 + e^-14)
    expected = (2 / 0.5) * (math.log1p(math.e) + math.log1p(math.exp(-14))) / 2
    assert float(negative_preference(answer, known, beta=0.5)) == pytest.approx(expected, rel=1e-6)


def test_negative_preference_pushes_the_answer_down_and_then_lets_go() -> None:
    answer = torch.tensor([-2.0, -200.0], requires_grad=True)
    negative_preference(answer, torch.tensor([-2.0, -2.0]), beta=0.1).backward()
    assert answer.grad is not None
    # The derivative is 2 sigmoid(beta (answer - known)) / E: 2 * 0.5 / 2, and next to nothing far below.
    assert answer.grad[0] == pytest.approx(0.5, rel=1e-6)
    assert 0 < float(answer.grad[1]) < 1e-6


def test_chance_level_by_hand() -> None:
    answer = torch.tensor([-2.0, -7.0, -4.5], requires_grad=True)
    target = torch.tensor([-5.0, -5.0, -4.0])
    loss = chance_level(answer, target)
    assert float(loss.detach()) == pytest.approx((2.5 + 1.5 + 0.125) / 3, rel=1e-6)
    loss.backward()
    assert answer.grad is not None
    assert (3 * answer.grad).tolist() == pytest.approx([1.0, -1.0, -0.5], rel=1e-6)
    assert float(chance_level(target - 1.5, target, margin=1.5)) == 0.0
    assert float(chance_level(target, target, margin=3.0)) == pytest.approx(2.5, rel=1e-6)


def test_chance_level_with_an_excess() -> None:
    """Above what it may be: down by the excess, wherever chance is; below it, chance but no further up."""
    answer = torch.tensor([-2.0, -2.0, -7.0, -2.0], requires_grad=True)
    target = torch.tensor([-1.0, -5.0, -5.0, -2.0])
    loss = chance_level(answer, target, excess=torch.tensor([0.5, 0.5, -0.5, -9.0]))
    # goals: -2.5 (chance is higher), -5 (chance is lower), -6.5 (as far up as it may), chance itself
    assert float(loss.detach()) == pytest.approx((0.125 + 2.5 + 0.125 + 0.0) / 4, rel=1e-6)
    loss.backward()
    assert answer.grad is not None
    assert (4 * answer.grad).tolist() == pytest.approx([0.5, 1.0, -0.5, 0.0], rel=1e-6)
    answer.grad = None
    chance_level(answer, target, excess=torch.tensor([0.5, 0.5, -0.5, -9.0]), excess_weight=3.0).backward()
    assert (4 * answer.grad).tolist() == pytest.approx([1.5, 3.0, -0.5, 0.0], rel=1e-6)


def test_ascent_and_likelihood_are_each_others_negative() -> None:
    tokens = torch.tensor([-1.0, -2.0, -6.0], dtype=torch.float64)
    assert float(gradient_ascent(tokens)) == -3.0
    assert float(likelihood(tokens)) == 3.0


def test_simple_preference_by_hand() -> None:
    answer = torch.tensor([-2.0, -9.0], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([1, 3])
    # -log sigmoid(2 * 2 - 1) and -log sigmoid(2 * 3 - 1)
    expected = (2 / 2) * (math.log1p(math.exp(-3)) + math.log1p(math.exp(-5))) / 2
    loss = simple_preference(answer, lengths, beta=2.0, delta=1.0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert answer.grad is not None
    # The derivative is 2 sigmoid(beta log p / |y| + delta) / |y| / E.
    by_hand = [1 / (1 + math.exp(3)), 1 / (1 + math.exp(5)) / 3]
    assert answer.grad.tolist() == pytest.approx(by_hand, rel=1e-12)


def test_simple_preference_ignores_how_long_an_answer_is() -> None:
    one = simple_preference(torch.tensor([-2.0]), torch.tensor([1]))
    three = simple_preference(torch.tensor([-6.0]), torch.tensor([3]))
    assert float(one) == float(three)


def test_misdirection_by_hand() -> None:
    forget = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    target = torch.tensor([1.0, 0.0], dtype=torch.float64)
    retain = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    reference = torch.tensor([[0.0, 3.0]], dtype=torch.float64)
    # ((0 + 4) + (4 + 16)) / 4 = 6; (1 + 4) / 2 = 2.5
    assert float(misdirection(forget, target, retain, reference, alpha=10.0)) == 6.0 + 25.0
