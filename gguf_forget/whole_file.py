"""Files that appear whole or not at all, what may not be written over, where paths lead, and hashes of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gguf_forget.errors import InputError

AT_ONCE = 16 << 20  # bytes


def real_path(path: Path) -> Path:
    """Where a path leads, absolute and through all links.

    A link that leads to itself stays, so that opening it is an OSError; ``Path.resolve`` raises RuntimeError for it
    in Python 3.12 and before.
    """
    return Path(os.path.realpath(path))


def check_output(destination: Path, sources: Iterable[Path] = ()) -> None:
    """Refuse, before any work, a place that cannot become a file or that is one of ``sources`` by whatever name.

    Raises InputError for a directory, a device or pipe (a rename would take its place), a source, and a place that
    cannot be looked at.
    """
    try:
        if destination.is_dir():
            raise InputError(f"{destination} is a directory, needed the name of a file")
        if not destination.exists():
            return
        if not destination.is_file():
            raise InputError(f"{destination} is a device or a pipe, needed the name of a file")
        for source in sources:
            if source.exists() and os.path.samefile(source, destination):
                raise InputError(f"{destination} is one of the inputs", hint="give another name for the result")
    except OSError as error:
        raise InputError(
            f"{destination} cannot be looked at", cause=str(error), hint="check the permissions"
        ) from error


def check_outputs(destinations: Iterable[Path | None], sources: Iterable[Path] = ()) -> None:
    """:func:`check_output` of several, None left out: their folders can be written in, and no two are one file."""
    sources, taken = list(sources), set()
    for destination in destinations:
        if destination is None:
            continue
        check_output(destination, sources)
        check_folder_writable(destination.parent)
        place = real_path(destination)
        if place in taken:
            raise InputError(f"{destination} is named for two results", hint="give each one a name of its own")
        taken.add(place)


def check_folder_writable(folder: Path) -> None:
    """Raises InputError for a folder that is none, or in which this user can write nothing."""
    try:
        there = folder.is_dir()
    except OSError as error:
        raise InputError(f"{folder} cannot be looked at", cause=str(error), hint="check the permissions") from error
    if not there and os.path.lexists(folder):
        raise InputError(f"{folder} is no directory, needed one to write in", hint="choose another place")
    if not there:
        raise InputError(f"no such directory: {folder}", hint="create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"nothing can be written in {folder}", hint="check its permissions, or choose another place")


@contextmanager
def replaced_whole(destination: Path) -> Iterator[BinaryIO]:
    """A file for reading and writing that takes the place of ``destination`` when the block ends without an error.

    Raises InputError where it cannot be written; the destination is then as it was.
    """
    check_output(destination)
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
