"""Scratch directories go with their process, whatever ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gguf_forget.export.scratch import remove_strays, scratch_directory

HOLDS = """
import sys, time
from pathlib import Path
from gguf_forget.export.scratch import scratch_directory
with scratch_directory(Path(sys.argv[1])) as scratch:
    (scratch / "half").write_bytes(b"half a file")
    print(scratch, flush=True)
    time.sleep(600)
"""


def test_it_is_there_while_open_and_gone_after(tmp_path: Path) -> None:
    with scratch_directory(tmp_path) as one, scratch_directory(tmp_path) as other:
        (one / "file").write_bytes(b"x")
        assert one != other
        assert one.parent == other.parent == tmp_path
        assert remove_strays(tmp_path) == []
        assert (one / "file").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_holds_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        stray = Path(child.stdout.readline().strip())
        assert remove_strays(tmp_path) == []
        child.kill()
    assert (stray / "half").exists()
    with scratch_directory(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


def test_a_directory_that_has_no_lock_yet_is_left_until_it_is_old(tmp_path: Path) -> None:
    (tmp_path / ".gguf-forget-new").mkdir()
    assert remove_strays(tmp_path) == []
    os.utime(tmp_path / ".gguf-forget-new", (0, 0))
    assert [path.name for path in remove_strays(tmp_path)] == [".gguf-forget-new"]
    assert list(tmp_path.iterdir()) == []
