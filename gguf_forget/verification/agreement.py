"""Whether llama.cpp and transformers speak of the same tokens and the same probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from gguf_forget.errors import EvaluationError

MAX_DIFFERENCE_NATS = 0.05  # an answer, on average: more is no rounding


class Tokenizes(Protocol):
    """What is needed of a :class:`~gguf_forget.llama.scorer.Scorer` here."""

    def tokenize(self, text: str) -> list[int]: ...


def check_token_agreement(scorer: Tokenizes, tokenize_hf: Callable[[str], Sequence[int]], texts: Iterable[str]) -> int:
    """Tokenize every text both ways; returns how many texts agreed, which is all of them.

    Raises:
        EvaluationError: the first text whose ids differ, with both lists; or no text at all.
    """
    count = 0
    for text in texts:
        ours, theirs = list(scorer.tokenize(text)), [int(token) for token in tokenize_hf(text)]
        if ours != theirs:
            raise EvaluationError(
                f"llama.cpp and transformers split {text!r} into different tokens:\n"
                f"  llama.cpp    {ours}\n  transformers {theirs}",
                hint="the GGUF's tokenizer is not the checkpoint's: no figure of one describes the other",
            )
        count += 1
    if not count:
        raise EvaluationError("no text was given to compare the two tokenizers on, needed at least one")
    return count


def mean_absolute_difference(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Mean |a − b| of log-probabilities of the same answers, in nats.

    Raises:
        EvaluationError: different numbers of values, none, or one that is not finite.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if a.shape != b.shape or not a.size:
        raise EvaluationError(f"log-probabilities of shapes {a.shape} and {b.shape}, needed equal, not empty")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise EvaluationError("log-probabilities to compare hold a value that is not finite")
    return float(np.abs(a - b).mean())
