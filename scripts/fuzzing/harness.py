"""One case: spoil something, call the program, and look at what it said and what it left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fuzzing.material import Material
from fuzzing.mutations import BY_KIND

SECONDS = 30.0  # of processor time for one case; reading a hostile file takes a fraction of one
ONE_CHILD_IN = 100  # a case in a process of its own takes seconds rather than milliseconds


class CaseFailed(Exception):
    """What was wrong with how a case ended."""


def call(*arguments: object) -> tuple[int, str]:
    """The program in this process: exit code and standard error."""
    from click.testing import CliRunner

    from gguf_forget.cli import main

    result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="gguf-forget")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise CaseFailed(f"{type(result.exception).__name__} came out: {result.exception}")
    if result.exit_code == 130:  # the program's own answer to Ctrl-C, which was meant for all
        raise KeyboardInterrupt
    return result.exit_code, result.stderr


def api(read: Callable[[], object]) -> tuple[int, str]:
    """A reader of the package by itself, its errors as the command line would print them."""
    from gguf_forget.errors import GgufForgetError

    try:
        read()
    except GgufForgetError as error:
        return error.exit_code, f"error: {error}"
    return 0, ""


def child(*arguments: object, kill_after: float | None = None) -> tuple[int, str]:
    """The program in a process of its own, killed after so many seconds where given (then exit code -9)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gguf_forget", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        _, said = process.communicate(timeout=kill_after if kill_after is not None else 300)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        if kill_after is None:
            raise CaseFailed("took more than 300 s") from None
    return process.returncode, said


def check(code: int, said: str) -> None:
    """0 or 1 for a harmless change; else 2 or 3 with one clear message."""
    if code in (0, 1):
        return
    if code not in (2, 3):
        raise CaseFailed(f"exit code {code}: {said[-300:]}")
    if "Traceback" in said or "this is a fault of gguf-forget" in said:
        raise CaseFailed(f"not an error of the user's: {said[:400]}")
    if not said.startswith("error: ") or len(said.splitlines()[0]) > 2000:
        raise CaseFailed(f"no clear line: {said[:300]!r}")


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def nothing_more(folder: Path, before: set[str]) -> None:
    if left := tree(folder) - before:
        raise CaseFailed(f"left {', '.join(sorted(left))}")


def spoiled(material: Material, name: str, folder: Path, draw: random.Random) -> tuple[Path, str]:
    """A copy of one file of the material with one mutation, or something that is no file in its place."""
    source: Path = getattr(material, name)
    target = folder / source.name
    kind = source.suffix.removeprefix(".")
    special = draw.random()
    if special < 0.02:
        target.mkdir()
        return target, "a directory"
    if special < 0.04:
        target.symlink_to(draw.choice((target.name, "absent", "/dev/null", folder)))
        return target, "a link"
    if special < 0.05:
        return target, "absent"
    mutation = draw.choice(list(BY_KIND[kind]))
    target.write_bytes(BY_KIND[kind][mutation](source.read_bytes(), draw))
    return target, mutation


def one(material: Material, index: int, seed: int, folder: Path) -> str:
    """Run case ``index``; returns what it was, raises CaseFailed."""
    from fuzzing.cases import CASES, CHILDREN

    draw = random.Random(f"{seed}/{index}")
    table = CHILDREN if index % ONE_CHILD_IN == ONE_CHILD_IN - 1 else CASES
    name = draw.choice(list(table))
    work = folder / f"case-{index}"
    work.mkdir()
    started = time.process_time()
    described = name
    try:
        described = f"{name}: {table[name](material, work, draw)}"
        if table is CASES and (took := time.process_time() - started) > SECONDS:
            raise CaseFailed(f"took {took:.0f} s")
    except CaseFailed as error:
        raise CaseFailed(f"case {index}, {described}: {error}") from error
    except Exception as error:
        raise CaseFailed(f"case {index}, {described}: {type(error).__name__}: {error}") from error
    finally:
        for path in work.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                os.chmod(path, 0o755)
        os.chmod(work, 0o755)
        shutil.rmtree(work)
    return described
