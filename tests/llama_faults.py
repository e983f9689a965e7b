"""Functions for a child process to run: llama.cpp's own abort, waiting, saying who it is."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path


def abort_in_llama() -> None:
    """End this process the way a failed assertion in llama.cpp does."""
    import llama_cpp

    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_abort(b"/build/vendor/llama.cpp/ggml/src/some.cpp", 7, b"GGML_ASSERT(%s) failed", b"x > 0")


def segmentation_fault() -> None:
    ctypes.string_at(0)


def print_and_leave() -> None:
    print("on stdout")
    sys.stdout.flush()
    os._exit(7)


def sleep_as(path: str, seconds: float) -> None:
    """Leave this process's id in ``path``, then sleep."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(seconds)


def refuse() -> None:
    raise LookupError("no such thing")


def loaded_modules() -> set[str]:
    return set(sys.modules)
