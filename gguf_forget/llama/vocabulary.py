"""The text side of a model opened in llama.cpp: tokens, special tokens, the chat template."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LlamaError
from .library import load


class Vocabulary:
    """Reads the vocabulary of a ``llama_model``; usable as long as that model is not freed."""

    def __init__(self, model: Any, path: Path) -> None:
        self._library = load()
        self._model = model
        self._vocabulary = self._library.llama_model_get_vocab(model)
        self._path = path
        self.size: int = self._library.llama_vocab_n_tokens(self._vocabulary)

    def end_of_generation(self) -> frozenset[int]:
        """The ids of all tokens that end a generation."""
        is_end = self._library.llama_vocab_is_eog
        return frozenset(i for i in range(self.size) if is_end(self._vocabulary, i))

    def first_and_last(self) -> tuple[str, str]:
        """The texts of BOS and EOS; empty where the model names none."""
        library = self._library
        return self._text(library.llama_vocab_bos), self._text(library.llama_vocab_eos)

    def added(self) -> tuple[bool, bool]:
        """Whether tokenizing with ``add_special`` adds BOS in front, and EOS behind."""
        library = self._library
        return library.llama_vocab_get_add_bos(self._vocabulary), library.llama_vocab_get_add_eos(self._vocabulary)

    def chat_template(self) -> str | None:
        """The Jinja source of the model's default chat template, None where the file holds none."""
        template: bytes | None = self._library.llama_model_chat_template(self._model, None)
        return template.decode("utf-8") if template else None

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens written in ``text`` count as such, as in Hugging Face tokenizers."""
        data = text.encode("utf-8")
        capacity = len(data) + 8
        while True:
            buffer = (self._library.llama_token * capacity)()
            count: int = self._library.llama_tokenize(
                self._vocabulary, data, len(data), buffer, capacity, add_special, True
            )
            if count >= 0:
                return buffer[:count]
            if -count <= capacity:
                raise LlamaError(f"llama.cpp cannot tokenize a text of {len(data)} bytes with {self._path}")
            capacity = -count

    def detokenize(self, tokens: NDArray[np.int32]) -> str:
        """The text of ``tokens``, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        array = np.ascontiguousarray(tokens, dtype=np.int32)
        pointer = ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_int32))
        capacity = 16 * len(array) + 16
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count: int = self._library.llama_detokenize(
                self._vocabulary, pointer, len(array), buffer, capacity, False, True
            )
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", errors="replace")
            if -count <= capacity:
                raise LlamaError(f"llama.cpp cannot detokenize {len(array)} tokens with {self._path}")
            capacity = -count

    def _text(self, special: Any) -> str:
        token = special(self._vocabulary)
        return "" if token < 0 else self._library.llama_vocab_get_text(self._vocabulary, token).decode("utf-8")
