"""The slow, obvious scorer: one sequence at a time, the whole vocabulary at every position.

Torch computes it for float files; for quantized ones, whose activations llama.cpp rounds, llama.cpp's own Python class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from single_sequence import SingleSequence

from gguf_forget.checkpoint.load import load_torch
from gguf_forget.llama.scorer import Scorer


class Top(NamedTuple):
    tokens: np.ndarray
    log_probabilities: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class SlowScorer:
    """What the probes need of a scorer. Tokens are llama.cpp's, whose agreement has tests of its own."""

    def __init__(self, model: Path, tokens: Scorer) -> None:
        self.model = self.load(model)
        self.tokenize, self.detokenize = tokens.tokenize, tokens.detokenize
        self.end = tokens.end_of_generation

    def load(self, model: Path) -> Any:
        return load_torch(model)

    def rows(self, sequence: Sequence[int]) -> np.ndarray:
        """float64 log-probabilities [n, V]; row i is about what follows token i."""
        with torch.no_grad():
            logits = self.model(torch.tensor([list(sequence)])).logits[0].double()
        return torch.log_softmax(logits, dim=-1).numpy()

    def after(self, prompt: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
        """Rows [T, V] that predict the continuation's tokens."""
        return self.rows([*prompt, *continuation])[len(prompt) - 1 : -1]

    def continuation_log_probabilities(self, prompts, continuations):  # type: ignore[no-untyped-def]
        return [
            [self.after(prompt, part)[np.arange(len(part)), list(part)] for part in parts]
            for prompt, parts in zip(prompts, continuations, strict=True)
        ]

    def continuation_argmax(self, prompts, continuations):  # type: ignore[no-untyped-def]
        return [
            [self.after(prompt, part).argmax(axis=1) == np.array(part) for part in parts]
            for prompt, parts in zip(prompts, continuations, strict=True)
        ]

    def sequence_log_probabilities(self, sequences):  # type: ignore[no-untyped-def]
        return [self.rows(tokens)[np.arange(len(tokens) - 1), list(tokens[1:])] for tokens in sequences]

    def top_log_probabilities(self, sequences, *, k):  # type: ignore[no-untyped-def]
        result = []
        for tokens in sequences:
            rows = self.rows(tokens)[:-1]
            order = np.argsort(-rows, axis=1, kind="stable")[:, :k]
            mean = (np.exp(rows) * rows).sum(axis=1)
            variance = (np.exp(rows) * (rows - mean[:, None]) ** 2).sum(axis=1)
            result.append(Top(order, np.take_along_axis(rows, order, axis=1), mean, variance))
        return result

    def generate_greedy(self, prompts, *, max_new_tokens):  # type: ignore[no-untyped-def]
        texts = []
        for prompt in prompts:
            tokens = list(prompt)
            while len(tokens) < len(prompt) + max_new_tokens:
                token = int(self.rows(tokens)[-1].argmax())
                if token in self.end:
                    break
                tokens.append(token)
            texts.append(tokens[len(prompt) :])
        return texts


class SlowLlama(SlowScorer):
    """The same through ``llama_cpp.Llama(logits_all=True)``."""

    def load(self, model: Path) -> SingleSequence:
        return SingleSequence(model)

    def rows(self, sequence: Sequence[int]) -> np.ndarray:
        return self.model.log_probabilities(sequence)
