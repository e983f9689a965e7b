"""The stock file of our own making is llama.cpp's byte for byte; what is out of the ordinary is left to llama.cpp."""

from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exported import FILE_TYPES, UP, random_importance, run
from tiny_shapes import ARCHITECTURES, shape_weights, write_shape

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.errors import InputError, LlamaError
from gguf_forget.export import rows
from gguf_forget.export.quantize import ExportOptions
from gguf_forget.export.stock_file import NotOurs, begin_stock, stored_run
from gguf_forget.llama.options import QuantizeOptions
from gguf_forget.llama.quantizer import plan_file, quantize

EXPERTS = "blk.0.ffn_up_exps.weight"


def ours(original: Path, out: Path, file_type: str, options: QuantizeOptions) -> bytes:
    """The runs of rows are written backwards and by several threads: their order must not matter."""
    planned = plan_file(original, file_type, options)
    stock, runs = begin_stock(
        GgufFile(original), stored_tensors(original), out, file_type, planned, options, edited=False
    )
    with out.open("rb+") as file, ThreadPoolExecutor(3) as pool:
        every = [run for runs_of_one in runs.values() for run in runs_of_one]
        list(pool.map(lambda run: rows.write_bytes(file.fileno(), stored_run(run), run.place), reversed(every)))
    for name, tensor in stored_tensors(out).items():
        seen = stock[name]
        assert (seen.type, seen.offset) == (tensor.type, tensor.offset)
        np.testing.assert_array_equal(seen.raw, tensor.raw)
    return out.read_bytes()


def theirs(original: Path, out: Path, file_type: str, options: QuantizeOptions) -> bytes:
    quantize(original, out, file_type, threads=1, options=options, allow_requantize=True)
    return out.read_bytes()


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("file_type", [*FILE_TYPES, "Q5_0", "Q4_1", "Q5_1", "IQ4_NL", "F16", "BF16", "F32"])
def test_every_type_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_type: str, importance: bool
) -> None:
    monkeypatch.setattr(rows, "WEIGHTS_AT_ONCE", 5_000)
    weights = shape_weights("llama")
    weights[EXPERTS] = np.random.default_rng(5).standard_normal((3, 40, 256)).astype(np.float32)
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    options = QuantizeOptions(metadata=(("gguf_forget.note", "Grüße"), ("gguf_forget.number", 7)))
    if importance:
        matrix = random_importance(weights)
        values = {**matrix.values, EXPERTS: np.random.default_rng(6).exponential(size=3 * 256).astype(np.float32)}
        options = replace(options, importance=replace(matrix, values=values, datasets=("text",), chunks=4))
    made = ours(original, tmp_path / "ours.gguf", file_type, options)
    assert made == theirs(original, tmp_path / "theirs.gguf", file_type, options)


