"""libggml's own block quantizer and decoder, a few rows at a time."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from ..errors import LlamaError, UnsupportedError
from .library import load
from .options import type_id


class _Traits(ctypes.Structure):
    """The start of ``struct ggml_type_traits`` (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@functools.lru_cache(maxsize=1)
def _ggml() -> Any:
    load()
    from llama_cpp._ggml import libggml

    try:
        libggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        libggml.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]
        libggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        libggml.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
        libggml.ggml_row_size.restype = ctypes.c_size_t
        libggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        libggml.ggml_validate_row_data.restype = ctypes.c_bool
        libggml.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        libggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
        libggml.ggml_get_type_traits.argtypes = [ctypes.c_int]
    except AttributeError as error:
        raise LlamaError(
            "libggml of the installed llama-cpp-python lacks a function",
            cause=str(error),
            hint="install the tested version",
        ) from error
    return libggml


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of a row of ``columns`` weights."""
    return int(_ggml().ggml_row_size(type_id(type_name), columns))


def needs_importance(type_name: str) -> bool:
    """Whether libggml quantizes to that type with an importance matrix only; without one it ends the process."""
    return bool(_ggml().ggml_quantize_requires_imatrix(type_id(type_name)))


def quantize_rows(type_name: str, weights: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Exactly the bytes that llama.cpp writes for these rows, uint8 [rows, bytes per row].

    weights: float32 [rows, columns]; importance: float32 [columns], needed by the smallest types.
    """
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    rows, columns = weights.shape
    blocks = np.empty((rows, row_bytes(type_name, columns)), dtype=np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        if importance.size != columns:  # libggml would read on
            raise LlamaError(f"{importance.size} importances for rows of {columns} weights")
    pointer = None if importance is None else importance.ctypes.data
    written = _ggml().ggml_quantize_chunk(
        type_id(type_name), weights.ctypes.data, blocks.ctypes.data, 0, rows, columns, pointer
    )
    if written != blocks.nbytes:
        raise LlamaError(f"libggml wrote {written} bytes of {type_name}, {blocks.nbytes} are needed")
    return blocks


def dequantize_rows(type_name: str, blocks: np.ndarray, columns: int) -> np.ndarray:
    """The weights in ``blocks`` (uint8 [rows, bytes per row]) as libggml decodes them, float32 [rows, columns]."""
    blocks = np.ascontiguousarray(blocks)
    if type_name == "F32":
        return blocks.view(np.float32)
    traits = _ggml().ggml_get_type_traits(type_id(type_name)).contents
    if (traits.type_name or b"").decode().upper() != type_name or not traits.to_float:
        raise UnsupportedError(f"libggml cannot decode {type_name}", hint="install the tested llama-cpp-python")
    weights = np.empty((len(blocks), columns), dtype=np.float32)
    traits.to_float(blocks.ctypes.data, weights.ctypes.data, weights.size)
    return weights


def valid_rows(type_name: str, blocks: np.ndarray) -> bool:
    """Whether libggml finds no weight that is NaN or infinite in ``blocks``, uint8 [rows, bytes per row]."""
    blocks = np.ascontiguousarray(blocks)
    return bool(_ggml().ggml_validate_row_data(type_id(type_name), blocks.ctypes.data, blocks.nbytes))
