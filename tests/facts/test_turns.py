"""Relations in turn, by the square root of their prompts."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from gguf_forget.facts.turns import dealt, turns


def test_nine_times_the_prompts_are_three_times_the_turns() -> None:
    assert "".join(islice(turns({"a": 9, "b": 1}), 8)) == "aaabaaab"
    assert Counter(islice(turns({"a": 380, "b": 190}), 40)) == {"a": 24, "b": 16}
    assert "".join(islice(turns({"b": 4, "a": 4}), 4)) == "abab"
    assert list(turns({})) == []


def test_what_is_dealt_is_never_more_than_there_is() -> None:
    assert dealt({"a": 9, "b": 1}, 4) == {"a": 3, "b": 1}
    assert dealt({"a": 9, "b": 1}, 8) == {"a": 7, "b": 1}
    assert dealt({"a": 9, "b": 1}, 99) == {"a": 9, "b": 1}
    assert dealt({"a": 1210, "b": 605, "c": 121, "d": 38}, 100) == {"a": 46, "b": 32, "c": 14, "d": 8}
    assert dealt({}, 5) == {}
    assert dealt({"a": 3}, 0) == {"a": 0}
