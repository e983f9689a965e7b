"""Edits arrive in the file: on each type's grid, in their own direction, nothing else touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from libggml_oracle import dequantize
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.export.edit import COLUMNS, ROWS, NeuronEdit, load_edits, save_edits
from gguf_forget.export.ship import ship
from gguf_forget.grids import codec_for
from gguf_forget.llama.quantizer import quantize

UP, DOWN = "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"
QUANTIZED = ["Q8_0", "Q4_K_M", "Q4_0", "Q6_K", "Q5_1", "Q2_K", "Q3_K_M", "Q5_K_M", "IQ4_NL", "IQ4_XS"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_gguf(tmp_path_factory.mktemp("model") / "template.gguf")


def edits_on(stock: Path, seed: int = 0) -> list[NeuronEdit]:
    """Whole code moves, up or down by one or two where there is room, on one weight in eight of the edited neurons."""
    generator = np.random.default_rng(seed)
    file = GgufFile(stock)
    edits = []
    for name, axis in ((UP, ROWS), (DOWN, COLUMNS)):
        levels = codec_for(file.type_name(name)).decode(file.rows(name))
        neurons = np.array([1, 5, 100])
        codes, scale = levels.codes, levels.scale_per_weight()
        codes, scale = (codes[neurons], scale[neurons]) if axis == ROWS else (codes.T[neurons], scale.T[neurons])
        moves = generator.integers(-2, 3, codes.shape) * (generator.random(codes.shape) < 0.125)
        moved = np.where(scale == 0, codes, np.clip(codes + moves, levels.lowest, levels.highest))
        delta = (levels.level(moved) - levels.level(codes)) * scale
        edits.append(NeuronEdit(name, axis, neurons, delta, np.ones(delta.shape, bool)))
    return edits


@pytest.mark.parametrize("file_type", QUANTIZED)
def test_edits_on_the_files_own_grid_arrive_exactly(template: Path, tmp_path: Path, file_type: str) -> None:
    stock, out = tmp_path / "stock.gguf", tmp_path / "out.gguf"
    quantize(template, stock, file_type)
    edits = edits_on(stock)
    hessian = {UP: np.diag(np.arange(1.0, 257)) + 0.5, DOWN: np.eye(512) + 0.1}
    outcomes = ship(template, stock, out, edits, hessians=hessian, metadata={"gguf_forget.version": "0"})
    before, after = GgufFile(stock), GgufFile(out)
    for edit, outcome in zip(edits, outcomes, strict=True):
        rows, columns = 512 if edit.tensor == UP else 256, 256 if edit.tensor == UP else 512
        delta, _ = edit.dense(rows, columns)
        kind = before.type_name(edit.tensor)
        old = dequantize(kind, before.rows(edit.tensor), columns)
        new = dequantize(kind, after.rows(edit.tensor), columns)
        np.testing.assert_allclose(new - old, delta, atol=float(abs(old).max()) * 1e-6)
        assert outcome.edited == outcome.asked == outcome.landed == outcome.moved == np.count_nonzero(delta) > 50
        assert outcome.saturated == outcome.moved_by_compensation == 0
    for name in before.tensors:
        if name not in (UP, DOWN):
            assert np.array_equal(
                np.asarray(after.tensor(name).data).view(np.uint8),
                np.asarray(before.tensor(name).data).view(np.uint8),
            )


@pytest.mark.parametrize("file_type", QUANTIZED)
def test_edits_of_a_coarser_grid_land_in_their_direction(template: Path, tmp_path: Path, file_type: str) -> None:
    coarse, stock, out = tmp_path / "coarse.gguf", tmp_path / "stock.gguf", tmp_path / "out.gguf"
    quantize(template, coarse, "Q4_0")
    quantize(template, stock, file_type)
    edits = edits_on(coarse)
    outcomes = ship(template, stock, out, edits, hessians={}, metadata={"gguf_forget.version": "0"})
    before, after = GgufFile(stock), GgufFile(out)
    for edit, outcome in zip(edits, outcomes, strict=True):
        codec = codec_for(before.type_name(edit.tensor))
        old, new = codec.decode(before.rows(edit.tensor)), codec.decode(after.rows(edit.tensor))
        delta, allowed = edit.dense(*old.codes.shape)
        direction = np.sign(delta * old.scale_per_weight())
        went = np.sign(new.codes.astype(int) - old.codes)
        asked = np.abs(delta) >= 0.5 * old.step_towards(delta)
        asked &= delta != 0
        assert int(asked.sum()) == outcome.asked
        assert int(((went == direction) & asked).sum()) == outcome.landed
        assert outcome.landed + outcome.saturated == outcome.asked
        assert outcome.landed >= (0.6 if codec.name == "Q2_K" else 0.9) * outcome.asked > 0  # 4 codes saturate often
        assert np.array_equal(new.codes[~allowed], old.codes[~allowed])


def test_the_f16_file_holds_the_rounded_sum(template: Path, tmp_path: Path) -> None:
    stock, coarse, out = tmp_path / "stock.gguf", tmp_path / "coarse.gguf", tmp_path / "out.gguf"
    quantize(template, stock, "F16")
    quantize(template, coarse, "Q4_0")
    edits = edits_on(coarse)
    outcomes = ship(template, stock, out, edits, hessians={}, metadata={"gguf_forget.version": "0"})
    original, after = GgufFile(template), GgufFile(out)
    for edit, outcome in zip(edits, outcomes, strict=True):
        weights = original.weights(edit.tensor)
        expected = (weights + edit.dense(*weights.shape)[0]).astype(np.float16)
        assert np.array_equal(after.weights(edit.tensor), expected.astype(np.float32))
        assert outcome.landed == outcome.edited


def test_edits_read_back_as_saved(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    edits = [
        NeuronEdit(
            name,
            axis,
            np.array([2, 9]),
            generator.normal(size=(2, 8)).astype(np.float32),
            generator.random((2, 8)) < 0.5,
        )
        for name, axis in (("blk.0.ffn_down.weight", COLUMNS), ("blk.0.ffn_up.weight", ROWS))
    ]
    save_edits(edits, tmp_path / "edit.safetensors")
    for edit, again in zip(edits, load_edits(tmp_path / "edit.safetensors"), strict=True):
        assert (edit.tensor, edit.axis) == (again.tensor, again.axis)
        assert np.array_equal(edit.neurons, again.neurons)
        assert np.array_equal(edit.delta, again.delta)
        assert np.array_equal(edit.allowed, again.allowed)
