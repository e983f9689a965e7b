"""The attribution benchmark: its arguments, what it runs, what it writes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from attribution_benchmark.process import SCRIPTS, Child, Failure
from attribution_benchmark.tables import comparison_table, growth_table
from attribution_benchmark.work import SHAPES
from benchmark_support.arguments import positive

ROOT = SCRIPTS.parent
FULL, TINY = ("gpt2-small", "smollm2-135m"), ("gpt2-tiny", "smollm2-tiny")
STEPS = 5
NEEDED = {"speedup": "≥ 3", "peak_memory_ratio": "≤ 0.333", "correlation": "> 0.999"}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the rest of the project does."""

    def error(self, message: str) -> NoReturn:
        raise Failure(message)


@dataclass(frozen=True)
class Plan:
    """What is run, from the arguments."""

    shapes: tuple[str, ...]
    pairs: int
    batch_size: int
    runs: int
    threads: int
    reference: Path | None
    reference_python: str
    folder: Path

    def child(self, side: str, shape: str) -> Child:
        if side == "ours":
            python, path = sys.executable, ROOT
        else:
            assert self.reference is not None
            python, path = self.reference_python, self.reference / "src"
        return Child(side, python, path, shape, self.threads, self.folder / f"{side}.log")


def correlation(ours: Path, other: Path) -> dict:
    """Pearson's r over all edges, which must be the same ones under the same names; and how many they are."""
    a, b = np.load(ours), np.load(other)
    for names in ("sources", "destinations"):
        if sorted(a[names]) != sorted(b[names]):
            raise Failure(
                f"the two sides name different {names}: {sorted({*a[names].tolist()} ^ {*b[names].tolist()})[:4]}"
            )
    rows = [list(b["sources"]).index(name) for name in a["sources"]]
    columns = [list(b["destinations"]).index(name) for name in a["destinations"]]
    x, y = a["scores"], b["scores"][np.ix_(rows, columns)]
    if (np.isnan(x) != np.isnan(y)).any():
        raise Failure("the two sides disagree on which edges there are")
    x, y = x[~np.isnan(x)], y[~np.isnan(y)]
    return {
        "edges": len(x),
        "correlation": float(np.corrcoef(x, y)[0, 1]),
        "largest_difference": float(np.abs(x - y).max() / np.abs(y).max()),
    }


def side_figures(child: Child, answers: list[dict], pairs: int) -> dict:
    """Times and memory of one side's timed runs."""
    seconds = [answer["seconds"] for answer in answers]
    processor = [answer["processor_seconds"] for answer in answers]
    peak = max(answer["peak"] for answer in answers)
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "median_seconds": statistics.median(seconds),
        "median_processor_seconds": statistics.median(processor),
        "seconds_per_pair": statistics.median(seconds) / pairs,
        "resident_bytes_loaded": child.loaded["resident"],
        "peak_bytes": peak,
        "peak_bytes_above_loaded": peak - child.loaded["resident"],
        "versions": child.loaded["versions"],
    }


def say(shape: str, side: str, what: str, answer: dict) -> None:
    """A line of progress, on stderr."""
    print(f"{shape}, {side}, {what}: {answer['seconds']:.2f} s", file=sys.stderr, flush=True)


def compare(plan: Plan, shape: str, children: dict[str, Child]) -> dict:
    """All figures of one model: each side's times and memory, and the ratios where there is a reference."""
    request = {"pairs": plan.pairs, "steps": STEPS, "batch_size": plan.batch_size}
    kept = {side: plan.folder / f"{side}.npz" for side in children}
    own = plan.folder / "own.npz"
    for child in children.values():  # not counted: the first run pays for what is made on first use
        answer = child.ask(**request, keep=str(own if child.side == "reference" else kept["ours"]), own_points=True)
        say(shape, child.side, "not counted", answer)
    answers: dict[str, list[dict]] = {side: [] for side in children}
    for run in range(plan.runs):
        for side in children if run % 2 == 0 else reversed(children):
            answers[side].append(children[side].ask(**request, keep=str(kept[side])))
            say(shape, side, f"run {run + 1} of {plan.runs}", answers[side][-1])

    found: dict[str, Any] = {side: side_figures(children[side], answers[side], plan.pairs) for side in children}
    if "reference" in children:
        ours, reference = found["ours"], found["reference"]
        found["speedup"] = reference["median_seconds"] / ours["median_seconds"]
        found["speedup_processor"] = reference["median_processor_seconds"] / ours["median_processor_seconds"]
        found["peak_memory_ratio"] = ours["peak_bytes"] / reference["peak_bytes"]
        found["peak_memory_ratio_above_loaded"] = ours["peak_bytes_above_loaded"] / reference["peak_bytes_above_loaded"]
        found.update(correlation(kept["ours"], kept["reference"]))
        found["correlation_with_its_own_points"] = correlation(kept["ours"], own)["correlation"]
        metrics = [np.array(child.loaded["metric"]) for child in children.values()]
        found["largest_metric_difference"] = float(np.abs(metrics[0] - metrics[1]).max())
    return found


