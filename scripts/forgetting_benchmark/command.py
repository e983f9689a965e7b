"""Arguments, the loop over seeds and methods, what is kept, the JSON."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from forgetting_benchmark.figures import Roles, questions_of, roles
from forgetting_benchmark.make import Shared, make_edit, make_files
from forgetting_benchmark.measure import attribution, circuit_divergence, measure, relearned
from forgetting_benchmark.methods import METHODS, QUICK, Method
from forgetting_benchmark.nf4 import NF4, write_nf4
from forgetting_benchmark.table import MOST_SEEDS, method_rows, render, whole_rows
from gguf_forget.demo.prepare import prepare_demo
from gguf_forget.errors import EvaluationError, GgufForgetError, InputError, UnsupportedError
from gguf_forget.pipeline import run as run_pipeline
from gguf_forget.pipeline import tool_versions
from gguf_forget.progress import Progress, progress_for
from gguf_forget.recipe import EXPORT_TYPES, Recipe, load_recipe
from gguf_forget.run_directory import STAGE_FILE, RunDirectory, read_json, write_json_atomically
from gguf_forget.stages.facts import load_facts
from gguf_forget.stages.machine import PACKAGE, code_hash
from gguf_forget.stages.training_state import remove_states
from gguf_forget.verification.questions import Question

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", NF4)
QUICK_TYPES = ("F16", "Q8_0", "Q4_K_M")
CODE = (Path(__file__).parent, Path(__file__).parents[1] / "benchmark_support")  # beside the package
RESULT, SCORES = "result.json", "scores.npy"
MADE = re.compile(r"\.made-[a-z0-9_-]+")  # a folder of model files, of this run or of one that was killed


def _arguments(description: str | None, given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="one seed, three methods, three formats, few samples")
    parser.add_argument("--seeds", type=int, help="[default: 5; quick 1]")
    parser.add_argument("--methods", help=f"by comma, of {', '.join(METHODS)}  [default: all; quick {','.join(QUICK)}]")
    parser.add_argument("--formats", help=f"by comma  [default: {','.join(TYPES)}; quick {','.join(QUICK_TYPES)}]")
    parser.add_argument("--widened", action="store_true", help="the demo's model widened from 576 to 768")
    parser.add_argument("--recipe", type=Path, help="a recipe in place of the demo's")
    parser.add_argument("--forgotten", default="capital", help="the relation judged  [default: %(default)s]")
    parser.add_argument("--reverse", default="capital_of", help="the same facts in reverse  [default: %(default)s]")
    parser.add_argument(
        "--samples", type=int, help="sampled answers to a question, 0 for none  [default: 100; quick 8]"
    )
    parser.add_argument("--retain-items", type=int, default=38, help="kept facts a phrasing  [default: %(default)s]")
    parser.add_argument("--relearning-steps", type=int, help="0 for none  [default: 48; quick 0]")
    parser.add_argument("--work", type=Path, help="where results are kept  [default: the JSON's name with .work]")
    options = parser.parse_args(given)
    quick = options.quick
    options.seeds = options.seeds if options.seeds is not None else (1 if quick else 5)
    options.methods = _names(options.methods, QUICK if quick else tuple(METHODS), METHODS, "method")
    options.formats = _names(options.formats, QUICK_TYPES if quick else TYPES, (*EXPORT_TYPES, NF4), "format")
    options.samples = options.samples if options.samples is not None else (8 if quick else 100)
    options.relearning_steps = options.relearning_steps if options.relearning_steps is not None else 48 * (not quick)
    options.work = options.work or options.json.with_suffix(".work")
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise InputError(f"--seeds {options.seeds}, needed 1 to {MOST_SEEDS}")
    for name, value, least in (
        ("--samples", options.samples, 0),
        ("--retain-items", options.retain_items, 1),
        ("--relearning-steps", options.relearning_steps, 0),
    ):
        if value < least:
            raise InputError(f"{name} {value}, needed at least {least}")
    if options.json.is_dir():
        raise InputError(f"--json {options.json}: found a folder, needed a file or a free name")
    if not options.json.absolute().parent.is_dir():
        raise InputError(f"there is no folder {options.json.parent} for {options.json.name}")
    return options


def _names(given: str | None, default: Sequence[str], known: Sequence[str] | Mapping[str, Any], what: str) -> list[str]:
    names = list(default) if given is None else [name.strip() for name in given.split(",")]
    for name in names:
        if name not in known:
            raise InputError(f"no {what} is called {name!r}, needed some of {', '.join(known)}")
    return list(dict.fromkeys(names))


def _recipe(options: argparse.Namespace, progress: Progress) -> Recipe:
    recipe = load_recipe(options.recipe) if options.recipe else None
    if recipe is None:
        recipe = prepare_demo(options.work, progress, widened=options.widened)
    # The F16 file is what the others are compared with; the pipeline makes no baseline of its own here.
    types = tuple(kind for kind in dict.fromkeys(("F16", *options.formats)) if kind != NF4)
    return replace(recipe, export=replace(recipe.export, types=types), verify=replace(recipe.verify, baselines=False))


def questions_hash(questions: Sequence[Question]) -> str:
    """SHA-256 of all that is asked, word for word."""
    return hashlib.sha256(json.dumps([asdict(question) for question in questions]).encode()).hexdigest()


@dataclass(frozen=True)
class _Bench:
    """All that one (method, seed, type) needs, and where its result is kept."""

    shared: Shared
    directory: RunDirectory
    questions: list[Question]
    chosen: Roles
    types: tuple[str, ...]
    samples: int
    relearning_steps: int
    code: str

    def inputs(self, **own: Any) -> dict[str, Any]:
        """What decides a result, without making anything: versions, code, shared stages, the recipe, the request.

        Stock files follow from the original and llama.cpp's version; their stage lists which were asked for, and
        another type more must not undo what is kept.
        """
        stages = {
            stage: read_json(self.shared.run / stage / STAGE_FILE)["outputs"]
            for stage in ("load", "facts", "attribute")
        }
        return {"versions": tool_versions(), "code": self.code, "stages": stages, **own}

    def kept(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        done = self.directory.current(name, inputs)
        return None if done is None else read_json(done.path / RESULT)

    def keep(self, name: str, inputs: Mapping[str, Any], build: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The kept result, or what ``build`` says now."""
        done = self.directory.stage(name, inputs, lambda out: write_json_atomically(out / RESULT, dict(build())))
        return read_json(done.path / RESULT)

    def asking(self) -> dict[str, Any]:
        return {
            "roles": asdict(self.chosen),
            "samples": self.samples,
            "questions": questions_hash(self.questions),
            "max_new_tokens": self.shared.recipe.verify.max_new_tokens,
        }

    def original(self, file_type: str) -> dict[str, Any]:
        # Nothing is compared with what the original says when it is sampled.
        name, inputs = f"original-{file_type.lower()}", self.inputs(**{**self.asking(), "samples": 0})
        return self.keep(name, inputs, lambda: self._original(file_type))

    def _original(self, file_type: str) -> dict[str, float | None]:
        if file_type != NF4:
            return self.asked(self.shared.stock(file_type), samples=0)
        with tempfile.TemporaryDirectory(dir=self.shared.run, prefix=".made-original-") as folder:
            file = Path(folder) / f"{NF4}.gguf"
            write_nf4(self.shared.stock("F16"), file)
            return self.asked(file, samples=0)

    def asked(self, file: Path, *, samples: int) -> dict[str, float | None]:
        return measure(self.shared, file, self.questions, self.chosen, samples=samples)

    def edit(self, changes: Mapping[str, Any], seed: int) -> Path:
        """The folder of a trained edit; it is small, and stays."""
        name = "-".join(["edit", str(seed), *(f"{key}_{value}".replace(".", "_") for key, value in changes.items())])
        options = asdict(replace(self.shared.recipe.unlearn, seed=seed, **changes))
        done = self.directory.stage(
            name, self.inputs(options=options), lambda out: make_edit(self.shared, dict(changes), seed, out)
        )
        if not done.skipped:
            remove_states(self.directory.path)
        return done.path

    def method(self, name: str, seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """(type to figures, what is said of the method as a whole), made and asked as far as it is not kept."""
        method = METHODS[name]
        stem = f"{name}-{seed}"
        asking = {
            **self.inputs(method=asdict(method), seed=seed, unlearn=asdict(self.shared.recipe.unlearn)),
            **self.asking(),
        }
        named = {kind: (f"result-{stem}-{kind.lower()}", asking) for kind in self.types}
        made_of = {"relearning_steps": self.relearning_steps, "type": self._judged(), "types": sorted(self.types)}
        whole = (f"about-{stem}", {**asking, **made_of})  # its time is that of all files
        found = {kind: self.kept(*each) for kind, each in named.items()}
        about = self.kept(*whole)
        missing = [kind for kind, figures in found.items() if figures is None]
        problems = []
        if missing or about is None:
            with tempfile.TemporaryDirectory(dir=self.shared.run, prefix=f".made-{stem}-") as folder:
                files = Path(folder)
                try:
                    if about is None:
                        made = self._made(method, name, seed, [*self.types, self._judged()], files)
                        about = self.keep(*whole, lambda: self._whole(made, files))
                    else:
                        self._made(method, name, seed, missing, files)
                except (EvaluationError, UnsupportedError) as error:  # as a training that diverges, or a type refused
                    problems.append(str(error))
                for kind in missing:
                    file = files / f"{kind}.gguf"
                    if not file.exists():
                        continue
                    try:
                        found[kind] = self.keep(*named[kind], lambda file=file: self.asked(file, samples=self.samples))
                    except EvaluationError as error:
                        problems.append(f"{kind}: {error}")
        about = {**(about or {}), **({"problem": "; ".join(problems)} if problems else {})}
        return {kind: each for kind, each in found.items() if each}, about

    def _judged(self) -> str:
        """The type of the file that is attributed and trained again: that of the trained grid, if it is asked for."""
        grid = self.shared.recipe.unlearn.grid
        return grid if grid in self.types else next(kind for kind in reversed(self.types) if kind != NF4)

    def _made(self, method: Method, name: str, seed: int, types: Sequence[str], folder: Path) -> dict[str, float]:
        types = list(dict.fromkeys(types))
        self.shared.progress.note(f"{name}, seed {seed}: making {', '.join(types)}")
        edit = None if method.kind == "baseline" else self.edit(method.changes, seed)
        made = make_files(self.shared, method, seed, edit, types, folder)
        if edit is not None:
            made["seconds"] += _seconds(edit)
        if edit is not None or method.in_circuit:
            made["seconds"] += _seconds(self.shared.run / "attribute")
        return made

    def _stock_attribution(self, kind: str) -> np.ndarray:
        """What the stock file's neurons do: beside it a shipped file differs by its edit, not by being rounded."""

        def build(out: Path) -> None:
            np.save(out / SCORES, attribution(self.shared, self.shared.stock(kind)))

        options = asdict(self.shared.recipe.attribute)
        done = self.directory.stage(f"attribution-{kind.lower()}", self.inputs(options=options, type=kind), build)
        scores: np.ndarray = np.load(done.path / SCORES)
        return scores

    def _whole(self, made: Mapping[str, float], folder: Path) -> dict[str, Any]:
        kind = self._judged()
        file = folder / f"{kind}.gguf"
        steps = self.relearning_steps
        again = None
        if steps:
            stock = self.shared.stock(kind)
            again = relearned(self.shared, file, stock, self.questions, self.chosen.forgotten, steps=steps)
        moved = circuit_divergence(self._stock_attribution(kind), attribution(self.shared, file))
        return {**made, "type": kind, "divergence": moved, "relearning": again}


def _seconds(stage: Path) -> float:
    record = read_json(stage / STAGE_FILE)
    started, finished = (datetime.fromisoformat(record[key]) for key in ("started", "finished"))
    return (finished - started).total_seconds()


def _run(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    options.work.mkdir(parents=True, exist_ok=True)
    recipe = _recipe(options, progress)
    run_pipeline(recipe, options.work, progress, until="attribute")
    facts, _ = load_facts(options.work / "facts")
    reverse = options.reverse if any(fact.relation == options.reverse for fact in facts) else None
    if not any(fact.relation == options.forgotten and fact.split == "forget" for fact in facts):
        raise InputError(f"no fact to forget has the relation {options.forgotten!r}", hint="name one by --forgotten")
    chosen = roles(facts, options.forgotten, reverse)
    questions = questions_of(
        facts, chosen, retain_items=options.retain_items, trained_phrasings=recipe.verify.trained_phrasings
    )
    seeds, types = list(range(options.seeds)), tuple(dict.fromkeys(("F16", *options.formats)))
    results: dict[tuple[str, int, str], dict[str, Any]] = {}
    about: dict[tuple[str, int], dict[str, Any]] = {}
    problems: dict[str, list[str]] = {name: [] for name in options.methods}
    with RunDirectory(options.work) as directory:
        for left in options.work.iterdir():
            if MADE.fullmatch(left.name) and left.is_dir():
                shutil.rmtree(left)
        bench = _Bench(
            Shared(recipe, options.work, progress),
            directory,
            questions,
            chosen,
            types,
            options.samples,
            options.relearning_steps,
            code_hash(PACKAGE, *CODE),
        )
        originals = {kind: bench.original(kind) for kind in types}
        for seed in seeds:
            for name in options.methods:
                found, whole = bench.method(name, seed)
                results.update({(name, seed, kind): figures for kind, figures in found.items()})
                about[name, seed] = whole
                if "problem" in whole:
                    problems[name].append(f"seed {seed}: {whole['problem']}")
                progress.note(f"{name}, seed {seed}: done")
    return {
        "schema_version": 1,
        "model": recipe.model.path.name,
        "versions": tool_versions(),
        "seeds": seeds,
        "types": types,
        "roles": asdict(chosen),
        "samples": options.samples,
        "originals": originals,
        "methods": {
            name: {
                "meaning": METHODS[name].meaning,
                "problems": problems[name],
                "rows": method_rows(name, results, originals, seeds, types),
                "whole": whole_rows(name, about, seeds),
                "figures": {
                    str(seed): {kind: results[name, seed, kind] for kind in types if (name, seed, kind) in results}
                    for seed in seeds
                },
                "about": {str(seed): about[name, seed] for seed in seeds},
            }
            for name in options.methods
        },
    }


def main(description: str | None, given: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    try:
        options = _arguments(description, given)
        document = _run(options, progress_for(quiet=False))
    except GgufForgetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: results are kept, run the same command again to go on", file=sys.stderr)
        return 130
    options.json.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(render(document))
    return 0
