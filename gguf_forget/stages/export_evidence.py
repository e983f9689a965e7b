"""The evidence of ``gguf-forget quantize``: what the files were made from, and the lists that give them back.

The stock files are made once more for it, one at a time: llama.cpp's own quantizations of the original with the same
options, which ``gguf-forget quantize ORIGINAL ORIGINAL STOCK TYPE`` or llama-quantize give to anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.export.moves import identity
from gguf_forget.export.quantize import ExportOptions
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress
from gguf_forget.stages.evidence import EXPORT, list_moves, seal
from gguf_forget.stages.machine import environment, tool_versions
from gguf_forget.whole_file import check_folder_writable, real_path, sha256_file


def check_folder(folder: Path, to_be_made: Path | None, others: Sequence[Path]) -> None:
    """Refuse, before any work, a place for the evidence that holds something already, or is one of the ``others``.

    ``to_be_made``: the folder of the results, where it is made later.
    """
    if folder.parent != to_be_made:
        check_folder_writable(folder.parent)
    if folder.is_symlink():
        raise InputError(f"the evidence folder {folder} is a symbolic link", hint="give a free path")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"the evidence folder {folder} is there and not empty", hint="give a free path")
    if real_path(folder) in {real_path(other) for other in others}:
        raise InputError(f"the evidence folder {folder} is a place of the results as well", hint="give a free path")


def write_export_evidence(
    original: Path,
    files: Mapping[str, Path],
    inputs: Mapping[str, Any],
    options: ExportOptions,
    asked: Mapping[str, Any],
    scratch: Path,
    progress: Progress,
    *,
    twins: Mapping[str, Path],
) -> Path:
    """Make the evidence in the empty directory ``scratch``; returns the folder, finished, to be renamed.

    Args:
        original: as a GGUF.
        files, twins: file type to file.
        inputs: base and unlearned, each with name and sha256.
        asked: what else was asked for, beside ``options``.

    Raises EvaluationError where a file does not follow from its stock file, InputError where nothing can be written.
    """
    outputs = {}
    made = scratch / "evidence"
    made.mkdir()
    with progress.task("list of moved codes", len(files)) as advance:
        for kind, shipped in files.items():
            stock = scratch / f"stock.{kind}.gguf"
            quantize(
                original,
                stock,
                kind,
                threads=options.threads,
                allow_requantize=True,
                options=options.quantize,
                durable=False,
            )
            outputs[kind] = list_moves(stock, shipped, kind, made)
            if kind in twins:
                outputs[kind]["twin"] = identity(twins[kind])
            stock.unlink()
            advance(1, kind)
    content = {
        "kind": EXPORT,
        "inputs": dict(inputs),
        "options": {**_options(options), **asked},
        "outputs": outputs,
        "tools": tool_versions(),
        "environment": environment(),
    }
    seal(made, content)
    return made


def _options(options: ExportOptions) -> dict[str, Any]:
    how = options.quantize
    return {
        **asdict(options.rounding),
        "pure": how.pure,
        "tensor_types": [list(pair) for pair in how.tensor_types],
        "output_tensor_type": how.output_tensor_type,
        "token_embedding_type": how.token_embedding_type,
        "imatrix_sha256": None if how.importance is None else sha256_file(how.importance.path),
    }
