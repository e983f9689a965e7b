"""What every component writes to the residual stream, in one run and as the difference of two.

Where a norm follows the attention's output, a head's part goes through that norm's linear part in its own run:
weight * z / scale, with the scale that all heads together gave. So the parts of all sources sum to the residual
stream, apart from biases.

Shapes: P pairs, T tokens, R rows (positions that count), d_model, H heads, D head size, U sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gguf_forget.checkpoint.components import Components
from gguf_forget.circuit.graph import Graph
from gguf_forget.circuit.hooks import Hook, hooked
from gguf_forget.circuit.inputs import PairBatch, metric, pair_batches
from gguf_forget.circuit.interpolation import Rows, Variant, rows_of, working
from gguf_forget.facts.corruption import Pair


@dataclass
class Outputs:
    """One run. ``heads``: inputs of the output projections, divided by the scale of the norm that follows (if any),
    [P, T, H * D] a layer. ``attentions``, ``mlps``: what the layer adds to the residual stream, [P, T, d_model].
    """

    metric: torch.Tensor  # L, [P]
    embedding: torch.Tensor
    heads: list[torch.Tensor] = field(default_factory=list)
    attentions: list[torch.Tensor] = field(default_factory=list)
    mlps: list[torch.Tensor] = field(default_factory=list)


def run_outputs(model: Any, parts: Components, embeddings: torch.Tensor, batch: PairBatch) -> Outputs:
    """Run ``embeddings`` [P, T, d_model] and keep what every component writes. No gradients."""
    found = Outputs(torch.empty(0), embeddings)

    def scaled_by_the_norm(layer: int) -> Hook:
        norm = parts.layers[layer].attention_post_norm

        def divide(total: torch.Tensor) -> None:
            if norm is not None:
                found.heads[layer] = working(found.heads[layer]) / norm.scale(working(total))

        return parts.layers[layer].attention_output.module, "output", divide

    hooks: list[Hook] = []
    for index, layer in enumerate(parts.layers):
        hooks.append((layer.attention_output.module, "input", found.heads.append))
        hooks.append(scaled_by_the_norm(index))
        hooks.append((layer.attention, "output", found.attentions.append))
        hooks.append((layer.mlp, "output", found.mlps.append))
    with torch.no_grad(), hooked(hooks):
        found.metric = metric(model, embeddings, batch)
    return found


@dataclass(frozen=True)
class Differences:
    """Clean minus corrupted, at the rows that count. ``heads``: [R, H * D] a layer, before the output projection."""

    embedding: torch.Tensor  # [R, d_model]
    heads: list[torch.Tensor]
    mlps: list[torch.Tensor]  # [R, d_model] a layer


def differences(clean: Outputs, corrupted: Outputs, rows: Rows) -> Differences:
    def subtract(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return working(rows(a)) - working(rows(b))

    return Differences(
        subtract(clean.embedding, corrupted.embedding),
        [subtract(a, b) for a, b in zip(clean.heads, corrupted.heads, strict=True)],
        [subtract(a, b) for a, b in zip(clean.mlps, corrupted.mlps, strict=True)],
    )


@dataclass(frozen=True)
class BothRuns:
    """A batch's clean and corrupted run, and what they differ in."""

    batch: PairBatch
    rows: Rows
    clean: Outputs
    corrupted: Outputs
    differences: Differences

    @property
    def metric_gap(self) -> float:
        """Sum over the pairs of L(clean) - L(corrupted)."""
        return float((self.clean.metric - self.corrupted.metric).double().sum())


def both_runs(
    model: Any, parts: Components, pairs: Sequence[Pair], batch_size: int, variant: Variant
) -> Iterator[BothRuns]:
    """Batch by batch. What the variant's sites do not need is let go before gradients need the memory."""
    longest = max(len(pair.clean) for pair in pairs)
    for batch in pair_batches(model, pairs, batch_size):
        rows = rows_of(batch, longest)
        clean = run_outputs(model, parts, batch.clean, batch)
        corrupted = run_outputs(model, parts, batch.corrupted, batch)
        found = differences(clean, corrupted, rows)
        for run in (clean, corrupted):
            run.heads.clear()
            if variant == "inputs":
                run.attentions.clear()
                run.mlps.clear()
        yield BothRuns(batch, rows, clean, corrupted, found)


def written(parts: Components, graph: Graph, found: Differences, sources: range, chunk: slice) -> torch.Tensor:
    """z_u - z'_u of the ``sources`` (rows of the graph) in d_model at some of the rows, [U, rows, d_model]."""
    embedding = found.embedding[chunk]
    delta = embedding.new_empty(len(sources), *embedding.shape)

    def place(first: int, count: int) -> torch.Tensor | None:
        return delta[first - sources.start : first - sources.start + count] if first in sources else None

    if (target := place(0, 1)) is not None:
        target[0] = embedding
    for index, layer in enumerate(parts.layers):
        if (target := place(graph.head(index, 0), parts.heads)) is not None:
            slices = found.heads[index][chunk].unflatten(-1, (parts.heads, parts.head_size))  # [rows, H, D]
            columns = layer.attention_output.matrix.unflatten(1, (parts.heads, parts.head_size))  # [d_model, H, D]
            torch.bmm(slices.transpose(0, 1), columns.permute(1, 2, 0).to(slices), out=target)
            if layer.attention_post_norm is not None:
                target *= layer.attention_post_norm.weight.to(target)
        if (target := place(graph.mlp(index), 1)) is not None:
            target[0] = found.mlps[index][chunk]
    if parts.centred:  # every destination takes off the mean first, so that gradients have none
        delta -= delta.mean(dim=-1, keepdim=True)
    return delta
