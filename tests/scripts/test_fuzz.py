"""Hostile input: a few cases always, many in the slow run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fuzz(cases: int, seed: int, runs: int = 0) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py")]
    command += ["--cases", str(cases), "--runs", str(runs), "--seed", str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.stdout.splitlines()[-1:] == [f"{cases + runs} passed, 0 failed"], done.stdout + done.stderr
    assert done.returncode == 0


def test_a_few_cases() -> None:
    fuzz(60, 1)


@pytest.mark.slow
def test_two_thousand_cases() -> None:
    fuzz(2000, 0)


@pytest.mark.slow
def test_whole_runs_killed_or_out_of_disk_or_two_at_once() -> None:
    fuzz(0, 0, runs=12)
