"""A GGUF derived from another: same header plus new keys, same tensors but for the edited ones.

keys     copied byte for byte or replaced, new ones appended
tensors  their descriptions copied byte for byte
padding  recomputed, the header may have grown
data     every tensor at its offset: copied, edited tensors overwritten
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.errors import InputError
from gguf_forget.export.gguf_header import Value, entry, read_header
from gguf_forget.whole_file import replaced_whole

GENERAL, OURS = "general.", "gguf_forget."
COPY_BYTES = 16 << 20


def without_own(entries: Mapping[str, bytes]) -> dict[str, bytes]:
    """``entries`` of a header but for those that say where an edit comes from: of another edit they are not true."""
    return {key: raw for key, raw in entries.items() if not key.startswith(OURS)}


def own_keys(path: Path) -> dict[str, Any]:
    """What the file itself says of where its edit comes from."""
    file = GgufFile(path)
    return {key: file.value(key) for key in file.reader.fields if key.startswith(OURS)}


def drop_earlier_keys(path: Path, own: Collection[str]) -> None:
    """Write the file anew without the keys ``gguf_forget.*`` that are not among its ``own``, where it has such."""
    head, data_start = read_header(path)
    entries = {**without_own(head.entries), **{key: head.entries[key] for key in own if key in head.entries}}
    if len(entries) == len(head.entries):
        return
    with replaced_whole(path) as out, path.open("rb") as source:
        out.write(replace(head, entries=entries).to_bytes())
        source.seek(data_start)
        shutil.copyfileobj(source, out, COPY_BYTES)


def write_derived(
    source: Path, destination: Path, *, metadata: Mapping[str, Value], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write ``destination`` whole or not at all; ``tensors`` maps names to their new raw bytes (uint8).

    With nothing to add and nothing edited the result equals ``source`` byte for byte. Raises :class:`InputError` as
    :func:`derived_copy` does, and for bytes of the wrong length.
    """
    file = GgufFile(source)
    for name, raw in tensors.items():
        needed = int(file.tensor(name).n_bytes)
        if raw.nbytes != needed:
            raise InputError(f"new bytes for {name}: {raw.nbytes}, needed {needed}")
    with derived_copy(source, destination, metadata=metadata) as out:
        placed = GgufFile(Path(out.name), outline=True)
        for name, raw in tensors.items():
            out.seek(int(placed.tensor(name).data_offset))
            out.write(np.ascontiguousarray(raw).tobytes())


@contextmanager
def derived_copy(source: Path, destination: Path, *, metadata: Mapping[str, Value]) -> Iterator[BinaryIO]:
    """``source`` with ``metadata``, open for writing; it becomes ``destination`` when the block ends without an error.

    Until then it has the name of the yielded file, can be read there, and ``destination`` is as it was. Keys that begin
    with ``general.`` take the place of the source's own; those that begin with ``gguf_forget.`` take the place of all
    that an earlier request left there. Raises :class:`InputError` for another key that the source has already, or a
    full disk.
    """
    reader = GgufFile(source).reader
    for key in metadata:
        if reader.get_field(key) is not None and not key.startswith((GENERAL, OURS)):
            raise InputError(f"{source} has the key {key} already", hint="choose another key")
    head, data_start = read_header(source)
    replaces_ours = any(key.startswith(OURS) for key in metadata)
    kept = without_own(head.entries) if replaces_ours else head.entries
    entries = {**kept, **{key: entry(key, value) for key, value in metadata.items()}}
    header = replace(head, entries=entries).to_bytes()
    needed = os.path.getsize(source) + len(header) - data_start
    free = shutil.disk_usage(destination.parent).free
    if needed > free:
        raise InputError(
            f"{destination.parent} has {free:,} bytes free, needed {needed:,} for {destination.name}",
            hint="free some space or choose another directory",
        )
    with replaced_whole(destination) as out, source.open("rb") as original:
        out.write(header)
        original.seek(data_start)
        shutil.copyfileobj(original, out, COPY_BYTES)
        out.flush()
        yield out
