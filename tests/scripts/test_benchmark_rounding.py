"""The rounding benchmark on a tiny run: the gap follows from the items."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_rounding
import numpy as np
import pytest

TYPE = "Q4_0"


def test_the_sides_are_scored_and_the_gap_is_paired_by_fact(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gguf

    run, out = tmp_path / "run", tmp_path / "figures.json"
    for folder in ("load", "facts"):
        shutil.copytree(project / "done" / folder, run / folder)
    shutil.copy(project / "facts.jsonl", run / "facts.jsonl")
    (run / "baseline").mkdir()
    unlearned = Path(shutil.copy(run / "load" / "template.gguf", run / "baseline" / "F32.gguf"))
    generator = np.random.default_rng(4)
    for tensor in gguf.GGUFReader(unlearned, "r+").tensors:
        if len(tensor.shape) == 2:
            tensor.data[:] += generator.choice([-3e-4, 3e-4], tensor.data.shape).astype(np.float32)
    sides = ["--side", "stock", "--side", "carried", "--side", "fitted", "--side", "given back"]
    sides += ["--side", "noise", "--side", "survive all"]
    monkeypatch.setattr(sys, "argv", ["benchmark", str(run), "--json", str(out), "--type", TYPE, *sides])
    assert benchmark_rounding.main() == 0
    rows = {row["rounding"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["none", "stock", "carried", "fitted", "given back", "noise", "survive all"]
    reference = rows["none"]["answer_log_probability"]
    for side in ("stock", "carried", "fitted", "given back", "noise"):
        assert rows[side]["gap"] == pytest.approx(rows[side]["answer_log_probability"] - reference, abs=1e-6)
        assert rows[side]["gap_standard_error"] > 0
        assert rows[side]["held_out_gap"] != rows[side]["gap"]
        kept = rows[side]["retain_accuracy"] - rows["stock"]["retain_accuracy"]
        assert rows[side]["retain_less_stock"] == pytest.approx(kept, abs=1e-9)
    assert "retain_less_stock" not in rows["none"]
    assert rows["stock"]["arrives"] is None
    draws = rows["noise"]["gap_of_each_file"]
    assert len(set(draws)) == 3
    assert rows["noise"]["gap"] == pytest.approx(np.mean(draws), abs=1e-9)
    assert rows["carried"]["arrives"] == pytest.approx(1, abs=0.2)
    assert rows["survive all"]["arrives"] > 3  # every edit is far smaller than the step that it must go
    # On other batches fitting is better or changes nothing; here every fact is in all of them.
    assert abs(rows["fitted"]["gap"]) < abs(rows["carried"]["gap"])
    assert "arrives" in capsys.readouterr().out


def item(fact: int, question: str, value: float) -> Any:
    return SimpleNamespace(fact=fact, sha256=question, value=value)


def test_pairs_are_questions_and_their_facts_are_the_draws() -> None:
    before = [item(0, "a", 1.0), item(0, "b", 0.0), item(1, "a", 0.5), item(2, "c", 0.0)]
    after = [item(0, "b", 0.5), item(0, "a", 2.0), item(1, "a", 0.5), item(2, "c", -1.0)]
    value = lambda each: each.value  # noqa: E731
    assert benchmark_rounding.paired([before], before, value) == (0, 0)
    mean, error = benchmark_rounding.paired([after], before, value)
    assert mean == pytest.approx((1 + 0.5 + 0 - 1) / 4)
    # Sums by fact less the mean for each of its questions: 1.5 - 0.25, -0.125, -1.125.
    assert error == pytest.approx((3 / 2 * (1.25**2 + 0.125**2 + 1.125**2)) ** 0.5 / 4)
    same = [item(fact, "a", 0.0) for fact in range(5)], [item(fact, "a", fact**2.0) for fact in range(5)]
    mean, error = benchmark_rounding.paired([same[1]], same[0], value)
    assert (mean, error) == pytest.approx((6, np.std([0, 1, 4, 9, 16], ddof=1) / 5**0.5))


def test_a_run_without_its_baseline_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", str(tmp_path), "--json", str(tmp_path / "figures.json")])
    assert benchmark_rounding.main() == 2
    assert "template.gguf" in capsys.readouterr().err
