"""A Python process of our own for work that may end it: started fresh, never left behind, its death explained.

The child is started anew rather than forked: a fork of a process that runs threads (torch, llama.cpp) may deadlock.
It talks over its stdin and stdout, so there is no shared memory and no file to leave behind.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from typing import IO, Any, NoReturn

from ..errors import EvaluationError, LlamaError
from .worker import read_frame, write_frame

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from gguf_forget.llama.worker import main; main()"
_LOG_LINES, _LOG_BYTES = 3, 4096  # of what the child printed last, quoted in the error
# GCC drops all but eight bytes of the tile configuration that llama.cpp's AMX kernels load: its inline assembly claims
# to read no more of it. Without them the processor calls the next tile instruction illegal.
REBUILD = (
    "compile it here again: CFLAGS=-U__AMX_INT8__ CXXFLAGS=-U__AMX_INT8__ "
    "pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"
)
_SECONDS_TO_DIE = 10.0  # a child that closed its pipes needs less, even to write a core file


class RemoteTraceback(Exception):
    """Carries the traceback of the child process, as text, for whoever debugs."""


class Process:
    """A child that does one call at a time; use it as a context manager.

    Args:
        subject: what it works on, for messages.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _stop)
        # llama.cpp would start a debugger on itself before it aborts; the message alone is enough.
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self._stop = weakref.finalize(self, _stop, self._child, self._log)

    def close(self) -> None:
        """End the child, whatever it does; closing twice is allowed."""
        self._stop()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def call(self, *request: object, progress: Callable[[int, int], None] | None = None) -> Any:
        """Send a request (see :mod:`.worker`) and wait for its result; exceptions of the child are raised here.

        After anything but an exception of the child (its death, Ctrl-C, a failing ``progress``) it is closed.

        Raises:
            EvaluationError: the child died.
            LlamaError: it was closed before.
        """
        if not self._stop.alive:
            raise LlamaError(f"{self._subject} was closed")
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            write_frame(self._child.stdin, request)
            kind, value = read_frame(self._child.stdout)
            while kind == "progress":
                if progress:
                    progress(*value)
                kind, value = read_frame(self._child.stdout)
        except (EOFError, BrokenPipeError):
            self._explain()
        except BaseException:
            self.close()
            raise
        if kind == "error":
            error, text = value
            raise error from RemoteTraceback(f"\n{text}")
        return value

    def _explain(self) -> NoReturn:
        try:
            code = self._child.wait(_SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            code = None
        said = _last_lines(self._log)
        self.close()
        raise EvaluationError(
            f"llama.cpp's process {_ending(code)} while it worked on {self._subject}", cause=said, hint=_hint(code)
        )


def _stop(child: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout, log):
        if stream is not None:
            try:
                stream.close()
            except OSError:  # a request that was still in the buffer, and nobody to read it
                continue


def _last_lines(log: IO[bytes]) -> str | None:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
    text = re.sub(r"\S*/vendor/llama\.cpp/", "", log.read().decode("utf-8", errors="replace"))
    lines = [line.strip() for line in text.splitlines()]
    # Every thread that meets the fault says so.
    return "; ".join(list(dict.fromkeys(line for line in lines if line))[-_LOG_LINES:]) or None


def _ending(code: int | None) -> str:
    if code is None:
        return "stopped answering"
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _hint(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "the system ends processes so when memory runs out: free some, or lower cells or batch"
    if code == -signal.SIGILL:
        return f"this llama.cpp was compiled for another processor, or wrongly; {REBUILD}"
    return "the file may be damaged, or hold what this version of llama.cpp does not expect: try it in llama.cpp itself"
