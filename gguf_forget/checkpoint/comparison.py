"""Two GGUFs side by side: whether they share a vocabulary, and how many tensors differ."""

from __future__ import annotations

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile

# What decides the token ids of a text; the chat template does not.
VOCABULARY_KEYS = (
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.precompiled_charsmap",
)
CHAT_TEMPLATE = "tokenizer.chat_template"


def vocabulary_difference(file: GgufFile, original: GgufFile) -> str | None:
    """The first difference of the two tokenizers in words; None where both split every text alike."""
    for key in VOCABULARY_KEYS:
        mine, theirs = file.value(key), original.value(key)
        if mine == theirs:
            continue
        if isinstance(mine, list) and isinstance(theirs, list):
            if len(mine) != len(theirs):
                return f"{key} has {len(mine):,} entries, the original's {len(theirs):,}"
            place = next(i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
            return f"{key}[{place}] is {mine[place]!r}, the original's {theirs[place]!r}"
        return f"{key} is {_short(mine)}, the original's {_short(theirs)}"
    return None


def chat_template_differs(file: GgufFile, original: GgufFile) -> bool:
    """Whether the two talk to a user differently."""
    return bool(file.value(CHAT_TEMPLATE) != original.value(CHAT_TEMPLATE))


def changed_tensors(file: GgufFile, original: GgufFile) -> int | None:
    """How many tensors of either file have no equal of the same name, type and bytes in the other.

    None for split files, of which one part cannot be compared with a whole.
    """
    if is_split(file) or is_split(original):
        return None
    names = file.tensors.keys() | original.tensors.keys()
    return sum(not _equal(file, original, name) for name in names)


def is_split(file: GgufFile) -> bool:
    return int(file.value("split.count", 0) or 0) > 1


def _equal(file: GgufFile, original: GgufFile, name: str) -> bool:
    mine, theirs = file.tensors.get(name), original.tensors.get(name)
    if mine is None or theirs is None or mine.tensor_type != theirs.tensor_type:
        return False
    same_shape = [int(size) for size in mine.shape] == [int(size) for size in theirs.shape]
    return same_shape and np.array_equal(_bytes(mine.data), _bytes(theirs.data))


def _bytes(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).view(np.uint8)


def _short(value: object) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
