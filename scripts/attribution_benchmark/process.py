"""The command's end of the attribution benchmark's child processes."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent


class Failure(Exception):
    """One line for the user; exit code 2."""


class Child:
    """One side with one model: a process that answers requests (see child.py)."""

    def __init__(self, side: str, python: str, path: Path, shape: str, threads: int, log: Path) -> None:
        self.side, self.log = side, log
        environment = {**os.environ, "PYTHONPATH": f"{SCRIPTS}{os.pathsep}{path}", "OMP_NUM_THREADS": str(threads)}
        command = [python, "-m", f"attribution_benchmark.{side}", shape, str(threads)]
        with log.open("w") as stderr:
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True
                )
            except OSError as error:
                raise Failure(f"{python} cannot be run: {error.strerror}") from None
        self.loaded = self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            lines = self.log.read_text().strip().splitlines() or ["it said nothing"]
            raise Failure(f"the process of {self.side} stopped with exit code {self.process.returncode}: {lines[-1]}")
        return json.loads(line)

    def ask(self, **request: Any) -> dict:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has stopped; reading its answer says why
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
