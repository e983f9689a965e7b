"""Gradients of L at what every component reads from the residual stream, summed over runs.

The plain model runs once and gives the gradients g at the outputs of the projections. Back through one head's
rows W of the projection and through the norm before it, weight * x / r (r: root mean square), the gradient at
the head's own input is

    weight * (W^T g) / r  -  x * <W (weight * x), g> / (d_model * r^3),

and W (weight * x) / r is the projection's own output o less its biases. So a run leaves behind g / r, the scalar
<o, g> / (d_model * r^2) of every head and x alone, never a tensor of d_model for every head. A layer norm is the
same with the mean taken off x.

Shapes: P pairs, T tokens, R rows (positions that count), d_model, n heads of D rows in a projection, K runs,
N query, key and value inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from gguf_forget.checkpoint.components import Components, Layer
from gguf_forget.circuit.graph import Graph
from gguf_forget.circuit.hooks import Hook, hooked
from gguf_forget.circuit.interpolation import Rows, working


@dataclass
class Reads:
    """What one run with gradients read, layer by layer, for the layers from ``first`` on.

    ``projected``: each projection's output; ``mlp_inputs`` and ``final``: where MLPs and logits read the residual
    stream; ``norm_inputs``: the residual stream before attention, detached.
    """

    projected: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    norm_inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    mlp_inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    final: list[torch.Tensor] = field(default_factory=list)

    def clear(self) -> None:
        for part in (self.projected, self.norm_inputs, self.mlp_inputs, self.final):
            part.clear()


@contextmanager
def recorded_reads(parts: Components, *, attention_from: int, mlp_from: int) -> Iterator[Reads]:
    """While open, a forward pass fills the record, which must be cleared after each."""
    record = Reads()

    def attention_hooks(index: int, layer: Layer) -> Iterator[Hook]:
        def norm_input(x: torch.Tensor) -> None:
            record.norm_inputs[index] = x.detach()

        def projected(output: torch.Tensor) -> None:
            record.projected.setdefault(index, []).append(output)

        if layer.attention_norm is not None:
            yield layer.attention_norm.module, "input", norm_input
        for projection in layer.projections:
            yield projection.map.module, "output", projected

    def mlp_hook(index: int, layer: Layer) -> Hook:
        def mlp_input(x: torch.Tensor) -> torch.Tensor:
            record.mlp_inputs[index] = x.view_as(x)  # a node of its own: the gradient through the MLP alone
            return record.mlp_inputs[index]

        return layer.mlp_entry, "input", mlp_input

    hooks: list[Hook] = [(parts.final_norm, "input", record.final.append)]
    for index, layer in enumerate(parts.layers):
        if index >= attention_from:
            hooks += attention_hooks(index, layer)
        if index >= mlp_from:
            hooks.append(mlp_hook(index, layer))
    with hooked(hooks):
        yield record


class Gradients:
    """Sums over runs, for the layers' attention and MLPs from given layers on and for the logits."""

    def __init__(self, parts: Components, rows: Rows, *, attention_from: int, mlp_from: int) -> None:
        self.parts, self.rows = parts, rows
        self.attention_from, self.mlp_from = attention_from, mlp_from
        self._scaled: dict[int, list[torch.Tensor]] = {}  # per projection [R, n, D]: sum of g / r
        self._radial: dict[int, list[torch.Tensor]] = {}  # per run [R, N]: <o, g> / (d_model r^2)
        self._inputs: dict[int, list[torch.Tensor]] = {}  # per run [R, d_model]: x
        self._whole: dict[int, torch.Tensor] = {}  # [R, d_model] at MLPs; under the number of layers, at the logits
        self._biases = {
            index: [self._bias(layer, projection.map.module) for projection in layer.projections]
            for index, layer in enumerate(parts.layers)
            if index >= attention_from
        }

    def _bias(self, layer: Layer, projection: torch.nn.Module) -> torch.Tensor | float:
        """The part of a projection's output that does not come from its input: [n * D]."""
        norm_bias = None if layer.attention_norm is None else layer.attention_norm.bias
        if norm_bias is None:
            bias = getattr(projection, "bias", None)
            return 0.0 if bias is None else working(bias.detach())
        with torch.no_grad():
            return working(projection(norm_bias[None])[0])

    def add(self, loss: torch.Tensor, reads: Reads, weight: float) -> None:
        """Differentiate ``loss`` and add ``weight`` times its gradients; empties ``reads``."""
        tensors = [output for outputs in reads.projected.values() for output in outputs]
        gradients = iter(torch.autograd.grad(loss, [*tensors, *reads.mlp_inputs.values(), reads.final[0]]))
        for index, outputs in reads.projected.items():
            self._add_attention(index, reads, [(output.detach(), next(gradients)) for output in outputs], weight)
        for index in (*reads.mlp_inputs, len(self.parts.layers)):
            gradient = weight * working(self.rows(next(gradients)))
            self._whole[index] = self._whole[index] + gradient if index in self._whole else gradient
        reads.clear()

    def _add_attention(
        self, index: int, reads: Reads, pairs: list[tuple[torch.Tensor, torch.Tensor]], weight: float
    ) -> None:
        norm, size = self.parts.layers[index].attention_norm, self.parts.head_size
        sums, radial = [], []
        x, scale = None, None
        if norm is not None:
            x = working(self.rows(reads.norm_inputs[index]))
            scale = norm.scale(x)  # [R, 1]
        for (output, gradient), bias in zip(pairs, self._biases[index], strict=True):
            g = weight * working(self.rows(gradient))  # [R, n * D]
            if scale is not None:
                inner = ((working(self.rows(output)) - bias) * g).unflatten(-1, (-1, size)).sum(dim=-1)
                radial.append(inner / (self.parts.hidden * scale.square()))
                g = g / scale
            sums.append(g.unflatten(-1, (-1, size)))
        if index in self._scaled:
            for total, g in zip(self._scaled[index], sums, strict=True):
                total += g
        else:
            self._scaled[index] = sums
        if x is not None:
            self._radial.setdefault(index, []).append(torch.cat(radial, dim=-1))
            self._inputs.setdefault(index, []).append(x)

    def columns(self, graph: Graph, index: int) -> list[int]:
        """The graph's columns in the order of :meth:`of_layer`."""
        if index == len(self.parts.layers):
            return [graph.logits]
        found = []
        if index >= self.attention_from:
            for projection in self.parts.layers[index].projections:
                found += [graph.attention_input(index, kind, head) for kind, head in projection.outputs]
        return [*found, graph.mlp_input(index)] if index >= self.mlp_from else found

    def of_layer(self, index: int, chunk: slice) -> torch.Tensor:
        """The gradients at some rows, [V of the layer, rows, d_model]; for attention without the radial part.

        The layer after the last one stands for the logits.
        """
        blocks = []
        if index in self._scaled:
            layer = self.parts.layers[index]
            for projection, g in zip(layer.projections, self._scaled[index], strict=True):
                matrix = projection.map.matrix.unflatten(0, (-1, self.parts.head_size)).to(g)  # [n, D, d_model]
                blocks.append(torch.bmm(g[chunk].transpose(0, 1), matrix))
                if layer.attention_norm is not None:
                    blocks[-1] *= layer.attention_norm.weight.to(g)
        if index in self._whole:
            blocks.append(self._whole[index][chunk][None])
        return torch.cat(blocks)

    def radial_of_layer(self, index: int, chunk: slice) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(scalars [rows, K, N], inputs [rows, K, d_model]) of the attention's norm, or None without one."""
        if index not in self._radial:
            return None
        scalars = torch.stack([run[chunk] for run in self._radial[index]], dim=1)
        return scalars, torch.stack([run[chunk] for run in self._inputs[index]], dim=1)
