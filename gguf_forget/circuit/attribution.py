"""From a model and pairs to a circuit of MLP neurons: score, discount, select; stability comes with it.

Both splits are scored relation by relation, and in two halves that share no fact. Scores are means over pairs, so the
parts together are the whole at no further cost, and the circuits that each half alone would give show how much is
chance.

Shapes: L layers, d_ff neurons a layer.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from gguf_forget.circuit.neurons import NeuronScores, score_neurons
from gguf_forget.circuit.selection import Circuit, discounted_scores, select_neurons
from gguf_forget.circuit.stability import Stability, halves, stability
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair

RelationScores: TypeAlias = Mapping[str, NeuronScores]


@dataclass(frozen=True)
class Selection:
    """How scores become a circuit: see :func:`select_neurons` and :func:`discounted_scores`.

    ``neurons``, when given, takes the place of ``budget`` (share of all neurons). ``text``: what plain text needs,
    float64 [L, d_ff], where it is to be discounted.
    """

    budget: float = 0.03
    neurons: int | None = None
    layer_cap: float = 1.0
    retain_discount: float = 1.0
    signed: bool = False
    text_discount: float = 0.0
    text: np.ndarray | None = None

    def ranking(self, forget: RelationScores, retain: RelationScores) -> np.ndarray:
        """What neurons are chosen by, [L, d_ff]."""
        own, kept = ([_array(scores) for scores in split.values()] for split in (forget, retain))
        return discounted_scores(
            own, kept, self.retain_discount, signed=self.signed, text=self.text, text_discount=self.text_discount
        )

    def undiscounted(self, forget: RelationScores) -> np.ndarray:
        """What they would be chosen by for what is to be forgotten alone, [L, d_ff]."""
        return discounted_scores([_array(scores) for scores in forget.values()], [], 0.0, signed=self.signed)

    def circuit(self, ranking: np.ndarray) -> Circuit:
        if self.neurons is not None:
            return select_neurons(ranking, neurons=self.neurons, layer_cap=self.layer_cap)
        return select_neurons(ranking, budget=self.budget, layer_cap=self.layer_cap)


@dataclass(frozen=True)
class Attribution:
    """``circuit`` and the ``ranking`` [L, d_ff] it was chosen by; ``retain`` is None without retain pairs.

    ``undiscounted``: the ranking by forget scores alone. ``across_halves`` compares the circuits of two halves of the
    facts; None when a split has a single fact.
    """

    circuit: Circuit
    ranking: np.ndarray
    undiscounted: np.ndarray
    forget: NeuronScores
    retain: NeuronScores | None
    across_halves: Stability | None


def score_relations(
    model: Any, pairs: Sequence[Pair], relation: Callable[[Pair], str] = lambda pair: "", **scoring: Any
) -> RelationScores:
    """The scores of each relation's pairs; ``scoring`` goes to :func:`score_neurons`."""
    own: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        own[relation(pair)].append(pair)
    return {name: score_neurons(model, own[name], **scoring) for name in sorted(own)}


def over_all(parts: Iterable[NeuronScores]) -> NeuronScores:
    """The scores over all pairs of ``parts``: their mean, each weighed by its pairs."""
    found = list(parts)
    pairs = sum(part.pairs for part in found)

    def mean(values: Sequence[Any]) -> Any:
        return sum(value * (part.pairs / pairs) for value, part in zip(values, found, strict=True))

    return dataclasses.replace(
        found[0],
        scores=mean([part.scores for part in found]),
        embedding_score=mean([part.embedding_score for part in found]),
        metric_gap=mean([part.metric_gap for part in found]),
        pairs=pairs,
    )


def _merged(parts: Sequence[RelationScores]) -> RelationScores:
    names = sorted({name for part in parts for name in part})
    return {name: over_all(part[name] for part in parts if name in part) for name in names}


def attribute(
    model: Any,
    forget: Sequence[Pair],
    retain: Sequence[Pair] = (),
    *,
    relation: Callable[[Pair], str] = lambda pair: "",
    selection: Selection | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    **scoring: Any,
) -> Attribution:
    """Score all MLP neurons on the pairs of each split, and choose the circuit.

    ``relation`` names what a pair asks about (default: all the same): every relation has an equal say in the choice,
    see :func:`discounted_scores`. ``scoring`` goes to :func:`score_neurons` (``integration_steps``, ``variant``,
    ``batch_size``). ``seed`` decides the halves alone. ``progress`` is told the number of pairs done since the last
    call, of both splits.
    """
    if not forget:
        raise InputError("there are no pairs to attribute, needed at least one of what is to be forgotten")
    chosen = selection or Selection()

    def score(pairs: Sequence[Pair]) -> list[RelationScores]:
        parts = [part for part in halves(pairs, seed=seed) if part]
        return [score_relations(model, part, relation, progress=progress, **scoring) for part in parts]

    forget_parts = score(forget)
    retain_parts = score(retain) if retain else []
    found, kept = _merged(forget_parts), _merged(retain_parts)
    ranking = chosen.ranking(found, kept)
    across = None
    if len(forget_parts) == 2 and len(retain_parts) != 1:
        kept_parts = retain_parts or [{}, {}]
        first, second = (chosen.circuit(chosen.ranking(*parts)) for parts in zip(forget_parts, kept_parts, strict=True))
        scores = [_array(over_all(part.values())) for part in forget_parts]
        across = stability(scores[0], scores[1], (first, second))
    return Attribution(
        chosen.circuit(ranking),
        ranking,
        chosen.undiscounted(found),
        over_all(found.values()),
        over_all(kept.values()) if kept else None,
        across,
    )


def _array(scores: NeuronScores) -> np.ndarray:
    return np.asarray(scores.scores.cpu().numpy(), dtype=np.float64)
