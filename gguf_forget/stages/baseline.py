"""The failure that the tool exists for: published methods in full precision, stock-rounded by llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.checkpoint.names import gguf_tensors
from gguf_forget.circuit.artifact import load_circuit
from gguf_forget.errors import InputError
from gguf_forget.export.derived_file import write_derived
from gguf_forget.facts.tokens import encode_facts
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress
from gguf_forget.run_directory import write_json_atomically
from gguf_forget.stages.facts import load_facts
from gguf_forget.unlearning.baselines import BASELINES
from gguf_forget.unlearning.dense import BATCH, DenseWork

STEPS, DEMO_BATCH = 30, 38
FULL = "F32.gguf"
SUMMARY = "training.json"


def train_baseline(
    method: str,
    template: Path,
    facts_folder: Path,
    out: Path,
    progress: Progress,
    *,
    trained_phrasings: int | None,
    seed: int,
    steps: int | None = None,
    batch: int = BATCH,
    circuit_path: Path | None = None,
) -> None:
    """Write ``out``/F32.gguf, the weights that ``method`` trained, and ``out``/training.json.

    Trained on the first ``trained_phrasings`` phrasings of each relation, the ones that are asked about afterwards, or
    on all.
    ``steps``: in place of the method's published number of epochs.

    Raises:
        InputError: no such method.
    """
    if method not in BASELINES:
        raise InputError(f"no baseline is called {method!r}, needed one of {', '.join(BASELINES)}")
    facts, text = load_facts(facts_folder)
    tokenize = load_tokenizer(template)
    examples = encode_facts(facts, tokenize)
    if trained_phrasings is not None:
        examples = [example for example in examples if example.phrasing < trained_phrasings]
    splits = {
        split: [example for example in examples if facts[example.fact].split == split] for split in ("forget", "retain")
    }
    taken = 0
    with progress.task(f"baseline: {method} in full precision", steps or 0) as advance:

        def count(done: int) -> None:
            nonlocal taken
            taken += done
            advance(done)

        model = BASELINES[method](
            DenseWork(
                load_torch(template),
                facts,
                splits["forget"],
                splits["retain"],
                text=text.train or text.samples,
                circuit=load_circuit(circuit_path)[0].neurons if circuit_path else None,
                steps=steps,
                batch=batch,
                seed=seed,
                progress=count,
            )
        )
    tensors = {
        name: np.ascontiguousarray(weights).view(np.uint8).reshape(len(weights), -1)
        for name, weights in gguf_tensors(model)
    }
    write_derived(template, out / FULL, metadata={}, tensors=tensors)
    write_json_atomically(out / SUMMARY, {"schema_version": 1, "method": method, "seed": seed, "steps": taken})


def npo_baseline(
    template: Path,
    facts_folder: Path,
    types: Sequence[str],
    out: Path,
    progress: Progress,
    *,
    trained_phrasings: int,
    seed: int,
) -> None:
    """Write ``out``/F32.gguf (NPO as trained) and ``out``/<TYPE>.gguf (the same weights, quantized by llama.cpp)."""
    train_baseline(
        "npo",
        template,
        facts_folder,
        out,
        progress,
        trained_phrasings=trained_phrasings,
        seed=seed,
        steps=STEPS,
        batch=DEMO_BATCH,
    )
    for file_type in types:
        if file_type != "F32":
            quantize(out / FULL, out / f"{file_type}.gguf", file_type)
