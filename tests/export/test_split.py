"""A model in several files is the same model: read by gguf-py, by us and by llama.cpp."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.stored import files_of, stored_tensors
from gguf_forget.errors import InputError
from gguf_forget.export.quantize import publish
from gguf_forget.export.split import groups_as_in, groups_by_size, parse_size, write_split
from gguf_forget.llama.quantizer import quantize
from gguf_forget.llama.scorer import Scorer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    quantize(build_tiny_gguf(folder / "f32.gguf"), folder / "whole.gguf", "Q4_K_M", threads=1)
    return folder / "whole.gguf"


def test_the_parts_are_the_model(whole: Path, tmp_path: Path) -> None:
    most = 200_000
    groups = groups_by_size(whole, most)
    parts = write_split(whole, groups, tmp_path / "m.gguf")
    count = len(groups)
    assert [part.name for part in parts] == [f"m-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
    assert count > 2
    before, after = stored_tensors(whole), stored_tensors(parts[0])
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert (after[name].type, after[name].shape) == (tensor.type, tensor.shape)
        np.testing.assert_array_equal(after[name].raw, tensor.raw)
    sizes = [[before[name].raw.nbytes for name in group] for group in groups]
    assert all(sum(group) <= most or len(group) == 1 for group in sizes)
    assert files_of(parts[0]) == parts
    assert groups_as_in(parts[0]) == groups
    first, second = gguf.GGUFReader(parts[0]), gguf.GGUFReader(parts[1])
    for key, field in gguf.GGUFReader(whole).fields.items():
        if not key.startswith("GGUF."):
            assert first.fields[key].contents() == field.contents()
    numbers = ["split.no", "split.tensors.count", "split.count"]
    assert [first.fields[key].contents() for key in numbers] == [0, len(before), count]
    assert [second.fields[key].contents() for key in numbers] == [1, len(before), count]
    assert [key for key in second.fields if not key.startswith("GGUF.")] == numbers
    with Scorer(whole, cells=64, max_sequences=1) as one, Scorer(parts[0], cells=64, max_sequences=1) as other:
        tokens = one.tokenize("The capital of France is")
        found = [scorer.sequence_log_probabilities([tokens])[0] for scorer in (one, other)]
    np.testing.assert_array_equal(found[0], found[1])


def test_old_and_new_files_are_never_one_model(whole: Path, tmp_path: Path) -> None:
    groups = groups_by_size(whole, 200_000)
    (tmp_path / "new").mkdir()
    parts = write_split(whole, groups, tmp_path / "new" / "m.gguf")
    places = [tmp_path / part.name for part in parts]
    for place in places:
        place.write_bytes(b"old")
    parts[1].unlink()  # so that publishing fails half-way
    with pytest.raises(FileNotFoundError):
        publish(parts, tmp_path / "m.gguf")
    assert not places[0].exists()
    assert places[1].read_bytes() == b"old"
    assert places[-1].read_bytes() != b"old"


def test_sizes() -> None:
    assert (parse_size("300M"), parse_size("2g")) == (300_000_000, 2_000_000_000)
    for wrong in ("2", "0G", "1.5G", "2K", "", "-1M"):
        with pytest.raises(InputError, match="needed a number and M or G"):
            parse_size(wrong)
