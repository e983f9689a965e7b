"""Log-probabilities at the positions that count, and nowhere else: the vocabulary is large.

Shapes: T tokens and S scored positions over the whole batch, V vocabulary, d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gguf_forget.facts.tokens import Example


@dataclass(frozen=True)
class Batch:
    """Sequences packed one after another into a single row without padding, and what is scored in them.

    ids, position_ids: int64 [1, T]; T tokens over all sequences, positions start anew in each.
    mask: bool [1, 1, T, T], True where a token may look: back, and inside its own sequence.
    rows, positions: int64 [S]; what is predicted at packed position ``positions`` (sequence ``rows``) counts.
    targets: int64 [S], the token that really follows.
    """

    ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    sequences: int


def _batch(sequences: Sequence[Sequence[int]], scored: Sequence[Sequence[int]]) -> Batch:
    lengths = [len(sequence) for sequence in sequences]
    starts = np.cumsum([0, *lengths[:-1]])
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    owner = torch.from_numpy(np.repeat(np.arange(len(sequences)), lengths))
    places = torch.arange(len(ids))
    mask = (owner[:, None] == owner[None, :]) & (places[:, None] >= places[None, :])
    rows = np.array([row for row, own in enumerate(scored) for _ in own], dtype=np.int64)
    positions = np.array([starts[row] + place for row, own in enumerate(scored) for place in own], dtype=np.int64)
    packed_positions = torch.from_numpy(positions)
    return Batch(
        ids[None],
        (places - torch.from_numpy(starts)[owner])[None],
        mask[None, None],
        torch.from_numpy(rows),
        packed_positions,
        ids[packed_positions + 1],
        len(sequences),
    )


def answer_batch(examples: Sequence[Example]) -> Batch:
    """Scores every answer token of every example, in order."""
    return _batch(
        [example.tokens for example in examples],
        [range(example.answer_start - 1, len(example.tokens) - 1) for example in examples],
    )


def text_batch(chunks: Sequence[Sequence[int]], *, every: int = 1) -> Batch:
    """Scores every ``every``-th token of plain text, the first few (without context) left out."""
    first = max(0, min(8, len(chunks[0]) - 2))
    return _batch(chunks, [range(first, len(chunk) - 1, every) for chunk in chunks])


def log_probabilities(model: Any, batch: Batch) -> torch.Tensor:
    """float32 [S, V] at the scored positions."""
    hidden = model.base_model(
        batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state[0]
    chosen = hidden[batch.positions]  # [S, d_model]
    return torch.log_softmax(model.get_output_embeddings()(chosen).float(), dim=-1)


def answer_log_probability(log_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Summed over each sequence's scored tokens, [sequences]."""
    picked = log_probs.gather(-1, batch.targets[:, None]).squeeze(-1)
    return torch.zeros(batch.sequences, dtype=picked.dtype).index_add(0, batch.rows, picked)
