"""The verification benchmark on a tiny model: its work, its arguments, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import build_tiny_gguf
from verification_benchmark.command import main
from verification_benchmark.work import Work, choice_questions


def test_unique_tokens_by_hand() -> None:
    work = Work([[1, 2, 3], [1, 2, 4]], [[[5], [6, 7]], [[5, 8]]])
    assert work.sequences == [[1, 2, 3, 5], [1, 2, 3, 6, 7], [1, 2, 4, 5, 8]]
    # Decoded: 1 2 3, 6 after it, 4 and 5 after 1 2. Asked: 3, 6, 4, 5.
    assert work.tokens() == (6, 4)


def test_choice_questions_share_their_heading_and_letters() -> None:
    work = choice_questions(3, lambda text: [len(text), 7], 1000)
    assert work.continuations == [[[2, 7]] * 4] * 3
    assert len({tuple(prompt[:2]) for prompt in work.prompts}) == 1
    assert len({tuple(prompt) for prompt in work.prompts}) == 3
    assert work == choice_questions(3, lambda text: [len(text), 7], 1000)


def test_the_figures_and_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = build_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "figures.json"
    arguments = ["--model", str(model), "--json", str(out), "--types", "Q8_0", "--rounds", "1", "--threads", "1"]
    assert main("", [*arguments, "--questions", "8", "--choice-questions", "3", "--compared", "4"]) == 0
    document = json.loads(out.read_text())
    figures = document["types"]["Q8_0"]
    assert document["speedup_over_logits_all"] == figures["speedup_over_logits_all"] > 0
    assert document["share_of_prompt_processing"] == figures["share_of_prompt_processing"] > 0
    assert document["peak_memory_bytes"] == figures["peak_memory_bytes"] > 10_000_000
    assert figures["questions"] == 8
    assert list(figures["peak_memory_bytes_by_questions"]) == ["2", "2544", "8"]
    assert document["difference_to_one_by_one_f32"]["largest_nats"] < 1e-4
    assert "share of pp512 with logits" in capsys.readouterr().out


def test_a_missing_model_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("", ["--model", str(tmp_path / "absent.gguf"), "--json", str(tmp_path / "out.json")]) == 2
    assert "no such model file" in capsys.readouterr().err
