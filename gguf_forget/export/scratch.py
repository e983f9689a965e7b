"""A hidden directory for what is not finished yet, which goes with its process however that ends.

The directory lies beside the result, so that finished files are renamed into place, never copied. Its process holds a
lock on a file inside; the system lets go of a lock even when a process is killed, so whoever can take it knows that the
directory was left behind, and removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gguf_forget.errors import InputError

PREFIX = ".gguf-forget-"
_LOCK = "lock"
_SECONDS_TO_START = 60.0  # a directory without a lock file is younger than this where its process lives


@contextmanager
def scratch_directory(folder: Path) -> Iterator[Path]:
    """A new directory in ``folder`` while open; those that dead processes left there are removed first.

    Raises InputError where none can be made.
    """
    remove_strays(folder)
    path, descriptor = _claimed(folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _claimed(folder: Path) -> tuple[Path, int]:
    while True:
        try:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        except OSError as error:
            raise _refused(folder, error) from error
        try:
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise _refused(folder, error) from error
        # Where locks are not to be had (some network file systems) nobody else can take one either.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if (path / _LOCK).exists():  # else somebody took it for a stray before the lock was held
            return path, descriptor
        os.close(descriptor)


def _refused(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"nothing can be written in {folder}",
        cause=str(error),
        hint="check that it exists, its permissions and its free space",
    )


def remove_strays(folder: Path) -> list[Path]:
    """Remove the scratch directories in ``folder`` whose process has ended; say which those were."""
    found = [path for path in sorted(folder.glob(f"{PREFIX}*")) if path.is_dir() and not path.is_symlink()]
    return [path for path in found if _removed(path)]


def _removed(path: Path) -> bool:
    try:
        if not (path / _LOCK).exists() and time.time() - path.stat().st_mtime < _SECONDS_TO_START:
            return False
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:  # gone already, or somebody else's
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    except OSError:
        return False
    finally:
        os.close(descriptor)
