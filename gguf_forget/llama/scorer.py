"""Log-probabilities and text from a GGUF, computed by llama.cpp in this process.

The same calls give the same bits, whatever was asked before. But a score depends, in the last bit of its sums, on what
shares its batch. Attention adds up over the key-value cells in their order, and a sequence that shares the cache lies
in other cells than one alone; and some block types (Q5_0, Q4_K and others, not Q8_0) have other kernels for one row,
for several, and for rows in fours. With float weights that stays below 1e-4 nats. A quantized file's activations are
rounded to 8 bits before every product, so a last bit now and then becomes a whole step: on SmolLM2-135M single token
scores moved by 0.03 (Q8_0) and 0.06 nats (Q4_K_M) on average, improbable ones by up to 0.7. Switching repacked weights
off changes other bits and leaves the effect. It is noise of the computation, and averages out over questions;
``one_at_a_time`` avoids it where single scores are to be compared with another program's.

llama.cpp ends the whole process where it meets what it did not expect; :class:`.child.IsolatedScorer` has the same
methods and survives that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .chat import render_chat
from .generation import Choose, generate, greedy, sampler
from .logits import is_best, log_probability, top
from .requests import Progress, check_tokens, room_of
from .session import Session
from .waves import Reduce, score


class TopLogProbabilities(NamedTuple):
    """What the model expected at each of the n - 1 positions of a sequence that something follows.

    Attributes:
        tokens: ids of the k most probable next tokens, best first, ties to the lowest id; int64 [n - 1, k].
        log_probabilities: theirs, natural; float64 [n - 1, k].
        mean: of log p(token) where the token is drawn from p, in nats; [n - 1].
        variance: of the same, in nats²; [n - 1].
    """

    tokens: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


class Scorer:
    """A GGUF opened for scoring; use it as a context manager.

    Args:
        model: path of a GGUF (the first file of a split one).
        threads: CPU threads; None takes the CPUs this process may use.
        cells: most key-value cells, and so the longest sequence that can be scored; where the model has a table of
            positions, as GPT-2 has, it bounds that as well. No more are allocated than the work at hand needs.
        batch: tokens a forward pass; at most ``batch`` x vocabulary logits (float32) are held at a time. llama.cpp
            attends over 256 cells at least, so on a CPU 256 is fastest; a GPU wants more.
        max_sequences: sequences in the cache at a time, 1 … 256.
        gpu_layers: layers given to GPUs, where llama.cpp was built for one; −1: all.
        tensor_split: each GPU's share of them, in any unit; empty: llama.cpp decides.
        exact_attention: use no flash attention, so that its half precision, which is no part of the file, does not
            blur the scores. False leaves the choice to llama.cpp, as those do who run the file. None: exact where the
            file says that its weights are floats, and with ``one_at_a_time``. Elsewhere llama.cpp rounds activations
            to 8 bits, and what shares the batch flips some of these roundings; flash attention flips more of them
            (single tokens of SmolLM2-135M move by 0.12 to 0.15 nats on average, instead of 0.01 to 0.10), and is a
            sixth faster.
        one_at_a_time: give each sequence a forward pass and an empty cache of its own, as the obvious slow scorer
            does: the same numbers as that one, on quantized files too, for about five times the time.
        progress: hears how many sequences of a call are done, and of how many: first (0, total), last (total, total).

    Raises:
        InputError: no such file, or a number out of range.
        LlamaError: llama.cpp is missing, or cannot load the file.
        UnsupportedError: an encoder-decoder, recurrent or hybrid model.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int | None = None,
        cells: int = 4096,
        batch: int = 256,
        max_sequences: int = 256,
        gpu_layers: int = 0,
        tensor_split: Sequence[float] = (),
        exact_attention: bool | None = None,
        one_at_a_time: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._session = Session(
            model,
            threads=threads,
            cells=cells,
            batch=batch,
            max_sequences=max_sequences,
            gpu_layers=gpu_layers,
            tensor_split=tensor_split,
            exact_attention=exact_attention,
            one_at_a_time=one_at_a_time,
        )
        self._room = room_of(self._session)
        self._progress = progress

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
        return self._session.vocabulary.size

    @cached_property
    def end_of_generation(self) -> frozenset[int]:
        """The ids of all tokens that end a generation."""
        return self._session.vocabulary.end_of_generation()

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of ``text``. With ``add_special``, BOS and EOS are added as the model's metadata says.

        Special tokens written in the text count as such, as in Hugging Face tokenizers.
        """
        return self._session.vocabulary.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        check_tokens(self._session, "tokens", tokens, room=None, least=0)
        return self._session.vocabulary.detokenize(np.array(tokens, dtype=np.int32))

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation in the model's own chat template, for :meth:`tokenize`.

        Args:
            messages: each with ``role`` and ``content``.
            add_generation_prompt: end where the model's answer begins.

        A BOS or EOS that :meth:`tokenize` will add is left out here. A template that writes the date always gets
        26 July 2024.

        Raises:
            UnsupportedError: the file holds no chat template.
            InputError: the template refuses the messages or is malformed.
        """
        source = str(self._session.path)
        return render_chat(
            self._session.vocabulary, messages, add_generation_prompt=add_generation_prompt, source=source
        )

    def continuation_log_probabilities(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[NDArray[np.float64]]]:
        """Natural-log probability of every token of continuation ``j`` after prompt ``i``, at ``[i][j]``.

        Raises:
            InputError: an empty prompt or continuation, a token outside the vocabulary, or a prompt with
                a continuation that does not fit in ``cells`` or the model's positions.
            EvaluationError: llama.cpp failed, or a log-probability is not finite.
        """
        return self._continuations(prompts, continuations, log_probability)

    def continuation_argmax(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[NDArray[np.bool_]]]:
        """Whether each token of continuation ``j`` after prompt ``i`` is the most probable one, at ``[i][j]``.

        Teacher-forced: each token is judged after the right ones before it. Ties go to the lowest id.

        Raises:
            InputError, EvaluationError: as :meth:`continuation_log_probabilities`.
        """
        values = self._continuations(prompts, continuations, is_best)
        return [[part == 1.0 for part in parts] for parts in values]

    def sequence_log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """Natural-log probabilities of tokens 1 … n-1 of each sequence, each given all before it; [n - 1].

        Raises:
            InputError: an empty sequence, one longer than ``cells`` (or the model's positions) + 1, or a token
                outside the vocabulary.
            EvaluationError: llama.cpp failed, or a log-probability is not finite.
        """
        return self._sequences(sequences, log_probability, ())

    def top_log_probabilities(self, sequences: Sequence[Sequence[int]], *, k: int) -> list[TopLogProbabilities]:
        """For each sequence, the ``k`` most probable tokens at each position, and how log p spreads there.

        Raises:
            InputError: ``k`` is below 1 or above the vocabulary's size; else as
                :meth:`sequence_log_probabilities`.
            EvaluationError: llama.cpp failed, or a value is not finite.
        """
        if not 1 <= k <= self.vocabulary_size:
            raise InputError(f"k is {k}, needed: 1 to {self.vocabulary_size}")
        values = self._sequences(sequences, lambda logits, row, _: top(logits, row, k), (2 * k + 2,))
        return [
            TopLogProbabilities(lines[:, :k].astype(np.int64), lines[:, k : 2 * k], lines[:, -2], lines[:, -1])
            for lines in values
        ]

    def generate_greedy(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
        """The most probable next token, again and again; ties go to the lowest id.

        Stops before the first end-of-generation token (not part of the result) or after
        ``max_new_tokens`` tokens.

        Raises:
            InputError: ``max_new_tokens`` below 1, an empty prompt, a token outside the vocabulary, or a
                prompt that with its new tokens does not fit in ``cells`` or the model's positions.
            EvaluationError: llama.cpp failed, or the logits are not finite.
        """
        return self._generate(prompts, 1, greedy, max_new_tokens)

    def generate_sampled(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        samples: int,
        temperature: float = 1.0,
        seed: int,
    ) -> list[list[list[int]]]:
        """``samples`` continuations of each prompt, drawn token by token from softmax(logits / temperature).

        Nothing is cut off (no top-k, no top-p). Sample ``j`` of prompt ``i`` depends on the seed, ``i``, ``j`` and
        the model; not on how many others are drawn. Ends as in :meth:`generate_greedy`.

        Returns:
            Token ids at ``[prompt][sample]``.

        Raises:
            InputError: ``samples`` below 1, a temperature that is not a positive number, a negative seed; else as
                :meth:`generate_greedy`.
            EvaluationError: llama.cpp failed, or the logits are not finite.
        """
        if samples < 1:
            raise InputError(f"samples is {samples}, needed: at least 1")
        if not 0 < temperature < np.inf:
            raise InputError(f"temperature is {temperature}, needed: a number above 0", hint="0 is generate_greedy")
        if seed < 0:
            raise InputError(f"seed is {seed}, needed: 0 or more")
        choose = sampler(len(prompts) * samples, samples, temperature, seed)
        texts = self._generate(prompts, samples, choose, max_new_tokens)
        return [texts[start : start + samples] for start in range(0, len(texts), samples)]

    def _continuations(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[Sequence[int]]],
        reduce: Reduce,
    ) -> list[list[NDArray[np.float64]]]:
        if len(prompts) != len(continuations):
            raise InputError(f"{len(prompts)} prompts, but continuations for {len(continuations)}")
        check = partial(check_tokens, self._session, room=self._room)
        sequences: list[list[int]] = []
        starts: list[int] = []
        names: list[tuple[int, int]] = []
        for i, (prompt, candidates) in enumerate(zip(prompts, continuations, strict=True)):
            check(f"prompt {i}", prompt)
            for j, candidate in enumerate(candidates):
                check(f"prompt {i}, continuation {j}", candidate, spare=1 - len(prompt))
                sequences.append([*map(int, prompt), *map(int, candidate)])
                starts.append(len(prompt))
                names.append((i, j))
        values = score(
            self._session,
            sequences,
            starts,
            reduce,
            name=lambda index: "prompt {}, continuation {}".format(*names[index]),
            progress=self._progress,
        )
        flat = iter(values)
        return [[next(flat) for _ in candidates] for candidates in continuations]

    def _sequences(
        self, sequences: Sequence[Sequence[int]], reduce: Reduce, width: tuple[int, ...]
    ) -> list[NDArray[np.float64]]:
        for i, sequence in enumerate(sequences):
            check_tokens(self._session, f"sequence {i}", sequence, room=self._room, spare=1)
        tokens = [[*map(int, sequence)] for sequence in sequences]
        longer = [i for i, sequence in enumerate(tokens) if len(sequence) > 1]
        values = score(
            self._session,
            [tokens[i] for i in longer],
            [1] * len(longer),
            reduce,
            name=lambda index: f"sequence {longer[index]}",
            progress=self._progress,
        )
        result = [np.empty((0, *width)) for _ in tokens]
        for i, value in zip(longer, values, strict=True):
            result[i] = value
        return result

    def _generate(
        self, prompts: Sequence[Sequence[int]], samples: int, choose: Choose, max_new_tokens: int
    ) -> list[list[int]]:
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}, needed: at least 1")
        for i, prompt in enumerate(prompts):
            spare = 1 - max_new_tokens  # the last token is never decoded
            check_tokens(self._session, f"prompt {i}", prompt, room=self._room, spare=spare)
        return generate(
            self._session,
            [[*map(int, prompt)] for prompt in prompts for _ in range(samples)],
            choose,
            max_new_tokens=max_new_tokens,
            end=self.end_of_generation,
            name=lambda index: f"prompt {index // samples}",
            progress=self._progress,
        )
