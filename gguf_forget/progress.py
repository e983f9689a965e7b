"""What a person sees while long work runs: bars on a terminal, plain lines when piped, nothing when quiet.

Always on stderr; stdout is for data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """The silent one, and the interface of the others."""

    def note(self, text: str) -> None:
        """One line about what happens now."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """While open, call the yielded function with the number of units done (and a short remark).

        ``total``: 0 where it is not known.
        """

        def advance(done: int = 1, remark: str = "") -> None:
            return None

        yield advance

    @contextmanager
    def counts(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """While open, call the yielded function with how much is done and the total: a task from (0, total) to the end.

        For work that learns its total when it begins, perhaps several times over.
        """
        with ExitStack() as open_task:
            advance: Callable[..., None] = lambda _: None  # noqa: E731
            before = 0

            def count(done: int, total: int) -> None:
                nonlocal advance, before
                if total and not done:
                    open_task.close()
                    advance, before = open_task.enter_context(self.task(label, total)), 0
                advance(done - before)
                before = done
                if done == total:
                    open_task.close()

            yield count


class LineProgress(Progress):
    """For logs and pipes: a line at the start, every ten seconds, and at the end."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        started = shown = time.monotonic()
        total_done, last_remark = 0, ""
        of_all = f"/{total}" if total else ""
        self.note(f"{label} …")

        def advance(done: int = 1, remark: str = "") -> None:
            nonlocal shown, total_done, last_remark
            total_done += done
            last_remark = remark or last_remark
            if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                self.note(f"{label} … {total_done}{of_all} {last_remark}".rstrip())

        yield advance
        self.note(f"{label}: {time.monotonic() - started:.0f} s {last_remark}".rstrip())


class BarProgress(LineProgress):
    """For a terminal: one bar a task."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[remark]}"),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(label, total=total or None, remark="")

            def advance(done: int = 1, remark: str = "") -> None:
                if remark:
                    bars.update(task, advance=done, remark=remark)
                else:
                    bars.update(task, advance=done)

            yield advance


def progress_for(*, quiet: bool) -> Progress:
    if quiet:
        return Progress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()
