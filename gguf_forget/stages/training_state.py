"""An interrupted training on disk, beside the stage that is being built: it outlives a killed process."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gguf_forget.stages.machine import PACKAGE, code_hash, tool_versions
from gguf_forget.unlearning.trainer import StepLosses, TrainingState
from gguf_forget.whole_file import sha256_file

PARTS = ("latents", "first", "second")  # one tensor of each for every edit
VERSION = 2  # of what a state holds
PATTERN = ".training-*.safetensors"
WITHOUT_EFFECT = ("keep_every", "gradient_checkpointing")  # keys of [unlearn] that leave every bit as it is


class SavedState:
    """The state of one training, told from others by all that decides it; a state of another one is never read.

    Args:
        folder: where the file lies.
        files: whose contents decide the result. options: what else does, as JSON can hold it; those of
            :data:`WITHOUT_EFFECT` do not.
    """

    def __init__(self, folder: Path, files: Mapping[str, Path], options: Mapping[str, Any]) -> None:
        decides = {
            "version": VERSION,
            "files": {name: sha256_file(path) for name, path in files.items()},
            "options": {key: value for key, value in options.items() if key not in WITHOUT_EFFECT},
            "tools": tool_versions(),
            "code": code_hash(PACKAGE),  # half of an edit by other code would be the edit of neither
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        self.path = folder / f".training-{digest[:24]}.safetensors"

    def load(self) -> TrainingState | None:
        """None where there is none, or where it is not what :meth:`save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                history = [StepLosses(**losses) for losses in json.loads(file.metadata()["history"])]
                count = len(list(file.keys())) // len(PARTS)
                latents, first, second = (tuple(file.get_tensor(f"{part}/{i}") for i in range(count)) for part in PARTS)
                state = TrainingState(latents, first, second, file.get_tensor("shifts"), tuple(history))
                return state if file.metadata()["sha256"] == _digest(state) else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def save(self, state: TrainingState) -> None:
        """Whole or not at all. Raises OSError where it cannot be written."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = dict(_named(state))
        partial = self.path.with_name(f"{self.path.name}.partial-{os.getpid()}")  # a run directory removes such
        try:
            save_file(tensors, partial, metadata={"history": _history(state), "sha256": _digest(state)})
            os.replace(partial, self.path)
        except SafetensorError as error:  # its word for a full disk, too
            raise OSError(str(error)) from error
        finally:
            partial.unlink(missing_ok=True)

    def others(self) -> list[Path]:
        """States of trainings with other options, files or code."""
        return [path for path in self.path.parent.glob(PATTERN) if path != self.path]


def remove_states(folder: Path) -> None:
    """All in a folder: of the training whose edit is in its place now, and of others that were never finished."""
    for path in folder.glob(PATTERN):
        path.unlink(missing_ok=True)


def _named(state: TrainingState) -> Iterator[tuple[str, torch.Tensor]]:
    for part in PARTS:
        for index, tensor in enumerate(getattr(state, part)):
            yield f"{part}/{index}", tensor
    yield "shifts", state.shifts


def _history(state: TrainingState) -> str:
    return json.dumps([vars(losses) for losses in state.history])


def _digest(state: TrainingState) -> str:
    """Of all that a state holds: a bit that a disk lost would end in another edit."""
    digest = hashlib.sha256(_history(state).encode())
    for name, tensor in _named(state):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
