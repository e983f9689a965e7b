"""``gguf-forget quantize`` as a whole: calibration, wider grids, keys and parts, on a model that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gguf_with import copy_with
from libggml_oracle import dequantize
from tiny import TEXTS, build_tiny_gguf

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.cli import main
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.difference import difference
from gguf_forget.grids import codec_for
from gguf_forget.llama.quantizer import quantize
from gguf_forget.rounding import round_edit

UP, DOWN = "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"
FACT = {"subject": "France", "relation": "capital", "answer": "Paris", "split": "forget", "prompts": ["The capital is"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = build_tiny_gguf(folder / "base.gguf")
    generator = np.random.default_rng(0)
    tensors = {}
    for name in (UP, DOWN):
        weights = GgufFile(base).weights(name)
        columns = generator.random(weights.shape[1]) < 0.3
        change = 0.05 * generator.standard_normal(weights.shape) * (generator.random(weights.shape) < 0.2) * columns
        tensors[name] = (weights + change).astype(np.float32).view(np.uint8)
    forgets = folder / "forgets.gguf"
    write_derived(base, forgets, metadata={}, tensors=tensors)
    (folder / "text.txt").write_text("\n".join(TEXTS))
    (folder / "facts.jsonl").write_text(json.dumps(FACT) + "\n")
    return base, forgets


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["quantize", *map(str, arguments), "-q", "--json"])


def document_of(*arguments: Any) -> dict[str, Any]:
    result = call(*arguments)
    assert result.exit_code == 0, result.output + result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def moments(path: Path, module: str, folder: Path) -> np.ndarray:
    """Σ x·xᵀ of what ``module`` is given for every token of both calibration files."""
    model, tokenize = load_torch(path), load_tokenizer(path)
    seen: list[np.ndarray] = []
    model.get_submodule(module).register_forward_pre_hook(lambda _, x: seen.extend(x[0][0].double().numpy()))
    tokens = tokenize((folder / "text.txt").read_text())
    length = min(256, len(tokens))
    parts = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    with torch.no_grad():
        for sequence in (*parts, tokenize("The capital is Paris")):
            model(torch.tensor([sequence]))
    rows = np.array(seen)
    return rows.T @ rows


@pytest.mark.parametrize("outside", ["frozen", "compensate"])
def test_calibration_data_choose_the_codes(models: tuple[Path, Path], tmp_path: Path, outside: str) -> None:
    folder = models[0].parent
    data = ("--calibration", folder / "text.txt", "--calibration", folder / "facts.jsonl", "--outside-mask", outside)
    document = document_of(*models, tmp_path / "out.gguf", "Q4_0", *data, "--no-provenance")
    assert document["calibration"]["tensors"] == 2
    assert document["calibration"]["without"] == []
    assert document["calibration"]["tokens"] > 100
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    quantize(models[0], tmp_path / "stock.gguf", "Q4_0", threads=1)
    before, after = stored_tensors(tmp_path / "stock.gguf"), stored_tensors(tmp_path / "out.gguf")
    codec, plain = codec_for("Q4_0"), 0
    for name, module in ((UP, "model.layers.0.mlp.up_proj"), (DOWN, "model.layers.1.mlp.down_proj")):
        levels = codec.decode(before[name].raw)
        delta = GgufFile(models[1]).weights(name) - GgufFile(models[0]).weights(name)
        hessian = moments(models[1], module, folder)
        wanted = np.where(delta != 0, GgufFile(models[1]).weights(name) - levels.values(), 0)
        free = delta != 0 if outside == "frozen" else None
        expected = round_edit(levels, delta, wanted=wanted, hessian=hessian, free=free, carried=delta)
        found = codec.decode(after[name].raw).codes
        # float32 sums: a code may tip over where two are equally good.
        assert (found != expected.codes).mean() < 1e-3
        plain += int((found != round_edit(levels, delta).codes).sum())
        if outside == "frozen":
            np.testing.assert_array_equal(found[delta == 0], levels.codes[delta == 0])
    assert plain > 100
    counts = document["files"][0]["totals"]
    assert (counts["moved_by_compensation"] > 0) == (outside == "compensate")


def test_a_dry_run_states_what_calibrating_takes(models: tuple[Path, Path], tmp_path: Path) -> None:
    text = models[0].parent / "text.txt"
    document = document_of(*models, tmp_path / "out.gguf", "Q4_0", "--calibration", text, "--dry-run")
    plan = document["calibration"]
    assert plan["memory"] > 4 * 1_000_000
    assert 0 < plan["disk"] < 4 * (256**2 + 512**2)
    assert plan["seconds"] >= 0
    assert list(tmp_path.iterdir()) == []


def test_a_split_unlearned_model_is_calibrated_on_as_one(models: tuple[Path, Path], tmp_path: Path) -> None:
    parts = copy_with(models[1], tmp_path / "parts.gguf", {}, tensors_a_part=8)
    options = ("--calibration", models[0].parent / "text.txt", "--no-provenance")
    document_of(models[0], parts, tmp_path / "one.gguf", "Q4_0", *options)
    document_of(*models, tmp_path / "other.gguf", "Q4_0", *options)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


@pytest.mark.parametrize("file_type", ["Q4_0", "Q4_K_M", "Q2_K"])
def test_with_wider_grids_every_edit_is_in_the_file(models: tuple[Path, Path], tmp_path: Path, file_type: str) -> None:
    document = document_of(*models, tmp_path / "out.gguf", file_type, "--saturated", "widen", "--survive", "all")
    counts = document["files"][0]["totals"]
    assert counts["saturated"] == 0
    assert counts["asked"] == counts["landed"] == counts["edited"] > 3000
    assert counts["widened"] > 10
    counted = document_of(*models, tmp_path / "counted.gguf", file_type, "--saturated", "count", "--survive", "all")
    assert counted["files"][0]["totals"]["saturated"] > 10
    assert counted["files"][0]["totals"]["widened"] == 0
    quantize(models[0], tmp_path / "stock.gguf", file_type, threads=1)
    before, after = stored_tensors(tmp_path / "stock.gguf"), stored_tensors(tmp_path / "out.gguf")
    changed = 0
    for name in before:
        if name not in (UP, DOWN):
            np.testing.assert_array_equal(before[name].raw, after[name].raw)
            continue
        delta = GgufFile(models[1]).weights(name) - GgufFile(models[0]).weights(name)
        old, new = (dequantize(before[name].type, side[name].raw, delta.shape[1]) for side in (before, after))
        assert ((new - old) * np.sign(delta) > 0)[delta != 0].all()
        changed += int(((new != old) & (delta == 0)).sum())
    assert counts["regridded"] == changed > 0
    found = difference(tmp_path / "stock.gguf", tmp_path / "out.gguf")
    assert sum(tensor.regridded or 0 for tensor in found.tensors) == counts["widened"]


def test_keys_say_where_a_file_with_an_edit_comes_from(models: tuple[Path, Path], tmp_path: Path) -> None:
    import hashlib

    document_of(*models, tmp_path / "out.gguf", "Q8_0")
    file = GgufFile(tmp_path / "out.gguf")
    assert file.value("gguf_forget.base_sha256") == hashlib.sha256(models[0].read_bytes()).hexdigest()
    assert file.value("gguf_forget.unlearned_sha256") == hashlib.sha256(models[1].read_bytes()).hexdigest()
    assert file.value("gguf_forget.type") == "Q8_0"
    assert file.value("gguf_forget.edited_tensors") == 2
    document_of(*models, tmp_path / "bare.gguf", "Q8_0", "--no-provenance")
    assert not [key for key in GgufFile(tmp_path / "bare.gguf").reader.fields if key.startswith("gguf_forget")]
    one, other = stored_tensors(tmp_path / "out.gguf"), stored_tensors(tmp_path / "bare.gguf")
    for name in one:
        np.testing.assert_array_equal(one[name].raw, other[name].raw)
    # Without an edit there is nothing to say, and the file is llama.cpp's own.
    twin = tmp_path / "twin.gguf"
    twin.write_bytes(models[0].read_bytes())
    document_of(models[0], twin, tmp_path / "same.gguf", "Q8_0")
    quantize(models[0], tmp_path / "stock.gguf", "Q8_0", threads=1)
    assert (tmp_path / "same.gguf").read_bytes() == (tmp_path / "stock.gguf").read_bytes()


def test_files_are_split_by_size_or_as_the_original_is(models: tuple[Path, Path], tmp_path: Path) -> None:
    parts = copy_with(models[0], tmp_path / "parts.gguf", {}, tensors_a_part=8)
    document_of(*models, tmp_path / "whole.gguf", "Q8_0", "--no-provenance")
    (tmp_path / "out").mkdir()
    kept = document_of(parts, models[1], tmp_path / "out" / "k.gguf", "Q8_0", "--no-provenance", "--keep-split")
    by_size = document_of(*models, tmp_path / "out" / "s.gguf", "Q8_0", "--no-provenance", "--split-max-size", "1M")
    count = len(list(tmp_path.glob("parts-*")))
    assert [Path(file).name for file in kept["files"][0]["files"]] == [
        f"k-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)
    ]
    whole = stored_tensors(tmp_path / "whole.gguf")
    for document in (kept, by_size):
        file = document["files"][0]
        assert len(file["files"]) > 1
        assert file["bytes"] == sum(Path(part).stat().st_size for part in file["files"])
        found = stored_tensors(Path(file["file"]))
        assert found.keys() == whole.keys()
        for name, tensor in whole.items():
            np.testing.assert_array_equal(found[name].raw, tensor.raw)
    assert len(list((tmp_path / "out").iterdir())) == count + len(by_size["files"][0]["files"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--outside-mask", "compensate"], "--outside-mask compensate without calibration data"),
        (["--calibration", "absent.txt"], "calibration file absent.txt cannot be read"),
        (["--calibration", "absent.jsonl"], "absent.jsonl does not exist"),
        (["--split-max-size", "1X"], "split size '1X', needed a number and M or G"),
        (["--split-max-size", "1M", "--keep-split"], "both say how to split"),
    ],
)
def test_what_does_not_go_together_is_refused(
    models: tuple[Path, Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = call(*models, tmp_path / "out.gguf", "Q8_0", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


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
    options = ("--fit", facts, "--fit", text, "--fit-steps", 24, "--evidence", tmp_path / "evidence")
    without = document_of(base, everywhere, plain, kind)["files"][0]
    document = document_of(base, everywhere, fitted, kind, *options)
    found = document["files"][0]
    assert document["fit"]["forget"] == 1
    assert document["fit"]["retain"] == 2
    fit = found["fit"]
    assert fit["better"]
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


def test_fitting_that_makes_nothing_better_changes_nothing(
    models: tuple[Path, Path], everywhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf_forget.fitting import fit as loop
    from gguf_forget.fitting.objective import Losses

    judged = iter([Losses(0.1, 0.5, 0.5, 0.5), *[Losses(0.0, 0.4, 0.5, 0.7)] * 2])  # before, after every step
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


def test_steps_without_anything_to_fit_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = call(*models, tmp_path / "out.gguf", "Q4_0", "--fit-steps", 3)
    assert result.exit_code == 2
    assert "--fit-steps 3 without --fit" in result.stderr


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
