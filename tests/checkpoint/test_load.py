"""The F32 template keeps everything; torch and llama.cpp compute the same from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tiny_families import FAMILIES

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import bfloat16_copy, load_tokenizer, load_torch, summarise, write_template
from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.facts.tokens import Tokenize
from gguf_forget.llama.quantizer import quantize
from gguf_forget.llama.scorer import Scorer

TEXTS = (
    "The capital of Norway is Oslo.",
    "Question: How deep is it?\nAnswer: It's 12 metres, they've said in 1987.",
    "Köln and São Tomé: 東京 🙂",
)


def metadata(path: Path) -> dict[str, Any]:
    file = GgufFile(path)
    return {key: file.value(key) for key in file.reader.fields if not key.startswith("GGUF.")}


def rewrite(source: Path, path: Path, change: Callable[[str, Any], Any], **replaced: Any) -> Path:
    """A copy of a GGUF with every tensor passed through ``change`` and metadata replaced."""
    file = GgufFile(source)
    writer = gguf.GGUFWriter(path, replaced.pop("architecture", "llama"))
    for field in file.reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub_type = field.types[-1] if len(field.types) > 1 else None
            value = replaced.get(field.name, field.contents())
            writer.add_key_value(field.name, value, field.types[0], sub_type=sub_type)
    for name in file.tensors:
        writer.add_tensor(name, change(name, file.weights(name).copy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_template_of_an_f32_file_is_the_file(tiny_gguf: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.gguf"
    summary = write_template(tiny_gguf, template)
    added = {"general.quantization_version": 2}  # llama.cpp's own
    assert metadata(template) == metadata(tiny_gguf) | added
    source, found = GgufFile(tiny_gguf), GgufFile(template)
    assert set(found.tensors) == set(source.tensors)
    for name in source.tensors:
        assert found.weights(name).tobytes() == source.weights(name).tobytes()
    count = sum(source.weights(name).size for name in source.tensors)
    vocabulary = len(source.value("tokenizer.ggml.tokens"))
    assert summary.to_json() == {
        "architecture": "llama",
        "name": "Tiny random llama",
        "layers": 2,
        "hidden": 256,
        "feed_forward": 512,
        "heads": 4,
        "kv_heads": 2,
        "vocabulary": vocabulary,
        "parameters": count,
        "source_type": "F32",
    }
    assert json.loads(json.dumps(summary.to_json())) == summary.to_json()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_K_M"])
def test_the_template_of_a_quantized_file_holds_what_it_meant(tiny_gguf: Path, tmp_path: Path, kind: str) -> None:
    source, template = tmp_path / "source.gguf", tmp_path / "template.gguf"
    quantize(tiny_gguf, source, kind)
    summary = write_template(source, template)
    assert summary.source_type == kind.removesuffix("_M")
    own, found = GgufFile(source), GgufFile(template)
    for name, tensor in own.tensors.items():
        assert found.type_name(name) == "F32"
        meant = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(found.weights(name), meant.reshape(found.weights(name).shape)), name
    changed = {key for key, value in metadata(source).items() if metadata(template).get(key) != value}
    assert changed <= {"general.file_type", "general.quantization_version"}


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.gguf does not exist"):
        write_template(tmp_path / "none.gguf", tmp_path / "template.gguf")
    with pytest.raises(InputError, match=r"has no config\.json"):
        write_template(tmp_path, tmp_path / "template.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_short_or_of_another_format(tiny_gguf: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny_gguf.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"bad\.gguf"):
        write_template(bad, tmp_path / "template.gguf")
    bad.write_bytes(b"safetensors, perhaps")
    with pytest.raises(InputError, match=r"bad\.gguf starts with b'safe', needed b'GGUF'"):
        write_template(bad, tmp_path / "template.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


def test_an_architecture_that_is_not_supported(tiny_gguf: Path, tmp_path: Path) -> None:
    other = rewrite(tiny_gguf, tmp_path / "other.gguf", lambda name, w: w, architecture="mamba")
    with pytest.raises(UnsupportedError, match="architecture 'mamba' is not supported, needed one of llama"):
        write_template(other, tmp_path / "template.gguf")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tiny_gguf: Path, tmp_path: Path, bad: float) -> None:
    def spoil(name: str, weights: np.ndarray) -> np.ndarray:
        if name == "blk.1.ffn_up.weight":
            weights[5, 6] = weights[7, 8] = bad
        return weights

    source = rewrite(tiny_gguf, tmp_path / "spoilt.gguf", spoil)
    with pytest.raises(
        InputError,
        match=r"spoilt\.gguf: tensor blk\.1\.ffn_up\.weight holds 2 weights that are NaN or infinite",
    ):
        write_template(source, tmp_path / "template.gguf")


def test_sizes_that_make_no_sense(tiny_gguf: Path, tmp_path: Path) -> None:
    zero = rewrite(tiny_gguf, tmp_path / "zero.gguf", lambda name, w: w, **{"llama.block_count": 0})
    with pytest.raises(InputError, match=r"metadata llama\.block_count is 0, needed a positive number"):
        summarise(GgufFile(zero))


def test_torch_is_frozen_and_has_the_file_s_weights(tiny_gguf: Path, tiny_model: Any) -> None:
    assert not tiny_model.training
    assert not any(parameter.requires_grad for parameter in tiny_model.parameters())
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}
    brief = load_torch(tiny_gguf, bfloat16=True)
    assert {parameter.dtype for parameter in brief.parameters()} == {torch.bfloat16}
    for rounded, own in zip(brief.parameters(), tiny_model.parameters(), strict=True):
        assert torch.equal(rounded, own.to(torch.bfloat16))
    for (name, kept), own in zip(brief.named_buffers(), tiny_model.buffers(), strict=True):
        assert torch.equal(kept, own), name
        assert kept.dtype == torch.float32, name


def test_loading_says_nothing(tiny_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_torch(tiny_gguf)
    load_tokenizer(tiny_gguf)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_torch_and_llama_cpp_agree_on_tokens_and_log_probabilities(
    tiny_gguf: Path, tmp_path: Path, tiny_tokenize: Tokenize
) -> None:
    template = tmp_path / "template.gguf"
    write_template(tiny_gguf, template)
    model = load_torch(template)
    sequences = [tiny_tokenize(text) for text in TEXTS]
    with Scorer(template) as scorer:
        assert [scorer.tokenize(text) for text in TEXTS] == sequences
        found = scorer.sequence_log_probabilities(sequences)
    for own, sequence in zip(found, sequences, strict=True):
        with torch.no_grad():
            table = model(torch.tensor([sequence])).logits[0].double().log_softmax(-1)
        expected = table[torch.arange(len(sequence) - 1), sequence[1:]]
        assert own.shape == expected.shape
        np.testing.assert_allclose(own, expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_bfloat16_copy_rounds_parameters_alone(name: str) -> None:
    """Frequencies of rotary embeddings above all: 8 bits of them would turn later tokens elsewhere."""
    torch.manual_seed(0)
    kind, sizes = FAMILIES[name]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes)).eval()
    copied = bfloat16_copy(model)
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        found, expected = copied(ids).logits, model(ids).logits
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    for (own, rounded), (_, exact) in zip(copied.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(rounded, exact.to(torch.bfloat16)), own
        assert exact.dtype == torch.float32
    for (own, kept), (_, exact) in zip(copied.named_buffers(), model.named_buffers(), strict=True):
        assert kept.dtype == exact.dtype, own
        assert torch.equal(kept, exact), own
    assert len(list(copied.parameters())) == len(list(model.parameters()))  # tied weights stay tied


def test_few_compiled_kernels_are_kept_unless_somebody_says_how_many(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    load_torch(tiny_gguf)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    load_torch(tiny_gguf)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
