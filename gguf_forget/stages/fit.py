"""Codes of a rounded file, fitted to the answers of the unlearned model that it was made from.

Kept facts may get the original's answers instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.export.calibrated import one_file, operations_per_second, text_sequences
from gguf_forget.export.inputs import Pair
from gguf_forget.export.patch import RoundingOptions, edit_of
from gguf_forget.export.quantize import Fitter, Planned
from gguf_forget.export.scratch import scratch_directory
from gguf_forget.facts.joining import join_facts
from gguf_forget.facts.schema import Fact, read_facts
from gguf_forget.facts.text import HALVES, builtin_documents, chunks
from gguf_forget.facts.tokens import Example, encode_facts
from gguf_forget.grids import CODECS
from gguf_forget.grids.levels import Levels
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress
from gguf_forget.rounding import find_edits

if TYPE_CHECKING:
    from gguf_forget.facts.tokens import Tokenize
    from gguf_forget.fitting.fit import FittedTensor
    from gguf_forget.fitting.objective import Losses

STEPS = {"unlearned": 40, "original": 80}  # by whose answers kept facts are to get: giving back takes longer
KEPT = tuple(STEPS)
SEED, JUDGE_SEED, JUDGED = 0, 1, 4  # of the batches that are fitted to; of those that judge it, and how many
STATES = 5  # that are judged
TOLERATED = 0.125  # of the forget term, half a square: half a nat
TEXT_CHUNKS, TEXT_TOKENS = 64, 128
BYTES_A_WEIGHT, BYTES = 45, 1 << 30  # in memory: both models, gradients and their means, codes, grids, errors; else
BYTES_OF_ORIGINAL = 4  # a weight more


@dataclass(frozen=True)
class FitOptions:
    """files: of facts and text; none fits nothing. kept: whose answers kept facts are to get, of :data:`KEPT`.
    asked_steps: 0 for as many as that takes."""

    files: Sequence[Path] = ()
    kept: str = KEPT[0]
    asked_steps: int = 0

    @property
    def steps(self) -> int:
        return self.asked_steps or STEPS[self.kept]


@dataclass(frozen=True)
class FitData:
    """examples: every phrasing to train on of ``facts``, some of them to forget. text: chunks of tokens."""

    facts: tuple[Fact, ...]
    examples: list[Example]
    text: list[list[int]]

    def forgotten(self) -> int:
        """How many examples are to forget."""
        return sum(self.facts[example.fact].split == "forget" for example in self.examples)


def read_fit_data(files: Sequence[Path], tokenize: Tokenize) -> FitData:
    """Facts (``.jsonl``) and plain text; without text, half of Python's documentation stands for it.

    Raises InputError for files that cannot be read, or that hold no fact to forget with a prompt to train on.
    """
    sets = [read_facts(file, needed=(), free_text=True) for file in files if file.suffix.lower() == ".jsonl"]
    facts = join_facts(sets).facts
    examples = encode_facts(facts, tokenize)
    if not any(facts[example.fact].split == "forget" for example in examples):
        raise InputError(
            f"--fit: {', '.join(map(str, files))} hold no fact to forget that has a prompt",
            hint='give facts as JSONL, those that were forgotten with "split": "forget"',
        )
    text: list[list[int]] = []
    for file in files:
        if file.suffix.lower() != ".jsonl":
            found = text_sequences(file, tokenize, "--fit")
            if len(found[0]) < 2:
                raise InputError(f"--fit: {file} holds one token", hint="give some pages of the text the model is for")
            text += [chunk[:TEXT_TOKENS] for chunk in found]
    if not text:
        text = chunks(builtin_documents(HALVES[0]), tokenize, length=TEXT_TOKENS, count=TEXT_CHUNKS, seed=SEED)
    return FitData(facts, examples, text)


def fittable(planned: Planned, file_type: str) -> bool:
    """Whether a file of that type has an edited matrix of a layer on a grid."""
    kinds = planned.files[file_type].types
    return any(name.startswith("blk.") and kinds[name] in CODECS for name in planned.edited)


def plan_fit(pair: Pair, planned: Planned, data: FitData, options: FitOptions) -> dict[str, Any]:
    """What fitting takes: bytes of memory and of disk, seconds for each type.

    Raises UnsupportedError for a model whose answers torch does not compute as llama.cpp does, InputError where no type
    has anything to fit, or where kept facts are to get the original's answers and there are none.
    """
    from gguf_forget.checkpoint.open import outline
    from gguf_forget.fitting.objective import FORGET, RETAIN, TEXT

    if not any(fittable(planned, kind) for kind in planned.files):
        raise InputError(
            f"--fit: no edited matrix of a layer is on a grid in {', '.join(planned.files)}",
            hint="leave --fit out, or choose a quantized type",
        )
    model = outline(pair.original)
    if model.config._attn_implementation == "eager" or getattr(model.config, "final_logit_softcapping", None):
        raise UnsupportedError(
            f"--fit: architecture {model.config.model_type!r} caps its attention or its logits, which is not supported",
            hint="leave --fit out; --calibration works",
        )
    weights = sum(parameter.numel() for parameter in model.parameters())
    mean = sum(len(example.tokens) for example in data.examples) / len(data.examples)
    tokens = (FORGET + RETAIN) * mean + TEXT * len(data.text[0])
    forgotten, aside = data.forgotten(), options.kept == "original"
    if aside and forgotten == len(data.examples):
        raise InputError(
            f"--fit-kept original: {', '.join(map(str, options.files))} hold no kept fact with a prompt, or only "
            "such that another file forgets",
            hint='give facts with "split": "retain", or leave --fit-kept out',
        )
    return {
        "steps": options.steps,
        "kept": options.kept,
        "forget": forgotten,
        "retain": len(data.examples) - forgotten,
        "memory": (BYTES_A_WEIGHT + BYTES_OF_ORIGINAL * aside) * weights + BYTES,
        "disk": 4 * weights,
        "seconds": round((options.steps + JUDGED) * (11 if aside else 10) * tokens * weights / operations_per_second()),
    }


def fitter(
    pair: Pair,
    planned: Planned,
    data: FitData,
    options: FitOptions,
    rounding: RoundingOptions,
    work: Path,
    progress: Progress,
    *,
    threads: int,
) -> Fitter:
    """Both models are read from their GGUFs, as the rounded one is: whatever transformers reads otherwise than
    llama.cpp is then the same in all."""
    from gguf_forget.checkpoint.open import open_model

    with scratch_directory(work) as scratch:
        unlearned = open_model(one_file(pair.unlearned, scratch))
    original = None
    if options.kept == "original":
        with scratch_directory(work) as scratch:
            original = open_model(one_file(pair.original, scratch))
    return _Fitter(pair, planned, unlearned, original, data, options.steps, rounding, progress, threads)


@dataclass
class _Fitter:
    pair: Pair
    planned: Planned
    unlearned: Any
    original: Any | None
    data: FitData
    steps: int
    rounding: RoundingOptions
    progress: Progress
    threads: int

    def __call__(self, file: Path, file_type: str) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
        from gguf_forget.checkpoint.load import load_torch
        from gguf_forget.fitting.fit import codes_of, fit, mean_losses

        if not fittable(self.planned, file_type):
            return {}, {}
        restored = file.with_name(f"{file.name}.F32")
        quantize(file, restored, "F32", allow_requantize=True, durable=False)
        model = load_torch(restored)
        restored.unlink()
        tensors, without = self._tensors(file, model)
        start = {tensor.name: tensor.codes.codes.copy() for tensor in tensors}
        judges = list(islice(self._batches(JUDGE_SEED), JUDGED))
        before = best = mean_losses(model, judges)
        chosen: dict[str, np.ndarray] = {}
        with self.progress.task(f"{file_type}: fitting to answers", self.steps) as advance:

            def heard(step: int, losses: Losses) -> None:
                nonlocal best, chosen
                advance(1, _remark(losses))
                # Few facts can be overshot: the best of some states is kept, the last one often is. None that forgets
                # clearly worse than before, whatever it gives back.
                if step % max(1, self.steps // STATES) == 0 or step == self.steps:
                    now = mean_losses(model, judges)
                    if now.total < best.total and now.forget <= max(before.forget, TOLERATED):
                        best, chosen = now, {name: codes.copy() for name, codes in codes_of(tensors).items()}

            if tensors:
                fit(model, tensors, self._batches(SEED), steps=self.steps, threads=self.threads, progress=heard)
        document = {
            "steps": self.steps,
            "kept": "unlearned" if self.original is None else "original",
            "better": bool(chosen),
            "moved": sum(int((codes != start[name]).sum()) for name, codes in chosen.items()),
            "without": without,
            "before": before.to_json(),
            "after": best.to_json(),
        }
        return chosen, document

    def _batches(self, seed: int) -> Any:
        from gguf_forget.fitting.objective import batches

        data = self.data
        return batches(self.unlearned, data.facts, data.examples, data.text, seed=seed, original=self.original)

    def _tensors(self, file: Path, model: Any) -> tuple[list[FittedTensor], list[str]]:
        """The edited linear maps of the layers that are on a grid, and the names of all other edited matrices."""
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
            if before.rows == 1 or name not in self.planned.edited:
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
            edit = edit_of(before, after, 0, before.rows, self.rounding.noise)
            bound = _bound(levels, edit, self.rounding.survive)
            codes = MovableCodes(levels, after.weights(0, after.rows), edit != 0, bound)
            found.append(FittedTensor(name, module, layout, codes))
        return found, without


def _bound(levels: Levels, edit: np.ndarray, survive: str) -> np.ndarray:
    """The direction of every edit that had to land, int8 [rows, columns], 0 elsewhere; ``levels``: where it did.

    Which had to was decided at the stock file's code. Where levels are not evenly spaced that code may have had a
    narrower gap ahead than the present one: all that the narrowest gap of the grid would have asked for are bound.
    """
    index = np.flatnonzero(edit != 0)
    present, change = levels.at(index), edit.ravel()[index]
    asked = find_edits(present, change, survive=survive).asked
    if survive == "important" and levels.table is not None:
        asked |= np.abs(change) >= 0.5 * np.diff(levels.table).min() * np.abs(present.scale)
    bound = np.zeros(edit.shape, dtype=np.int8)
    bound.ravel()[index[asked]] = np.sign(change[asked])
    return bound


def _remark(losses: Losses) -> str:
    lost = f", lost {losses.lost:.2f}" if losses.lost else ""
    return f"forget {losses.gap:+.2f} nats, retain {losses.retain:.3f}, text {losses.text:.3f}{lost}"
