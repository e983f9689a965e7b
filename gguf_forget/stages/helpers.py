"""Processes beside this one that do the same work on other parts of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gguf_forget.errors import EvaluationError, GgufForgetError
from gguf_forget.stages.machine import torch_device
from gguf_forget.unlearning.together import ALONE, Together, joined


@contextmanager
def together(count: int, device: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[Together]:
    """While open, ``count - 1`` others run ``function(*arguments, together)``, as the caller is about to do himself.

    function, arguments: picklable. On the CPU all share its cores. Raises EvaluationError where one of them failed;
    whatever ends the caller ends them.
    """
    if count == 1:
        yield ALONE
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    threads = torch.get_num_threads()
    own = max(1, threads // count)
    with tempfile.TemporaryDirectory(prefix="gguf-forget-") as folder:
        meeting, reasons = Path(folder) / "meeting", Path(folder)
        others = [
            context.Process(
                target=_other, args=(index, count, meeting, device, own, reasons, function, arguments), daemon=True
            )
            for index in range(1, count)
        ]
        for process in others:
            process.start()
        torch.set_num_threads(own)
        try:
            _await(reasons, others)
            with joined(0, count, meeting, torch_device(device, 0)) as alone:
                yield alone
            for process in others:
                process.join()
            _check(reasons, others)
        except RuntimeError as error:  # what torch says where another process is gone
            for process in others:
                process.join(timeout=5)
            _check(reasons, others, error)
            raise
        finally:
            torch.set_num_threads(threads)
            for process in others:
                process.terminate()
                process.join()


def _other(
    index: int,
    count: int,
    meeting: Path,
    device: str,
    threads: int,
    reasons: Path,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and ends the others
    torch.set_num_threads(threads)
    try:
        own = torch_device(device, index)
        (reasons / f"{index}.ready").touch()
        with joined(index, count, meeting, own) as others:
            function(*arguments, others)
    except Exception as error:
        text = error.message if isinstance(error, GgufForgetError) else f"{type(error).__name__}: {error}"
        (reasons / f"{index}.txt").write_text(text, encoding="utf-8")
        sys.exit(1)
    # torch keeps threads of a sharded model's exchange after it is over; one that still lets go of a tensor while
    # Python takes itself down aborts the process. All is done: end without taking down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _await(reasons: Path, others: list[Any]) -> None:
    """Until all have started: who waits for one that never comes to the meeting would wait for days."""
    while not all((reasons / f"{index}.ready").exists() for index in range(1, len(others) + 1)):
        _check(reasons, others)
        time.sleep(0.02)


def _check(reasons: Path, others: list[Any], error: Exception | None = None) -> None:
    for index, process in enumerate(others, start=1):
        if process.exitcode not in (0, None):
            reason = reasons / f"{index}.txt"
            raise EvaluationError(
                f"process {index} of {len(others) + 1} ended with code {process.exitcode}",
                cause=reason.read_text(encoding="utf-8") if reason.exists() else None,
                hint="is there memory for all of them? train with fewer: unlearn.processes",
            ) from error
