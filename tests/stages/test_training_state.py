"""An interrupted training goes on where it was, or says why it does not."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_training import OPTIONS, Inputs, Notes, run, training_inputs

from gguf_forget.progress import Progress
from gguf_forget.stages.training_state import SavedState, remove_states
from gguf_forget.unlearning.trainer import StepLosses, TrainingState


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return training_inputs(tmp_path_factory.mktemp("inputs"))


def test_after_a_kill_the_edit_is_the_same_byte_for_byte(inputs: Inputs, tmp_path: Path) -> None:
    run(inputs, tmp_path / "whole" / "unlearn", Progress())
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "cut" / "first", Notes(steps=3))
    (kept,) = (tmp_path / "cut").glob(".training-*")
    again = Notes()
    run(inputs, tmp_path / "cut" / "second", again)
    assert "training goes on after step 2" in again.notes
    assert any(note.startswith("training takes at least about 0.0 GB") for note in again.notes)
    assert again.done["training through the grid"] == OPTIONS.steps  # a bar that reaches its end
    assert kept.exists()  # until the edit is in its place
    for name in ("edit.safetensors", "unlearn.json"):
        assert (tmp_path / "cut" / "second" / name).read_bytes() == (tmp_path / "whole" / "unlearn" / name).read_bytes()


def test_framed_training_goes_on_after_a_kill_as_well(inputs: Inputs, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"framed": 0.5, "objective": "unknown_subject"}
    run(inputs, tmp_path / "plain" / "unlearn", Progress(), objective="unknown_subject")
    run(inputs, tmp_path / "whole" / "unlearn", Progress(), **changes)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "cut" / "first", Notes(steps=3), **changes)
    run(inputs, tmp_path / "cut" / "second", Progress(), **changes)
    whole = (tmp_path / "whole" / "unlearn" / "edit.safetensors").read_bytes()
    assert (tmp_path / "cut" / "second" / "edit.safetensors").read_bytes() == whole
    assert (tmp_path / "plain" / "unlearn" / "edit.safetensors").read_bytes() != whole


def spoilt(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """The state with its tensors and its metadata changed."""
    with safe_open(path, framework="np") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def one_bit(tensors: dict[str, Any], _metadata: dict[str, str]) -> None:
    tensors["latents/0"].view(np.uint32)[0, 0] ^= 1


def another_shape(tensors: dict[str, Any], _metadata: dict[str, str]) -> None:
    tensors["first/1"] = tensors["first/1"][:-1]


def one_less(tensors: dict[str, Any], _metadata: dict[str, str]) -> None:
    for part in ("latents", "first", "second"):
        del tensors[f"{part}/0"]


def no_history(_tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["history"] = "[]"


@pytest.mark.parametrize("change", [one_bit, another_shape, one_less, no_history])
def test_a_damaged_state_is_told_of_and_not_gone_on_with(
    inputs: Inputs, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]
) -> None:
    run(inputs, tmp_path / "whole" / "unlearn", Progress())
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "cut" / "first", Notes(steps=3))
    (kept,) = (tmp_path / "cut").glob(".training-*")
    spoilt(kept, change)
    again = Notes()
    run(inputs, tmp_path / "cut" / "second", again)
    assert f"{kept} is damaged: training starts from its first step" in again.notes
    assert not any(note.startswith("training goes on") for note in again.notes)
    edit = (tmp_path / "cut" / "second" / "edit.safetensors").read_bytes()
    assert edit == (tmp_path / "whole" / "unlearn" / "edit.safetensors").read_bytes()


def test_a_finished_training_removes_the_states_of_others_with_its_own(inputs: Inputs, tmp_path: Path) -> None:
    for rate in (0.4, 0.3):
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / "run" / f"{rate}", Notes(steps=3), learning_rate=rate)
    assert len(list((tmp_path / "run").glob(".training-*"))) == 2
    run(inputs, tmp_path / "run" / "unlearn", Progress())
    remove_states(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".training-*"))


def test_a_key_without_effect_on_the_bits_goes_on_with_the_same_state(inputs: Inputs, tmp_path: Path) -> None:
    run(inputs, tmp_path / "whole" / "unlearn", Progress())
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "cut" / "first", Notes(steps=3))
    again = Notes()
    run(inputs, tmp_path / "cut" / "second", again, keep_every=5, gradient_checkpointing=True)
    assert "training goes on after step 2" in again.notes
    edit = (tmp_path / "cut" / "second" / "edit.safetensors").read_bytes()
    assert edit == (tmp_path / "whole" / "unlearn" / "edit.safetensors").read_bytes()


def test_a_full_disk_ends_no_training_that_only_wants_to_keep_its_state(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_saved: SavedState, _state: TrainingState) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run(inputs, tmp_path / "whole" / "unlearn", Progress())
    monkeypatch.setattr(SavedState, "save", full)
    notes = Notes()
    run(inputs, tmp_path / "full" / "unlearn", notes)
    told = [note for note in notes.notes if "cannot be written (No space left on device): training goes on" in note]
    assert len(told) == 2  # after steps 2 and 4
    edit = (tmp_path / "full" / "unlearn" / "edit.safetensors").read_bytes()
    assert edit == (tmp_path / "whole" / "unlearn" / "edit.safetensors").read_bytes()


def test_a_state_that_does_not_fit_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """As the library that writes it says so itself: its error is none of the operating system's."""
    state = TrainingState((torch.zeros(100_000),), (torch.zeros(1),), (torch.zeros(1),), torch.zeros(1), ())
    saved = SavedState(tmp_path, {}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            saved.save(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    saved.save(state)
    assert saved.load() is not None


def test_a_state_is_read_back_whole_and_only_by_its_own_training(tmp_path: Path) -> None:
    (tmp_path / "facts").write_text("a")
    files = {"facts": tmp_path / "facts"}
    latents, first, second = ((torch.tensor([[1.0, 2.0]]) + part, torch.tensor([3.0]) + part) for part in (0, 10, 20))
    shifts = torch.tensor([0.5, -0.25])
    state = TrainingState(latents, first, second, shifts, (StepLosses(1, 0.1, 0.2, 0.3, 0.25, None, 4),))
    saved = SavedState(tmp_path, files, {"seed": 0})
    assert saved.load() is None
    saved.save(state)
    found = SavedState(tmp_path, files, {"seed": 0}).load()
    assert found is not None
    assert found.history == state.history
    for one, other in zip(found.latents + found.first + found.second, latents + first + second, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(found.shifts, shifts)
    assert SavedState(tmp_path, files, {"seed": 1}).load() is None
    saved.path.write_bytes(saved.path.read_bytes()[:40])
    assert saved.load() is None
    (tmp_path / "facts").write_text("b")
    assert SavedState(tmp_path, files, {"seed": 0}).path != saved.path


def test_other_code_never_goes_on_with_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = SavedState(tmp_path, {}, {}).path
    assert SavedState(tmp_path, {}, {}).path == before
    (tmp_path / before.name).touch()
    assert SavedState(tmp_path, {}, {}).others() == []
    monkeypatch.setattr("gguf_forget.stages.training_state.code_hash", lambda folder: f"{folder.name}, changed")
    assert SavedState(tmp_path, {}, {}).path != before
    assert SavedState(tmp_path, {}, {}).others() == [before]


def test_a_training_that_cannot_go_on_says_so(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "first", Notes(steps=3), learning_rate=0.2)
    again = Notes()
    run(inputs, tmp_path / "second", again)
    said = "an interrupted training had other settings, inputs or code: this one starts from its first step"
    assert said in again.notes


def test_a_failure_after_the_last_step_loses_no_training(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _document: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gguf_forget.stages.unlearn.write_json_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            run(inputs, tmp_path / "cut" / "first", Progress())
    again = Notes()
    run(inputs, tmp_path / "cut" / "second", again)
    assert f"training goes on after step {OPTIONS.steps - OPTIONS.steps % OPTIONS.keep_every}" in again.notes
    run(inputs, tmp_path / "whole" / "unlearn", Progress())
    for name in ("edit.safetensors", "unlearn.json"):
        assert (tmp_path / "cut" / "second" / name).read_bytes() == (tmp_path / "whole" / "unlearn" / name).read_bytes()
