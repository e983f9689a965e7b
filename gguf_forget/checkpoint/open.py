"""A model to look at, from a GGUF of any type or a Hugging Face directory, without writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_forget.checkpoint.architecture import architecture
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_tokenizer, load_torch, summarise
from gguf_forget.errors import InputError

if TYPE_CHECKING:
    from gguf_forget.facts.tokens import Tokenize


def _refuse_unknown(path: Path) -> None:
    """:class:`InputError` for a path that is no model, ``UnsupportedError`` for an architecture that is not known."""
    if path.is_dir():
        architecture(_configuration(path).model_type)
    elif path.is_file():
        summarise(GgufFile(path))
    else:
        raise InputError(f"the model {path} does not exist", hint="give a GGUF file or a Hugging Face directory")


def _configuration(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        if path.is_dir():
            return AutoConfig.from_pretrained(path, local_files_only=True)
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the configuration of the model {path} cannot be read", cause=str(error)) from error


def open_tokenizer(path: Path) -> Tokenize:
    """Text to token ids, BOS as the model's own tokenizer puts it."""
    if not path.is_dir():
        _refuse_unknown(path)
        return load_tokenizer(path)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of the model {path} cannot be read", cause=str(error)) from error

    def tokenize(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=True)["input_ids"])

    return tokenize


def open_model(path: Path) -> Any:
    """The weights in float32 (a quantized GGUF dequantized), evaluation mode, no parameter requires gradients.

    Raises :class:`InputError` for a path that is no model, ``UnsupportedError`` for an unknown architecture.
    """
    _refuse_unknown(path)
    if not path.is_dir():
        return load_torch(path)
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"the model {path} cannot be read", cause=str(error)) from error
    return model.eval().requires_grad_(False)


def outline(path: Path) -> Any:
    """The model without its weights (torch's device ``meta``): its sizes, before anything large is read."""
    import torch
    from transformers import AutoModelForCausalLM

    _refuse_unknown(path)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(_configuration(path))
