"""The trainable edit: the circuit's neurons on the grids of the original's quantized files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gguf_forget.checkpoint.architecture import architecture
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.circuit.selection import Circuit
from gguf_forget.errors import UnsupportedError
from gguf_forget.grids import codec_for
from gguf_forget.unlearning.code_moves import ROLES, CodeMoves, WeightGrid


def tensor_name(kind: str, role: str, layer: int) -> str:
    """What a GGUF of architecture ``kind`` calls a layer's gate, up or down projection."""
    names = architecture(kind)
    return {"gate": names.gguf_gate, "up": names.gguf_up, "down": names.gguf_down}[role].format(layer)


def _weight_grid(file: GgufFile, name: str, role: str, neurons: np.ndarray) -> WeightGrid:
    """The grid of these neurons' weights in a tensor, neuron-major."""
    levels = codec_for(file.type_name(name)).decode(file.rows(name))
    if levels.table is not None:
        raise UnsupportedError(
            f"{name} is {file.type_name(name)} in {file.path.name}, whose levels are not evenly spaced",
            hint="train through an evenly spaced grid, such as Q4_K_M or Q4_0",
        )
    codes, steps = levels.codes.astype(np.float32), levels.scale_per_weight()
    if role == "down":
        codes, steps = codes.T, steps.T
    own = torch.from_numpy(np.ascontiguousarray(codes[neurons]))
    step = torch.from_numpy(np.ascontiguousarray(steps[neurons]))
    return WeightGrid(step, levels.lowest - own, levels.highest - own)


def grid_moves(stocks: Sequence[Path], circuit: Circuit, kind: str, *, floor: int) -> list[CodeMoves]:
    """The trainable edit: for every layer of the circuit its neurons' codes on the grid of the first of ``stocks``.

    The others' grids are those that it is to survive in.
    """
    files = [GgufFile(stock) for stock in stocks]
    edits = []
    for layer, neurons in enumerate(circuit.neurons):
        if not len(neurons):
            continue
        for role in ROLES:
            name = tensor_name(kind, role, layer)
            own, *others = (_weight_grid(file, name, role, neurons) for file in files)
            edits.append(
                CodeMoves(
                    layer,
                    role,
                    torch.from_numpy(neurons),
                    own.step,
                    own.lowest,
                    own.highest,
                    floor=floor,
                    others=tuple(others),
                )
            )
    return edits
