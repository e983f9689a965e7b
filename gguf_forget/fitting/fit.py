"""The loop: gradients of a quantized model's own weights, and a few codes moved at every step (ours).

Rounding a whole model adds noise to its answers that no single weight is to blame for: log-probabilities of forgotten
answers creep back up, kept facts get lost. The weights that ship are those that are differentiated here, and every code
stays one that rounding could have chosen: what was unlearned in full precision is what ships, and the noise is steered
to where it does no harm. Training the unlearned weights against the noise and rounding them again would not do: codes
that change then are a new draw of it.

Shapes: as in :mod:`.flips`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from gguf_forget.errors import EvaluationError
from gguf_forget.fitting.flips import Candidates, MovableCodes, best
from gguf_forget.fitting.layout import Layout
from gguf_forget.fitting.objective import FAR, Losses, Questions, losses
from gguf_forget.grids.levels import Codes

MEMORY = 0.9  # of what gradients and curvatures were before, at every step
FALL = 0.3  # of the loss, by which the first step is to lower it if the loss were linear; 0 at the end, linearly
CANDIDATES = 0.03  # of a tensor's weights, at every step
LEAST_CANDIDATES = 256
MULTIPLIER_STEP = 0.1  # by which a nat of a phrasing's mean gap raises its multiplier at every step that meets it


@dataclass
class FittedTensor:
    """module: the linear map that multiplies by the weights, whose values are those of ``codes``."""

    name: str
    module: Any
    layout: Layout
    codes: MovableCodes


class _Seen:
    """Running means over the steps of one tensor's gradient, and of a and b (:mod:`.flips`)."""

    def __init__(self) -> None:
        self.steps = 0
        self.gradient: Any = 0.0
        self.read: Any = 0.0
        self.given: Any = 0.0

    def begin(self) -> None:
        self.steps += 1
        self.gradient, self.read, self.given = (MEMORY * each for each in (self.gradient, self.read, self.given))

    def candidates(self, tensor: FittedTensor, count: int) -> Candidates:
        scale = np.float32(1.0 / (1.0 - MEMORY**self.steps))  # a mean of few steps is one of 0 as well
        layout = tensor.layout
        given = self.given.numpy()
        # b is by torch's outputs, which are the stored rows in another order.
        return tensor.codes.candidates(
            scale * layout.stored(self.gradient.numpy()),
            scale * self.read.numpy(),
            scale * given[layout.rows],
            count,
        )


@contextmanager
def _watched(tensors: Sequence[FittedTensor], seen: Sequence[_Seen]) -> Iterator[None]:
    """While open, every pass that computes gradients adds to what is ``seen`` of inputs and of outputs' gradients."""

    def watch(own: _Seen) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def forward(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not output.requires_grad:
                return
            own.read = own.read + (1 - MEMORY) * inputs[0].detach().flatten(0, -2).square().sum(0)
            output.register_hook(backward)

        def backward(gradient: torch.Tensor) -> None:
            own.given = own.given + (1 - MEMORY) * gradient.flatten(0, -2).square().sum(0)

        return forward

    handles = [tensor.module.register_forward_hook(watch(own)) for tensor, own in zip(tensors, seen, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Multipliers:
    """What a nat of each phrasing's gap costs beside the loss: Lagrange's, of the constraint that its mean is zero.

    Kept answers that are given back pull some phrasings along, and those that are few stay there, outvoted by the
    others; what is left of their mean adds up here. At most ``FAR``: one that no code can mend would drown all else.
    Where noise alone is corrected there is no such pull, and the multipliers' own noise does harm (measured). Facts are
    told apart by their relation alone; of those that share none the constraint is on all together.
    """

    def __init__(self) -> None:
        self.values = torch.zeros(0)

    def of(self, phrasings: torch.Tensor) -> torch.Tensor:
        """[prompts], of each its own phrasing's."""
        self.values = functional.pad(self.values, (0, max(0, int(phrasings.max()) + 1 - len(self.values))))
        return self.values[phrasings]

    def add(self, phrasings: torch.Tensor, gaps: torch.Tensor) -> None:
        """Both [prompts]; called after :meth:`of`."""
        for phrasing in phrasings.unique():
            self.values[phrasing] += MULTIPLIER_STEP * gaps[phrasings == phrasing].mean()
        self.values.clamp_(-FAR, FAR)


def mean_losses(model: Any, questions: Sequence[Questions]) -> Losses:
    with torch.no_grad():
        found = [losses(model, each).losses for each in questions]
    return Losses(*(sum(values) / len(found) for values in zip(*map(astuple, found), strict=True)))


def fit(
    model: Any,
    tensors: Sequence[FittedTensor],
    questions: Iterator[Questions],
    *,
    steps: int,
    threads: int = 0,
    progress: Callable[[int, Losses], None] = lambda step, losses: None,
) -> None:
    """Move the codes of ``tensors``, and with them the weights of ``model``, for ``steps`` batches of ``questions``.

    progress: hears the number of steps done, and what the last one found before it moved anything; the model may be
    asked then. Raises EvaluationError for a loss that is not finite.
    """
    seen = [_Seen() for _ in tensors]
    loss = None
    multipliers = _Multipliers()
    weights = [tensor.module.weight for tensor in tensors]
    with _watched(tensors, seen), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for step in range(steps):
            asked = next(questions)
            for weight in weights:
                weight.requires_grad_(True)
                weight.grad = None
            for each in seen:
                each.begin()
            found = losses(model, asked)
            total = found.losses.total
            if not np.isfinite(total):
                raise EvaluationError(f"fitting met a loss that is not finite at step {step + 1}: {found.losses}")
            found.constrained(multipliers.of(asked.phrasings)).backward()
            if asked.kept is not None:
                multipliers.add(asked.phrasings, found.gaps.detach())
            for weight, each in zip(weights, seen, strict=True):
                weight.requires_grad_(False)
                each.gradient = each.gradient + (1 - MEMORY) * weight.grad
                weight.grad = None
            loss = total if loss is None else MEMORY * loss + (1 - MEMORY) * total
            candidates = list(pool.map(_candidates, seen, tensors))
            for tensor, chosen in zip(tensors, best(candidates, FALL * (1 - step / steps) * loss), strict=True):
                _move(tensor, chosen)
            progress(step + 1, found.losses)


def _candidates(seen: _Seen, tensor: FittedTensor) -> Candidates:
    return seen.candidates(tensor, max(LEAST_CANDIDATES, int(CANDIDATES * tensor.codes.codes.size)))


def _move(tensor: FittedTensor, chosen: Candidates) -> None:
    values = tensor.codes.move(chosen.index, chosen.shift)
    places = tensor.layout.places(chosen.index, tensor.codes.codes.shape[1])
    tensor.module.weight.data.view(-1)[torch.from_numpy(places)] = torch.from_numpy(values)


def codes_of(tensors: Sequence[FittedTensor]) -> Mapping[str, Codes]:
    """By tensor, int16 [rows, columns]."""
    return {tensor.name: tensor.codes.codes for tensor in tensors}
