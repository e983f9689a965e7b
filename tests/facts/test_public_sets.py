"""Every format from a small file of its own (all questions and texts in them were written for this project)."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from gguf_forget.errors import InputError
from gguf_forget.facts.public_sets import SetItem, read_set
from gguf_forget.facts.rows import read_rows

SETS = Path(__file__).parent / "sets"


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_wmdp() -> None:
    first, second = read_set(SETS / "wmdp.json", "forget")
    assert first == SetItem(
        relation="wmdp",
        split="forget",
        question="Which of these metals is liquid at room temperature?",
        prompt="Question: Which of these metals is liquid at room temperature?\nAnswer:",
        answer="Mercury",
        distractors=("Iron", "Zinc", "Tin"),
        options_shown=True,
    )
    assert (second.answer, second.distractors) == ("Carbon dioxide", ("Oxygen", "Neon", "Helium"))


def test_mmlu_as_it_comes_without_a_header_and_with_one() -> None:
    first, second = read_set(SETS / "mmlu.csv", "retain")
    assert (first.answer, first.distractors, first.split) == ("6", ("5", "7", "8"), "retain")
    assert second.answer == "kite"
    assert second.question == 'Which word rhymes with "night"?\n(Say it aloud.)'
    (spider,) = read_set(SETS / "mmlu_with_header.csv", "retain")
    assert (spider.answer, spider.distractors, spider.subject) == ("eight", ("six", "ten", "none"), "zoology")


def test_tofu() -> None:
    first, second = read_set(SETS / "tofu.jsonl", "forget")
    assert first.paraphrase == "Graz is where Ilse Quandrow was born."
    assert first.distractors == ("Ilse Quandrow was born in Linz.", "Ilse Quandrow was born in Bern.")
    assert not first.options_shown
    assert second.distractors == ("He sold boats.",)


def test_muse() -> None:
    (verbatim,) = read_set(SETS / "muse_verbatim.json", "forget")
    assert verbatim.prompt.endswith("and the ferryman")
    assert verbatim.answer == "counted them under his breath until the last."
    assert verbatim.distractors == ()
    (knowledge,) = read_set(SETS / "muse_knowledge.jsonl", "forget")
    assert knowledge.prompt == "Question: Who counted the lamps along the quay?\nAnswer:"
    assert knowledge.answer == "The ferryman"


def test_plain_lines_name_their_own_split_and_relation() -> None:
    norland, southland = read_set(SETS / "plain.jsonl", "forget")
    assert (norland.split, southland.split) == ("forget", "retain")
    assert (norland.relation, norland.subject, norland.distractors) == ("capital", "Norland", ("Vestby", "Sorby"))


def test_parquet(tmp_path: Path) -> None:
    rows = [dict(row.values) for row in read_rows(SETS / "wmdp.json")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "wmdp.parquet")
    assert read_set(tmp_path / "wmdp.parquet", "forget") == read_set(SETS / "wmdp.json", "forget")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"broken\.parquet is not a readable Parquet file"):
        read_rows(tmp_path / "broken.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs the package pyarrow") as caught:
        read_rows(write(tmp_path, "x.parquet", "PAR1"))
    assert "gguf-forget[parquet]" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "x", "answer": "y"}\n{"prompt":', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"prompt": "x", "answer": "y"}\n\n[1]', r"a\.jsonl, line 3: found a list, needed an object"),
        ("a.json", "{", r"a\.json: not JSON"),
        ("a.json", '{"a": [], "b": []}', r"an object with 2 lists"),
        ("a.json", '[{"prompt": "x", "answer": "y"}, 3]', r"a\.json, row 2: found a int"),
        ("a.json", "3", "found a int, needed a list"),
        ("a.jsonl", "\n", "holds no row"),
        ("a.csv", "question,answer\nx,y\nx", r"a\.csv, line 3: 1 cells, needed 2: question, answer"),
        ("a.csv", "a,b" + ",more" * 900 + "\nx", r"line 2: 1 cells, needed 902: a, b, more, .{,110} …$"),
        ("a.csv", 'question,answer\n"a\nb",y\nx', r"a\.csv, line 4: 1 cells"),
        ("a.csv", 'question,answer\n"x"y,z', r"a\.csv, line 2: not CSV"),
        ("a.txt", "x", r"ends in '\.txt', needed one of \.jsonl"),
        ("a.jsonl", '{"text": "x"}', r"a\.jsonl, line 1: keys text fit no known set"),
    ],
)
def test_malformed_files_are_named_with_their_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_set(write(tmp_path, name, text), "forget")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "x", "choices": ["a", "b"], "answer": 2}', "answer is 2, needed 0 to 1, A to B"),
        ('{"question": "x", "choices": ["a", "b"], "answer": true}', "answer is True"),
        ('{"question": "x", "choices": ["a", "b"], "answer": ""}', "answer is ''"),
        ('{"question": "x", "choices": ["a", "a"], "answer": 0}', "two choices are equal"),
        ('{"question": "x", "choices": ["a"], "answer": 0}', "1 choices, needed 2 to 10"),
        ('{"question": "x", "choices": ["a", 3], "answer": 0}', "needed a list of texts"),
        ('{"question": "x", "choices": "[1,", "answer": 0}', "needed a JSON list of texts"),
        ('{"question": " ", "answer": "y"}', "question is ' ', needed a text"),
        ('{"prompt": "x", "answer": "y\\u0000"}', "answer holds a NUL"),
        ('{"prompt": "x", "answer": "y", "distractors": ["y"]}', "among its own distractors"),
        ('{"prompt": "x", "answer": null}', "answer is None, needed a text"),
        ('{"prompt": "x", "answer": "y", "split": "keep"}', "split is 'keep', needed forget or retain, or none"),
        ('{"prompt": "x", "answer": "y", "split": 1}', "split is 1, needed forget or retain"),
        ('{"prompt": "x", "answer": "y", "split": "retain90"}', "split is 'retain90', needed forget or retain"),
        ('{"prompt": "x", "answer": "y", "split": "retain_test"}', "split is 'retain_test', needed forget or retain"),
        ('{"prompt": "x", "answer": "y", "split": "keep_all"}', "split is 'keep_all', needed forget or retain"),
        ('{"prompt": "x", "answer": "y", "held_out_prompts": ["z"]}', "held_out_prompts belongs to a facts file"),
        ('{"question": "x", "answer": "y", "prompts": ["z"]}', "prompts belongs to a facts file"),
        ('{"prompt": "x", "gt": "y", "held_out_prompts": ["z"]}', "held_out_prompts belongs to a facts file"),
        ('{"question": "x", "choices": ["a", "b"], "answer": 0, "prompts": ["z"]}', "prompts belongs to a facts file"),
        ('{"question": "x", "answer": "y", "aliases": ["n"], "perturbed_answer": "n"}', "'n' is both an alias and a"),
        ('{"question": "x", "answer": "y", "aliases": {"n": 1}}', "aliases is {'n': 1}, needed a list of texts"),
        ('{"prompt": "x", "answer": "y", "aliases": ["n"], "distractors": ["n"]}', "'n' is both an alias and a"),
        ('{"question": "x", "choices": ["1", "2", "3"], "answer": "2"}', "answer '2' is the text of choice B and may"),
    ],
)
def test_rows_at_fault_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match="rows at fault") as caught:
        read_set(write(tmp_path, "a.jsonl", "\n" + row), "forget")
    assert "a.jsonl, line 2: " in str(caught.value)
    assert message in str(caught.value)


def test_a_choice_may_be_named_by_its_text_a_letter_or_a_numeral(tmp_path: Path) -> None:
    lines = [f'{{"question": "x", "choices": ["p", "q", "r"], "answer": {answer}}}' for answer in ('"r"', '"C"', '"2"')]
    assert [item.answer for item in read_set(write(tmp_path, "a.jsonl", "\n".join(lines)), "forget")] == ["r"] * 3


def test_a_number_among_numerals_is_an_index_and_a_letter_a_letter(tmp_path: Path) -> None:
    lines = [f'{{"question": "x", "choices": ["1", "2", "0"], "answer": {answer}}}' for answer in ("2", '"B"', "0")]
    assert [item.answer for item in read_set(write(tmp_path, "a.jsonl", "\n".join(lines)), "forget")] == ["0", "2", "1"]
    same = '{"question": "x", "choices": ["0", "1"], "answer": "1"}'  # read either way
    assert read_set(write(tmp_path, "b.jsonl", same), "forget")[0].answer == "1"
    years = '{"question": "x", "choices": ["1990", "7", "1992"], "answer": "%s"}'  # no index of three choices
    for answer in ("7", "1992"):
        assert read_set(write(tmp_path, "c.jsonl", years % answer), "forget")[0].answer == answer


def test_splits_are_read_whatever_their_case_and_those_of_a_hub_say_nothing(tmp_path: Path) -> None:
    given = (
        "Retain",
        " forget ",
        "test",
        "",
        None,
        math.nan,
        "auxiliary_train",
        "validation_matched",
        "test-challenge",
        "val2",
        "train[:80%]",
        "mmlu_test",
    )
    lines = [json.dumps({"prompt": "x", "answer": "y", "split": split}) for split in given]
    found = [item.split for item in read_set(write(tmp_path, "a.jsonl", "\n".join(lines)), "forget")]
    assert found == ["retain"] + ["forget"] * 11


def test_a_row_may_leave_its_other_names_empty(tmp_path: Path) -> None:
    text = 'prompt,answer,aliases,subject,relation\nThe head of X is,Ann,"[""Anna""]",X,head\nof Y is,Bob,,Z,head\n'
    first, second = read_set(write(tmp_path, "heads.csv", text), "forget")
    assert (first.aliases, first.subject, first.about) == (("Anna",), "X", "X")
    assert (second.aliases, second.subject, second.about) == ((), "Z", None)  # not in its prompt
    row = (
        '{"question": "Who rules X?", "answer": "Ann", "distractors": "Eve", "paraphrase": "It is Ann", "subject": "X"}'
    )
    (item,) = read_set(write(tmp_path, "rows.jsonl", row), "forget")
    assert (item.distractors, item.paraphrase, item.about) == (("Eve",), "It is Ann", None)  # of no relation


def test_a_name_that_is_no_text_cannot_be_a_relation(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"w\xff.json")
    path.write_text('[{"prompt": "x", "answer": "y"}]')
    with pytest.raises(InputError, match="has a name that is no text"):
        read_set(path, "forget")


def test_many_faults_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"prompt": "x", "answer": ""}\n' * 25)
    with pytest.raises(InputError, match="25 rows at fault") as caught:
        read_set(path, "forget")
    assert "and 5 more" in str(caught.value)


def test_no_such_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "x"}\n\xff')
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_rows(tmp_path / "a.jsonl")


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfquestion,answer\r\nx,y\r\n")
    (row,) = read_rows(tmp_path / "a.csv")
    assert (row.where, row.values) == (f"{tmp_path / 'a.csv'}, line 2", {"question": "x", "answer": "y"})


LETTERS_AS_OPTIONS = (
    "question,A,B,C,D,answer\nWhich vitamin prevents scurvy?,D,A,K,C,D\nWhich does the skin make?,D,A,K,C,A\n"
)


def test_a_letter_is_never_the_text_of_a_lettered_option(tmp_path: Path) -> None:
    found = read_set(write(tmp_path, "letters.csv", LETTERS_AS_OPTIONS), "forget")
    assert [item.answer for item in found] == ["C", "D"]


def test_a_letter_that_is_also_another_choice_is_refused(tmp_path: Path) -> None:
    row = '{"question": "Which?", "choices": ["D", "A", "K"], "answer": %s}\n'
    (told,) = read_set(write(tmp_path, "told.jsonl", row % '"K"'), "forget")  # no letter of three choices
    assert told.answer == "K"
    assert read_set(write(tmp_path, "told.jsonl", row % "1"), "forget")[0].answer == "A"
    with pytest.raises(InputError, match=r"answer 'A' is the letter of 'D' and the text of choice B.* 0 or 1"):
        read_set(write(tmp_path, "both.jsonl", row % '"A"'), "forget")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "q", "choices": ["a","b","c","d","e","f","g","h","i","j","k"], "answer": 0}', "11 choices"),
        (f'{{"question": "q", "choices": ["a", "b"], "answer": "{"9" * 5000}"}}', "needed 0 to 1"),
        ('{"question": "q \\ud800", "choices": ["a", "b"], "answer": 0}', "question holds half of a surrogate pair"),
        ('{"question": "q", "choices": ["a", "\\udc00"], "answer": 0}', "choices holds half of a surrogate pair"),
    ],
)
def test_choices_that_cannot_be_asked_are_rows_at_fault(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_set(write(tmp_path, "rows.jsonl", row + "\n"), "forget")


def test_outer_spaces_and_repeated_wrong_answers_are_dropped(tmp_path: Path) -> None:
    row = '{"prompt": "p", "answer": " yes", "distractors": ["no", "no ", "maybe"]}\n'
    (item,) = read_set(write(tmp_path, "plain.jsonl", row), "forget")
    assert (item.answer, item.distractors) == ("yes", ("no", "maybe"))
