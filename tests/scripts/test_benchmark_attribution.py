"""The attribution benchmark's own logic: its arguments, what it writes, how it compares two sides' edges."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from attribution_benchmark.command import correlation, main
from attribution_benchmark.process import Failure
from attribution_benchmark.work import SHAPES, TOKENS, prompts


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What is told apart from a checkout of the reference by its contents alone."""
    (tmp_path / "reference" / "src" / "eap").mkdir(parents=True)
    (tmp_path / "reference" / "src" / "eap" / "attribute.py").touch()
    return tmp_path / "reference"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--json"),
        (["--json", "out.json", "--pairs", "0"], "'0' is not a whole number above 0"),
        (["--json", "out.json", "--runs", "-1"], "--runs"),
        (["--json", "out.json", "--reference", "nowhere"], "nowhere is no checkout of EAP-IG"),
        (["--json", "out.json", "--reference-python", "python"], "needs --reference as well"),
        (["--json", "nowhere/out.json"], "there is no folder nowhere"),
    ],
)
def test_wrong_arguments_exit_2_with_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main("", arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert said in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("python", "said"),
    [("/nowhere/python", "/nowhere/python cannot be run"), (sys.executable, "No module named")],
)
def test_an_unusable_reference_exits_2_and_writes_nothing(
    python: str, said: str, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.json"
    options = ["--json", str(out), "--quick", "--reference", str(checkout), "--reference-python", python]
    assert main("", options) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not out.exists()


def test_without_a_reference_ours_is_timed_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.json"
    assert main("", ["--json", str(out), "--quick", "--model", "smollm2-tiny", "--threads", "1"]) == 0
    found = json.loads(out.read_text())
    assert {key: found[key] for key in ("speedup", "peak_memory_ratio", "correlation")} == {
        "speedup": None,
        "peak_memory_ratio": None,
        "correlation": None,
    }
    assert found["work"]["pairs"] == 2
    assert found["work"]["threads"] == 1
    assert list(found["models"]) == ["smollm2-tiny"]
    ours = found["models"]["smollm2-tiny"]["ours"]
    assert len(ours["seconds"]) == 1
    assert ours["median_seconds"] == 2 * ours["seconds_per_pair"]
    assert ours["peak_bytes"] >= ours["resident_bytes_loaded"] + ours["peak_bytes_above_loaded"] > 0
    assert [(row["pairs"], row["steps"]) for row in found["growth"]] == [(1, 5), (2, 5), (4, 5), (1, 10), (1, 20)]
    printed = capsys.readouterr()
    assert "ours is timed alone" in printed.out
    assert "smollm2-tiny, ours" in printed.out
    assert "smollm2-tiny, ours, run 1 of 1: " in printed.err


def save(path: Path, sources: list[str], destinations: list[str], scores: list[list[float]]) -> Path:
    np.savez(path, sources=sources, destinations=destinations, scores=np.array(scores))
    return path


def test_edges_are_compared_by_name(tmp_path: Path) -> None:
    ours = save(tmp_path / "a.npz", ["u", "v"], ["x", "y"], [[1.0, 2.0], [np.nan, 4.0]])
    same = save(tmp_path / "b.npz", ["v", "u"], ["y", "x"], [[4.0, np.nan], [2.0, 1.0]])
    assert correlation(ours, same) == {"edges": 3, "correlation": pytest.approx(1.0), "largest_difference": 0.0}
    opposite = save(tmp_path / "c.npz", ["u", "v"], ["x", "y"], [[-1.0, -2.0], [np.nan, -4.0]])
    assert correlation(ours, opposite)["correlation"] == pytest.approx(-1.0)
    assert correlation(ours, opposite)["largest_difference"] == 2.0


def test_sides_with_other_edges_are_not_compared(tmp_path: Path) -> None:
    ours = save(tmp_path / "a.npz", ["u", "v"], ["x", "y"], [[1.0, 2.0], [np.nan, 4.0]])
    renamed = save(tmp_path / "b.npz", ["u", "w"], ["x", "y"], [[1.0, 2.0], [np.nan, 4.0]])
    with pytest.raises(Failure, match=r"name different sources: \['v', 'w'\]"):
        correlation(ours, renamed)
    other = save(tmp_path / "c.npz", ["u", "v"], ["x", "y"], [[1.0, np.nan], [2.0, 4.0]])
    with pytest.raises(Failure, match="disagree on which edges"):
        correlation(ours, other)


def test_prompts_of_a_pair_differ_in_the_subject_alone_and_do_not_depend_on_how_many_there_are() -> None:
    shape = SHAPES["smollm2-tiny"]
    few, many = prompts(shape, 3), prompts(shape, 5)
    assert few == many[:3]
    for pair in many:
        assert len(pair.clean) == len(pair.corrupted) == TOKENS
        differing = [i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if a != b]
        assert differing == [5, 6, 7]
        assert pair.answer not in pair.distractors
        assert max(*pair.clean, *pair.corrupted, pair.answer, *pair.distractors) < shape.vocabulary
