"""Two files side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny import TEXTS, build_tiny_gguf

from gguf_forget.checkpoint.comparison import changed_tensors, chat_template_differs, is_split, vocabulary_difference
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.export.derived_file import write_derived

SIZE = {"hidden": 64, "feed_forward": 128, "layers": 1}


def tiny(path: Path, **options: object) -> GgufFile:
    return GgufFile(build_tiny_gguf(path, **{**SIZE, **options}))  # type: ignore[arg-type]


def test_a_file_equals_itself(tmp_path: Path) -> None:
    file, same = tiny(tmp_path / "a.gguf"), tiny(tmp_path / "b.gguf")
    assert vocabulary_difference(file, same) is None
    assert changed_tensors(file, same) == 0
    assert not chat_template_differs(file, same)
    assert not is_split(file)


def test_changed_tensors_are_counted(tmp_path: Path) -> None:
    file = tiny(tmp_path / "a.gguf")
    other = np.zeros(64 * 128, dtype=np.float32).view(np.uint8)
    write_derived(file.path, tmp_path / "b.gguf", metadata={}, tensors={"blk.0.ffn_up.weight": other})
    assert changed_tensors(GgufFile(tmp_path / "b.gguf"), file) == 1
    assert changed_tensors(tiny(tmp_path / "c.gguf", seed=1), file) == len(file.tensors)
    assert changed_tensors(tiny(tmp_path / "d.gguf", layers=2), file) is not None


def test_a_tensor_that_one_file_lacks_or_shapes_otherwise_counts(tmp_path: Path) -> None:
    file, untied = tiny(tmp_path / "a.gguf"), tiny(tmp_path / "b.gguf", tied=False)
    assert changed_tensors(file, untied) == changed_tensors(untied, file) == 1
    # Three matrices, and the final norm, whose random numbers come after theirs.
    assert changed_tensors(file, tiny(tmp_path / "c.gguf", feed_forward=256)) == 4


def test_one_part_of_a_split_file_cannot_be_compared(tmp_path: Path) -> None:
    file = tiny(tmp_path / "a.gguf")
    write_derived(file.path, tmp_path / "part.gguf", metadata={"split.count": 2}, tensors={})
    assert is_split(GgufFile(tmp_path / "part.gguf"))
    assert changed_tensors(GgufFile(tmp_path / "part.gguf"), file) is None


def test_the_first_difference_of_the_vocabularies_is_named(tmp_path: Path) -> None:
    file, other = tiny(tmp_path / "a.gguf"), tiny(tmp_path / "b.gguf", texts=TEXTS[:3])
    found = vocabulary_difference(other, file)
    assert found is not None
    assert "tokenizer.ggml.tokens has " in found
    raw = file.path.read_bytes().replace(b"smollm", b"qwen22")
    (tmp_path / "c.gguf").write_bytes(raw)
    assert vocabulary_difference(GgufFile(tmp_path / "c.gguf"), file) == (
        "tokenizer.ggml.pre is 'qwen22', the original's 'smollm'"
    )
