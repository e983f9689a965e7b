"""Where the weights of a Hugging Face directory belong in a GGUF, and how they lie there.

transformers' own reader of GGUFs is the map from a GGUF to Hugging Face's tensors. This is the way back, for
architectures where that map can be undone; the reader itself then says whether it was (:meth:`Placement.returned`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.names import PERMUTED, interleave_heads
from gguf_forget.errors import InputError

EMBEDDING, OUTPUT, HEAD = "token_embd.weight", "output.weight", "lm_head.weight"
GENERATED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that a converter makes of the configuration; no weights of a directory belong there."""
ALWAYS_FLOAT32 = ("position_embd.weight",)
"""Matrices that llama.cpp's converter stores in F32 whatever the type of the others."""
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", ".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True)
class Layout:
    """How an architecture's weights lie in a GGUF. ``model_types``: Hugging Face's names of it."""

    model_types: tuple[str, ...]
    interleaved: bool = False  # the rows of queries and keys, see :mod:`.names`
    transposed: tuple[str, ...] = ()  # [inputs, outputs] in Hugging Face
    plus_one: bool = False  # the weights of norms
    spare_words: bool = False  # embeddings after the last word of the vocabulary are left out


# Keys are the GGUF's `general.architecture`.
LAYOUTS = {
    "llama": Layout(("llama", "mistral"), interleaved=True),
    "qwen2": Layout(("qwen2",)),
    "qwen3": Layout(("qwen3",)),
    "phi3": Layout(("phi3",)),
    "gemma2": Layout(("gemma2",), plus_one=True),
    "gemma3": Layout(("gemma3_text",), plus_one=True, spare_words=True),
    "gpt2": Layout(("gpt2",), transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
}


@dataclass(frozen=True)
class Placement:
    """names: GGUF name to Hugging Face's, as transformers maps them. prefix: what a model saved without its head leaves
    out of these. numbers: of ``layers``, ``heads`` and ``kv_heads``. tied: the output weights are the embeddings.
    """

    kind: str
    layout: Layout
    names: Mapping[str, str]
    prefix: str
    numbers: Mapping[str, int]
    tied: bool

    def is_transposed(self, name: str) -> bool:
        return name.endswith(".weight") and _part(name) in self.layout.transposed

    def is_sum(self, name: str) -> bool:
        """Whether a GGUF holds 1 + weight, rounded, of which a small weight comes back less exactly than it was."""
        return self.layout.plus_one and name.endswith("norm.weight")

    def place(self, name: str, weights: np.ndarray) -> np.ndarray:
        """Weights (rows first) under a GGUF name, from Hugging Face's layout to the GGUF's, in the same type."""
        if self.layout.interleaved and _part(name) in PERMUTED:
            return interleave_heads(weights, self.numbers[PERMUTED[_part(name)]])
        if self.is_transposed(name):
            return weights.T
        if self.is_sum(name):
            return weights + weights.dtype.type(1)
        return weights

    def returned(self, name: str, weights: np.ndarray) -> np.ndarray:
        """Weights of a GGUF (float32, rows first) in Hugging Face's layout, by transformers' own reader."""
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        config = {"num_attention_heads": self.numbers["heads"], "num_key_value_heads": self.numbers["kv_heads"]}
        aside: dict[str, Any] = {"tensors": {}}  # where the reader puts a tensor that it has nothing more to do with
        result = TENSOR_PROCESSORS.get(self.kind, TensorProcessor)(config=config).process(
            weights=weights, name=name, tensor_key_mapping=self.names, parsed_parameters=aside
        )
        if result.name is None:
            return aside["tensors"][self.names[name]].numpy()
        return np.asarray(result.weights)


def is_buffer(name: str) -> bool:
    """Whether a tensor of a directory is no weight: old versions of transformers saved masks and frequencies too."""
    return name.endswith(_BUFFERS)


def find_placement(template: Path, directory: Path) -> Placement | None:
    """How the weights of ``directory`` go into a GGUF like ``template``; None for what only a converter can place.

    Raises InputError for a directory of another architecture, with other numbers of layers or heads, or with a
    configuration that transformers refuses.
    """
    file = GgufFile(template, outline=True)
    kind = file.text("general.architecture")
    layout, theirs = LAYOUTS.get(kind), _model_type(directory)
    if layout is None or not any(theirs in other.model_types for other in LAYOUTS.values()):
        return None
    if theirs not in layout.model_types:
        raise InputError(
            f"{directory} is of architecture {theirs}, {template} of {kind}: one is needed",
            hint="give the model that the unlearned one was made from",
        )
    try:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
    except ImportError:  # a transformers that reads GGUFs in another way, and so proves nothing here
        return None
    processor = TENSOR_PROCESSORS.get(kind, TensorProcessor)(config={})
    try:
        found, tied, names, prefix = _outline(
            directory, lambda model: get_gguf_hf_weights_map(model, processor, model_type=kind)
        )
    except Exception as error:  # what it raises for a wrong value is whatever stumbles over that first
        raise InputError(
            f"{directory}: transformers refuses its config.json",
            cause=str(error),
            hint="copy the model again, or give a converter with --llama-cpp",
        ) from error
    heads = file.value(f"{kind}.attention.head_count")
    numbers = {
        "layers": file.value(f"{kind}.block_count"),
        "heads": heads,
        "kv_heads": file.value(f"{kind}.attention.head_count_kv", heads),
    }
    if found != numbers:
        ours, needed = (", ".join(f"{value} {key}" for key, value in one.items()) for one in (found, numbers))
        raise InputError(
            f"{directory} has {ours}, {template} {needed}: the same are needed",
            hint="give the model that the unlearned one was made from",
        )
    return Placement(kind, layout, names, prefix, found, tied)


def _model_type(directory: Path) -> str | None:
    """None too for weights that are stored in fewer bits, which some converters can undo."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
        return None if config.get("quantization_config") else config["model_type"]
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):  # the converter says what is wrong with it
        return None


def _outline(
    directory: Path, names_of: Callable[[Any], dict[str, str]]
) -> tuple[dict[str, int], bool, dict[str, str], str]:
    """Numbers of layers and heads, whether outputs are tied, GGUF name to Hugging Face's, the prefix of these."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gguf_forget.checkpoint.quick_reader import quick_gguf

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    with torch.device("meta"), quick_gguf():
        # Whatever attention the configuration asks for: none runs here.
        names = names_of(model := AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    numbers = {"layers": config.num_hidden_layers, "heads": heads, "kv_heads": kv_heads}
    return numbers, bool(config.tie_word_embeddings), names, f"{model.base_model_prefix}."


def _part(name: str) -> str:
    return name.split(".")[-2]
