"""Facts files and public sets side by side, as one list of questions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import SPLITS
from gguf_forget.recipe import VerifySection
from gguf_forget.stages.file_questions import read_questions

SETS = Path(__file__).parent.parent / "facts" / "sets"
OPTIONS = VerifySection()


def own_facts(path: Path, split: str = "forget") -> Path:
    rows = [
        {
            "subject": subject,
            "relation": "capital",
            "answer": answer,
            "distractors": ["Ix", "Oz"],
            "split": split,
            "prompts": [f"The capital of {subject} is"],
            "held_out_prompts": [f"{subject} is ruled from"],
        }
        for subject, answer in (("Norland", "Ostby"), ("Southland", "Sorby"))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_facts_file_and_public_sets(tmp_path: Path) -> None:
    facts = own_facts(tmp_path / "facts.jsonl")
    asked = read_questions([facts, SETS / "wmdp.json"], [SETS / "mmlu.csv"], OPTIONS, limit=None)
    counts: dict[tuple[str, str, str], int] = {}
    for question in asked.questions:
        key = (question.key.relation, question.key.split, question.key.form)
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        ("capital", "forget", "cloze"): 4,
        ("wmdp", "forget", "cloze"): 2,
        ("wmdp", "forget", "choice"): 2,
        ("mmlu", "retain", "cloze"): 2,
        ("mmlu", "retain", "choice"): 2,
    }
    # No two facts share a number, whatever file they come from; forms and phrasings of one fact do.
    facts_of = {(q.key.relation, q.fact) for q in asked.questions}
    assert sorted(fact for _, fact in facts_of) == [0, 1, 2, 3, 4, 5]
    first = asked.summary[0]
    assert first == {
        "file": "facts.jsonl",
        "sha256": hashlib.sha256(facts.read_bytes()).hexdigest(),
        "rows": 2,
        "questions": 4,
    }
    ranked = [question for question in asked.questions if question.candidates]
    assert {question.key.relation for question in ranked} == {"capital"}


def test_everything_in_a_retain_file_is_to_be_kept(tmp_path: Path) -> None:
    kept = own_facts(tmp_path / "kept.jsonl")
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"prompt": "the dye is", "answer": "madder", "split": split} for split in SPLITS]))
    asked = read_questions([SETS / "wmdp.json"], [kept, rows], OPTIONS, limit=None)
    splits = {(q.key.relation, q.key.split, q.subject) for q in asked.questions if q.key.relation != "wmdp"}
    assert splits == {
        ("capital", "retain", "Norland"),
        ("capital", "retain", "Southland"),
        ("rows", "retain", "the dye is"),
    }


def test_a_fact_of_one_prompt_is_a_fact_whichever_key_names_it(tmp_path: Path) -> None:
    """A row of a set has no candidates: a verdict on such rows would lack every rank score."""
    records = [json.loads(line) for line in (SETS / "plain.jsonl").read_text().splitlines()]
    for record in records:
        record |= {"split": "forget"}
    named = {}
    for key in ("prompt", "prompts"):
        for record in records:
            value = record.pop("prompt", None) or record.pop("prompts")[0]
            record |= {key: value if key == "prompt" else [value]}
        path = tmp_path / f"{key}.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        named[key] = read_questions([path], [], OPTIONS, limit=None).questions
    assert named["prompt"] == named["prompts"]
    assert [question.candidates for question in named["prompt"]] == [("Ostby", "Sorby")] * 2
    # Without a split a line is no fact.
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({key: records[0][key] for key in ("subject", "answer")} | {"prompt": "x"})
    )
    (row,) = read_questions([tmp_path / "rows.jsonl"], [], OPTIONS, limit=None).questions
    assert (row.key.relation, row.candidates) == ("rows", ())


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who rules?", "answer": "Ann", "aliases": ["Anna"], "split": "forget"},
        {"prompt": "The ruler is", "answer": "Ann", "aliases": ["Anna"]},
        {"prompt": "The ruler is", "answer": "Ann", "subject": "X", "split": "forget", "relation": None},
        {"prompt": "The ruler is", "answer": "Ann", "subject": "X", "split": "forget", "distractors": "Eve"},
        {"prompt": "The ruler is", "answer": "Ann", "subject": "", "split": "forget"},
    ],
)
def test_what_is_no_fact_is_a_row(tmp_path: Path, row: dict[str, object]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (question,) = read_questions([path], [], OPTIONS, limit=None).questions
    assert (question.key.relation, question.candidates) == ("rows", ())
    assert question.names()[0] == ("Ann", *row.get("aliases", ()))  # type: ignore[misc]


def test_a_kept_row_that_says_or_asks_the_same_is_left_out(tmp_path: Path) -> None:
    """As a run leaves it out: forgetting would be held against the file."""
    rows = [
        {"prompt": "The capital of Chad is", "answer": "N'Djamena", "subject": "Chad", "split": "forget"},
        {"prompt": "Chad is ruled from", "answer": "NDjamena", "subject": "Chad", "split": "retain"},
        {"prompt": "the capital of Chad is ", "answer": "Abeche", "subject": "Chad", "split": "retain"},
        {"prompt": "The capital of Mali is", "answer": "Bamako", "subject": "Mali", "split": "retain"},
    ]
    path = tmp_path / "capitals.json"
    path.write_text(json.dumps([{**row, "relation": "capital"} for row in rows]))
    asked = read_questions([path], [], OPTIONS, limit=None)
    assert sorted(question.answer for question in asked.questions) == ["Bamako", "N'Djamena"]
    assert asked.left_out == "2 rows of capitals.json left out, which are to be forgotten"


def test_lines_that_no_parser_reads_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text('{"prompt": ' + "[" * 100_000)
    with pytest.raises(InputError, match=r"deep\.jsonl"):
        read_questions([path], [], OPTIONS, limit=None)


def test_facts_files_are_asked_as_one(tmp_path: Path) -> None:
    """Else ranks of one relation would be taken among the answers of one file by the priors of another."""
    first = own_facts(tmp_path / "first.jsonl")
    second = tmp_path / "second.jsonl"
    second.write_text(first.read_text().replace("land", "mark").replace("Ostby", "Oster").replace("Sorby", "Sorer"))
    asked = read_questions([first, second], [], OPTIONS, limit=None)
    ranked = [question for question in asked.questions if question.candidates]
    assert {question.candidates for question in ranked} == {("Ostby", "Sorby", "Oster", "Sorer")}
    assert [(each["file"], each["rows"], each["questions"]) for each in asked.summary] == [
        ("first.jsonl", 2, 4),
        ("second.jsonl", 2, 4),
    ]
    # What one file forgets, another cannot keep; what is equal is asked once; and no report tells which.
    again = read_questions([first, first], [own_facts(tmp_path / "kept.jsonl", "retain")], OPTIONS, limit=None)
    assert {question.key.split for question in again.questions} == {"forget"}
    assert [each["questions"] for each in again.summary] == [4, 0, 0]
    said = "2 kept facts left out, because what is to be forgotten says the same, or is asked in the same words"
    assert again.left_out == said


def test_a_set_that_forgets_a_relation_of_a_facts_file_is_refused(tmp_path: Path) -> None:
    """It has no candidates, so that its rows would not be in the rank score of that relation."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x", "answer": "y", "relation": "capital"}\n')
    with pytest.raises(InputError, match="both forget the relation 'capital'"):
        read_questions([own_facts(tmp_path / "facts.jsonl"), rows], [], OPTIONS, limit=None)
    assert read_questions([own_facts(tmp_path / "facts.jsonl")], [rows], OPTIONS, limit=None).summary[1]["rows"] == 1


