"""The weights that bitsandbytes' NF4 would compute with, in a GGUF, so that llama.cpp can be asked about them.

NF4 (Dettmers et al., QLoRA, arXiv 2305.14314, appendix E): blocks of 64 weights of the flattened matrix, each stored as
the nearest of 16 levels in units of the block's largest magnitude. As usual all linear layers are stored so, and
embeddings, norms and the output are not; what is decoded is rounded to half precision, in which it is computed with.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.export.derived_file import write_derived

NF4 = "NF4"
BLOCK = 64
LINEAR = re.compile(r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight")
LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)


def nf4_rounded(weights: np.ndarray) -> np.ndarray:
    """float32 of the shape of ``weights``, of which there is a multiple of 64."""
    blocks = np.asarray(weights, dtype=np.float32).reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    place = blocks / np.where(largest > 0, largest, 1)
    codes = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, place)
    return (LEVELS[codes] * largest).reshape(weights.shape)


def write_nf4(source: Path, target: Path) -> None:
    """``source``: a GGUF whose linear layers are F16 or F32, as those of ``target`` will be."""
    file = GgufFile(source)
    tensors = {}
    for name in filter(LINEAR.fullmatch, file.tensors):
        half = nf4_rounded(file.weights(name)).astype(np.float16)
        stored = half if file.type_name(name) == "F16" else half.astype(np.float32)
        tensors[name] = stored.view(np.uint8).reshape(len(stored), -1)
    write_derived(source, target, metadata={}, tensors=tensors)
