"""Files that appear whole or not at all, and hashes of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gguf_forget.errors import InputError

AT_ONCE = 16 << 20  # bytes


@contextmanager
def replaced_whole(destination: Path) -> Iterator[BinaryIO]:
    """A file for reading and writing that takes the place of ``destination`` when the block ends without an error.

    Raises InputError where it cannot be written; the destination is then as it was.
    """
    if destination.is_dir():
        raise InputError(f"{destination} is a directory, needed the name of a file")
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, destination)
    except OSError as error:
        raise InputError(
            f"{destination} cannot be written", cause=str(error), hint="check the path, free space and permissions"
        ) from error
    finally:
        with suppress(OSError):  # gone already, or no folder to be in
            partial.unlink()


def sha256_of(file: BinaryIO) -> str:
    """Of everything in an open file, in hexadecimal."""
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(AT_ONCE):
        digest.update(chunk)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Of a file's bytes, in hexadecimal. Raises InputError for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            return sha256_of(file)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: found {error.strerror or error}, needed a readable file",
            hint="check the path and its permissions",
        ) from error
