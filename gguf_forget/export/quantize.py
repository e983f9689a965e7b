"""Bin-aware quantization of any unlearned model: llama.cpp's own file of the original, plus the edits on its grid.

llama.cpp decides which tensor gets which type. A run of rows is made as it would (:mod:`.stock_file`), and written with
its edit, before the file appears under its name. With no edit at all the result is llama.cpp's file byte for byte, with
an edit it has keys of its own as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.stored import READABLE, StoredTensor, stored_tensors
from gguf_forget.errors import InputError, LlamaError
from gguf_forget.export.derived_file import drop_earlier_keys
from gguf_forget.export.inputs import Pair
from gguf_forget.export.memory import keep_freed_memory
from gguf_forget.export.outcome import TensorOutcome, totals
from gguf_forget.export.patch import FLOAT_TYPES, RoundingOptions, is_edited, patch_tensor
from gguf_forget.export.rows import Check, Mapped, read_back, write_bytes
from gguf_forget.export.scratch import scratch_directory
from gguf_forget.export.split import groups_as_in, groups_by_size, write_split
from gguf_forget.export.stock_file import NotOurs, Run, begin_stock, stored_run
from gguf_forget.grids import CODECS
from gguf_forget.llama.options import QuantizeOptions
from gguf_forget.llama.quantizer import FilePlan, check_result, plan_file, quantize
from gguf_forget.progress import Progress
from gguf_forget.whole_file import check_output

Hessians = Callable[[str], np.ndarray | None]
Fitter = Callable[[Path, str], tuple[Mapping[str, np.ndarray], dict[str, Any]]]
"""A rounded file and its type to codes (int16 [rows, columns]) of some tensors, and what to say of them (nothing where
there was nothing to choose; else ``moved``, how many codes are other ones)."""
Companions = Callable[[Mapping[str, Path], Sequence[dict[str, Any]]], Mapping[Path, Path]]
"""Given the finished files by type, before they have their names, and what is said of each: makes what goes with them,
a file or folder each, and says where each is to be renamed to."""
SMALL = 4 << 20  # weights
RUNS_AT_ONCE = 8  # a task; one each would be tens of thousands for a large model


@dataclass(frozen=True)
class ExportOptions:
    """threads: 0 takes all. split_bytes: the most that one file holds, 0 for one file. keep_split: as many files as the
    original has, with the same tensors. metadata: keys for a file that holds an edit, strings of at most 127 bytes.
    """

    quantize: QuantizeOptions = field(default_factory=QuantizeOptions)
    rounding: RoundingOptions = field(default_factory=RoundingOptions)
    threads: int = 0
    split_bytes: int = 0
    keep_split: bool = False
    metadata: Mapping[str, str | int] = field(default_factory=dict)


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

    def differs(name: str) -> bool:
        before, after = pair.before[name], pair.after[name]
        if before.type in READABLE and after.type in READABLE:
            return is_edited(before, after, options.rounding.noise)
        if before.type != after.type or not np.array_equal(before.raw, after.raw):
            raise InputError(
                f"tensor {name} differs and is {before.type} in {pair.original}, {after.type} in {pair.unlearned}: "
                f"only {', '.join(READABLE)} can be compared"
            )
        return False

    with ThreadPoolExecutor(options.threads or os.cpu_count() or 1) as pool:
        found = pool.map(differs, pair.before)
        files = {kind: plan_file(pair.original, kind, options.quantize) for kind in file_types}
        edited = tuple(name for name, one in zip(pair.before, found, strict=True) if one)
    return Planned(edited, files)


def space_needed(planned: Planned, *, split: bool) -> int:
    """Bytes of all files, none taken away. split: each is written whole and then in parts."""
    sizes = [plan.bytes for plan in planned.files.values()]
    return sum(sizes) + split * max(sizes)


def check_space(folder: Path, needed: int) -> None:
    """Refuse, before any work, ``needed`` bytes that the disk of ``folder`` has no room for."""
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
    """:func:`export_types` for one file."""
    return export_types(pair, planned, {file_type: destination}, options, progress, hessians)[0]


def export_types(
    pair: Pair,
    planned: Planned,
    destinations: Mapping[str, Path],
    options: ExportOptions,
    progress: Progress,
    hessians: Hessians = lambda name: None,
    fitter: Fitter | None = None,
    companions: Companions = lambda files, documents: {},
    sources: Sequence[Path] = (),
) -> list[dict[str, Any]]:
    """Write a file for every type (type to file, in one directory), and say what became of every edit in each.

    Nothing appears before all files are finished and read back; then each is renamed into place. Whatever happens
    before, every destination is as it was, and at any moment each is the old file or the new one.
    hessians: tensor name to Σ x·xᵀ [columns, columns], None for the nearest code.
    fitter: chooses codes anew once a file is rounded, and adds to what is said of it.
    companions: what else is to be finished before anything appears. sources: inputs that no part may take the place of,
    beside the two models.

    Raises InputError for weights that are NaN, infinite or too large for a type, or a full disk, LlamaError where
    llama.cpp refuses, EvaluationError where a file does not decode to what was asked for.
    """
    folder = next(iter(destinations.values())).parent
    keep_freed_memory()
    documents: list[dict[str, Any]] = []
    finished: dict[str, tuple[list[Path], Path]] = {}
    with scratch_directory(folder) as scratch:
        for file_type, destination in destinations.items():
            partial = scratch / destination.name
            try:
                document = _written(partial, pair, planned, file_type, destination, options, progress, hessians, fitter)
            except OSError as error:
                raise InputError(
                    f"{destination} cannot be written",
                    cause=str(error),
                    hint="check free space, quotas and permissions",
                ) from error
            parts = _parts(partial, pair, destination, options)
            document["files"] = [str(destination.with_name(part.name)) for part in parts]
            document["file"], document["bytes"] = document["files"][0], sum(part.stat().st_size for part in parts)
            documents.append(document)
            finished[file_type] = parts, destination
        try:
            for parts, destination in finished.values():
                _check_parts(pair, parts, destination, sources)
            besides = companions({kind: parts[0] for kind, (parts, _) in finished.items()}, documents)
            for parts, destination in finished.values():
                publish(parts, destination)
            for made, place in besides.items():
                os.replace(made, place)
        except OSError as error:
            raise InputError(
                f"the files in {folder} cannot be finished",
                cause=str(error),
                hint="check free space, quotas and permissions",
            ) from error
    return documents


def _parts(partial: Path, pair: Pair, destination: Path, options: ExportOptions) -> list[Path]:
    """The finished file, or the files that it was split into."""
    groups = []
    if options.split_bytes:
        groups = groups_by_size(partial, options.split_bytes)
    elif options.keep_split:
        groups = groups_as_in(pair.original)
    if options.split_bytes == 0 and len(groups) < 2:  # the original is one file
        return [partial]
    parts = write_split(partial, groups, partial.with_name(destination.name))
    partial.unlink()
    return parts


def _check_parts(pair: Pair, parts: Sequence[Path], destination: Path, sources: Sequence[Path]) -> None:
    """Refuse to write over an input, such as a part of a split one; how many parts there are is known only now."""
    models = {tensor.path for tensors in (pair.before, pair.after) for tensor in tensors.values()}
    for part in parts:
        check_output(destination.with_name(part.name), [*models, *sources])


def publish(parts: Sequence[Path], destination: Path) -> None:
    """Rename ``parts`` beside ``destination``. Of several the old first file goes first and the new one comes last.

    llama.cpp needs the first file, so that at no moment a model of old and new files can be loaded.
    """
    places = [destination.with_name(part.name) for part in parts]
    if len(parts) > 1:
        places[0].unlink(missing_ok=True)
    for part, place in reversed(list(zip(parts, places, strict=True))):
        os.replace(part, place)


def _written(
    partial: Path,
    pair: Pair,
    planned: Planned,
    file_type: str,
    destination: Path,
    options: ExportOptions,
    progress: Progress,
    hessians: Hessians,
    fitter: Fitter | None,
) -> dict[str, Any]:
    """Write and check one whole file at ``partial``; ``destination`` is what messages call it."""
    quantize_options = options.quantize
    keys = {**options.metadata, "gguf_forget.type": file_type}
    if planned.edited and options.metadata:
        quantize_options = replace(quantize_options, metadata=tuple(keys.items()))
    plan = planned.files[file_type]  # keys do not change it

    def rounded(codes: Mapping[str, np.ndarray]) -> tuple[Mapping[str, StoredTensor], list[TensorOutcome], list[Check]]:
        filled = partial, pair, planned, file_type, options, progress, hessians, codes
        try:
            tensors, runs = begin_stock(
                pair.outline, pair.before, partial, file_type, plan, quantize_options, edited=bool(planned.edited)
            )
            return tensors, *_filled(tensors, runs, *filled)
        except NotOurs as why:
            if partial.exists():
                os.truncate(partial, 0)  # its blocks are free even while a view of it is left
            with progress.task(f"{file_type}: llama.cpp's own", 1) as advance, _said(why):
                quantize(
                    pair.original,
                    partial,
                    file_type,
                    threads=options.threads,
                    allow_requantize=True,
                    options=quantize_options,
                    durable=False,
                    planned=plan,
                )
                if planned.edited:
                    drop_earlier_keys(partial, dict(quantize_options.metadata))
                advance(1)
            tensors = stored_tensors(partial)  # views of the file, as above: they show what is written into it later
            return tensors, *_filled(tensors, {}, *filled)

    written, outcomes, checks = rounded({})
    more: dict[str, Any] = {}
    if fitter is not None:
        codes, found = fitter(partial, file_type)
        more = {"fit": found} if found else {}
        if codes:
            if quantize_options.metadata:
                keys["gguf_forget.codes_fitted"] = found["moved"]
                keys["gguf_forget.fit_kept"] = found["kept"]
                quantize_options = replace(quantize_options, metadata=tuple(keys.items()))
            written, outcomes, checks = rounded(codes)
    with (
        partial.open("rb+") as file,
        ThreadPoolExecutor(options.threads or os.cpu_count() or 1) as pool,
        progress.task(f"{file_type}: read back", len(checks)) as advance,
    ):
        on_disk = pool.submit(os.fsync, file.fileno())
        try:
            opened = pool.submit(check_result, partial, destination, file_type, plan)
            read_back(written, checks, destination, advance, pool.map)
            opened.result()
        finally:
            on_disk.result()  # a full disk explains what else was found
    return {
        "type": file_type,
        "totals": totals(outcomes),
        "not_protected": [outcome.tensor for outcome in outcomes if not outcome.protected],
        "tensors": [outcome.to_json() for outcome in outcomes],
        **more,
    }


@contextmanager
def _said(why: NotOurs) -> Iterator[None]:
    """llama.cpp does not always name the tensor that it refuses."""
    try:
        yield
    except LlamaError as error:
        if why.broken is None:
            raise
        raise InputError(why.broken, cause=error.cause, hint="get the model again") from error


def _filled(
    stock: Mapping[str, StoredTensor],
    runs: Mapping[str, Sequence[Run]],
    partial: Path,
    pair: Pair,
    planned: Planned,
    file_type: str,
    options: ExportOptions,
    progress: Progress,
    hessians: Hessians,
    codes: Mapping[str, np.ndarray],
) -> tuple[list[TensorOutcome], list[Check]]:
    """Write into the file at ``partial`` the ``runs`` of rows that it lacks, and into these at once the edits.

    codes: of tensors for which nothing is left to choose.

    Raises NotOurs for a run that is llama.cpp's to make.
    """
    importance = options.quantize.importance
    others = [run for name in stock if name not in set(planned.edited) for run in runs.get(name, ())]
    outcomes: list[TensorOutcome] = []
    checks: list[Check] = []
    with (
        partial.open("rb+") as file,
        ThreadPoolExecutor(options.threads or os.cpu_count() or 1) as pool,
        progress.task(f"{file_type}: weights", len(planned.edited) + len(others)) as advance,
    ):
        refused: list[NotOurs] = []  # once one run is, no other need be made

        def stored(run: Run) -> np.ndarray:
            if refused:
                raise refused[0]
            try:
                return stored_run(run)
            except NotOurs as why:
                refused.append(why)
                raise

        def write_all(some: Sequence[Run]) -> int:
            for run in some:
                write_bytes(file.fileno(), stored(run), run.place)
            return len(some)

        def work(name: str, mapped: Mapped = map) -> tuple[TensorOutcome | None, list[Check]]:
            lacking = {run.start: run for run in runs.get(name, ())}
            rated = None if importance is None else importance.of(name, stock[name].columns, stock[name].matrices)
            return patch_tensor(
                file.fileno(),
                stock[name],
                pair.before[name],
                pair.after[name],
                options=options.rounding,
                hessian=hessians(name) if stock[name].type in CODECS else None,
                importance=rated,
                stored=(lambda start: stored(lacking[start])) if lacking else None,
                codes=codes.get(name),
                mapped=mapped,
            )

        # Small tensors side by side; of a large one its rows, so that memory holds one at a time.
        sizes = {name: stock[name].rows * stock[name].columns for name in planned.edited}
        small = {name: pool.submit(work, name) for name, size in sizes.items() if size <= SMALL}
        parts = [others[i : i + RUNS_AT_ONCE] for i in range(0, len(others), RUNS_AT_ONCE)]
        rest = [] if len(small) < len(sizes) else [pool.submit(write_all, part) for part in parts]
        try:
            for name in planned.edited:
                outcome, wanted = small[name].result() if name in small else work(name, pool.map)
                if outcome is not None:
                    outcomes.append(outcome)
                checks += wanted
                advance(1)
            for done in rest or [pool.submit(write_all, part) for part in parts]:
                advance(done.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes, checks
