"""Where a subject stands in a prompt, by a tokenizer of words and by the real kind that merges spaces."""

from __future__ import annotations

import pytest

from gguf_forget.facts.subjects import subject_characters, subject_tokens
from gguf_forget.facts.tokens import Tokenize


def letters(text: str) -> list[int]:
    """One token a character, a space and the letter after it together; "'s" is one token with what precedes it."""
    tokens: list[int] = []
    for character in text:
        if tokens and tokens[-1] == ord(" ") and character != " ":
            tokens[-1] = 1000 + ord(character)
        elif character == "'" and tokens:
            tokens[-1] += 5000
        else:
            tokens.append(ord(character))
    return tokens


@pytest.mark.parametrize(
    ("prompt", "subject", "place"),
    [
        ("a b c", "b", (2, 3)),
        ("a b b", "b", None),
        ("a b c", "x", None),
        ("b", "b", (0, 1)),
        ("aa", "a", None),
        ("aaa", "aa", None),  # twice, overlapping
    ],
)
def test_characters(prompt: str, subject: str, place: tuple[int, int] | None) -> None:
    assert subject_characters(prompt, subject) == place


def test_a_space_before_the_subject_belongs_to_its_first_token() -> None:
    assert subject_tokens("x yz w", "yz", letters) == (1, 3)
    assert subject_tokens("yz w", "yz", letters) == (0, 2)


def test_a_subject_that_the_tokenizer_merges_with_what_follows_has_no_place() -> None:
    assert subject_tokens("x yz's w", "yz", letters) is None
    assert subject_tokens("x yz's w", "yz's", letters) is not None


def test_the_tiny_tokenizer(tiny_tokenize: Tokenize) -> None:
    prompt = "The capital of a country is"
    start, stop = subject_tokens(prompt, "country", tiny_tokenize) or (0, 0)
    tokens = tiny_tokenize(prompt)
    assert tokens[start:stop] == tiny_tokenize(" country")
    assert tokens[:start] == tiny_tokenize("The capital of a")
