"""The weights of a Hugging Face directory, read one tensor at a time; neither its tokenizer nor its code is read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gguf_forget.checkpoint.convert import check_weights, chosen_weights, weight_map
from gguf_forget.errors import InputError

if TYPE_CHECKING:
    import torch

TYPES = ("F32", "F16", "BF16")
_OF_TORCH = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


@dataclass(frozen=True)
class DirectoryTensor:
    """``shape``: as in torch, rows first. ``type``: one of ``TYPES``, or what else the file calls it."""

    name: str
    file: Path
    type: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor] = field(repr=False)

    def first(self, rows: int) -> DirectoryTensor:
        """Its first ``rows`` rows."""
        return replace(self, shape=(rows, *self.shape[1:]), load=lambda: self.load()[:rows])

    def stored(self) -> np.ndarray:
        """As it is stored, contiguous: float32, float16, or the bits of bfloat16 as uint16.

        The type must be one of ``TYPES``. Raises InputError for a file that cannot be read.
        """
        import torch

        try:
            tensor = self.load().detach().contiguous()
        except OSError as error:
            raise _unreadable(self.file, error) from error
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(np.uint16)
        return tensor.numpy()


def widened(stored: np.ndarray) -> np.ndarray:
    """What :meth:`DirectoryTensor.stored` gives, as float32; exact."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def directory_tensors(directory: Path) -> dict[str, DirectoryTensor]:
    """Every tensor of the files that transformers would load (safetensors before pickles), by name; none is read yet.

    Raises InputError for a directory without weights, a file that is missing or unreadable, or an index that does not
    say what its files hold.
    """
    check_weights(directory)
    files, named_by = chosen_weights(directory)
    index = {} if named_by is None else weight_map(named_by)
    found: dict[str, DirectoryTensor] = {}
    for file in files:
        for tensor in _safetensors(file) if file.suffix == ".safetensors" else _pickled(file):
            if tensor.name in found:
                raise InputError(
                    f"{directory}: tensor {tensor.name} is in {found[tensor.name].file.name} and in {file.name}",
                    hint="remove the files of an older model, and give the rest an index",
                )
            found[tensor.name] = tensor
    for name, part in index.items():
        if name not in found or found[name].file.name != part:
            raise InputError(
                f"{directory}: its index says that tensor {name} is in {part}, but it is not",
                hint="copy the model again, index and all",
            )
    return found


def _safetensors(file: Path) -> Iterator[DirectoryTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, framework="pt")
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            part = opened.get_slice(name)
            yield DirectoryTensor(
                name, file, str(part.get_dtype()), tuple(part.get_shape()), partial(opened.get_tensor, name)
            )
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from error


def _pickled(file: Path) -> Iterator[DirectoryTensor]:
    import pickle

    import torch

    try:
        # Only the newer form, a zip archive, can be mapped into memory.
        state = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to run whatever the file holds
        raise _unreadable(file, ValueError("it holds something else than tensors")) from error
    except Exception as error:  # a damaged pickle can raise whatever its opcodes stumble over
        raise _unreadable(file, error) from error
    for name, tensor in state.items() if isinstance(state, dict) else [("", state)]:
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{file} holds a {type(tensor).__name__} as {name!r}, needed tensors by name",
                hint="give the directory that save_pretrained wrote",
            )
        yield DirectoryTensor(
            name, file, _OF_TORCH.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape), partial(_same, tensor)
        )


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{file}: its weights cannot be read",
        cause=(str(error) or type(error).__name__).splitlines()[0],
        hint="the file is cut short or damaged: copy the model again",
    )
