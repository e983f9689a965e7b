"""Arguments, rounds, the table and the JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_support.arguments import processors

from gguf_forget.demo.prepare import embedded_model
from gguf_forget.errors import GgufForgetError
from gguf_forget.llama.child import IsolatedScorer, run_in_child
from gguf_forget.llama.library import version
from gguf_forget.llama.quantizer import quantize
from verification_benchmark.sides import Measured, one_by_one, ours, prompt_processing
from verification_benchmark.work import Work, capital_questions, choice_questions

PROMPTS_A_ROUND = 5  # of 512 tokens


def _arguments(description: str | None, given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("--model", type=Path, help="a GGUF to quantize  [default: the demo's]")
    parser.add_argument("--types", default="Q8_0,Q4_K_M", help="file types, by comma  [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="of every side  [default: %(default)s]")
    parser.add_argument("--threads", type=int, default=processors(), help="[default: all, %(default)s]")
    parser.add_argument("--questions", type=int, default=644, help="about capitals  [default: %(default)s]")
    parser.add_argument("--choice-questions", type=int, default=1273, help="WMDP-shaped  [default: %(default)s]")
    parser.add_argument("--compared", type=int, default=60, help="questions compared in F32  [default: %(default)s]")
    return parser.parse_args(given)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _distance(left: Measured, right: Measured) -> dict[str, float]:
    difference = np.abs(left.values - right.values)
    return {
        "mean_nats": float(difference.mean()),
        "median_nats": float(np.median(difference)),
        "largest_nats": float(difference.max()),
    }


def _measure(file: Path, work: Work, choices: Work, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one file."""
    threads = options.threads
    asked = work.first(options.questions)
    unique, with_logits = asked.tokens()
    rounds: dict[str, list[Any]] = {"ours": [], "one_by_one": [], "prompt": []}
    for index in range(options.rounds):
        _say(f"{file.stem}: round {index + 1} of {options.rounds}")
        rounds["ours"].append(run_in_child(ours, file, asked, threads))
        share = with_logits / unique
        rounds["prompt"].append(run_in_child(prompt_processing, file, threads, share, PROMPTS_A_ROUND))
        rounds["one_by_one"].append(run_in_child(one_by_one, file, asked, threads))
    seconds = {side: statistics.median(run.seconds for run in rounds[side]) for side in ("ours", "one_by_one")}
    processor = {
        side: statistics.median(run.processor_seconds for run in rounds[side]) for side in ("ours", "one_by_one")
    }
    prompt = {key: statistics.median(run[key] for run in rounds["prompt"]) for key in ("plain", "with_logits")}
    _say(f"{file.stem}: memory, WMDP-shaped questions, comparison")
    sizes = sorted({max(1, options.questions // 4), options.questions, len(work.prompts)})
    memory = {size: run_in_child(ours, file, work.first(size), threads).peak_bytes for size in sizes}
    choice_run: Measured = run_in_child(ours, file, choices, threads)
    choice_unique, _ = choices.tokens()
    return {
        "questions": len(asked.prompts),
        "tokens_one_by_one": sum(map(len, asked.sequences)),
        "unique_tokens": unique,
        "unique_tokens_with_logits": with_logits,
        "seconds": seconds,
        "processor_seconds": processor,
        "speedup_over_logits_all": seconds["one_by_one"] / seconds["ours"],
        "speedup_over_logits_all_processor": processor["one_by_one"] / processor["ours"],
        "unique_tokens_per_second": unique / seconds["ours"],
        "prompt_tokens_per_second": prompt,
        "share_of_prompt_processing": unique / seconds["ours"] / prompt["plain"],
        "share_of_prompt_processing_with_logits": unique / seconds["ours"] / prompt["with_logits"],
        "rounds": {
            "ours_seconds": [run.seconds for run in rounds["ours"]],
            "one_by_one_seconds": [run.seconds for run in rounds["one_by_one"]],
            "prompt_tokens_per_second": rounds["prompt"],
        },
        "peak_memory_bytes": memory[options.questions],
        "peak_memory_bytes_by_questions": {str(size): peak for size, peak in memory.items()},
        "choice_questions": {
            "questions": len(choices.prompts),
            "unique_tokens": choice_unique,
            "seconds": choice_run.seconds,
            "unique_tokens_per_second": choice_unique / choice_run.seconds,
            "share_of_prompt_processing": choice_unique / choice_run.seconds / prompt["plain"],
            "peak_memory_bytes": choice_run.peak_bytes,
        },
        "difference_to_one_by_one": _distance(rounds["ours"][0], rounds["one_by_one"][0]),
    }


def _table(types: dict[str, dict[str, Any]]) -> str:
    rows: list[tuple[str, str]] = [
        ("unique tokens (one by one)", "{unique_tokens:,} ({tokens_one_by_one:,})"),
        ("… with logits", "{unique_tokens_with_logits:,}"),
        ("ours, s", "{seconds[ours]:.2f}"),
        ("one by one, s", "{seconds[one_by_one]:.2f}"),
        ("speedup, by the clock", "{speedup_over_logits_all:.2f}"),
        ("speedup, processor time", "{speedup_over_logits_all_processor:.2f}"),
        ("ours, unique tokens/s", "{unique_tokens_per_second:.0f}"),
        ("pp512, tokens/s", "{prompt_tokens_per_second[plain]:.0f}"),
        ("pp512 with logits, tokens/s", "{prompt_tokens_per_second[with_logits]:.0f}"),
        ("share of pp512", "{share_of_prompt_processing:.3f}"),
        ("share of pp512 with logits", "{share_of_prompt_processing_with_logits:.3f}"),
        ("peak memory, MiB", "{memory}"),
        ("WMDP-shaped, s", "{choice_questions[seconds]:.1f}"),
        ("WMDP-shaped, tokens/s", "{choice_questions[unique_tokens_per_second]:.0f}"),
        ("WMDP-shaped, share of pp512", "{choice_questions[share_of_prompt_processing]:.3f}"),
        ("difference, median nats", "{difference_to_one_by_one[median_nats]:.4f}"),
        ("difference, largest nats", "{difference_to_one_by_one[largest_nats]:.3f}"),
    ]
    lines = [f"{'':30}" + "".join(f"{name:>28}" for name in types)]
    for label, form in rows:
        cells = []
        for figures in types.values():
            sizes = figures["peak_memory_bytes_by_questions"].items()
            memory = ", ".join(f"{size}: {peak / 2**20:.0f}" for size, peak in sizes)
            cells.append(form.format(**figures, memory=memory))
        lines.append(f"{label:30}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    model = options.model or embedded_model()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.gguf" for name in ("F32", *options.types.split(","))}
        for name, file in files.items():
            run_in_child(quantize, model, file, name, threads=options.threads, allow_requantize=True)
        with IsolatedScorer(files["F32"]) as scorer:
            work = capital_questions(scorer.tokenize)
            choices = choice_questions(options.choice_questions, scorer.tokenize, scorer.vocabulary_size)
        types = {name: _measure(files[name], work, choices, options) for name in options.types.split(",")}
        few = work.first(options.compared)
        fast = run_in_child(ours, files["F32"], few, options.threads)
        slow = run_in_child(one_by_one, files["F32"], few, options.threads, exact=True)
    return {
        "schema_version": 1,
        "speedup_over_logits_all": min(figures["speedup_over_logits_all"] for figures in types.values()),
        "share_of_prompt_processing": min(figures["share_of_prompt_processing"] for figures in types.values()),
        "peak_memory_bytes": max(figures["peak_memory_bytes"] for figures in types.values()),
        "model": model.name,
        "threads": options.threads,
        "rounds": options.rounds,
        "llama_cpp": version(),
        "types": types,
        "difference_to_one_by_one_f32": {"questions": len(few.prompts), **_distance(fast, slow)},
    }


def main(description: str | None, given: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = _arguments(description, given)
    try:
        document = _run(options)
    except GgufForgetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    options.json.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(_table(document["types"]))
    difference = document["difference_to_one_by_one_f32"]
    print(f"F32, {difference['questions']} questions: largest difference {difference['largest_nats']:.1e} nats")
    for key in ("speedup_over_logits_all", "share_of_prompt_processing", "peak_memory_bytes"):
        print(f"{key}: {document[key]:,.4g}" if isinstance(document[key], float) else f"{key}: {document[key]:,}")
    return 0
