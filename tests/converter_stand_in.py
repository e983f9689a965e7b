"""Hugging Face directories of the tiny shapes, and a stand-in for llama.cpp's converter that knows their GGUFs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_forget.checkpoint.convert import PROGRAM, cache_directory

_COPIES = """
import json, pathlib, shutil, sys
directory = pathlib.Path(sys.argv[1])
kind = sys.argv[sys.argv.index("--outtype") + 1]
assert kind == "bf16", kind
assert (directory / "tokenizer.json").read_text() == "the original's"
source = next(directory.glob("*.safetensors")).resolve().parent / "as.gguf"
assert directory.name == source.parent.name, directory
shutil.copy(source, sys.argv[sys.argv.index("--outfile") + 1])
"""


def install_stand_in(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the converter that would be fetched; it wants the original's tokenizer, and models' own names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    cache_directory().mkdir(parents=True)
    (cache_directory() / PROGRAM).write_text(_COPIES)


def model_directory(folder: Path, as_gguf: Path, tokenizer: str) -> Path:
    """A directory whose weights, of type BF16, the stand-in converts to a copy of ``as_gguf``."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(tokenizer)
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (folder / "as.gguf").write_bytes(as_gguf.read_bytes())
    return folder
