"""Stage 5: the edit as files: bin-aware on each type's own grid, and stock-rounded beside it for comparison."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.architecture import mlps
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.export.calibration import mlp_hessians
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.edit import NeuronEdit, load_edits
from gguf_forget.export.gguf_header import Value
from gguf_forget.export.outcome import totals
from gguf_forget.export.ship import ship
from gguf_forget.facts.tokens import encode_facts
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress
from gguf_forget.run_directory import write_json_atomically
from gguf_forget.stages.facts import load_facts
from gguf_forget.whole_file import sha256_file

SUMMARY = "export.json"
CALIBRATION_PROMPTS, CALIBRATION_CHUNKS = 512, 32
FULL = "unlearned.F32.gguf"


def shipped_name(file_type: str) -> str:
    return f"unlearned.{file_type}.gguf"


def _edited_tensors(template: Path, edits: Sequence[NeuronEdit]) -> dict[str, np.ndarray]:
    file = GgufFile(template)
    result = {}
    for edit in edits:
        original = file.weights(edit.tensor)
        new = original + edit.dense(*original.shape)[0]
        result[edit.tensor] = new.view(np.uint8).reshape(len(new), -1)
    return result


def export(
    template: Path,
    stock_folder: Path,
    facts_folder: Path,
    edit_path: Path,
    types: Sequence[str],
    trained: Sequence[str],
    provenance: Mapping[str, Value],
    out: Path,
    progress: Progress,
) -> None:
    """Write ``out``/unlearned.<TYPE>.gguf for every type, ``out``/stock/<TYPE>.gguf, and ``out``/export.json.

    ``stock/<TYPE>.gguf`` is what a plain export would have shipped: the unlearned weights in full precision, quantized
    by llama.cpp. It is made for the comparison only. ``trained``: types that training saw, in the nearest code; the
    rounding errors of others are compensated.
    """
    edits = [edit for edit in load_edits(edit_path) if edit.edited]
    full = out / FULL
    write_derived(template, full, metadata={}, tensors=_edited_tensors(template, edits))
    facts, text = load_facts(facts_folder)
    model, tokenize = load_torch(full), load_tokenizer(template)
    neurons: list[np.ndarray] = [np.zeros(0, dtype=np.int64) for _ in mlps(model)]
    for edit in edits:
        layer = int(edit.tensor.split(".")[1])
        neurons[layer] = np.union1d(neurons[layer], edit.neurons)
    examples = encode_facts(facts, tokenize)
    drawn = random.Random(0).sample(examples, min(CALIBRATION_PROMPTS, len(examples)))
    sequences: list[Sequence[int]] = [example.tokens for example in drawn]
    sequences += (text.train or text.samples)[:CALIBRATION_CHUNKS]
    with progress.task("calibration of the rounding", len(sequences)) as advance:
        hessians = mlp_hessians(model, neurons, sequences, progress=advance)
    del model
    files = {}
    for file_type in types:
        destination = out / shipped_name(file_type)
        with progress.task(f"bin-aware {file_type}", len(edits)) as advance:
            outcomes = ship(
                template,
                stock_folder / f"{file_type}.gguf",
                destination,
                edits,
                hessians={} if file_type in trained else hessians,
                metadata={**provenance, "gguf_forget.type": file_type},
                advance=advance,
            )
        files[file_type] = {
            "file": destination.name,
            "bytes": destination.stat().st_size,
            "sha256": sha256_file(destination),
            "totals": totals(outcomes),
            "tensors": [outcome.to_json() for outcome in outcomes],
        }
    (out / "stock").mkdir()
    with progress.task("stock rounding of the same weights", len(types)) as advance:
        for file_type in types:
            if file_type not in ("F16", "BF16", "F32"):
                quantize(full, out / "stock" / f"{file_type}.gguf", file_type)
            advance(1, file_type)
    full.unlink()
    write_json_atomically(out / SUMMARY, {"schema_version": 1, "provenance": dict(provenance), "files": files})
