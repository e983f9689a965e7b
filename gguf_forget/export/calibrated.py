"""Calibration data for the rounding: files of text or facts as tokens, and the second moments that they give."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import files_of
from gguf_forget.errors import InputError
from gguf_forget.export.inputs import Pair
from gguf_forget.export.patch import RoundingOptions, edit_of
from gguf_forget.export.rows import runs_of_rows
from gguf_forget.export.scratch import scratch_directory
from gguf_forget.facts.schema import read_facts
from gguf_forget.facts.text import chunks
from gguf_forget.facts.tokens import encode_facts
from gguf_forget.grids import CODECS
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress

if TYPE_CHECKING:
    from gguf_forget.export.layerwise import StoredMoments
    from gguf_forget.facts.tokens import Tokenize

PROMPTS, CHUNKS, CHUNK_TOKENS = 512, 64, 256
TEXT_BYTES = 4 << 20


@dataclass(frozen=True)
class Calibration:
    """What calibrating takes: bytes of memory (weights in float32 and the largest layer's moments) and of disk."""

    sequences: int
    tokens: int
    tensors: int
    memory: int
    disk: int
    seconds: int  # estimated

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"calibration: {self.tokens:,} tokens for {self.tensors} tensors, about {self.memory / 1e9:.1f} GB of "
            f"memory, {self.disk / 1e9:.1f} GB of disk until the end, {max(1, round(self.seconds / 60))} min"
        )


def read_sequences(files: Sequence[Path], tokenize: Tokenize) -> list[list[int]]:
    """Tokens of every file: facts (``.jsonl``) as prompt and answer, anything else as plain UTF-8 text.

    Of the facts up to ``PROMPTS`` phrasings are drawn, never the held-out ones; of a text's first ``TEXT_BYTES`` bytes
    up to ``CHUNKS`` stretches of ``CHUNK_TOKENS`` tokens. Always the same ones. Raises InputError for a file that
    cannot be read or holds nothing.
    """
    sequences: list[list[int]] = []
    for file in files:
        if file.suffix.lower() == ".jsonl":
            examples = encode_facts(read_facts(file, needed=(), free_text=True), tokenize)
            drawn = random.Random(0).sample(examples, min(PROMPTS, len(examples)))
            sequences += [list(example.tokens) for example in drawn]
        else:
            sequences += text_sequences(file, tokenize, "calibration")
    if files and not sequences:
        raise InputError(f"calibration file {files[0]} holds no fact", hint="give facts or text, one file at least")
    return sequences


def text_sequences(file: Path, tokenize: Tokenize, purpose: str) -> list[list[int]]:
    """Up to ``CHUNKS`` stretches of a text, see :func:`read_sequences`; ``purpose`` is what errors call it."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(TEXT_BYTES)
        # The cut may go through a character.
        text = raw.decode("utf-8", errors="strict" if len(raw) < TEXT_BYTES else "ignore")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{purpose} file {file} cannot be read as UTF-8 text", cause=str(error)) from error
    tokens = tokenize(text)
    if not tokens:
        raise InputError(f"{purpose} file {file} holds no text", hint="give some pages of the text the model is for")
    return chunks([text], lambda _: tokens, length=min(CHUNK_TOKENS, len(tokens)), count=CHUNKS, seed=0)


def edited_columns(
    pair: Pair, edited: Sequence[str], kinds: Mapping[str, set[str]], options: RoundingOptions
) -> dict[str, np.ndarray]:
    """The columns (int64) in which codes can move, for every edited matrix with a grid in some of the files.

    kinds: tensor name to its types in the files.
    """
    found = {}
    for name in edited:
        before, after = pair.before[name], pair.after[name]
        if not kinds[name] & CODECS.keys() or before.rows == 1 or before.matrices > 1:
            continue
        columns = np.ones(before.columns, dtype=bool)
        if options.outside_mask == "frozen":
            columns[:] = False
            for part in runs_of_rows(before):
                columns |= edit_of(before, after, *part, options.noise).any(axis=0)
        found[name] = np.flatnonzero(columns)
    return found


def plan_calibration(
    unlearned: Path, sequences: Sequence[Sequence[int]], columns: Mapping[str, np.ndarray]
) -> Calibration:
    """``unlearned``: a GGUF or a Hugging Face directory, of which only the sizes are read."""
    from gguf_forget.checkpoint.open import outline

    weights = sum(parameter.numel() for parameter in outline(unlearned).parameters())
    tokens = sum(map(len, sequences))
    squares = {name: len(index) ** 2 for name, index in columns.items()}
    layers: dict[str, int] = {}
    for name, square in squares.items():
        layer = ".".join(name.split(".")[:2])  # blk.3
        layers[layer] = layers.get(layer, 0) + 4 * square
    return Calibration(
        sequences=len(sequences),
        tokens=tokens,
        tensors=len(columns),
        memory=4 * weights + max(layers.values(), default=0),
        disk=4 * sum(squares.values()),
        seconds=round(2 * tokens * (weights + sum(squares.values())) / operations_per_second()),
    )


def operations_per_second() -> float:
    """Of multiplying float32 matrices here and now."""
    import torch

    matrix = torch.ones(512, 512)
    torch.mm(matrix, matrix)
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    return 2 * 512**3 / max(time.perf_counter() - start, 1e-6)


def one_file(model: Path, scratch: Path) -> Path:
    """``model`` as transformers can read it: of a split GGUF a whole one in ``scratch``, else as it is."""
    if not model.is_file() or len(files_of(model)) == 1:
        return model
    whole = scratch / "whole.gguf"
    quantize(model, whole, "F32", allow_requantize=True)
    return whole


@contextmanager
def calibrated(
    pair: Pair,
    unlearned: Path,
    sequences: Sequence[Sequence[int]],
    columns: Mapping[str, np.ndarray],
    work: Path,
    progress: Progress,
) -> Iterator[StoredMoments]:
    """Tensor name to H while open, from the unlearned model's own inputs; the files behind it lie in ``work``.

    unlearned: as the user gave it, a GGUF or a directory.
    """
    from gguf_forget.checkpoint.open import open_model
    from gguf_forget.export.layerwise import store_moments

    kind = GgufFile(pair.unlearned).text("general.architecture")
    with scratch_directory(work) as scratch:
        source = one_file(unlearned, scratch)
        model = open_model(source)
        steps = model.config.num_hidden_layers + 1
        with progress.task("calibration of the rounding", steps) as advance:
            moments = store_moments(model, columns, kind, sequences, scratch, progress=advance)
        del model
        if source != unlearned:
            source.unlink()
        yield moments
