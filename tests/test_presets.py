"""Presets are whole recipes: what is written reads back, commented keys too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from gguf_forget.cli import main
from gguf_forget.errors import InputError
from gguf_forget.presets import PRESETS, recipe_text
from gguf_forget.recipe import Recipe, load_recipe
from gguf_forget.settings import as_json


def read(text: str, folder: Path) -> Recipe:
    (folder / "model.gguf").write_bytes(b"GGUF")
    for name in ("facts", "forget10_perturbed", "retain_perturbed"):
        (folder / f"{name}.jsonl").write_text("{}\n")
    for name in ("wmdp.json", "mmlu.csv", "verbmem_forget.json", "knowmem_retain.json"):
        (folder / name).write_text("[]\n")
    (folder / "recipe.toml").write_text(text)
    return load_recipe(folder / "recipe.toml")


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_reads_back_and_its_comments_are_the_defaults(name: str, tmp_path: Path) -> None:
    recipe = read(recipe_text(name), tmp_path)
    for section, keys in PRESETS[name].items():
        for key, value in keys.items():
            found = as_json(getattr(getattr(recipe, section), key))
            if section == "facts":  # paths, absolute once they are read
                value = str(tmp_path / value) if key == "path" else [str(tmp_path / each) for each in value]
            assert found == value
    spelled = re.sub(r"(?m)^# (\w+ = )", r"\1", recipe_text(name))
    assert spelled.count(" = ") > 50
    assert read(spelled, tmp_path) == recipe


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(
        InputError, match="no preset is called 'cities', needed one of capitals, wmdp-mcq, tofu, muse-text"
    ):
        recipe_text("cities")


def test_init_writes_a_recipe_and_never_over_another(tmp_path: Path) -> None:
    out = str(tmp_path / "mine.toml")
    first = CliRunner().invoke(main, ["init", "capitals", "-o", out])
    assert first.exit_code == 0
    assert (tmp_path / "mine.toml").read_text() == recipe_text("capitals")
    second = CliRunner().invoke(main, ["init", "capitals", "-o", out])
    assert second.exit_code == 2
    assert "is there already" in second.stderr
