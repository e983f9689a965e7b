"""Arguments, rounds, tables and the JSON of the export benchmark."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark_support.arguments import positive, processors
from benchmark_support.tables import gigabytes, table

from export_benchmark import sides
from export_benchmark.work import SHAPES, eight_billion, widths, write_edited, write_hessian, write_random
from gguf_forget.demo.prepare import embedded_model
from gguf_forget.errors import GgufForgetError
from gguf_forget.llama.child import run_in_child
from gguf_forget.llama.library import version
from gguf_forget.llama.quantizer import quantize

NEEDED = {
    "wall_ratio": "≤ 1.5",
    "wall_ratio_compensated": "≤ 6",
    "peak_memory_ratio": "≤ 1.5",
    "survival": "1",
    "survival_widened": "1",
}
LIMIT = 3 << 30  # bytes beyond the page cache for the 8B shape
SIDES = ("llama.cpp", "ours", "ours, compensated")
WIDENED = "ours, --saturated widen"  # once: it is there for what survives, not for its time


def _layers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def _arguments(description: str | None, given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("--model", action="append", choices=("smollm2", *SHAPES), help="only this (may be repeated)")
    parser.add_argument("--type", default="Q4_K_M", help="file type  [default: %(default)s]")
    parser.add_argument("--rounds", type=positive, help="of every side, for the median  [default: 3]")
    parser.add_argument("--threads", type=positive, default=processors(), help="[default: all, %(default)s]")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile  [default: the system's]")
    parser.add_argument("--quick", action="store_true", help="a tiny model, 1 round: shows only that it works")
    parser.add_argument("--eight-billion", action="store_true", help="memory in the width of Llama-3-8B")
    parser.add_argument("--layers", type=_layers, default=(2, 6), help="of --eight-billion  [default: 2,6]")
    return parser.parse_args(given)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _original(name: str, path: Path) -> Path:
    if name in SHAPES:
        return write_random(path, SHAPES[name])
    quantize(embedded_model(), path, "F32", allow_requantize=True)
    return path


def _medians(runs: list[sides.Measured]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(run.seconds for run in runs),
        "processor_seconds": statistics.median(run.processor_seconds for run in runs),
        "peak_bytes": max(run.peak_bytes for run in runs),
        "peak_resident_bytes": max(run.peak_resident_bytes for run in runs),
        "all_seconds": [run.seconds for run in runs],
        "all_processor_seconds": [run.processor_seconds for run in runs],
    }


def _measure(name: str, options: argparse.Namespace, folder: Path, rounds: int) -> dict[str, Any]:
    """All figures of one model."""
    _say(f"{name}: writing the model, its edited copy and the Hessians")
    original, unlearned = folder / "original.gguf", folder / "unlearned.gguf"
    run_in_child(_original, name, original)
    run_in_child(write_edited, original, unlearned)
    for columns in widths(original):
        run_in_child(write_hessian, folder, columns)
    files = {side: folder / f"{place}.gguf" for place, side in enumerate(SIDES)}
    runs: dict[str, list[sides.Measured]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES:
            if side == "llama.cpp":
                run = run_in_child(sides.stock, original, files[side], options.type, options.threads)
            else:
                hessians = folder if side == "ours, compensated" else None
                run = run_in_child(
                    sides.ours, original, unlearned, files[side], options.type, options.threads, hessians
                )
            runs[side].append(run)
            _say(f"{name}, {side}, round {number + 1} of {rounds}: {run.seconds:.2f} s")
    files[WIDENED] = folder / "widened.gguf"
    run = run_in_child(
        sides.ours, original, unlearned, files[WIDENED], options.type, options.threads, None, saturated="widen"
    )
    runs[WIDENED] = [run]
    _say(f"{name}, {WIDENED}: {run.seconds:.2f} s")
    _say(f"{name}: counting the edits in the files")
    found: dict[str, Any] = {side: _medians(of_side) for side, of_side in runs.items()}
    for side in (*SIDES[1:], WIDENED):
        counted = run_in_child(sides.landed, files["llama.cpp"], files[side], original, unlearned)
        totals = runs[side][-1].totals
        found[side]["edits"] = {**counted, **{key: totals[key] for key in ("saturated", "regridded")}}
    llama = found["llama.cpp"]
    ratios = {
        "wall_ratio": found["ours"]["seconds"] / llama["seconds"],
        "wall_ratio_compensated": found["ours, compensated"]["seconds"] / llama["seconds"],
        "processor_ratio": found["ours"]["processor_seconds"] / llama["processor_seconds"],
        "processor_ratio_compensated": found["ours, compensated"]["processor_seconds"] / llama["processor_seconds"],
        "peak_memory_ratio": found["ours"]["peak_bytes"] / llama["peak_bytes"],
        "peak_memory_ratio_compensated": found["ours, compensated"]["peak_bytes"] / llama["peak_bytes"],
        "survival": min(_survival(found[side]) for side in SIDES[1:]),
        "survival_widened": _survival(found[WIDENED]),
    }
    size = original.stat().st_size
    for path in (original, unlearned, *files.values(), *folder.glob("*.npy")):
        path.unlink()
    return {**ratios, "file_bytes": size, "sides": found}


def _survival(found: dict[str, Any]) -> float:
    return float(found["edits"]["landed"] / found["edits"]["asked"])


def _table(models: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, figures in models.items():
        for side, found in figures["sides"].items():
            edits = found.get("edits")
            rows.append(
                [
                    f"{name}, {side}",
                    f"{found['seconds']:.2f} s",
                    f"{found['processor_seconds']:.2f} s",
                    gigabytes(found["peak_bytes"]),
                    gigabytes(found["peak_resident_bytes"]),
                    "" if edits is None else f"{edits['landed']:,} of {edits['asked']:,}",
                    "" if edits is None else f"{edits['saturated']:,}",
                    "" if edits is None else f"{edits['regridded']:,}",
                ]
            )
    header = [
        "",
        "median",
        "processor",
        "memory",
        "with mapped files",
        "edits landed",
        "at the end of the grid",
        "others moved",
    ]
    return table(header, rows)


def _compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rounds = options.rounds or (1 if options.quick else 3)
    names = options.model or (["tiny"] if options.quick else ["smollm2", "tinyllama-1.1b"])
    models = {name: _measure(name, options, folder, rounds) for name in names}
    print(_table(models))
    _say("rounding alone")
    columns = 256 if options.quick else 2048
    write_hessian(folder, columns)
    speed = {
        kind: run_in_child(sides.throughput, kind, columns // 2, folder / f"{columns}.npy", rounds)
        for kind in ("Q4_K", "Q6_K", "Q5_0", "Q8_0")
    }
    rows = [[kind, f"{found['nearest']:.0f}", f"{found['compensated']:.1f}"] for kind, found in speed.items()]
    print("\n" + table(["million weights a processor second", "nearest", "compensated"], rows))
    largest = max(models.values(), key=lambda found: found["file_bytes"])
    worst = {
        "wall_ratio": max(found["wall_ratio"] for found in models.values()),
        "wall_ratio_compensated": max(found["wall_ratio_compensated"] for found in models.values()),
        # Of the largest model: a small one's memory is mostly the interpreter's.
        "peak_memory_ratio": max(
            largest["peak_memory_ratio"],
            largest["peak_memory_ratio_compensated"],
        ),
        **{key: min(found[key] for found in models.values()) for key in ("survival", "survival_widened")},
    }
    print("\nThe worst of the models:")
    for key, needed in NEEDED.items():
        print(f"  {key}: {worst[key]:.4g} (needed {needed})")
    return {**worst, "models": models, "million_weights_per_second": speed, "rounds": rounds}


def _eight_billion(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peaks of the same width at several numbers of layers."""
    peaks = []
    for layers in options.layers:
        _say(f"{layers} layers: writing the model and its edited copy")
        original, unlearned, out = (folder / f"{name}.gguf" for name in ("original", "unlearned", "out"))
        write_random(original, eight_billion(layers))
        write_edited(original, unlearned)
        run = run_in_child(sides.ours, original, unlearned, out, options.type, options.threads)
        row = {"layers": layers, "file_bytes": original.stat().st_size, **_medians([run]), "totals": run.totals}
        peaks.append(row)
        _say(f"{layers} layers: {run.seconds:.0f} s, {gigabytes(run.peak_bytes)} beyond the page cache")
        for path in (original, unlearned, out):
            path.unlink()
    rows = [
        [str(row["layers"]), gigabytes(row["file_bytes"]), f"{row['seconds']:.0f} s", gigabytes(row["peak_bytes"])]
        for row in peaks
    ]
    print(table(["layers of 32", "original", "time", "memory beyond the page cache"], rows))
    largest = max(row["peak_bytes"] for row in peaks)
    print(f"largest: {largest / 2**30:.2f} GiB (needed ≤ {LIMIT / 2**30:.0f} GiB)")
    return {"eight_billion": {"runs": peaks, "peak_bytes": largest, "whole_model": max(options.layers) == 32}}


def main(description: str | None, given: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = _arguments(description, given)
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark-export-", dir=options.folder) as folder:
            found = (_eight_billion if options.eight_billion else _compare)(options, Path(folder))
    except (GgufForgetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    document = {
        "schema_version": 1,
        **found,
        "type": options.type,
        "threads": options.threads,
        "llama_cpp": version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "memory": "RssAnon + RssShmem, 100 looks a second",
    }
    options.json.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0
