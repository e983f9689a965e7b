"""What is told while work runs."""

from __future__ import annotations

import pytest

from gguf_forget.progress import LineProgress, Progress


def test_counts_open_one_task_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    with LineProgress().counts("asking") as count:
        for total in (2, 0, 3):  # nothing to do is no task
            for done in range(total + 1):
                count(done, total)
    assert capsys.readouterr().err.splitlines() == ["asking …", "asking: 0 s", "asking …", "asking: 0 s"]


def test_counts_advance_by_what_was_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("gguf_forget.progress.SECONDS_BETWEEN_LINES", 0.0)
    with LineProgress().counts("asking") as count:
        for done in (0, 3, 10):
            count(done, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == ["asking …", "asking … 0/10", "asking … 3/10", "asking … 10/10"]


def test_a_round_that_fails_is_not_reported_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with LineProgress().counts("asking") as count:
            count(0, 10)
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert capsys.readouterr().err.splitlines() == ["asking …"]


def test_silence() -> None:
    with Progress().counts("asking") as count:
        count(0, 2)
        count(2, 2)


def test_a_total_that_is_not_known_is_not_shown_as_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gguf_forget.progress.SECONDS_BETWEEN_LINES", 0.0)
    with LineProgress().task("training", 0) as advance:
        advance(2)
    assert capsys.readouterr().err.splitlines() == ["training …", "training … 2", "training: 0 s"]
