"""``gguf-forget quantize --fit``: codes fitted to answers, on a model that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf_with import copy_with
from small_edits import FACT, call, document_of

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.cli import main
from gguf_forget.export.derived_file import write_derived
from gguf_forget.grids import codec_for
from gguf_forget.llama.quantizer import quantize


@pytest.fixture(scope="module")
def everywhere(models: tuple[Path, Path]) -> Path:
    """Small edits in every matrix of the layers, some of half a step, and facts to keep beside the one to forget."""
    base, generator = models[0], np.random.default_rng(3)
    tensors = {}
    for name, tensor in stored_tensors(base).items():
        if name.startswith("blk.") and tensor.rows > 1:
            weights = GgufFile(base).weights(name)
            change = 0.02 * weights.std() * generator.standard_normal(weights.shape)
            change *= np.where(generator.random(weights.shape) < 0.01, 30, 1) * (generator.random(weights.shape) < 0.9)
            tensors[name] = (weights + change).astype(np.float32).view(np.uint8)
    path = base.with_name("everywhere.gguf")
    write_derived(base, path, metadata={}, tensors=tensors)
    kept = [{**FACT, "subject": s, "answer": a, "split": "retain", "prompts": [p]} for s, a, p in KEPT]
    path.with_name("both.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in [FACT, *kept]))
    return path


KEPT = (("Japan", "Tokyo", "The city of Japan is"), ("Peru", "Lima", "The city of Peru is"))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M", "IQ4_NL"])
def test_codes_are_fitted_to_answers(models: tuple[Path, Path], everywhere: Path, tmp_path: Path, kind: str) -> None:
    base, facts, text = models[0], everywhere.with_name("both.jsonl"), everywhere.with_name("text.txt")
    plain, fitted = tmp_path / "plain.gguf", tmp_path / "fitted.gguf"
    options = ("--fit", facts, "--fit", text, "--fit-steps", 36, "--evidence", tmp_path / "evidence")
    without = document_of(base, everywhere, plain, kind)["files"][0]
    document = document_of(base, everywhere, fitted, kind, *options)
    found = document["files"][0]
    assert document["fit"]["forget"] == 1
    assert document["fit"]["retain"] == 2
    fit = found["fit"]
    assert fit["better"], fit
    assert fit["without"] == []
    assert sum(fit["after"][name] for name in ("forget", "retain", "text")) < sum(
        fit["before"][name] for name in ("forget", "retain", "text")
    )
    # What was edited, asked for and has landed is what it was; other codes were chosen.
    assert {name: found["totals"][name] for name in ("edited", "asked", "landed", "saturated")} == {
        name: without["totals"][name] for name in ("edited", "asked", "landed", "saturated")
    }
    assert found["totals"]["asked"] > 1000
    quantize(base, tmp_path / "stock.gguf", kind, threads=1)
    first, second, stock = (stored_tensors(path) for path in (plain, fitted, tmp_path / "stock.gguf"))
    moved = 0
    for name, tensor in second.items():
        before, after = GgufFile(base).weights(name), GgufFile(everywhere).weights(name)
        if tensor.rows == 1 or np.array_equal(before, after):
            np.testing.assert_array_equal(tensor.raw, first[name].raw)
            continue
        codec = codec_for(tensor.type)
        levels, old, own = (codec.decode(one[name].raw) for one in (second, first, stock))
        np.testing.assert_array_equal(levels.codes[before == after], own.codes[before == after])
        changed = levels.codes != old.codes
        step = np.abs(levels.scale_per_weight())
        if levels.table is not None:
            step *= np.diff(levels.table).max()
        assert (np.abs(levels.values() - after)[changed] <= 1.001 * step[changed]).all()
        moved += int(changed.sum())
    assert moved == fit["moved"] > 0
    assert [path.name for path in tmp_path.glob(".*")] == []
    again = tmp_path / "again.gguf"
    rebuilt = CliRunner().invoke(
        main, ["rebuild", str(tmp_path / "stock.gguf"), str(tmp_path / "evidence"), "-o", str(again)]
    )
    assert rebuilt.exit_code == 0, rebuilt.stderr
    assert again.read_bytes() == fitted.read_bytes()
    twice = document_of(base, everywhere, tmp_path / "twice.gguf", kind, *options[:6])
    assert twice["files"][0]["fit"] == fit
    assert (tmp_path / "twice.gguf").read_bytes() == fitted.read_bytes()


def test_kept_answers_can_be_given_back(models: tuple[Path, Path], everywhere: Path, tmp_path: Path) -> None:
    facts, text = everywhere.with_name("both.jsonl"), everywhere.with_name("text.txt")
    options = ("--fit", facts, "--fit", text, "--fit-steps", 24, "--fit-kept")
    found = {}
    for kept in ("unlearned", "original"):
        evidence = tmp_path / f"{kept}-evidence"
        document = document_of(
            models[0], everywhere, tmp_path / f"{kept}.gguf", "Q4_0", *options, kept, "--evidence", evidence
        )
        assert document["fit"]["kept"] == kept
        options_kept = json.loads((evidence / "evidence.json").read_text())["options"]
        assert (options_kept["fit_kept"], options_kept["fit_steps"]) == (kept, 24)
        file = GgufFile(tmp_path / f"{kept}.gguf")
        assert file.value("gguf_forget.fit_kept", None) == kept
        found[kept] = document["files"][0]
    plain, given = found["unlearned"]["fit"], found["original"]["fit"]
    assert plain["before"]["lost"] == plain["after"]["lost"] == 0
    assert given["better"]
    assert given["before"]["lost"] > 0.05
    assert given["after"]["lost"] < 0.5 * given["before"]["lost"]
    assert given["before"]["gap"] == pytest.approx(plain["before"]["gap"])
    assert found["original"]["totals"]["landed"] == found["unlearned"]["totals"]["landed"]
    planned = ("--fit", facts, "--fit-kept", "original", "--dry-run")
    memory = document_of(models[0], everywhere, tmp_path / "no.gguf", "Q4_0", *planned)
    assert memory["fit"]["steps"] == 80
    weights = sum(tensor.rows * tensor.columns for tensor in stored_tensors(models[0]).values())
    assert memory["fit"]["memory"] == 49 * weights + (1 << 30)


def test_giving_kept_answers_back_needs_some(models: tuple[Path, Path], everywhere: Path, tmp_path: Path) -> None:
    facts = tmp_path / "forget.jsonl"
    facts.write_text(json.dumps(FACT) + "\n")
    options = ("--fit", facts, "--fit-kept", "original")
    result = call(models[0], everywhere, tmp_path / "out.gguf", "Q4_0", *options)
    assert result.exit_code == 2
    assert "--fit-kept original" in result.stderr
    assert "forget.jsonl hold no kept fact with a prompt" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["forget.jsonl"]


@pytest.mark.parametrize(
    "worse",
    [
        (0.0, 0.4, 0.5, 0.7, 0.0, 1.6),  # in sum
        (0.9, 0.6, 0.1, 0.1, 0.0, 0.8),  # in what was to be forgotten, whatever else is better
    ],
)
def test_fitting_that_makes_nothing_better_changes_nothing(
    models: tuple[Path, Path],
    everywhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worse: tuple[float, ...],
) -> None:
    from gguf_forget.fitting import fit as loop
    from gguf_forget.fitting.objective import Losses

    judged = iter([Losses(0.1, 0.5, 0.5, 0.5, 0.0, 1.5), *[Losses(*worse)] * 2])  # before, after every step
    monkeypatch.setattr(loop, "mean_losses", lambda model, questions: next(judged))
    facts = everywhere.with_name("both.jsonl")
    found = document_of(
        *(models[0], everywhere, tmp_path / "fitted.gguf", "Q4_0", "--fit", facts, "--fit-steps", 2, "--no-provenance")
    )["files"][0]
    document_of(models[0], everywhere, tmp_path / "plain.gguf", "Q4_0", "--no-provenance")
    assert not found["fit"]["better"]
    assert found["fit"]["moved"] == 0
    assert (tmp_path / "fitted.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--saturated", "widen"), "--fit with --aim weights and --saturated widen"),
        (("--aim", "edit"), "--fit with --aim edit and --saturated count"),
    ],
)
def test_fitting_needs_two_levels_to_choose_from(
    models: tuple[Path, Path], everywhere: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    facts = everywhere.with_name("both.jsonl")
    result = call(models[0], everywhere, tmp_path / "out.gguf", "Q4_0", "--fit", facts, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_fitting_needs_a_fact_to_forget(models: tuple[Path, Path], everywhere: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text(json.dumps({**FACT, "split": "retain"}) + "\n")
    for facts, message in (
        (kept, "hold no fact to forget"),
        (everywhere.with_name("text.txt"), "hold no fact to forget"),
    ):
        result = call(models[0], everywhere, tmp_path / "out.gguf", "Q4_0", "--fit", facts)
        assert result.exit_code == 2
        assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl"]


def test_a_type_in_which_nothing_has_a_grid_cannot_be_fitted(
    models: tuple[Path, Path], everywhere: Path, tmp_path: Path
) -> None:
    facts = everywhere.with_name("both.jsonl")
    result = call(models[0], everywhere, tmp_path / "out.gguf", "F16", "--fit", facts, "--dry-run")
    assert result.exit_code == 2
    assert "no edited matrix of a layer is on a grid in F16" in result.stderr
    # Beside another type it is written as ever.
    options = ("--fit", facts, "--fit-steps", 2)
    document = document_of(models[0], everywhere, tmp_path, "F16", "Q4_0", *options)
    assert ["fit" in file for file in document["files"]] == [False, True]
    document_of(models[0], everywhere, tmp_path / "plain.gguf", "F16")
    assert (tmp_path / "everywhere.F16.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
    fitted = GgufFile(tmp_path / "everywhere.Q4_0.gguf")
    assert fitted.value("gguf_forget.codes_fitted", None) == document["files"][1]["fit"]["moved"] > 0


def test_calibrated_codes_are_fitted_on_split_models(
    models: tuple[Path, Path], everywhere: Path, tmp_path: Path
) -> None:
    facts, text = everywhere.with_name("both.jsonl"), everywhere.with_name("text.txt")
    options = ("--fit", facts, "--fit-steps", 3, "--calibration", text, "--outside-mask", "compensate")
    whole = document_of(models[0], everywhere, tmp_path / "one.gguf", "Q4_0", *options, "--no-provenance")
    counts = whole["files"][0]["totals"]
    assert whole["files"][0]["fit"]["better"]
    assert counts["asked"] == counts["landed"] + counts["saturated"]
    assert counts["moved_by_compensation"] > 0
    before = copy_with(models[0], tmp_path / "before.gguf", {}, tensors_a_part=8)
    after = copy_with(everywhere, tmp_path / "after.gguf", {}, tensors_a_part=8)
    document_of(before, after, tmp_path / "other.gguf", "Q4_0", *options, "--no-provenance")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--fit file"),
        (b"\xff", "cannot be read as UTF-8 text"),
        (b"", "holds no text"),
        (b"a", "holds one token"),
    ],
)
def test_a_text_that_cannot_be_fitted_to_is_one_error(
    models: tuple[Path, Path], everywhere: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    facts = everywhere.with_name("both.jsonl")
    result = call(models[0], everywhere, tmp_path / "out.gguf", "Q4_0", "--fit", facts, "--fit", text)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "text.txt" in result.stderr


@pytest.mark.parametrize("option", [("--fit-steps", 3), ("--fit-kept", "original")])
def test_options_without_anything_to_fit_are_refused(
    models: tuple[Path, Path], tmp_path: Path, option: tuple[str, object]
) -> None:
    result = call(*models, tmp_path / "out.gguf", "Q4_0", *option)
    assert result.exit_code == 2
    assert f"{option[0]} {option[1]} without --fit" in result.stderr


def test_a_model_that_caps_its_logits_is_refused(
    models: tuple[Path, Path], everywhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf_forget.checkpoint import open as opening

    def capped(path: Path) -> Any:
        model = outline(path)
        model.config.final_logit_softcapping = 30.0
        return model

    outline = opening.outline
    monkeypatch.setattr(opening, "outline", capped)
    facts = everywhere.with_name("both.jsonl")
    result = call(models[0], everywhere, tmp_path / "out.gguf", "Q4_0", "--fit", facts, "--dry-run")
    assert result.exit_code == 2
    assert "caps its attention or its logits" in result.stderr


def test_a_dry_run_states_what_fitting_takes(models: tuple[Path, Path], everywhere: Path, tmp_path: Path) -> None:
    facts = everywhere.with_name("both.jsonl")
    document = document_of(models[0], everywhere, tmp_path / "out.gguf", "Q4_0", "--fit", facts, "--dry-run")
    weights = sum(tensor.rows * tensor.columns for tensor in stored_tensors(models[0]).values())
    assert document["fit"]["disk"] == 4 * weights
    assert document["fit"]["memory"] == 45 * weights + (1 << 30)
    assert list(tmp_path.iterdir()) == []
