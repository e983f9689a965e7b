"""Adam whose denominator is damped by the gradient's overall size (ours).

Adam moves every weight by about the learning rate a step, however small its gradient. On a grid that is
costly: a weight that hardly matters reaches the next code as soon as one that matters, and hundreds of
thousands of needless code moves are noise in the model. Adding a multiple of the root-mean-square gradient
over *all* edited weights to the denominator keeps Adam's bounded steps for the weights with large gradients
and leaves the others behind: the edit gets sparse.

Shapes: any; one tensor for each edited tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class DampedAdam:
    """theta -= learning_rate * m / (sqrt(v) + damping * rms).

    m and v: as in Adam (Kingma and Ba, arXiv 1412.6980), bias-corrected.
    rms: root of the mean of v over all elements of all parameters. ``damping`` 0 is Adam without epsilon.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        *,
        learning_rate: float,
        damping: float,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.damping = damping
        self.betas = betas
        self.steps = 0
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor]) -> None:
        """Update the parameters in place with ``gradients``, one for each."""
        self.steps += 1
        beta1, beta2 = self.betas
        for first, second, gradient in zip(self.first, self.second, gradients, strict=True):
            first.lerp_(gradient, 1.0 - beta1)
            second.lerp_(gradient * gradient, 1.0 - beta2)
        correction1, correction2 = 1.0 - beta1**self.steps, 1.0 - beta2**self.steps
        elements = sum(second.numel() for second in self.second)
        total = sum(float(second.sum(dtype=torch.float64)) for second in self.second)
        mean = total / max(elements, 1) / correction2
        floor = self.damping * mean**0.5 + 1e-30  # the last term: no gradient at all is no division by zero
        for parameter, first, second in zip(self.parameters, self.first, self.second, strict=True):
            scale = (second / correction2).sqrt_().add_(floor)
            parameter.addcdiv_(first / correction1, scale, value=-self.learning_rate)