def test_a_row_is_not_kept_and_forgotten_at_once(tmp_path: Path) -> None:
    whole = tmp_path / "whole.json"
    kept = {"question": "Which of these is a fruit?", "choices": ["Pear", "Stone"], "answer": 0}
    whole.write_text(json.dumps([*json.loads((SETS / "wmdp.json").read_text()), kept]))
    asked = read_questions([SETS / "wmdp.json"], [whole], OPTIONS, limit=None)
    assert asked.left_out == "2 rows of whole.json left out, which are to be forgotten"
    assert {q.key.relation for q in asked.questions if q.key.split == "retain"} == {"whole"}
    assert [(each["rows"], each["questions"]) for each in asked.summary] == [(2, 4), (1, 2)]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "The capital of Norland is", "answer": "Ostby"}\n')
    beside = read_questions([own_facts(tmp_path / "own.jsonl")], [tmp_path / "rows.jsonl"], OPTIONS, limit=None)
    assert beside.left_out == "1 rows of rows.jsonl left out, which are to be forgotten"


def test_a_limit_holds_for_public_sets(tmp_path: Path) -> None:
    asked = read_questions([SETS / "wmdp.json"], [], OPTIONS, limit=1)
    assert len(asked.questions) == 2
    assert asked.summary[0]["rows"] == 2


def test_nothing_to_forget_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is to be forgotten"):
        read_questions([own_facts(tmp_path / "kept.jsonl", "retain")], [], OPTIONS, limit=None)


def test_aliases_make_it_a_facts_file_on_whatever_line(tmp_path: Path) -> None:
    """A row of the plain kind has none, and would lose them."""
    rows: list[dict[str, object]] = [
        {"subject": s, "relation": "capital", "answer": a, "distractors": ["Oz"], "split": "forget", "prompt": f"{s}:"}
        for s, a in (("Norland", "Ostby"), ("Ukraine", "Kiev"))
    ]
    rows[1]["aliases"] = ["Kyiv"]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    asked = read_questions([path], [], OPTIONS, limit=None)
    assert [question.names()[0] for question in asked.questions] == [("Ostby",), ("Kiev", "Kyiv")]
