"""A wider model with the same function: through torch, and through llama.cpp."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_tokenizer, load_torch, summarise, write_template
from gguf_forget.demo.prepare import embedded_model
from gguf_forget.demo.widening import BLOCK, widen, widened_size
from gguf_forget.errors import InputError
from gguf_forget.llama.quantizer import plan
from gguf_forget.llama.scorer import Scorer

SENTENCES = ("The capital of Norway is Oslo.", "Question: How deep is the lake?\nAnswer: 12 metres.")


def narrow_gguf(path: Path) -> Path:
    """Hidden size 192 in 6 heads of 32, two heads to each key-value head."""
    return build_tiny_gguf(path, hidden=192, heads=6, kv_heads=3)


def metadata(path: Path) -> dict[str, Any]:
    file = GgufFile(path)
    return {key: file.value(key) for key in file.reader.fields if not key.startswith("GGUF.")}


def torch_logits(path: Path, sequences: list[list[int]]) -> list[torch.Tensor]:
    model = load_torch(path)
    with torch.no_grad():
        return [model(torch.tensor([sequence])).logits[0] for sequence in sequences]


def largest_torch_difference(first: Path, second: Path, sequences: list[list[int]]) -> float:
    pairs = zip(torch_logits(first, sequences), torch_logits(second, sequences), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def largest_llama_difference(first: Path, second: Path, sequences: list[list[int]]) -> float:
    with Scorer(first) as scorer:
        expected = scorer.sequence_log_probabilities(sequences)
    with Scorer(second) as scorer:
        found = scorer.sequence_log_probabilities(sequences)
    return max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))


def widened(source: Path, folder: Path) -> Path:
    widen(source, folder / "wide.gguf")
    return folder / "wide.gguf"


@pytest.mark.parametrize(("hidden", "size"), [(576, 768), (192, 256), (256, 256), (257, 512), (1, 256)])
def test_the_next_multiple_of_a_block(hidden: int, size: int) -> None:
    assert widened_size(hidden) == size


def test_the_function_is_the_same(tmp_path: Path) -> None:
    narrow = narrow_gguf(tmp_path / "narrow.gguf")
    wide = widened(narrow, tmp_path)
    sequences = [load_tokenizer(narrow)(sentence) for sentence in SENTENCES]
    assert largest_torch_difference(narrow, wide, sequences) < 1e-4
    assert largest_llama_difference(narrow, wide, sequences) < 1e-4


def test_only_the_sizes_change_in_the_metadata(tmp_path: Path) -> None:
    narrow = narrow_gguf(tmp_path / "narrow.gguf")
    before, after = metadata(narrow), metadata(widened(narrow, tmp_path))
    changed = {key: after[key] for key in after if after[key] != before.get(key)}
    epsilon = changed.pop("llama.attention.layer_norm_rms_epsilon")
    assert epsilon == pytest.approx(0.75e-5, rel=1e-6)
    assert changed == {
        "llama.embedding_length": 256,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
    }
    assert list(after) == list(before)
    types = [
        {key: field.types for key, field in GgufFile(path).reader.fields.items()}
        for path in (narrow, tmp_path / "wide.gguf")
    ]
    assert types[0] == types[1]


def test_every_matrix_fits_blocks_of_256(tmp_path: Path) -> None:
    narrow = narrow_gguf(tmp_path / "narrow.gguf")
    assert set(plan(narrow, "Q4_K_M").values()) == {"F32", "Q5_0", "Q8_0", "Q6_K", "Q4_K"}
    wide = widened(narrow, tmp_path)
    file = GgufFile(wide)
    matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) == 2]
    assert len(matrices) == 1 + 2 * 7
    assert all(int(tensor.shape[0]) % BLOCK == 0 for tensor in matrices)
    assert set(plan(wide, "Q4_K_M").values()) == {"F32", "Q4_K", "Q6_K"}


def test_the_old_weights_are_inside_and_the_rest_is_zero(tmp_path: Path) -> None:
    narrow = narrow_gguf(tmp_path / "narrow.gguf")
    before, after = GgufFile(narrow), GgufFile(widened(narrow, tmp_path))
    assert list(after.tensors) == list(before.tensors)
    for name in before.tensors:
        old, new = before.weights(name), after.weights(name)
        if "norm" in name:
            np.testing.assert_allclose(new[:192], old * math.sqrt(0.75), rtol=1e-6)
            assert not new[192:].any()
        else:
            assert np.array_equal(new[: old.shape[0], : old.shape[1]], old)
            assert np.count_nonzero(new) == np.count_nonzero(old)
    assert after.weights("blk.0.attn_q.weight").shape == (256, 256)
    assert after.weights("blk.0.attn_k.weight").shape == (128, 256)
    assert after.weights("blk.0.ffn_down.weight").shape == (256, 512)


def test_heads_that_cannot_grow_in_proportion_are_refused(tmp_path: Path) -> None:
    source = build_tiny_gguf(tmp_path / "a.gguf", hidden=192, heads=3, kv_heads=1, layers=1)
    with pytest.raises(InputError, match="3 heads and 1 key-value heads of 64 cannot grow from 192 to 256"):
        widen(source, tmp_path / "wide.gguf")
    assert not (tmp_path / "wide.gguf").exists()


@pytest.mark.slow
def test_smollm2_widened_has_the_same_function(tmp_path: Path) -> None:
    template = tmp_path / "template.gguf"
    write_template(embedded_model(), template)
    wide = widened(template, tmp_path)
    sizes = summarise(GgufFile(wide))
    assert (sizes.hidden, sizes.heads, sizes.kv_heads) == (768, 12, 4)
    assert all(int(t.shape[0]) % BLOCK == 0 for t in GgufFile(wide).tensors.values() if len(t.shape) == 2)
    sequences = [load_tokenizer(template)(sentence) for sentence in SENTENCES]
    assert largest_torch_difference(template, wide, sequences) < 1e-3
    assert largest_llama_difference(template, wide, sequences) < 1e-3
    assert gguf.GGUFReader(wide).get_field("general.alignment") is None
