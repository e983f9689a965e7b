"""Log-probabilities at the positions that count, and nowhere else: the vocabulary is large.

Shapes: N sequences, T tokens, S scored positions over the whole batch, V vocabulary, d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gguf_forget.facts.tokens import Example, pad


@dataclass(frozen=True)
class Batch:
    """Padded sequences and what is scored in them.

    rows, positions: int64 [S], the prediction at ``positions`` of sequence ``rows`` is scored.
    targets: int64 [S], the token that really follows.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


def _batch(sequences: Sequence[Sequence[int]], scored: Sequence[Sequence[int]]) -> Batch:
    ids, mask = pad(sequences)
    rows = np.array([row for row, places in enumerate(scored) for _ in places], dtype=np.int64)
    positions = np.array([place for places in scored for place in places], dtype=np.int64)
    targets = ids[rows, positions + 1]
    return Batch(*(torch.from_numpy(array) for array in (ids, mask, rows, positions, targets)))


def answer_batch(examples: Sequence[Example]) -> Batch:
    """Scores every answer token of every example, in order."""
    return _batch(
        [example.tokens for example in examples],
        [range(example.answer_start - 1, len(example.tokens) - 1) for example in examples],
    )


def text_batch(chunks: Sequence[Sequence[int]], *, every: int = 1) -> Batch:
    """Scores every ``every``-th token of plain text, the first few (without context) left out."""
    first = min(8, len(chunks[0]) - 2)
    return _batch(chunks, [range(first, len(chunk) - 1, every) for chunk in chunks])


def log_probabilities(model: Any, batch: Batch) -> torch.Tensor:
    """float32 [S, V] at the scored positions."""
    hidden = model.base_model(batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
    chosen = hidden[batch.rows, batch.positions]  # [S, d_model]
    return torch.log_softmax(model.get_output_embeddings()(chosen).float(), dim=-1)


def answer_log_probability(log_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Summed over each sequence's scored tokens, [N]."""
    picked = log_probs.gather(-1, batch.targets[:, None]).squeeze(-1)
    return torch.zeros(len(batch.ids), dtype=picked.dtype).index_add(0, batch.rows, picked)
