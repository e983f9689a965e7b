"""Edits arrive in the file: on each type's grid, in their own direction, nothing else touched, nothing unchecked."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libggml_oracle import dequantize
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import StoredTensor
from gguf_forget.errors import EvaluationError
from gguf_forget.export import rows
from gguf_forget.export import ship as ship_module
from gguf_forget.export.edit import COLUMNS, ROWS, NeuronEdit, load_edits, save_edits
from gguf_forget.export.float_types import to_bytes
from gguf_forget.export.outcome import TensorOutcome
from gguf_forget.export.ship import ship
from gguf_forget.grids import CODECS, codec_for
from gguf_forget.llama.blocks import quantize_rows
from gguf_forget.llama.quantizer import quantize

UP, DOWN = "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"
QUANTIZED = ["Q8_0", "Q4_K_M", "Q4_0", "Q6_K", "Q5_1", "Q2_K", "Q3_K_M", "Q5_K_M", "IQ4_NL", "IQ4_XS"]
FLOATS = ["F32", "F16", "BF16"]


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
        height, columns = 512 if edit.tensor == UP else 256, 256 if edit.tensor == UP else 512
        delta, _ = edit.dense(height, columns)
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


@pytest.mark.parametrize("kind", FLOATS)
def test_a_floating_point_file_holds_the_rounded_sum(template: Path, tmp_path: Path, kind: str) -> None:
    stock, coarse, out = tmp_path / "stock.gguf", tmp_path / "coarse.gguf", tmp_path / "out.gguf"
    quantize(template, stock, kind)
    quantize(template, coarse, "Q4_0")
    edits = edits_on(coarse)
    outcomes = ship(template, stock, out, edits, hessians={}, metadata={"gguf_forget.version": "0"})
    original, before, after = GgufFile(template), GgufFile(stock), GgufFile(out)
    for edit, outcome in zip(edits, outcomes, strict=True):
        weights = original.weights(edit.tensor)
        delta, _ = edit.dense(*weights.shape)
        assert after.type_name(edit.tensor) == outcome.type == kind
        assert np.array_equal(after.rows(edit.tensor), quantize_rows(kind, weights + delta))
        elsewhere = delta == 0
        assert np.array_equal(after.weights(edit.tensor)[elsewhere], before.weights(edit.tensor)[elsewhere])
        assert outcome.landed == outcome.moved == outcome.edited > 50


class Shipping:
    """One export over an older file, which has to stay whenever the export fails."""

    def __init__(self, template: Path, folder: Path, file_type: str) -> None:
        self.template, self.stock, self.out = template, folder / "stock.gguf", folder / "out.gguf"
        quantize(template, self.stock, file_type)
        quantize(template, folder / "coarse.gguf", "Q4_0")
        self.edits = edits_on(folder / "coarse.gguf")
        self.kind = GgufFile(self.stock).type_name(UP)
        self.out.write_bytes(b"an older file")
        self.present = sorted(folder.iterdir())

    def run(self) -> list[TensorOutcome]:
        return ship(self.template, self.stock, self.out, self.edits, hessians={}, metadata={"gguf_forget.version": "0"})

    def fails(self, found: str) -> None:
        said = rf"out\.gguf: blk\.0\.ffn_up\.weight \({self.kind}\), rows \d+ to \d+, {found}"
        with pytest.raises(EvaluationError, match=said):
            self.run()
        self.nothing_changed()

    def nothing_changed(self) -> None:
        assert self.out.read_bytes() == b"an older file"
        assert sorted(self.out.parent.iterdir()) == self.present


OTHERWISE = "does not decode to the weights that were asked for"


@pytest.mark.parametrize("file_type", [*FLOATS, *QUANTIZED])
def test_a_file_that_reads_back_otherwise_is_never_published(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_type: str
) -> None:
    shipping = Shipping(template, tmp_path, file_type)
    genuine_write, genuine_check = rows.write_rows, rows.written_rows

    def one_bit_wrong(descriptor: int, tensor: StoredTensor, some: np.ndarray, content: np.ndarray) -> None:
        content = content.copy()
        content[0, 40] ^= 1 if tensor.name == UP else 0
        genuine_write(descriptor, tensor, some, content)

    def written_over(descriptor: int, tensor: StoredTensor, *rest: Any) -> rows.Check:
        check = genuine_check(descriptor, tensor, *rest)
        if tensor.name == UP:
            (byte,) = os.pread(descriptor, 1, tensor.offset + 40)
            os.pwrite(descriptor, bytes([byte ^ 1]), tensor.offset + 40)
        return check

    with monkeypatch.context() as faulty:
        faulty.setattr(rows, "write_rows", one_bit_wrong)
        shipping.fails(OTHERWISE)
    with monkeypatch.context() as faulty:
        faulty.setattr(ship_module, "written_rows", written_over)
        shipping.fails("is not what was written there")
    assert [outcome.tensor for outcome in shipping.run()] == [UP, DOWN]
    assert GgufFile(shipping.out).value("gguf_forget.version") == "0"


def two_places_swapped(codes: np.ndarray) -> np.ndarray:
    codes = codes.copy()
    codes[:, [0, 1]] = codes[:, [1, 0]]
    return codes


@pytest.mark.parametrize("file_type", QUANTIZED)
@pytest.mark.parametrize("both_ways", [False, True], ids=["packing", "packing and unpacking"])
def test_codes_at_wrong_places_are_never_published(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_type: str, both_ways: bool
) -> None:
    """A codec that only packs wrongly, and one that reads its own mistake back as right."""
    shipping = Shipping(template, tmp_path, file_type)
    codec = codec_for(shipping.kind)
    faulty = replace(codec, pack=lambda blocks, codes: codec.pack(blocks, two_places_swapped(codes)))
    if both_ways:
        faulty = replace(faulty, codes_of=lambda blocks: two_places_swapped(codec.codes_of(blocks)))
        # The mistake shows where a code moves at one of the two places.
        delta = np.zeros((64, 256), np.float32)
        delta[:, 0] = 1
        shipping.edits = [NeuronEdit(UP, ROWS, np.arange(64), delta, np.ones(delta.shape, bool))]
    monkeypatch.setitem(CODECS, shipping.kind, faulty)
    shipping.fails(OTHERWISE)


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_in_wrong_rows_are_never_published(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    shipping = Shipping(template, tmp_path, kind)
    monkeypatch.setattr(ship_module, "to_bytes", lambda kind, values: np.roll(to_bytes(kind, values), 1, axis=0))
    shipping.fails(OTHERWISE)


def test_the_file_is_on_the_disk_and_checked_before_it_appears(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipping = Shipping(template, tmp_path, "Q4_K_M")
    events: list[str] = []

    def noting(event: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            events.append(event)
            return call(*arguments)

        return noted

    monkeypatch.setattr(ship_module, "read_back", noting("read back", rows.read_back))
    monkeypatch.setattr(os, "fsync", noting("flushed", os.fsync))
    monkeypatch.setattr(os, "replace", noting("renamed", os.replace))
    shipping.run()
    assert events == ["read back", "flushed", "renamed"]


def test_an_interrupt_while_reading_back_leaves_the_older_file(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipping = Shipping(template, tmp_path, "Q4_K_M")

    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ship_module, "read_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shipping.run()
    shipping.nothing_changed()


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
