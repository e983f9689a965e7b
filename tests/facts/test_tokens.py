"""Where a prompt's tokens end and its answer's begin."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Tokenize, encode_facts, pad, split_tokens


def words(text: str) -> list[int]:
    """A toy tokenizer: one token a word, its length; "!" is nothing, and "New York" is one token."""
    joined = text.replace("New York", "New_York")
    return [len(word) for word in joined.split() if word != "!"]


def test_the_answer_is_what_it_adds_to_the_prompt() -> None:
    assert split_tokens("the capital is", "old Oslo", words) == ([3, 7, 2], [3, 4])


def test_an_answer_that_tokenizes_to_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="answer '!' to the prompt 'it is' tokenizes to nothing"):
        split_tokens("it is", "!", words)


def test_a_prompt_that_tokenizes_to_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="prompt '!' tokenizes to nothing"):
        split_tokens("!", "Oslo", words)


def test_a_merge_across_the_boundary_is_refused() -> None:
    assert split_tokens("the city of New", "Delhi", words) == ([3, 4, 2, 3], [5])
    with pytest.raises(InputError, match="merges the end of the prompt 'the city of New' with the answer 'York'"):
        split_tokens("the city of New", "York", words)


@pytest.mark.parametrize("first", [[], [1]])
def test_a_tokenizer_that_ends_every_text_is_refused_as_such(first: list[int]) -> None:
    def ends(text: str) -> list[int]:
        return [*first, *words(text), 2]

    with pytest.raises(UnsupportedError, match=r"add_eos_token.* ends every text with its EOS token, 2:") as caught:
        split_tokens("the capital is", "Oslo", ends)
    assert 'gguf-set-metadata --force FILE tokenizer.ggml.add_eos_token ""' in str(caught.value.hint)
    assert "tokenizer_config.json" in str(caught.value.hint)


def test_a_merge_that_leaves_the_last_token_is_still_a_merge() -> None:
    """Both texts end in a token of two letters, an empty text in none, or in a BOS."""
    for first in ([], [1]):
        with pytest.raises(InputError, match="merges the end of the prompt 'a New to'"):
            split_tokens("a New to", "to", lambda text, first=first: [*first, *words(text.replace("to to", "toto to"))])


def test_every_phrasing_of_every_fact_in_order(tiny_tokenize: Tokenize) -> None:
    facts = [
        Fact("Norway", "capital", "Oslo", ("Rome",), "forget", ("Norway:", "Norway's seat is"), ("N.",)),
        Fact("Japan", "capital", "the city", ("Rome",), "retain", ("Japan:", "Japan's seat is"), ("J.",)),
    ]
    examples = encode_facts(facts, tiny_tokenize)
    assert [(example.fact, example.phrasing) for example in examples] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for example in examples:
        fact = facts[example.fact]
        prompt = fact.prompts[example.phrasing]
        assert list(example.prompt) == tiny_tokenize(prompt)
        assert list(example.tokens) == tiny_tokenize(f"{prompt} {fact.answer}")
        assert example.prompt + example.answer == example.tokens
        assert len(example.answer) > 0
    held_out = encode_facts(facts, tiny_tokenize, held_out=True)
    assert [list(example.prompt) for example in held_out] == [tiny_tokenize("N."), tiny_tokenize("J.")]


def test_padding_is_on_the_right() -> None:
    ids, mask = pad([(5, 6), (7,), (1, 2, 3)], fill=9)
    assert ids.dtype == mask.dtype == np.int64
    assert ids.tolist() == [[5, 6, 9], [7, 9, 9], [1, 2, 3]]
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
