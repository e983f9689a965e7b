#!/usr/bin/env python3
"""What is left of a model's forgetting once it is quantized: llama.cpp's rounding beside ours, through llama.cpp.

    scripts/benchmark_rounding.py RUN --json FILE [--type Q4_0 --type Q4_K_M --type Q4_K_S:pure] [--side NAME]

RUN is a finished run directory of `gguf-forget demo`. Its plain-NPO baseline, all weights changed by small amounts and
made without any knowledge of a grid, stands for a model that another tool unlearned. For every type it is quantized

- stock: by llama.cpp,
- nearest: `gguf-forget quantize --no-carry`, each code the nearest one on the original's grid,
- carried: `gguf-forget quantize`, no option,
- calibrated: `gguf-forget quantize --calibration RUN/facts.jsonl --calibration TEXT`,
- calibrated, not carried: the same with `--no-carry`,
- fitted: `gguf-forget quantize --fit RUN/facts.jsonl --fit TEXT`,
- given back: the same with `--fit-kept original`,
- noise: not at all, but with normal noise of the variance that llama.cpp's rounding has in every block (in F32, mean of
  three draws): what the type's coarseness does by itself when every edit arrives,

and, only where named by `--side`, what the other options trade:

- aimed at the edit: `--aim edit`; survive all, survive none: `--survive …`; widened: `--saturated widen`,
- calibrated, compensated outside: calibrated with `--outside-mask compensate` (here every weight of the matrices is
  edited, hardly any lies outside),

and asked through llama.cpp: the forgotten capitals on three of the phrasings that NPO was trained on (4-way accuracy,
log-probability of the answer in nats), kept capitals, perplexity of plain text. TEXT is the half of Python's own
documentation that no perplexity is measured on. "gap" is the answer's log-probability less that of the F32 model, the
mean over the facts with its standard error (facts are paired): 0 is a file that forgot as much. "gap held out" is the
same on phrasings that neither NPO nor fitting saw. "kept" is the accuracy on kept capitals, "less stock" how far it is
from the stock file's, where that is asked for too (paired as well), "kept held out" that on phrasings that nothing saw.
Fitting is given the very facts that are asked about. Also given: the original in the same type, and how much of the
edit arrived in the file's weights.

A file is removed once it is scored. Exit codes: 0 measured, 2 a wrong argument or run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from benchmark_support.noise import write_noisy
from benchmark_support.tables import table

from gguf_forget.errors import GgufForgetError, InputError
from gguf_forget.facts.text import HALVES, builtin_documents
from gguf_forget.llama.options import QuantizeOptions
from gguf_forget.llama.quantizer import quantize
from gguf_forget.pipeline import tool_versions
from gguf_forget.progress import Progress, progress_for
from gguf_forget.run_directory import write_json_atomically
from gguf_forget.stages.verify import score
from gguf_forget.verification.scores import FileScores, Item

TYPES = ("Q4_0", "Q4_K_M")
SIDES = (
    "original",
    "stock",
    "nearest",
    "carried",
    "calibrated, not carried",
    "calibrated",
    "fitted",
    "given back",
    "noise",
)
TRADES = ("aimed at the edit", "survive all", "survive none", "widened", "calibrated, compensated outside")
DRAWS = 3  # of noise
HEADER = [
    "type",
    "rounding",
    "4-way",
    "log p",
    "gap",
    "gap held out",
    "kept",
    "less stock",
    "kept held out",
    "perplexity",
    "arrives",
]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--type", dest="types", action="append", metavar="TYPE[:pure]")
    parser.add_argument("--side", dest="sides", action="append", choices=SIDES + TRADES, help="some of the files alone")
    parser.add_argument("--folder", type=Path, help="for the files [default: the system's temporary directory]")
    return parser.parse_args()


def _ours(original: Path, unlearned: Path, out: Path, kind: str, options: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "gguf_forget", "quantize", *map(str, (original, unlearned, out)), kind, "--json"]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError(f"gguf-forget quantize ended with {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)["files"][0]["totals"]
    return document


def _asked(scores: FileScores, *, held_out: bool = False) -> list[Item]:
    """The forgotten capitals on the phrasings that were trained on, or on those that were not."""
    return [
        item
        for item in scores.items
        if item.split == "forget" and item.relation == "capital" and item.held_out == held_out
    ]


def _log_probability(item: Item) -> float:
    return item.answer_log_probability


def _credit(item: Item) -> float:
    return item.credit()


def _kept(scores: FileScores) -> list[Item]:
    return [item for item in scores.items if item.split == "retain" and item.relation == "capital"]


def paired(
    files: Sequence[Sequence[Item]], reference: Sequence[Item], value: Callable[[Item], float]
) -> tuple[float, float]:
    """The mean over all questions of the value less that in ``reference``, and its standard error.

    Questions about one fact are not independent: they are one draw, of as many questions as there are.
    """
    before = {(item.fact, item.sha256): value(item) for item in reference}
    by_fact: dict[int, list[float]] = {}
    for items in files:
        for item in items:
            by_fact.setdefault(item.fact, []).append(value(item) - before[item.fact, item.sha256])
    count, facts = sum(map(len, by_fact.values())), len(by_fact)
    average = sum(map(sum, by_fact.values())) / count
    squares = sum((sum(values) - average * len(values)) ** 2 for values in by_fact.values())
    return average, (squares * facts / (facts - 1)) ** 0.5 / count


def _figures(files: Sequence[FileScores], reference: FileScores | None, stock: FileScores | None) -> dict[str, Any]:
    """Means over ``files``; reference: of the unlearned model in F32; stock: of llama.cpp's file of the same type."""
    kept = [item for scores in files for item in _kept(scores)]
    forget = [item for scores in files for item in _asked(scores)]
    figures: dict[str, Any] = {
        "accuracy": mean(item.credit() for item in forget),
        "answer_log_probability": mean(item.answer_log_probability for item in forget),
        "retain_accuracy": mean(item.credit() for item in kept),
        "retain_accuracy_held_out": mean(item.credit() for item in kept if item.held_out),
        "perplexity": mean(scores.perplexity for scores in files),
        "facts": len({item.fact for item in forget}),
    }
    if reference is not None:
        for name, held_out in (("gap", False), ("held_out_gap", True)):
            asked = [_asked(scores, held_out=held_out) for scores in files]
            before = _asked(reference, held_out=held_out)
            figures[name], figures[f"{name}_standard_error"] = paired(asked, before, _log_probability)
            figures[f"{name}_of_each_file"] = [paired([each], before, _log_probability)[0] for each in asked]
    if stock is not None:
        own = [_kept(scores) for scores in files]
        figures["retain_less_stock"], figures["retain_less_stock_standard_error"] = paired(own, _kept(stock), _credit)
    return figures


