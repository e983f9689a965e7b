"""Loading llama.cpp once, quietly, and catching what it says.

llama.cpp reports why something failed only through its log. :func:`captured_log` collects that log so that
an error can quote it; outside of it nothing is printed, so the user's terminal stays the program's own.
The log callback belongs to the whole process (llama.cpp keeps one), so capture from one thread at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import LlamaError

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_CONTINUATION_LEVEL = 5  # GGML_LOG_LEVEL_CONT: the level of the record before it


@dataclass
class Log:
    """What llama.cpp said while a :func:`captured_log` was open."""

    records: list[tuple[int, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Everything, as llama.cpp wrote it."""
        return "".join(text for _, text in self.records)

    def reason(self) -> str | None:
        """The error lines joined by ``; ``, else the last line of any level, else None."""
        level, errors = 0, []
        for record_level, text in self.records:
            level = level if record_level == _CONTINUATION_LEVEL else record_level
            if level == _ERROR_LEVEL:
                errors.append(text)
        lines = _lines("".join(errors)) or _lines(self.text)[-1:]
        return "; ".join(dict.fromkeys(lines)) or None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


@dataclass(frozen=True)
class _Library:
    module: Any  # llama_cpp: ctypes bindings without usable types
    callback: Any  # kept here because llama.cpp holds only a bare pointer to it
    sinks: list[Log]  # the open captures, innermost last


@functools.lru_cache(maxsize=1)
def _library() -> _Library:
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # The bindings raise RuntimeError for a shared library that does not load, AttributeError for a
        # symbol that the library at hand lacks.
        raise LlamaError(
            "llama-cpp-python cannot be imported",
            cause=f"{type(error).__name__}: {error}",
            hint="install a C++ compiler, then run: pip install --force-reinstall --no-cache-dir llama-cpp-python",
        ) from error
    sinks: list[Log] = []

    def receive(level: int, text: bytes | None, _user_data: int | None) -> None:
        if sinks and text:
            sinks[-1].records.append((level, text.decode("utf-8", errors="replace")))

    library = _Library(llama_cpp, llama_cpp.llama_log_callback(receive), sinks)
    llama_cpp.llama_log_set(library.callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return library


def load() -> Any:
    """The ``llama_cpp`` module, backend initialised and silent.

    Raises:
        LlamaError: llama-cpp-python is missing or its shared library does not load.
    """
    return _library().module


@contextlib.contextmanager
def captured_log() -> Iterator[Log]:
    """Collect llama.cpp's log instead of dropping it; captures may nest, the innermost receives.

    Raises:
        LlamaError: llama-cpp-python is missing or its shared library does not load.
    """
    library = _library()
    # Set again each time: other code in this process may have installed its own callback meanwhile.
    library.module.llama_log_set(library.callback, ctypes.c_void_p(0))
    log = Log()
    library.sinks.append(log)
    try:
        yield log
    finally:
        library.sinks.pop()


def version() -> dict[str, str]:
    """``llama_cpp_python``: the package's version; ``system_info``: the CPU features that llama.cpp uses.

    Raises:
        LlamaError: llama-cpp-python is missing or its shared library does not load.
    """
    module = load()
    return {
        "llama_cpp_python": str(module.__version__),
        "system_info": module.llama_print_system_info().decode("utf-8", errors="replace").strip(),
    }
