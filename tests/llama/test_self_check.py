"""The self-check of llama.cpp: it agrees where llama.cpp works, and refuses what it would say where it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_forget.errors import EvaluationError
from gguf_forget.llama import self_check as module
from gguf_forget.llama.self_check import plain_log_probabilities, random_model_log_probabilities, self_check

NOISE = np.random.default_rng(0)


KINDS = ("F32", "Q8_0", "Q5_0", "Q4_0", "Q4_K_M")


def test_llama_cpp_agrees_with_plain_arithmetic_and_quantized_files_nearly(tmp_path: Path) -> None:
    weights = module._write_model(tmp_path / "F32.gguf")
    found = random_model_log_probabilities(tmp_path / "F32.gguf")
    assert tuple(found) == KINDS
    expected = plain_log_probabilities(weights, module._tokens())
    np.testing.assert_allclose(found["F32"], expected, atol=1e-4)
    correlation = {kind: float(np.corrcoef(expected, values)[0, 1]) for kind, values in found.items()}
    assert 0.999 < correlation["Q8_0"] < 1
    assert 0.95 < correlation["Q4_0"] < correlation["Q5_0"] < correlation["Q8_0"]
    assert 0.95 < correlation["Q4_K_M"] < correlation["Q8_0"]
    self_check()


@pytest.mark.parametrize("lost", ["blk.0.attn_output", "blk.0.attn_q", "blk.0.ffn_down"])
def test_a_layer_that_leaves_a_part_out_is_told(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All types alike, as without a context, with even attention, or without an MLP: plain arithmetic alone tells."""

    def broken(_function: object, source: Path) -> dict[str, np.ndarray]:
        weights = module._write_model(source)
        return dict.fromkeys(KINDS, plain_log_probabilities({**weights, lost: weights[lost] * 0}, module._tokens()))

    monkeypatch.setattr(module, "run_in_child", broken)
    with pytest.raises(EvaluationError, match="random model in F32 correlate"):
        self_check()


@pytest.mark.parametrize("broken", KINDS)
@pytest.mark.parametrize("value", [0.0, np.nan, None])
def test_numbers_that_mean_nothing(
    broken: str, value: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = plain_log_probabilities(module._write_model(tmp_path / "F32.gguf"), module._tokens())
    wrong = NOISE.standard_normal(63) if value is None else np.full(63, value)
    found = {kind: wrong if kind == broken else right for kind in KINDS}
    monkeypatch.setattr(module, "run_in_child", lambda *_: found)
    with pytest.raises(EvaluationError, match=f"random model in {broken} correlate"):
        self_check()
