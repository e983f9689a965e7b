"""The rounding benchmark on a tiny run: the gap follows from the items."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

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
    sides += ["--side", "noise"]
    monkeypatch.setattr(sys, "argv", ["benchmark", str(run), "--json", str(out), "--type", TYPE, *sides])
    assert benchmark_rounding.main() == 0
    rows = {row["rounding"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["none", "stock", "carried", "fitted", "given back", "noise"]
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
    # On other batches fitting is better or changes nothing; here every fact is in all of them.
    assert abs(rows["fitted"]["gap"]) < abs(rows["carried"]["gap"])
    assert "arrives" in capsys.readouterr().out


def test_a_run_without_its_baseline_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", str(tmp_path), "--json", str(tmp_path / "figures.json")])
    assert benchmark_rounding.main() == 2
    assert "template.gguf" in capsys.readouterr().err
