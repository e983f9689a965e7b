"""``gguf-forget diff`` as a person or a script calls it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from converter_stand_in import install_stand_in, model_directory
from gguf_with import copy_with
from tiny_shapes import shape_weights, write_shape

from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.cli import main
from gguf_forget.export.scratch import PREFIX
from gguf_forget.llama.quantizer import quantize

UP, NORM = "blk.0.ffn_up.weight", "output_norm.weight"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["diff", *map(str, arguments), "-q"])


def measured(*arguments: object) -> dict[str, tuple[str | None, float | None]]:
    """Tensor that differs to the type whose steps are used, and the ratio."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    tensors = json.loads(result.stdout)["tensors"]
    return {tensor["tensor"]: (tensor["grid"], tensor["step_to_update"]) for tensor in tensors}


def write_importance(path: Path) -> Path:
    """Of one tensor, in the legacy form; unlike enough to give other steps."""
    values = np.random.default_rng(0).exponential(size=256).astype("<f4") ** 4
    content = struct.pack("<ii", 1, len(UP)) + UP.encode() + struct.pack("<ii", 1, values.size) + values.tobytes()
    path.write_bytes(content)
    return path


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Every seventh weight of a matrix is edited, and one of a norm."""
    weights = shape_weights("llama")
    changed = weights | {UP: weights[UP].copy(), NORM: weights[NORM].copy()}
    changed[UP][::5, ::7] += 0.001
    changed[NORM][3] += 1
    return (
        write_shape(tmp_path / "base.gguf", "llama", weights),
        write_shape(tmp_path / "forgets.gguf", "llama", changed),
    )


def test_it_prints_a_table_or_json(models: tuple[Path, Path], tmp_path: Path) -> None:
    base = models[0]
    quantize(base, tmp_path / "a.gguf", "Q8_0", threads=1)
    quantize(base, tmp_path / "b.gguf", "Q4_K_M", threads=1)
    result = call(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert result.exit_code == 0, result.output
    assert "Q8_0 → Q4_K" in result.stdout
    q8, q4 = gguf.LlamaFileType.MOSTLY_Q8_0.value, gguf.LlamaFileType.MOSTLY_Q4_K_M.value
    assert f"~ general.file_type = {q8} → {q4}" in result.stdout
    document = json.loads(call(base, base, "--json").stdout)
    assert (document["schema_version"], document["tensors"], document["same"]) == (1, [], len(stored_tensors(base)))
    result = call(base, tmp_path / "absent.gguf")
    assert result.exit_code == 2
    assert "absent.gguf does not exist" in result.stderr


def test_two_q8_0_files_are_measured_and_what_is_not_is_named(models: tuple[Path, Path], tmp_path: Path) -> None:
    eights = [tmp_path / f"{model.stem}.Q8_0.gguf" for model in models]
    fours = [tmp_path / f"{model.stem}.Q4_0.gguf" for model in models]
    for model, eight, four in zip(models, eights, fours, strict=True):
        quantize(model, eight, "Q8_0", threads=1)
        quantize(model, four, "Q4_0", threads=1)
    picture = tmp_path / "both.svg"
    result = call(*eights, "--type", "q4_k_m", "--plot", picture)
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stdout.splitlines() if line.lstrip().startswith(UP))
    assert "Q8_0 on Q4_K" in line
    assert " codes " in line
    assert line.rstrip().endswith("×")
    assert f"not measured, no steps known in Q4_K_M: {NORM}\n" in result.stdout
    assert "not in full precision" not in result.stdout
    assert picture.read_text().startswith("<?xml")
    result = call(*fours, "--type", "Q4_K_M")
    assert result.exit_code == 0, result.output
    assert f"not measured, not in full precision (F32, F16, BF16, Q8_0): {UP}\n" in result.stdout
    assert "×" not in result.stdout
    assert "not measured" not in call(*fours).stdout


def test_the_options_of_quantize_choose_the_grid(models: tuple[Path, Path], tmp_path: Path) -> None:
    plain = measured(*models, "--type", "Q4_K_M")
    assert plain[NORM] == (None, None)
    kind, ratio = plain[UP]
    assert kind == "Q4_K"
    assert ratio is not None
    assert measured(*models, "--type", "Q4_K_M", "--tensor-type", "ffn_up=q8_0")[UP][0] == "Q8_0"
    importance = write_importance(tmp_path / "some.imatrix")
    other = measured(*models, "--type", "Q4_K_M", "--imatrix", importance)[UP]
    assert other[0] == "Q4_K"
    assert other[1] != ratio
    # The embeddings are the output here, which a mixture keeps finer.
    weights = shape_weights("llama")
    weights["token_embd.weight"] += np.float32(0.001)
    pair = (models[0], write_shape(tmp_path / "embeddings.gguf", "llama", weights))
    for options, wanted in (
        ([], "Q6_K"),
        (["--pure"], "Q4_K"),
        (["--token-embedding-type", "q5_k"], "Q5_K"),
    ):
        found = measured(*pair, "--type", "Q4_K_M", *options)
        assert {name: kind for name, (kind, _) in found.items()} == {"token_embd.weight": wanted}
    untied = [
        write_shape(tmp_path / f"{name}.gguf", "llama", shape_weights("llama") | {"output.weight": values})
        for name, values in (("zeros", weights["token_embd.weight"]), ("ones", weights["token_embd.weight"] + 0.01))
    ]
    assert measured(*untied, "--type", "Q4_K_M", "--output-tensor-type", "q5_k")["output.weight"][0] == "Q5_K"


def test_names_and_metadata_are_printed_as_they_are_and_control_characters_escaped(tmp_path: Path) -> None:
    weights = shape_weights("llama")
    names = ("blk[/x].weight", "a[red]b.weight", "c\x1b[2Jd.weight")
    files = [
        write_shape(tmp_path / f"{name}.gguf", "llama", weights | {**dict.fromkeys(names, values), own: values})
        for name, own, values in (
            ("a", "e\x1b[31mf", np.zeros((2, 256), np.float32)),
            ("b", "g\n10 tensors are the same", np.ones((2, 256), np.float32)),
        )
    ]
    files[1] = copy_with(files[1], tmp_path / "c.gguf", {"tokenizer.ggml.model": "[bold]x\x1b]0;y\x07\nz"})
    result = call(*files)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    for shown in ("blk[/x].weight", "a[red]b.weight", r"c\x1b[2Jd.weight"):
        assert [shown, "F32", "512", "512", "100.000%"] in lines
    assert r"only in A: e\x1b[31mf" in result.stdout.splitlines()
    assert r"only in B: g\n10 tensors are the same" in result.stdout.splitlines()
    assert r"~ tokenizer.ggml.model = no_vocab → [bold]x\x1b]0;y\x07\nz" in result.stdout.splitlines()
    assert not {"\x1b", "\x07"} & {*result.stdout}


def test_a_converter_for_two_ggufs_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = call(*models, "--llama-cpp", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: --llama-cpp {tmp_path} beside two GGUFs: nothing is converted\n")
    absent = call(models[0], tmp_path / "absent.gguf", "--llama-cpp", tmp_path)
    assert "absent.gguf does not exist" in absent.stderr


def test_options_of_a_grid_without_a_type_are_refused(models: tuple[Path, Path]) -> None:
    result = call(*models, "--pure", "--tensor-type", "ffn_up=q8_0")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --pure, --tensor-type without --type: no grid is measured\n")
    result = call(*models, "--type", "Q4_K_M", "--imatrix", models[0])
    assert result.exit_code == 2
    assert "is no importance matrix" in result.stderr


@pytest.mark.parametrize("way", ["itself", "symlink", "hard link", "part", "importance", "directory"])
def test_a_picture_in_place_of_an_input_is_refused_before_any_work(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("gguf_forget.stages.difference.difference", lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.setattr("gguf_forget.stages.difference.as_ggufs", lambda *_, **__: pytest.fail("work was done"))
    before, after = models
    picture, options = tmp_path / "in.png", []
    if way == "itself":
        before = before.rename(picture)
    elif way == "symlink":
        picture.symlink_to(before)
    elif way == "hard link":
        os.link(after, picture)
    elif way == "part":
        weights = shape_weights("llama")
        names = list(weights)
        parts = [
            write_shape(
                tmp_path / f"model-0000{i + 1}-of-00002.gguf",
                "llama",
                {name: weights[name] for name in some},
                split=(i, 2, len(names)),
            )
            for i, some in enumerate((names[:8], names[8:]))
        ]
        before = parts[0]
        picture.symlink_to(parts[1])
    elif way == "importance":
        options = ["--type", "Q4_K_M", "--imatrix", write_importance(picture)]
    else:
        before = model_directory(tmp_path / "model", before, "the original's")
        picture.symlink_to(before / "model.safetensors")
    found = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = call(before, after, *options, "--plot", picture)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: {picture} is one of the inputs\n")
    assert result.stdout == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("updates.pdf", "needed .png or .svg"),
        ("folder.png", "folder.png is a directory"),
        ("absent/updates.png", "no such directory"),
    ],
)
def test_pictures_that_cannot_be_are_refused_before_any_work(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr("gguf_forget.stages.difference.difference", lambda *_, **__: pytest.fail("work was done"))
    (tmp_path / "folder.png").mkdir()
    result = call(*models, "--plot", tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr


def test_another_picture_is_drawn_again(models: tuple[Path, Path], tmp_path: Path) -> None:
    picture = tmp_path / "updates.png"
    picture.write_bytes(b"of yesterday")
    assert call(*models, "--type", "q4_k_s", "--plot", picture).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_directories_are_converted_as_for_quantize(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    install_stand_in(tmp_path / "cache", monkeypatch)
    folders = [
        model_directory(tmp_path / name, model, tokenizer)
        for name, model, tokenizer in zip(("a", "b"), models, ("the original's", "saved again"), strict=True)
    ]
    expected = measured(*models, "--type", "Q4_K_M")
    assert expected.keys() == {UP, NORM}
    assert measured(*folders, "--type", "Q4_K_M") == expected
    assert measured(folders[0], models[1], "--type", "Q4_K_M") == expected
    assert list(scratch.iterdir()) == []
    document = json.loads(call(*folders, "--json").stdout)
    assert (document["a"], document["b"]) == (str(folders[0]), str(folders[1]))
    result = call(*folders, "--llama-cpp", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path} holds no convert_hf_to_gguf.py" in result.stderr
    (folders[1] / "config.json").unlink()
    result = call(models[0], folders[1])
    assert result.exit_code == 2
    assert f"error: {folders[1]} has no config.json, needed a Hugging Face model directory" in result.stderr
    assert list(scratch.iterdir()) == []


def test_messages_name_the_directories_that_were_given(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_stand_in(tmp_path / "cache", monkeypatch)
    narrow = shape_weights("llama") | {"token_embd.weight": np.ones((3, 256), np.float32)}
    other = write_shape(tmp_path / "narrow.gguf", "llama", narrow)
    folders = [
        model_directory(tmp_path / name, model, "the original's") for name, model in (("a", models[0]), ("b", other))
    ]
    result = call(*folders)
    assert result.exit_code == 2
    expected = f"token_embd.weight is [256, 64] in {folders[0]}, [256, 3] in {folders[1]}: one shape is needed"
    assert expected in result.stderr
    assert PREFIX not in result.stderr
