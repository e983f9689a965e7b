"""A derived GGUF: byte-identical without an edit, keys added, tensors replaced, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.errors import InputError
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.edit import ROWS, NeuronEdit
from gguf_forget.export.ship import ship
from gguf_forget.llama.quantizer import quantize
from gguf_forget.llama.scorer import Scorer


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_gguf(tmp_path_factory.mktemp("model") / "template.gguf")


@pytest.mark.parametrize("file_type", ["F16", "Q8_0", "Q4_K_M", "Q4_0"])
def test_an_empty_edit_gives_the_stock_file_byte_for_byte(template: Path, tmp_path: Path, file_type: str) -> None:
    stock, out = tmp_path / "stock.gguf", tmp_path / "out.gguf"
    quantize(template, stock, file_type)
    nothing = NeuronEdit(
        "blk.0.ffn_up.weight", ROWS, np.array([3]), np.zeros((1, 256), np.float32), np.ones((1, 256), bool)
    )
    ship(template, stock, out, [nothing], hessians={}, metadata={"gguf_forget.version": "0"})
    assert out.read_bytes() == stock.read_bytes()


def test_keys_are_added_and_all_else_stays(template: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    added = {
        "gguf_forget.text": "x" * 5000,
        "gguf_forget.count": 7,
        "gguf_forget.share": 0.25,
        "gguf_forget.on": True,
    }
    write_derived(template, out, metadata=added, tensors={})
    before, after = GgufFile(template), GgufFile(out)
    for key, value in added.items():
        assert after.value(key) == value
    for key, field in before.reader.fields.items():
        if not key.startswith("GGUF."):
            assert after.value(key) == field.contents()
    assert list(after.tensors) == list(before.tensors)
    for name in before.tensors:
        assert np.array_equal(after.weights(name), before.weights(name))
    with Scorer(template, cells=64, max_sequences=1) as one, Scorer(out, cells=64, max_sequences=1) as other:
        tokens = one.tokenize("The capital of France is")
        first, second = (
            one.sequence_log_probabilities([tokens])[0],
            other.sequence_log_probabilities([tokens])[0],
        )
    assert np.array_equal(first, second)


def test_one_tensor_is_replaced_and_its_neighbours_are_not(template: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "out.gguf", "blk.1.ffn_down.weight"
    new = GgufFile(template).weights(name) + np.float32(1)
    write_derived(template, out, metadata={}, tensors={name: new.view(np.uint8)})
    before, after = GgufFile(template), GgufFile(out)
    for tensor in before.tensors:
        expected = new if tensor == name else before.weights(tensor)
        assert np.array_equal(after.weights(tensor), expected)


def test_a_key_that_is_there_already_is_refused(template: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has the key llama\.block_count already"):
        write_derived(template, tmp_path / "first.gguf", metadata={"llama.block_count": 3}, tensors={})
    assert list(tmp_path.iterdir()) == []


def test_keys_of_an_earlier_request_give_way_to_those_of_the_later_one(template: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.gguf" for name in ("first", "second", "third"))
    write_derived(template, first, metadata={"gguf_forget.version": "1", "gguf_forget.survive": "all"}, tensors={})
    write_derived(first, second, metadata={"gguf_forget.version": "2"}, tensors={})
    assert GgufFile(second).value("gguf_forget.version") == "2"
    assert GgufFile(second).value("gguf_forget.survive", None) is None
    write_derived(first, third, metadata={"general.name": "other"}, tensors={})  # says nothing of a request
    assert GgufFile(third).value("gguf_forget.survive") == "all"


def test_bytes_of_the_wrong_length_are_refused(template: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"new bytes for blk\.0\.ffn_up\.weight: 4, needed"):
        write_derived(
            template, tmp_path / "o.gguf", metadata={}, tensors={"blk.0.ffn_up.weight": np.zeros(4, np.uint8)}
        )
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_before_anything_is_written(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 3, 7))
    with pytest.raises(InputError, match="has 7 bytes free, needed"):
        write_derived(template, tmp_path / "o.gguf", metadata={}, tensors={})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_midway_leaves_nothing(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_derived(template, tmp_path / "o.gguf", metadata={}, tensors={})
    assert "No space left" in str(caught.value.cause)
    assert list(tmp_path.iterdir()) == []
