"""Which facts a file still tells, from hand-made items."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_forget.report.leaks import fact_names, leaks_of


def item(fact: int, options: list[float], *, held_out: bool = True, told: bool | None = None, **more: Any) -> Any:
    base = {"relation": "capital", "split": "forget", "right": 0, "sha256": f"{fact:064x}"}
    return {**base, "fact": fact, "option_log_probabilities": options, "held_out": held_out, "contained": told, **more}


RIGHT, WRONG, TIED = [-1.0, -2.0, -3.0, -4.0], [-2.0, -1.0, -3.0, -4.0], [-1.0, -1.0, -3.0, -4.0]


def test_right_every_time_or_told_is_a_leak() -> None:
    items = [
        item(0, RIGHT),
        item(0, RIGHT),
        item(1, RIGHT),
        item(1, WRONG),
        item(2, TIED),
        item(3, WRONG, told=True),
        item(4, RIGHT, held_out=False, told=False),  # a trained phrasing alone
        item(5, RIGHT, split="retain"),
        item(6, [-1.0], told=False),  # free text: nothing to pick from
    ]
    (found,) = leaks_of(items)
    assert found["relation"] == "capital"
    assert found["facts"] == 6
    assert found["expected_by_luck"] == pytest.approx(2 / 16 + 2 / 4)
    assert found["leaking"] == [
        {"fact": "0" * 16, "right": 2, "asked": 2, "told": None},
        {"fact": "0" * 16, "right": 0, "asked": 1, "told": True},
    ]


def test_where_no_phrasing_is_held_out_all_that_were_asked_count() -> None:
    (found,) = leaks_of(
        [item(0, RIGHT, held_out=False), item(0, RIGHT, held_out=False), item(1, WRONG, held_out=False)]
    )
    assert found["expected_by_luck"] == pytest.approx(1 / 16 + 1 / 4)
    assert [(leak["right"], leak["asked"]) for leak in found["leaking"]] == [(2, 2)]


def test_names_and_words_go_by_the_index_of_the_fact() -> None:
    (found,) = leaks_of([item(1, RIGHT)], ["a", "b"], ["first", "second"])
    assert found["leaking"] == [{"fact": "b", "right": 1, "asked": 1, "told": None, "clear": "second"}]


def test_a_name_needs_the_whole_file() -> None:
    facts = [{"subject": "France", "answer": "Paris"}, {"subject": "Norway", "answer": "Oslo"}]
    names = fact_names(facts, b"the whole file")
    assert len({*names}) == 2
    assert all(len(name) == 16 for name in names)
    assert fact_names(facts, b"the whole file") == names
    assert fact_names(facts, b"another file")[0] != names[0]
