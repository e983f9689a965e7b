"""The grid that llama.cpp would put a model's tensors on, a few rows at a time and without a file."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.stored import READABLE, StoredTensor
from gguf_forget.errors import InputError
from gguf_forget.export.stock_file import NEEDS_IMPORTANCE
from gguf_forget.grids import CODECS, Codec
from gguf_forget.llama.blocks import quantize_rows
from gguf_forget.llama.options import Importance, QuantizeOptions
from gguf_forget.llama.quantizer import plan_file

_EMBEDDINGS = "token_embd.weight"


@dataclass(frozen=True)
class ShippedGrid:
    """Of one tensor. importance: float32 [experts, columns], None without."""

    codec: Codec
    tensor: StoredTensor
    importance: np.ndarray | None

    def blocks(self, start: int, stop: int, rows: np.ndarray) -> np.ndarray:
        """Of the run of rows from ``start`` to ``stop``, which lies in one expert, those at ``rows`` (int [R]).

        uint8 [R, bytes per row], the very bytes of llama.cpp's file.
        """
        if self.codec.name == self.tensor.type:  # what is of that type already is copied
            return self.tensor.raw[start:stop][rows]
        matrix = start // (self.tensor.rows // self.tensor.matrices)
        importance = None if self.importance is None else self.importance[matrix]
        return quantize_rows(self.codec.name, self.tensor.weights(start, stop)[rows], importance)


def shipped_grids(
    model: Path, tensors: Mapping[str, StoredTensor], file_type: str, options: QuantizeOptions
) -> dict[str, ShippedGrid]:
    """The grids of ``model``, whose ``tensors`` these are: of those in full precision that get a type with a codec.

    Raises InputError for a file type or options with which llama.cpp makes no file, else as
    :func:`gguf_forget.llama.quantizer.plan`.
    """
    types = plan_file(model, file_type, options).types
    if file_type == NEEDS_IMPORTANCE and options.importance is None:  # llama.cpp's plan does not mind
        raise InputError(
            f"llama.cpp makes no {file_type} without an importance matrix",
            hint="give one with --imatrix, or another type",
        )
    if options.importance is not None:
        check_names(options.importance, tensors, model)
    return {
        name: ShippedGrid(CODECS[kind], tensors[name], _importance(tensors[name], kind, options.importance))
        for name, kind in types.items()
        if kind in CODECS and tensors[name].type in READABLE
    }


def check_names(importance: Importance, tensors: Container[str], model: Path) -> None:
    """Raises InputError for an importance matrix that names none of the ``tensors`` of ``model``."""
    if not any(name in tensors for name in importance.values):
        raise InputError(
            f"{importance.path} names no tensor of {model}, its first is {next(iter(importance.values))}",
            hint="give the importance matrix of this very model",
        )


def _importance(tensor: StoredTensor, kind: str, importance: Importance | None) -> np.ndarray | None:
    if importance is None or kind == tensor.type or tensor.name not in importance.values:
        return None
    values = importance.of(tensor.name, tensor.columns, tensor.matrices)
    if values is not None or tensor.name == _EMBEDDINGS:  # llama.cpp goes without there, and refuses elsewhere
        return values
    raise InputError(
        f"{importance.path} holds {importance.values[tensor.name].size:,} importances for {tensor.name}, needed "
        f"{tensor.columns * tensor.matrices:,}",
        hint="give the importance matrix of this model",
    )
