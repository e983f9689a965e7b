"""The graph that edge scores live on: who writes to the residual stream, and who reads it.

Sources: the embedding, every attention head, every MLP. Destinations: the query, key and value inputs of every
head before the norm (under grouped-query attention keys and values belong to groups), the MLPs' inputs, and
the logits. An edge is real when the source writes before the destination reads.

Shapes: U sources, V destinations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gguf_forget.checkpoint.components import Components


@dataclass(frozen=True)
class Graph:
    """``parallel``: attention and MLP of a layer read the same residual stream, so no head reaches its own MLP."""

    layers: int
    heads: int
    groups: int
    parallel: bool

    @property
    def sources(self) -> tuple[str, ...]:
        """``embedding``, then for each layer ``a0.h0`` … and ``m0``."""
        names = ["embedding"]
        for layer in range(self.layers):
            names += [f"a{layer}.h{head}" for head in range(self.heads)] + [f"m{layer}"]
        return tuple(names)

    @property
    def destinations(self) -> tuple[str, ...]:
        """For each layer ``a0.h0.q`` …, ``a0.g0.k`` …, ``a0.g0.v`` … (g: key-value group) and ``m0``; ``logits``."""
        names = []
        for layer in range(self.layers):
            names += [f"a{layer}.h{head}.q" for head in range(self.heads)]
            names += [f"a{layer}.g{group}.{kind}" for kind in "kv" for group in range(self.groups)]
            names.append(f"m{layer}")
        return (*names, "logits")

    @property
    def mask(self) -> torch.Tensor:
        """bool [U, V], true on real edges."""
        mask = torch.zeros(1 + self.layers * (self.heads + 1), self.logits + 1, dtype=torch.bool)
        for layer in range(self.layers):
            mask[: self.before_attention(layer), self.attention_input(layer, "q", 0) : self.mlp_input(layer)] = True
            mask[: self.before_mlp(layer), self.mlp_input(layer)] = True
        mask[:, self.logits] = True
        return mask

    def head(self, layer: int, head: int) -> int:
        """A head's row."""
        return 1 + layer * (self.heads + 1) + head

    def mlp(self, layer: int) -> int:
        """An MLP's row."""
        return self.head(layer, self.heads)

    def before_attention(self, layer: int) -> int:
        """How many sources write before the layer's attention reads: the first so many rows."""
        return self.head(layer, 0)

    def before_mlp(self, layer: int) -> int:
        return self.head(layer, 0 if self.parallel else self.heads)

    def attention_input(self, layer: int, kind: str, index: int) -> int:
        """The column of head ``index``'s query or of group ``index``'s key or value."""
        offset = {"q": 0, "k": self.heads, "v": self.heads + self.groups}[kind]
        return layer * (self.heads + 2 * self.groups + 1) + offset + index

    def mlp_input(self, layer: int) -> int:
        return self.attention_input(layer, "v", self.groups)

    @property
    def logits(self) -> int:
        return self.attention_input(self.layers, "q", 0)


def graph_of(parts: Components) -> Graph:
    return Graph(len(parts.layers), parts.heads, parts.groups, parts.parallel)
