"""Prefix trees through the model: which tokens to decode together, and what is kept of their logits.

A question about a token is a question about the node before it. The tokens to decode are the nodes of a prefix tree
(:mod:`gguf_forget.prefix_tree`), shared by all the sequences that begin alike, and the logits of a node answer for
every token that may follow it. A prompt is computed once for all its continuations, the last token of a
continuation never, and a continuation of a single token costs nothing beyond its prompt.

Shapes:
    N: nodes of a wave
    R: rows of logits of one forward pass
    V: vocabulary size
    m: tokens asked about
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..prefix_tree import Wave, plan_waves
from .requests import Progress, not_finite
from .session import Session

# (logits [R, V], row of each token asked about [m], those tokens [m]) -> [m, …], NaN where a row is not finite
Reduce = Callable[[NDArray[np.float32], NDArray[np.intp], NDArray[np.int64]], NDArray[np.float64]]


def score(
    session: Session,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    reduce: Reduce,
    *,
    name: Callable[[int], str],
    progress: Progress | None,
) -> list[NDArray[np.float64]]:
    """``reduce`` of every token ``sequence[start:]``, for each sequence; all are longer than their start ≥ 1.

    Raises:
        EvaluationError: llama.cpp failed, or a value is not finite; the message begins with ``name(index)``.
    """
    result: list[NDArray[np.float64]] = [np.empty(0)] * len(sequences)
    done = 0
    if progress:
        progress(done, len(sequences))
    for members, wave in _largest_first(session, sequences):
        paths = [path[starts[i] - 1 :] for i, path in zip(members, wave.paths, strict=True)]
        node = np.concatenate(paths)  # one entry for every token scored in this wave
        target = np.concatenate([np.array(sequences[i][starts[i] :], np.int64) for i in members])
        parts: list[tuple[NDArray[np.intp], NDArray[np.float64]]] = []

        def keep(
            nodes: NDArray[np.intp],
            logits: NDArray[np.float32],
            node: NDArray[np.int32] = node,
            target: NDArray[np.int64] = target,
            parts: list[tuple[NDArray[np.intp], NDArray[np.float64]]] = parts,
        ) -> None:
            here = np.flatnonzero((node >= nodes[0]) & (node <= nodes[-1]))
            parts.append((here, reduce(logits, np.searchsorted(nodes, node[here]), target[here])))

        decode_wave(session, wave, node, keep)
        values = np.empty((len(node), *parts[0][1].shape[1:]))
        for here, part in parts:
            values[here] = part
        ends = np.cumsum([len(path) for path in paths])[:-1]
        for i, value in zip(members, np.split(values, ends), strict=True):
            if not np.isfinite(value).all():
                not_finite(session, name(i))
            result[i] = value
        done += len(members)
        if progress:
            progress(done, len(sequences))
    return result


def _largest_first(session: Session, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Wave]]:
    """The waves of all sequences without their last tokens, each with the indices of its sequences; one a sequence
    where the session takes one at a time.

    Largest first: the cache gets its size once, and too little memory shows at once. Every wave is planned again when
    its turn comes, so that no more than one is held.
    """

    def plan(some: Sequence[int]) -> Iterator[tuple[list[int], Wave]]:
        if session.one_at_a_time and len(some) > 1:
            for i in some:
                yield from plan([i])
            return
        for wave in plan_waves(
            [sequences[i][:-1] for i in some],
            cells=session.cells,
            max_sequences=session.max_sequences,
            comfortable=session.batch,
        ):
            yield [some[i] for i in wave.requests], wave

    groups = [(len(wave.tokens), members) for members, wave in plan(range(len(sequences)))]
    for _, group in sorted(groups, key=lambda pair: -pair[0]):
        yield from plan(group)


def decode_wave(
    session: Session,
    wave: Wave,
    wanted: NDArray[np.integer],
    keep: Callable[[NDArray[np.intp], NDArray[np.float32]], None],
    *,
    room: int = 0,
) -> None:
    """Decode a wave in passes of ``batch``; ``keep(nodes, logits)`` receives the wanted nodes of each, in order.

    ``room``: cells that will be needed after it.
    """
    flags = np.zeros(len(wave.tokens), dtype=np.bool_)
    flags[wanted] = True
    session.reserve(len(wave.tokens) + room)
    for begin in range(0, len(wave.tokens), session.batch):
        part = slice(begin, begin + session.batch)
        logits = session.decode(
            wave.tokens[part],
            wave.positions[part],
            wave.first_sequence[part],
            wave.sequence_count[part],
            flags[part],
        )
        nodes = begin + np.flatnonzero(flags[part])
        if len(nodes):
            keep(nodes, logits)
