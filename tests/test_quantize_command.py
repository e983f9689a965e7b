"""``gguf-forget quantize`` as a person or a script calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from converter_stand_in import install_stand_in, model_directory
from safetensors.torch import load_file, save_file
from tiny_directories import save_directory, write_family
from tiny_shapes import shape_weights, write_shape

from gguf_forget.checkpoint.convert import PROGRAM
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.cli import main
from gguf_forget.cli.export import destinations
from gguf_forget.errors import InputError

UP = "blk.0.ffn_up.weight"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["quantize", *map(str, arguments)])


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    weights = shape_weights("llama")
    changed = dict(weights)
    changed[UP] = weights[UP].copy()
    changed[UP][::5, ::7] += 0.1
    return (
        write_shape(tmp_path / "base.gguf", "llama", weights),
        write_shape(tmp_path / "forgets.gguf", "llama", changed),
    )


def test_one_type_is_one_file(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = call(*models, tmp_path / "out.gguf", "-q")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 tensors are edited\n")
    assert stored_tensors(tmp_path / "out.gguf")[UP].type == "Q4_K"  # the default is Q4_K_M
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf", "forgets.gguf", "out.gguf"]


def test_several_types_and_every_option_at_once(models: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "shipped"
    options = ["--pure", "--tensor-type", "attn_q=q8_0", "--token-embedding-type", "q6_k", "--json", "-q", "-t", 2]
    result = call(*models, out, "q4_k_m", "Q5_1", *options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert document["edited_tensors"] == [UP]
    assert [(file["type"], Path(file["file"]).name) for file in document["files"]] == [
        ("Q4_K_M", "forgets.Q4_K_M.gguf"),
        ("Q5_1", "forgets.Q5_1.gguf"),
    ]
    for file in document["files"]:
        assert file["bytes"] == Path(file["file"]).stat().st_size
        assert file["totals"]["landed"] + file["totals"]["saturated"] == file["totals"]["asked"] > 3000
        types = {name: tensor.type for name, tensor in stored_tensors(Path(file["file"])).items()}
        assert types["blk.1.attn_q.weight"] == "Q8_0"
        assert types["token_embd.weight"] == "Q6_K"
        assert types["blk.1.ffn_down.weight"] == ("Q4_K" if file["type"] == "Q4_K_M" else "Q5_1")


def test_a_dry_run_writes_nothing(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = call(*models, tmp_path / "shipped", "Q4_0", "TQ2_0", "--dry-run", "--json", "-q")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [file["not_protected"] for file in document["files"]] == [[], [UP]]
    assert document["files"][0]["types"]["blk.0.attn_q.weight"] == "Q4_0"
    assert document["files"][0]["bytes"] > 100_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf", "forgets.gguf"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{base}", "{base}", "{base}", "Q8_0"], "is one of the inputs"),
        (["{base}", "{forgets}", "{forgets}", "Q8_0"], "is one of the inputs"),
        (["{base}", "{folder}/absent.gguf", "{folder}/out.gguf"], "absent.gguf does not exist"),
        (["{base}", "{forgets}", "{folder}/out.gguf", "Q9_0"], "unknown file type 'Q9_0'"),
        (["{base}", "{forgets}", "{folder}/no/out.gguf", "Q8_0"], "no such directory"),
        (["{base}", "{forgets}", "{forgets}", "Q8_0", "Q4_0"], "is a file, needed a directory"),
        (["{base}", "{forgets}", "{folder}/out.gguf", "--imatrix", "{base}"], "is no importance matrix"),
        (["{base}", "{forgets}", "{folder}/out.gguf", "--tensor-type", "attn_q"], "needed NAME=TYPE"),
        (["{base}", "{forgets}", "{folder}/out.gguf", "--tensor-type", "attn_q=q9"], "unknown tensor type 'q9'"),
    ],
)
def test_faults_of_the_user_exit_with_2(
    models: tuple[Path, Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    names = {"base": models[0], "forgets": models[1], "folder": tmp_path}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = call(*(argument.format(**names) for argument in arguments), "-q")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_converter_for_two_ggufs_is_refused(models: tuple[Path, Path], tmp_path: Path, more: tuple[str, ...]) -> None:
    result = call(*models, tmp_path / "out.gguf", "--llama-cpp", tmp_path / "nodir", *more)
    assert result.exit_code == 2
    expected = f"error: --llama-cpp {tmp_path / 'nodir'} beside two GGUFs: nothing is converted\nhint: leave it out"
    assert result.stderr.startswith(expected)
    assert not (tmp_path / "out.gguf").exists()
    absent = call(models[0], tmp_path / "absent.gguf", tmp_path / "out.gguf", "--llama-cpp", tmp_path)
    assert "absent.gguf does not exist" in absent.stderr


def test_links_that_lead_nowhere_exit_with_2(models: tuple[Path, Path], tmp_path: Path) -> None:
    loop, directory = tmp_path / "loop.gguf", tmp_path / "directory"
    loop.symlink_to(loop.name)
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").symlink_to(tmp_path / "absent")
    for unlearned, message in ((loop, "loop.gguf does not exist"), (directory, "a file of weights cannot be read")):
        result = call(models[0], unlearned, tmp_path, "Q8_0", "Q4_0", "-q")
        assert result.exit_code == 2
        assert message in result.stderr


def test_two_directories_are_converted_with_the_originals_tokenizer(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_stand_in(tmp_path / "cache", monkeypatch)
    for name, model in zip(("base", "forgets"), models, strict=True):
        model_directory(tmp_path / name, model, "the original's" if name == "base" else "saved again")
    result = call(tmp_path / "base", tmp_path / "forgets", tmp_path / "out.gguf", "Q8_0", "-q", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["edited_tensors"] == [UP]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["base", "base.gguf", "cache", "forgets", "forgets.gguf", "out.gguf"]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A GGUF, another of its shape, and that as a Hugging Face directory with a tokenizer that nobody can read."""
    base, forgets = (write_family(tmp_path / f"{seed}.gguf", "llama", seed=seed) for seed in (0, 1))
    directory = save_directory(tmp_path / "directory", forgets, "llama")
    (directory / "tokenizer.json").write_text("saved anew")
    return base, forgets, directory


