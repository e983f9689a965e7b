"""The quantizer: what it plans is what it writes, and nothing half-written is left."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny import build_tiny_gguf

from gguf_forget.errors import InputError, LlamaError, UnsupportedError
from gguf_forget.llama import quantizer
from gguf_forget.llama.quantizer import FILE_TYPES, plan, quantize


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def test_file_types_are_llamas_own() -> None:
    import llama_cpp

    for name, value in FILE_TYPES.items():
        prefix = "ALL" if name == "F32" else "MOSTLY"
        assert value == getattr(llama_cpp, f"LLAMA_FTYPE_{prefix}_{name}")


NEED_IMPORTANCE = ("IQ1_M", "IQ1_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_XS", "IQ3_XXS", "Q2_K_S")
SLOW = ("IQ3_M", "IQ3_S")  # seconds even for a tiny model


@pytest.mark.parametrize("file_type", [name for name in FILE_TYPES if name not in (*NEED_IMPORTANCE, *SLOW)])
def test_the_result_is_what_was_planned(tiny_model: Path, tmp_path: Path, file_type: str) -> None:
    result = tmp_path / "out.gguf"
    quantize(tiny_model, result, file_type, threads=2)
    assert types(result) == plan(tiny_model, file_type)
    assert gguf.GGUFReader(result).fields["general.file_type"].contents() == FILE_TYPES[file_type]
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_plan_of_a_mix(tiny_model: Path) -> None:
    planned = plan(tiny_model, "Q4_K_M")
    assert planned["token_embd.weight"] == "Q6_K"  # tied: it is the output as well
    assert planned["blk.0.ffn_gate.weight"] == "Q4_K"
    assert planned["output_norm.weight"] == "F32"
    assert planned.keys() == types(tiny_model).keys()


def test_plan_falls_back_where_rows_do_not_fit(tmp_path: Path) -> None:
    narrow = build_tiny_gguf(tmp_path / "narrow.gguf", hidden=192, heads=3, kv_heads=3, feed_forward=320)
    planned = plan(narrow, "Q4_K_M")
    assert planned["blk.0.attn_q.weight"] == "Q5_0"
    assert planned["token_embd.weight"] == "Q8_0"
    quantize(narrow, tmp_path / "out.gguf", "Q4_K_M", threads=2)
    assert types(tmp_path / "out.gguf") == planned


def test_f32_of_a_quantized_file_is_its_dequantized_values(tiny_model: Path, tmp_path: Path) -> None:
    quantize(tiny_model, tmp_path / "q8.gguf", "Q8_0", threads=2)
    quantize(tmp_path / "q8.gguf", tmp_path / "f32.gguf", "F32", threads=2, allow_requantize=True)
    quantized = {t.name: t for t in gguf.GGUFReader(tmp_path / "q8.gguf").tensors}
    for tensor in gguf.GGUFReader(tmp_path / "f32.gguf").tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        source = quantized[tensor.name]
        np.testing.assert_array_equal(tensor.data, gguf.dequantize(source.data, source.tensor_type))


def test_requantizing_needs_permission(tiny_model: Path, tmp_path: Path) -> None:
    quantize(tiny_model, tmp_path / "q8.gguf", "Q8_0", threads=2)
    with pytest.raises(LlamaError, match="requantizing from type q8_0 is disabled") as caught:
        quantize(tmp_path / "q8.gguf", tmp_path / "out.gguf", "Q4_0", threads=2)
    assert "allow requantizing" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["q8.gguf"]


def test_an_existing_destination_is_replaced_only_on_success(tiny_model: Path, tmp_path: Path) -> None:
    result = tmp_path / "out.gguf"
    quantize(tiny_model, result, "Q8_0", threads=2)
    before = result.read_bytes()
    with pytest.raises(LlamaError):
        quantize(result, tmp_path / "other.gguf", "Q4_0", threads=2)
    assert result.read_bytes() == before
    quantize(tiny_model, result, "Q4_0", threads=2)
    assert types(result)["blk.0.attn_q.weight"] == "Q4_0"


def test_unknown_type_is_answered_with_a_suggestion(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown file type 'q4_k_m'") as caught:
        quantize(tiny_model, tmp_path / "out.gguf", "q4_k_m")
    assert caught.value.hint == "did you mean Q4_K_M?"
    with pytest.raises(InputError, match="unknown file type"):
        plan(tiny_model, "zzz")


def test_source_and_destination_are_checked(tiny_model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny_model)
    for same in (tiny_model, link):
        with pytest.raises(InputError, match="is the source itself"):
            quantize(tiny_model, same, "Q8_0")
    with pytest.raises(InputError, match="no such model file"):
        quantize(tmp_path / "absent.gguf", tmp_path / "out.gguf", "Q8_0")
    with pytest.raises(InputError, match="no such directory"):
        quantize(tiny_model, tmp_path / "absent" / "out.gguf", "Q8_0")
    with pytest.raises(InputError, match="is a directory"):
        quantize(tiny_model, tmp_path, "Q8_0")
    with pytest.raises(InputError, match="threads is -1"):
        quantize(tiny_model, tmp_path / "out.gguf", "Q8_0", threads=-1)


@pytest.mark.parametrize("kept", [0, 10, 2000, -1000])
def test_a_source_cut_short_is_an_input_error(tiny_model: Path, tmp_path: Path, kept: int) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny_model.read_bytes()[:kept])
    with pytest.raises(InputError, match="cannot read") as caught:
        quantize(short, tmp_path / "out.gguf", "Q8_0", threads=2)
    assert caught.value.cause
    assert [path.name for path in tmp_path.iterdir()] == ["short.gguf"]


def test_an_unknown_architecture_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(path, "strange-architecture")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="does not know the architecture"):
        plan(path, "Q8_0")


def test_a_full_disk_is_foreseen(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = tmp_path / "reference.gguf"
    quantize(tiny_model, reference, "Q8_0", threads=2)
    size = reference.stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(quantizer.shutil, "disk_usage", lambda path: usage._replace(free=size // 2))
    with pytest.raises(InputError, match="not enough disk space") as caught:
        quantize(tiny_model, tmp_path / "out.gguf", "Q8_0", threads=2)
    # The estimate in the message is the size of the file, to the padding of header and tensors.
    estimate = int(caught.value.message.split(": ")[1].split(" bytes")[0].replace(",", ""))
    assert abs(estimate - size) < 2048


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_write_that_fails_is_noticed(tiny_model: Path, tmp_path: Path, share: float) -> None:
    """A limit on the file's size stands in for a disk that fills up while llama.cpp writes."""
    reference = tmp_path / "reference.gguf"
    quantize(tiny_model, reference, "F16", threads=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(reference.stat().st_size * share), hard))
    try:
        with pytest.raises(LlamaError, match=r"llama\.cpp") as caught:
            quantize(tiny_model, tmp_path / "out.gguf", "F16", threads=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "disk" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.gguf"]


def test_a_result_of_other_types_is_refused(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = quantizer._run

    def other_type_when_writing(source: Path, destination: Path, file_type: str, **options: object) -> object:
        return genuine(source, destination, file_type if options["dry_run"] else "Q4_0", **options)

    monkeypatch.setattr(quantizer, "_run", other_type_when_writing)
    with pytest.raises(LlamaError, match=r"tensor blk\.0\.attn_k\.weight .* is Q4_0, planned: Q8_0"):
        quantize(tiny_model, tmp_path / "out.gguf", "Q8_0", threads=2)
    assert list(tmp_path.iterdir()) == []
