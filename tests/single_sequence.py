"""The slow, obvious scorer that the fast one is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


class SingleSequence:
    """``llama_cpp.Llama`` with logits everywhere, one sequence at a time, emptied before each."""

    def __init__(self, model: Path) -> None:
        import llama_cpp

        self._llama = llama_cpp.Llama(
            str(model),
            n_ctx=512,
            n_batch=512,
            n_threads=2,
            n_gpu_layers=0,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def close(self) -> None:
        self._llama.close()

    def log_probabilities(self, tokens: Sequence[int]) -> np.ndarray:
        """log p(· | tokens[: i + 1]) at every position i; float64 [len(tokens), V]."""
        key = tuple(tokens)
        if key not in self._known:
            self._llama.reset()
            self._llama.eval(list(tokens))
            logits = self._llama.scores[: len(tokens)].astype(np.float64)
            peak = logits.max(axis=1, keepdims=True)
            self._known[key] = logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
        return self._known[key]
