"""A conversation as the text that the model was trained on: its own chat template, applied.

The template is Jinja source inside the GGUF. llama.cpp itself only recognises some well-known templates; the
formatter of llama-cpp-python runs the source, in a sandbox and with the helpers that transformers offers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ..errors import InputError, UnsupportedError
from .library import load
from .vocabulary import Vocabulary

# Some templates (Llama 3) write the date. Scores must not change from one day to the next, so every day is this
# one, which those templates also fall back to.
_DATE = datetime(2024, 7, 26)


def render_chat(
    vocabulary: Vocabulary, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, source: str
) -> str:
    """The text of ``messages``; see :meth:`.scorer.Scorer.chat`. ``source`` names the model in errors."""
    for index, message in enumerate(messages):
        if not {"role", "content"} <= message.keys():
            raise InputError(f"message {index} has the keys {sorted(message)}, needed: role and content")
    template = vocabulary.chat_template()
    if template is None:
        raise UnsupportedError(f"{source} holds no chat template", hint="ask it without one")
    first, last = vocabulary.first_and_last()
    text = _render(template, list(messages), first, last, add_generation_prompt, source)
    # What tokenizing adds must not be there twice; llama.cpp's own server does the same.
    adds_first, adds_last = vocabulary.added()
    if adds_first and first:
        text = text.removeprefix(first)
    if adds_last and last:
        text = text.removesuffix(last)
    return text


def _render(
    template: str, messages: list[Mapping[str, str]], first: str, last: str, add_generation_prompt: bool, source: str
) -> str:
    load()
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    class Formatter(Jinja2ChatFormatter):
        @staticmethod
        def strftime_now(f: str) -> str:
            return _DATE.strftime(f)

    try:
        formatter: Any = Formatter(template, last, first, add_generation_prompt=add_generation_prompt)
        return str(formatter(messages=messages).prompt)
    # The template is a program from the file: it refuses a conversation (two user turns in a row, say) through
    # ValueError, and may divide by zero or run out of anything.
    except Exception as error:
        raise InputError(
            f"the chat template of {source} cannot be applied to these {len(messages)} messages",
            cause=f"{type(error).__name__}: {error}",
            hint="use the roles, and their order, that the model was trained on",
        ) from error
