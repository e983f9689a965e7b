"""A control without any grid: a model's weights and normal noise with the variance that a type's rounding has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.export.derived_file import write_derived
from gguf_forget.unlearning.controls import rounding_noise


def write_noisy(full: Path, restored: Path, target: Path, generator: np.random.Generator) -> None:
    """Write ``target``, F32 as ``full`` is: its matrices and noise as large as ``restored`` (``full`` quantized and
    decoded again, F32) is away from it, block by block."""
    weights, again = GgufFile(full), GgufFile(restored)
    noisy = {}
    for name in weights.tensors:
        original = weights.weights(name)
        if original.ndim == 2:
            changed = original + rounding_noise(original, again.weights(name), generator)
            noisy[name] = np.ascontiguousarray(changed).view(np.uint8).reshape(len(changed), -1)
    write_derived(full, target, metadata={}, tensors=noisy)
