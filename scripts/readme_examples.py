#!/usr/bin/env python3
"""Paste every example of the README, one after the other, as a reader would, and see that each ends as the page says.

    scripts/readme_examples.py --folder CLONE [--page README.md] [--skip PATTERN]… [--only PATTERN]… [--list]

The page is read from top to bottom. Every command of its ```sh blocks runs in CLONE, with bash and nothing on its
standard input; what a command exports (PATH, say) holds for those that follow. A ```toml block that begins with
`# recipe.toml` or the like is written into the file of that name, as a reader would. Nothing stops at a failure.

A command must end with exit code 0, or with what the comment behind it says: `# exit code 1`, `# exit code 0 or 1`.
For each the command, exit code, expected exit code, seconds and last line of output are printed. --skip (a regular
expression, searched in the command; may be repeated) leaves commands out, --only leaves all others out; those are
listed as skipped. For a second look at a clone where the demo has run already:

    git clone . /tmp/clone && cp -r runs .venv /tmp/clone
    scripts/readme_examples.py --folder /tmp/clone --skip scripts/demo --skip scripts/test --skip benchmark_

Prints `N passed, N failed` last; exit code 1 if any failed, 2 for a wrong argument. Needs no other package.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\s*$")
EXPECTED = re.compile(r"\bexit code (\d+(?: or \d+)*)")
FILE_NAME = re.compile(r"^#\s*([\w-]+\.toml)\b")
QUOTED_OR_COMMENT = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.|(?<!\S)#.*""")


@dataclass(frozen=True)
class Command:
    """A command as it stands on the page, its comment included, and the exit codes that it may end with."""

    line: int
    text: str
    expected: tuple[int, ...] = (0,)

    @property
    def bare(self) -> str:
        """In one line and without its comment."""
        joined = self.text.replace("\\\n", " ")
        without = QUOTED_OR_COMMENT.sub(lambda found: "" if found[0].startswith("#") else found[0], joined)
        return " ".join(without.split())


@dataclass(frozen=True)
class File:
    """A block that the reader saves under the name in its first line."""

    line: int
    name: str
    content: str


def read_page(page: str) -> list[Command | File]:
    """Commands and files in the order of the page."""
    steps: list[Command | File] = []
    for kind, first, block in _blocks(page):
        if kind == "sh":
            steps += _commands(first, block)
        elif kind == "toml" and block and (named := FILE_NAME.match(block[0])):
            steps.append(File(first, named[1], "\n".join(block) + "\n"))
    return steps


def _blocks(page: str) -> Iterator[tuple[str, int, list[str]]]:
    """Language, number of the first line inside, and lines of every fenced block."""
    kind: str | None = None
    block: list[str] = []
    for number, line in enumerate(page.splitlines(), 1):
        fence = FENCE.match(line)
        if kind is None and fence:
            kind, first, block = fence[1], number + 1, []
        elif kind is not None and fence:
            yield kind, first, block
            kind = None
        else:
            block.append(line)


def _commands(first: int, block: Sequence[str]) -> Iterator[Command]:
    """Lines that end in a backslash go on in the next; empty lines and those of a comment alone are none."""
    begun: list[str] = []
    for number, line in enumerate(block, first):
        begun.append(line)
        if line.endswith("\\"):
            continue
        command = Command(number - len(begun) + 1, "\n".join(begun))
        begun = []
        if command.bare:
            yield Command(command.line, command.text, _expected(command.text))


def _expected(text: str) -> tuple[int, ...]:
    comments = [found[0] for found in QUOTED_OR_COMMENT.finditer(text) if found[0].startswith("#")]
    found = EXPECTED.search(" ".join(comments))
    return tuple(int(code) for code in found[1].split(" or ")) if found else (0,)


@dataclass(frozen=True)
class Ended:
    code: int
    seconds: float
    last_line: str


def run_command(command: Command, folder: Path, environment: Path, seconds: float | None) -> Ended:
    """Run one command in ``folder``; ``environment`` holds what earlier ones exported, and what this one leaves.

    After ``seconds`` it is stopped with all that it started, as exit code -9.
    """
    program = f'source "$1"\n{command.text}\ncode=$?\nexport -p > "$1"\nexit $code\n'
    started = time.monotonic()
    process = subprocess.Popen(
        ["bash", "-c", program, "bash", str(environment)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
    lines = [line for line in said.splitlines() if line.strip()]
    return Ended(process.returncode, time.monotonic() - started, lines[-1].strip() if lines else "")


def write_file(file: File, folder: Path) -> bool:
    """Save a block; False where another file is in its place."""
    path = folder / file.name
    if path.exists():
        return path.read_text(encoding="utf-8") == file.content
    path.write_text(file.content, encoding="utf-8")
    return True


def run_page(
    steps: Sequence[Command | File],
    folder: Path,
    *,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    seconds: float | None = None,
) -> int:
    """Run what is not skipped, print a line or two for each; returns how many failed."""
    passed = failed = skipped = 0
    with tempfile.TemporaryDirectory() as name:
        environment = Path(name) / "environment"
        environment.touch()
        for step in steps:
            if isinstance(step, File):
                good = write_file(step, folder)
                print(f"line {step.line}: {'wrote' if good else 'failed: another file is in the place of'} {step.name}")
                failed += not good
                continue
            if left_out(step, skip, only):
                skipped += 1
                print(f"line {step.line}: $ {step.bare}\n    skipped")
                continue
            print(f"line {step.line}: $ {step.bare}", flush=True)
            ended = run_command(step, folder, environment, seconds)
            good = ended.code in step.expected
            passed, failed = passed + good, failed + (not good)
            needed = " or ".join(map(str, step.expected))
            verb = "passed" if good else "FAILED"
            print(f"    {verb}: exit code {ended.code}, expected {needed}, {ended.seconds:.1f} s")
            if ended.last_line:
                print(f"    {ended.last_line}")
    print(f"{skipped} skipped")
    print(f"{passed} passed, {failed} failed")
    return failed


def left_out(command: Command, skip: Sequence[str], only: Sequence[str]) -> bool:
    def found(patterns: Sequence[str]) -> bool:
        return any(re.search(pattern, command.bare) for pattern in patterns)

    return found(skip) or (bool(only) and not found(only))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a clone in which the commands run")
    parser.add_argument("--page", type=Path, help="the page  [default: README.md of the clone]")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--seconds", type=float, help="stop a command after so many seconds; it has failed then")
    parser.add_argument("--list", action="store_true", help="print the commands, run none")
    arguments = parser.parse_args()
    if arguments.folder is None and not (arguments.list and arguments.page):
        parser.error("--folder is needed (commands write many files: not into the folder that you work in)")
    page: Path = arguments.page or arguments.folder / "README.md"
    try:
        steps = read_page(page.read_text(encoding="utf-8"))
        for pattern in (*arguments.skip, *arguments.only):
            re.compile(pattern)
    except (OSError, UnicodeDecodeError, re.error) as error:
        parser.error(str(error))
    if arguments.list:
        for step in steps:
            print(f"line {step.line}: {f'write {step.name}' if isinstance(step, File) else step.bare}")
        return 0
    limits = {"skip": arguments.skip, "only": arguments.only, "seconds": arguments.seconds}
    return 1 if run_page(steps, arguments.folder, **limits) else 0


if __name__ == "__main__":
    sys.exit(main())
