"""What is timed. Each function runs in a process of its own and returns plain values."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from benchmark_support.memory import PeakBeyondPageCache, peak, reset_peak

from export_benchmark.work import EDIT_SIZE, EDITED_SHARE
from gguf_forget.export.inputs import opened_pair
from gguf_forget.export.patch import RoundingOptions
from gguf_forget.export.quantize import ExportOptions, check_space, export_type, plan_export, space_needed
from gguf_forget.grids import CODECS
from gguf_forget.llama.blocks import dequantize_rows, quantize_rows
from gguf_forget.llama.library import load
from gguf_forget.llama.quantizer import FILE_TYPES
from gguf_forget.progress import Progress
from gguf_forget.rounding import round_edit


@dataclass
class Measured:
    """Seconds by the clock and of the processor (all threads), and the most memory while at it."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_bytes: int = 0  # beyond the page cache
    peak_resident_bytes: int = 0  # with mapped files
    totals: dict[str, int] = field(default_factory=dict)


@contextmanager
def _measured() -> Iterator[Measured]:
    found = Measured()
    reset_peak()
    with PeakBeyondPageCache() as memory:
        clock, processor = time.perf_counter(), time.process_time()
        yield found
        found.seconds, found.processor_seconds = time.perf_counter() - clock, time.process_time() - processor
    found.peak_bytes, found.peak_resident_bytes = memory.bytes, peak()


def stock(original: Path, out: Path, file_type: str, threads: int) -> Measured:
    """One call of ``llama_model_quantize``."""
    library = load()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[file_type], threads
    with _measured() as found:
        code = library.llama_model_quantize(os.fsencode(original), os.fsencode(out), parameters)
    if code != 0:
        raise RuntimeError(f"llama_model_quantize returned {code}")
    return found


def ours(
    original: Path,
    unlearned: Path,
    out: Path,
    file_type: str,
    threads: int,
    hessians: Path | None = None,
    saturated: str = "count",
) -> Measured:
    """From two files to the published one. hessians: a folder of ``columns``.npy."""
    load()
    importlib.import_module("gguf")  # else it is imported within
    options, progress = ExportOptions(rounding=RoundingOptions(saturated=saturated), threads=threads), Progress()
    with _measured() as found, opened_pair(original, unlearned, out.parent, progress) as pair:
        planned = plan_export(pair, [file_type], options)
        check_space(out.parent, space_needed(planned, split=False))
        mapped = {} if hessians is None else {int(f.stem): np.load(f, mmap_mode="r") for f in hessians.glob("*.npy")}
        document = export_type(
            pair, planned, file_type, out, options, progress, lambda name: mapped.get(pair.before[name].columns)
        )
    found.totals = document["totals"]
    return found


def landed(before: Path, after: Path, original: Path, unlearned: Path) -> dict[str, int]:
    """Counted anew from the files, by libggml: edits of at least half a step, and how many moved their own way."""
    from gguf_forget.checkpoint.stored import stored_tensors

    files = [stored_tensors(path) for path in (original, unlearned, before, after)]
    counts = {"edits": 0, "asked": 0, "landed": 0, "elsewhere": 0}
    for name, tensor in files[0].items():
        if np.array_equal(tensor.raw, files[1][name].raw):
            counts["elsewhere"] += int((files[2][name].raw != files[3][name].raw).any())
            continue
        height = max(1, (1 << 22) // tensor.columns)
        for start in range(0, tensor.rows, height):
            stop = min(start + height, tensor.rows)
            delta = files[1][name].weights(start, stop) - tensor.weights(start, stop)
            kind, raw = files[2][name].type, [file[name].raw[start:stop] for file in files[2:]]
            old, new = (dequantize_rows(kind, part, tensor.columns) for part in raw)
            went = np.sign(new - old) * np.sign(delta)
            asked = np.abs(delta) >= 0.5 * CODECS[kind].decode(raw[0]).step_towards(delta)
            asked &= delta != 0
            counts["edits"] += int(np.count_nonzero(delta))
            counts["asked"] += int(asked.sum())
            counts["landed"] += int((went[asked] > 0).sum())
    return counts


def throughput(kind: str, rows: int, hessian: Path, rounds: int) -> dict[str, float]:
    """Million weights a processor second of ``round_edit``: ``nearest``, and ``compensated`` with its factoring."""
    matrix = np.load(hessian)
    columns = len(matrix)
    generator = np.random.default_rng(2)
    weights = 0.02 * generator.standard_normal((rows, columns), dtype=np.float32)
    levels = CODECS[kind].decode(quantize_rows(kind, weights))
    delta = 0.02 * EDIT_SIZE * generator.standard_normal((rows, columns), dtype=np.float32)
    delta[generator.random((rows, columns), dtype=np.float32) >= EDITED_SHARE] = 0
    found = {}
    for label, given in (("nearest", None), ("compensated", matrix)):
        seconds = []
        for _ in range(rounds):
            clock = time.process_time()
            round_edit(levels, delta, hessian=given, free=None if given is None else delta != 0)
            seconds.append(time.process_time() - clock)
        found[label] = weights.size / 1e6 / statistics.median(seconds)
    return found
