"""Hashes of files, against numbers that others made."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_forget.errors import InputError
from gguf_forget.whole_file import AT_ONCE, sha256_file


def test_hashing_a_file_of_several_chunks(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 1_000_000)
    (tmp_path / "z").write_bytes(bytes(AT_ONCE + 1))
    # The first is FIPS 180's own example; the second is `head -c 16777217 /dev/zero | sha256sum`.
    assert sha256_file(tmp_path / "a") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    assert sha256_file(tmp_path / "z") == "1003b1b5dc078189799a1216ce0f9fbcebb94e8b6b83c58c4b03345f07f94ced"
    with pytest.raises(InputError, match="absent cannot be read"):
        sha256_file(tmp_path / "absent")
