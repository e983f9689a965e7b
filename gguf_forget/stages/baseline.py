"""The failure that the tool exists for: plain NPO on all weights, stock-rounded by llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.checkpoint.names import gguf_tensors
from gguf_forget.export.derived_file import write_derived
from gguf_forget.facts.tokens import encode_facts
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress
from gguf_forget.stages.facts import load_facts
from gguf_forget.unlearning.dense import train_dense_npo

STEPS = 30
FULL = "F32.gguf"


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
    """Write ``out``/F32.gguf (NPO as trained) and ``out``/<TYPE>.gguf (the same weights, quantized by llama.cpp).

    Trained on the first ``trained_phrasings`` phrasings of each relation, the ones that are asked about afterwards.
    """
    facts, _ = load_facts(facts_folder)
    tokenize = load_tokenizer(template)
    examples = [example for example in encode_facts(facts, tokenize) if example.phrasing < trained_phrasings]
    splits = {
        split: [example for example in examples if facts[example.fact].split == split] for split in ("forget", "retain")
    }
    with progress.task("baseline: NPO on all weights", STEPS) as advance:
        model = train_dense_npo(
            load_torch(template),
            facts,
            splits["forget"],
            splits["retain"],
            steps=STEPS,
            seed=seed,
            progress=advance,
        )
    tensors = {
        name: np.ascontiguousarray(weights).view(np.uint8).reshape(len(weights), -1)
        for name, weights in gguf_tensors(model)
    }
    write_derived(template, out / FULL, metadata={}, tensors=tensors)
    del model, tensors
    for file_type in types:
        if file_type != "F32":
            quantize(out / FULL, out / f"{file_type}.gguf", file_type)
