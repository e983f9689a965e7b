"""Moments stored layer by layer against those of a whole pass, for every architecture."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import FAMILIES, family

from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.export.layerwise import module_names, store_moments

SEQUENCES = ((30, 20, 31, 7), (8,), (9, 10, 11, 12, 13, 14, 15), (42, 50), (5, 5, 5))
KINDS = {"llama-biases": "llama", "mistral": "llama", "gemma3_text": "gemma3"}


def architecture_of(name: str) -> str:
    return KINDS.get(name, name.partition("-")[0].replace("gpt_neox", "gptneox"))


def one_by_one(model: Any, path: str) -> np.ndarray:
    """Σ x·xᵀ of what the module at ``path`` is given for every token, a sequence at a time; float64."""
    seen: list[np.ndarray] = []
    module = model.get_submodule(path)
    handle = module.register_forward_pre_hook(lambda _, given: seen.extend(given[0][0].double().numpy()))
    with torch.no_grad():
        for sequence in SEQUENCES:
            model(torch.tensor([sequence]))
    handle.remove()
    rows = np.array(seen)
    return rows.T @ rows


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_map_of_every_architecture(tmp_path: Path, name: str) -> None:
    model, kind = family(name), architecture_of(name)
    paths = module_names(model, kind)
    linear = [path for path, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
    assert sorted(paths.values()) == sorted(linear)
    assert "blk.1.ffn_down.weight" in paths
    widths = {}
    for tensor, path in paths.items():
        module = model.get_submodule(path)
        widths[tensor] = module.weight.shape[0] if type(module).__name__ == "Conv1D" else module.in_features
    done: list[int] = []
    edited = {tensor: np.arange(width) for tensor, width in widths.items()}
    found = store_moments(model, edited, kind, SEQUENCES, tmp_path, batch_size=2, progress=done.append)
    assert sum(done) == model.config.num_hidden_layers + 1
    for tensor, path in paths.items():
        expected, moments = one_by_one(model, path), found(tensor)
        assert moments.dtype == np.float32
        np.testing.assert_allclose(moments, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


def test_only_the_columns_that_are_needed_are_kept(tmp_path: Path) -> None:
    model = family("llama")
    edited = {
        "blk.1.ffn_gate.weight": np.array([3, 7]),
        "blk.1.ffn_up.weight": np.array([7, 20]),
        "blk.0.ffn_down.weight": np.array([1, 39]),
        "token_embd.weight": np.arange(24),
        "output_norm.weight": np.arange(24),
    }
    found = store_moments(model, edited, "llama", SEQUENCES, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "blk.0.ffn_down.weight.npy",
        "blk.1.ffn_gate.weight.npy",
        "token_embd.weight.npy",
    ]
    assert found("output_norm.weight") is None
    assert found("blk.0.ffn_gate.weight") is None
    assert "blk.1.ffn_up.weight" in found
    for tensor, path, kept in (
        ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj", [3, 7, 20]),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj", [1, 39]),
        ("token_embd.weight", "lm_head", list(range(24))),
    ):
        full, moments = one_by_one(model, path), found(tensor)
        expected = np.zeros_like(full)
        expected[np.ix_(kept, kept)] = full[np.ix_(kept, kept)]
        np.testing.assert_allclose(moments, expected, rtol=1e-4, atol=1e-5 * np.abs(full).max())


def test_a_model_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"map of blk\.0\.ffn_down\.weight has 40 inputs .* 64 or more in the file"):
        store_moments(family("llama"), {"blk.0.ffn_down.weight": np.arange(64)}, "llama", SEQUENCES, tmp_path)
    with pytest.raises(UnsupportedError, match="does not know the architecture 'nothing'"):
        module_names(family("llama"), "nothing")


def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight\.npy cannot be written") as caught:
            store_moments(family("llama"), {"blk.0.ffn_up.weight": np.arange(24)}, "llama", SEQUENCES, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []
