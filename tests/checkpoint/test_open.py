"""The same model as a GGUF and as a Hugging Face directory; what is refused, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEXTS, _train
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gguf_forget.checkpoint.open import configuration, open_model, open_tokenizer, outline
from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.llama.quantizer import quantize


@pytest.fixture(scope="module")
def directory(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("hf")
    settings = tiny_model.config.to_dict()
    del settings["quantization_config"]  # what transformers notes when it reads a GGUF, and then refuses to save
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(tiny_model.state_dict())
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=_train(TEXTS)).save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[300, 20, 31]])).logits
    return found


def test_a_directory_and_a_gguf_are_the_same_model(directory: Path, tiny_gguf: Path, tiny_model: Any) -> None:
    for path in (directory, tiny_gguf):
        model = open_model(path)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert torch.equal(logits(model), logits(tiny_model))
    for text in TEXTS:
        assert open_tokenizer(directory)(text) == open_tokenizer(tiny_gguf)(text)


def test_an_outline_has_the_sizes_and_no_weights(directory: Path, tiny_gguf: Path, tiny_model: Any) -> None:
    expected = {name: weight.shape for name, weight in tiny_model.state_dict().items()}
    for path in (directory, tiny_gguf):
        found = outline(path)
        assert {name: weight.shape for name, weight in found.state_dict().items()} == expected
        assert {weight.device.type for weight in found.parameters()} == {"meta"}


def test_a_quantized_file_is_dequantized(tiny_gguf: Path, tiny_model: Any, tmp_path: Path) -> None:
    quantize(tiny_gguf, tmp_path / "q8.gguf", "Q8_0")
    found = logits(open_model(tmp_path / "q8.gguf"))
    assert not torch.equal(found, logits(tiny_model))
    torch.testing.assert_close(found, logits(tiny_model), rtol=0, atol=0.15)


def test_another_family_from_a_directory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=310, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(open_model(tmp_path)), logits(model))


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        configuration(tmp_path / "nothing.gguf")
    with pytest.raises(InputError, match=r"configuration of the model .* cannot be read"):
        configuration(tmp_path)


def test_unknown_architectures_and_mixtures_are_refused(directory: Path, tmp_path: Path) -> None:
    for kind in ("bert", "mixtral"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UnsupportedError, match=kind):
            open_model(tmp_path)
