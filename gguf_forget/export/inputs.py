"""The two models of an export as GGUFs with the same tensors: converted where needed, and checked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.convert import check_directory, chosen_weights, convert_directory, stored_type, weight_files
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.placement import find_placement
from gguf_forget.checkpoint.stored import READABLE, StoredTensor, files_of, stored_tensors
from gguf_forget.errors import GgufForgetError, InputError
from gguf_forget.export.scratch import scratch_directory
from gguf_forget.export.template import has_plain_header, write_in_template
from gguf_forget.llama.quantizer import least_bytes
from gguf_forget.progress import Progress
from gguf_forget.whole_file import real_path


@dataclass(frozen=True)
class Pair:
    """Original and unlearned: a GGUF each (the first file of a split one), and their tensors by name.

    outline: the original, opened.
    """

    original: Path
    unlearned: Path
    outline: GgufFile
    before: dict[str, StoredTensor]
    after: dict[str, StoredTensor]


def check_models(models: Sequence[Path]) -> None:
    """Raises InputError for a model that is neither a file nor a directory, or that cannot be looked at."""
    for path in models:
        try:
            if path.is_file() or path.is_dir():
                continue
            found = "is a device or a pipe" if path.exists() else "does not exist"
        except OSError as error:
            raise InputError(
                f"the model {path} cannot be looked at", cause=str(error), hint="check the permissions"
            ) from error
        raise InputError(f"the model {path} {found}", hint="give a GGUF file or a Hugging Face directory")


OWN_KINDS = (".gguf", ".png", ".svg")  # of files that we write; nothing reads them in a Hugging Face directory
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")


def input_files(models: Sequence[Path], others: Sequence[Path] = ()) -> list[Path]:
    """All files of GGUFs (of a split one every part) and of directories, and ``others``."""
    files = [*others]
    for model in models:
        if model.is_dir():
            files += [file for file in model.rglob("*") if file.suffix not in OWN_KINDS]
        else:
            files += files_of(model)
    return files


@contextmanager
def opened_pair(
    original: Path,
    unlearned: Path,
    work: Path,
    progress: Progress,
    *,
    llama_cpp: Path | None = None,
    file_types: Sequence[str] = (),
) -> Iterator[Pair]:
    """Both models as :func:`as_ggufs` gives them, with their tensors, which must match.

    Raises InputError also for models that do not.
    """
    with as_ggufs(original, unlearned, work, progress, llama_cpp=llama_cpp, file_types=file_types) as (before, after):
        opened = [GgufFile(path, outline=True) for path in (before, after)]
        pair = Pair(before, after, opened[0], *(stored_tensors(file.path, file) for file in opened))
        _check_match(pair, opened, original, unlearned)
        yield pair


@contextmanager
def as_ggufs(
    original: Path,
    unlearned: Path,
    work: Path,
    progress: Progress,
    *,
    llama_cpp: Path | None = None,
    file_types: Sequence[str] = (),
) -> Iterator[tuple[Path, Path]]:
    """Both models as GGUFs; what is converted lies in ``work`` while open, and goes when closed.

    An unlearned directory's weights go under the header of an original that is a GGUF, where the architecture allows it
    (:mod:`.template`). Any other directory is converted in its own storage type by llama.cpp's converter; ``llama_cpp``
    is a checkout whose converter is to do all of it. Of an unlearned directory only the weights are used when the
    original is one too: the converter knows tokenizers by a hash, which saving again can change. file_types: those of
    the files that will be written in ``work`` as well: room for what they take at least is asked for before minutes of
    converting.

    Raises InputError for models that do not exist or that the converter refuses, or too little disk space.
    """
    check_models([original, unlearned])
    directories = [path for path in (original, unlearned) if path.is_dir()]
    for directory in directories:
        check_directory(directory)
    try:
        needed = sum(file.stat().st_size for path in directories for file in weight_files(path))
        if directories:
            needed += sum(least_bytes(kind, _weights_in(original)) for kind in file_types)
    except OSError as error:
        raise InputError(
            "a file of weights cannot be read", cause=str(error), hint="a link that leads nowhere: get the model again"
        ) from error
    free = shutil.disk_usage(work).free
    if needed > free:
        raise InputError(
            f"not enough disk space in {work}: at least {needed:,} bytes needed, {free:,} free; models are converted "
            "there",
            hint="free some space, choose another directory, or give GGUFs",
        )
    with scratch_directory(work) as scratch:
        converted = {
            path: scratch / f"{name}.gguf" for path, name in ((original, "original"), (unlearned, "unlearned"))
        }

        def as_gguf(path: Path, tokenizer: Path) -> Path:
            if not path.is_dir():
                return path
            out = converted[path]
            placement = None if original.is_dir() or llama_cpp is not None else find_placement(original, path)
            if placement is not None and has_plain_header(original):
                progress.note(f"writing the weights of {path} under the header of {original}")
                write_in_template(original, path, placement, out, progress)
                return out
            progress.note(f"converting {path} with llama.cpp's converter")
            source = path if tokenizer == path else _with_weights_of(tokenizer, path, linked)
            convert_directory(source, out, outtype=stored_type(path), llama_cpp=llama_cpp)
            return out

        # Under its own name: where the directory says no other, that is what the converter calls the model.
        linked = scratch / "source" / real_path(unlearned).name
        names = {linked: unlearned, **{out: path for path, out in converted.items()}}
        with _called(names):
            yield as_gguf(original, original), as_gguf(unlearned, original if original.is_dir() else unlearned)


@contextmanager
def _called(names: Mapping[Path, Path]) -> Iterator[None]:
    """What is said while open of a file or folder made on the way is said of the model that the user gave."""
    try:
        yield
    except GgufForgetError as error:

        def told(text: str | None) -> str | None:
            for converted, given in names.items():
                text = text.replace(str(converted), str(given)) if text else text
            return text

        error.message, error.cause, error.hint = told(error.message) or "", told(error.cause), told(error.hint)
        raise


def _weights_in(model: Path) -> int:
    """How many weights a model has, about: from the sizes of its files."""
    if not model.is_dir():
        return sum(int(np.prod(tensor.shape)) for tensor in stored_tensors(model).values())
    stored = sum(file.stat().st_size for file in weight_files(model))
    return stored // (4 if stored_type(model) == "f32" else 2)


def _with_weights_of(model: Path, weights: Path, out: Path) -> Path:
    """A directory of links: everything of ``model`` but its weights, and the weights of ``weights``."""
    out.mkdir(parents=True)
    files, index = chosen_weights(weights)
    kept = [f for f in model.iterdir() if f.is_file() and f.suffix not in _WEIGHTS and not f.match("*.index.json")]
    for file in (*kept, *files, *([] if index is None else [index])):
        (out / file.name).symlink_to(real_path(file))
    return out


def _check_match(pair: Pair, opened: Sequence[GgufFile], original: Path, unlearned: Path) -> None:
    kinds = [file.text("general.architecture") for file in opened]
    if kinds[0] != kinds[1]:
        raise InputError(f"{original} is of architecture {kinds[0]}, {unlearned} of {kinds[1]}: one is needed")
    for name in sorted(pair.before.keys() ^ pair.after.keys()):
        lacking = unlearned if name in pair.before else original
        raise InputError(
            f"{lacking} has no tensor {name}, the other model has",
            hint="give two models of the same shape; tied and untied output weights are not the same",
        )
    for name, tensor in pair.before.items():
        other = pair.after[name]
        if tensor.shape != other.shape:
            raise InputError(
                f"tensor {name} is {list(tensor.shape)} in {original}, {list(other.shape)} in {unlearned}: "
                "one shape is needed",
                hint="give two models of the same shape; a resized vocabulary is another shape",
            )
        for path, one in ((original, tensor), (unlearned, other)):
            if one.type not in READABLE and len(one.shape) > 1:
                raise InputError(
                    f"{path}: tensor {name} is {one.type}, needed one of {', '.join(READABLE)}",
                    hint="give the model in full precision: a coarser file has lost the edits already",
                )
