"""Packing token sequences into waves, so that every shared prefix is computed once.

Sorted lexicographically, the sequences of a wave are the depth-first walk of their prefix tree. A node of
the tree is one token to decode. llama.cpp lets one token belong to several sequences, and in that walk the
sequences through a node are a contiguous range; so sharing a prefix costs one cell and no copy.

Shapes:
    N: nodes of a wave (tokens decoded, key-value cells used)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A wave is closed early only when the prefix to be computed again is at most this share of it.
_RECOMPUTED_SHARE = 4


@dataclass(frozen=True)
class Wave:
    """One filling of the key-value cache. All int32, in depth-first order."""

    tokens: NDArray[np.int32]  # [N]
    positions: NDArray[np.int32]  # [N] depth in the tree
    first_sequence: NDArray[np.int32]  # [N] the first of the sequences through the node
    sequence_count: NDArray[np.int32]  # [N] how many sequences pass through it
    requests: tuple[int, ...]  # indices into the requests given
    paths: tuple[NDArray[np.int32], ...]  # for each of them: its node for each of its tokens
    sequences: tuple[int, ...]  # for each of them: its sequence id


class _Builder:
    """The wave being filled: the tree so far, and the path of the request added last."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.first: list[int] = []
        self.last: list[int] = []
        self.members: list[tuple[int, NDArray[np.int32], int]] = []
        self.path: list[int] = []
        self.sequence = -1

    def shared(self, request: Sequence[int]) -> int:
        """How many leading tokens of ``request`` the last path already holds."""
        count = 0
        for node, token in zip(self.path, request, strict=False):
            if self.tokens[node] != token:
                break
            count += 1
        return count

    def add(self, index: int, request: Sequence[int], shared: int, new_sequence: bool) -> None:
        if new_sequence:
            self.leave(shared)
            self.sequence += 1
        for depth in range(shared, len(request)):
            self.path.append(len(self.tokens))
            self.tokens.append(int(request[depth]))
            self.positions.append(depth)
            self.first.append(self.sequence)
            self.last.append(self.sequence)
        self.members.append((index, np.array(self.path, dtype=np.int32), self.sequence))

    def leave(self, depth: int) -> None:
        """Walk back up to ``depth``: no later sequence passes through the nodes below."""
        for node in self.path[depth:]:
            self.last[node] = self.sequence
        del self.path[depth:]

    def finish(self) -> Wave:
        self.leave(0)
        first = np.array(self.first, dtype=np.int32)
        return Wave(
            tokens=np.array(self.tokens, dtype=np.int32),
            positions=np.array(self.positions, dtype=np.int32),
            first_sequence=first,
            sequence_count=np.array(self.last, dtype=np.int32) - first + 1,
            requests=tuple(index for index, _, _ in self.members),
            paths=tuple(path for _, path, _ in self.members),
            sequences=tuple(sequence for _, _, sequence in self.members),
        )


def plan_waves(
    requests: Sequence[Sequence[int]],
    *,
    cells: int,
    max_sequences: int,
    comfortable: int | None = None,
    reserve: int = 0,
    own_sequence: bool = False,
) -> Iterator[Wave]:
    """Split non-empty token sequences into waves; together the waves hold every request exactly once.

    Args:
        requests: token ids; none longer than ``cells - reserve`` (the caller checks).
        cells: key-value cells of a wave, a hard limit.
        max_sequences: sequences of a wave, a hard limit.
        comfortable: nodes after which a wave is closed where little prefix is lost by it; attention is
            paid over all the cells in use, so small waves are faster.
        reserve: cells that each request will need beyond its own tokens.
        own_sequence: give each request a sequence of its own, to be continued; else a request that is a
            prefix of the next shares its sequence.
    """
    comfortable = cells if comfortable is None else min(comfortable, cells)
    wave = _Builder()
    for index in sorted(range(len(requests)), key=lambda i: list(requests[i])):
        request = requests[index]
        shared = wave.shared(request)
        new_sequence = own_sequence or not wave.members or shared < len(wave.path)
        nodes = len(wave.tokens) + len(request) - shared
        if wave.members and (
            nodes + reserve * (len(wave.members) + 1) > cells
            or wave.sequence + new_sequence >= max_sequences
            or nodes > max(comfortable, _RECOMPUTED_SHARE * shared)
        ):
            yield wave.finish()
            wave, shared, new_sequence = _Builder(), 0, True
        wave.add(index, request, shared, new_sequence)
    if wave.members:
        yield wave.finish()
