"""llama-quantize's options: each changes what llama-quantize says it changes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from libggml_oracle import dequantize
from libggml_oracle import quantize as oracle_quantize

from gguf_forget.errors import InputError, LlamaError, UnsupportedError
from gguf_forget.grids import CODECS
from gguf_forget.llama.blocks import dequantize_rows, quantize_rows, row_bytes
from gguf_forget.llama.options import Importance, QuantizeOptions
from gguf_forget.llama.quantizer import plan, plan_file, quantize


def importance_of(model: Path) -> Importance:
    """Random importances for every matrix of the model."""
    generator = np.random.default_rng(0)
    values = {
        tensor.name: generator.exponential(size=int(tensor.shape[0])).astype(np.float32)
        for tensor in gguf.GGUFReader(model).tensors
        if len(tensor.shape) == 2
    }
    return Importance(Path("some.imatrix"), values, ("text.txt",), 12)


def test_pure_gives_every_matrix_the_same_type(tiny_model: Path) -> None:
    planned = plan(tiny_model, "Q4_K_M", QuantizeOptions(pure=True))
    assert {kind for name, kind in planned.items() if "norm" not in name} == {"Q4_K"}


def test_single_tensors_and_the_ends_can_be_given_types(tiny_model: Path) -> None:
    options = QuantizeOptions(
        tensor_types=((r"blk\.1\.attn_(q|k)", "q8_0"), ("ffn_up", "IQ4_NL")),
        output_tensor_type="Q5_1",
        token_embedding_type="q3_k",
    )
    planned, usual = plan(tiny_model, "Q4_K_S", options), plan(tiny_model, "Q4_K_S")
    assert planned["blk.1.attn_q.weight"] == planned["blk.1.attn_k.weight"] == "Q8_0"
    assert planned["blk.0.ffn_up.weight"] == planned["blk.1.ffn_up.weight"] == "IQ4_NL"
    assert planned["token_embd.weight"] == "Q3_K"
    changed = {name for name in planned if planned[name] != usual[name]}
    assert changed == {
        "token_embd.weight",
        "blk.0.ffn_up.weight",
        "blk.1.ffn_up.weight",
        "blk.1.attn_q.weight",
        "blk.1.attn_k.weight",
    }


def test_an_unknown_tensor_type_is_answered_with_a_suggestion(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="unknown tensor type 'q6k'") as caught:
        plan(tiny_model, "Q4_K_S", QuantizeOptions(tensor_types=(("ffn_up", "q6k"),)))
    assert "did you mean Q6_K?" in str(caught.value.hint)


def test_the_planned_size_is_the_files(tiny_model: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(pure=True)
    quantize(tiny_model, tmp_path / "out.gguf", "Q3_K_M", threads=1, options=options)
    assert abs(plan_file(tiny_model, "Q3_K_M", options).bytes - (tmp_path / "out.gguf").stat().st_size) < 2048


@pytest.mark.parametrize("file_type", ["Q4_K_M", pytest.param("IQ2_XXS", marks=pytest.mark.slow)])
def test_importances_reach_llama_cpp(tiny_model: Path, tmp_path: Path, file_type: str) -> None:
    importance = importance_of(tiny_model)
    quantize(tiny_model, tmp_path / "out.gguf", file_type, threads=1, options=QuantizeOptions(importance))
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["quantize.imatrix.file"].contents() == "some.imatrix"
    assert reader.fields["quantize.imatrix.dataset"].contents() == "text.txt"
    assert reader.fields["quantize.imatrix.entries_count"].contents() == len(importance.values)
    assert reader.fields["quantize.imatrix.chunks_count"].contents() == 12
    weights = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny_model).tensors}
    for tensor in reader.tensors:
        if tensor.name in ("blk.0.ffn_up.weight", "blk.1.ffn_down.weight"):
            kind = tensor.tensor_type.name
            own = quantize_rows(kind, weights[tensor.name], importance.values[tensor.name])
            np.testing.assert_array_equal(own, tensor.data)
            plain = quantize_rows("Q4_K", weights[tensor.name])
            assert kind != "Q4_K" or not np.array_equal(plain, tensor.data)


@pytest.mark.parametrize(
    ("path", "stored"),
    [
        ("a" * 126 + "é", "a" * 126),
        ("a" * 125 + "é", "a" * 125 + "é"),
        ("a" * 125 + "東b", "a" * 125),
        ("a" * 124 + "🙂", "a" * 124),
        ("im\udcff.dat", "im?.dat"),
        ("cut\0here", "cut"),
    ],
)
def test_a_name_is_stored_in_whole_characters(tiny_model: Path, tmp_path: Path, path: str, stored: str) -> None:
    values = {"blk.0.ffn_up.weight": np.ones(256, np.float32)}
    options = QuantizeOptions(Importance(Path(path), values, (path,)))
    assert options.keys()["quantize.imatrix.file"] == stored.encode()
    quantize(tiny_model, tmp_path / "out.gguf", "Q4_K_M", threads=1, options=options)
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["quantize.imatrix.file"].contents() == stored
    assert fields["quantize.imatrix.dataset"].contents() == stored


def test_a_pattern_that_is_no_text_is_refused(tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"--tensor-type 'ffn\\udcff'=q8_0: the pattern is no UTF-8"):
        plan(tiny_model, "Q4_K_M", QuantizeOptions(tensor_types=(("ffn\udcff", "q8_0"),)))


def test_without_importances_the_smallest_types_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would be IQ2_XXS, which needs an importance matrix: none is given") as caught:
        quantize(tiny_model, tmp_path / "out.gguf", "IQ2_XXS", threads=1)
    assert "--imatrix" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_importances_of_another_length_are_refused() -> None:
    with pytest.raises(LlamaError, match="100 importances for rows of 256 weights"):
        quantize_rows("Q4_K", np.zeros((1, 256), np.float32), np.ones(100, np.float32))


@pytest.mark.parametrize("name", list(CODECS))
def test_rows_of_blocks_are_libggmls(name: str) -> None:
    weights = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    blocks = quantize_rows(name, weights)
    assert blocks.shape == (3, row_bytes(name, 512))
    np.testing.assert_array_equal(blocks, oracle_quantize(name, weights))
    np.testing.assert_array_equal(dequantize_rows(name, blocks, 512), dequantize(name, blocks, 512))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_floating_point_rows_come_back_rounded(name: str) -> None:
    weights = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    again = dequantize_rows(name, quantize_rows(name, weights), 64)
    np.testing.assert_allclose(again, weights, rtol={"F32": 0, "F16": 2**-11, "BF16": 2**-8}[name])


def test_a_type_that_holds_no_weights_cannot_be_decoded() -> None:
    with pytest.raises(UnsupportedError, match="libggml cannot decode I32"):
        dequantize_rows("I32", np.zeros((1, 4), np.uint8), 1)
