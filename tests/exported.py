"""Edits of the tiny shapes, and an export of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gguf_forget.export.inputs import opened_pair
from gguf_forget.export.quantize import ExportOptions, Hessians, export_type, plan_export
from gguf_forget.llama.options import Importance
from gguf_forget.progress import Progress

UP, DOWN, NORM = "blk.0.ffn_up.weight", "blk.1.ffn_down.weight", "output_norm.weight"
FILE_TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS"]


def edited(weights: dict[str, np.ndarray], seed: int = 1, size: float = 0.02) -> dict[str, np.ndarray]:
    """3 % of two matrices and one norm are edited."""
    generator = np.random.default_rng(seed)
    result = dict(weights)
    for name in (UP, DOWN, NORM):
        change = size * generator.standard_normal(weights[name].shape) * (generator.random(weights[name].shape) < 0.03)
        result[name] = (weights[name] + change).astype(np.float32)
    return result


def run(
    original: Path,
    unlearned: Path,
    out: Path,
    file_type: str,
    options: ExportOptions | None = None,
    hessians: Hessians = lambda name: None,
) -> dict:
    options = options or ExportOptions(threads=2)
    with opened_pair(original, unlearned, out.parent, Progress()) as pair:
        planned = plan_export(pair, [file_type], options)
        return export_type(pair, planned, file_type, out, options, Progress(), hessians)


def random_importance(weights: dict[str, np.ndarray]) -> Importance:
    """Of every matrix; the values need only be positive to matter."""
    generator = np.random.default_rng(3)
    values = {
        name: generator.exponential(size=array.shape[1]).astype(np.float32)
        for name, array in weights.items()
        if array.ndim == 2
    }
    return Importance(Path("imatrix"), values)