def growth(plan: Plan, shape: str, ours: Child) -> list[dict]:
    """Ours alone, with more pairs and with more integration steps, in batches half as large as the comparison's.

    The same process goes on; memory that an earlier row left behind could only make a later peak larger.
    """
    base = max(1, plan.batch_size // 2)
    cells = [(base, STEPS), (2 * base, STEPS), (4 * base, STEPS), (base, 2 * STEPS), (base, 4 * STEPS)]
    rows = []
    for pairs, steps in cells:
        answers = [ours.ask(pairs=pairs, steps=steps, batch_size=base) for _ in range(plan.runs)]
        say(shape, "ours", f"{pairs} pairs, m = {steps}", answers[-1])
        rows.append(
            {
                "model": shape,
                "pairs": pairs,
                "steps": steps,
                "median_seconds": statistics.median(answer["seconds"] for answer in answers),
                "median_processor_seconds": statistics.median(answer["processor_seconds"] for answer in answers),
                "peak_bytes": max(answer["peak"] for answer in answers),
            }
        )
    return rows


def measure_model(plan: Plan, shape: str) -> tuple[dict, list[dict]]:
    """The comparison and the growth of one model; the processes are gone afterwards."""
    children: dict[str, Child] = {}
    try:
        # The reference first: if it cannot be used, that is said before anything else takes its time.
        for side in ("ours",) if plan.reference is None else ("reference", "ours"):
            children[side] = plan.child(side, shape)
        found = compare(plan, shape, children)
        if "reference" in children:
            children.pop("reference").close()
        return found, growth(plan, shape, children["ours"])
    finally:
        for child in children.values():
            child.close()


def arguments(argv: list[str] | None, documentation: str) -> argparse.Namespace:
    description, _, rest = documentation.partition("\n\n")
    parser = Parser(
        "benchmark_attribution.py",
        description=description,
        epilog=rest.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="write all figures here")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a checkout of hannamw/EAP-IG")
    parser.add_argument("--reference-python", metavar="PYTHON", help="the Python of its environment")
    parser.add_argument("--pairs", type=positive, metavar="N", help="pairs for the comparison (default 8)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="pairs at a time, both sides (default 8)")
    parser.add_argument("--runs", type=positive, metavar="N", help="timed runs, for the median (default 3)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of each side (default: all cores)")
    parser.add_argument("--model", action="append", choices=sorted(SHAPES), help="only this (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="tiny models, 2 pairs, 1 run: shows only that it works")
    options = parser.parse_args(argv)
    if options.reference is None and options.reference_python is not None:
        parser.error("--reference-python needs --reference as well: the checkout whose environment that is")
    if options.reference is not None and not (options.reference / "src" / "eap" / "attribute.py").is_file():
        parser.error(f"--reference {options.reference} is no checkout of EAP-IG: it has no src/eap/attribute.py")
    if not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
    return options


def measure(options: argparse.Namespace) -> dict:
    small = options.quick
    with tempfile.TemporaryDirectory(prefix="benchmark-attribution-") as folder:
        plan = Plan(
            shapes=tuple(options.model or (TINY if small else FULL)),
            pairs=options.pairs or (2 if small else 8),
            batch_size=options.batch_size or (2 if small else 8),
            runs=options.runs or (1 if small else 3),
            threads=options.threads or os.cpu_count() or 1,
            reference=None if options.reference is None else options.reference.resolve(),
            reference_python=options.reference_python or sys.executable,
            folder=Path(folder),
        )
        if plan.reference is None:
            print("No --reference given: ours is timed alone, and there is nothing to compare it with.\n", flush=True)
        models, rows = {}, []
        for shape in plan.shapes:
            models[shape], grown = measure_model(plan, shape)
            rows += grown
    print(comparison_table(models))
    worst: dict[str, float | None] = dict.fromkeys(NEEDED)
    if plan.reference is not None:
        worst["speedup"] = min(found["speedup"] for found in models.values())
        worst["peak_memory_ratio"] = max(found["peak_memory_ratio"] for found in models.values())
        worst["correlation"] = min(found["correlation"] for found in models.values())
        print("\nThe worst of the models:")
        for key, needed in NEEDED.items():
            print(f"  {key.replace('_', ' ')}: {worst[key]:.6g} (needed {needed})")
        for name, found in models.items():
            own = found["correlation_with_its_own_points"]
            print(f"  {name}: {found['edges']} edges; correlation with the reference's own points {own:.6f}")
    print("\n" + growth_table(rows))
    return {
        **worst,
        "models": models,
        "growth": rows,
        "work": {
            "pairs": plan.pairs,
            "steps": STEPS,
            "batch_size": plan.batch_size,
            "runs": plan.runs,
            "threads": plan.threads,
            "quick": small,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        },
    }


def main(documentation: str, argv: list[str] | None = None) -> int:
    """The command; ``documentation`` is its help's text. Returns the exit code."""
    try:
        options = arguments(argv, documentation)
        found = measure(options)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    partial = options.json.with_name(options.json.name + ".partial")
    partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    partial.replace(options.json)
    return 0