def test_a_directory_beside_a_gguf_needs_no_converter(
    tiny: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, forgets, directory = tiny
    monkeypatch.setattr("gguf_forget.export.inputs.convert_directory", None)
    for unlearned, out in ((forgets, "of-file.gguf"), (directory, "of-directory.gguf")):
        result = call(base, unlearned, tmp_path / out, "Q8_0", "--no-provenance", "-q")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("21 tensors are edited\n")
    assert (tmp_path / "of-directory.gguf").read_bytes() == (tmp_path / "of-file.gguf").read_bytes()
    assert not list(tmp_path.glob(".gguf-forget-*"))


@pytest.mark.parametrize("reason", ["--llama-cpp", "an architecture that only a converter knows"])
def test_a_directory_beside_a_gguf_is_converted_where_it_has_to_be(
    tiny: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    base, forgets, directory = tiny
    if reason != "--llama-cpp":
        (directory / "config.json").write_text('{"model_type": "unheard of"}')
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    (checkout / PROGRAM).write_text(f"import shutil, sys\nshutil.copy({str(forgets)!r}, sys.argv[-1])")
    monkeypatch.setattr("gguf_forget.checkpoint.convert.cache_directory", lambda: checkout)
    options = ["--llama-cpp", checkout] if reason == "--llama-cpp" else []
    result = call(base, directory, tmp_path / "out.gguf", "Q8_0", *options)
    assert result.exit_code == 0, result.output
    assert f"converting {directory} with llama.cpp's converter" in result.stderr
    assert result.stdout.startswith("21 tensors are edited\n")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("part", "{directory} has no model-2.safetensors, which model.safetensors.index.json names"),
        ("tensor", "{directory} has no tensor model.norm.weight for output_norm.weight of {base}"),
        ("architecture", "{directory} is of architecture qwen2, {base} of llama"),
    ],
)
def test_what_is_wrong_with_a_directory_beside_a_gguf_exits_with_2(
    tiny: tuple[Path, Path, Path], tmp_path: Path, fault: str, message: str
) -> None:
    base, _, directory = tiny
    weights = load_file(directory / "model.safetensors")
    if fault == "architecture":
        (directory / "config.json").write_text('{"model_type": "qwen2"}')
    elif fault == "tensor":
        del weights["model.norm.weight"]
        save_file(weights, directory / "model.safetensors")
    else:
        (directory / "model.safetensors").rename(directory / "model-1.safetensors")
        parts = {name: f"model-{1 + (name == 'model.norm.weight')}.safetensors" for name in weights}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    before = sorted(tmp_path.iterdir())
    result = call(base, directory, tmp_path / "out.gguf", "Q8_0", "-q")
    assert result.exit_code == 2
    assert message.format(directory=directory, base=base) in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_where_files_go(tmp_path: Path) -> None:
    model = tmp_path / "forgets.gguf"
    assert destinations(model, tmp_path / "x.gguf", ["Q8_0"], folder=False) == {"Q8_0": tmp_path / "x.gguf"}
    assert destinations(model, tmp_path, ["Q8_0"], folder=False) == {"Q8_0": tmp_path / "forgets.Q8_0.gguf"}
    model.write_bytes(b"")
    with pytest.raises(InputError, match="is a file, needed a directory"):
        destinations(model, model, ["Q8_0", "Q4_0"], folder=False)
