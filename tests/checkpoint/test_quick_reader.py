"""The quick reader against gguf-py's own, part by part."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFReader

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.quick_reader import OutlineReader, QuickReader, quick_gguf
from gguf_forget.errors import InputError


def write(path: Path, endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE) -> Path:
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    writer.add_array("words", ["", "Zürich", "a" * 1000, "\0"])
    writer.add_array("numbers", [3, -1, 7])
    writer.add_array("fractions", [0.5, 1e-30])
    writer.add_array("truths", [True, False])
    writer.add_string("single", "one")
    writer.add_float64("double", 2.5)
    writer.add_tensor("weights", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def same_fields(quick: GGUFReader, slow: GGUFReader) -> None:
    assert list(quick.fields) == list(slow.fields)
    for name, field in slow.fields.items():
        found = quick.fields[name]
        assert (found.offset, found.data, found.types) == (field.offset, field.data, field.types)
        assert [(p.dtype, p.tobytes()) for p in found.parts] == [(p.dtype, p.tobytes()) for p in field.parts]
        assert found.contents() == field.contents()
    for mine, theirs in zip(quick.tensors, slow.tensors, strict=True):
        assert (mine.name, mine.data_offset, mine.tensor_type) == (theirs.name, theirs.data_offset, theirs.tensor_type)
        np.testing.assert_array_equal(mine.data, theirs.data)


@pytest.mark.parametrize("endianess", list(gguf.GGUFEndian))
def test_every_kind_of_field(tmp_path: Path, endianess: gguf.GGUFEndian) -> None:
    path = write(tmp_path / "fields.gguf", endianess)
    same_fields(QuickReader(path), GGUFReader(path))
    assert QuickReader(path).fields["words"].contents() == ["", "Zürich", "a" * 1000, "\0"]


@pytest.mark.parametrize("endianess", list(gguf.GGUFEndian))
def test_an_outline_leaves_out_arrays_and_nothing_else(tmp_path: Path, endianess: gguf.GGUFEndian) -> None:
    path = write(tmp_path / "fields.gguf", endianess)
    outline, whole = OutlineReader(path), QuickReader(path)
    assert list(outline.fields) == list(whole.fields)
    for name in ("words", "numbers", "fractions", "truths"):
        assert outline.fields[name].data == []
    for name in ("single", "double", "general.architecture"):
        assert outline.fields[name].contents() == whole.fields[name].contents()
    assert (outline.data_offset, outline.alignment) == (whole.data_offset, whole.alignment)
    np.testing.assert_array_equal(outline.tensors[0].data, whole.tensors[0].data)


def test_a_whole_model(tiny_gguf: Path) -> None:
    same_fields(QuickReader(tiny_gguf), GGUFReader(tiny_gguf))


@pytest.mark.parametrize("outline", [False, True])
def test_an_array_that_goes_past_the_end_is_refused(tmp_path: Path, outline: bool) -> None:
    """Cut at every byte of the arrays, and with counts and lengths that no file could hold."""
    raw = write(tmp_path / "whole.gguf").read_bytes()
    end = raw.index(b"single")
    cut = tmp_path / "cut.gguf"
    for size in range(24, end, 7):
        cut.write_bytes(raw[:size])
        with pytest.raises(InputError, match=r"cut\.gguf is not a readable GGUF"):
            _ = GgufFile(cut, outline).reader
    for key, at in ((b"words", 4), (b"numbers", 4), (b"words", 12)):
        place = raw.index(key) + len(key) + 4 + at
        cut.write_bytes(raw[:place] + b"\xff\xff\xff\xff\xff\xff\xff\x7f" + raw[place + 8 :])
        with pytest.raises(InputError, match=r"cut\.gguf is not a readable GGUF"):
            _ = GgufFile(cut, outline).reader


def test_gguf_is_as_it_was_afterwards() -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map

    def inside() -> None:
        assert gguf.GGUFReader is QuickReader
        first = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is first
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"), quick_gguf():
        inside()
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
