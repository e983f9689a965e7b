"""Neuron-level edge attribution patching with integrated gradients (EAP-IG).

Hanna et al., "Have Faith in Faithfulness" (arXiv 2403.17806), sections 2 and 3, at the level of MLP neurons:
the input of the down projection is the neuron's activation ``a``.

    score_j = sum over positions of (a_j - a'_j) * mean over k of dL/da_j at e' + alpha_k (e - e')

with e, e' the clean and corrupted input embeddings, a and a' the activations of the clean and corrupted run,
alpha_k the midpoints of m equal intervals, and L the metric of :mod:`gguf_forget.circuit.inputs`. A positive
score: what the neuron computes from the clean prompt raises L.

Shapes: P pairs in a batch, T tokens, d_model, d_ff, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gguf_forget.checkpoint.architecture import GatedMlp, mlps
from gguf_forget.circuit.inputs import metric, pair_batches
from gguf_forget.facts.corruption import Pair


@dataclass(frozen=True)
class NeuronScores:
    """Signed scores, mean over pairs, float64 [L, d_ff]; completeness of the embedding path beside them.

    ``embedding_score`` tends to ``metric_gap`` = mean of L(clean) - L(corrupted) as m grows (the completeness
    of integrated gradients); their relative difference is the residual of the approximation.
    """

    scores: torch.Tensor
    embedding_score: float
    metric_gap: float
    pairs: int

    @property
    def completeness_residual(self) -> float:
        return abs(self.embedding_score - self.metric_gap) / max(abs(self.metric_gap), 1e-12)


@contextmanager
def _recorded_neurons(layers: Sequence[GatedMlp]) -> Iterator[list[torch.Tensor]]:
    """While open, a forward pass appends the input of each down projection, [P, T, d_ff], in layer order."""
    record: list[torch.Tensor] = []

    def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        record.append(inputs[0])

    handles = [layer.down.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def score_neurons(
    model: Any,
    pairs: Sequence[Pair],
    *,
    integration_steps: int = 5,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> NeuronScores:
    """EAP-IG scores of all MLP neurons over ``pairs`` (inputs-interpolated variant).

    The model's parameters must not require gradients; its hooks, mode and weights are left as found.
    ``progress`` is told the number of pairs done since the last call.
    """
    layers = mlps(model)
    total = torch.zeros(len(layers), layers[0].down.in_features, dtype=torch.float64)
    embedding_score, metric_gap = 0.0, 0.0
    with _recorded_neurons(layers) as record:
        for batch in pair_batches(model, pairs, batch_size):
            with torch.no_grad():
                record.clear()
                clean_metric = metric(model, batch.clean, batch)
                clean_neurons = list(record)
                record.clear()
                corrupted_metric = metric(model, batch.corrupted, batch)
                differences = [a - b for a, b in zip(clean_neurons, record, strict=True)]  # L x [P, T, d_ff]
            metric_gap += float((clean_metric - corrupted_metric).sum())
            change = batch.clean - batch.corrupted
            for step in range(integration_steps):
                alpha = (step + 0.5) / integration_steps
                embeddings = (batch.corrupted + alpha * change).requires_grad_(True)
                record.clear()
                gradients = torch.autograd.grad(metric(model, embeddings, batch).sum(), [embeddings, *record])
                embedding_score += float((change * gradients[0]).sum()) / integration_steps
                for layer, (difference, gradient) in enumerate(zip(differences, gradients[1:], strict=True)):
                    contribution = (difference * gradient).sum(dim=(0, 1))
                    total[layer] += contribution.double() / integration_steps
            record.clear()
            progress(len(batch.pairs))
    count = max(len(pairs), 1)
    return NeuronScores(total / count, embedding_score / count, metric_gap / count, len(pairs))
