"""A model to look at, from a GGUF of any type or a Hugging Face directory, without writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_forget.checkpoint.architecture import attributable
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from gguf_forget.facts.tokens import Tokenize


def configuration(path: Path) -> Any:
    """The Hugging Face configuration of a model whose circuits can be read.

    Raises :class:`InputError` for a path that is no model, :class:`UnsupportedError` for an unknown architecture.
    """
    from transformers import AutoConfig

    from gguf_forget.checkpoint.quick_reader import quick_gguf

    if path.is_dir():
        try:
            found = AutoConfig.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"the configuration of the model {path} cannot be read", cause=str(error)) from error
    elif path.is_file():
        kind = GgufFile(path).text("general.architecture")
        try:
            with quick_gguf():
                found = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        except (OSError, ValueError, KeyError) as error:
            raise UnsupportedError(
                f"{path}: transformers cannot read GGUFs of architecture {kind!r}",
                cause=str(error),
                hint="give the Hugging Face directory that the file was converted from",
            ) from error
    else:
        raise InputError(f"the model {path} does not exist", hint="give a GGUF file or a Hugging Face directory")
    attributable(found)
    return found


def open_tokenizer(path: Path) -> Tokenize:
    """Text to token ids, BOS as the model's own tokenizer puts it."""
    configuration(path)
    if not path.is_dir():
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
    """The weights in float32 (a quantized GGUF dequantized), evaluation mode, no parameter requires gradients."""
    configuration(path)
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

    found = configuration(path)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(found)
