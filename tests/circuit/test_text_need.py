"""What plain text needs of a neuron: against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gguf_forget.checkpoint.components import components
from gguf_forget.circuit.hooks import hooked
from gguf_forget.circuit.text_need import text_need
from gguf_forget.errors import InputError

CHUNKS = [[(7 * i + 3 * k) % 250 for k in range(12)] for i in range(6)]


def likelihood(model: Any, chunk: list[int], layer: int, neuron: int, scale: torch.Tensor) -> float:
    """Of a chunk, where a neuron is multiplied by ``scale`` [T]."""

    def scaled(value: torch.Tensor) -> torch.Tensor:
        changed = value.clone()
        changed[..., neuron] *= scale
        return changed

    ids = torch.tensor([chunk])
    with torch.no_grad(), hooked([(components(model).layers[layer].down.module, "input", scaled)]):
        log_probs = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
    return float(log_probs.gather(-1, ids[0, 1:, None]).sum())


@pytest.mark.parametrize(("layer", "neuron"), [(0, 3), (0, 40), (1, 17)])
def test_needs_are_what_a_smaller_neuron_costs_the_text(tiny_double: Any, layer: int, neuron: int) -> None:
    found, signed = (text_need(tiny_double, CHUNKS, signed=way) for way in (False, True))
    assert found.shape == signed.shape == (2, 512)
    assert found.dtype == np.float64
    each = []
    for chunk in CHUNKS:
        for token in range(len(chunk)):
            scale = torch.ones(len(chunk), dtype=torch.float64)
            ends = []
            for change in (1e-4, -1e-4):
                scale[token] = 1 + change
                ends.append(likelihood(tiny_double, chunk, layer, neuron, scale))
            each.append((ends[0] - ends[1]) / 2e-4)
    # Sums over tokens, means over chunks.
    assert found[layer, neuron] == pytest.approx(np.abs(each).sum() / len(CHUNKS), rel=1e-5, abs=1e-9)
    assert signed[layer, neuron] == pytest.approx(np.sum(each) / len(CHUNKS), rel=1e-5, abs=1e-9)
    assert np.abs(signed[layer, neuron]) < found[layer, neuron]


def test_chunks_are_told_and_the_model_is_left_as_found(tiny_double: Any) -> None:
    told: list[int] = []
    before = [parameter.requires_grad for parameter in tiny_double.parameters()]
    text_need(tiny_double, CHUNKS, progress=told.append)
    assert told == [4, 2]
    assert [parameter.requires_grad for parameter in tiny_double.parameters()] == before
    assert all(parameter.grad is None for parameter in tiny_double.parameters())
    with pytest.raises(InputError, match="no plain text"):
        text_need(tiny_double, [])
