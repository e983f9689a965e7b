"""A GGUF is read without trust: what is damaged is refused by name, what is whole is read to the bit."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.errors import InputError


def small(path: Path) -> Path:
    """Three tensors of three types, an F16 row and metadata of several kinds."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("name", "x")
    writer.add_uint32("count", 7)
    writer.add_array("list", ["a", "b", "ç"])
    writer.add_tensor("single", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("half", np.array([[0.5, -2.0, 65504.0]], dtype=np.float16))
    truncated = (np.array([[1.0, -0.00390625]], dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    writer.add_tensor("brain", truncated.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("q8.weight", np.zeros((4, 34), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("norm", np.ones(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_weights(tmp_path: Path) -> None:
    file = GgufFile(small(tmp_path / "a.gguf"))
    assert file.text("general.architecture") == "llama"
    assert file.value("count") == 7
    assert file.value("list") == ["a", "b", "ç"]
    assert file.value("none") is None
    assert file.value("none", 3) == 3
    assert list(file.tensors) == ["single", "half", "brain", "q8.weight", "norm"]
    assert file.weights("single").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert file.weights("half").tolist() == [[0.5, -2.0, 65504.0]]
    assert file.weights("brain").tolist() == [[1.0, -0.00390625]]
    assert file.weights("norm").tolist() == [1.0, 1.0, 1.0]
    assert {file.weights(name).dtype for name in ("single", "half", "brain")} == {np.dtype(np.float32)}
    assert file.type_name("q8.weight") == "Q8_0"
    assert file.rows("q8.weight").shape == (4, 34)
    assert file.rows("half").tobytes() == np.array([0.5, -2.0, 65504.0], dtype=np.float16).tobytes()


def test_what_is_asked_for_wrongly(tmp_path: Path) -> None:
    file = GgufFile(small(tmp_path / "a.gguf"))
    with pytest.raises(InputError, match=r"a\.gguf has no tensor blk\.0"):
        file.tensor("blk.0")
    with pytest.raises(InputError, match=r"q8\.weight is Q8_0, needed F32, F16 or BF16"):
        file.weights("q8.weight")
    with pytest.raises(InputError, match="norm has 1 dimensions, needed 2"):
        file.rows("norm")
    with pytest.raises(InputError, match="metadata count is 7, needed a string"):
        file.text("count")
    with pytest.raises(InputError, match="metadata none is None, needed a string"):
        file.text("none")


def test_a_missing_file_a_directory_and_another_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.gguf cannot be read"):
        _ = GgufFile(tmp_path / "none.gguf").reader
    with pytest.raises(InputError, match="cannot be read"):
        _ = GgufFile(tmp_path).reader
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4 and so on")
    with pytest.raises(InputError, match=r"x\.gguf starts with b'PK.*', needed b'GGUF'"):
        _ = GgufFile(tmp_path / "x.gguf").reader
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.gguf starts with b'', needed b'GGUF'"):
        _ = GgufFile(tmp_path / "empty.gguf").reader


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    raw = small(tmp_path / "a.gguf").read_bytes()
    end = len(raw.rstrip(b"\0")) - 8  # the tensors end in ones, then padding
    cut = tmp_path / "cut.gguf"
    for size in [*range(4, end, 7), end]:
        cut.write_bytes(raw[:size])
        with pytest.raises(InputError, match=r"cut\.gguf") as caught:
            _ = GgufFile(cut).tensors
        assert "cut short or damaged" in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "field", "value"),
    [
        (4, "<I", 99),  # version
        (8, "<Q", 2**40),  # number of tensors
        (16, "<Q", 2**40),  # number of keys
        (24, "<Q", 2**62),  # length of the first key
        (24 + 8 + 20, "<I", 77),  # type of the first value
    ],
)
def test_a_damaged_header_is_refused_by_name(tmp_path: Path, offset: int, field: str, value: int) -> None:
    raw = bytearray(small(tmp_path / "a.gguf").read_bytes())
    assert raw[32:52] == b"general.architecture"
    struct.pack_into(field, raw, offset, value)
    (tmp_path / "bad.gguf").write_bytes(raw)
    with pytest.raises(InputError, match=r"bad\.gguf is not a readable GGUF"):
        _ = GgufFile(tmp_path / "bad.gguf").reader


def test_a_string_that_is_not_utf8_is_refused_by_key(tmp_path: Path) -> None:
    raw = small(tmp_path / "a.gguf").read_bytes()
    place = raw.index(b"\xc3\xa7")
    (tmp_path / "bad.gguf").write_bytes(raw[:place] + b"\xff\xff" + raw[place + 2 :])
    with pytest.raises(InputError, match=r"bad\.gguf: metadata list is not UTF-8"):
        GgufFile(tmp_path / "bad.gguf").value("list")
