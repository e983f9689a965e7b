"""Making the files of one method and seed: ``folder``/<TYPE>.gguf for every type."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_support.noise import write_noisy

from forgetting_benchmark.methods import Method
from forgetting_benchmark.nf4 import NF4, write_nf4
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.edit import NeuronEdit, load_edits, save_edits
from gguf_forget.llama.child import run_in_child
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress
from gguf_forget.recipe import Recipe
from gguf_forget.stages.baseline import train_baseline
from gguf_forget.stages.export import export, shipped_name
from gguf_forget.stages.unlearn import EDIT, unlearn
from gguf_forget.unlearning.controls import shuffled_edit


@dataclass(frozen=True)
class Shared:
    """What all seeds and methods have in common: the stages up to the circuit, in ``run``."""

    recipe: Recipe
    run: Path
    progress: Progress

    @property
    def template(self) -> Path:
        return self.run / "load" / "template.gguf"

    @property
    def facts(self) -> Path:
        return self.run / "facts"

    @property
    def circuit(self) -> Path:
        return self.run / "attribute" / "circuit.safetensors"

    def stock(self, file_type: str) -> Path:
        return self.run / "stock" / f"{file_type}.gguf"


def make_edit(shared: Shared, changes: dict[str, Any], seed: int, out: Path) -> None:
    """Train inside the circuit: ``out``/edit.safetensors and ``out``/unlearn.json"""
    options = replace(shared.recipe.unlearn, seed=seed, **changes)
    stocks = [shared.stock(grid) for grid in options.grids]
    unlearn(shared.template, stocks, shared.facts, shared.circuit, options, out, shared.progress)


def make_files(
    shared: Shared, method: Method, seed: int, edit: Path | None, types: Sequence[str], folder: Path
) -> dict[str, float]:
    """Write the files into ``folder``; returns seconds and the share of the model's parameters that changed.

    ``edit``: the folder of :func:`make_edit`, of the method itself or, for a control, of ours.
    """
    wanted = types
    if method.kind != "noise":  # which has NF4's own noise
        types = list(dict.fromkeys("F16" if kind == NF4 else kind for kind in wanted))
    started = time.monotonic()
    if method.kind == "baseline":
        train_baseline(
            method.baseline,
            shared.template,
            shared.facts,
            folder,
            shared.progress,
            trained_phrasings=None if method.every_phrasing else shared.recipe.verify.trained_phrasings,
            seed=seed,
            circuit_path=shared.circuit,
        )
        _quantized(folder / "F32.gguf", types, folder)
        seconds, changed = time.monotonic() - started, _changed(shared.template, folder / "F32.gguf")
    else:
        assert edit is not None  # every other kind is made from one
        edits = load_edits(edit / EDIT)
        if method.kind == "shuffled":
            edits = [_shuffled(each, np.random.default_rng([seed, index])) for index, each in enumerate(edits)]
        changed = sum(each.edited for each in edits)
        if method.kind == "noise":
            _noisy(shared, edits, seed, types, folder)
        elif method.stock:
            _unlearned(shared.template, edits, folder / "F32.gguf")
            _quantized(folder / "F32.gguf", types, folder)
        else:
            options = replace(shared.recipe.unlearn, **method.changes)
            save_edits(edits, folder / EDIT)
            (folder / "export").mkdir()
            export(
                shared.template,
                shared.run / "stock",
                shared.facts,
                folder / EDIT,
                types,
                options.grids if options.floor else (),
                {},
                folder / "export",
                shared.progress,
            )
            for file_type in types:
                (folder / "export" / shipped_name(file_type)).replace(folder / f"{file_type}.gguf")
        seconds = time.monotonic() - started
    if NF4 in wanted and NF4 not in types:
        write_nf4(folder / "F16.gguf", folder / f"{NF4}.gguf")
    return {"seconds": seconds, "share_changed": changed / _parameters(shared.template)}


def _shuffled(edit: NeuronEdit, generator: np.random.Generator) -> NeuronEdit:
    return replace(edit, delta=shuffled_edit(edit.delta, edit.allowed, generator))


def _quantized(source: Path, types: Sequence[str], folder: Path) -> None:
    for file_type in types:
        if folder / f"{file_type}.gguf" != source:
            run_in_child(quantize, source, folder / f"{file_type}.gguf", file_type)


def _unlearned(template: Path, edits: Sequence[NeuronEdit], target: Path) -> None:
    """The original in full precision, with the edits added."""
    file = GgufFile(template)
    tensors = {}
    for edit in edits:
        weights = file.weights(edit.tensor)
        tensors[edit.tensor] = _bytes(weights + edit.dense(*weights.shape)[0])
    write_derived(template, target, metadata={}, tensors=tensors)


def _noisy(shared: Shared, edits: Sequence[NeuronEdit], seed: int, types: Sequence[str], folder: Path) -> None:
    """For every type the unlearned F32 weights and noise with the variance of its rounding; nothing lies on a grid."""
    full, rounded, restored = folder / "F32.gguf", folder / "rounded.gguf", folder / "restored.gguf"
    _unlearned(shared.template, edits, full)
    for file_type in types:
        generator = np.random.default_rng(seed)
        if file_type == NF4:
            write_nf4(full, restored)
        else:
            run_in_child(quantize, full, rounded, file_type)
            run_in_child(quantize, rounded, restored, "F32", allow_requantize=True)
        write_noisy(full, restored, folder / f"{file_type}.noisy", generator)
    for file_type in types:
        (folder / f"{file_type}.noisy").replace(folder / f"{file_type}.gguf")
    for path in (rounded, restored):
        path.unlink(missing_ok=True)


def _bytes(weights: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weights).view(np.uint8).reshape(len(weights), -1)


def _parameters(template: Path) -> int:
    return sum(int(np.prod(tensor.shape)) for tensor in GgufFile(template).tensors.values())


def _changed(template: Path, trained: Path) -> int:
    """Weights that differ."""
    before, after = GgufFile(template), GgufFile(trained)
    return sum(int(np.count_nonzero(before.weights(name) != after.weights(name))) for name in before.tensors)
