"""libggml itself, through ctypes: the oracle for the block codecs."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np

TYPE_IDS = {  # ggml_type
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
}
LIBRARY_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """libggml-base of the installed llama_cpp package; llama_cpp itself is not imported."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise RuntimeError("llama_cpp is not installed: the codec tests need its libggml-base")
    folder = Path(spec.origin).parent / "lib"
    for name in LIBRARY_NAMES:
        if (folder / name).exists():
            loaded = ctypes.CDLL(str(folder / name))
            break
    else:
        raise RuntimeError(f"none of {LIBRARY_NAMES} in {folder}")
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    loaded.ggml_row_size.restype = ctypes.c_size_t
    loaded.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    return loaded


def quantize(type_name: str, weights: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """llama.cpp's own bytes, uint8 [rows, bytes_per_row], for float32 [rows, columns]."""
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    rows, columns = weights.shape
    row_bytes = library().ggml_row_size(TYPE_IDS[type_name], columns)
    blocks = np.zeros((rows, row_bytes), dtype=np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        assert importance.shape == (columns,)
    written = library().ggml_quantize_chunk(
        TYPE_IDS[type_name],
        weights.ctypes.data,
        blocks.ctypes.data,
        0,
        rows,
        columns,
        None if importance is None else importance.ctypes.data,
    )
    assert written == blocks.size
    return blocks


def dequantize(type_name: str, blocks: np.ndarray, columns: int) -> np.ndarray:
    """libggml's ``dequantize_row_*`` of uint8 [rows, bytes_per_row], float32 [rows, columns]."""
    blocks = np.ascontiguousarray(blocks)
    suffix = type_name.lower().replace("_k", "_K")
    function = getattr(library(), f"dequantize_row_{suffix}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    weights = np.empty((blocks.shape[0], columns), dtype=np.float32)
    function(blocks.ctypes.data, weights.ctypes.data, weights.size)
    return weights
