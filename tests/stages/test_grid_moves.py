"""Which grids the training can go through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import build_tiny_gguf

from gguf_forget.circuit.selection import Circuit
from gguf_forget.errors import UnsupportedError
from gguf_forget.llama.quantizer import quantize
from gguf_forget.stages.trained_grid import grid_moves


def test_a_code_book_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    model = build_tiny_gguf(tmp_path / "narrow.gguf", hidden=192, heads=3, kv_heads=3, feed_forward=320)
    stock = tmp_path / "IQ4_XS.gguf"
    quantize(model, stock, "IQ4_XS", threads=1)  # rows of 192 fit only IQ4_NL
    circuit = Circuit((np.array([1, 5]), np.array([], np.int64)), 320)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.ffn_gate\.weight is IQ4_NL in IQ4_XS\.gguf, whose levels"):
        grid_moves([stock], circuit, "llama", floor=1)
