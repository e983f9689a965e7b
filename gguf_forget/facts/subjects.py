"""Where a prompt names its subject, in characters and in tokens.

Nothing is guessed: a subject that the prompt does not hold exactly once, or whose edges the tokenizer merges with
the words around it, has no place.
"""

from __future__ import annotations

from gguf_forget.facts.tokens import Tokenize


def subject_characters(prompt: str, subject: str) -> tuple[int, int] | None:
    """Characters [start, stop) of ``subject`` in ``prompt``; None unless it stands there exactly once."""
    start = prompt.find(subject)
    if start < 0 or prompt.find(subject, start + 1) >= 0:
        return None
    return start, start + len(subject)


def subject_tokens(prompt: str, subject: str, tokenize: Tokenize) -> tuple[int, int] | None:
    """Token positions [start, stop) of ``subject`` in ``tokenize(prompt)``, a space before it included.

    The tokens of the prompt up to the subject, and up to its end, must be how the tokens of the whole prompt begin:
    only then is the boundary one between tokens. Where a token holds the subject's last sign and white space after it
    ("?" and the end of a line), it is the subject's. None where the boundary is none.
    """
    place = subject_characters(prompt, subject)
    if place is None:
        return None
    whole = tokenize(prompt)
    before = tokenize(prompt[: place[0]].rstrip(" "))
    if whole[: len(before)] != before:
        return None
    end = place[1]
    while True:
        until = tokenize(prompt[:end])
        if whole[: len(until)] == until:
            return (len(before), len(until)) if len(before) < len(until) else None
        if not prompt[end : end + 1].isspace():
            return None
        end += 1
