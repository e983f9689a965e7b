"""The demo's claims on the real model, about 20 minutes: `scripts/test -m slow`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gguf_forget.cli import main

pytestmark = pytest.mark.slow
SHIPPED = ("Q8_0", "Q4_K_M")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    result = CliRunner().invoke(main, ["demo", "-o", str(folder), "--quiet"])
    assert result.exit_code in (0, 1), result.output
    return folder


@pytest.fixture(scope="module")
def rows(run: Path) -> dict[str, Any]:
    report = json.loads((run / "report" / "report.json").read_text())
    return {f"{row['variant']}/{row['file_type']}": row for row in report["rows"]}


def test_llama_cpp_and_transformers_agree_on_tokens_and_probabilities(run: Path) -> None:
    agreement = json.loads((run / "agreement" / "agreement.json").read_text())
    assert agreement["texts_tokenized_alike"] > 10_000
    assert agreement["mean_absolute_difference_nats"] <= 0.05


@pytest.mark.parametrize("file_type", SHIPPED)
def test_the_shipped_file_is_at_chance(rows: dict[str, Any], file_type: str) -> None:
    row = rows[f"unlearned/{file_type}"]
    assert row["forget_held_out"]["value"] <= 0.35
    assert 0.30 <= row["rank_held_out"] <= 0.60
    assert row["generation"]["value"] == 0.0
    original = rows[f"original/{file_type}"]
    assert original["forget_held_out"]["value"] >= 0.7
    assert original["rank_held_out"] >= 0.9


@pytest.mark.parametrize("file_type", SHIPPED)
def test_the_shipped_file_keeps_the_rest(rows: dict[str, Any], file_type: str) -> None:
    row, original = rows[f"unlearned/{file_type}"], rows[f"original/{file_type}"]
    for column in ("retain_same", "retain_all"):
        assert row[column]["value"] >= original[column]["value"] - 0.03
    assert row["perplexity"] <= 1.03 * original["perplexity"]
