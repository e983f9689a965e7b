"""A circuit on disk: scores and selected neurons as safetensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.circuit.selection import Circuit
from gguf_forget.errors import InputError


def save_circuit(
    path: Path,
    circuit: Circuit,
    forget: np.ndarray,
    retain: np.ndarray,
    others: Mapping[str, np.ndarray] | None = None,
) -> None:
    """``mask`` uint8, ``forget`` and ``retain`` scores float64, all [L, d_ff]; ``others`` beside them by name."""
    from safetensors.numpy import save_file

    arrays = {"mask": circuit.mask().astype(np.uint8), "forget": forget, "retain": retain, **(others or {})}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def load_circuit(path: Path) -> tuple[Circuit, np.ndarray, np.ndarray]:
    """Circuit, forget scores, retain scores."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        mask = arrays["mask"].astype(bool)
        forget, retain = arrays["forget"], arrays["retain"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"the circuit {path} cannot be read", cause=str(error)) from error
    circuit = Circuit(tuple(np.flatnonzero(row).astype(np.int64) for row in mask), mask.shape[1])
    return circuit, forget, retain


def plain(value: Any) -> Any:
    """As JSON can hold it: tuples as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
