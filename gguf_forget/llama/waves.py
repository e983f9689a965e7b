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

from collections.abc import Callable, Sequence

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
    # Largest first: the cache gets its size once, too little memory shows at once, and no progress is too hopeful.
    waves = sorted(
        plan_waves(
            [sequence[:-1] for sequence in sequences],
            cells=session.cells,
            max_sequences=session.max_sequences,
            comfortable=session.batch,
        ),
        key=lambda wave: -len(wave.tokens),
    )
    done = 0
    if progress:
        progress(done, len(sequences))
    for wave in waves:
        paths = [path[starts[i] - 1 :] for i, path in zip(wave.requests, wave.paths, strict=True)]
        node = np.concatenate(paths)  # one entry for every token scored in this wave
        target = np.concatenate([np.array(sequences[i][starts[i] :], np.int64) for i in wave.requests])
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
        for i, value in zip(wave.requests, np.split(values, ends), strict=True):
            if not np.isfinite(value).all():
                not_finite(session, name(i))
            result[i] = value
        done += len(wave.requests)
        if progress:
            progress(done, len(sequences))
    return result


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
