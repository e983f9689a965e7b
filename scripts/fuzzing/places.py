"""Places that cannot be written: a folder without permission, and a disk that is full."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def sealed(folder: Path) -> Iterator[None]:
    """``folder`` cannot be written inside the block: to root nothing is forbidden, so root becomes nobody for it."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], object]]:
    """An empty ``folder`` with room for ``size`` bytes inside the block; what is given makes it roomy.

    A tmpfs where the system lets us mount one. Elsewhere no file may become larger than ``size``.
    """

    def mount(*options: str) -> bool:
        command = ["mount", *options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if os.geteuid() == 0 and mount("-t", "tmpfs", "-o", f"size={size}"):
        try:
            yield lambda: mount("-o", "remount,size=1g")
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
