"""Stage 1 on models that no block type fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import build_tiny_gguf

from gguf_forget.errors import InputError
from gguf_forget.export.split import groups_by_size, write_split
from gguf_forget.progress import Progress
from gguf_forget.stages.load import model_hash, quantize_stock
from gguf_forget.whole_file import sha256_file


def test_rows_that_no_block_fits_are_refused_by_the_types_name(tmp_path: Path) -> None:
    model = build_tiny_gguf(tmp_path / "model.gguf", hidden=48, heads=2, kv_heads=1, feed_forward=80)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=r"no row of model\.gguf fits the blocks of Q8_0"):
        quantize_stock(model, ["F16", "Q8_0"], out, Progress())
    assert list(out.iterdir()) == []


def test_stock_files_are_llama_cpps_own(tmp_path: Path) -> None:
    from gguf_forget.llama.quantizer import quantize

    model = build_tiny_gguf(tmp_path / "model.gguf")
    out = tmp_path / "out"
    out.mkdir()
    quantize_stock(model, ["Q8_0"], out, Progress())
    quantize(model, tmp_path / "own.gguf", "Q8_0")
    assert (out / "Q8_0.gguf").read_bytes() == (tmp_path / "own.gguf").read_bytes()


def test_every_file_of_a_split_model_is_in_its_hash(tmp_path: Path) -> None:
    whole = build_tiny_gguf(tmp_path / "whole.gguf")
    assert model_hash(whole) == sha256_file(whole)
    parts = write_split(whole, groups_by_size(whole, 200_000), tmp_path / "parts.gguf")
    before = model_hash(parts[0])
    weights = bytearray(parts[-1].read_bytes())
    weights[-4] ^= 1
    parts[-1].write_bytes(weights)
    assert model_hash(parts[0]) != before
    parts[-1].unlink()
    with pytest.raises(InputError, match=rf"{parts[-1].name} is missing"):
        model_hash(parts[0])
