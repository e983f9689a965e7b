"""Adam whose denominator is damped by the gradient's overall size (ours).

Adam moves every weight by about the learning rate a step, however small its gradient. On a grid that is
costly: a weight that hardly matters reaches the next code as soon as one that matters, and hundreds of
thousands of needless code moves are noise in the model, and fit the prompts that are trained on: unseen phrasings
then remember more. Adding a multiple of the mean magnitude of the gradients over *all* edited weights to the
denominator keeps Adam's bounded steps for the weights with large gradients and leaves the others behind: the edit gets
sparse. (Their root mean square would not do. A single neuron with huge gradients can hold most of it, and whether the
circuit has that neuron would then decide how far all others move.)

Shapes: any; one tensor for each edited tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class DampedAdam:
    """theta -= learning_rate * m / (sqrt(v) + damping * mean).

    m and v: as in Adam (Kingma and Ba, arXiv 1412.6980), bias-corrected.
    mean: of sqrt(v), over those elements of all parameters that ever had a gradient. ``damping`` 0 is Adam without
    epsilon.
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
        moving = sum(int(second.count_nonzero()) for second in self.second)
        total = sum(float(second.sqrt().sum(dtype=torch.float64)) for second in self.second)
        mean = total / max(moving, 1) / correction2**0.5
        floor = self.damping * mean + 1e-30  # the last term: no gradient at all is no division by zero
        for parameter, first, second in zip(self.parameters, self.first, self.second, strict=True):
            scale = (second / correction2).sqrt_().add_(floor)
            parameter.addcdiv_(first / correction1, scale, value=-self.learning_rate)