def _measure(arguments: argparse.Namespace, folder: Path, progress: Progress) -> list[dict[str, Any]]:
    run: Path = arguments.run
    original, unlearned = run / "load" / "template.gguf", run / "baseline" / "F32.gguf"
    facts = run / "facts.jsonl"
    for needed in (original, unlearned, facts):
        if not needed.is_file():
            raise InputError(f"no file {needed}", hint="give the run directory of a finished gguf-forget demo")
    text = folder / "calibration.txt"
    text.write_text("\n\n".join(builtin_documents(HALVES[0])), encoding="utf-8")
    calibration = ["--calibration", str(facts), "--calibration", str(text)]
    fit = ["--fit", str(facts), "--fit", str(text)]

    def judged(file: Path) -> FileScores:
        return score(
            file,
            run / "facts",
            folder,
            progress,
            max_new_tokens=1,
            retain_items=24,
            trained_phrasings=3,
            threads=0,
        )

    reference = judged(unlearned)
    rows = [{"type": "F32", "rounding": "none", **_figures([reference], None, None)}]
    for given in arguments.types or TYPES:
        kind, _, pure = given.partition(":")
        more = ["--pure"] if pure else []
        stock_scores: FileScores | None = None
        ways: dict[str, Sequence[str] | Path | None] = {
            "original": original,
            "stock": unlearned,
            "nearest": ["--no-carry"],
            "carried": [],
            "calibrated, not carried": [*calibration, "--no-carry"],
            "calibrated": calibration,
            "fitted": fit,
            "given back": [*fit, "--fit-kept", "original"],
            "noise": None,
            "aimed at the edit": ["--aim", "edit"],
            "survive all": ["--survive", "all"],
            "survive none": ["--survive", "none"],
            "widened": ["--saturated", "widen"],
            "calibrated, compensated outside": [*calibration, "--outside-mask", "compensate"],
        }
        for side in (side for side in ways if side in (arguments.sides or SIDES)):
            how = ways[side]
            file, arrives, options = folder / "model.gguf", None, QuantizeOptions(pure=bool(pure))
            if how is None:
                asked = [judged(noisy) for noisy in _noisy(unlearned, file, kind, options)]
            else:
                if isinstance(how, Path):
                    quantize(how, file, kind, options=options)
                else:
                    arrives = _ours(original, unlearned, file, kind, [*more, *how])["arrived_share"]
                asked = [judged(file)]
            if side == "stock":
                stock_scores = asked[0]
            figures = _figures(asked, reference, stock_scores)
            rows.append({"type": given, "rounding": side, "arrives": arrives, **figures})
            file.unlink()
    return rows


def _noisy(unlearned: Path, file: Path, kind: str, options: QuantizeOptions) -> Iterator[Path]:
    """``file``, once a draw."""
    restored = file.with_suffix(".restored")
    quantize(unlearned, file, kind, options=options)
    quantize(file, restored, "F32", allow_requantize=True)
    for seed in range(DRAWS):
        write_noisy(unlearned, restored, file, np.random.default_rng(seed))
        yield file
    restored.unlink()


def _row(row: dict[str, Any]) -> list[str]:
    gaps = [
        f"{row[name]:+.1f} ± {row[f'{name}_standard_error']:.1f}" if name in row else ""
        for name in ("gap", "held_out_gap")
    ]
    against_stock = ""
    if "retain_less_stock" in row:
        against_stock = f"{row['retain_less_stock']:+.3f} ± {row['retain_less_stock_standard_error']:.3f}"
    arrives = f"{row['arrives']:.1%}" if row.get("arrives") is not None else ""
    return [
        row["type"],
        row["rounding"],
        f"{row['accuracy']:.3f}",
        f"{row['answer_log_probability']:.1f}",
        *gaps,
        f"{row['retain_accuracy']:.3f}",
        against_stock,
        f"{row['retain_accuracy_held_out']:.3f}",
        f"{row['perplexity']:.2f}",
        arrives,
    ]


def main() -> int:
    arguments = _arguments()
    try:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            rows = _measure(arguments, Path(folder), progress_for(quiet=False))
        write_json_atomically(
            arguments.json, {"schema_version": 1, "run": str(arguments.run), "tools": tool_versions(), "rows": rows}
        )
    except GgufForgetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(HEADER, [_row(row) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
