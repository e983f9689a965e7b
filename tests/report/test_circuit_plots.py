"""The pictures: equal values give equal bytes, and what they must say is in them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from gguf_forget.report.circuit_plots import plot_components, plot_faithfulness, plot_scores

GENERATOR = np.random.default_rng(0)
HEADS, MLPS = GENERATOR.standard_normal((4, 3)), GENERATOR.standard_normal(4)
RANKING = GENERATOR.standard_normal((4, 50)) ** 3
CHOSEN = RANKING > 2
CURVES = {"top neurons": ((0.001, 0.1, 1.0), (0.2, 0.9, 1.0)), "control": ((0.001, 0.1, 1.0), (0.0, 0.1, 1.0))}


def draw(folder: Path) -> list[Path]:
    folder.mkdir()
    return [
        *plot_components(folder, HEADS, MLPS, [1, 0, 2, 3], unit="logits", title="parts"),
        *plot_faithfulness(folder, CURVES, chosen=(0.03, 0.5), title="faithful"),
        *plot_scores(folder, RANKING, CHOSEN, title="scores"),
    ]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw(tmp_path_factory.mktemp("plots") / "first")


def test_the_files(drawn: list[Path]) -> None:
    names = [f"{name}.{kind}" for name in ("components", "faithfulness", "scores") for kind in ("png", "svg")]
    assert [path.name for path in drawn] == names
    for path in drawn:
        assert path.read_bytes()[:8] == (b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else b"<?xml ve")


def test_the_same_values_give_the_same_bytes(drawn: list[Path], tmp_path: Path) -> None:
    for first, second in zip(drawn, draw(tmp_path / "second"), strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_no_date_and_no_version_is_written(drawn: list[Path]) -> None:
    for path in drawn:
        assert b"<dc:date>" not in path.read_bytes()
        assert b"Software" not in path.read_bytes()


def test_axes_are_labelled_with_units(drawn: list[Path]) -> None:
    said = {path.stem: " ".join(re.findall(r"<!-- (.*?) -->", path.read_text())) for path in drawn[1::2]}
    for words in ("attention head", "layer", "score (logits)", "neurons in the circuit", "MLPs"):
        assert words in said["components"]
    for words in ("MLP neurons kept (% of all, log scale)", "faithfulness f (no unit)", "f = 0.50", "3 %"):
        assert words in said["faithfulness"]
    assert f"in the circuit ({int(CHOSEN.sum())})" in said["scores"]
    assert f"cut at {RANKING[CHOSEN].min():.2f}" in said["scores"]


def test_scores_without_a_sign_or_a_spread_can_be_drawn(tmp_path: Path) -> None:
    chosen = np.zeros((1, 4), dtype=bool)
    chosen[0, 0] = True
    assert plot_scores(tmp_path, np.zeros((1, 4)), chosen, title="flat")[0].stat().st_size > 0
    assert plot_components(tmp_path, np.zeros((2, 1)), np.zeros(2), [1, 0], unit="nats", title="flat")
