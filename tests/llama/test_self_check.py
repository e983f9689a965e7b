"""The self-check of llama.cpp: it agrees where llama.cpp works, and refuses what it would say where it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_forget.errors import EvaluationError
from gguf_forget.llama import self_check as module
from gguf_forget.llama.self_check import random_model_log_probabilities, self_check

NOISE = np.random.default_rng(0)


def test_quantized_and_float_agree_and_are_not_the_same(tmp_path: Path) -> None:
    module._write_model(tmp_path / "F32.gguf")
    found = random_model_log_probabilities(tmp_path / "F32.gguf")
    assert list(found) == ["F32", "Q8_0", "Q4_K_M"]
    assert all(len(values) == 63 for values in found.values())
    correlation = {kind: float(np.corrcoef(found["F32"], found[kind])[0, 1]) for kind in ("Q8_0", "Q4_K_M")}
    assert 0.999 < correlation["Q8_0"] < 1
    assert 0.95 < correlation["Q4_K_M"] < correlation["Q8_0"]
    self_check()


@pytest.mark.parametrize("broken", ["Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("value", [0.0, np.nan, None])
def test_numbers_that_mean_nothing(broken: str, value: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = NOISE.standard_normal(63)
    wrong = NOISE.standard_normal(63) if value is None else np.full(63, value)
    found = {kind: wrong if kind == broken else right for kind in ("F32", "Q8_0", "Q4_K_M")}
    monkeypatch.setattr(module, "run_in_child", lambda *_: found)
    with pytest.raises(EvaluationError, match=f"random model in {broken} correlate"):
        self_check()
