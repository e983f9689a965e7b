"""Importance matrices: both forms read alike, and llama.cpp quantizes with them as it does with its own."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_forget.errors import InputError
from gguf_forget.llama.imatrix import read_importance

SQUARES = {
    "blk.0.ffn_up.weight": np.array([[2.0, 4.0, 6.0]], np.float32),
    "blk.0.ffn_up_exps.weight": np.array([[1.0, 2.0], [3.0, 5.0]], np.float32),
}
COUNTS = {"blk.0.ffn_up.weight": [2.0], "blk.0.ffn_up_exps.weight": [0.0, 4.0]}


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["europe.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    for name, sums in SQUARES.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.array(COUNTS[name], np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_legacy(path: Path) -> Path:
    content = struct.pack("<i", 1)
    name = b"blk.0.ffn_up.weight"
    content += struct.pack("<i", len(name)) + name + struct.pack("<ii", 2, 3)
    content += np.array([2.0, 4.0, 6.0], "<f4").tobytes()
    content += struct.pack("<i", 7) + struct.pack("<i", 10) + b"europe.txt"
    path.write_bytes(content)
    return path


def test_the_gguf_form_divides_by_each_experts_count(tmp_path: Path) -> None:
    found = read_importance(write_gguf(tmp_path / "imatrix.gguf"))
    assert found.values["blk.0.ffn_up.weight"].tolist() == [1.0, 2.0, 3.0]
    assert found.values["blk.0.ffn_up_exps.weight"].tolist() == [1.0, 1.0, 0.75, 1.25]  # no token: all alike
    assert (found.datasets, found.chunks) == (("europe.txt",), 7)


def test_the_legacy_form_divides_by_the_calls(tmp_path: Path) -> None:
    found = read_importance(write_legacy(tmp_path / "imatrix.dat"))
    assert {name: values.tolist() for name, values in found.values.items()} == {"blk.0.ffn_up.weight": [1.0, 2.0, 3.0]}
    assert (found.datasets, found.chunks) == (("europe.txt",), 7)


@pytest.mark.parametrize("kept", [0, 3, 20, 33, -12, -3])
def test_a_file_cut_short_is_no_importance_matrix(tmp_path: Path, kept: int) -> None:
    path = write_legacy(tmp_path / "imatrix.dat")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="is no importance matrix"):
        read_importance(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_importance(tmp_path / "absent.dat")
    other = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(other, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="is no importance matrix") as caught:
        read_importance(other)
    assert "needed 'imatrix'" in str(caught.value.cause)


def test_importances_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "imatrix.dat")
    content = path.read_bytes().replace(np.float32(4.0).tobytes(), np.float32(np.nan).tobytes())
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"importances of blk\.0\.ffn_up\.weight hold 1 values that are not finite"):
        read_importance(path)


def test_an_array_longer_than_the_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "imatrix.gguf")
    raw = path.read_bytes()
    key, value = b"bomb", struct.pack("<IIQ", 9, 0, 1 << 62)  # an array of so many bytes
    (keys,) = struct.unpack_from("<Q", raw, 16)
    path.write_bytes(raw[:16] + struct.pack("<QQ", keys + 1, len(key)) + key + value + raw[24:])
    with pytest.raises(InputError, match="is not a readable GGUF") as caught:
        read_importance(path)
    assert f"an array of {1 << 62} elements" in str(caught.value.cause)


def test_a_key_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.datasets", 3)
    writer.add_tensor("blk.0.ffn_up.weight.in_sum2", SQUARES["blk.0.ffn_up.weight"])
    writer.add_tensor("blk.0.ffn_up.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="is no importance matrix"):
        read_importance(path)
