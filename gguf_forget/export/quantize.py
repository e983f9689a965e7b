"""Bin-aware quantization of any unlearned model: llama.cpp's own file of the original, plus the edits on its grid.

llama.cpp decides which tensor gets which type and writes the file; the edited tensors are then rewritten in place,
before the file appears under its name. With no edit at all the result is llama.cpp's file byte for byte.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.stored import READABLE, files_of, stored_tensors
from gguf_forget.errors import InputError
from gguf_forget.export.inputs import Pair
from gguf_forget.export.outcome import TensorOutcome, totals
from gguf_forget.export.patch import FLOAT_TYPES, Check, Mapped, RoundingOptions, is_edited, patch_tensor, read_back
from gguf_forget.grids import CODECS
from gguf_forget.llama.options import QuantizeOptions
from gguf_forget.llama.quantizer import FilePlan, plan_file, quantize
from gguf_forget.progress import Progress

Hessians = Callable[[str], np.ndarray | None]
SMALL = 4 << 20  # weights


@dataclass(frozen=True)
class ExportOptions:
    """``threads``: 0 takes all."""

    quantize: QuantizeOptions = field(default_factory=QuantizeOptions)
    rounding: RoundingOptions = field(default_factory=RoundingOptions)
    threads: int = 0


@dataclass(frozen=True)
class Planned:
    """What an export would do: which tensors are edited, and for each type the plan of its file."""

    edited: tuple[str, ...]
    files: Mapping[str, FilePlan]

    def not_protected(self, file_type: str) -> list[str]:
        """Edited tensors whose type in that file has no codec: they are rounded as anyone would."""
        kinds = self.files[file_type].types
        return [name for name in self.edited if kinds[name] not in CODECS and kinds[name] not in FLOAT_TYPES]


def plan_export(pair: Pair, file_types: Sequence[str], options: ExportOptions) -> Planned:
    """Find the edited tensors and ask llama.cpp for the types; nothing is written."""
    edited = []
    for name, before in pair.before.items():
        after = pair.after[name]
        if before.type in READABLE and after.type in READABLE:
            if is_edited(before, after, options.rounding.noise):
                edited.append(name)
        elif before.type != after.type or not np.array_equal(before.raw, after.raw):
            raise InputError(
                f"tensor {name} differs and is {before.type} in {pair.original}, {after.type} in {pair.unlearned}: "
                f"only {', '.join(READABLE)} can be compared"
            )
    return Planned(tuple(edited), {kind: plan_file(pair.original, kind, options.quantize) for kind in file_types})


def check_destinations(inputs: Sequence[Path], destinations: Mapping[str, Path]) -> None:
    """Refuse, before any work, a destination that is an input (or a part of one) or a directory."""
    sources = [part for path in inputs if path.is_file() for part in files_of(path)]
    for destination in destinations.values():
        if destination.is_dir():
            raise InputError(f"{destination} is a directory, needed: the name of a file")
        for source in sources:
            if destination.exists() and os.path.samefile(source, destination):
                raise InputError(f"{destination} is one of the inputs", hint="give another name for the result")


def check_space(planned: Planned, folder: Path) -> None:
    """Refuse, before any work, what the disk has no room for; all files are counted, none is taken away."""
    needed = sum(plan.bytes for plan in planned.files.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"not enough disk space in {folder}: {needed:,} bytes needed, {free:,} free",
            hint="free some space, or choose another directory or fewer types",
        )


def export_type(
    pair: Pair,
    planned: Planned,
    file_type: str,
    destination: Path,
    options: ExportOptions,
    progress: Progress,
    hessians: Hessians = lambda name: None,
) -> dict[str, Any]:
    """Write one file, whole or not at all, and say what became of every edit in it.

    hessians: tensor name to Σ x·xᵀ [columns, columns], None for the nearest code.

    Raises InputError for weights that are NaN or infinite, LlamaError where llama.cpp refuses, EvaluationError where
    the file does not decode to what was asked for. The destination is then as it was.
    """
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.patched")
    try:
        with progress.task(f"{file_type}: llama.cpp's own", 1) as advance:
            quantize(
                pair.original,
                partial,
                file_type,
                threads=options.threads,
                allow_requantize=True,
                options=options.quantize,
                durable=False,
            )
            advance(1)
        outcomes, checks = _patch(partial, pair, planned, file_type, options, progress, hessians)
        with (
            ThreadPoolExecutor(options.threads or os.cpu_count() or 1) as pool,
            progress.task(f"{file_type}: read back", len(checks)) as advance,
        ):
            read_back(stored_tensors(partial), checks, destination, advance, pool.map)
        os.replace(partial, destination)
    finally:
        partial.unlink(missing_ok=True)
    return {
        "type": file_type,
        "file": str(destination),
        "bytes": destination.stat().st_size,
        "totals": totals(outcomes),
        "not_protected": [outcome.tensor for outcome in outcomes if not outcome.protected],
        "tensors": [outcome.to_json() for outcome in outcomes],
    }


def _patch(
    partial: Path,
    pair: Pair,
    planned: Planned,
    file_type: str,
    options: ExportOptions,
    progress: Progress,
    hessians: Hessians,
) -> tuple[list[TensorOutcome], list[Check]]:
    importance = {} if options.quantize.importance is None else options.quantize.importance.values
    outcomes: list[TensorOutcome] = []
    checks: list[Check] = []
    stock = stored_tensors(partial)
    threads = options.threads or os.cpu_count() or 1
    with (
        partial.open("rb+") as file,
        ThreadPoolExecutor(threads) as pool,
        progress.task(f"{file_type}: edits", len(planned.edited)) as advance,
    ):

        def work(name: str, mapped: Mapped = map) -> tuple[TensorOutcome | None, list[Check]]:
            return patch_tensor(
                file.fileno(),
                stock[name],
                pair.before[name],
                pair.after[name],
                options=options.rounding,
                hessian=hessians(name) if stock[name].type in CODECS else None,
                importance=importance.get(name),
                mapped=mapped,
            )

        # Small tensors side by side; of a large one its rows, so that memory holds one at a time.
        small = [name for name in planned.edited if stock[name].rows * stock[name].columns <= SMALL]
        large = [name for name in planned.edited if name not in set(small)]
        for outcome, wanted in chain(pool.map(work, small), (work(name, pool.map) for name in large)):
            if outcome is not None:
                outcomes.append(outcome)
            checks += wanted
            advance(1)
        os.fsync(file.fileno())
    order = {name: place for place, name in enumerate(planned.edited)}
    outcomes.sort(key=lambda outcome: order[outcome.tensor])
    return outcomes, checks
