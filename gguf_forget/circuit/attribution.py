"""From a model and pairs to a circuit of MLP neurons: score, discount, select; stability comes with it.

Both splits are scored in two halves that share no fact. Scores are means over pairs, so the halves together are the
whole at no further cost, and the circuits that each half alone would give show how much is chance.

Shapes: L layers, d_ff neurons a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gguf_forget.circuit.neurons import NeuronScores, score_neurons
from gguf_forget.circuit.selection import Circuit, discounted_scores, select_neurons
from gguf_forget.circuit.stability import Stability, halves, stability
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair


@dataclass(frozen=True)
class Selection:
    """How scores become a circuit: see :func:`select_neurons` and :func:`discounted_scores`.

    ``neurons``, when given, takes the place of ``budget`` (share of all neurons).
    """

    budget: float = 0.03
    neurons: int | None = None
    layer_cap: float = 1.0
    retain_discount: float = 1.0
    signed: bool = False

    def ranking(self, forget: np.ndarray, retain: np.ndarray | None) -> np.ndarray:
        """What neurons are chosen by, [L, d_ff]."""
        nothing = np.zeros_like(forget)
        kept = nothing if retain is None else retain
        return discounted_scores(forget, kept, self.retain_discount, signed=self.signed)

    def circuit(self, ranking: np.ndarray) -> Circuit:
        if self.neurons is not None:
            return select_neurons(ranking, neurons=self.neurons, layer_cap=self.layer_cap)
        return select_neurons(ranking, budget=self.budget, layer_cap=self.layer_cap)


@dataclass(frozen=True)
class Attribution:
    """``circuit`` and the ``ranking`` [L, d_ff] it was chosen by; ``retain`` is None without retain pairs.

    ``across_halves`` compares the circuits of two halves of the facts; None when a split has a single fact.
    """

    circuit: Circuit
    ranking: np.ndarray
    forget: NeuronScores
    retain: NeuronScores | None
    across_halves: Stability | None


def _together(parts: Sequence[NeuronScores]) -> NeuronScores:
    """The scores over all pairs of ``parts``: their mean, each weighed by its pairs."""
    pairs = sum(part.pairs for part in parts)

    def mean(values: Sequence[Any]) -> Any:
        return sum(value * (part.pairs / pairs) for value, part in zip(values, parts, strict=True))

    return dataclasses.replace(
        parts[0],
        scores=mean([part.scores for part in parts]),
        embedding_score=mean([part.embedding_score for part in parts]),
        metric_gap=mean([part.metric_gap for part in parts]),
        pairs=pairs,
    )


def attribute(
    model: Any,
    forget: Sequence[Pair],
    retain: Sequence[Pair] = (),
    *,
    selection: Selection | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    **scoring: Any,
) -> Attribution:
    """Score all MLP neurons on the pairs of each split, and choose the circuit.

    ``scoring`` goes to :func:`score_neurons` (``integration_steps``, ``variant``, ``batch_size``). ``seed`` decides
    the halves alone. ``progress`` is told the number of pairs done since the last call, of both splits.
    """
    if not forget:
        raise InputError("there are no pairs to attribute, needed at least one of what is to be forgotten")
    chosen = selection or Selection()

    def score(pairs: Sequence[Pair]) -> list[NeuronScores]:
        parts = [part for part in halves(pairs, seed=seed) if part]
        return [score_neurons(model, part, progress=progress, **scoring) for part in parts]

    forget_parts = score(forget)
    retain_parts = score(retain) if retain else []
    found = _together(forget_parts)
    kept = _together(retain_parts) if retain_parts else None
    ranking = chosen.ranking(_array(found), None if kept is None else _array(kept))
    across = None
    if len(forget_parts) == 2 and len(retain_parts) != 1:
        rankings = [
            chosen.ranking(_array(part), _array(retain_parts[half]) if retain_parts else None)
            for half, part in enumerate(forget_parts)
        ]
        first, second = (_array(part) for part in forget_parts)
        across = stability(first, second, (chosen.circuit(rankings[0]), chosen.circuit(rankings[1])))
    return Attribution(chosen.circuit(ranking), ranking, found, kept, across)


def _array(scores: NeuronScores) -> np.ndarray:
    return np.asarray(scores.scores.cpu().numpy(), dtype=np.float64)
