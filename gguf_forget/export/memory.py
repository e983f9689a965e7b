"""Memory for the many arrays of a megabyte that an export makes and drops."""

from __future__ import annotations

import numpy as np

_LARGE = 31 << 20  # bytes; glibc learns from no block of 32 MiB or more


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed for the next array, up to 64 MiB a thread.

    A young process gives such memory back at once, and every page of the next array has to be mapped and cleared again:
    a tenth to a fifth of an export's time. malloc changes its mind when a large block is freed that it had mapped by
    itself (``M_MMAP_THRESHOLD`` in mallopt(3), "dynamic"); most programs free one some time. Elsewhere this does
    nothing.
    """
    np.empty(_LARGE, dtype=np.uint8)  # freed at once, never touched
