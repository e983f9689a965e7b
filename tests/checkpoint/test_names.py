"""A torch model under GGUF names: the same bytes as the file it was loaded from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.architecture import architecture, mlps
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_torch
from gguf_forget.checkpoint.names import gguf_tensors, interleave_heads
from gguf_forget.errors import UnsupportedError


def test_every_tensor_comes_back_bit_for_bit(tiny_gguf: Path, tiny_model: Any) -> None:
    file = GgufFile(tiny_gguf)
    found = dict(gguf_tensors(tiny_model))
    assert set(found) == set(file.tensors)
    for name, weights in found.items():
        assert weights.dtype == np.float32
        assert weights.shape == file.weights(name).shape
        assert weights.tobytes() == file.weights(name).tobytes(), name


def test_other_proportions_of_heads(tmp_path: Path) -> None:
    path = build_tiny_gguf(tmp_path / "b.gguf", hidden=96, layers=1, heads=6, kv_heads=3, feed_forward=64)
    for name, weights in gguf_tensors(load_torch(path)):
        assert weights.tobytes() == GgufFile(path).weights(name).tobytes(), name


def test_queries_and_keys_differ_between_the_two_layouts(tiny_gguf: Path, tiny_model: Any) -> None:
    """The permutation is real: without it the bytes would not agree."""
    file = GgufFile(tiny_gguf)
    attention = tiny_model.model.layers[0].self_attn
    assert not np.array_equal(attention.q_proj.weight.numpy(), file.weights("blk.0.attn_q.weight"))
    assert not np.array_equal(attention.k_proj.weight.numpy(), file.weights("blk.0.attn_k.weight"))
    assert np.array_equal(attention.v_proj.weight.numpy(), file.weights("blk.0.attn_v.weight"))


def test_interleaving_by_hand() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 2), dtype=np.float32)
    assert interleave_heads(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleave_heads(rows, 1)[:, 1].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_an_output_of_its_own_is_given_too(tiny_model: Any) -> None:
    model = copy.deepcopy(tiny_model)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2, requires_grad=False)
    found = dict(gguf_tensors(model))
    assert np.array_equal(found["output.weight"], 2 * found["token_embd.weight"])


def test_mlps_are_those_of_the_file(tiny_gguf: Path, tiny_model: Any) -> None:
    file, names = GgufFile(tiny_gguf), architecture("llama")
    for layer in mlps(tiny_model):
        for module, name in (
            (layer.gate, names.gguf_gate),
            (layer.up, names.gguf_up),
            (layer.down, names.gguf_down),
        ):
            assert np.array_equal(module.weight.numpy(), file.weights(name.format(layer.layer)))
    assert [layer.layer for layer in mlps(tiny_model)] == [0, 1]


def test_other_architectures_are_refused(tiny_model: Any) -> None:
    model = copy.deepcopy(tiny_model)
    model.config.model_type = "gpt2"
    with pytest.raises(UnsupportedError, match="architecture 'gpt2' is not supported"):
        next(gguf_tensors(model))
    with pytest.raises(UnsupportedError, match="architecture 'gpt2' is not supported, needed one of llama"):
        mlps(model)
