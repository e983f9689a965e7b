"""A shipped file again, from its stock file and the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.export.moves import SUFFIX, MovesFile, rebuild
from gguf_forget.stages import evidence as bundle
from gguf_forget.stages.recompute import read_manifest
from gguf_forget.whole_file import sha256_file


def rebuild_file(stock: Path, evidence: Path, out: Path, *, dry_run: bool) -> dict[str, Any]:
    """Write ``out`` and say what it is. ``evidence``: an evidence folder, or a list of moves.

    Raises InputError for a stock file that no list was made from, or an ``out`` that is one of the inputs;
    EvaluationError where the result is not the file that was shipped.
    """
    if not stock.is_file():
        raise InputError(f"the stock file {stock} is no file, needed a GGUF", hint="check the path")
    if out.exists() and any(out.samefile(path) for path in (stock, evidence)):
        raise InputError(f"{out} is one of the inputs", hint="give another name for the result")
    moves = MovesFile(_list_for(stock, evidence) if evidence.is_dir() else evidence)
    about = moves.about
    if dry_run and (found := sha256_file(stock)) != about.stock["sha256"]:
        raise InputError(f"{stock} has sha256 {found}, needed {about.stock['sha256']}")
    if not dry_run:
        rebuild(stock, moves, out)
    return {
        "schema_version": 1,
        "out": str(out),
        "stock": dict(about.stock),
        "shipped": dict(about.shipped),
        "moves": sum(entry["moves"] for entry in about.tensors.values()),
    }


def _list_for(stock: Path, folder: Path) -> Path:
    """The list of an evidence folder that was made from this stock file."""
    if not (folder / bundle.MANIFEST).is_file():
        raise InputError(f"{folder} holds no {bundle.MANIFEST}", hint="give the evidence folder of a run or an export")
    outputs = read_manifest(folder, bundle.RUN, bundle.EXPORT)["outputs"]
    found = sha256_file(stock)
    known = {kind: record["stock"]["sha256"] for kind, record in outputs.items()}
    for kind, digest in known.items():
        if digest == found:
            return folder / bundle.MOVES / f"{kind}{SUFFIX}"
    raise InputError(
        f"{stock} has sha256 {found}, needed one of {', '.join(f'{v} ({k})' for k, v in known.items())}",
        hint="give the stock quantization that was edited: llama.cpp's own file of the original",
    )
