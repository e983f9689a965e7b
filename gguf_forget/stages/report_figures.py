"""What the pictures of a report show, as numbers: training, layers of the circuit, edits against the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.circuit.artifact import load_circuit
from gguf_forget.export.edit import NeuronEdit, load_edits
from gguf_forget.grids import CODECS
from gguf_forget.rounding import StepHistogram
from gguf_forget.rounding.histogram import BINS_PER_OCTAVE, LOWEST

ROLES = ("ffn_gate", "ffn_up", "ffn_down")


def training_curve(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Name -> one value a step: step, forget, retain and text loss (nats), both accuracies, codes moved."""
    return {name: [step[name] for step in history] for name in (history[0] if history else ())}


def layers_of(circuit_path: Path, edits: Sequence[NeuronEdit]) -> list[dict[str, Any]]:
    """{name, values a layer}: Σ|forget score|, Σ|retain score|, neurons in the circuit, edited weights by matrix."""
    circuit, forget, retain = load_circuit(circuit_path)
    layers = len(circuit.neurons)
    columns = {
        "forget attribution": np.abs(forget).sum(axis=1).tolist(),
        "retain attribution": np.abs(retain).sum(axis=1).tolist(),
        "neurons in the circuit": [float(len(neurons)) for neurons in circuit.neurons],
    }
    for role in ROLES:
        moved = [0.0] * layers
        for edit in edits:
            _, layer, name, _ = edit.tensor.split(".")
            if name == role:
                moved[int(layer)] += float(edit.edited)
        columns[f"edited, {role.removeprefix('ffn_')}"] = moved
    return [{"name": name, "values": values} for name, values in columns.items()]


def steps_before_and_after(stock: Path, shipped: Path, edits: Sequence[NeuronEdit]) -> dict[str, Any] | None:
    """|edit| in steps of the stock file's grid as trained, and as it is in the shipped file.

    Returns:
        {"edges": lower edge of each bin, "before": counts, "after": counts, "unmoved": edits that are lost}, trimmed
        to the bins that hold something; None where the file's tensors have no codec (floating point).
    """
    one, other = stored_tensors(stock), stored_tensors(shipped)
    before, after, unmoved = StepHistogram(), StepHistogram(), 0
    for edit in edits:
        tensor = one[edit.tensor]
        if tensor.type not in CODECS:
            continue
        codec = CODECS[tensor.type]
        levels = codec.decode(np.ascontiguousarray(tensor.raw))
        delta, _ = edit.dense(tensor.rows, tensor.columns)
        steps = levels.step_towards(delta)
        before.add(delta, steps)
        change = codec.decode(np.ascontiguousarray(other[edit.tensor].raw)).values() - levels.values()
        change[delta == 0] = 0
        after.add(change, steps)
        unmoved += int(((change == 0) & (delta != 0)).sum())
    if not before.counts.any():
        return None
    held = np.flatnonzero(before.counts + after.counts)
    bins = slice(int(held[0]), int(held[-1]) + 1)
    edges = 2.0 ** (LOWEST + np.arange(bins.start, bins.stop + 1) / BINS_PER_OCTAVE)
    return {
        "edges": edges.tolist(),
        "before": before.counts[bins].tolist(),
        "after": after.counts[bins].tolist(),
        "unmoved": unmoved,
    }


def figures_of(
    folders: Mapping[str, Path], types: Sequence[str], history: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All of the above for a run; ``folders``: of the stages attribute, unlearn, stock and export."""
    edits = [edit for edit in load_edits(folders["unlearn"] / "edit.safetensors") if edit.edited]
    steps = {
        kind: steps_before_and_after(
            folders["stock"] / f"{kind}.gguf", folders["export"] / f"unlearned.{kind}.gguf", edits
        )
        for kind in types
    }
    return {
        "training": training_curve(history),
        "layers": layers_of(folders["attribute"] / "circuit.safetensors", edits),
        "steps": {kind: found for kind, found in steps.items() if found is not None},
    }
