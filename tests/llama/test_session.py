"""The cache sized to the work, earlier work that changes nothing, devices, and files in parts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from gguf_with import copy_with

from gguf_forget.errors import InputError, LlamaError
from gguf_forget.llama.quantizer import quantize
from gguf_forget.llama.scorer import Scorer

SHORT = [[5, 6, 7], [5, 6, 8]]
LONG = [np.random.default_rng(1).integers(3, 400, 700).tolist(), *SHORT, [9] * 300]


def everything(scorer: Scorer) -> bytes:
    """Scores of every kind, as bytes."""
    return pickle.dumps(
        (
            scorer.sequence_log_probabilities(LONG),
            scorer.continuation_log_probabilities(SHORT, [[[9], [10, 11]], [[9]]]),
            scorer.top_log_probabilities(SHORT, k=3),
            scorer.generate_greedy(SHORT, max_new_tokens=5),
            scorer.generate_sampled(SHORT, max_new_tokens=5, samples=3, seed=1),
        )
    )


@pytest.mark.parametrize("file_type", ["F32", "Q4_K_M"])
def test_the_same_questions_give_the_same_bits_whatever_was_asked_before(
    tiny_model: Path, tmp_path: Path, file_type: str
) -> None:
    file = tmp_path / f"{file_type}.gguf"
    quantize(tiny_model, file, file_type)
    with Scorer(file, threads=2) as fresh:
        first = everything(fresh)
        assert everything(fresh) == first
    with Scorer(file, threads=2) as used:
        used.generate_sampled([[1, 2]], max_new_tokens=50, samples=70, seed=9)  # a larger cache, all of it written
        with pytest.raises(InputError):
            used.sequence_log_probabilities([[]])
        assert everything(used) == first
    with Scorer(file, threads=1) as alone:
        assert everything(alone) == first


def test_the_cache_is_as_large_as_the_work(tiny_model: Path) -> None:
    with Scorer(tiny_model, threads=2, cells=4096) as scorer:
        session = scorer._session
        sizes = []
        scorer.tokenize("No cache for this.")
        sizes.append(session._reserved)
        scorer.sequence_log_probabilities(SHORT)
        sizes.append(session._reserved)
        scorer.sequence_log_probabilities(LONG)
        sizes.append(session._reserved)
        scorer.sequence_log_probabilities(SHORT)
        sizes.append(session._reserved)
    assert sizes == [0, 256, 768, 768]


def test_the_largest_wave_comes_first(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[int] = []
    with Scorer(tiny_model, threads=2, batch=64) as scorer:
        reserve = scorer._session.reserve
        monkeypatch.setattr(scorer._session, "reserve", lambda cells: (reserved.append(cells), reserve(cells)))
        scorer.sequence_log_probabilities([[5] * 50, [6] * 90, [7] * 70, [8] * 60])
    assert reserved == [89, 69, 59, 49]


def test_a_file_in_parts_scores_as_the_whole(tiny_model: Path, tmp_path: Path) -> None:
    first = copy_with(tiny_model, tmp_path / "parts.gguf", {}, tensors_a_part=8)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"parts-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with Scorer(tiny_model, threads=2) as whole, Scorer(first, threads=2) as split:
        assert everything(split) == everything(whole)
    with pytest.raises(LlamaError, match="illegal split file"):
        Scorer(parts[1])
    parts[2].unlink()
    with pytest.raises(LlamaError, match="cannot load") as caught:
        Scorer(first)
    assert "parts-00003-of-00003.gguf" in str(caught.value.cause)


def test_devices_are_passed_through(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_max_devices", lambda: 4)
    load, seen = llama_cpp.llama_model_load_from_file, []

    def look(path: bytes, parameters: llama_cpp.llama_model_params) -> object:
        split = [parameters.tensor_split[i] for i in range(4)] if parameters.tensor_split else None
        seen.append((parameters.n_gpu_layers, split))
        parameters.tensor_split = None  # this build has no device to give a share to
        return load(path, parameters)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", look)
    Scorer(tiny_model, gpu_layers=12, tensor_split=(3, 1)).close()
    Scorer(tiny_model).close()
    assert seen == [(12, [3.0, 1.0, 0.0, 0.0]), (0, None)]
    for split in ((1, 1, 1, 1, 1), (1, -1), (float("nan"),)):
        with pytest.raises(InputError, match=r"tensor_split is .* needed: at most 4 numbers, none below 0"):
            Scorer(tiny_model, tensor_split=split)
