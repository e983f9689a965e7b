"""What an auditor keeps, in one folder: the last stage of a run, or what ``quantize --evidence`` writes.

    evidence.json     what went in and what came out, by SHA-256; versions, machine, seeds; the files below by SHA-256
    moves/            for each shipped file all that differs from the stock file (see gguf_forget.export.moves)

of a run also

    report.json       the report
    recipe.json       the recipe as resolved, paths shortened to file names
    scores/           every probe item of every file judged (hashes and log-probabilities), gzip

The verdict follows from scores and recipe, the shipped files from the stock files and moves. No fact is in it in clear;
whoever suspects a certain fact can still find out from the items' hashes whether it was asked about.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_forget.export.moves import SUFFIX, MovesFile, write_moves
from gguf_forget.progress import Progress
from gguf_forget.recipe import Recipe
from gguf_forget.report.document import content_hash
from gguf_forget.run_directory import read_json, write_json_atomically
from gguf_forget.whole_file import sha256_file

MANIFEST, REPORT, RECIPE, SCORES, MOVES = "evidence.json", "report.json", "recipe.json", "scores", "moves"
RUN, EXPORT, SCHEMA_VERSION = "evidence of a run", "evidence of an export", 1
LARGEST_SCORES = 1 << 30  # bytes; compressed zeros must not fill the memory


def score_name(row: str) -> str:
    return row.replace("/", ".") + ".json.gz"


def write_evidence(
    recipe: Recipe, folders: Mapping[str, Path], score_folders: Mapping[str, Path], out: Path, progress: Progress
) -> None:
    """Fill ``out``. ``folders``: of the stages load, stock, facts, attribute, unlearn, export and report.

    Raises EvaluationError where a shipped file does not follow from its stock file.
    """
    report = read_json(folders["report"] / REPORT)
    shutil.copyfile(folders["report"] / REPORT, out / REPORT)
    from gguf_forget.stages.facts import TEXT

    resolved = recipe.without_folders()
    write_json_atomically(out / RECIPE, resolved)
    (out / SCORES).mkdir()
    for row, folder in score_folders.items():
        # No time, no name, a fixed level: the same scores give the same bytes.
        raw = gzip.compress((folder / "scores.json").read_bytes(), compresslevel=9, mtime=0)
        (out / SCORES / score_name(row)).write_bytes(raw)
    outputs = {}
    with progress.task("list of moved codes", len(recipe.export.types)) as advance:
        for kind in recipe.export.types:
            stock, shipped = folders["stock"] / f"{kind}.gguf", folders["export"] / f"unlearned.{kind}.gguf"
            outputs[kind] = list_moves(stock, shipped, kind, out)
            advance(1, kind)
    model = read_json(folders["load"] / "model.json")
    manifest = {
        "kind": RUN,
        "verdict": report["verdict"]["sentence"],
        "report_sha256": report["sha256"],
        "inputs": {
            "base": {"name": model["source"], "sha256": model["source_sha256"]},
            "facts": {"sha256": report["facts"]["sha256"]},
            "text": {"sha256": sha256_file(folders["facts"] / TEXT)},
        },
        "circuit": {"sha256": sha256_file(folders["attribute"] / "circuit.safetensors")},
        "edit": {"sha256": sha256_file(folders["unlearn"] / "edit.safetensors")},
        "outputs": outputs,
        "seeds": {name: section["seed"] for name, section in resolved.items() if "seed" in section},
        "tools": report["tools"],
        "environment": report["environment"],
    }
    seal(out, manifest)


def list_moves(stock: Path, shipped: Path, file_type: str, out: Path) -> dict[str, Any]:
    """Write the list by which ``shipped`` follows from ``stock`` into ``out``; returns what a manifest says of it.

    Raises EvaluationError where the shipped file does not follow.
    """
    (out / MOVES).mkdir(exist_ok=True)
    about = write_moves(stock, shipped, out / MOVES / f"{file_type}{SUFFIX}")
    moves = sum(entry["moves"] for entry in about.tensors.values())
    return {"stock": dict(about.stock), "shipped": dict(about.shipped), "moves": moves}


def moved_between(path: Path) -> tuple[str, str]:
    """SHA-256 of the stock and of the shipped file that a list of moves is between.

    Raises InputError for a file that is no such list.
    """
    about = MovesFile(path).about
    return str(about.stock["sha256"]), str(about.shipped["sha256"])


def seal(out: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest: ``content``, and every file that is in ``out`` by now."""
    manifest = {
        "schema_version": SCHEMA_VERSION,
        **content,
        "files": {
            path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(out.rglob("*"))
            if path.is_file()
        },
    }
    write_json_atomically(out / MANIFEST, {**manifest, "sha256": content_hash(manifest)})


def read_scores(path: Path) -> Any:
    """The JSON of one scores file. Raises OSError, ValueError or EOFError for one damaged or too large."""
    with gzip.open(path, "rb") as file:
        raw = file.read(LARGEST_SCORES + 1)
    if len(raw) > LARGEST_SCORES:
        raise ValueError(f"more than {LARGEST_SCORES:,} bytes")
    return json.loads(raw)
