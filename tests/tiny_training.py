"""A training of the tiny model: its inputs, its options, and a progress that remembers or interrupts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny import build_tiny_gguf
from tiny_knowledge import river_facts

from gguf_forget.circuit.artifact import save_circuit
from gguf_forget.circuit.selection import Circuit
from gguf_forget.facts.schema import dump_facts
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress
from gguf_forget.recipe import UnlearnSection
from gguf_forget.stages.unlearn import unlearn

OPTIONS = UnlearnSection(
    grid="Q4_0",
    steps=5,
    batch_forget=4,
    batch_retain=4,
    fisher_examples=2,
    keep_every=2,
    learning_rate=0.5,
    objective="npo",
)


Inputs = tuple[Path, list[Path], Path, Path]


class Notes(Progress):
    """Remembers notes; ends the run after so many steps of training."""

    def __init__(self, steps: int = 10**9) -> None:
        self.notes: list[str] = []
        self.remarks: list[str] = []
        self.done: Counter[str] = Counter()
        self.steps = steps

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        left = self.steps if label.startswith("training") else 10**9

        def advance(done: int = 1, remark: str = "") -> None:
            nonlocal left
            self.remarks += [remark] if remark else []
            left -= done
            self.done[label] += done
            if left <= 0:
                raise KeyboardInterrupt

        yield advance


def training_inputs(folder: Path) -> Inputs:
    """Template, stock files, folder of facts and circuit."""
    facts = river_facts()
    texts = [f"{prompt} {fact.answer}." for fact in facts for prompt in fact.prompts]
    template = build_tiny_gguf(folder / "template.gguf", hidden=64, feed_forward=128, texts=texts)
    quantize(template, folder / "Q4_0.gguf", "Q4_0")
    (folder / "facts.jsonl").write_bytes(dump_facts(facts))
    text = [[30 + (7 * i + 3 * k) % 200 for k in range(16)] for i in range(4)]
    (folder / "text.json").write_text(json.dumps({"train": text, "samples": text[:1], "measure": text}))
    circuit = Circuit((np.arange(0, 128, 8), np.arange(1, 128, 8)), 128)
    scores = np.zeros((2, 128))
    save_circuit(folder / "circuit.safetensors", circuit, scores, scores)
    return template, [folder / "Q4_0.gguf"], folder, folder / "circuit.safetensors"


def run(inputs: Inputs, out: Path, progress: Progress, **changes: Any) -> None:
    out.mkdir(parents=True)
    unlearn(*inputs, replace(OPTIONS, **changes), out, progress)
