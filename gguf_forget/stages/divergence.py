"""Circuit attribution divergence of two models: the same pairs attributed in both, and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.components import components
from gguf_forget.checkpoint.open import open_model, open_tokenizer, outline
from gguf_forget.circuit.artifact import load_circuit, plain
from gguf_forget.circuit.attribution import RelationScores, over_all, score_relations
from gguf_forget.circuit.divergence import Divergence, divergence
from gguf_forget.circuit.selection import Circuit, random_circuit
from gguf_forget.errors import InputError
from gguf_forget.facts.schema import SPLITS, read_facts
from gguf_forget.progress import Progress
from gguf_forget.recipe import AttributeSection
from gguf_forget.stages.attribute import CIRCUIT, PairedFacts, check_budget, pair_facts, scoring_of, selection_of

CONTROLS = 3


def _paired(original: Path, unlearned: Path, facts: Path, section: AttributeSection) -> PairedFacts:
    """Pairs in the original's tokens; :class:`InputError` when the other model reads them as other tokens."""
    read = read_facts(facts, free_text=True)
    first, second = (
        pair_facts(
            read, open_tokenizer(path), pairs=section.pairs, seed=section.seed, mean_embedding=section.mean_embedding
        )
        for path in (original, unlearned)
    )
    if first.built != second.built:
        raise InputError(
            f"{original} and {unlearned} tokenize the facts differently, needed one tokenizer",
            hint="compare a model with an edited copy of itself",
        )
    return first


def plan(
    original: Path, unlearned: Path, facts: Path, section: AttributeSection, circuit: Path | None
) -> dict[str, Any]:
    """What :func:`compare` would do; no weight is read."""
    paired = _paired(original, unlearned, facts, section)
    shape = _same_shape(original, unlearned)
    given = _circuit_of(circuit, shape) if circuit else None
    return {
        "schema_version": 1,
        "layers": shape[0],
        "neurons": shape[0] * shape[1],
        "neurons_wanted": given.size if given else check_budget(outline(original), section),
        "pairs": {split: paired.built[split].counts() for split in SPLITS},
        "attribute": asdict(section),
    }


def _same_shape(original: Path, unlearned: Path) -> tuple[int, int]:
    """Layers and neurons a layer, which must be equal in both."""
    shapes = []
    for path in (original, unlearned):
        parts = components(outline(path))
        shapes.append((len(parts.layers), parts.neurons))
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{original} has {shapes[0][0]} layers of {shapes[0][1]} neurons, {unlearned} {shapes[1][0]} of "
            f"{shapes[1][1]}, needed equal shapes",
            hint="compare a model with an edited copy of itself",
        )
    return shapes[0]


def _circuit_of(folder: Path, shape: tuple[int, int]) -> Circuit:
    circuit = load_circuit(folder / CIRCUIT)[0]
    own = len(circuit.neurons), circuit.width
    if own != shape:
        raise InputError(
            f"the circuit in {folder} has {own[0]} layers of {own[1]} neurons, the models {shape[0]} of {shape[1]}",
            hint="give the circuit of this model, or leave --circuit out",
        )
    return circuit


def compare(
    original: Path,
    unlearned: Path,
    facts: Path,
    section: AttributeSection,
    circuit_folder: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Divergence of each split over all neurons, in the circuit, and in random controls of its layer profile.

    Without ``circuit_folder`` the circuit is chosen from the original's scores. One model is in memory at a time.
    """
    shape = _same_shape(original, unlearned)
    paired = _paired(original, unlearned, facts, section)
    given = _circuit_of(circuit_folder, shape) if circuit_folder is not None else None
    if given is None:
        check_budget(outline(original), section)
    scored = {
        "before": _scores(original, paired, section, progress),
        "after": _scores(unlearned, paired, section, progress),
    }
    together = {
        when: {split: over_all(relations.values()) for split, relations in found.items()}
        for when, found in scored.items()
    }
    arrays = {when: {split: s.scores.cpu().numpy() for split, s in found.items()} for when, found in together.items()}
    model = open_model(original) if section.text_discount else None
    selection = selection_of(section, model, paired.tokenize, progress)
    circuit = given or selection.circuit(selection.ranking(*(scored["before"][split] for split in SPLITS)))
    controls = [random_circuit(circuit, seed=section.seed + index) for index in range(CONTROLS)]
    rows = []
    for split in SPLITS:
        pair = arrays["before"][split], arrays["after"][split]
        parts: dict[str, Sequence[Circuit | None]] = {
            "all neurons": [None],
            "circuit": [circuit],
            "random control": controls,
        }
        for name, chosen in parts.items():
            found = [divergence(*pair, each) for each in chosen]
            rows.append({"split": split, "of": name, "drawn": len(chosen), **_mean(found)})
    document: dict[str, Any] = plain(
        {
            "schema_version": 1,
            "original": original.name,
            "unlearned": unlearned.name,
            "circuit_neurons": circuit.size,
            "pairs": {split: len(paired.pairs(split)) for split in SPLITS},
            "metric_gap": {
                split: {when: together[when][split].metric_gap for when in ("before", "after")} for split in SPLITS
            },
            "divergence": rows,
        }
    )
    return document


def _mean(found: list[Divergence]) -> dict[str, float | int]:
    def mean(name: str) -> float:
        values = [getattr(each, name) for each in found]
        return float(np.mean(values)) if all(map(math.isfinite, values)) else math.nan

    return {name: mean(name) for name in ("l1", "one_minus_cosine", "mass_ratio")} | {"neurons": found[0].neurons}


def _scores(
    path: Path, paired: PairedFacts, section: AttributeSection, progress: Progress
) -> dict[str, RelationScores]:
    model = open_model(path)
    found = {}
    with progress.task(f"EAP-IG on {path.name}", sum(len(paired.pairs(split)) for split in SPLITS)) as advance:
        for split in SPLITS:
            pairs = paired.pairs(split)
            found[split] = score_relations(model, pairs, paired.relation, progress=advance, **scoring_of(section))
    return found
