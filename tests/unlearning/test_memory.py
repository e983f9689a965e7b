"""The estimate of memory, by hand."""

from __future__ import annotations

from gguf_forget.unlearning.memory import training_memory


def test_by_hand() -> None:
    found = training_memory(parameters=1000, bases=2, circuit_weights=10, positions=3, vocabulary=7, weight_bytes=2)
    assert found == 2 * 2 * 1000 + 4 * 9 * 10 + 4 * 4 * 3 * 7
