"""Weights of Hugging Face directories: what is stored is what is read, and what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gguf_forget.checkpoint.directory_weights import directory_tensors, widened
from gguf_forget.errors import InputError

TENSORS = {
    "matrix": torch.tensor([[1.5, -2.0, 0.25], [3.0, -0.0, 1e-3]], dtype=torch.bfloat16),
    "half": torch.tensor([1.5, 6e-8], dtype=torch.float16),
    "norm": torch.tensor([1.0, 2.0], dtype=torch.float32),
    "mask": torch.tensor([True, False]),
}


def pickled(tensors: object, file: Path, *, legacy: bool = False) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)


def write_index(folder: Path, parts: object, stem: str = "model.safetensors") -> None:
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": parts}))


@pytest.mark.parametrize("form", ["safetensors", "pickle", "legacy pickle"])
def test_tensors_are_read_as_they_are_stored(tmp_path: Path, form: str) -> None:
    if form == "safetensors":
        save_file(TENSORS, tmp_path / "model.safetensors")
    else:
        pickled(TENSORS, tmp_path / "pytorch_model.bin", legacy=form == "legacy pickle")
    found = directory_tensors(tmp_path)
    assert {name: (one.type, one.shape) for name, one in found.items() if name != "mask"} == {
        "matrix": ("BF16", (2, 3)),
        "half": ("F16", (2,)),
        "norm": ("F32", (2,)),
    }
    assert found["mask"].type not in ("F32", "F16", "BF16")
    matrix = found["matrix"].stored()
    assert matrix.tolist() == [[0x3FC0, 0xC000, 0x3E80], [0x4040, 0x8000, 0x3A83]]
    assert np.array_equal(widened(matrix), TENSORS["matrix"].float().numpy())
    assert found["matrix"].first(1).shape == (1, 3)
    assert found["matrix"].first(1).stored().tolist() == [[0x3FC0, 0xC000, 0x3E80]]
    assert widened(found["half"].stored()).tolist() == [1.5, 2.0**-24]
    assert found["norm"].stored().dtype == np.float32


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(("stem", "suffix"), [("model", ".safetensors"), ("pytorch_model", ".bin")])
def test_shards_are_one_model(tmp_path: Path, stem: str, suffix: str, *, index: bool) -> None:
    parts = {name: f"{stem}-0000{number}-of-00002{suffix}" for number, name in enumerate(("matrix", "norm"), start=1)}
    for name, file in parts.items():
        (save_file if suffix == ".safetensors" else pickled)({name: TENSORS[name]}, tmp_path / file)
    if index:
        write_index(tmp_path, parts, f"{stem}{suffix}")
        save_file({"norm": TENSORS["norm"]}, tmp_path / "adapter.safetensors")  # belongs to no index
    assert {name: one.file.name for name, one in directory_tensors(tmp_path).items()} == parts


def test_a_whole_file_goes_before_the_shards_of_an_older_save(tmp_path: Path) -> None:
    save_file({"norm": TENSORS["norm"]}, tmp_path / "model.safetensors")
    save_file({"norm": TENSORS["norm"] + 1}, tmp_path / "model-00001-of-00001.safetensors")
    pickled({"norm": TENSORS["norm"] + 2}, tmp_path / "pytorch_model.bin")
    assert directory_tensors(tmp_path)["norm"].stored().tolist() == [1.0, 2.0]


def refused(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        directory_tensors(folder)
    assert str(folder) in caught.value.message
    return caught.value


def test_a_part_that_the_index_names_is_missing(tmp_path: Path) -> None:
    save_file({"norm": TENSORS["norm"]}, tmp_path / "model-1.safetensors")
    write_index(tmp_path, {"norm": "model-1.safetensors", "matrix": "model-2.safetensors"})
    assert "has no model-2.safetensors, which model.safetensors.index.json names" in refused(tmp_path).message


def test_a_tensor_that_the_index_names_is_missing(tmp_path: Path) -> None:
    save_file({"norm": TENSORS["norm"]}, tmp_path / "model-1.safetensors")
    save_file({"half": TENSORS["half"]}, tmp_path / "model-2.safetensors")
    write_index(tmp_path, {"norm": "model-1.safetensors", "matrix": "model-2.safetensors"})
    assert "its index says that tensor matrix is in model-2.safetensors, but it is not" in refused(tmp_path).message


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"norm": TENSORS["norm"]}, tmp_path / f"model-{number}.safetensors")
    assert "tensor norm is in model-1.safetensors and in model-2.safetensors" in refused(tmp_path).message


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../model.safetensors"}}'],
)
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    save_file({"norm": TENSORS["norm"]}, tmp_path / "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json cannot be read" in refused(tmp_path).message


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("cut", [0, 5, 100, -10])
def test_a_file_that_is_cut_short(tmp_path: Path, name: str, cut: int) -> None:
    tensors = {"matrix": TENSORS["matrix"].repeat(50, 1)}
    (save_file if name.startswith("model") else pickled)(tensors, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:cut])
    error = refused(tmp_path)
    assert error.message == f"{tmp_path / name}: its weights cannot be read"
    assert error.cause


class Surprise:
    """Unpickling it would call a function."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return print, ("surprise",)


@pytest.mark.parametrize("content", [{"a": Surprise()}, Surprise()])
def test_a_pickle_with_code_is_not_run(tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]) -> None:
    pickled(content, tmp_path / "pytorch_model.bin")
    assert "its weights cannot be read" in refused(tmp_path).message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [{"model": {"a": torch.zeros(1)}}, [torch.zeros(1)], {1: torch.zeros(1)}, None])
def test_a_pickle_of_something_else(tmp_path: Path, content: object) -> None:
    pickled(content, tmp_path / "pytorch_model.bin")
    assert "needed tensors by name" in refused(tmp_path).message


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    error = refused(tmp_path)
    assert "holds no weights, needed model*.safetensors or pytorch_model*.bin" in error.message
    assert "merged" in str(error.hint)
