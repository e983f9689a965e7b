"""An edit as an artifact: what changes in which tensor, by neuron, in full precision.

Shapes: n neurons of one layer in the circuit, d = d_model. delta and allowed are [n, d], neuron-major: row i belongs
to row ``neurons[i]`` of a gate or up projection, or to column ``neurons[i]`` of a down projection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguf_forget.errors import InputError

ROWS, COLUMNS = "rows", "columns"
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NeuronEdit:
    """``delta``: unlearned minus original. ``allowed``: where rounding may move codes; delta is 0 elsewhere."""

    tensor: str  # the GGUF name
    axis: str  # ROWS or COLUMNS
    neurons: npt.NDArray[np.int64]
    delta: Floats
    allowed: Mask

    @property
    def edited(self) -> int:
        return int(np.count_nonzero(self.delta))

    def dense(self, rows: int, columns: int) -> tuple[Floats, Mask]:
        """delta float32 and allowed bool, both [rows, columns] as the tensor lies in the file."""
        delta = np.zeros((rows, columns), dtype=np.float32)
        allowed = np.zeros((rows, columns), dtype=bool)
        if self.axis == ROWS:
            delta[self.neurons], allowed[self.neurons] = self.delta, self.allowed
        else:
            delta[:, self.neurons], allowed[:, self.neurons] = self.delta.T, self.allowed.T
        return delta, allowed


def save_edits(edits: Iterable[NeuronEdit], path: Path) -> None:
    """As safetensors: ``<tensor>/<axis>/neurons``, ``…/delta``, ``…/allowed``."""
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    for edit in edits:
        prefix = f"{edit.tensor}/{edit.axis}"
        arrays[f"{prefix}/neurons"] = np.ascontiguousarray(edit.neurons, dtype=np.int64)
        arrays[f"{prefix}/delta"] = np.ascontiguousarray(edit.delta, dtype=np.float32)
        arrays[f"{prefix}/allowed"] = np.ascontiguousarray(edit.allowed, dtype=np.uint8)
    save_file(arrays, path)


def load_edits(path: Path) -> list[NeuronEdit]:
    """The inverse of :func:`save_edits`, tensors in the order of their names."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the edit {path} cannot be read", cause=str(error)) from error
    edits = []
    parts = ("neurons", "delta", "allowed")
    for prefix in sorted({key.rsplit("/", 1)[0] for key in arrays}):
        tensor, _, axis = prefix.rpartition("/")
        if missing := [part for part in parts if f"{prefix}/{part}" not in arrays]:
            raise InputError(f"the edit {path} has no {', '.join(missing)} for {prefix!r}, needed {', '.join(parts)}")
        edits.append(
            NeuronEdit(
                tensor,
                axis,
                arrays[f"{prefix}/neurons"],
                arrays[f"{prefix}/delta"],
                arrays[f"{prefix}/allowed"].astype(bool),
            )
        )
    return edits
