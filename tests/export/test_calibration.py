"""Second moments of the inputs against one sequence, one token at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gguf_forget.checkpoint.architecture import mlps
from gguf_forget.export.calibration import mlp_hessians

SEQUENCES = ((300, 20, 31, 7), (8,), (9, 10, 11, 12, 13, 14, 15), (42, 50), (5, 5, 5))
NEURONS = (np.array([3, 100, 511]), np.array([], dtype=np.int64))
ALL_LAYERS = (np.array([0, 7]), np.array([8, 200, 300]))


def inputs_of(model: Any, module: Any) -> list[np.ndarray]:
    """What ``module`` is given for every token of every sequence, run one by one; float64 [columns] each."""
    seen: list[np.ndarray] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.extend(given[0][0].double().numpy()))
    with torch.no_grad():
        for sequence in SEQUENCES:
            model(torch.tensor([sequence]))
    handle.remove()
    return seen


def direct(rows: list[np.ndarray]) -> np.ndarray:
    total = np.zeros((len(rows[0]), len(rows[0])))
    for row in rows:
        total += np.outer(row, row)
    return total


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_moments_equal_the_direct_loop(tiny_model: Any, batch_size: int) -> None:
    told: list[int] = []
    found = mlp_hessians(tiny_model, ALL_LAYERS, SEQUENCES, batch_size=batch_size, progress=told.append)
    assert sum(told) == len(SEQUENCES)
    assert set(found) == {f"blk.{i}.ffn_{role}.weight" for i in range(2) for role in ("gate", "up", "down")}
    for layer, neurons in zip(mlps(tiny_model), ALL_LAYERS, strict=True):
        moments = direct(inputs_of(tiny_model, layer.gate))
        close(found[f"blk.{layer.layer}.ffn_gate.weight"], moments)
        close(found[f"blk.{layer.layer}.ffn_up.weight"], moments)
        inner = direct(inputs_of(tiny_model, layer.down))
        down = found[f"blk.{layer.layer}.ffn_down.weight"]
        assert down.shape == (512, 512)
        own = np.ix_(neurons, neurons)
        close(down[own], inner[own])
        down = down.copy()
        down[own] = 0
        assert not down.any()


def test_a_layer_without_edited_neurons_has_none(tiny_model: Any) -> None:
    found = mlp_hessians(tiny_model, NEURONS, SEQUENCES)
    assert set(found) == {"blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"}


def test_no_hook_is_left_behind(tiny_model: Any) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    mlp_hessians(tiny_model, NEURONS, SEQUENCES)
    with pytest.raises(KeyboardInterrupt):
        mlp_hessians(tiny_model, NEURONS, SEQUENCES, progress=interrupt)
    assert not any(module._forward_pre_hooks for module in tiny_model.modules())
