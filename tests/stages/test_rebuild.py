"""``gguf-forget rebuild``: where it may write, and that a dry run refuses what the real one does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tiny_shapes import shape_weights, write_shape

from gguf_forget.cli import main

UP = "blk.0.ffn_up.weight"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A stock file, what was shipped, and the evidence."""
    weights = shape_weights("llama")
    changed = {**weights, UP: weights[UP].copy()}
    changed[UP][::5, ::7] += np.float32(0.1)
    base = write_shape(tmp_path / "base.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "forgets.gguf", "llama", changed)
    stock, shipped, evidence = tmp_path / "stock.gguf", tmp_path / "out.gguf", tmp_path / "ev"
    assert call("quantize", base, unlearned, shipped, "Q4_0", "-q", "--evidence", evidence).exit_code == 0
    assert call("quantize", base, base, stock, "Q4_0", "-q").exit_code == 0
    return stock, shipped, evidence


@pytest.mark.parametrize("given", ["ev", "ev/moves/Q4_0.moves.npz"])
@pytest.mark.parametrize(
    "out", ["ev/evidence.json", "ev/moves/Q4_0.moves.npz", "ev/new.gguf", "link.json", "stock.gguf"]
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_nothing_of_the_inputs_is_written_over(
    made: tuple[Path, Path, Path], tmp_path: Path, given: str, out: str, more: tuple[str, ...]
) -> None:
    stock, _, evidence = made
    os.link(evidence / "evidence.json", tmp_path / "link.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = call("rebuild", stock, tmp_path / given, "-o", tmp_path / out, *more)
    assert result.exit_code == 2
    found = "lies in the evidence folder" if out.startswith("ev/new") else "is one of the inputs"
    assert result.stderr.startswith(f"error: {tmp_path / out} {found}"), result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("out", "message"), [("nodir/x.gguf", "no such directory"), ("ev", "is a directory, needed the name of a file")]
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_dry_run_refuses_what_the_real_one_does(
    made: tuple[Path, Path, Path], tmp_path: Path, out: str, message: str, more: tuple[str, ...]
) -> None:
    stock, shipped, evidence = made
    result = call("rebuild", stock, evidence, "-o", tmp_path / out, *more)
    assert result.exit_code == 2
    assert message in result.stderr
    for given in (evidence, evidence / "moves" / "Q4_0.moves.npz"):
        wrong = call("rebuild", shipped, given, "-o", tmp_path / "x.gguf", *more)
        assert wrong.exit_code == 2
        assert "needed" in wrong.stderr
        assert "give the stock" in wrong.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_a_link_that_leads_to_itself_is_no_evidence(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    stock, _, _ = made
    loop = tmp_path / "loop.npz"
    loop.symlink_to(loop.name)
    result = call("rebuild", stock, loop, "-o", tmp_path / "x.gguf")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {loop}"), result.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_a_place_beside_the_evidence_is_free(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    stock, shipped, evidence = made
    for given in (evidence, evidence / "moves" / "Q4_0.moves.npz"):
        again = tmp_path / "again.gguf"
        dry = call("rebuild", stock, given, "-o", again, "--dry-run")
        assert dry.exit_code == 0, dry.output
        assert not again.exists()
        assert call("rebuild", stock, given, "-o", again).exit_code == 0
        assert again.read_bytes() == shipped.read_bytes()
        again.unlink()
