"""gguf_forget: make a language model forget facts inside their circuit, ship it as a GGUF, prove it.

The names below are the public Python API. Each is imported when it is first used, so that
``import gguf_forget`` and ``gguf-forget --help`` stay fast and load neither torch nor llama.cpp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf_forget.errors import (
        EvaluationError,
        GgufForgetError,
        InputError,
        LlamaError,
        UnsupportedError,
    )

__version__ = "0.1.0"

__all__ = [
    "EvaluationError",
    "GgufForgetError",
    "InputError",
    "LlamaError",
    "UnsupportedError",
    "__version__",
]

# Public name -> module that defines it.
_DEFINED_IN = {
    "EvaluationError": "gguf_forget.errors",
    "GgufForgetError": "gguf_forget.errors",
    "InputError": "gguf_forget.errors",
    "LlamaError": "gguf_forget.errors",
    "UnsupportedError": "gguf_forget.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_DEFINED_IN[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_DEFINED_IN))
