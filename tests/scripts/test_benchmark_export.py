"""The export benchmark on a tiny model: its arguments, the files it makes, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from export_benchmark.command import main
from export_benchmark.work import MLP, SHAPES, write_edited, write_random

from gguf_forget.checkpoint.stored import stored_tensors


def test_three_percent_of_every_mlp_matrix_are_edited_and_nothing_else(tmp_path: Path) -> None:
    before = stored_tensors(write_random(tmp_path / "a.gguf", SHAPES["tiny"]))
    after = stored_tensors(write_edited(tmp_path / "a.gguf", tmp_path / "b.gguf"))
    assert sum(MLP.fullmatch(name) is not None for name in before) == 6
    for name, tensor in before.items():
        share = (tensor.weights(0, tensor.rows) != after[name].weights(0, tensor.rows)).mean()
        assert share == (pytest.approx(0.03, abs=0.003) if MLP.fullmatch(name) else 0.0)
    first, second = (before[f"blk.{layer}.ffn_up.weight"].weights(0, 512) for layer in (0, 1))
    assert not np.array_equal(first, second)


def test_the_figures_and_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert main("", ["--json", str(out), "--quick", "--threads", "1"]) == 0
    found = json.loads(out.read_text())
    tiny = found["models"]["tiny"]
    assert found["wall_ratio"] == tiny["wall_ratio"] > 0
    assert found["wall_ratio_compensated"] == tiny["wall_ratio_compensated"] > 0
    assert found["peak_memory_ratio"] >= tiny["peak_memory_ratio"] > 0
    for side in ("ours", "ours, compensated"):
        edits = tiny["sides"][side]["edits"]
        assert edits["landed"] + edits["saturated"] == edits["asked"] > 10_000
        assert edits["elsewhere"] == 0
    assert found["survival"] == edits["landed"] / edits["asked"]
    widened = tiny["sides"]["ours, --saturated widen"]["edits"]
    assert widened["landed"] == widened["asked"] == edits["asked"]
    assert widened["regridded"] > widened["saturated"] == 0
    assert found["survival_widened"] == 1 > found["survival"]
    assert tiny["sides"]["llama.cpp"]["peak_bytes"] > 10_000_000
    assert set(found["million_weights_per_second"]) == {"Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    assert "at the end" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--json", "x", "--rounds", "0"], ["--json", "x", "--layers", "2,none"]])
def test_wrong_arguments_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main("", arguments)
    assert stopped.value.code == 2
