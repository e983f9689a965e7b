"""Where a directory's weights go in a GGUF: transformers' own reader undoes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_directories import FAMILIES, configuration, gguf_names, write_family

from gguf_forget.checkpoint.placement import Placement, find_placement, is_buffer
from gguf_forget.errors import InputError


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("templates")
    return {family: write_family(folder / f"{family}.gguf", family) for family in FAMILIES}


def described(folder: Path, family: str, **changes: Any) -> Path:
    """A directory with a configuration alone."""
    configuration(family).save_pretrained(folder)
    if changes:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def found(template: Path, directory: Path) -> Placement:
    placement = find_placement(template, directory)
    assert placement is not None
    return placement


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_placed_comes_back_bit_for_bit(tmp_path: Path, templates: dict[str, Path], family: str) -> None:
    placement = found(templates[family], described(tmp_path, family))
    generator = np.random.default_rng(1)
    wanted = gguf_names(family, configuration(family))
    # Tied output weights have a name as well, which is used only where a GGUF has them all the same.
    assert {name: placement.names[name] for name in wanted} == {name: theirs for name, (theirs, _) in wanted.items()}
    assert set(placement.names) - set(wanted) <= {"output.weight"}
    for name, (_, shape) in wanted.items():
        weights = generator.standard_normal(shape).astype(np.float32)
        if placement.is_sum(name):
            weights = weights.astype(np.float16).astype(np.float32)  # 1 + it then is exact
        returned = placement.returned(name, np.ascontiguousarray(placement.place(name, weights)))
        assert returned.shape == shape
        assert np.array_equal(returned.view(np.uint32), weights.view(np.uint32)) or placement.is_sum(name), name
        assert np.allclose(returned, weights, rtol=0, atol=3e-7)


def test_rows_of_grouped_queries_and_keys_by_hand(tmp_path: Path, templates: dict[str, Path]) -> None:
    placement = found(templates["llama"], described(tmp_path, "llama"))  # heads of 8 rows: 4, and 2 of keys
    head = [0, 4, 1, 5, 2, 6, 3, 7]
    rows = np.arange(32, dtype=np.float32)
    for suffix, weights in (("weight", rows[:, None] * np.ones(3, np.float32)), ("bias", rows)):
        queries = placement.place(f"blk.0.attn_q.{suffix}", weights)
        assert queries.reshape(32, -1)[:, 0].tolist() == [8 * number + row for number in range(4) for row in head]
        keys = placement.place(f"blk.1.attn_k.{suffix}", weights[:16])
        assert keys.reshape(16, -1)[:, 0].tolist() == [8 * number + row for number in range(2) for row in head]
        assert placement.place(f"blk.0.attn_v.{suffix}", weights) is weights
        assert placement.returned(f"blk.1.attn_k.{suffix}", keys).tobytes() == weights[:16].tobytes()


def test_norms_and_transposed_weights_by_hand(tmp_path: Path, templates: dict[str, Path]) -> None:
    gemma = found(templates["gemma2"], described(tmp_path / "gemma", "gemma2"))
    norm = np.array([0.5, -1.0, 2.0**-12], np.float16)
    assert gemma.place("blk.0.attn_norm.weight", norm).dtype == np.float16
    assert gemma.place("blk.0.attn_norm.weight", norm).tolist() == [1.5, 0.0, 1.0]
    assert gemma.place("output_norm.weight", norm.astype(np.float32)).tolist() == [1.5, 0.0, 1 + 2.0**-12]
    assert gemma.place("blk.0.ffn_up.weight", norm) is norm
    gpt2 = found(templates["gpt2"], described(tmp_path / "gpt2", "gpt2"))
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert gpt2.place("blk.0.ffn_up.weight", weights).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert gpt2.place("token_embd.weight", weights) is weights
    assert gpt2.place("output.weight", weights) is weights
    assert gpt2.place("blk.0.ffn_up.bias", norm) is norm
    assert np.array_equal(gpt2.returned("output.weight", weights), weights)  # the reader has a way of its own for it


def test_outputs_tied_or_not(tmp_path: Path, templates: dict[str, Path]) -> None:
    for family, tied in (("llama", False), ("llama-tied", True), ("gemma2", True), ("qwen2", False)):
        assert found(templates[family], described(tmp_path / family, family)).tied is tied


def test_a_file_without_a_number_of_key_heads_has_one_for_every_head(tmp_path: Path) -> None:
    template = write_family(tmp_path / "gpt2.gguf", "gpt2")
    placement = found(template, described(tmp_path / "directory", "gpt2"))
    assert placement.numbers == {"layers": 2, "heads": 4, "kv_heads": 4}


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model_type": ["llama"]}', '{"model_type": "gemma4"}'])
def test_only_a_converter_can_place_what_is_unknown(
    tmp_path: Path, templates: dict[str, Path], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert find_placement(templates["llama"], tmp_path) is None


def test_only_a_converter_can_place_quantized_weights(tmp_path: Path, templates: dict[str, Path]) -> None:
    directory = described(tmp_path, "llama", quantization_config={"quant_method": "fp8"})
    assert find_placement(templates["llama"], directory) is None


def test_only_a_converter_can_place_weights_in_an_unknown_architecture(tmp_path: Path) -> None:
    from tiny_shapes import shape_weights, write_shape

    template = write_shape(tmp_path / "gemma.gguf", "gemma", shape_weights("gemma"))
    assert find_placement(template, described(tmp_path / "directory", "llama")) is None


def test_another_transformers_proves_nothing(
    tmp_path: Path, templates: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers.modeling_gguf_pytorch_utils", None)
    assert find_placement(templates["llama"], described(tmp_path, "llama")) is None


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen2", {}, "is of architecture qwen2, "),
        ("llama", {"num_attention_heads": 8}, "has 2 layers, 8 heads, 2 kv_heads, "),
        ("llama", {"num_key_value_heads": 4}, "has 2 layers, 4 heads, 4 kv_heads, "),
        ("llama", {"num_hidden_layers": 3}, "has 3 layers, 4 heads, 2 kv_heads, "),
        ("llama", {"hidden_act": "unheard of"}, ": transformers refuses its config.json"),
        ("llama", {"num_attention_heads": "four"}, ": transformers refuses its config.json"),
    ],
)
def test_another_model_is_refused(
    tmp_path: Path, templates: dict[str, Path], family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        find_placement(templates["llama"], described(tmp_path, family, **changes))
    assert caught.value.message.startswith(f"{tmp_path}{message}" if message[0] == ":" else f"{tmp_path} {message}")


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("transformer.h.0.attn.bias", True),
        ("h.0.attn.masked_bias", True),
        ("transformer.h.0.attn.c_attn.bias", False),
        ("model.layers.0.self_attn.q_proj.bias", False),
    ],
)
def test_what_is_no_weight(name: str, *, buffer: bool) -> None:
    assert is_buffer(name) is buffer
