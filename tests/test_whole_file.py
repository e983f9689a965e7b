"""Hashes of files, against numbers that others made; places for results."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_forget.errors import InputError
from gguf_forget.whole_file import AT_ONCE, check_outputs, sha256_file


def test_hashing_a_file_of_several_chunks(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 1_000_000)
    (tmp_path / "z").write_bytes(bytes(AT_ONCE + 1))
    # The first is FIPS 180's own example; the second is `head -c 16777217 /dev/zero | sha256sum`.
    assert sha256_file(tmp_path / "a") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    assert sha256_file(tmp_path / "z") == "1003b1b5dc078189799a1216ce0f9fbcebb94e8b6b83c58c4b03345f07f94ced"
    with pytest.raises(InputError, match="absent cannot be read"):
        sha256_file(tmp_path / "absent")


def test_outputs_are_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    check_outputs((tmp_path / "a", None, tmp_path / "b"), [tmp_path / "in"])
    check_outputs((tmp_path / "in",))  # an earlier result
    for outputs, message in (
        ((tmp_path / "a", tmp_path / "." / "a"), "is named for two results"),
        ((tmp_path / "in",), "is one of the inputs"),
        ((tmp_path / "a", tmp_path / "link"), "is one of the inputs"),
        ((tmp_path / "none" / "a",), "no such directory"),
        ((tmp_path,), "is a directory"),
        ((tmp_path / "loop", tmp_path / "a", tmp_path / "loop"), "is named for two results"),
    ):
        with pytest.raises(InputError, match=message):
            check_outputs(outputs, [tmp_path / "in"])
