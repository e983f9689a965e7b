"""Text that the model writes: many prompts, and many samples of each, one token a step.

Shapes:
    R: rows of logits of one forward pass
    V: vocabulary size
    m: texts under way
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from ..prefix_tree import Wave, plan_waves
from .logits import best, draw
from .requests import Progress, not_finite
from .session import Session
from .waves import decode_wave

# Each token attends over the cells of all texts under way: more of them at a time are no faster.
_TEXTS_AT_A_TIME = 64

# (logits [R, V], the row of each text [m], which texts these are [m]) -> the next token of each [m], −1 where the row
# is not finite
Choose = Callable[[NDArray[np.float32], NDArray[np.intp], NDArray[np.intp]], NDArray[np.int64]]


def greedy(logits: NDArray[np.float32], row: NDArray[np.intp], _text: NDArray[np.intp]) -> NDArray[np.int64]:
    """The most probable token; ties go to the lowest id."""
    return best(logits)[row]


def sampler(texts: int, samples: int, temperature: float, seed: int) -> Choose:
    """A choice at random; each text has its own stream of numbers, from the seed, its prompt's and its sample's index.

    So a text does not depend on how many others are asked for, nor on the order in which they are computed.
    """
    streams = [np.random.default_rng([seed, *divmod(text, samples)]) for text in range(texts)]

    def choose(logits: NDArray[np.float32], row: NDArray[np.intp], text: NDArray[np.intp]) -> NDArray[np.int64]:
        drawn = [draw(logits[r], temperature, streams[t].random()) for r, t in zip(row, text, strict=True)]
        return np.array(drawn, dtype=np.int64)

    return choose


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    *,
    max_new_tokens: int,
    end: Collection[int],
    name: Callable[[int], str],
    progress: Progress | None,
) -> list[list[int]]:
    """New tokens of each prompt, up to an ``end`` token (left out) or ``max_new_tokens``; equal prompts may repeat.

    Raises:
        EvaluationError: llama.cpp failed, or the logits are not finite; the message begins with ``name(index)``.
    """
    result: list[list[int]] = [[] for _ in prompts]
    reserve = max_new_tokens - 1  # the last token generated is never decoded
    done = 0
    if progress:
        progress(done, len(prompts))
    for wave in plan_waves(
        prompts,
        cells=session.cells,
        max_sequences=1 if session.one_at_a_time else min(session.max_sequences, _TEXTS_AT_A_TIME),
        reserve=reserve,
        own_sequence=True,
    ):
        _generate_wave(session, wave, result, choose, max_new_tokens, frozenset(end), name)
        done += len(wave.requests)
        if progress:
            progress(done, len(prompts))
    return result


def _generate_wave(
    session: Session,
    wave: Wave,
    result: list[list[int]],
    choose: Choose,
    max_new_tokens: int,
    end: frozenset[int],
    name: Callable[[int], str],
) -> None:
    request = np.array(wave.requests, dtype=np.intp)  # [m]
    sequence = np.array(wave.sequences, dtype=np.int32)
    position = np.array([len(path) for path in wave.paths], dtype=np.int32)
    last = np.array([path[-1] for path in wave.paths])
    chosen = np.empty(len(request), dtype=np.int64)

    def keep(nodes: NDArray[np.intp], logits: NDArray[np.float32]) -> None:
        here = np.flatnonzero((last >= nodes[0]) & (last <= nodes[-1]))
        chosen[here] = choose(logits, np.searchsorted(nodes, last[here]), request[here])

    decode_wave(session, wave, last, keep, room=(max_new_tokens - 1) * len(request))
    for count in range(1, max_new_tokens + 1):
        if (chosen < 0).any():
            not_finite(session, name(int(request[int(np.argmin(chosen))])))
        going = ~np.isin(chosen, list(end))
        request, sequence, position, chosen = request[going], sequence[going], position[going], chosen[going]
        for text, token in zip(request, chosen, strict=True):
            result[text].append(int(token))
        if not len(request) or count == max_new_tokens:
            return
        ones = np.ones(len(request), dtype=np.int32)
        logits = session.decode(chosen.astype(np.int32), position, sequence, ones, ones == 1)
        chosen = choose(logits, np.arange(len(request)), request)
        position = position + 1
