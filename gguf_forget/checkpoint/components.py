"""The parts of a loaded Hugging Face model that attribution reads, found by the table of architectures.

Everything is checked before it is used: a model with weights in places that the table does not name (adapters,
experts, cross-attention) or with weights of unexpected shapes (packed by a quantizer) is refused.

Shapes: H heads, K key-value groups, D head size, d_ff neurons a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_forget.checkpoint.architecture import Architecture, attributable
from gguf_forget.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LinearMap:
    """A linear module; ``transposed`` when its weight is stored [inputs, outputs]."""

    module: Any
    transposed: bool

    @property
    def matrix(self) -> torch.Tensor:
        """[outputs, inputs], a view."""
        weight: torch.Tensor = self.module.weight.detach()
        return weight.T if self.transposed else weight


@dataclass(frozen=True)
class Projection:
    """A map from the residual stream to n heads of D rows each.

    ``outputs`` names them in the order of the rows: ("q", head), ("k", group) or ("v", group).
    """

    map: LinearMap
    outputs: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Norm:
    """``weight * x / scale(x) + bias``; ``centred`` when the mean of x is taken off first."""

    module: Any
    epsilon: float
    plus_one: bool
    centred: bool

    @property
    def weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.module.weight.detach()
        return weight + 1.0 if self.plus_one else weight

    @property
    def bias(self) -> torch.Tensor | None:
        bias: torch.Tensor | None = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """What x is divided by: its root mean square (or deviation), [..., 1]; epsilon is inside the root."""
        if self.centred:
            x = x - x.mean(dim=-1, keepdim=True)
        return (x.square().mean(dim=-1, keepdim=True) + self.epsilon).sqrt()


@dataclass(frozen=True)
class Layer:
    """One layer. What attention and MLP add to the residual stream are the outputs of ``attention`` and ``mlp``."""

    attention_norm: Norm | None
    projections: tuple[Projection, ...]
    attention_output: LinearMap  # [d_model, H * D]
    attention_post_norm: Norm | None
    attention: Any
    mlp_entry: Any  # the module whose input is the MLP's view of the residual stream: its norm, or the MLP
    down: LinearMap  # [d_model, d_ff]
    mlp: Any


@dataclass(frozen=True)
class Components:
    layers: tuple[Layer, ...]
    final_norm: Any
    heads: int
    groups: int  # key-value groups, equal to ``heads`` without grouped-query attention
    head_size: int
    hidden: int  # d_model
    neurons: int  # d_ff
    parallel: bool  # attention and MLP of a layer read the same residual stream
    centred: bool  # every norm takes off the mean


def _expected_weights(entry: Architecture, layers: int) -> set[str]:
    below = {entry.attention_output, *entry.mlp_inputs, entry.down, *entry.head_norms}
    below |= {path for path, _ in entry.projections}
    norms = (entry.attention_norm, entry.attention_post_norm, entry.mlp_norm, entry.mlp_post_norm)
    below |= {path for path in norms if path is not None}
    outside = {entry.embedding, entry.final_norm, entry.head, *entry.other_weights}
    return outside | {f"{entry.layer.format(layer)}.{path}" for layer in range(layers) for path in below}


def _check_weights(model: Any, entry: Architecture) -> None:
    found = {path for path, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None}
    expected = _expected_weights(entry, model.config.num_hidden_layers)
    name = model.config.model_type
    if found - expected:
        raise UnsupportedError(
            f"this {name} model has weights in {min(found - expected)} "
            f"({len(found - expected)} unexpected modules in all), needed those of a plain {name} alone",
            hint="merge adapters into the model and dequantize it first",
        )
    if expected - found:
        raise UnsupportedError(
            f"this {name} model has no weights in {min(expected - found)} ({len(expected - found)} modules are missing)"
        )


def _output_order(kinds: str, heads: int, groups: int, interleaved: bool) -> tuple[tuple[str, int], ...]:
    counts = {"q": heads, "k": groups, "v": groups}
    if interleaved:
        return tuple((kind, head) for head in range(heads) for kind in kinds)
    return tuple((kind, head) for kind in kinds for head in range(counts[kind]))


def components(model: Any) -> Components:
    """The parts of ``model`` (a causal language model); :class:`UnsupportedError` unless all is as the table says."""
    config = model.config
    entry = attributable(config)
    _check_weights(model, entry)
    heads, hidden = config.num_attention_heads, config.hidden_size
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or hidden // heads
    epsilon = float(getattr(config, entry.epsilon))

    def linear(path: str, outputs: int | None, inputs: int | None) -> LinearMap:
        found = LinearMap(model.get_submodule(path), entry.transposed)
        shape = tuple(found.matrix.shape)
        if len(shape) != 2 or shape[0] != (outputs or shape[0]) or shape[1] != (inputs or shape[1]):
            raise UnsupportedError(
                f"{path} has a weight of shape {list(shape)} (outputs, inputs), "
                f"needed [{outputs or 'any'}, {inputs or 'any'}]"
            )
        return found

    def norm(path: str) -> Norm:
        module = model.get_submodule(path)
        return Norm(module, epsilon, entry.norm == "rms_plus_one", entry.norm == "layer")

    def layer(index: int) -> Layer:
        prefix = entry.layer.format(index)
        projections = []
        for path, kinds in entry.projections:
            outputs = _output_order(kinds, heads, groups, entry.interleaved)
            projections.append(Projection(linear(f"{prefix}.{path}", len(outputs) * size, hidden), outputs))
        output_path = f"{prefix}.{entry.attention_output}"
        post_norm = f"{prefix}.{entry.attention_post_norm}" if entry.attention_post_norm else None
        return Layer(
            attention_norm=norm(f"{prefix}.{entry.attention_norm}") if entry.attention_norm else None,
            projections=tuple(projections),
            attention_output=linear(output_path, hidden, heads * size),
            attention_post_norm=norm(post_norm) if post_norm else None,
            attention=model.get_submodule(post_norm or output_path),
            mlp_entry=model.get_submodule(f"{prefix}.{entry.mlp_norm or entry.mlp}"),
            down=linear(f"{prefix}.{entry.down}", hidden, None),
            mlp=model.get_submodule(f"{prefix}.{entry.mlp_post_norm or entry.mlp}"),
        )

    layers = tuple(layer(index) for index in range(config.num_hidden_layers))
    return Components(
        layers=layers,
        final_norm=model.get_submodule(entry.final_norm),
        heads=heads,
        groups=groups,
        head_size=size,
        hidden=hidden,
        neurons=layers[0].down.matrix.shape[1],
        parallel=bool(entry.parallel and getattr(config, entry.parallel)),
        centred=entry.norm == "layer",
    )
