"""Log-probabilities at the positions that count, and nowhere else: the vocabulary is large.

Sequences that begin alike share the tokens of their common prefix: a batch is a few prefix trees, and a token
sees exactly the tokens on the way from the root. Prompts made from one phrasing share much, and what follows
a prefix cannot change it in a causal model, so the sharing is exact.

Shapes: R trees (rows) of at most T tokens, S scored positions over the whole batch, V vocabulary, d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gguf_forget.facts.tokens import Example
from gguf_forget.prefix_tree import Wave, plan_waves

# Tokens of a row beyond which attention, which grows with the row, costs more than a further row would.
# Measured on SmolLM2-135M: at about 640 tokens attention takes as long as all linear maps together.
_ATTENTION_EVEN = 640


@dataclass(frozen=True)
class Batch:
    """Sequences as prefix trees, and what is scored in them.

    ids, position_ids: int64 [R, T], padded at the end of each row; positions are depths in the tree.
    mask: bool [R, 1, T, T], True where a token may look: itself and its ancestors.
    rows: int64 [S], the sequence that a scored position belongs to, in order.
    positions: int64 [S], where in the flattened [R * T] hidden states its prediction stands.
    targets: int64 [S], the token that really follows.
    """

    ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    sequences: int

    def to(self, device: torch.device) -> Batch:
        """The same batch where a model is."""
        return Batch(
            self.ids.to(device),
            self.position_ids.to(device),
            self.mask.to(device),
            self.rows.to(device),
            self.positions.to(device),
            self.targets.to(device),
            self.sequences,
        )

    def split(self, counts: Sequence[int]) -> list[Batch]:
        """The same trees, scored only for the first ``counts[0]`` sequences, the next ``counts[1]``, …"""
        parts, first = [], 0
        for count in counts:
            own = (self.rows >= first) & (self.rows < first + count)
            parts.append(
                Batch(
                    self.ids,
                    self.position_ids,
                    self.mask,
                    self.rows[own] - first,
                    self.positions[own],
                    self.targets[own],
                    count,
                )
            )
            first += count
        return parts


@dataclass(frozen=True)
class Sequences:
    """Token sequences and, for each, the places whose successor is scored. ``+`` joins two lists."""

    tokens: tuple[tuple[int, ...], ...]
    scored: tuple[tuple[int, ...], ...]

    def __add__(self, other: Sequences) -> Sequences:
        return Sequences(self.tokens + other.tokens, self.scored + other.scored)

    def __len__(self) -> int:
        return len(self.tokens)


def answers(examples: Sequence[Example]) -> Sequences:
    """Every answer token of every example is scored, in order."""
    return Sequences(
        tuple(tuple(example.tokens) for example in examples),
        tuple(tuple(range(example.answer_start - 1, len(example.tokens) - 1)) for example in examples),
    )


def plain_text(chunks: Sequence[Sequence[int]], *, every: int = 1) -> Sequences:
    """Every ``every``-th token of plain text is scored, the first few (without context) left out."""
    first = max(0, min(8, len(chunks[0]) - 2)) if chunks else 0
    return Sequences(
        tuple(tuple(chunk) for chunk in chunks),
        tuple(tuple(range(first, len(chunk) - 1, every)) for chunk in chunks),
    )


def pack(sequences: Sequences, *, shared: bool = True) -> Batch:
    """One batch of all sequences, which have at least two tokens each. Not ``shared``: a row a sequence, in order."""
    # The last token is predicted, but predicts nothing.
    requests = [list(tokens[:-1]) for tokens in sequences.tokens]
    waves = _rows(requests) if shared else [next(plan_waves([r], cells=len(r), max_sequences=1)) for r in requests]
    longest = max(len(wave.tokens) for wave in waves)
    ids = np.zeros((len(waves), longest), dtype=np.int64)
    depths = np.zeros_like(ids)
    mask = np.zeros((len(waves), 1, longest, longest), dtype=np.bool_)
    mask[:] = np.eye(longest, dtype=np.bool_)  # padding sees itself: a row that sees nothing gives NaN
    places: dict[int, np.ndarray] = {}  # sequence to the flattened place of each of its tokens
    for row, wave in enumerate(waves):
        size = len(wave.tokens)
        ids[row, :size], depths[row, :size] = wave.tokens, wave.positions
        mask[row, 0, :size, :size] = _ancestors(wave)
        for request, path in zip(wave.requests, wave.paths, strict=True):
            places[request if shared else row] = row * longest + path.astype(np.int64)
    rows = [row for row, own in enumerate(sequences.scored) for _ in own]
    positions = [places[row][place] for row, own in enumerate(sequences.scored) for place in own]
    targets = [sequences.tokens[row][place + 1] for row, own in enumerate(sequences.scored) for place in own]
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(depths),
        torch.from_numpy(mask),
        torch.tensor(rows, dtype=torch.int64),
        torch.from_numpy(np.array(positions, dtype=np.int64)),
        torch.tensor(targets, dtype=torch.int64),
        len(sequences),
    )


def _rows(requests: Sequence[Sequence[int]]) -> list[Wave]:
    """The split into trees that costs least: short rows make attention cheap, padding and lost sharing do not."""

    def planned(comfortable: int) -> list[Wave]:
        return list(plan_waves(requests, cells=10**9, max_sequences=10**9, comfortable=comfortable))

    def cost(waves: Sequence[Wave]) -> float:
        longest = max(len(wave.tokens) for wave in waves)
        return len(waves) * longest * (1.0 + longest / _ATTENTION_EVEN)

    def candidates() -> Iterator[list[Wave]]:
        whole = planned(10**9)
        yield whole
        nodes = sum(len(wave.tokens) for wave in whole)
        for count in range(2, 13):
            for slack in (1.02, 1.1, 1.2):
                yield planned(int(slack * nodes / count) + 1)

    return min(candidates(), key=cost)


def _ancestors(wave: Wave) -> np.ndarray:
    """bool [N, N]: whether node j is node i or lies on its way from the root."""
    first, last = wave.first_sequence, wave.first_sequence + wave.sequence_count - 1
    order = np.arange(len(first))
    result: np.ndarray = (
        (first[None, :] <= first[:, None]) & (last[None, :] >= last[:, None]) & (order[None, :] <= order[:, None])
    )
    return result


def log_probabilities(model: Any, batch: Batch) -> torch.Tensor:
    """float32 [S, V] at the scored positions; ``batch`` is where the model is."""
    hidden = model.base_model(
        batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state  # [R, T, d_model]
    chosen = hidden.flatten(0, 1)[batch.positions]  # [S, d_model]
    return torch.log_softmax(model.get_output_embeddings()(chosen).float(), dim=-1)


def answer_log_probability(log_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Summed over each sequence's scored tokens, [sequences]."""
    picked = log_probs.gather(-1, batch.targets[:, None]).squeeze(-1)
    return torch.zeros(batch.sequences, dtype=picked.dtype, device=picked.device).index_add(0, batch.rows, picked)


def greedy_lead(log_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """How much likelier than any other token the answer's are, least over the answer, nats, [sequences].

    Positive where a greedy decoder gives the answer word for word. Every sequence has a scored token.
    """
    own = log_probs.gather(-1, batch.targets[:, None]).squeeze(-1)
    others = log_probs.scatter(-1, batch.targets[:, None], float("-inf")).amax(dim=-1)
    least = torch.full((batch.sequences,), float("inf"), dtype=own.dtype, device=own.device)
    return least.scatter_reduce(0, batch.rows, own - others, "amin")
