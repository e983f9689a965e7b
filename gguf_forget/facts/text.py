"""Plain text for perplexity and for keeping what the model says outside the facts.

The built-in text is the standard library's ``pydoc_data.topics`` (prose about Python, some 700 kB). One half
of its topics is for training, the other for measuring, so that perplexity is read on text that no training
saw.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.facts.tokens import Tokenize

HALVES = ("train", "measure")


def builtin_documents(half: str) -> list[str]:
    """The built-in documents of one half; the hash of a topic's name decides which half it belongs to."""
    from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]

    wanted = HALVES.index(half)
    return [topics[name] for name in sorted(topics) if hashlib.sha256(name.encode()).digest()[0] % 2 == wanted]


def file_documents(path: Path, half: str) -> list[str]:
    """Paragraphs (separated by empty lines) of a UTF-8 file; the first half trains, the second measures."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"text file {path} cannot be read as UTF-8", cause=str(error)) from error
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) < 2:
        raise InputError(
            f"text file {path} has {len(paragraphs)} paragraphs, needed at least 2",
            hint="separate paragraphs by empty lines: the first half trains, the second measures",
        )
    middle = len(paragraphs) // 2
    return ["\n\n".join(paragraphs[:middle] if half == HALVES[0] else paragraphs[middle:])]


def chunks(documents: Sequence[str], tokenize: Tokenize, *, length: int, count: int, seed: int) -> list[list[int]]:
    """``count`` distinct chunks of ``length`` tokens, drawn over all documents with a fixed seed.

    Fewer when the text is shorter; :class:`InputError` when it has not one chunk.
    """
    pieces: list[list[int]] = []
    for document in documents:
        tokens = tokenize(document)
        pieces += [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    if not pieces:
        raise InputError(f"the plain text has no stretch of {length} tokens", hint="give a longer [text] file")
    return random.Random(seed).sample(pieces, min(count, len(pieces)))


def sample_model(
    model: Any, *, count: int, length: int, seed: int, progress: Callable[[int], None] = lambda done: None
) -> list[list[int]]:
    """``count`` sequences of ``length`` tokens that the model writes at temperature 1 from its BOS token.

    Text that the model gives out is text whose distribution is worth keeping, and needs no data at all.
    """
    import torch

    start = model.config.bos_token_id
    start = start[0] if isinstance(start, list) else (0 if start is None else start)
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for first in range(0, count, 64):
        ids = torch.full((min(64, count - first), 1), start, dtype=torch.long)
        step, cache = ids, None
        with torch.no_grad():
            while ids.shape[1] < length:
                output = model(step, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                probabilities = torch.softmax(output.logits[:, -1].float(), dim=-1)
                step = torch.multinomial(probabilities, 1, generator=generator)
                ids = torch.cat([ids, step], dim=1)
        sequences += ids.tolist()
        progress(len(ids))
    return sequences
