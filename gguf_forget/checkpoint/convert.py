"""A Hugging Face directory to a GGUF, by llama.cpp's own converter.

The converter is a program in llama-cpp-python's source distribution, not in the installed package. The one of
the installed version is fetched once with pip and kept in the user's cache; nothing of it is part of this
project.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from gguf_forget.errors import GgufForgetError, InputError

PACKAGE = "llama-cpp-python"
PROGRAM = "convert_hf_to_gguf.py"


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gguf-forget" / f"llama.cpp-{version(PACKAGE)}"


def _fetch(destination: Path) -> None:
    """Put the converter of the installed version into ``destination``, whole or not at all."""
    wanted = f"{PACKAGE}=={version(PACKAGE)}"
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", PACKAGE, "--dest", work, wanted]
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if result.returncode != 0:  # the metadata step may want its build requirements after all
            command.remove("--no-build-isolation")
            result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        archives = list(Path(work).glob("*.tar.gz"))
        if result.returncode != 0 or not archives:
            raise GgufForgetError(
                f"llama.cpp's converter ({wanted}) could not be fetched with pip",
                cause=(result.stderr or result.stdout).strip()[-500:],
                hint="give a GGUF instead of a directory, or make the package index reachable once",
            )
        unpacked = Path(work) / "converter"
        with tarfile.open(archives[0]) as archive:
            for member in archive.getmembers():
                _, _, inner = member.name.partition("/vendor/llama.cpp/")
                first = inner.split("/", 1)[0]
                if first in (PROGRAM, "conversion", "gguf-py") and member.isfile():
                    member.name = inner
                    if hasattr(tarfile, "data_filter"):  # in patch releases of 3.10 and 3.11 only
                        archive.extract(member, unpacked, filter="data")
                    elif ".." not in inner.split("/"):
                        archive.extract(member, unpacked)
        if not (unpacked / PROGRAM).is_file():
            raise GgufForgetError(f"{archives[0].name} holds no {PROGRAM}", hint="give a GGUF instead of a directory")
        shutil.rmtree(destination, ignore_errors=True)
        os.replace(unpacked, destination)


_OUTTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # safetensors' names to the converter's


# Whole, in shards by an index, or in shards without one; in the order in which they are looked for.
_FORMS = (("model", ".safetensors"), ("pytorch_model", ".bin"), ("consolidated", ".safetensors"))


def chosen_weights(directory: Path) -> tuple[list[Path], Path | None]:
    """The files that hold the weights of a Hugging Face directory, and the index that names them, if one does.

    What other forms are there as well, and what they are an index of, is nobody's concern. Without weights: nothing.
    Raises InputError for an index that is none.
    """
    for stem, suffix in _FORMS:
        whole, index = directory / f"{stem}{suffix}", directory / f"{stem}{suffix}.index.json"
        if whole.is_file():
            return [whole], None
        if index.is_file() and (shards := sorted(directory.glob(f"{stem}*{suffix}"))):
            return [directory / name for name in sorted(set(weight_map(index).values()))], index
        if shards := sorted(directory.glob(f"{stem}*{suffix}")):
            return shards, None
    return [], None


def weight_files(directory: Path) -> list[Path]:
    """See :func:`chosen_weights`."""
    return chosen_weights(directory)[0]


def weight_map(index: Path) -> dict[str, str]:
    """Name of a tensor to name of its file, from a model's index. Raises InputError for what is no such index."""
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(part, str) and Path(part).name == part for part in parts.values()):
            raise ValueError("its weight_map does not map names of tensors to names of files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} cannot be read", cause=str(error), hint="copy the model again") from error
    return dict(parts)


def check_directory(directory: Path) -> None:
    """:func:`check_weights`, and InputError for a directory without a configuration."""
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{directory} has no config.json, needed a Hugging Face model directory",
            hint="give the directory that save_pretrained wrote, or a GGUF file",
        )
    check_weights(directory)


def check_weights(directory: Path) -> None:
    """Raises InputError for a directory without weights, or without a file that its index names."""
    files, index = chosen_weights(directory)
    for file in files:
        if index is not None and not file.is_file():
            raise InputError(f"{directory} has no {file.name}, which {index.name} names", hint="copy the model again")
    if not files:
        raise InputError(
            f"{directory} holds no weights, needed {' or '.join(f'{stem}*{suffix}' for stem, suffix in _FORMS[:2])}",
            hint="give the directory that save_pretrained wrote, or a GGUF file; an adapter has to be merged into its "
            "model first",
        )


def stored_type(directory: Path) -> str:
    """The converter's name of the widest type among the stored weights, ``f32`` where it cannot be told."""
    found = set()
    for file in weight_files(directory):
        if file.suffix != ".safetensors":
            return "f32"
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                header = json.loads(opened.read(length))
        except (OSError, ValueError, struct.error, MemoryError) as error:
            raise InputError(
                f"{file} is no readable safetensors file", cause=str(error), hint="copy the model again"
            ) from error
        found |= {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    types = {_OUTTYPES.get(kind, "f32") for kind in found}
    return types.pop() if len(types) == 1 else "f32"


def convert_directory(directory: Path, out: Path, *, outtype: str = "f32", llama_cpp: Path | None = None) -> None:
    """Write ``directory`` (config, tokenizer, safetensors) as a GGUF at ``out``.

    outtype: ``f32``, ``f16`` or ``bf16``. llama_cpp: a checkout of llama.cpp whose converter is to be used; else that
    of the installed version, fetched once. Raises InputError for a directory that the converter refuses.
    """
    check_directory(directory)
    converter = cache_directory() if llama_cpp is None else llama_cpp
    if not (converter / PROGRAM).is_file():
        if llama_cpp is not None:
            raise InputError(f"{llama_cpp} holds no {PROGRAM}, needed a checkout of llama.cpp")
        _fetch(converter)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    command = [sys.executable, str(converter / PROGRAM), str(directory)]
    command += ["--outtype", outtype, "--outfile", str(partial)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if result.returncode != 0 or not partial.is_file():
            lines = [line for line in result.stderr.strip().splitlines() if line.strip()]
            missing = re.search(r"No module named '([\w.]+)'", lines[-1]) if lines else None
            raise InputError(
                f"llama.cpp's converter refused {directory}",
                cause="; ".join(lines[-2:])[-500:] or f"exit code {result.returncode}",
                hint=f"pip install {missing[1]}"
                if missing
                else "the architecture or tokenizer may be unknown to this llama.cpp: give a GGUF instead",
            )
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
