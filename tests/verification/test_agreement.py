"""Tokens and log-probabilities of two libraries, compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gguf_forget.errors import EvaluationError
from gguf_forget.verification.agreement import check_token_agreement, mean_absolute_difference


class Letters:
    """A tokenizer of one token a character."""

    def tokenize(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def test_equal_tokens_agree_whatever_their_integer_type() -> None:
    assert check_token_agreement(Letters(), lambda text: np.array([ord(c) for c in text]), ["ab", "", "c"]) == 3


def test_the_first_text_that_differs_is_named_with_both_lists() -> None:
    with pytest.raises(EvaluationError) as caught:
        check_token_agreement(Letters(), lambda text: [97] * len(text), ["a", "ab", "cd"])
    assert "'ab'" in str(caught.value)
    assert "[97, 98]" in str(caught.value)
    assert "[97, 97]" in str(caught.value)
    assert caught.value.exit_code == 3


def test_no_text_shows_no_agreement() -> None:
    with pytest.raises(EvaluationError, match="no text"):
        check_token_agreement(Letters(), lambda text: [], [])


def test_the_mean_absolute_difference_by_hand() -> None:
    assert mean_absolute_difference([-1.0, -2.0], [-1.5, -1.0]) == 0.75


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([1.0], [math.inf])])
def test_values_that_cannot_be_compared_are_an_error(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(EvaluationError):
        mean_absolute_difference(ours, theirs)
