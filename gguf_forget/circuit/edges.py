"""Edge-level attribution: EAP-IG (Hanna et al., arXiv 2403.17806, sections 2 and 3).

    score(u -> v) = sum over positions of (z_u - z'_u) * mean over k of dL/d(input of v)

z, z' are what the source u writes to the residual stream in the clean and in the corrupted run; where the
gradients are taken depends on the variant, see :mod:`gguf_forget.circuit.sites`. A positive score: what travels
along the edge from the clean prompt raises L.

Gradients are averaged over the integration steps first; then sources and destinations meet in one matrix
product a layer, a few positions at a time, so that memory depends neither on the number of pairs nor on the
batch.

Shapes: P pairs in a batch, T tokens, R rows (positions that count), d_model, U sources, V destinations, K runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gguf_forget.checkpoint.components import Components, components
from gguf_forget.circuit.destinations import Gradients, recorded_reads
from gguf_forget.circuit.graph import Graph, graph_of
from gguf_forget.circuit.hooks import frozen
from gguf_forget.circuit.interpolation import Variant, between, check_arguments, midpoints, relative_residual
from gguf_forget.circuit.sites import Site, sites_of
from gguf_forget.circuit.sources import BothRuns, Differences, both_runs, written
from gguf_forget.facts.corruption import Pair

CHUNK_ELEMENTS = 2**23  # numbers held at once while sources and destinations meet: 32 MiB in float32
RUNS_HELD = 8  # integration steps after which gradients are used up, so that memory does not grow with them


@dataclass(frozen=True)
class EdgeScores:
    """Signed scores, mean over pairs, float64 [U, V]; zero where the graph has no edge.

    ``positions`` [T, U, V], when asked for: the same by position, prompts aligned at their ends (T - 1 is the
    last token of every prompt); it sums to ``scores``. Completeness as in :class:`NeuronScores`: the embedding's
    score as a node, the sum over its edges, tends to ``metric_gap``.
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
        return float(self.scores[0].sum())

    @property
    def completeness_residual(self) -> float:
        return relative_residual(self.embedding_score, self.metric_gap)


@dataclass(frozen=True)
class _Sums:
    """Where scores are added up: float64 [U, V], and [T, U, V] when positions are kept apart."""

    scores: torch.Tensor
    positions: torch.Tensor | None

    def add(self, rows: torch.Tensor, sources: range, columns: list[int], product: torch.Tensor) -> None:
        """``product`` [U, columns], or [rows, U, columns] with the rows' positions in ``rows``."""
        order = sorted(range(len(columns)), key=columns.__getitem__)  # a layer's columns are neighbours
        part = product[..., order].to(self.scores)
        place = (slice(sources.start, sources.stop), slice(min(columns), max(columns) + 1))
        if self.positions is None:
            self.scores[place] += part
        else:
            self.positions[(slice(None), *place)].index_add_(0, rows.to(part.device), part)


def _meet(delta: torch.Tensor, gradient: torch.Tensor, *, apart: bool) -> torch.Tensor:
    """[U, rows, d] and [V, rows, d] to [U, V], or to [rows, U, V] when the positions are kept apart."""
    if apart:
        return torch.bmm(delta.transpose(0, 1), gradient.permute(1, 2, 0))
    return delta.flatten(1) @ gradient.flatten(1).T


def _radial(delta: torch.Tensor, scalars: torch.Tensor, inputs: torch.Tensor, *, apart: bool) -> torch.Tensor:
    """The radial part: [U, rows, d], [rows, K, N], [rows, K, d] to [U, N] or [rows, U, N]."""
    along = torch.bmm(delta.transpose(0, 1), inputs.transpose(1, 2))  # [rows, U, K]
    if apart:
        return torch.bmm(along, scalars)
    return along.transpose(0, 1).flatten(1) @ scalars.flatten(0, 1)


def _add_edges(
    parts: Components, graph: Graph, found: Differences, sources: range, gradients: Gradients, sums: _Sums
) -> None:
    """Let the ``sources``' differences meet all gradients that were read."""
    apart = sums.positions is not None
    rows = gradients.rows.position
    widest = parts.heads + 2 * parts.groups + 1
    a_row = (len(sources) + widest) * parts.hidden + (2 * len(sources) * (graph.logits + 1) if apart else 0)
    step = max(1, CHUNK_ELEMENTS // a_row)
    for start in range(0, len(rows), step):
        chunk = slice(start, start + step)
        delta = written(parts, graph, found, sources, chunk)
        for index in range(min(gradients.attention_from, gradients.mlp_from), len(parts.layers) + 1):
            upstream = min(graph.before_mlp(index), sources.stop) - sources.start  # all of them for the logits
            here = range(sources.start, sources.start + upstream)
            columns = gradients.columns(graph, index)
            product = _meet(delta[:upstream], gradients.of_layer(index, chunk), apart=apart)
            radial = gradients.radial_of_layer(index, chunk)
            if radial is not None:
                product[..., : radial[0].shape[-1]] -= _radial(delta[:upstream], *radial, apart=apart)
            sums.add(rows[chunk], here, columns, product)


def score_edges(
    model: Any,
    pairs: Sequence[Pair],
    *,
    integration_steps: int = 5,
    variant: Variant = "inputs",
    batch_size: int = 8,
    per_position: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> EdgeScores:
    """EAP-IG scores of all edges over ``pairs``. The model is left as found.

    ``progress`` is told the number of pairs done since the last call. Raises :class:`UnsupportedError` for a
    model that the table of architectures does not describe, :class:`InputError` for unusable arguments.
    """
    check_arguments(pairs, integration_steps, variant, batch_size)
    parts = components(model)
    graph = graph_of(parts)
    longest = max(len(pair.clean) for pair in pairs)
    shape = graph.mask.shape
    positions = torch.zeros(longest, *shape, dtype=torch.float64) if per_position else None
    sums = _Sums(torch.zeros(shape, dtype=torch.float64), positions)
    metric_gap = 0.0
    with frozen(model):
        for runs in both_runs(model, parts, pairs, batch_size, variant):
            metric_gap += runs.metric_gap
            for site in sites_of(graph, variant):
                _score_site(model, parts, graph, site, runs, integration_steps, sums)
            progress(len(runs.batch.pairs))
    count = len(pairs)
    if positions is not None:
        positions = positions * graph.mask / count
        return EdgeScores(graph, positions.sum(dim=0), metric_gap / count, count, positions)
    return EdgeScores(graph, sums.scores * graph.mask / count, metric_gap / count, count)


def _score_site(
    model: Any, parts: Components, graph: Graph, site: Site, runs: BothRuns, integration_steps: int, sums: _Sums
) -> None:
    """Add the scores of the site's sources for one batch."""
    ends = (site.output(runs.corrupted), site.output(runs.clean))
    points = midpoints(integration_steps)
    reach = {"attention_from": site.attention_from, "mlp_from": site.mlp_from}
    for start in range(0, integration_steps, RUNS_HELD):
        gradients = Gradients(parts, runs.rows, **reach)
        with recorded_reads(parts, **reach) as reads:
            for alpha in points[start : start + RUNS_HELD]:
                loss = site.metric(model, parts, between(*ends, alpha), runs.batch).sum()
                gradients.add(loss, reads, 1 / integration_steps)
        _add_edges(parts, graph, runs.differences, site.sources, gradients, sums)
