"""Memory that is refused is no fault of the program: one clear error, exit code 2."""

from __future__ import annotations

import pytest

from gguf_forget.cli.common import guarded

TORCH = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "8 bytes. Error code 12 (Cannot allocate memory)\nstack"
)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError(TORCH), 2, "error: there is not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "error: there is not enough memory"),
        (MemoryError(), 2, "error: there is not enough memory"),
        (RuntimeError("shapes differ"), 3, "error: unexpected RuntimeError: shapes differ"),
        (ValueError("out of memory"), 3, "error: unexpected ValueError"),
    ],
)
def test_memory_that_is_refused(error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded(work, debug=False)
    assert ended.value.code == code
    found = capsys.readouterr().err
    assert found.startswith(said)
    assert ("unlearn.accumulation" in found) == (code == 2)
    assert "Traceback" not in found
    assert "stack" not in found
