"""A circuit on disk: scores and selected neurons as safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gguf_forget.circuit.selection import Circuit
from gguf_forget.errors import InputError


def save_circuit(path: Path, circuit: Circuit, forget: np.ndarray, retain: np.ndarray) -> None:
    """``mask`` uint8, ``forget`` and ``retain`` scores float64, all [L, d_ff]."""
    from safetensors.numpy import save_file

    save_file({"mask": circuit.mask().astype(np.uint8), "forget": forget, "retain": retain}, path)


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
