"""Reading and replacing activations of a plain Hugging Face model, inside context managers that leave no trace.

Shapes: P prompts, T tokens, H heads, D head size, d_ff neurons, n chosen neurons or heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from gguf_forget.checkpoint.attention import differentiable_attention
from gguf_forget.checkpoint.components import Components, components

Hook = tuple[Any, Literal["input", "output"], Callable[[torch.Tensor], torch.Tensor | None]]


@contextmanager
def hooked(hooks: Sequence[Hook]) -> Iterator[None]:
    """While open, each function sees its module's (first) input or output, and may return one in its place."""

    def on_input(function: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            found = function(inputs[0])
            return None if found is None else (found, *inputs[1:])

        return hook

    def on_output(function: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
        return lambda _module, _inputs, output: function(output)

    with ExitStack() as stack:
        for module, where, function in hooks:
            if where == "input":
                handle = module.register_forward_pre_hook(on_input(function))
            else:
                handle = module.register_forward_hook(on_output(function))
            stack.callback(handle.remove)
        yield


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """While open: evaluation mode, no parameter requires gradients, autograd on. All restored at the end.

    Gradients of parameters would cost half of the backward pass and the memory of all activations. Attention is
    computed as :func:`~gguf_forget.checkpoint.attention.differentiable_attention` does.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.enable_grad(), differentiable_attention(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in flags:
            parameter.requires_grad_(required)


@dataclass
class Activations:
    """What the last forward pass computed: ``neurons`` L x [P, T, d_ff] and ``heads`` L x [P, T, H, D]."""

    neurons: list[torch.Tensor] = field(default_factory=list)
    heads: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def recorded_activations(model: Any) -> Iterator[Activations]:
    """While open, every forward pass fills the lists anew, layer by layer; part of the graph if there is one."""
    parts = components(model)
    record = Activations()

    def hooks_of(layer: int) -> list[Hook]:
        def heads(x: torch.Tensor) -> None:
            if layer == 0:
                record.heads.clear()
            record.heads.append(x.unflatten(-1, (parts.heads, parts.head_size)))

        def neurons(x: torch.Tensor) -> None:
            if layer == 0:
                record.neurons.clear()
            record.neurons.append(x)

        found = parts.layers[layer]
        return [(found.attention_output.module, "input", heads), (found.down.module, "input", neurons)]

    with hooked([hook for layer in range(len(parts.layers)) for hook in hooks_of(layer)]):
        yield record


Replacement = tuple[torch.Tensor, torch.Tensor]


def _neuron_hook(parts: Components, layer: int, replacement: Replacement) -> Hook:
    indices, values = replacement

    def replace(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[..., indices] = values.to(x)
        return x

    return parts.layers[layer].down.module, "input", replace


def _head_hook(parts: Components, layer: int, replacement: Replacement) -> Hook:
    indices, values = replacement

    def replace(x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (parts.heads, parts.head_size)).clone()
        heads[..., indices, :] = values.to(x)
        return heads.flatten(-2)

    return parts.layers[layer].attention_output.module, "input", replace


@contextmanager
def replaced_activations(
    model: Any,
    *,
    neurons: Mapping[int, Replacement] | None = None,
    heads: Mapping[int, Replacement] | None = None,
) -> Iterator[None]:
    """While open, chosen activations are given values instead of those that the model computes.

    ``neurons[layer]`` is (indices int64 [n], values) with values that broadcast to [P, T, n]: the neurons'
    activations, which the down projection reads. ``heads[layer]`` likewise with values that broadcast to
    [P, T, n, D]: the heads' outputs, which the output projection reads.
    """
    parts = components(model)
    hooks = [_neuron_hook(parts, layer, found) for layer, found in (neurons or {}).items()]
    hooks += [_head_hook(parts, layer, found) for layer, found in (heads or {}).items()]
    with hooked(hooks):
        yield
