"""Second moments of what every edited linear map sees, one layer in memory at a time.

The calibration sequences go through the model layer by layer, each layer over all of them before the next (as GPTQ's
own code does, arXiv 2210.17323): one pass in all. A layer's moments are written to files, and read from there through
a memory map, so that memory never holds those of two layers. H as in :mod:`gguf_forget.export.calibration`.

Shapes: B sequences of a batch, T its longest, N its real tokens, d = hidden size; ``columns`` inputs of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gguf_forget.checkpoint.architecture import attributable
from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.facts.tokens import pad


@dataclass
class _Batch:
    """hidden: what the next layer reads, [B, T, d]; mask: [B, T], True on real tokens."""

    hidden: torch.Tensor
    mask: torch.Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]  # for every layer, without the hidden states


class StoredMoments:
    """GGUF tensor name to H, each read from its file when asked for; maps of one input share a file."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[Path, np.ndarray, int]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def put(self, name: str, file: Path, columns: np.ndarray, width: int) -> None:
        self._files[name] = (file, columns, width)

    def __call__(self, name: str) -> np.ndarray | None:
        """float32 [columns, columns], None for a tensor that was not seen. Entries that no code choice reads are 0."""
        if name not in self._files:
            return None
        file, columns, width = self._files[name]
        stored: np.ndarray = np.load(file, mmap_mode="r")
        if len(columns) == width:
            return stored
        full = np.zeros((width, width), dtype=np.float32)
        full[np.ix_(columns, columns)] = stored
        return full


def module_names(model: Any, architecture: str) -> dict[str, str]:
    """GGUF tensor name to the path of the torch module that multiplies by it.

    A tied output counts for the embeddings' tensor. Raises UnsupportedError for an architecture that gguf-py lacks.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        raise UnsupportedError(f"the installed gguf package does not know the architecture {architecture!r}")
    names = get_tensor_name_map(kinds[architecture], model.config.num_hidden_layers)
    entry = attributable(model.config)
    maps = [path for path, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
    tied = bool(model.config.tie_word_embeddings)
    found = {}
    for path in maps:
        name = names.get_name(entry.embedding if tied and path == entry.head else path)
        if name is not None:
            found[f"{name}.weight"] = path
    return found


def store_moments(
    model: Any,
    edited: Mapping[str, np.ndarray],
    architecture: str,
    sequences: Sequence[Sequence[int]],
    folder: Path,
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> StoredMoments:
    """Run ``sequences`` through ``model`` and store H of every edited tensor that is a linear map, in ``folder``.

    edited: GGUF tensor name to the columns (int64, ascending) whose entries are needed. architecture: the GGUF's.
    progress: called with 1 after every layer, and after the output. Raises InputError where the model's maps are not
    as wide as the columns say, or for a full disk.
    """
    entry = attributable(model.config)
    paths = {name: path for name, path in module_names(model, architecture).items() if name in edited}
    layers = [model.get_submodule(entry.layer.format(index)) for index in range(model.config.num_hidden_layers)]
    batches = _batches(model, layers, sequences, batch_size)
    result = StoredMoments()
    for index, layer in enumerate(layers):
        prefix = entry.layer.format(index) + "."
        inside = {name: path for name, path in paths.items() if path.startswith(prefix)}
        moments = _Moments(edited)
        with _inputs_of(model, inside) as inputs:
            for batch in batches:
                positional, named = batch.arguments[index]
                with torch.no_grad():
                    hidden = layer(batch.hidden, *positional, **named)
                batch.hidden = hidden[0] if isinstance(hidden, tuple) else hidden
                batch.arguments[index] = ((), {})
                moments.add(inputs, batch.mask)
                inputs.clear()
        moments.store(result, folder)
        progress(1)
    moments, norm = _Moments(edited), model.get_submodule(entry.final_norm)
    for name in (name for name, path in paths.items() if path == entry.head):
        for batch in batches:
            with torch.no_grad():
                moments.add([(norm(batch.hidden), [name])], batch.mask)
    moments.store(result, folder)
    progress(1)
    return result


Inputs = list[tuple[torch.Tensor, list[str]]]
"""One entry for every input [B, T, columns] that was given to some maps, and their tensors' names."""


