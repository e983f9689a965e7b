"""What the tool needs to know of an architecture, in one table.

Attribution reads every architecture listed here; editing and writing a GGUF need the names of its tensors
there as well (``gguf``). A new architecture is one entry and one test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from gguf_forget.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GgufMlp:
    """Tensor names of a gated MLP without biases in a GGUF; ``{}`` stands for the layer's index."""

    gguf_gate: str = "blk.{}.ffn_gate.weight"
    gguf_up: str = "blk.{}.ffn_up.weight"
    gguf_down: str = "blk.{}.ffn_down.weight"


@dataclass(frozen=True)
class Architecture:
    """Module paths of a decoder-only Hugging Face model; those without ``layer`` in front are below a layer.

    ``projections`` are the maps from the residual stream to queries, keys and values: the module, and the
    order of these in its rows. ``interleaved`` rows go head by head (q, k, v of head 0, then of head 1, …),
    others go q of all heads, then k, then v. ``transposed`` weights are stored [inputs, outputs].
    """

    layer: str = "model.layers.{}"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    other_weights: tuple[str, ...] = ()  # outside the layers: position embeddings

    attention_norm: str | None = "input_layernorm"
    projections: tuple[tuple[str, str], ...] = (
        ("self_attn.q_proj", "q"),
        ("self_attn.k_proj", "k"),
        ("self_attn.v_proj", "v"),
    )
    interleaved: bool = False
    transposed: bool = False
    head_norms: tuple[str, ...] = ()  # of queries and keys, after their projections
    attention_output: str = "self_attn.o_proj"
    attention_post_norm: str | None = None  # between the attention's output and the residual stream

    mlp_norm: str | None = "post_attention_layernorm"
    mlp: str = "mlp"
    mlp_inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"  # the map whose inputs are the neurons
    mlp_post_norm: str | None = None

    # rms: w * x / rms(x); rms_plus_one: (1 + w) * x / rms(x); layer: w * (x - mean) / deviation + b
    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"
    epsilon: str = "rms_norm_eps"  # the configuration's field for the norms' epsilon
    parallel: str | None = None  # the field that says whether attention and MLP read the same residual stream
    refused: tuple[str, ...] = ()  # fields that, when set, make it another architecture

    gguf: GgufMlp | None = None  # where given, the MLP can be edited and written to a GGUF


_LLAMA = Architecture()
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_GEMMA2 = Architecture(
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    norm="rms_plus_one",
    refused=("use_bidirectional_attention",),
)

# Keys are the Hugging Face `model_type`; where `gguf` is given it equals the GGUF's `general.architecture`.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": replace(_LLAMA, gguf=GgufMlp()),
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, head_norms=_HEAD_NORMS),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, head_norms=_HEAD_NORMS),
    "phi3": replace(
        _LLAMA,
        projections=(("self_attn.qkv_proj", "qkv"),),
        mlp_inputs=("mlp.gate_up_proj",),
    ),
    "olmo2": replace(
        _LLAMA,
        attention_norm=None,
        head_norms=_HEAD_NORMS,
        attention_post_norm="post_attention_layernorm",
        mlp_norm=None,
        mlp_post_norm="post_feedforward_layernorm",
    ),
    "gpt2": Architecture(
        layer="transformer.h.{}",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        other_weights=("transformer.wpe",),
        attention_norm="ln_1",
        projections=(("attn.c_attn", "qkv"),),
        transposed=True,
        attention_output="attn.c_proj",
        mlp_norm="ln_2",
        mlp_inputs=("mlp.c_fc",),
        down="mlp.c_proj",
        norm="layer",
        epsilon="layer_norm_epsilon",
    ),
    "gpt_neox": Architecture(
        layer="gpt_neox.layers.{}",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        projections=(("attention.query_key_value", "qkv"),),
        interleaved=True,
        attention_output="attention.dense",
        mlp_inputs=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        norm="layer",
        epsilon="layer_norm_eps",
        parallel="use_parallel_residual",
    ),
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def _unsupported(name: str, known: list[str]) -> UnsupportedError:
    return UnsupportedError(
        f"architecture {name!r} is not supported, needed one of {', '.join(sorted(known))}",
        hint="a new architecture is one entry in gguf_forget/checkpoint/architecture.py and a test",
    )


def architecture(name: str) -> GgufMlp:
    """Where the MLPs of an architecture that can be edited are in a GGUF; :class:`UnsupportedError` for any other."""
    entry = ARCHITECTURES.get(name)
    if entry is None or entry.gguf is None:
        raise _unsupported(name, [key for key, other in ARCHITECTURES.items() if other.gguf is not None])
    return entry.gguf


def attributable(config: Any) -> Architecture:
    """The entry for a Hugging Face configuration; :class:`UnsupportedError` for mixtures of experts and unknowns."""
    name = config.model_type
    for field in _EXPERTS:
        if getattr(config, field, None):
            raise UnsupportedError(
                f"architecture {name!r} is a mixture of experts ({field} = {getattr(config, field)}), "
                "needed one MLP in every layer"
            )
    if name not in ARCHITECTURES:
        raise _unsupported(name, list(ARCHITECTURES))
    entry = ARCHITECTURES[name]
    for field in entry.refused:
        if getattr(config, field, None):
            raise UnsupportedError(f"architecture {name!r} with {field} = {getattr(config, field)} is not supported")
    return entry


@dataclass(frozen=True)
class GatedMlp:
    """The three linear maps of one layer. gate, up: [d_ff, d_model]; down: [d_model, d_ff]."""

    layer: int
    gate: torch.nn.Linear
    up: torch.nn.Linear
    down: torch.nn.Linear


def decoder_layers(model: Any) -> list[Any]:
    """The modules of a Hugging Face model's layers, in order."""
    entry = ARCHITECTURES[model.config.model_type]
    return [model.get_submodule(entry.layer.format(layer)) for layer in range(model.config.num_hidden_layers)]


def mlps(model: Any) -> list[GatedMlp]:
    """The gated MLPs of a Hugging Face model that can be edited, first layer first."""
    architecture(model.config.model_type)
    entry = ARCHITECTURES[model.config.model_type]
    layers = range(model.config.num_hidden_layers)

    def modules(path: str) -> Iterator[Any]:
        return (model.get_submodule(f"{entry.layer.format(layer)}.{path}") for layer in layers)

    gate, up = entry.mlp_inputs
    return [
        GatedMlp(layer, *found)
        for layer, *found in zip(layers, modules(gate), modules(up), modules(entry.down), strict=True)
    ]
