"""Memory of the present process; standard library alone, for any environment."""

from __future__ import annotations

import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path

SECONDS_BETWEEN_SAMPLES = 0.01


def status(field: str) -> int | None:
    """A field of /proc/self/status (Linux), in bytes; None elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def reset_peak() -> None:
    """Let the peak start anew from what is resident now; only Linux can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Largest resident size since the reset, in bytes.

    Not ``ru_maxrss`` where it can be helped: that never falls again after loading, and on Linux a child
    starts with its parent's.
    """
    largest = status("VmHWM")
    if largest is None:
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return largest


def beyond_page_cache() -> int:
    """Resident bytes that no file holds: RssAnon + RssShmem on Linux, elsewhere all that is resident."""
    anonymous = status("RssAnon")
    return peak() if anonymous is None else anonymous + (status("RssShmem") or 0)


class PeakBeyondPageCache:
    """The most that :func:`beyond_page_cache` gave while open, looked at a hundred times a second, in ``bytes``.

    The kernel keeps no such peak, so one that lasts less than a hundredth of a second may be missed.
    """

    def __enter__(self) -> PeakBeyondPageCache:
        self.bytes = beyond_page_cache()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, beyond_page_cache())

    def _watch(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_SAMPLES):
            self.bytes = max(self.bytes, beyond_page_cache())