@contextmanager
def _inputs_of(model: Any, paths: Mapping[str, str]) -> Iterator[Inputs]:
    """While open, every call of the modules ``paths`` (by tensor name) adds to the yielded list."""
    inputs: Inputs = []

    def hook(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def see(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            for x, names in inputs:
                if x is arguments[0]:  # query, key and value read the same, and so do gate and up
                    names.append(name)
                    return
            inputs.append((arguments[0], [name]))

        return see

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(name)) for name, path in paths.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


class _Moments:
    """Sums of x·xᵀ over batches; maps with one input share a sum."""

    def __init__(self, edited: Mapping[str, np.ndarray]) -> None:
        self._edited = edited
        # By the names that share it: the sum, which columns it is over, of how many.
        self._sums: dict[tuple[str, ...], tuple[torch.Tensor, np.ndarray, int]] = {}

    def add(self, inputs: Inputs, mask: torch.Tensor) -> None:
        for given, names in inputs:
            key, x = tuple(names), given[mask].float()  # x: [N, columns]
            if key not in self._sums:
                columns = np.unique(np.concatenate([self._edited[name] for name in names]))
                if columns.size and columns[-1] >= x.shape[1]:
                    raise InputError(
                        f"the map of {names[0]} has {x.shape[1]} inputs in the model that runs, "
                        f"{columns[-1] + 1} or more in the file",
                        hint="give two models of the same shape",
                    )
                self._sums[key] = (torch.zeros(len(columns), len(columns)), columns, x.shape[1])
            total, columns, width = self._sums[key]
            if len(columns) < width:
                x = x[:, torch.from_numpy(columns)]
            total.addmm_(x.T, x)

    def store(self, result: StoredMoments, folder: Path) -> None:
        for names, (total, columns, width) in self._sums.items():
            file = folder / f"{names[0]}.npy"
            _save(file, total.numpy())
            for name in names:
                result.put(name, file, columns, width)


def _save(file: Path, moments: np.ndarray) -> None:
    """Raises InputError where that cannot be done, and then leaves nothing behind."""
    try:
        with file.open("wb") as opened:
            # As np.save does, which does not notice when the last bytes find no room.
            np.lib.format.write_array_header_1_0(opened, np.lib.format.header_data_from_array_1_0(moments))
            opened.write(np.ascontiguousarray(moments).data)
    except OSError as error:
        with suppress(OSError):
            file.unlink()
        raise InputError(
            f"{file} cannot be written",
            cause=str(error),
            hint=f"free some space, this one takes {moments.nbytes:,} bytes; a quota may be lower",
        ) from error


def _batches(model: Any, layers: Sequence[Any], sequences: Sequence[Sequence[int]], batch_size: int) -> list[_Batch]:
    """What the first layer reads, and what every layer is given besides, without running a layer."""
    ordered = sorted(sequences, key=len)
    result = []
    for start in range(0, len(ordered), batch_size):
        ids, padding = pad(ordered[start : start + batch_size])
        with _recording(layers) as recorded, torch.no_grad():
            model.base_model(torch.from_numpy(ids), attention_mask=torch.from_numpy(padding), use_cache=False)
        hidden = recorded[0][0][0]
        arguments = [(positional[1:], named) for positional, named in recorded]
        result.append(_Batch(hidden, torch.from_numpy(padding).bool(), arguments))
    return result


@contextmanager
def _recording(layers: Sequence[Any]) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """While open the layers do nothing but note what they are given, and hand the hidden states on."""
    recorded: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(hidden: torch.Tensor, *positional: Any, **named: Any) -> torch.Tensor:
        recorded.append(((hidden, *positional), named))
        return hidden

    for layer in layers:
        layer.forward = forward
    try:
        yield recorded
    finally:
        for layer in layers:
            del layer.forward
