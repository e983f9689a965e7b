"""The exceptions of gguf_forget: one small tree, each with an exit code.

Every error that a user can cause or meet is a :class:`GgufForgetError`. It names the thing, the value
found and what was needed (``message``), and what to do next (``hint``). The command line prints it as
``error: … / cause: … / hint: …`` and exits with ``exit_code``; a traceback appears only with ``--debug``.
"""

from __future__ import annotations


class GgufForgetError(Exception):
    """Base class. ``cause`` quotes the lower-level reason, ``hint`` says what to do next."""

    exit_code = 2

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.cause:
            parts.append(f"cause: {self.cause}")
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)


class InputError(GgufForgetError):
    """A file, option or value given by the user is missing, malformed or unusable."""


class UnsupportedError(GgufForgetError):
    """The input is well-formed, but of a kind this version does not handle (architecture, type)."""


class LlamaError(GgufForgetError):
    """llama.cpp refused or failed; its own message is in ``cause``."""


class EvaluationError(GgufForgetError):
    """The file could not be judged. Never a pass: exit code 3."""

    exit_code = 3
