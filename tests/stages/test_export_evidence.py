"""``quantize --evidence``: the files follow bit by bit from the stock files that anybody can make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from tiny_shapes import shape_weights, write_shape

from gguf_forget.cli import main
from gguf_forget.cli.schema import schema_of
from gguf_forget.whole_file import sha256_file

UP = "blk.0.ffn_up.weight"
KINDS = ("Q4_K_M", "Q8_0")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    weights = shape_weights("llama")
    changed = {**weights, UP: weights[UP].copy()}
    changed[UP][::5, ::7] += np.float32(0.1)
    return (
        write_shape(tmp_path / "base.gguf", "llama", weights),
        write_shape(tmp_path / "forgets.gguf", "llama", changed),
    )


def test_each_file_is_rebuilt_from_the_stock_file_that_anybody_can_make(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    out, evidence = tmp_path / "shipped", tmp_path / "shipped" / "evidence"
    how = ("--saturated", "widen", "--survive", "all", "--token-embedding-type", "q6_k")
    result = call("quantize", *models, out, *KINDS, *how, "--twin", "F16", "--evidence", evidence, "-q")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"evidence in {evidence}"
    files = {kind: out / f"forgets.{kind}.gguf" for kind in KINDS}
    twins = {kind: out / f"forgets.{kind}.twin.F16.gguf" for kind in KINDS}
    assert sorted(out.iterdir()) == sorted([*files.values(), *twins.values(), evidence])
    manifest = json.loads((evidence / "evidence.json").read_text())
    assert [*Draft202012Validator(schema_of("evidence.json")).iter_errors(manifest)] == []
    assert manifest["inputs"] == {
        role: {"name": path.name, "sha256": sha256_file(path)}
        for role, path in zip(("base", "unlearned"), models, strict=True)
    }
    assert manifest["options"]["saturated"] == "widen"
    assert manifest["options"]["token_embedding_type"] == "q6_k"
    assert manifest["options"]["imatrix_sha256"] is None
    assert sorted(manifest["files"]) == [f"moves/{kind}.moves.npz" for kind in KINDS]
    for kind, file in files.items():
        stock, again = tmp_path / f"stock.{kind}.gguf", tmp_path / f"again.{kind}.gguf"
        assert call("quantize", models[0], models[0], stock, kind, *how[-2:], "-q").exit_code == 0
        output = manifest["outputs"][kind]
        assert output["stock"]["sha256"] == sha256_file(stock)
        assert output["shipped"]["sha256"] == sha256_file(file)
        assert output["twin"]["sha256"] == sha256_file(twins[kind])
        assert output["moves"] > 1000
        result = call("rebuild", stock, evidence, "-o", again)
        assert result.exit_code == 0, result.output
        assert again.read_bytes() == file.read_bytes()


def test_a_change_of_the_evidence_is_found(models: tuple[Path, Path], tmp_path: Path) -> None:
    evidence, stock = tmp_path / "evidence", tmp_path / "stock.gguf"
    assert call("quantize", *models, tmp_path / "out.gguf", "Q8_0", "-q", "--evidence", evidence).exit_code == 0
    assert call("quantize", models[0], models[0], stock, "Q8_0", "-q").exit_code == 0
    moves = evidence / "moves" / "Q8_0.moves.npz"
    raw = bytearray(moves.read_bytes())
    raw[len(raw) // 2] ^= 1
    moves.write_bytes(bytes(raw))
    result = call("rebuild", stock, evidence, "-o", tmp_path / "x.gguf")
    assert result.exit_code == 3
    assert "has sha256" in result.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_an_export_has_no_verdict(models: tuple[Path, Path], tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    assert call("quantize", *models, tmp_path / "out.gguf", "Q8_0", "-q", "--evidence", evidence).exit_code == 0
    result = call("report", "--recompute", evidence)
    assert result.exit_code == 2
    assert "needed 'evidence of a run'" in result.stderr
    assert "hint: only a run has a verdict" in result.stderr


def test_what_cannot_have_evidence_is_refused_before_any_work(models: tuple[Path, Path], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for options, message in (
        (("--evidence", taken), f"the evidence folder {taken} is there and not empty"),
        (("--evidence", tmp_path / "e", "--split-max-size", "1M"), "--evidence of a split file cannot be made"),
        (("--evidence", tmp_path / "no" / "e"), f"no such directory: {tmp_path / 'no'}"),
    ):
        result = call("quantize", *models, tmp_path / "out.gguf", "Q8_0", "-q", *options)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {message}")
        assert sorted(tmp_path.rglob("*")) == before
    result = call("quantize", *models, tmp_path / "out.gguf", "Q8_0", "--dry-run", "--evidence", tmp_path / "e", "-q")
    assert result.exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before
