"""How a command ends where what it prints, or it itself, is cut off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_forget.cli.common import guarded, say


def test_a_termination_is_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)
        return 0

    with pytest.raises(SystemExit) as ended:
        guarded(work, debug=False, interrupted="nothing was written")
    assert (ended.value.code, cleaned) == (130, [True])
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert signal.getsignal(signal.SIGTERM) is before


def _raise(error: BaseException) -> Callable[[], None]:
    def show() -> None:
        raise error

    return show


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokenPipeError(), ""),
        (SystemExit(1), ""),
        (OSError(28, "No space left"), "what was found could not be printed: [Errno 28] No space left\n"),
    ],
)
def test_what_cannot_be_printed_takes_nothing_from_the_result(
    error: BaseException, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(_raise(error))
    assert capsys.readouterr().err == said


@pytest.fixture
def run(project: Path, tmp_path: Path) -> Path:
    for name in ("evidence", "report"):
        shutil.copytree(project / "done" / name, tmp_path / name)
    return tmp_path


def recompute(run: Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gguf_forget", "report", "--recompute", str(run)]
    return subprocess.run(command, text=True, stderr=subprocess.PIPE, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_a_closed_pipe_leaves_the_verdict_s_exit_code(run: Path) -> None:
    expected = json.loads((run / "report" / "report.json").read_text())["verdict"]["exit_code"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        found = recompute(run, stdout=writing)
    finally:
        os.close(writing)
    assert (found.returncode, found.stderr) == (expected, "")
    with Path("/dev/full").open("w") as full:
        found = recompute(run, stdout=full)
    assert found.returncode == expected
    assert found.stderr.startswith("what was found could not be printed: [Errno 28]")


@pytest.mark.parametrize("code", [0, 3])
def test_a_full_disk_behind_everything_leaves_the_exit_code(code: int) -> None:
    program = (
        "from gguf_forget.cli.common import guarded, say; "
        f"guarded(lambda: (say(lambda: print('x')), {code})[1], debug=False)"
    )
    with Path("/dev/full").open("w") as full:
        found = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full, check=False)
    assert found.returncode == code


def test_a_table_cut_off_by_a_closed_pipe_is_no_failed_gate() -> None:
    program = "from rich.console import Console; from gguf_forget.cli.common import guarded, say; "
    program += "guarded(lambda: (SHOW, 0)[1], debug=False)"
    codes = []
    for show in ("say(lambda: Console().print('x' * 9))", "Console().print('x' * 9)"):
        reading, writing = os.pipe()
        os.close(reading)
        found = subprocess.run([sys.executable, "-c", program.replace("SHOW", show)], stdout=writing, check=False)
        os.close(writing)
        codes.append(found.returncode)
    assert codes == [0, 2]


def test_a_terminal_without_a_character_gets_another() -> None:
    own = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = "from gguf_forget.cli.common import guarded; guarded(lambda: print('\\u2713') or 1, debug=False)"
    found = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (1, b"?\n", b"")
