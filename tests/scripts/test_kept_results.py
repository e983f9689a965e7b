"""What the benchmark of forgetting keeps is used again only by the code and for the questions that it was made with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from forgetting_benchmark.command import questions_hash

from gguf_forget.stages.machine import code_hash
from gguf_forget.verification.questions import Question
from gguf_forget.verification.scores import GroupKey


def test_any_line_of_code_makes_another_hash(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in ((first, "a.py"), (first / "inner", "b.py"), (second, "a.py")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("x = 1\n")
    before = code_hash(first, second)
    (first / "notes.txt").write_text("no code")
    assert code_hash(first, second) == before
    (first / "inner" / "b.py").write_text("x = 2\n")
    assert code_hash(first, second) != before
    (first / "inner" / "b.py").write_text("x = 1\n")
    assert code_hash(first, second) == before
    (first / "inner" / "b.py").rename(first / "inner" / "c.py")
    assert code_hash(first, second) != before


def test_any_word_of_a_question_makes_another_hash() -> None:
    key = GroupKey("capital", "forget", True, 0)
    question = Question(key, 0, "The capital of France is", "Paris", ("Rome",), ("Paris", "Rome"))
    before = questions_hash([question])
    assert questions_hash([replace(question)]) == before
    for changed in (
        replace(question, prompt="France is run from"),
        replace(question, answer="Lyon"),
        replace(question, distractors=("Oslo",)),
        replace(question, candidates=("Paris", "Oslo")),
        replace(question, aliases=(("Lutetia",), ())),
        replace(question, key=key._replace(phrasing=1)),
    ):
        assert questions_hash([changed]) != before
    assert questions_hash([question, question]) != before
