"""Facts as token ids.

Shapes: N examples, T the longest example's tokens (right-padded), A answer tokens of one example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.facts.schema import Fact, continuation

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class Example:
    """One phrasing of one fact. ``tokens[:answer_start]`` is the prompt, the rest is the answer."""

    tokens: tuple[int, ...]
    answer_start: int
    fact: int  # index into the facts the examples were made from
    phrasing: int

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.tokens[: self.answer_start]

    @property
    def answer(self) -> tuple[int, ...]:
        return self.tokens[self.answer_start :]


def split_tokens(prompt: str, answer: str, tokenize: Tokenize) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and those that the answer adds to it.

    The boundary is where the tokens of the whole text leave those of the prompt alone, so that a tokenizer
    that merges across it is seen: raises :class:`InputError` when it does, or when the answer adds no token;
    :class:`UnsupportedError` for a tokenizer that ends every text with EOS.
    """
    whole = tokenize(prompt + continuation(prompt, answer))
    before = tokenize(prompt)
    if whole[: len(before)] != before:
        _check_open_end(before, whole, tokenize)
        raise InputError(
            f"the tokenizer merges the end of the prompt {prompt!r} with the answer {answer!r}",
            hint="end the prompt at a word boundary",
        )
    if len(whole) == len(before):
        raise InputError(
            f"the answer {answer!r} to the prompt {prompt!r} tokenizes to nothing, needed at least one token"
        )
    if not before:
        raise InputError(f"the prompt {prompt!r} tokenizes to nothing, needed at least one token")
    return before, whole[len(before) :]


def _check_open_end(before: list[int], whole: list[int], tokenize: Tokenize) -> None:
    """Raises UnsupportedError where the prompt, the prompt with its answer and an empty text end with one token.

    Leaving it out here would not do: sampled answers and subjects' places come from tokens of the prompt alone.
    """
    end = tokenize("")[-1:]
    if end and end == before[-1:] == whole[-1:]:
        raise UnsupportedError(
            f"the tokenizer (add_eos_token) ends every text with its EOS token, {end[0]}: needed one that leaves the "
            "end of a prompt open",
            hint='switch it off: gguf-set-metadata --force FILE tokenizer.ggml.add_eos_token "" for a GGUF, '
            "add_eos_token in tokenizer_config.json for a Hugging Face directory",
        )


def encode_facts(facts: Sequence[Fact], tokenize: Tokenize, *, held_out: bool = False) -> list[Example]:
    """Every phrasing of every fact with its right answer, facts in order, phrasings within."""
    examples = []
    for index, fact in enumerate(facts):
        for phrasing, prompt in enumerate(fact.phrasings(held_out)):
            before, answer = split_tokens(prompt, fact.answer, tokenize)
            examples.append(Example(tuple(before + answer), len(before), index, phrasing))
    return examples


def pad(sequences: Sequence[Sequence[int]], fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad to int64 ids [N, T] and an int64 mask [N, T] that is 1 on real tokens."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), longest), fill, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask
