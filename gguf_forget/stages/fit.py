"""Codes of a rounded file, fitted to the answers of the two models that it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.errors import InputError
from gguf_forget.export.calibrated import one_file, operations_per_second, text_sequences
from gguf_forget.export.inputs import Pair
from gguf_forget.export.patch import RoundingOptions, edit_of, is_edited
from gguf_forget.export.scratch import scratch_directory
from gguf_forget.facts.schema import Fact, join_facts, read_facts
from gguf_forget.facts.text import builtin_documents, chunks
from gguf_forget.facts.tokens import Example, encode_facts
from gguf_forget.grids import CODECS
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress
from gguf_forget.rounding import find_edits

if TYPE_CHECKING:
    from gguf_forget.facts.tokens import Tokenize
    from gguf_forget.fitting.fit import FittedTensor
    from gguf_forget.fitting.objective import Losses

STEPS = 40
SEED, JUDGE_SEED, JUDGED = 0, 1, 4  # of the batches that are fitted to; of those that judge it, and how many
TEXT_CHUNKS, TEXT_TOKENS = 64, 128
BYTES_A_WEIGHT, BYTES = 45, 1 << 30  # in memory: both models, gradients and their means, codes, grids, errors; else


@dataclass(frozen=True)
class FitData:
    """examples: every phrasing to train on of ``facts``, some of them to forget. text: chunks of tokens."""

    facts: tuple[Fact, ...]
    examples: list[Example]
    text: list[list[int]]

    def forgotten(self) -> list[Example]:
        return [example for example in self.examples if self.facts[example.fact].split == "forget"]


def read_fit_data(files: Sequence[Path], tokenize: Tokenize) -> FitData:
    """Facts (``.jsonl``) and plain text; without text, half of Python's documentation stands for it.

    Raises InputError for files that cannot be read, or that hold no fact to forget with a prompt to train on.
    """
    sets = [read_facts(file, needed=(), free_text=True) for file in files if file.suffix.lower() == ".jsonl"]
    facts = join_facts(sets)
    examples = encode_facts(facts, tokenize)
    if not any(facts[example.fact].split == "forget" for example in examples):
        raise InputError(
            f"--fit: {', '.join(map(str, files))} hold no fact to forget that has a prompt",
            hint='give facts as JSONL, those that were forgotten with "split": "forget"',
        )
    text: list[list[int]] = []
    for file in files:
        if file.suffix.lower() != ".jsonl":
            text += [chunk[:TEXT_TOKENS] for chunk in text_sequences(file, tokenize)]
    if not text:
        text = chunks(builtin_documents("train"), tokenize, length=TEXT_TOKENS, count=TEXT_CHUNKS, seed=SEED)
    return FitData(facts, examples, text)


def plan_fit(original: Path, data: FitData, steps: int) -> dict[str, Any]:
    """What fitting takes: bytes of memory and of disk, seconds for each type; ``original``: only its sizes are read."""
    from gguf_forget.checkpoint.open import outline
    from gguf_forget.fitting.objective import FORGET, RETAIN, TEXT

    weights = sum(parameter.numel() for parameter in outline(original).parameters())
    mean = sum(len(example.tokens) for example in data.examples) / len(data.examples)
    tokens = (FORGET + RETAIN) * mean + TEXT * len(data.text[0])
    forgotten = len(data.forgotten())
    return {
        "steps": steps,
        "forget": forgotten,
        "retain": len(data.examples) - forgotten,
        "memory": BYTES_A_WEIGHT * weights + BYTES,
        "disk": 4 * weights,
        "seconds": round((steps + JUDGED) * 10 * tokens * weights / operations_per_second()),
    }


@contextmanager
def fitter(
    pair: Pair,
    original: Path,
    unlearned: Path,
    data: FitData,
    options: RoundingOptions,
    work: Path,
    progress: Progress,
    *,
    steps: int,
    threads: int,
) -> Iterator[_Fitter]:
    """A :data:`gguf_forget.export.quantize.Fitter`, while open; original, unlearned: as the user gave them."""
    from gguf_forget.checkpoint.open import open_model
    from gguf_forget.fitting.objective import answers_of

    with scratch_directory(work) as scratch:
        with progress.task("what the unlearned model answers", 1) as advance:
            targets = answers_of(open_model(one_file(unlearned, scratch)), data.forgotten())
            advance(1)
        (scratch / "whole.gguf").unlink(missing_ok=True)
        yield _Fitter(pair, open_model(one_file(original, scratch)), targets, data, options, progress, steps, threads)


@dataclass
class _Fitter:
    pair: Pair
    original: Any
    targets: Any
    data: FitData
    options: RoundingOptions
    progress: Progress
    steps: int
    threads: int

    def __call__(self, file: Path, file_type: str) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
        from gguf_forget.checkpoint.load import load_torch
        from gguf_forget.fitting.fit import codes_of, fit, mean_losses

        restored = file.with_name(f"{file.name}.F32")
        quantize(file, restored, "F32", allow_requantize=True, durable=False)
        model = load_torch(restored)
        restored.unlink()
        tensors, without = self._tensors(file, model)
        start = {tensor.name: tensor.codes.codes.copy() for tensor in tensors}
        judges = list(islice(self._batches(JUDGE_SEED), JUDGED))
        before = mean_losses(model, judges)
        with self.progress.task(f"{file_type}: fitting to answers", self.steps) as advance:
            fit(
                model,
                tensors,
                self._batches(SEED),
                steps=self.steps,
                threads=self.threads,
                progress=lambda losses: advance(1, _remark(losses)),
            )
        after = mean_losses(model, judges)
        better = after.total() < before.total()
        chosen = codes_of(tensors) if better else {}
        document = {
            "steps": self.steps,
            "better": better,
            "moved": sum(int((codes != start[name]).sum()) for name, codes in chosen.items()),
            "without": without,
            "before": before.to_json(),
            "after": after.to_json(),
        }
        self.progress.note(f"{file_type}: on {JUDGED} other batches, {_remark(before)} before, {_remark(after)} after")
        return chosen, document

    def _batches(self, seed: int) -> Any:
        from gguf_forget.fitting.objective import batches

        return batches(self.original, self.data.facts, self.data.examples, self.targets, self.data.text, seed=seed)

    def _tensors(self, file: Path, model: Any) -> tuple[list[FittedTensor], list[str]]:
        """The edited linear maps of the layers, on a grid, and the names of edited tensors that are none."""
        from gguf_forget.checkpoint.architecture import attributable
        from gguf_forget.export.layerwise import module_names
        from gguf_forget.fitting.fit import FittedTensor
        from gguf_forget.fitting.flips import MovableCodes
        from gguf_forget.fitting.layout import layout_of

        paths = module_names(model, GgufFile(file).text("general.architecture"))
        head = attributable(model.config).head
        heads = (model.config.num_attention_heads, getattr(model.config, "num_key_value_heads", None) or 0)
        found, without = [], []
        for name, stored in stored_tensors(file).items():
            before, after = self.pair.before[name], self.pair.after[name]
            if before.rows == 1 or not is_edited(before, after, self.options.noise):
                continue
            path, codec = paths.get(name), CODECS.get(stored.type)
            if path is None or path == head or codec is None or stored.matrices > 1:
                without.append(name)
                continue
            module = model.get_submodule(path)
            levels = codec.decode(np.array(stored.raw))
            module.weight.data = module.weight.data.contiguous()
            layout = layout_of(levels.values(), module.weight.numpy(), heads)
            if layout is None:
                without.append(name)
                continue
            edit = edit_of(before, after, 0, before.rows, self.options.noise)
            index = np.flatnonzero(edit != 0)
            edits = find_edits(levels.at(index), edit.ravel()[index], survive=self.options.survive)
            bound = np.zeros(edit.shape, dtype=np.int8)
            bound.ravel()[index[edits.asked]] = np.sign(edit.ravel()[index[edits.asked]])
            codes = MovableCodes(levels, after.weights(0, after.rows), edit != 0, bound)
            found.append(FittedTensor(name, module, layout, codes))
        if not found:
            raise InputError(
                "--fit: no edited tensor of this file is a linear map on a grid",
                hint="leave --fit out, or choose a quantized type",
            )
        return found, without


def _remark(losses: Losses) -> str:
    return f"forget {losses.gap:+.2f} nats, retain {losses.retain:.3f}, text {losses.text:.3f}"
