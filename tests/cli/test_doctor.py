"""gguf-forget doctor: what is here, and what a model needs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_shapes import shape_weights, write_shape

from gguf_forget import pipeline
from gguf_forget.cli import main
from gguf_forget.errors import EvaluationError
from gguf_forget.llama.quantizer import plan_file
from gguf_forget.recipe import load_recipe
from gguf_forget.stages import doctor


def test_what_is_here() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"torch", "llama-cpp-python"} <= found["tools"].keys()
    assert found["disk"]["free"] > 0
    assert "needed" not in found["disk"]
    assert found["self_check"] == {"passed": True, "error": None, "hint": None}


def test_a_llama_that_does_not_run_here_is_exit_code_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise EvaluationError("llama.cpp's process was ended by SIGILL", hint="compile it")

    monkeypatch.setattr(doctor, "self_check", fail)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 3
    assert "self-check: llama.cpp's process was ended by SIGILL\nhint: compile it\n" in result.stdout
    assert "disk: " in result.stdout
    assert json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)["self_check"]["passed"] is False


def test_what_a_recipe_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = shape_weights("llama")
    write_shape(tmp_path / "model.gguf", "llama", weights)
    (tmp_path / "facts.jsonl").write_text("")
    (tmp_path / "recipe.toml").write_text('[model]\npath = "model.gguf"\n[facts]\npath = "facts.jsonl"\n')
    result = CliRunner().invoke(main, ["doctor", str(tmp_path / "recipe.toml"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    count = sum(array.size for array in weights.values())
    assert found["model"]["weights"] == count
    assert found["memory"]["needed_at_least"] == 20 * count  # its baseline trains all weights
    assert found["disk"]["needed"] > 12 * count
    alone = json.loads(CliRunner().invoke(main, ["doctor", str(tmp_path / "model.gguf"), "--json"]).stdout)
    assert 0 < alone["disk"]["needed"] < 4 * count
    assert alone["memory"]["needed_at_least"] == 8 * count
    monkeypatch.setattr(doctor, "free_memory", lambda: 1000)
    short = CliRunner().invoke(main, ["doctor", str(tmp_path / "model.gguf")])
    assert short.exit_code == 2
    assert "not enough memory" in short.stdout


@pytest.mark.parametrize("baselines", [True, False])
def test_the_disk_that_a_recipe_needs_holds_every_file_of_its_run(tmp_path: Path, baselines: bool) -> None:
    model = write_shape(tmp_path / "model.gguf", "llama", shape_weights("llama"))
    (tmp_path / "facts.jsonl").write_text("")
    content = """[model]\npath = "model.gguf"\n[facts]\npath = "facts.jsonl"\n[export]\ntypes = ["F16", "Q5_0"]
[unlearn]\ngrid = "Q5_1"\nother_grids = ["Q6_K", "Q5_0"]\n[verify]\nbaselines = """
    (tmp_path / "recipe.toml").write_text(content + str(baselines).lower())
    recipe = load_recipe(tmp_path / "recipe.toml")
    size = {kind: plan_file(model, kind).bytes for kind in ("F16", "Q5_0", "Q5_1", "Q6_K", "Q4_0")}
    weights = sum(array.size for array in shape_weights("llama").values())
    stock = [kind for kind in size if baselines or kind != "Q4_0"]
    needed = 2 * 4 * weights + sum(size[kind] for kind in stock) + 2 * (size["F16"] + size["Q5_0"])
    if baselines:
        needed += 4 * weights + size["Q4_0"]
    assert doctor.disk_needed(model, weights, recipe.export.types, recipe) == needed
    # The types that the pipeline quantizes the original to.
    asked: dict[str, Any] = {}
    state = SimpleNamespace(recipe=recipe, stage=lambda _name, _build, **options: asked.update(options))
    pipeline._stock(state)  # type: ignore[arg-type]
    assert sorted(stock) == asked["types"]


def test_a_target_that_cannot_be_read(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["doctor", str(tmp_path / "absent.gguf")]).exit_code == 2
    assert CliRunner().invoke(main, ["doctor", str(tmp_path)]).exit_code == 2
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    for path in (tmp_path / "loop.toml", tmp_path / "no folder" / "model.gguf"):
        result = CliRunner().invoke(main, ["doctor", str(path)])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {path} is not there")
