"""Damped Adam: torch's Adam without damping, and by hand with it."""

from __future__ import annotations

import math

import pytest
import torch

from gguf_forget.unlearning.optimizer import DampedAdam


def test_without_damping_it_is_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    own, reference = [part.clone() for part in start], [part.clone() for part in start]
    adam = torch.optim.Adam(reference, lr=0.1, betas=(0.9, 0.99), eps=1e-30)
    damped = DampedAdam(own, learning_rate=0.1, damping=0.0)
    for step in range(6):
        gradients = [torch.randn(part.shape, generator=generator) * 10.0 ** (step - 3) for part in start]
        for parameter, gradient in zip(reference, gradients, strict=True):
            parameter.grad = gradient.clone()
        adam.step()
        damped.step(gradients)
        for first, second in zip(own, reference, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_two_damped_steps_by_hand() -> None:
    parameters = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    optimizer = DampedAdam(parameters, learning_rate=0.5, damping=2.0, betas=(0.5, 0.75))
    optimizer.step([torch.tensor([3.0, 0.0]), torch.tensor([[-4.0]])])
    # Corrected moments of a first step are the gradients themselves; the mean magnitude of those that are not zero:
    floor = 2.0 * (3 + 4) / 2
    expected = [1.0 - 0.5 * 3 / (3 + floor), 2.0, 3.0 + 0.5 * 4 / (4 + floor)]
    assert [*parameters[0].tolist(), parameters[1].item()] == pytest.approx(expected, rel=1e-6)
    optimizer.learning_rate = 0.1
    optimizer.step([torch.tensor([0.0, 1.0]), torch.tensor([[0.0]])])
    # first moments 3/4, 1/2, -1, corrected by 3/4; second moments 9 * 3/16, 1/4, 16 * 3/16, corrected by 7/16
    first = [1.0, 2 / 3, -4 / 3]
    second = [9 * 3 / 7, 4 / 7, 16 * 3 / 7]
    floor = 2.0 * sum(map(math.sqrt, second)) / 3
    expected = [value - 0.1 * m / (math.sqrt(v) + floor) for value, m, v in zip(expected, first, second, strict=True)]
    assert [*parameters[0].tolist(), parameters[1].item()] == pytest.approx(expected, rel=1e-6)


def test_one_huge_gradient_among_many_does_not_hold_the_others_back() -> None:
    def step_of_the_first(gradients: torch.Tensor) -> float:
        parameter = torch.zeros(len(gradients))
        DampedAdam([parameter], learning_rate=1.0, damping=1.0).step([gradients])
        return -parameter[0].item()

    alone = step_of_the_first(torch.ones(1000))
    assert alone == pytest.approx(1 / (1 + 1))
    beside = step_of_the_first(torch.cat([torch.ones(999), torch.tensor([100.0])]))
    assert beside == pytest.approx(1 / (1 + 1.099))  # of the root mean square it would be 1 / (1 + 3.3)
    frozen = step_of_the_first(torch.cat([torch.ones(500), torch.zeros(500)]))
    assert frozen == pytest.approx(alone)


def test_without_gradients_nothing_moves() -> None:
    parameter = torch.tensor([1.0, -2.0])
    DampedAdam([parameter], learning_rate=1.0, damping=0.0).step([torch.zeros(2)])
    assert parameter.tolist() == [1.0, -2.0]
    DampedAdam([], learning_rate=1.0, damping=0.1).step([])
