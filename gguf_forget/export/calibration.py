"""Second moments of what the edited linear maps see: the Hessian of the rounding error.

For a map y = W x the error of rounded weights is tr(dW H dW^T) with H = sum of x x^T over calibration inputs
(GPTQ, Frantar et al., arXiv 2210.17323, section 3).

Shapes: B tokens, d_model, d_ff, n edited neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gguf_forget.checkpoint.architecture import architecture, mlps
from gguf_forget.facts.tokens import pad


def mlp_hessians(
    model: Any,
    neurons: Sequence[np.ndarray],
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """GGUF tensor name to H, float32 [columns, columns].

    gate and up share the H of the layer's input [d_model, d_model]. For down only the rows and columns of
    ``neurons`` (the edited ones, a list a layer) are filled: no other column can move, so no other entry is
    read.
    """
    layers = mlps(model)
    names = architecture(model.config.model_type)
    inputs = [torch.zeros(layer.gate.in_features, layer.gate.in_features) for layer in layers]
    inner = [torch.zeros(len(indices), len(indices)) for indices in neurons]
    mask = torch.empty(0)

    def collect(total: torch.Tensor, columns: torch.Tensor | None) -> Any:
        def hook(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            x = arguments[0][mask]  # [B, columns]
            x = (x if columns is None else x[:, columns]).float()
            total.add_(x.T @ x)

        return hook

    handles = []
    for layer, indices in zip(layers, neurons, strict=True):
        if len(indices):
            handles.append(layer.gate.register_forward_pre_hook(collect(inputs[layer.layer], None)))
            columns = torch.from_numpy(np.asarray(indices, dtype=np.int64))
            handles.append(layer.down.register_forward_pre_hook(collect(inner[layer.layer], columns)))
    try:
        ordered = sorted(sequences, key=len)
        for start in range(0, len(ordered), batch_size):
            part = ordered[start : start + batch_size]
            ids, padding = pad(part)
            mask = torch.from_numpy(padding).bool()
            with torch.no_grad():
                model.base_model(torch.from_numpy(ids), attention_mask=torch.from_numpy(padding), use_cache=False)
            progress(len(part))
    finally:
        for handle in handles:
            handle.remove()
    result = {}
    for layer, indices in zip(layers, neurons, strict=True):
        if not len(indices):
            continue
        for name in (names.gguf_gate, names.gguf_up):
            result[name.format(layer.layer)] = inputs[layer.layer].numpy()
        full = np.zeros((layer.down.in_features, layer.down.in_features), dtype=np.float32)
        full[np.ix_(indices, indices)] = inner[layer.layer].numpy()
        result[names.gguf_down.format(layer.layer)] = full
    return result
