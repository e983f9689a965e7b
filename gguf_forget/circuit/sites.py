"""Where activations are put between their corrupted and clean values while gradients are taken.

Variant "inputs": the input embeddings, once for all sources. Variant "activations": the input embeddings, and
each layer's attention and MLP in turn, at the clean prompt; what a component writes is scored with the
gradients of its own runs. (The published code of arXiv 2403.17806 averages the gradients of all these runs for
every source; here, as in the paper's formula, each source has its own.)

Shapes: P pairs, T tokens, d_model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gguf_forget.checkpoint.components import Components
from gguf_forget.circuit.graph import Graph
from gguf_forget.circuit.hooks import hooked
from gguf_forget.circuit.inputs import PairBatch, metric
from gguf_forget.circuit.interpolation import Variant
from gguf_forget.circuit.sources import Outputs


@dataclass(frozen=True)
class Site:
    """Where a variant interpolates: the input embeddings, or what one layer's attention or MLP writes."""

    sources: range  # the graph's rows that are scored with these gradients
    attention_from: int  # the first layer whose attention reads what is written here
    mlp_from: int
    layer: int = 0
    kind: Literal["embedding", "attention", "mlp"] = "embedding"

    def output(self, run: Outputs) -> torch.Tensor:
        """[P, T, d_model]"""
        if self.kind == "embedding":
            return run.embedding
        return (run.attentions if self.kind == "attention" else run.mlps)[self.layer]

    def metric(self, model: Any, parts: Components, value: torch.Tensor, batch: PairBatch) -> torch.Tensor:
        """L [P] with the output replaced by ``value`` [P, T, d_model]; all else as from the clean prompt."""
        if self.kind == "embedding":
            return metric(model, value, batch)
        layer = parts.layers[self.layer]
        module = layer.attention if self.kind == "attention" else layer.mlp
        with hooked([(module, "output", lambda _output: value)]):
            return metric(model, batch.clean, batch)


def sites_of(graph: Graph, variant: Variant) -> Iterator[Site]:
    if variant == "inputs":
        yield Site(range(len(graph.sources)), 0, 0)
        return
    yield Site(range(1), 0, 0)
    for layer in range(graph.layers):
        head, mlp = graph.head(layer, 0), graph.mlp(layer)
        yield Site(range(head, mlp), layer + 1, layer + graph.parallel, layer, "attention")
        yield Site(range(mlp, mlp + 1), layer + 1, layer + 1, layer, "mlp")
