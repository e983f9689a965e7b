"""Node-level attribution: the embedding, attention heads and MLPs (EAP-IG, Hanna et al., arXiv 2403.17806).

    score(u) = sum over positions of (z_u - z'_u) * mean over k of dL/dz_u

with z, z' what the component writes to the residual stream in the clean and in the corrupted run, that is, the
sum of its edges' scores. Variants as in :mod:`gguf_forget.circuit.sites`.

Shapes: P pairs, T tokens, R rows (positions that count), d_model, L layers, H heads, U nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gguf_forget.checkpoint.components import Components, components
from gguf_forget.circuit.graph import Graph, graph_of
from gguf_forget.circuit.hooks import Hook, frozen, hooked
from gguf_forget.circuit.interpolation import (
    RowSums,
    Variant,
    between,
    check_arguments,
    midpoints,
    relative_residual,
    working,
)
from gguf_forget.circuit.sites import Site, sites_of
from gguf_forget.circuit.sources import BothRuns, both_runs
from gguf_forget.facts.corruption import Pair


@dataclass(frozen=True)
class NodeScores:
    """Signed scores, mean over pairs, float64 [U], in the order of ``graph.sources``.

    ``positions`` [T, U], when asked for: the same by position, prompts aligned at their ends (T - 1 is the last
    token of every prompt); it sums to ``scores``. The embedding's score tends to ``metric_gap`` as m grows.
    """

    graph: Graph
    scores: torch.Tensor
    metric_gap: float
    pairs: int
    positions: torch.Tensor | None = None

    @property
    def absolute(self) -> torch.Tensor:
        return self.scores.abs()

    @property
    def embedding_score(self) -> float:
        return float(self.scores[0])

    @property
    def heads(self) -> torch.Tensor:
        """[L, H]"""
        return self.scores[1:].unflatten(0, (self.graph.layers, self.graph.heads + 1))[:, :-1]

    @property
    def mlps(self) -> torch.Tensor:
        """[L]"""
        return self.scores[1:].unflatten(0, (self.graph.layers, self.graph.heads + 1))[:, -1]

    @property
    def completeness_residual(self) -> float:
        return relative_residual(self.embedding_score, self.metric_gap)


@contextmanager
def _recorded_writes(parts: Components) -> Iterator[list[torch.Tensor]]:
    """While open, a forward pass appends what attention and MLP of every layer write, [P, T, d_model] each."""
    record: list[torch.Tensor] = []
    hooks: list[Hook] = []
    for layer in parts.layers:
        hooks += [(layer.attention, "output", record.append), (layer.mlp, "output", record.append)]
    with hooked(hooks):
        yield record


def _mean_gradients(
    model: Any, parts: Components, site: Site, runs: BothRuns, integration_steps: int
) -> list[torch.Tensor]:
    """[R, d_model] of the output that the site replaces; for the input embeddings, of every component's after it."""
    ends = (site.output(runs.corrupted), site.output(runs.clean))
    everything = len(site.sources) > 1 and site.kind == "embedding"
    total: list[torch.Tensor] = []
    for alpha in midpoints(integration_steps):
        value = between(*ends, alpha)
        with _recorded_writes(parts) as record:
            loss = site.metric(model, parts, value, runs.batch).sum()
        targets = [value, *record] if everything else [value]
        found = [working(runs.rows(g)) / integration_steps for g in torch.autograd.grad(loss, targets)]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total


def _add_heads(parts: Components, graph: Graph, layer: int, runs: BothRuns, g: torch.Tensor, sums: RowSums) -> None:
    """``g`` [R, d_model] meets the heads' differences before the output projection."""
    found = parts.layers[layer]
    if found.attention_post_norm is not None:
        g = g * found.attention_post_norm.weight.to(g)
    products = (g @ found.attention_output.matrix.to(g)) * runs.differences.heads[layer]  # [R, H * D]
    by_head = products.unflatten(-1, (parts.heads, parts.head_size)).sum(dim=-1)
    sums.add(slice(graph.head(layer, 0), graph.mlp(layer)), by_head, runs.rows)


def _add_site(
    parts: Components, graph: Graph, site: Site, runs: BothRuns, gradients: list[torch.Tensor], sums: RowSums
) -> None:
    differences = runs.differences
    if site.kind == "embedding":
        sums.add(0, (differences.embedding * gradients[0]).sum(dim=-1), runs.rows)
        for layer, (attention, mlp) in enumerate(zip(gradients[1::2], gradients[2::2], strict=True)):
            _add_heads(parts, graph, layer, runs, attention, sums)
            sums.add(graph.mlp(layer), (differences.mlps[layer] * mlp).sum(dim=-1), runs.rows)
    elif site.kind == "attention":
        _add_heads(parts, graph, site.layer, runs, gradients[0], sums)
    else:
        sums.add(graph.mlp(site.layer), (differences.mlps[site.layer] * gradients[0]).sum(dim=-1), runs.rows)


def score_nodes(
    model: Any,
    pairs: Sequence[Pair],
    *,
    integration_steps: int = 5,
    variant: Variant = "inputs",
    batch_size: int = 8,
    per_position: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> NodeScores:
    """EAP-IG scores of the embedding, all heads and all MLPs over ``pairs``. The model is left as found.

    Arguments and errors as for :func:`gguf_forget.circuit.edges.score_edges`.
    """
    check_arguments(pairs, integration_steps, variant, batch_size)
    parts = components(model)
    graph = graph_of(parts)
    longest = max(len(pair.clean) for pair in pairs)
    sums = RowSums((len(graph.sources),), longest, per_position=per_position)
    metric_gap = 0.0
    with frozen(model):
        for runs in both_runs(model, parts, pairs, batch_size, variant):
            metric_gap += runs.metric_gap
            for site in sites_of(graph, variant):
                gradients = _mean_gradients(model, parts, site, runs, integration_steps)
                _add_site(parts, graph, site, runs, gradients, sums)
            progress(len(runs.batch.pairs))
    scores, positions = sums.mean(len(pairs))
    return NodeScores(graph, scores, metric_gap / len(pairs), len(pairs), positions)
