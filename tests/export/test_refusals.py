"""What ``gguf-forget quantize`` refuses: nothing that is there is lost, nothing half-written is left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from exported import UP, edited
from safetensors.torch import save_file
from tiny_shapes import shape_weights, write_shape

import gguf_forget.export.twin
from gguf_forget.checkpoint.convert import check_weights, weight_files
from gguf_forget.cli import main
from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.export.inputs import check_models, input_files, opened_pair
from gguf_forget.llama.quantizer import least_bytes, plan_file
from gguf_forget.progress import Progress
from gguf_forget.whole_file import check_folder_writable, check_output, replaced_whole


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    weights = shape_weights("llama")
    return (
        write_shape(tmp_path / "base.gguf", "llama", weights),
        write_shape(tmp_path / "forgets.gguf", "llama", edited(weights)),
    )


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["quantize", *map(str, arguments), "-q"])


def hugging_face(folder: Path, files: dict[str, dict[str, torch.Tensor]], index: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_no_input_is_written_over(models: tuple[Path, Path], tmp_path: Path) -> None:
    for name, option in (("imatrix.dat", "--imatrix"), ("text.txt", "--calibration"), ("facts.jsonl", "--fit")):
        given = tmp_path / name
        given.write_bytes(b"kept")
        with pytest.raises(InputError, match="is one of the inputs"):
            check_output(given, [given])
        result = call(*models, given, "Q4_0", option, given)
        assert result.exit_code == 2, option
        assert given.read_bytes() == b"kept"
    directory = hugging_face(tmp_path / "hf", {"model.safetensors": {"a": torch.zeros(2)}})
    before = (directory / "model.safetensors").read_bytes()
    result = call(directory, directory, directory / "model.safetensors", "Q4_0")
    assert result.exit_code == 2
    assert f"{directory / 'model.safetensors'} is one of the inputs" in result.stderr
    assert (directory / "model.safetensors").read_bytes() == before


def test_a_pipe_is_neither_written_over_nor_read(models: tuple[Path, Path], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = call(*models, pipe, "Q4_0")
    assert result.exit_code == 2
    assert "is a device or a pipe, needed the name of a file" in result.stderr
    with pytest.raises(InputError, match="is a device or a pipe"), replaced_whole(pipe):
        pass
    assert pipe.is_fifo()
    assert "is a device or a pipe" in call(models[0], pipe, tmp_path / "out.gguf", "Q4_0").stderr


def test_places_that_cannot_be_looked_into_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who can look into everything."""

    def refuse(path: Path, **_: object) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="nothing can be written in"):
        check_folder_writable(tmp_path)
    monkeypatch.setattr(Path, "is_dir", refuse)
    monkeypatch.setattr(Path, "is_file", refuse)
    for check in (
        lambda: check_output(tmp_path / "out.gguf"),
        lambda: check_folder_writable(tmp_path),
        lambda: check_models([tmp_path / "model.gguf"]),
    ):
        with pytest.raises(InputError, match="cannot be looked at"):
            check()


