"""Neuron-level edge attribution patching with integrated gradients (EAP-IG).

Hanna et al., "Have Faith in Faithfulness" (arXiv 2403.17806), sections 2 and 3, at the level of MLP neurons:
the input of the down projection is the neuron's activation ``a``.

    score_j = sum over positions of (a_j - a'_j) * mean over k of dL/da_j

with a and a' the activations of the clean and corrupted run, and L the metric of
:mod:`gguf_forget.circuit.inputs`. Variant "inputs": the gradients are taken at the input embeddings
e' + alpha_k (e - e'), alpha_k the midpoints of m equal intervals. Variant "activations": one layer at a time, at
the clean prompt with that layer's activations at a' + alpha_k (a - a'). A positive score: what the neuron
computes from the clean prompt raises L.

Shapes: P pairs in a batch, T tokens, R rows (positions that count), d_model, d_ff, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gguf_forget.checkpoint.components import Components, components
from gguf_forget.circuit.hooks import Hook, frozen, hooked
from gguf_forget.circuit.inputs import PairBatch, metric, pair_batches
from gguf_forget.circuit.interpolation import (
    Rows,
    RowSums,
    Variant,
    between,
    check_arguments,
    midpoints,
    relative_residual,
    rows_of,
    working,
)
from gguf_forget.facts.corruption import Pair


@dataclass(frozen=True)
class NeuronScores:
    """Signed scores, mean over pairs, float64 [L, d_ff]; completeness of the embedding path beside them.

    ``embedding_score`` tends to ``metric_gap`` = mean of L(clean) - L(corrupted) as m grows (the completeness
    of integrated gradients); their relative difference is the residual of the approximation.
    ``positions`` [T, L, d_ff], when asked for: the same by position, prompts aligned at their ends (T - 1 is the
    last token of every prompt); it sums to ``scores``.
    """

    scores: torch.Tensor
    embedding_score: float
    metric_gap: float
    pairs: int
    positions: torch.Tensor | None = None

    @property
    def absolute(self) -> torch.Tensor:
        return self.scores.abs()

    @property
    def completeness_residual(self) -> float:
        return relative_residual(self.embedding_score, self.metric_gap)


@contextmanager
def recorded_neurons(parts: Components) -> Iterator[list[torch.Tensor]]:
    """While open, a forward pass appends the input of each down projection, [P, T, d_ff], in layer order."""
    record: list[torch.Tensor] = []
    hooks: list[Hook] = [(layer.down.module, "input", record.append) for layer in parts.layers]
    with hooked(hooks):
        yield record


def _instead(value: torch.Tensor, _found: torch.Tensor) -> torch.Tensor:
    return value


def _run(model: Any, parts: Components, embeddings: torch.Tensor, batch: PairBatch) -> tuple[float, list[torch.Tensor]]:
    """Sum of L over the batch, and every layer's neurons [P, T, d_ff]. No gradients."""
    with recorded_neurons(parts) as record, torch.no_grad():
        return float(metric(model, embeddings, batch).double().sum()), record


class _Scorer:
    """Adds up scores batch by batch; ``embedding_score`` and ``metric_gap`` are sums over pairs."""

    def __init__(self, model: Any, parts: Components, integration_steps: int, sums: RowSums) -> None:
        self.model, self.parts, self.steps, self.sums = model, parts, integration_steps, sums
        self.embedding_score = self.metric_gap = 0.0

    def add(self, batch: PairBatch, rows: Rows, variant: Variant) -> None:
        clean_metric, clean = _run(self.model, self.parts, batch.clean, batch)
        corrupted_metric, corrupted = _run(self.model, self.parts, batch.corrupted, batch)
        self.metric_gap += clean_metric - corrupted_metric
        if variant == "inputs":
            differences = [working(rows(a)) - working(rows(b)) for a, b in zip(clean, corrupted, strict=True)]
            clean.clear()
            corrupted.clear()
            self._between_embeddings(batch, rows, differences)
        else:
            self._between_embeddings(batch, rows, [])
            for layer, ends in enumerate(zip(corrupted, clean, strict=True)):
                self._between_activations(batch, rows, layer, *ends)

    def _between_embeddings(self, batch: PairBatch, rows: Rows, differences: list[torch.Tensor]) -> None:
        """The embedding's score, and those of the layers whose ``differences`` are given, [R, d_ff] each."""
        change = working(batch.clean) - working(batch.corrupted)
        for alpha in midpoints(self.steps):
            for index, found in enumerate(self._gradients(batch, alpha, len(differences))):
                if index == 0:
                    self.embedding_score += float((change * found).double().sum()) / self.steps
                else:
                    self.sums.add(index - 1, differences[index - 1] * working(rows(found)) / self.steps, rows)

    def _gradients(self, batch: PairBatch, alpha: float, layers: int) -> tuple[torch.Tensor, ...]:
        """At the input embeddings [P, T, d_model], and at the neurons of the first ``layers`` layers [P, T, d_ff]."""
        embeddings = between(batch.corrupted, batch.clean, alpha)
        with recorded_neurons(self.parts) as record:
            loss = metric(self.model, embeddings, batch).sum()
        return torch.autograd.grad(loss, [embeddings, *record[:layers]])

    def _between_activations(
        self, batch: PairBatch, rows: Rows, layer: int, corrupted: torch.Tensor, clean: torch.Tensor
    ) -> None:
        difference = working(rows(clean)) - working(rows(corrupted))
        down = self.parts.layers[layer].down.module
        for alpha in midpoints(self.steps):
            value = between(corrupted, clean, alpha)
            replacement: Hook = (down, "input", partial(_instead, value))
            with hooked([replacement]):
                loss = metric(self.model, batch.clean, batch).sum()
            (found,) = torch.autograd.grad(loss, [value])
            self.sums.add(layer, difference * working(rows(found)) / self.steps, rows)


def score_neurons(
    model: Any,
    pairs: Sequence[Pair],
    *,
    integration_steps: int = 5,
    variant: Variant = "inputs",
    batch_size: int = 32,
    per_position: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> NeuronScores:
    """EAP-IG scores of all MLP neurons over ``pairs``. The model is left as found.

    Arguments and errors as for :func:`gguf_forget.circuit.edges.score_edges`.
    """
    check_arguments(pairs, integration_steps, variant, batch_size)
    parts = components(model)
    longest = max(len(pair.clean) for pair in pairs)
    sums = RowSums((len(parts.layers), parts.neurons), longest, per_position=per_position)
    scorer = _Scorer(model, parts, integration_steps, sums)
    with frozen(model):
        for batch in pair_batches(model, pairs, batch_size):
            scorer.add(batch, rows_of(batch, longest), variant)
            progress(len(batch.pairs))
    count = len(pairs)
    scores, positions = sums.mean(count)
    return NeuronScores(scores, scorer.embedding_score / count, scorer.metric_gap / count, count, positions)
