"""A shipped file again, from its stock file and the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.export.moves import SUFFIX, MovesFile, check_stock, rebuild
from gguf_forget.stages import evidence as bundle
from gguf_forget.stages.recompute import CHANGED, MALFORMED, read_manifest
from gguf_forget.whole_file import check_folder_writable, check_output, real_path, sha256_file


def rebuild_file(stock: Path, evidence: Path, out: Path, *, dry_run: bool) -> dict[str, Any]:
    """Write ``out`` and say what it is. ``evidence``: an evidence folder, or a list of moves.

    Raises InputError for a stock file that no list was made from, or an ``out`` that is one of the inputs, lies in the
    evidence folder or cannot be written; EvaluationError where the result is not the file that was shipped.
    """
    if not stock.is_file():
        raise InputError(f"the stock file {stock} is no file, needed a GGUF", hint="check the path")
    _check_out(out, stock, evidence)
    moves = MovesFile(_list_for(stock, evidence) if evidence.is_dir() else evidence)
    if dry_run:
        check_stock(stock, moves)
    else:
        rebuild(stock, moves, out)
    about = moves.about
    return {
        "schema_version": 1,
        "out": str(out),
        "stock": dict(about.stock),
        "shipped": dict(about.shipped),
        "moves": sum(entry["moves"] for entry in about.tensors.values()),
    }


def _check_out(out: Path, stock: Path, evidence: Path) -> None:
    """Refuse, before any work, to write over an input or into the evidence, whose files are sealed by hashes."""
    folder = _folder_of(evidence)
    inside = [] if folder is None else [path for path in folder.rglob("*") if path.is_file()]
    check_output(out, [stock, evidence, *inside])
    if folder is not None and real_path(out).is_relative_to(real_path(folder)):
        raise InputError(f"{out} lies in the evidence folder {folder}", hint="choose a place outside it")
    check_folder_writable(out.parent)


def _folder_of(evidence: Path) -> Path | None:
    """The evidence folder: the one given, or the one that the list of moves given lies in."""
    for folder in (evidence, real_path(evidence).parent.parent):
        if (folder / bundle.MANIFEST).is_file():
            return folder
    return None


def _list_for(stock: Path, folder: Path) -> Path:
    """The list of an evidence folder that was made from this stock file."""
    if not (folder / bundle.MANIFEST).is_file():
        raise InputError(f"{folder} holds no {bundle.MANIFEST}", hint="give the evidence folder of a run or an export")
    manifest = read_manifest(folder, bundle.RUN, bundle.EXPORT)
    try:
        known = {kind: record["stock"]["sha256"] for kind, record in manifest["outputs"].items()}
    except MALFORMED as error:
        raise EvaluationError(f"{bundle.MANIFEST} is malformed", cause=repr(error), hint=CHANGED) from error
    found = sha256_file(stock)
    for kind, digest in known.items():
        if digest == found:
            moves = folder / bundle.MOVES / f"{kind}{SUFFIX}"
            if bundle.moved_between(moves) != (digest, manifest["outputs"][kind]["shipped"]["sha256"]):
                raise EvaluationError(f"{moves} is of other files than {bundle.MANIFEST} names", hint=CHANGED)
            return moves
    raise InputError(
        f"{stock} has sha256 {found}, needed one of {', '.join(f'{v} ({k})' for k, v in known.items())}",
        hint="give the stock quantization that was edited: llama.cpp's own file of the original",
    )
