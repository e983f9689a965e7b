"""Arguments, the order of things, the table and the JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf_forget.checkpoint.load import load_tokenizer
from gguf_forget.errors import GgufForgetError
from gguf_forget.facts.schema import dump_facts
from gguf_forget.llama.child import run_in_child
from gguf_forget.llama.quantizer import quantize
from gguf_forget.pipeline import judged_files, run
from gguf_forget.progress import Progress, progress_for
from gguf_forget.recipe import Recipe, recipe_from_mapping
from invented_facts_benchmark.judging import ask, row
from invented_facts_benchmark.model import new_model, train_tokenizer, write_gguf
from invented_facts_benchmark.people import Person, facts_about, invent_people
from invented_facts_benchmark.teaching import lessons, taught_texts, teach


def _arguments(description: str | None, given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("--folder", type=Path, help="where models and the run are kept  [default: a temporary one]")
    parser.add_argument("--people", type=int, nargs=3, default=(8, 18, 10), metavar=("FORGET", "RETAIN", "UNSEEN"))
    parser.add_argument("--passes", type=int, default=40, help="over the lives  [default: %(default)s]")
    parser.add_argument("--types", default="F16,Q8_0,Q4_K_M", help="file types, by comma  [default: %(default)s]")
    parser.add_argument("--steps", type=int, default=81, help="of unlearning  [default: %(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[default: %(default)s]")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    return parser.parse_args(given)


def _teach_all(
    folder: Path, people: Sequence[Person], options: argparse.Namespace, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Write taught.gguf, twin.gguf and twin2.gguf; how well each learned its lessons."""
    tokenizer = train_tokenizer(taught_texts(people))
    tokenize = load_tokenizer(write_gguf(new_model(tokenizer, seed=options.seed), tokenizer, folder / "start.gguf"))
    known = [person for person in people if person.group != "unseen"]
    kept = [person for person in people if person.group == "retain"]
    learned = {}
    for name, taught, start in (("taught", known, 0), ("twin", kept, 0), ("twin2", kept, 1)):
        model = new_model(tokenizer, seed=options.seed + start)
        given = lessons(taught, tokenize)
        steps = -(-len(given) * options.passes // 4)
        with progress.task(f"teaching {name}", steps) as advance:
            loss = teach(
                model, given, passes=options.passes, people_a_step=4, seed=options.seed + start, progress=advance
            )
        write_gguf(model, tokenizer, folder / f"{name}.gguf")
        learned[name] = {"people": len(taught), "steps": steps, "final_loss_nats": loss}
    return learned


def _recipe(folder: Path, people: Sequence[Person], options: argparse.Namespace) -> Recipe:
    facts = facts_about(people, seed=options.seed)
    (folder / "facts.jsonl").write_bytes(dump_facts(facts))
    # What is not to change, for the KL and the perplexity: all that was taught of those who are kept.
    kept = taught_texts([person for person in people if person.group == "retain"])
    (folder / "text.txt").write_text("\n\n".join(kept), encoding="utf-8")
    mapping = {
        "model": {"path": str(folder / "taught.gguf")},
        "facts": {"path": str(folder / "facts.jsonl")},
        "text": {"path": str(folder / "text.txt")},
        "unlearn": {"steps": options.steps, "seed": options.seed},
        # In so small a model nearly every neuron takes part in every fact; a few percent of them hold none alone.
        "attribute": {"seed": options.seed, "budget": 0.2, "layer_cap": 0.5},
        "export": {"types": options.types.split(",")},
    }
    return recipe_from_mapping(mapping, source="the benchmark's recipe", base=folder)


def _measure(folder: Path, options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    clock = time.perf_counter()
    people = invent_people(options.people, seed=options.seed)
    learned = _teach_all(folder, people, options, progress)
    recipe = _recipe(folder, people, options)
    facts = facts_about(people, seed=options.seed)
    outcome = run(recipe, folder / "run", progress)
    files = {key: folder / "run" / stage / name for key, (stage, name) in judged_files(recipe).items()}
    for file_type in sorted({key.split("/")[1] for key in files}):
        for twin in ("twin", "twin2"):
            file = folder / f"{twin}.{file_type}.gguf"
            run_in_child(quantize, folder / f"{twin}.gguf", file, file_type)
            files[f"{twin}/{file_type}"] = file
    with progress.task("asking every file", len(files)) as advance:
        known = {}
        for key, file in files.items():
            known[key] = ask(file, facts, people)
            advance(1, key)
    rows = [row(*key.split("/"), found, known[f"twin/{key.split('/')[1]}"]) for key, found in known.items()]
    return {
        "schema_version": 1,
        "seed": options.seed,
        "people": dict(zip(("forget", "retain", "unseen"), options.people, strict=True)),
        "taught": learned,
        "verdict": outcome.report["verdict"] if outcome.report else None,
        "rows": rows,
        "seconds": time.perf_counter() - clock,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    columns = (
        ("accuracy forget", "forget_accuracy", ".3f"),
        ("accuracy retain", "retain_accuracy", ".3f"),
        ("answer p", "answer_probability", ".3f"),
        ("said", "exact_memorisation", ".3f"),
        ("truth ratio", "truth_ratio", ".3f"),
        ("forget quality", "forget_quality", ".2g"),
        ("Min-K AUC", "membership_auc", ".3f"),
        ("PrivLeak %", "privacy_leak", "+.1f"),
    )
    lines = [f"{'file':18}{'type':8}" + "".join(f"{label:>16}" for label, _, _ in columns)]
    for found in sorted(rows, key=lambda r: (r["type"], r["file"])):
        cells = "".join(f"{format(found[key], form):>16}" for _, key, form in columns)
        lines.append(f"{found['file']:18}{found['type']:8}{cells}")
    return "\n".join(lines)


def main(description: str | None, given: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = _arguments(description, given)
    progress = progress_for(quiet=options.quiet)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            document = _measure(folder, options, progress)
    except GgufForgetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    options.json.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(table(document["rows"]))
    print(f"{document['seconds']:.0f} s")
    return 0
