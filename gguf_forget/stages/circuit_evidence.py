"""What speaks for a circuit, as plain JSON values: measured on pairs that the attribution did not see, if there are.

Every part is a few calls of :mod:`gguf_forget.circuit` under one progress bar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gguf_forget.circuit.attribution import Attribution, Selection, attribute
from gguf_forget.circuit.faithfulness import SHARES, curve, faithfulness, nested_circuits, shuffled_within_layers
from gguf_forget.circuit.patching import ablation_effects, mean_neurons, patching_effects, runs, sample_neurons
from gguf_forget.circuit.ranks import spearman
from gguf_forget.circuit.selection import Circuit, random_circuit, select_neurons
from gguf_forget.circuit.stability import stability
from gguf_forget.facts.corruption import Pair, build_pairs
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example, Tokenize
from gguf_forget.progress import Progress

BATCH = 32
FEWEST = 8  # unseen pairs, or seen ones are taken


@dataclass(frozen=True)
class Judges:
    """Pairs to judge a circuit on; ``unseen`` when none of them was attributed."""

    pairs: tuple[Pair, ...]
    unseen: bool


def judges(
    facts: Sequence[Fact],
    examples: Sequence[Example],
    tokenize: Tokenize,
    seen: Sequence[Pair],
    *,
    pool: Sequence[Example],
    count: int,
    seed: int,
    mean_embedding: bool = True,
) -> Judges:
    """At most ``count`` pairs from the examples whose prompts are not among ``seen``; else some of ``seen``.

    Where few are left, too: one odd fact says nothing of a circuit.
    """
    used = {pair.clean for pair in seen}
    rest = [example for example in examples if not {example.prompt, example.tokens[:-1]} & used]
    fresh = build_pairs(facts, rest, tokenize, pool=pool, seed=seed, limit=count, mean_embedding=mean_embedding).pairs
    if len(fresh) >= min(FEWEST, count, len(seen)):
        return Judges(fresh, True)
    drawn = np.random.default_rng(seed).permutation(len(seen))[:count]
    return Judges(tuple(seen[index] for index in sorted(drawn)), False)


def circuits_compared(
    found: Attribution, *, controls: int, seed: int, undiscounted: np.ndarray | None = None
) -> dict[str, list[Circuit]]:
    """The circuit, that of equal size by ``undiscounted`` [L, d_ff] (forget scores alone, no cap), random controls."""
    named = {"circuit": [found.circuit]}
    if undiscounted is not None:
        named["undiscounted"] = [select_neurons(undiscounted, neurons=found.circuit.size)]
    named["random control"] = [random_circuit(found.circuit, seed=seed + index) for index in range(controls)]
    return named


def faithfulness_and_ablation(
    model: Any,
    test: Mapping[str, Judges],
    named: Mapping[str, Sequence[Circuit]],
    progress: Progress,
    *,
    mean: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for each split and circuit: how much it does alone, and what its absence costs.

    ``mean`` adds ablation by mean activations to that by the corrupted run's. The figures of several controls are
    averaged; the standard error is the mean of theirs.
    """
    flat = [circuit for circuits in named.values() for circuit in circuits]
    kinds = ("resample", "mean") if mean else ("resample",)
    everyone = [pair for judged in test.values() for pair in judged.pairs]
    fill = mean_neurons(model, everyone, batch_size=BATCH) if mean else None
    total = sum(
        runs(len(judged.pairs), len(flat) + 1, batch_size=BATCH)
        + len(kinds) * runs(len(judged.pairs), len(flat), batch_size=BATCH)
        for judged in test.values()
    )
    faithful, ablated = [], []
    with progress.task("faithfulness and ablation of the circuit and controls", total) as advance:
        for split, judged in test.items():
            found = faithfulness(model, judged.pairs, flat, batch_size=BATCH, progress=advance)
            effects = {
                kind: ablation_effects(
                    model,
                    judged.pairs,
                    flat,
                    fill=fill if kind == "mean" else None,
                    batch_size=BATCH,
                    progress=advance,
                )
                for kind in kinds
            }
            start = 0
            for name, circuits in named.items():
                own = slice(start, start + len(circuits))
                start += len(circuits)
                common = {"split": split, "circuit": name, "drawn": len(circuits), "neurons": circuits[0].size}
                faithful.append({**common, "faithfulness": float(np.mean(found.values[own])), "pairs": found.pairs})
                for kind in kinds:
                    ablated.append({**common, "kind": kind, **_averaged([asdict(e) for e in effects[kind][own]])})
    return faithful, ablated


def _averaged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: value if value is None or isinstance(value, int) else float(np.mean([row[key] for row in rows]))
        for key, value in rows[0].items()
    }


def curves(model: Any, test: Judges, ranking: np.ndarray, progress: Progress, *, seed: int) -> dict[str, Any]:
    """The faithfulness curve by ``ranking`` [L, d_ff] and that of a control of equal layer profile at every size."""
    own = nested_circuits(ranking)
    control = nested_circuits(shuffled_within_layers(ranking, seed=seed))
    both = [*own, *control]
    with progress.task("faithfulness curve", runs(len(test.pairs), len(both) + 1, batch_size=BATCH)) as advance:
        found = faithfulness(model, test.pairs, both, batch_size=BATCH, progress=advance)
    return {
        "pairs": found.pairs,
        "metric_full": found.full,
        "metric_empty": found.empty,
        "metric_corrupted": found.corrupted,
        "circuit": asdict(curve(SHARES, own, found.values[: len(own)])),
        "random control": asdict(curve(SHARES, control, found.values[len(own) :])),
    }


def agreement_with_patching(
    model: Any, pairs: Sequence[Pair], scores: np.ndarray, progress: Progress, *, top: int, random: int, seed: int
) -> dict[str, Any]:
    """Spearman's rank correlation of the scores [L, d_ff] of ``pairs`` with the exact effects of single neurons."""
    chosen = sample_neurons(scores, top=top, random=random, seed=seed)
    neurons = np.concatenate(chosen)
    with progress.task("exact patching of single neurons", runs(len(pairs), len(neurons), batch_size=BATCH)) as advance:
        layers, width = scores.shape
        exact = patching_effects(model, pairs, neurons, (layers, width), batch_size=BATCH, progress=advance)
    approximate = scores.reshape(-1)[neurons]
    count = len(chosen[0])
    return {
        "pairs": len(pairs),
        "top": count,
        "random": len(chosen[1]),
        "spearman": spearman(approximate, exact),
        "spearman_top": spearman(approximate[:count], exact[:count]),
        "spearman_random": spearman(approximate[count:], exact[count:]),
        "same_sign_top": float((np.sign(approximate[:count]) == np.sign(exact[:count])).mean()),
    }


def across_seeds(
    model: Any,
    found: Attribution,
    forget: Sequence[Pair],
    retain: Sequence[Pair],
    relation: Callable[[Pair], str],
    selection: Selection,
    progress: Progress,
    **scoring: Any,
) -> dict[str, Any]:
    """The circuit against that of another draw of pairs."""
    with progress.task("attribution with another seed", len(forget) + len(retain)) as advance:
        other = attribute(model, forget, retain, relation=relation, selection=selection, progress=advance, **scoring)
    first, second = (each.forget.scores.cpu().numpy() for each in (found, other))
    return asdict(stability(first, second, (found.circuit, other.circuit)))
