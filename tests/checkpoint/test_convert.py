"""The converter is called as a program: here a small one stands in for llama.cpp's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gguf_forget.checkpoint.convert import PROGRAM, cache_directory, convert_directory
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import write_template
from gguf_forget.errors import InputError

COPIES = """
import json, pathlib, shutil, sys
directory = pathlib.Path(sys.argv[1])
(directory / "arguments.json").write_text(json.dumps(sys.argv[1:]))
shutil.copy(directory / "model.gguf", sys.argv[sys.argv.index("--outfile") + 1])
"""
REFUSES = """
import pathlib, sys
pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1]).write_bytes(b"half a file")
print("INFO: loading", file=sys.stderr)
raise NotImplementedError("BPE pre-tokenizer was not recognized")
"""
LACKS = "import a_package_that_is_not_there"
SAYS_NOTHING = "pass"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path) -> Path:
    """A model directory; the cache is a temporary one, so that nothing is ever fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache_directory().mkdir(parents=True)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    (folder / "model.gguf").write_bytes(tiny_gguf.read_bytes())
    return folder


def install(program: str) -> None:
    (cache_directory() / PROGRAM).write_text(program)


def test_the_converter_writes_an_f32_file(directory: Path, tmp_path: Path, tiny_gguf: Path) -> None:
    install(COPIES)
    out = tmp_path / "out" / "template.gguf"
    out.parent.mkdir()
    convert_directory(directory, out)
    assert out.read_bytes() == tiny_gguf.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["template.gguf"]
    arguments = json.loads((directory / "arguments.json").read_text())
    assert arguments[0] == str(directory)
    assert arguments[arguments.index("--outtype") + 1] == "f32"


def test_a_directory_becomes_a_template(directory: Path, tmp_path: Path, tiny_gguf: Path) -> None:
    install(COPIES)
    summary = write_template(directory, tmp_path / "template.gguf")
    assert summary.source_type == "F32 (converted)"
    assert (summary.layers, summary.hidden, summary.heads) == (2, 256, 4)
    assert set(GgufFile(tmp_path / "template.gguf").tensors) == set(GgufFile(tiny_gguf).tensors)


@pytest.mark.parametrize("existing", [None, b"an older file"])
def test_a_refusal_is_quoted_and_leaves_nothing_behind(directory: Path, tmp_path: Path, existing: bytes | None) -> None:
    install(REFUSES)
    out = tmp_path / "out" / "template.gguf"
    out.parent.mkdir()
    if existing:
        out.write_bytes(existing)
    with pytest.raises(InputError) as caught:
        convert_directory(directory, out)
    assert caught.value.message == f"llama.cpp's converter refused {directory}"
    assert "NotImplementedError: BPE pre-tokenizer was not recognized" in str(caught.value.cause)
    assert [path.read_bytes() for path in out.parent.iterdir()] == ([existing] if existing else [])


def test_a_package_that_the_converter_lacks_is_named(directory: Path, tmp_path: Path) -> None:
    install(LACKS)
    with pytest.raises(InputError) as caught:
        convert_directory(directory, tmp_path / "template.gguf")
    assert caught.value.hint == "pip install a_package_that_is_not_there"


def test_a_converter_that_ends_without_a_file(directory: Path, tmp_path: Path) -> None:
    install(SAYS_NOTHING)
    with pytest.raises(InputError) as caught:
        convert_directory(directory, tmp_path / "template.gguf")
    assert caught.value.cause == "exit code 0"


def test_a_directory_without_config(directory: Path, tmp_path: Path) -> None:
    (directory / "config.json").unlink()
    with pytest.raises(InputError, match=r"model has no config\.json, needed a Hugging Face model directory"):
        convert_directory(directory, tmp_path / "template.gguf")