@pytest.mark.parametrize("kind", ["q8_k", "Q8_1", "i32", "f64"])
@pytest.mark.parametrize("option", ["--tensor-type", "--output-tensor-type", "--token-embedding-type"])
def test_types_that_llama_cpp_would_end_the_process_for(
    models: tuple[Path, Path], tmp_path: Path, option: str, kind: str
) -> None:
    value = f"ffn_up={kind}" if option == "--tensor-type" else kind
    for more in ((), ("--dry-run",)):
        result = call(*models, tmp_path / "out.gguf", "Q4_0", option, value, *more)
        assert result.exit_code == 2
        assert f"tensor type '{kind}' is none that weights are stored in" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.gguf", "Q4_0", "--tensor-type", "(=q8_0"], "'(' is no regular expression"),
        (["out.gguf", "Q4_0", "--noise", "inf"], "--noise is inf, needed a finite number"),
        (["out.gguf", "Q4_0", "--noise", "nan"], "--noise is nan, needed a finite number"),
        (["Q4_0"], "Q4_0 is the name of a type, needed OUT before it"),
        (["q4_k"], "q4_k is the name of a type, needed OUT before it"),
    ],
)
def test_slips_of_the_command_line(
    models: tuple[Path, Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    result = call(*models, out / arguments[0], *arguments[1:])
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(out.iterdir()) == []


def test_a_place_that_ends_in_a_slash_is_a_directory(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = call(*models, f"{tmp_path / 'new'}/", "Q4_0", "--no-provenance")
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["forgets.Q4_0.gguf"]
    assert "is a file, needed a directory" in call(*models, f"{models[0]}/", "Q4_0").stderr


def test_llama_quantizes_short_names_mean_what_they_mean_there(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = call(*models, tmp_path / "out.gguf", "Q4_K", "--dry-run")
    assert result.exit_code == 0, result.output
    planned = plan_file(models[0], "Q4_K_M")
    first, size, mixture = result.stdout.splitlines()
    assert first == "3 tensors are edited"
    assert size == f"{tmp_path / 'out.gguf'}  Q4_K_M  {planned.bytes:,} bytes"
    counted = {kind: int(count) for count, _, kind in (part.split() for part in mixture.strip().split(", "))}
    kinds = list(planned.types.values())
    assert counted == {kind: kinds.count(kind) for kind in set(kinds)}


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_K_M", "Q3_K_S", "F16", "Q2_K", "TQ2_0"])
def test_a_file_takes_at_least_what_is_said_before_its_plan(models: tuple[Path, Path], file_type: str) -> None:
    weights = sum(values.size for values in shape_weights("llama").values())
    whole = plan_file(models[0], file_type).bytes
    assert 0.4 * whole < least_bytes(file_type, weights) <= whole
    assert least_bytes("IQ2_S", weights) == 0  # most of its tensors are IQ2_XS


def test_room_for_the_files_is_asked_for_before_a_directory_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = hugging_face(tmp_path / "hf", {"model.safetensors": {"a": torch.zeros(32, 1000)}})
    stored = (directory / "model.safetensors").stat().st_size
    needed = 2 * stored + stored // 4 // 32 * 34
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 3, 2 * stored + 1000))
    with (
        pytest.raises(InputError, match=f"at least {needed:,} bytes needed, {2 * stored + 1000:,} free"),
        opened_pair(directory, directory, tmp_path, Progress(), file_types=["Q8_0"]),
    ):
        pass


def test_a_directory_that_lacks_weights_is_named(models: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = {"model-1.safetensors": {"a": torch.zeros(2)}}
    lacking = hugging_face(tmp_path / "hf", tensors, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    result = call(lacking, lacking, tmp_path / "out.gguf", "Q4_0")
    assert result.exit_code == 2
    assert f"{lacking} has no model-2.safetensors, which model.safetensors.index.json names" in result.stderr
    empty = hugging_face(tmp_path / "empty", {})
    assert f"{empty} holds no weights" in call(empty, empty, tmp_path / "out.gguf", "Q4_0").stderr


def test_what_is_wrong_with_a_converted_file_is_said_of_the_directory(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = shape_weights("llama")
    weights[UP] = weights[UP].copy()
    weights[UP][3, 5] = np.nan
    directory = hugging_face(tmp_path / "hf", {"model.safetensors": {"a": torch.zeros(2)}})

    def convert(_directory: Path, out: Path, **_: object) -> None:
        write_shape(out, "llama", weights)

    monkeypatch.setattr("gguf_forget.export.inputs.convert_directory", convert)
    result = call(directory, directory, tmp_path / "out.gguf", "Q4_0")
    assert result.exit_code == 2
    assert str(directory) in result.stderr
    assert ".gguf-forget-" not in result.stderr


@pytest.mark.parametrize("name", [UP, "blk.0.ffn_gate.weight"])
@pytest.mark.parametrize(("factor", "said"), [(1e8, "are too large for"), (np.nan, "are NaN or infinite")])
def test_weights_that_cannot_be_stored_are_named(tmp_path: Path, name: str, factor: float, said: str) -> None:
    weights = shape_weights("llama")
    weights[name] = weights[name] * np.float32(factor)
    original = write_shape(tmp_path / "base.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "forgets.gguf", "llama", edited(shape_weights("llama")) | {name: weights[name]})
    for file_type in ("Q4_0", "Q4_K_M", "F16"):
        result = call(original, unlearned, tmp_path / "out.gguf", file_type)
        assert result.exit_code == 2
        assert f"tensor {name} of {original} holds weights that {said}" in result.stderr


def test_nothing_appears_where_a_companion_fails(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"the old file")
    there = sorted(tmp_path.iterdir())

    def fail(*_: object) -> None:
        raise EvaluationError("not what was asked for")

    monkeypatch.setattr(gguf_forget.export.twin, "read_back", fail)
    result = call(*models, out, "Q4_0", "--twin", "F16", "--evidence", tmp_path / "evidence")
    assert result.exit_code == 3
    assert out.read_bytes() == b"the old file"
    assert sorted(tmp_path.iterdir()) == there


def test_evidence_needs_its_own_room_and_right_to_write(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    real = os.stat
    monkeypatch.setattr(
        "gguf_forget.stages.quantize.os.stat",
        lambda path, **_: os.stat_result((*real(path)[:2], 99 if Path(path) == place else 1, *real(path)[3:])),
    )
    free = {place: 10}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 3, free.get(Path(path), 10**12))
    )
    stock = plan_file(models[0], "Q4_0").bytes
    result = call(*models, tmp_path / "out.gguf", "Q4_0", "--evidence", place / "evidence")
    assert result.exit_code == 2
    assert f"not enough disk space in {place}: {stock:,} bytes needed, 10 free" in result.stderr
    assert not (tmp_path / "out.gguf").exists()


def importance_file(path: Path, values: dict[str, np.ndarray]) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    for name, one in values.items():
        writer.add_tensor(f"{name}.in_sum2", one[None].astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_importance_matrix_of_another_model_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    for name, tensor, value, message in (
        ("other.gguf", "elsewhere.weight", 1.0, "names no tensor of"),
        ("zero.gguf", UP, 0.0, "holds nothing but zeros"),
        ("below.gguf", UP, -1.0, "hold 256 values below 0, needed mean squares"),
    ):
        file = importance_file(tmp_path / name, {tensor: np.full(256, value)})
        result = call(*models, tmp_path / "out.gguf", "Q4_0", "--imatrix", file)
        assert result.exit_code == 2, name
        assert message in result.stderr
    other = importance_file(tmp_path / "x.gguf", {"elsewhere.weight": np.ones(256)})
    arguments = ["diff", *map(str, models), "--type", "Q4_0", "--imatrix", str(other), "-q"]
    assert "names no tensor of" in CliRunner().invoke(main, arguments).stderr


def test_parts_of_the_result_take_no_inputs_place_either(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Their names are known only when the file is split."""
    file = importance_file(tmp_path / "out-00001-of-00002.gguf", {UP: np.ones(256)})
    content = file.read_bytes()
    there = sorted(tmp_path.iterdir())
    result = call(*models, tmp_path / "out.gguf", "Q8_0", "--split-max-size", "1M", "--imatrix", file)
    assert result.exit_code == 2, result.output
    assert f"{file} is one of the inputs" in result.stderr
    assert file.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    ("arguments", "tensor"),
    [
        (["Q4_0", "--token-embedding-type", "IQ2_XXS"], "token_embd.weight"),
        (["IQ2_XXS", "--pure", "--imatrix", "{imatrix}"], "token_embd.weight"),
        (["IQ2_XXS"], "blk.0"),
    ],
)
def test_importances_that_libggml_would_end_the_process_for(
    models: tuple[Path, Path], tmp_path: Path, arguments: list[str], tensor: str
) -> None:
    weights = shape_weights("llama")
    known = {name: np.ones(one.shape[1]) for name, one in weights.items() if one.ndim == 2 and "token" not in name}
    file = importance_file(tmp_path / "imatrix.gguf", known)
    for command in ("quantize", "diff"):
        asked = [argument.format(imatrix=file) for argument in arguments]
        places = [tmp_path / "out.gguf", asked[0]] if command == "quantize" else ["--type", asked[0]]
        result = CliRunner().invoke(main, [command, *map(str, (*models, *places, *asked[1:])), "-q"])
        assert result.exit_code == 2
        assert f"tensor {tensor}" in result.stderr
        assert "needs an importance matrix" in result.stderr


def test_an_entry_of_another_size_for_the_embeddings_is_left_out_everywhere(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    """As llama.cpp does. What is measured of the twin must not read past the entry's end."""
    weights = shape_weights("llama")
    changed = edited(weights)
    changed["token_embd.weight"] = changed["token_embd.weight"] + np.float32(0.02)
    unlearned = write_shape(tmp_path / "all.gguf", "llama", changed)
    known = {UP: np.ones(weights[UP].shape[1])}
    found = []
    for name, more in (("without", {}), ("short", {"token_embd.weight": np.ones(100)})):
        file = importance_file(tmp_path / f"{name}.imatrix", known | more)
        out = tmp_path / f"{name}.gguf"
        result = call(models[0], unlearned, out, "Q4_0", "--twin", "F16", "--imatrix", file, "--json")
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout)["files"][0]["twin"])
    assert found[0]["moved"] > 1000
    assert [found[1][key] for key in ("moved", "kept", "pushed")] == [
        found[0][key] for key in ("moved", "kept", "pushed")
    ]


def test_a_place_for_the_evidence_that_cannot_be_one_is_refused_before_any_work(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    out, folder = tmp_path / "out.gguf", tmp_path / "folder"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    there = sorted(tmp_path.iterdir())
    for places, evidence, message in (
        ([out, "Q4_0"], tmp_path / "link", "is a symbolic link"),
        ([out, "Q4_0"], out, "is a place of the results as well"),
        ([out, "Q4_0"], out / "evidence", "no such directory"),
        ([folder, "Q4_0", "Q8_0"], folder, "is a place of the results as well"),
        ([f"{tmp_path / 'empty'}/", "Q4_0"], tmp_path / "empty", "is a place of the results as well"),
    ):
        result = call(*models, *places, "--evidence", evidence)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert sorted(tmp_path.iterdir()) == there


def test_a_full_disk_at_the_very_end_leaves_nothing(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf_forget.stages.export_evidence.seal", full)
    there = sorted(tmp_path.iterdir())
    result = call(*models, tmp_path / "new", "Q4_0", "Q8_0", "--evidence", tmp_path / "new" / "evidence")
    assert result.exit_code == 2
    assert "cannot be finished\ncause: [Errno 28] No space left on device" in result.stderr
    assert sorted(tmp_path.iterdir()) == there


def test_what_lies_beside_the_weights_is_not_asked_about(tmp_path: Path) -> None:
    tensors = {"model.safetensors": {"a": torch.zeros(2)}, "model-1-of-2.safetensors": {"b": torch.zeros(3)}}
    directory = hugging_face(tmp_path / "hf", tensors, {"a": "model-00001-of-00002.safetensors"})
    (directory / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    assert weight_files(directory) == [directory / "model.safetensors"]
    check_weights(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no model-00001-of-00002"):
        check_weights(directory)
    (directory / "model.safetensors.index.json").unlink()
    assert weight_files(directory) == [directory / "model-1-of-2.safetensors"]


def test_our_own_file_in_an_input_directory_can_be_made_again(tmp_path: Path) -> None:
    directory = hugging_face(tmp_path / "hf", {"model.safetensors": {"a": torch.zeros(2)}})
    (directory / "out.gguf").write_bytes(b"made before")
    check_output(directory / "out.gguf", input_files([directory]))
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(InputError, match="is one of the inputs"):
            check_output(directory / name, input_files([directory]))


def test_a_type_that_needs_an_importance_matrix_is_refused_by_survival(models: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(main, ["survival", str(models[0]), str(models[1]), "IQ2_XXS", "-q"])
    assert result.exit_code == 2
    assert "would be IQ2_XXS, which needs an importance matrix: none is given" in result.stderr
