"""What every command shares: errors as exit codes, and the options that all of them have."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from gguf_forget.errors import GgufForgetError

Command = TypeVar("Command", bound=Callable[..., Any])


def _print_error(error: GgufForgetError) -> None:
    first, *rest = error.message.splitlines() or [""]
    lines = [f"error: {first}", *rest]
    if error.cause:
        lines.append(f"cause: {error.cause}")
    if error.hint:
        lines.append(f"hint: {error.hint}")
    _tell("\n".join(lines))


class Weight(click.FloatRange):
    """A finite number from ``min`` on; click's own range lets NaN and infinity through."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r}, needed a finite number", param, ctx)
        return number


UNTOUCHED = "nothing was written"
RESUMED = "finished stages are kept, run the same command again to go on"


def guarded(work: Callable[[], int], *, debug: bool, interrupted: str = RESUMED) -> None:
    """Run ``work`` and exit with its code; a known error prints as error / cause / hint, never as a traceback.

    interrupted: what Ctrl-C has left.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without ✓ is no reason to lose a verdict
    try:
        with _terminated_as_interrupted():
            code = work()
    except GgufForgetError as error:
        if debug:
            traceback.print_exc()
        _print_error(error)
        code = error.exit_code
    except KeyboardInterrupt:
        _tell(f"interrupted: {interrupted}")
        code = 130
    except (BrokenPipeError, SystemExit):  # rich leaves by SystemExit where a pipe is closed
        _drop_output()
        code = 2
    except Exception as error:
        if debug:
            raise
        known = _out_of_memory(error)
        _print_error(
            known
            or GgufForgetError(
                f"unexpected {type(error).__name__}: {error}",
                hint="this is a fault of gguf-forget: run again with --debug and report what it prints",
            )
        )
        code = known.exit_code if known else 3
    sys.exit(code)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which `timeout` and cancelled jobs send, cleans up as Ctrl-C does."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(show: Callable[[], None]) -> None:
    """Print what was found. A reader that went away, or a full disk behind it, takes nothing from the result."""
    try:
        show()
        sys.stdout.flush()
    except (OSError, SystemExit) as error:
        gone = isinstance(error, (BrokenPipeError, SystemExit))
        if not gone:
            _tell(f"what was found could not be printed: {error}")
        _drop_output()


def _tell(text: str) -> None:
    """On the standard error, if it takes anything: it may be the same full disk."""
    with suppress(OSError):
        click.echo(text, err=True)


def _drop_output() -> None:
    """What Python flushes at its end would fail once more, and end it with a code of its own."""
    with suppress(OSError, ValueError):  # a stream without a descriptor has nothing to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def given_options() -> set[str]:
    """Names of the parameters that stand on the command line, whatever their values."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def called(names: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """Options as the user writes them, from the names of their parameters; ``others``: those not called alike."""
    return ", ".join((others or {}).get(name, "--" + name.replace("_", "-")) for name in names)


def _out_of_memory(error: Exception) -> GgufForgetError | None:
    """What to say where memory was refused: torch's CPU allocator does it by a plain RuntimeError."""
    said = str(error).lower()
    refused = isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said)
    if not refused and not isinstance(error, MemoryError):
        return None
    return GgufForgetError(
        "there is not enough memory",
        cause=str(error).partition("\n")[0] or None,
        hint="end other programs; training needs less with unlearn.accumulation, unlearn.gradient_checkpointing or "
        "smaller batches; gguf-forget doctor shows how much is free",
    )


def common(function: Command) -> Command:
    for option in (
        click.option("--debug", is_flag=True, help="Show a traceback when something fails."),
        click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout."),
        click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing."),
    ):
        function = option(function)
    return function
