"""The unlearning stage on the tiny model: its options, its limits, stopping on a validation phrasing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf_with import copy_with
from safetensors.numpy import load_file
from tiny_training import OPTIONS, Inputs, Notes, run, training_inputs

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.circuit.artifact import load_circuit
from gguf_forget.errors import InputError
from gguf_forget.export.edit import load_edits
from gguf_forget.export.ship import ship
from gguf_forget.grids import CODECS
from gguf_forget.llama.quantizer import quantize
from gguf_forget.llama.scorer import Scorer
from gguf_forget.progress import Progress
from gguf_forget.stages import unlearn as unlearn_module
from gguf_forget.stages.trained_grid import grid_moves
from gguf_forget.stages.unlearn import chat_frame
from gguf_forget.unlearning.together import ALONE


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return training_inputs(tmp_path_factory.mktemp("inputs"))


def test_the_chat_frame_is_the_models_own_template(inputs: Inputs, tmp_path: Path) -> None:
    template = inputs[0]
    frame = chat_frame(template)
    assert frame is not None
    with Scorer(template) as scorer:
        assert frame[0] + "Where?" + frame[1] == scorer.chat([{"role": "user", "content": "Where?"}])
    for name, changed in (("none", ""), ("twice", "{{ messages[0].content }}{{ messages[0].content }}")):
        other = copy_with(template, tmp_path / f"{name}.gguf", {"tokenizer.chat_template": changed})
        assert chat_frame(other) is None
    notes = Notes()
    run((other, *inputs[1:]), tmp_path / "unlearn", notes, framed=0.5, steps=2)
    assert "the model has no chat template: its prompts are asked in the other framings" in notes.notes


def test_every_step_says_what_is_still_answered_right(inputs: Inputs, tmp_path: Path) -> None:
    seen = Notes()
    run(inputs, tmp_path / "unlearn", seen)
    history = json.loads((tmp_path / "unlearn" / "unlearn.json").read_text())["history"]
    assert len(history) == 5
    for step, remark in zip(history, seen.remarks, strict=True):
        assert 0 <= step["forget_accuracy"] <= 1
        assert 0 <= step["retain_accuracy"] <= 1
        assert f"({step['forget_accuracy']:.0%} right) retain" in remark
        assert f"({step['retain_accuracy']:.0%} right) text" in remark


def test_the_mixture_is_the_recipe_s(inputs: Inputs, tmp_path: Path) -> None:
    seen = {}
    for name, changes in (
        ("default", {}),
        ("named", {"batch_text": 2, "text_every": 2, "near_turns": 5}),
        ("none", {"batch_text": 0}),
        ("one", {"batch_text": 1}),
        ("all", {"text_every": 1}),
    ):
        run(inputs, tmp_path / name, Progress(), steps=2, **changes)
        history = json.loads((tmp_path / name / "unlearn.json").read_text())["history"]
        seen[name] = [(step["forget"], step["retain"], step["text"]) for step in history]
    assert seen["named"] == seen["default"]
    assert [text for _, _, text in seen["none"]] == [0, 0]
    assert len({tuple(found) for found in seen.values()}) == 4
    assert unlearn_module._mixture(replace(OPTIONS, near_turns=3)).near == 3
    assert not unlearn_module._mixture(OPTIONS).matched
    assert unlearn_module._mixture(replace(OPTIONS, match_phrasings=True)).matched
    # Nothing has moved at the first step, so that other text leaves what is forgotten as it is.
    assert seen["one"][0][0] == pytest.approx(seen["default"][0][0], rel=1e-3)


def test_training_stops_once_the_validation_phrasing_is_at_chance(inputs: Inputs, tmp_path: Path) -> None:
    """The random model knows nothing: NPO pushes every answer below chance at once."""
    seen = Notes()
    changes = {"steps": 40, "validation_phrasing": 1, "validation_every": 2, "damping": 0.1}
    run(inputs, tmp_path / "unlearn", seen, **changes)
    looks = [note for note in seen.notes if "validation phrasing" in note]
    summary = json.loads((tmp_path / "unlearn" / "unlearn.json").read_text())
    assert summary["steps"] == 2 * len(looks) < 40
    assert len(summary["history"]) == summary["steps"]
    values = [float(note.split("stand ")[1].split()[0]) for note in looks]
    assert values[-1] <= 0
    assert all(value >= 0 for value in values[:-1])


def test_recomputing_leaves_the_edit_as_it_is_and_float32_computes_another(inputs: Inputs, tmp_path: Path) -> None:
    for name, changes in (
        ("plain", {}),
        ("again", {"gradient_checkpointing": True}),
        ("f32", {"precision": "float32"}),
    ):
        run(inputs, tmp_path / name, Progress(), steps=2, **changes)
    plain, again, whole = ((tmp_path / name / "edit.safetensors").read_bytes() for name in ("plain", "again", "f32"))
    assert again == plain
    assert whole != plain


def test_two_processes_train_what_one_does(inputs: Inputs, tmp_path: Path) -> None:
    """Each part is computed as one process computes it, whoever does; a sum of two has one value in either order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the processes have one each
    try:
        run(inputs, tmp_path / "one", Progress(), accumulation=2)
        seen = Notes()
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / "cut", Notes(steps=3), processes=2)
        run(inputs, tmp_path / "two", seen, processes=2)
        run(inputs, tmp_path / "shared", Progress(), processes=2, shard=True)
    finally:
        torch.set_num_threads(threads)
    assert any("GB of memory in each of 2 processes" in note for note in seen.notes)
    assert "training goes on after step 2" in seen.notes
    one, two, shared = (json.loads((tmp_path / name / "unlearn.json").read_text()) for name in ("one", "two", "shared"))
    for other, name in ((two, "two"), (shared, "shared")):
        for tensor, values in load_file(tmp_path / name / "edit.safetensors").items():
            assert (values == load_file(tmp_path / "one" / "edit.safetensors")[tensor]).all(), (name, tensor)
        for step, expected in zip(other["history"], one["history"], strict=True):
            assert step == {key: pytest.approx(value, rel=1e-6) for key, value in expected.items()}
        assert {**other, "history": []} == {**one, "history": []}
    assert one["moved"] > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard": True}, r"unlearn\.shard: found true, but unlearn\.processes is 1"),
        ({"processes": 3, "accumulation": 2}, r"cuts every batch into 6 parts; needed at most 4"),
    ],
)
def test_parts_that_a_batch_does_not_have_are_refused(
    inputs: Inputs,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        run(inputs, tmp_path / "unlearn", Progress(), **changes)


def test_another_type_ships_what_training_saw_of_it(inputs: Inputs, tmp_path: Path) -> None:
    template, (stock,), facts, circuit = inputs
    other = tmp_path / "Q4_1.gguf"
    quantize(template, other, "Q4_1")
    run(inputs, tmp_path / "one" / "unlearn", Progress(), steps=8)
    both = (template, [stock, other], facts, circuit)
    run(both, tmp_path / "two" / "unlearn", Progress(), steps=8, other_grids=("Q4_1",))
    path = tmp_path / "two" / "unlearn" / "edit.safetensors"
    assert path.read_bytes() != (tmp_path / "one" / "unlearn" / "edit.safetensors").read_bytes()
    edits = load_edits(path)
    ship(template, other, tmp_path / "shipped.gguf", edits, hessians={}, metadata={})
    before, after = GgufFile(other), GgufFile(tmp_path / "shipped.gguf")
    grids = grid_moves([stock, other], load_circuit(circuit)[0], "llama", floor=1)
    moved = 0
    for edit, trained in zip(edits, sorted(grids, key=lambda each: f"{each.layer}{each.role}"), strict=True):
        assert f"blk.{trained.layer}.ffn_{trained.role}" in edit.tensor
        (grid,) = trained.others
        seen = grid.nearest(torch.from_numpy(edit.delta)) / torch.where(grid.step != 0, grid.step, 1)
        old, new = (CODECS["Q4_1"].decode(file.rows(edit.tensor)).codes for file in (before, after))
        shift = (new - old).T if edit.axis == "columns" else new - old
        assert np.array_equal(shift[edit.neurons], np.rint(seen.numpy()).astype(np.int16))
        moved += int(np.count_nonzero(shift))
    assert moved > 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unlearn\.device: found 'cuda', but torch sees no such device here"):
        run(inputs, tmp_path / "unlearn", Progress(), device="cuda")


class Handed(Exception):
    """What training was given, in place of training."""

    def __init__(self, bases: Any, edits: Any, facts: Any, forget: Any, retain: Any, text: Any, **options: Any) -> None:
        self.bases, self.edits, self.text, self.options = bases, edits, text, options


def test_every_key_of_the_recipe_reaches_training(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that are no defaults, and no two alike."""
    plain = {
        "steps": 11,
        "soft_share": 0.35,
        "learning_rate": 0.21,
        "damping": 0.77,
        "margin": 0.61,
        "phrasing_rate": 0.19,
        "greedy_margin": 0.43,
        "greedy_weight": 5.5,
        "npo_beta": 0.17,
        "seed": 23,
        "accumulation": 3,
        "keep_every": 6,
        "objective": "unknown_subject",
    }
    named = {"forget_weight": 2.5, "retain_weight": 3.5, "shortfall_weight": 4.5, "text_weight": 1.5}
    mixture = {"batch_forget": 5, "batch_retain": 7, "batch_text": 1, "text_every": 3, "near_turns": 2}

    def hand(*arguments: Any, **options: Any) -> None:
        raise Handed(*arguments, **options)

    monkeypatch.setattr(unlearn_module, "train", hand)
    with pytest.raises(Handed) as handed:
        run(
            inputs,
            tmp_path / "unlearn",
            Progress(),
            **plain,
            **named,
            **mixture,
            match_phrasings=True,
            gradient_checkpointing=True,
            floor=2,
            framed=0.5,
            framings=("lead-in",),
            precision="float32",
        )
    given = handed.value
    assert {name: given.options[name] for name in plain} == plain
    assert vars(given.options["weights"]) == {name.removesuffix("_weight"): value for name, value in named.items()}
    assert vars(given.options["mixture"]) == {
        "forget": 5,
        "retain": 7,
        "text": 1,
        "text_every": 3,
        "near": 2,
        "matched": True,
    }
    assert given.options["recompute"] is True
    assert given.options["framings"].kinds == ("lead-in",)
    assert (given.options["framings"].share, given.options["framings"].seed) == (0.5, 23)
    assert {edit.floor for edit in given.edits} == {2}
    assert len(given.bases) == 2
    assert {base.dtype for base in given.bases} == {torch.float32}
    record = json.loads((inputs[2] / "text.json").read_text())
    assert given.text == record["train"] + record["samples"]


def test_what_the_projection_forbids_does_not_move(inputs: Inputs, tmp_path: Path) -> None:
    found = {}
    for quantile in (1.0, 0.4):
        out = tmp_path / f"{quantile}" / "unlearn"
        run(inputs, out, Progress(), fisher_quantile=quantile)
        record = json.loads((out / "unlearn.json").read_text())
        edits = load_edits(out / "edit.safetensors")
        forbidden = sum(int(np.count_nonzero(~edit.allowed)) for edit in edits)
        assert record["frozen_by_projection"] == forbidden
        assert not any(np.count_nonzero(edit.delta[~edit.allowed]) for edit in edits)
        found[quantile] = forbidden / record["circuit_weights"], record["moved"]
    assert found[1.0][0] < 0.05  # weights on a grid without steps
    assert found[0.4][0] == pytest.approx(0.6, abs=0.05)
    assert 0 < found[0.4][1] < found[1.0][1]


def test_shards_are_cut_before_the_next_model_is_loaded(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(unlearn_module, "shard", lambda *_arguments: told.append("cut"))
    monkeypatch.setattr(unlearn_module, "load_torch", lambda *_a, **_k: (told.append("loaded"), FakeModel())[1])
    options = replace(OPTIONS, shard=True, processes=2)
    for path in (inputs[0], *inputs[1]):
        unlearn_module._base(path, options, torch.device("cpu"), ALONE)
    assert told == ["loaded", "cut"] * 2
    unlearn_module._base(inputs[0], OPTIONS, torch.device("cpu"), ALONE)
    assert told[4:] == ["loaded"]


class FakeModel:
    model: Any = SimpleNamespace(layers=())

    def to(self, _device: Any) -> FakeModel:
        return self


def test_a_floor_that_the_grid_has_no_room_for_is_named(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"unlearn\.floor: found 16, but no weight .* further than 15 steps of the Q4_0"
    ):
        run(inputs, tmp_path / "unlearn", Progress(), floor=16)


def test_a_phrasing_that_nobody_has_is_named(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unlearn\.validation_phrasing: found 7"):
        run(inputs, tmp_path / "unlearn", Progress(), validation_phrasing=7)
