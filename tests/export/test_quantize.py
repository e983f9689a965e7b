"""Edits of any unlearned model are in the quantized file, and everything else is llama.cpp's own, byte for byte."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import DOWN, FILE_TYPES, NORM, UP, edited, random_importance, run
from libggml_oracle import dequantize
from tiny_shapes import ARCHITECTURES, shape_weights, write_shape

from gguf_forget.checkpoint.stored import StoredTensor, stored_tensors
from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.export import patch, rows
from gguf_forget.export.inputs import input_files, opened_pair
from gguf_forget.export.patch import RoundingOptions
from gguf_forget.export.quantize import (
    ExportOptions,
    check_space,
    plan_export,
    space_needed,
)
from gguf_forget.grids import CODECS, codec_for
from gguf_forget.llama.options import QuantizeOptions
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress
from gguf_forget.rounding import round_edit
from gguf_forget.whole_file import check_output


def check_edits(
    document: dict, stock: Path, out: Path, delta: dict[str, np.ndarray], survive: str = "important"
) -> None:
    """Every count against a slow recount through libggml; tensors without an edit byte for byte."""
    before, after = stored_tensors(stock), stored_tensors(out)
    assert before.keys() == after.keys()
    outcomes = {outcome["tensor"]: outcome for outcome in document["tensors"]}
    assert outcomes.keys() == delta.keys()
    for name in before:
        assert (before[name].type, before[name].shape) == (after[name].type, after[name].shape)
        if name not in delta:
            np.testing.assert_array_equal(before[name].raw, after[name].raw)
            continue
        kind, outcome = before[name].type, outcomes[name]
        assert outcome["edited"] == np.count_nonzero(delta[name])
        if kind not in CODECS:
            continue
        change = delta[name].reshape(before[name].rows, -1)
        old, new = (dequantize(kind, side[name].raw, before[name].columns) for side in (before, after))
        levels = codec_for(kind).decode(before[name].raw)
        went = np.sign(new - old) * np.sign(change)
        asked = np.abs(change) >= 0.5 * levels.step_towards(change) if survive == "important" else change != 0
        asked &= change != 0
        assert outcome["asked"] == asked.sum() > 0
        assert outcome["landed"] == (went > 0)[asked].sum() == outcome["asked"] - outcome["saturated"]
        assert (went >= 0).all()
        assert (new == old)[change == 0].all()
        assert outcome["moved"] == (new != old).sum()
        assert outcome["moved_by_compensation"] == 0
        assert outcome["protected"]


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_edits_are_there_and_nothing_else_moved(tmp_path: Path, architecture: str, file_type: str) -> None:
    weights = shape_weights(architecture)
    changed = edited(weights)
    original = write_shape(tmp_path / "original.gguf", architecture, weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", architecture, changed)
    quantize(original, tmp_path / "stock.gguf", file_type, threads=1)
    document = run(original, unlearned, tmp_path / "out.gguf", file_type)
    delta = {name: changed[name] - weights[name] for name in (UP, DOWN, NORM)}
    check_edits(document, tmp_path / "stock.gguf", tmp_path / "out.gguf", delta)
    assert document["not_protected"] == []
    np.testing.assert_array_equal(stored_tensors(tmp_path / "out.gguf")[NORM].weights(0, 1)[0], changed[NORM])


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_without_an_edit_the_file_is_llama_cpps(tmp_path: Path, file_type: str) -> None:
    original = write_shape(tmp_path / "original.gguf", "qwen2", shape_weights("qwen2"))
    twin = Path(shutil.copy(original, tmp_path / "twin.gguf"))
    quantize(original, tmp_path / "stock.gguf", file_type, threads=1)
    document = run(original, twin, tmp_path / "out.gguf", file_type)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "stock.gguf").read_bytes()
    assert document["totals"]["edited"] == 0


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_an_importance_matrix_as_well(tmp_path: Path, architecture: str, file_type: str) -> None:
    weights = shape_weights(architecture)
    changed = edited(weights)
    options = ExportOptions(QuantizeOptions(random_importance(weights)), threads=2)
    original = write_shape(tmp_path / "original.gguf", architecture, weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", architecture, changed)
    quantize(original, tmp_path / "stock.gguf", file_type, threads=1, options=options.quantize)
    document = run(original, unlearned, tmp_path / "out.gguf", file_type, options)
    delta = {name: changed[name] - weights[name] for name in (UP, DOWN, NORM)}
    check_edits(document, tmp_path / "stock.gguf", tmp_path / "out.gguf", delta)


@pytest.mark.parametrize("aim", ["weights", "edit"])
@pytest.mark.parametrize("outside_mask", ["frozen", "compensate"])
def test_errors_are_compensated_run_by_run_as_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside_mask: str, aim: str
) -> None:
    weights = shape_weights("llama")
    changed = edited(weights)
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", changed)
    quantize(original, tmp_path / "stock.gguf", "Q4_K_S", threads=1)
    inputs = np.random.default_rng(5).standard_normal((2000, 512)) @ np.random.default_rng(6).standard_normal(
        (512, 512)
    )
    hessians = {UP: inputs[:, :256].T @ inputs[:, :256], DOWN: inputs.T @ inputs}
    monkeypatch.setattr(rows, "WEIGHTS_AT_ONCE", 10_000)
    options = ExportOptions(rounding=RoundingOptions(outside_mask=outside_mask, aim=aim), threads=2)
    document = run(original, unlearned, tmp_path / "out.gguf", "Q4_K_S", options, hessians.get)
    before, after = stored_tensors(tmp_path / "stock.gguf"), stored_tensors(tmp_path / "out.gguf")
    for outcome in document["tensors"]:
        name = outcome["tensor"]
        if name not in hessians:
            continue
        codec = codec_for(before[name].type)
        levels, delta = codec.decode(before[name].raw), changed[name] - weights[name]
        free = delta != 0 if outside_mask == "frozen" else None
        wanted = None if aim == "edit" else np.where(delta != 0, changed[name] - levels.values(), 0)
        carried = None if aim == "edit" else delta
        expected = round_edit(levels, delta, wanted=wanted, hessian=hessians[name], free=free, carried=carried)
        np.testing.assert_array_equal(codec.decode(after[name].raw).codes, expected.codes)
        assert (outcome["landed"], outcome["moved"]) == (expected.landed, expected.moved)
        assert (outcome["moved_by_compensation"] > 0) == (outside_mask == "compensate")


def test_survive_all_lands_the_smallest_edit(tmp_path: Path) -> None:
    weights = shape_weights("llama")
    changed = edited(weights, size=1e-5)
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", changed)
    quantize(original, tmp_path / "stock.gguf", "Q4_0", threads=1)
    options = ExportOptions(rounding=RoundingOptions(survive="all"), threads=2)
    document = run(original, unlearned, tmp_path / "out.gguf", "Q4_0", options)
    delta = {name: changed[name] - weights[name] for name in (UP, DOWN, NORM)}
    check_edits(document, tmp_path / "stock.gguf", tmp_path / "out.gguf", delta, "all")


def test_a_type_without_a_codec_is_stock_and_said_so(tmp_path: Path) -> None:
    weights = shape_weights("llama")
    changed = edited(weights)
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", changed)
    document = run(original, unlearned, tmp_path / "out.gguf", "TQ2_0")
    assert document["not_protected"] == [UP, DOWN]
    quantize(unlearned, tmp_path / "stock.gguf", "TQ2_0", threads=1)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "stock.gguf").read_bytes()


@pytest.mark.parametrize(("first", "second"), [("BF16", "F32"), ("F32", "F16"), ("F16", "BF16"), ("Q8_0", "F32")])
def test_what_storing_does_is_no_edit(tmp_path: Path, first: str, second: str) -> None:
    weights = shape_weights("gemma")
    changed = dict(weights)
    changed[UP] = weights[UP].copy()
    changed[UP][7, ::16] += 0.3
    original = write_shape(tmp_path / "original.gguf", "gemma", weights, first)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "gemma", changed, second)
    document = run(original, unlearned, tmp_path / "out.gguf", "Q4_K_M")
    assert [(outcome["tensor"], outcome["edited"]) for outcome in document["tensors"]] == [(UP, 16)]
    strict = ExportOptions(rounding=RoundingOptions(noise=0.0), threads=2)
    assert run(original, unlearned, tmp_path / "out.gguf", "Q4_K_M", strict)["totals"]["edited"] > 1000


def test_a_split_model_is_read_as_one(tmp_path: Path) -> None:
    weights = shape_weights("llama")
    changed = edited(weights)
    names = list(weights)
    halves = [{name: weights[name] for name in part} for part in (names[:8], names[8:])]
    parts = [
        write_shape(tmp_path / f"model-0000{i + 1}-of-00002.gguf", "llama", half, split=(i, 2, len(names)))
        for i, half in enumerate(halves)
    ]
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", changed)
    assert set(stored_tensors(parts[0])) == set(names)
    delta = {name: changed[name] - weights[name] for name in (UP, DOWN, NORM)}
    whole = write_shape(tmp_path / "whole.gguf", "llama", weights)
    quantize(whole, tmp_path / "stock.gguf", "Q5_K_M", threads=1)
    document = run(parts[0], unlearned, tmp_path / "out.gguf", "Q5_K_M")
    check_edits(document, tmp_path / "stock.gguf", tmp_path / "out.gguf", delta)
    run(whole, unlearned, tmp_path / "from-one.gguf", "Q5_K_M")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "from-one.gguf").read_bytes()
    with pytest.raises(InputError, match="is one of the inputs"):
        check_output(parts[1], input_files([parts[0]]))
    with pytest.raises(InputError, match="needed the first of them"):
        stored_tensors(parts[1])
    parts[1].unlink()
    with pytest.raises(InputError, match="is missing"):
        stored_tensors(parts[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    weights = shape_weights("llama")
    changed = edited(weights)
    changed[DOWN][3, 5] = value
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", changed)
    with pytest.raises(InputError, match=r"blk\.1\.ffn_down\.weight holds 1 weights that are NaN or infinite"):
        run(original, unlearned, tmp_path / "out.gguf", "Q4_K_M")
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_that_reads_back_otherwise_is_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = shape_weights("llama")
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", edited(weights))
    out = tmp_path / "out.gguf"
    out.write_bytes(b"an older file")
    genuine = rows.write_rows

    def one_bit_wrong(descriptor: int, tensor: StoredTensor, rows: np.ndarray, content: np.ndarray) -> None:
        content = content.copy()
        content[0, 40] ^= 1 if tensor.name == UP else 0
        genuine(descriptor, tensor, rows, content)

    def written_over(descriptor: int, tensor: StoredTensor, *rest: Any) -> rows.Check:
        check = genuine_check(descriptor, tensor, *rest)
        if tensor.name == UP:
            os.pwrite(descriptor, b"\xff", tensor.offset + 40)
        return check

    genuine_check = patch.written_rows
    for place, name, fault, found in (
        (rows, "write_rows", one_bit_wrong, "does not decode to the weights that were asked for"),
        (patch, "written_rows", written_over, "is not what was written there"),
    ):
        with monkeypatch.context() as faulty:
            faulty.setattr(place, name, fault)
            with pytest.raises(
                EvaluationError, match=r"out\.gguf: blk\.0\.ffn_up\.weight \(Q4_K\), rows \d+ to \d+, " + found
            ):
                run(original, unlearned, out, "Q4_K_M")
    assert out.read_bytes() == b"an older file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original.gguf", "out.gguf", "unlearned.gguf"]


def test_a_file_is_on_the_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = shape_weights("llama")
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", edited(weights))
    out = tmp_path / "out.gguf"
    events: list[tuple[str, int]] = []
    flush, rename = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        events.append(("flushed", os.fstat(descriptor).st_ino))
        flush(descriptor)

    def renamed(source: Path, destination: Path) -> None:
        events.append(("renamed", os.stat(source).st_ino))
        rename(source, destination)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    run(original, unlearned, out, "Q4_K_M")
    file = out.stat().st_ino
    assert [event for event, which in events if which == file] == ["flushed", "renamed"]


def test_a_disk_that_is_full_when_flushed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = shape_weights("llama")
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", edited(weights))

    def lost(descriptor: int) -> None:
        os.pwrite(descriptor, bytes(1000), os.fstat(descriptor).st_size - 1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", lost)
    with pytest.raises(InputError, match=r"out\.gguf cannot be written") as caught:
        run(original, unlearned, tmp_path / "out.gguf", "Q4_K_M")
    assert "No space left" in str(caught.value.cause)
    assert not (tmp_path / "out.gguf").exists()


def test_models_that_do_not_match_are_refused(tmp_path: Path) -> None:
    weights = shape_weights("llama")
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    other = write_shape(tmp_path / "other.gguf", "qwen2", shape_weights("qwen2"))
    with pytest.raises(InputError, match=r"is of architecture llama, .* of qwen2"):
        run(original, other, tmp_path / "out.gguf", "Q8_0")
    longer = weights | {"token_embd.weight": np.zeros((65, 256), np.float32)}
    other = write_shape(tmp_path / "other.gguf", "llama", longer)
    with pytest.raises(InputError, match=r"token_embd\.weight is \[256, 64\] in .* \[256, 65\] in"):
        run(original, other, tmp_path / "out.gguf", "Q8_0")
    other = write_shape(tmp_path / "other.gguf", "llama", weights | {"output.weight": weights["token_embd.weight"]})
    with pytest.raises(InputError, match=r"original\.gguf has no tensor output\.weight"):
        run(original, other, tmp_path / "out.gguf", "Q8_0")
    quantize(original, tmp_path / "q4.gguf", "Q4_0", threads=1)
    with pytest.raises(InputError, match=r"is Q\d_\w, needed one of F32, F16, BF16, Q8_0"):
        run(original, tmp_path / "q4.gguf", tmp_path / "out.gguf", "Q8_0")


def test_destinations_and_space_are_checked_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = shape_weights("llama")
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    link = tmp_path / "link.gguf"
    link.symlink_to(original)
    with pytest.raises(InputError, match="is one of the inputs"):
        check_output(link, input_files([original]))
    with pytest.raises(InputError, match="is a directory, needed the name of a file"):
        check_output(tmp_path, input_files([original]))
    with opened_pair(original, original, tmp_path, Progress()) as pair:
        planned = plan_export(pair, ["Q8_0", "Q4_0"], ExportOptions())
    needed = sum(plan.bytes for plan in planned.files.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 3, 7))
    with pytest.raises(InputError, match=f"{needed:,} bytes needed, 7 free"):
        check_space(tmp_path, space_needed(planned, split=False))
