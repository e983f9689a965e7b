"""Log-probabilities and greedy text from a GGUF, computed by llama.cpp.

Everything is one question asked of a prefix tree (:mod:`gguf_forget.prefix_tree`): the tokens to decode are its nodes,
shared by all the sequences that begin alike, and the logits of a node answer for every token that may follow
it. A prompt is computed once for all its continuations, the last token of a continuation never, and a
continuation of a single token costs nothing beyond its prompt.

The same calls give the same bits. A score may still depend on what shares its batch: llama.cpp picks kernels
by batch size. With float weights that is about 1e-5 nats; a quantized file rounds the activations too, and a
flipped rounding moved single, improbable tokens of SmolLM2-135M by up to half a nat (0.005 on average).

Shapes:
    N: nodes of a wave
    V: vocabulary size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..errors import EvaluationError, InputError
from ..prefix_tree import Wave, plan_waves
from .session import Session


class Scorer:
    """A GGUF opened for scoring; use it as a context manager.

    Args:
        model: path of a GGUF (the first file of a split one).
        threads: CPU threads; None takes the CPUs this process may use.
        cells: key-value cells, the longest sequence that can be scored; memory grows with it.
        batch: tokens a forward pass; at most ``batch`` x V logits (float32) are held at a time.
        max_sequences: sequences in the cache at a time, 1 … 256.
        gpu_layers: layers given to a GPU, where llama.cpp was built for one.
        exact_attention: keep keys and values in float32 and use no flash attention, so that rounding in
            the cache, which is no part of the file, does not blur the scores. False takes llama.cpp's
            defaults (float16 cache, flash attention where it chooses it): faster on long texts.

    Raises:
        InputError: no such file, or a number out of range.
        LlamaError: llama.cpp is missing, or cannot load the file or allocate the context.
        UnsupportedError: an encoder-decoder, recurrent or hybrid model.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int | None = None,
        cells: int = 4096,
        batch: int = 512,
        max_sequences: int = 128,
        gpu_layers: int = 0,
        exact_attention: bool = True,
    ) -> None:
        self._session = Session(
            model,
            threads=threads,
            cells=cells,
            batch=batch,
            max_sequences=max_sequences,
            gpu_layers=gpu_layers,
            exact_attention=exact_attention,
        )

    def close(self) -> None:
        """Free llama.cpp's memory; closing twice is allowed."""
        self._session.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self._session.vocabulary_size

    @cached_property
    def end_of_generation(self) -> frozenset[int]:
        """The ids of all tokens that end a generation."""
        return self._session.end_of_generation()

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of ``text``. With ``add_special``, BOS and EOS are added as the model's metadata says.

        Special tokens written in the text count as such, as in Hugging Face tokenizers.
        """
        return self._session.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        self._check("tokens", tokens, limit=None, least=0)
        return self._session.detokenize(np.array(tokens, dtype=np.int32))

    def continuation_log_probabilities(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[NDArray[np.float64]]]:
        """Natural-log probability of every token of continuation ``j`` after prompt ``i``, at ``[i][j]``.

        Raises:
            InputError: an empty prompt or continuation, a token outside the vocabulary, or a prompt with
                a continuation that does not fit in ``cells``.
            EvaluationError: llama.cpp failed, or a log-probability is not finite.
        """
        if len(prompts) != len(continuations):
            raise InputError(f"{len(prompts)} prompts, but continuations for {len(continuations)}")
        sequences: list[list[int]] = []
        starts: list[int] = []
        names: list[tuple[int, int]] = []
        for i, (prompt, candidates) in enumerate(zip(prompts, continuations, strict=True)):
            self._check(f"prompt {i}", prompt, limit=self._session.cells)
            for j, candidate in enumerate(candidates):
                room = self._session.cells - len(prompt) + 1
                self._check(f"prompt {i}, continuation {j}", candidate, limit=room)
                sequences.append([*map(int, prompt), *map(int, candidate)])
                starts.append(len(prompt))
                names.append((i, j))
        scores = iter(self._score(sequences, starts, lambda k: "prompt {}, continuation {}".format(*names[k])))
        return [[next(scores) for _ in candidates] for candidates in continuations]

    def sequence_log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """Natural-log probabilities of tokens 1 … n-1 of each sequence, each given all before it; [n - 1].

        Raises:
            InputError: an empty sequence, one longer than ``cells`` + 1, or a token outside the vocabulary.
            EvaluationError: llama.cpp failed, or a log-probability is not finite.
        """
        for i, sequence in enumerate(sequences):
            self._check(f"sequence {i}", sequence, limit=self._session.cells + 1)
        tokens = [[*map(int, sequence)] for sequence in sequences]
        longer = [i for i, sequence in enumerate(tokens) if len(sequence) > 1]
        scores = self._score([tokens[i] for i in longer], [1] * len(longer), lambda k: f"sequence {longer[k]}")
        result = [np.empty(0, dtype=np.float64) for _ in tokens]
        for i, score in zip(longer, scores, strict=True):
            result[i] = score
        return result

    def generate_greedy(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
        """The most probable next token, again and again; ties go to the lowest id.

        Stops before the first end-of-generation token (not part of the result) or after
        ``max_new_tokens`` tokens.

        Raises:
            InputError: ``max_new_tokens`` below 1, an empty prompt, a token outside the vocabulary, or a
                prompt that with its new tokens does not fit in ``cells``.
            EvaluationError: llama.cpp failed, or the logits are not finite.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}, needed: at least 1")
        reserve = max_new_tokens - 1  # the last token generated is never decoded
        for i, prompt in enumerate(prompts):
            self._check(f"prompt {i}", prompt, limit=self._session.cells - reserve)
        result: list[list[int]] = [[] for _ in prompts]
        for wave in plan_waves(
            prompts,
            cells=self._session.cells,
            max_sequences=self._session.max_sequences,
            reserve=reserve,
            own_sequence=True,
        ):
            self._generate_wave(wave, result, max_new_tokens)
        return result

    def _generate_wave(self, wave: Wave, result: list[list[int]], max_new_tokens: int) -> None:
        last = np.array([path[-1] for path in wave.paths])
        best = np.empty(len(wave.tokens), dtype=np.int64)  # [N], filled at the prompts' last tokens

        def keep(nodes: NDArray[np.intp], logits: NDArray[np.float32]) -> None:
            finite = np.isfinite(logits).all(axis=1)
            for node in nodes[~finite]:
                self._not_finite(f"prompt {wave.requests[int(np.argmax(last == node))]}")
            best[nodes] = logits.argmax(axis=1)

        self._decode_wave(wave, last, keep)
        active = np.arange(len(wave.requests))
        chosen = best[last]
        while True:
            going = ~np.isin(chosen, list(self.end_of_generation))
            active, chosen = active[going], chosen[going]
            for member, token in zip(active, chosen, strict=True):
                result[wave.requests[member]].append(int(token))
            if not len(active) or len(result[wave.requests[active[0]]]) == max_new_tokens:
                return
            members = [(wave.sequences[m], len(wave.paths[m]) + len(result[wave.requests[m]]) - 1) for m in active]
            sequence, position = np.array(members, dtype=np.int32).T
            ones = np.ones(len(active), dtype=np.int32)
            logits = self._session.decode(chosen.astype(np.int32), position, sequence, ones, ones == 1)
            finite = np.isfinite(logits).all(axis=1)
            if not finite.all():
                self._not_finite(f"prompt {wave.requests[active[int(np.argmin(finite))]]}")
            chosen = logits.argmax(axis=1)

    def _score(
        self, sequences: list[list[int]], starts: list[int], name: Callable[[int], str]
    ) -> list[NDArray[np.float64]]:
        """Log-probabilities of ``sequence[start:]`` for each sequence; all longer than their start >= 1."""
        result: list[NDArray[np.float64]] = [np.empty(0)] * len(sequences)
        waves = plan_waves(
            [sequence[:-1] for sequence in sequences],
            cells=self._session.cells,
            max_sequences=self._session.max_sequences,
            comfortable=self._session.batch,
        )
        for wave in waves:
            parts = [path[starts[i] - 1 :] for i, path in zip(wave.requests, wave.paths, strict=True)]
            node = np.concatenate(parts)  # one entry for every token scored in this wave
            target = np.concatenate([np.array(sequences[i][starts[i] :], np.int64) for i in wave.requests])
            values = np.empty(len(node), dtype=np.float64)
            row_of = np.full(len(wave.tokens), -1, dtype=np.int64)  # [N]

            def keep(
                nodes: NDArray[np.intp],
                logits: NDArray[np.float32],
                node: NDArray[np.int32] = node,
                target: NDArray[np.int64] = target,
                values: NDArray[np.float64] = values,
                row_of: NDArray[np.int64] = row_of,
            ) -> None:
                row_of[:] = -1
                row_of[nodes] = np.arange(len(nodes))
                row = row_of[node]
                here = row >= 0
                picked = logits[row[here], target[here]].astype(np.float64)
                values[here] = picked - _log_sum_exp(logits)[row[here]]

            self._decode_wave(wave, node, keep)
            ends = np.cumsum([len(part) for part in parts])[:-1]
            for i, value in zip(wave.requests, np.split(values, ends), strict=True):
                if not np.isfinite(value).all():
                    self._not_finite(name(i))
                result[i] = value
        return result

    def _decode_wave(
        self,
        wave: Wave,
        wanted: NDArray[np.integer],
        keep: Callable[[NDArray[np.intp], NDArray[np.float32]], None],
    ) -> None:
        """Decode a wave in passes of ``batch``; ``keep(nodes, logits)`` receives the wanted nodes of each."""
        flags = np.zeros(len(wave.tokens), dtype=np.bool_)
        flags[wanted] = True
        self._session.clear()
        for begin in range(0, len(wave.tokens), self._session.batch):
            part = slice(begin, begin + self._session.batch)
            logits = self._session.decode(
                wave.tokens[part],
                wave.positions[part],
                wave.first_sequence[part],
                wave.sequence_count[part],
                flags[part],
            )
            nodes = begin + np.flatnonzero(flags[part])
            if len(nodes):
                keep(nodes, logits)

    def _check(self, name: str, tokens: Sequence[int], *, limit: int | None, least: int = 1) -> None:
        if len(tokens) < least:
            raise InputError(f"{name} is empty, needed: at least one token")
        if limit is not None and len(tokens) > limit:
            raise InputError(
                f"{name} has {len(tokens)} tokens, at most {max(limit, 0)} fit in {self._session.cells} cells",
                hint="shorten it, or open the model with more cells",
            )
        for token in tokens:
            if not 0 <= token < self.vocabulary_size:
                raise InputError(f"{name} holds token {token}, needed: 0 to {self.vocabulary_size - 1}")

    def _not_finite(self, name: str) -> None:
        self._session.wipe()
        raise EvaluationError(
            f"{name}: {self._session.path} gives values that are not finite",
            hint="the weights overflow or hold NaN: check the file before judging it",
        )


def _log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """log Σ exp over the last axis, [rows, V] to [rows].

    Row by row, so that a row stays in the processor's cache. Exponentials are at most 1, and NumPy adds them
    pairwise: float32 then keeps the sum to about 1e-6.
    """
    result = np.empty(len(logits), dtype=np.float64)
    buffer = np.empty(logits.shape[1], dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for i, row in enumerate(logits):
            peak = row.max()
            np.subtract(row, peak, out=buffer)
            np.exp(buffer, out=buffer)
            result[i] = np.log(np.float64(buffer.sum())) + np.float64(peak)
    return result
