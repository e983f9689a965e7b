"""``gguf-forget quantize`` as a whole: calibration, wider grids, keys and parts, on a model that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_with import copy_with
from libggml_oracle import dequantize
from small_edits import DOWN, UP, call, document_of

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.difference import difference
from gguf_forget.grids import codec_for
from gguf_forget.llama.quantizer import quantize
from gguf_forget.rounding import round_edit
from gguf_forget.whole_file import sha256_file


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


@pytest.mark.parametrize("file_type", ["Q8_0", "TQ1_0"])  # the second's header is llama.cpp's own
def test_keys_of_an_earlier_request_do_not_stay_beside_those_of_the_new_one(
    models: tuple[Path, Path], tmp_path: Path, file_type: str
) -> None:
    def own(file: str) -> dict[str, Any]:
        found = GgufFile(tmp_path / file)
        return {key: found.value(key) for key in found.reader.fields if key.startswith("gguf_forget.")}

    earlier = {"gguf_forget.facts_sha256": "old", "gguf_forget.base_sha256": "old", "gguf_forget.method": "old"}
    write_derived(models[0], tmp_path / "first.gguf", metadata=earlier, tensors={})
    given = (tmp_path / "first.gguf", models[1])
    document_of(*given, tmp_path / "out.gguf", file_type, "--twin", "F16")
    found, twin = own("out.gguf"), own("out.twin.F16.gguf")
    assert "gguf_forget.facts_sha256" not in found
    assert found["gguf_forget.base_sha256"] == sha256_file(tmp_path / "first.gguf")
    assert twin.pop("gguf_forget.method").startswith("edits of a quantized file in half precision")
    assert twin.pop("gguf_forget.type") == "F16"
    assert twin == {key: found[key] for key in found if key not in ("gguf_forget.method", "gguf_forget.type")}
    document_of(*given, tmp_path / "bare.gguf", file_type, "--twin", "F16", "--no-provenance")
    assert own("bare.gguf") == own("bare.twin.F16.gguf") == {}
    for name in ("out", "out.twin.F16"):  # nothing else is another one
        first, second = (stored_tensors(tmp_path / f"{each}.gguf") for each in (name, name.replace("out", "bare")))
        assert all(np.array_equal(first[tensor].raw, second[tensor].raw) for tensor in first)
    # Without an edit it stays the original, keys and all.
    document_of(given[0], given[0], tmp_path / "same.gguf", file_type)
    assert own("same.gguf") == earlier


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
