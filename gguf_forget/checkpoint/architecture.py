"""What the tool needs to know of an architecture: where each layer's gated MLP is, here and in a GGUF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_forget.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Architecture:
    """Module paths below the model and tensor names in a GGUF; ``{}`` stands for the layer's index.

    All architectures listed here have a gated MLP without biases: ``down(act(gate(x)) * up(x))``.
    """

    gate: str = "model.layers.{}.mlp.gate_proj"
    up: str = "model.layers.{}.mlp.up_proj"
    down: str = "model.layers.{}.mlp.down_proj"
    gguf_gate: str = "blk.{}.ffn_gate.weight"
    gguf_up: str = "blk.{}.ffn_up.weight"
    gguf_down: str = "blk.{}.ffn_down.weight"


# Keys are `general.architecture` of the GGUF, which for these equal the Hugging Face `model_type`.
ARCHITECTURES: dict[str, Architecture] = {"llama": Architecture()}


def architecture(name: str) -> Architecture:
    """The entry for a GGUF or Hugging Face architecture name; :class:`UnsupportedError` for any other."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise UnsupportedError(
            f"architecture {name!r} is not supported, needed one of {', '.join(sorted(ARCHITECTURES))}",
            hint="a new architecture is one entry in gguf_forget/checkpoint/architecture.py and a test",
        ) from None


@dataclass(frozen=True)
class GatedMlp:
    """The three linear maps of one layer. gate, up: [d_ff, d_model]; down: [d_model, d_ff]."""

    layer: int
    gate: torch.nn.Linear
    up: torch.nn.Linear
    down: torch.nn.Linear


def mlps(model: Any) -> list[GatedMlp]:
    """The gated MLPs of a Hugging Face model, first layer first."""
    entry = architecture(model.config.model_type)
    layers = range(model.config.num_hidden_layers)

    def modules(path: str) -> Iterator[Any]:
        return (model.get_submodule(path.format(layer)) for layer in layers)

    return [
        GatedMlp(layer, gate, up, down)
        for layer, gate, up, down in zip(
            layers, modules(entry.gate), modules(entry.up), modules(entry.down), strict=True
        )
    ]