@pytest.mark.parametrize("source", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_source_and_architecture_byte_for_byte(tmp_path: Path, architecture: str, source: str) -> None:
    original = write_shape(tmp_path / "original.gguf", architecture, shape_weights(architecture), source)
    for file_type in ("Q4_K_M", "Q8_0", "F16"):
        made = ours(original, tmp_path / "ours.gguf", file_type, QuantizeOptions())
        assert made == theirs(original, tmp_path / "theirs.gguf", file_type, QuantizeOptions())


def test_an_already_quantized_file_keeps_its_place_for_the_keys(tmp_path: Path) -> None:
    """Keys that are replaced move to the end, as llama.cpp has it."""
    first = write_shape(tmp_path / "first.gguf", "qwen2", shape_weights("qwen2"))
    quantize(first, tmp_path / "original.gguf", "F16", threads=1)
    original = tmp_path / "original.gguf"
    options = QuantizeOptions(metadata=(("general.file_type", 99), ("general.name", "x" * 200)))
    assert ours(original, tmp_path / "o.gguf", "Q6_K", options) == theirs(
        original, tmp_path / "t.gguf", "Q6_K", options
    )


@pytest.mark.parametrize("file_type", ["Q2_K_S", "IQ3_M", "TQ1_0"])
def test_types_that_may_need_an_importance_matrix_are_not_ours(tmp_path: Path, file_type: str) -> None:
    original = write_shape(tmp_path / "original.gguf", "llama", shape_weights("llama"))
    with pytest.raises(NotOurs):
        ours(original, tmp_path / "ours.gguf", file_type, QuantizeOptions())


def test_a_type_that_does_not_fit_the_rows_is_refused(tmp_path: Path) -> None:
    """llama.cpp itself would write past its buffers."""
    weights = shape_weights("llama")
    weights["token_embd.weight"] = np.zeros((64, 288), dtype=np.float32)
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    with pytest.raises(InputError, match=r"token_embd\.weight .* rows of 288 weights, Q6_K needs a multiple of 256"):
        run(
            original,
            write_shape(tmp_path / "twin.gguf", "llama", weights),
            tmp_path / "out.gguf",
            "Q8_0",
            ExportOptions(QuantizeOptions(token_embedding_type="q6_k")),
        )


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_a_disk_that_is_full_is_named_and_nothing_appears(tmp_path: Path, share: float) -> None:
    weights = shape_weights("llama")
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", {**weights, UP: weights[UP] + np.float32(0.05)})
    run(original, unlearned, tmp_path / "whole.gguf", "Q4_K_M")
    size = (tmp_path / "whole.gguf").stat().st_size
    before = sorted(path.name for path in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), hard))
    try:
        with pytest.raises(InputError, match=r"out\.gguf cannot be written") as caught:
            run(original, unlearned, tmp_path / "out.gguf", "Q4_K_M")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "too large" in str(caught.value.cause)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_importance_of_another_size_is_not_ours(tmp_path: Path) -> None:
    weights = shape_weights("llama")
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    matrix = random_importance(weights)
    options = QuantizeOptions(replace(matrix, values={**matrix.values, UP: matrix.values[UP][:-1]}))
    with pytest.raises(NotOurs):
        ours(original, tmp_path / "ours.gguf", "Q4_K_M", options)
    with pytest.raises(LlamaError, match="could not quantize"):
        theirs(original, tmp_path / "theirs.gguf", "Q4_K_M", options)


@pytest.mark.parametrize("source", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_ours_and_llama_cpp_says_so(
    tmp_path: Path, value: float, source: str
) -> None:
    """The tensor has no edit, so that nothing else looks at it."""
    weights = shape_weights("llama")
    original = write_shape(tmp_path / "original.gguf", "llama", weights, source)
    tensor = stored_tensors(original)[UP]
    kind = np.float32 if source == "F32" else np.float16
    raw = bytearray(original.read_bytes())
    raw[tensor.offset : tensor.offset + np.dtype(kind).itemsize] = np.array(value, dtype=kind).tobytes()
    original.write_bytes(raw)
    with pytest.raises(NotOurs):
        ours(original, tmp_path / "ours.gguf", "Q4_K_M", QuantizeOptions())
    (tmp_path / "twin.gguf").write_bytes(raw)
    with pytest.raises(InputError, match=f"tensor {UP} of .* holds weights that are NaN or infinite") as caught:
        run(original, tmp_path / "twin.gguf", tmp_path / "out.gguf", "Q4_K_M")
    assert "failed to quantize" in str(caught.value.cause)
    assert not (tmp_path / "out.gguf").exists()


def test_huge_weights_whose_sum_overflows_are_ours(tmp_path: Path) -> None:
    weights = shape_weights("llama")
    weights[UP] = np.full_like(weights[UP], 1e38)
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    assert ours(original, tmp_path / "ours.gguf", "F32", QuantizeOptions()) == theirs(
        original, tmp_path / "theirs.gguf", "F32", QuantizeOptions()
    )


def test_a_file_with_edits_is_made_without_llama_cpps_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests above would test nothing that ships."""
    weights = shape_weights("llama")
    changed = {**weights, UP: weights[UP] + np.float32(0.05)}
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", changed)

    def refused(*_arguments: object, **_options: object) -> None:
        raise AssertionError("llama.cpp was asked to write")

    monkeypatch.setattr("gguf_forget.export.quantize.quantize", refused)
    assert run(original, unlearned, tmp_path / "out.gguf", "Q4_K_M")["totals"]["edited"] == weights[UP].size
    with pytest.raises(AssertionError, match=r"llama\.cpp was asked to write"):
        run(original, unlearned, tmp_path / "out.gguf", "TQ2_0")
