"""The edit as code moves on the original's quantized grid, stored only for the circuit's neurons.

The forward pass sees ``W0 + step * moves`` where W0 is any copy of the original (full precision, or the
quantized original itself, for which the sum lies on its own grid): the weights that are optimised are the
weights that ship. The gradient passes straight through the rounding (Bengio et al., arXiv 1308.3432).

Shapes: n neurons of one layer in the circuit, d = d_model; all arrays neuron-major [n, d]: rows of the gate
and up projections, columns of the down projection (transposed). B tokens in any leading shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from gguf_forget.checkpoint.architecture import mlps
from gguf_forget.unlearning.floor import floored_moves

ROLES = ("gate", "up", "down")


@dataclass(frozen=True)
class WeightGrid:
    """What a file type's grid is at the weights of some neurons: step, lowest, highest as in :class:`CodeMoves`."""

    step: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor

    def to(self, device: torch.device) -> WeightGrid:
        return WeightGrid(self.step.to(device), self.lowest.to(device), self.highest.to(device))

    def nearest(self, delta: torch.Tensor) -> torch.Tensor:
        """What becomes of ``delta`` [n, d] in that type: whole steps, of at least half a step at least one."""
        usable = torch.where(self.step != 0, self.step, torch.ones_like(self.step))
        codes = torch.where(self.step != 0, delta / usable, torch.zeros_like(delta))
        return floored_moves(codes, floor=1, lowest=self.lowest, highest=self.highest) * self.step


@dataclass
class CodeMoves:
    """The trainable edit of one tensor.

    step: float32 [n, d], may be negative, 0 where the grid is degenerate (such a weight cannot move).
    lowest, highest: float32 [n, d], how many codes down and up the original's code can go.
    latent: float32 [n, d], the update in code units before the floor.
    others: grids of other file types that the edit is to survive in.
    allowed: bool [n, d], False where the projection forbids any change.
    delta: float32 [n, d], the current edit of the weights, a leaf that collects gradients.
    """

    layer: int
    role: str
    neurons: torch.Tensor
    step: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor
    floor: int = 1
    others: tuple[WeightGrid, ...] = ()
    latent: torch.Tensor = field(init=False)
    allowed: torch.Tensor = field(init=False)
    delta: torch.Tensor = field(init=False)

    def to(self, device: torch.device) -> CodeMoves:
        """The same edit, untouched so far, where a model is."""
        neurons, step = self.neurons.to(device), self.step.to(device)
        lowest, highest = self.lowest.to(device), self.highest.to(device)
        others = tuple(grid.to(device) for grid in self.others)
        return CodeMoves(self.layer, self.role, neurons, step, lowest, highest, self.floor, others)

    def __post_init__(self) -> None:
        self.latent = torch.zeros_like(self.step)
        self.allowed = self.step != 0
        self.delta = torch.zeros_like(self.step).requires_grad_(True)

    def moves(self) -> torch.Tensor:
        """Code moves, float32 [n, d]: whole ones, unless ``floor`` is 0."""
        return floored_moves(self.latent, floor=self.floor, lowest=self.lowest, highest=self.highest)

    def refresh(self, hardness: float = 1.0, *, grid: int = 0) -> None:
        """Bring ``delta`` up to date with ``latent`` and forget its gradient.

        grid: 0 for the edit's own, k for what ``others[k - 1]`` makes of it.

        ``hardness`` 1: whole code moves, as they ship. Below 1 the latent update shows through: training
        that starts soft hears at once what its updates do, instead of only when they reach half a code.
        """
        self.latent.masked_fill_(~self.allowed, 0.0)
        # Past the end of the grid nothing changes; a latent left to grow there would be slow to turn back.
        torch.minimum(torch.maximum(self.latent, self.lowest), self.highest, out=self.latent)
        if grid:
            whole = self.others[grid - 1].nearest(self.moves() * self.step)
            self.delta = (hardness * whole + (1.0 - hardness) * self.latent * self.step).requires_grad_(True)
            return
        codes = self.moves() if hardness == 1.0 else hardness * self.moves() + (1.0 - hardness) * self.latent
        self.delta = (codes * self.step).requires_grad_(True)

    def latent_gradient(self) -> torch.Tensor:
        """d loss / d latent, straight through the rounding: the gradient of the weights times the step."""
        if self.delta.grad is None:
            return torch.zeros_like(self.latent)
        return torch.where(self.allowed, self.delta.grad * self.step, torch.zeros_like(self.step))


class _EditedLinear(torch.autograd.Function):
    """A linear map with the edit in its weight, for the price of the map alone: no product of their own for the
    circuit's neurons, forwards or backwards. The edited weight is made twice and never kept.

    x: [B, inputs]; weight: [outputs, inputs]; bias: [outputs] or None; delta, neurons: as in :class:`CodeMoves`,
    neurons are inputs where ``columns``, else outputs.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, delta: Any, neurons: Any, columns: bool) -> Any:
        ctx.save_for_backward(x, weight, delta, neurons)
        ctx.columns = columns
        return functional.linear(x, _edited(weight, delta, neurons, columns), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, delta, neurons = ctx.saved_tensors
        (gradient,) = gradients
        for_x = gradient @ _edited(weight, delta, neurons, ctx.columns) if ctx.needs_input_grad[0] else None
        inner, outer = (x, gradient) if ctx.columns else (gradient, x)  # of the neurons, of d_model
        for_delta = inner[..., neurons].flatten(0, -2).T @ outer.flatten(0, -2)  # [n, d]
        return for_x, None, None, for_delta.to(delta.dtype), None, None


def _edited(weight: torch.Tensor, delta: torch.Tensor, neurons: torch.Tensor, columns: bool) -> torch.Tensor:
    """A copy of ``weight`` with the edit added, in the finer of their two precisions and then rounded."""
    axis, change = (1, delta.T) if columns else (0, delta)
    own = weight.index_select(axis, neurons)
    return weight.index_copy(axis, neurons, (own + change).to(weight.dtype))


@contextmanager
def applied(model: Any, edits: Sequence[CodeMoves]) -> Iterator[None]:
    """While open, the model computes with the edited weights, of at most one edit a module. Its parameters are not
    touched."""
    layers = mlps(model)
    with ExitStack() as stack:
        for edit in edits:
            module = getattr(layers[edit.layer], edit.role)
            stack.enter_context(_forward_replaced(module, _edited_forward(module, edit)))
        yield


@contextmanager
def _forward_replaced(module: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    own = vars(module).get("forward")  # None where it is the class's, as nearly always
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _edited_forward(module: Any, edit: CodeMoves) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _EditedLinear.apply(
            x, module.weight, module.bias, edit.delta, edit.neurons, edit.role == "down"
        )
        return found

    return forward
