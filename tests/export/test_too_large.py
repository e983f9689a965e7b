"""Unlearned weights that a type cannot hold are refused by name; nothing infinite ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exported import NORM, UP, edited, run
from tiny_shapes import shape_weights, write_shape

from gguf_forget.errors import InputError
from gguf_forget.export.edit import ROWS, NeuronEdit
from gguf_forget.export.inputs import opened_pair
from gguf_forget.export.patch import RoundingOptions
from gguf_forget.export.quantize import ExportOptions, plan_export
from gguf_forget.export.ship import ship
from gguf_forget.export.twin import export_twin
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress


def pair_with(folder: Path, value: float) -> tuple[Path, Path]:
    """A model, and the same with edits, one of which gives a weight of ``UP`` this value."""
    weights = shape_weights("llama")
    changed = edited(weights)
    changed[UP][3, 5] = value
    return (
        write_shape(folder / "base.gguf", "llama", weights),
        write_shape(folder / "forgets.gguf", "llama", changed),
    )


@pytest.mark.parametrize(
    ("file_type", "value", "kind"), [("F16", 1e5, "F16"), ("F16", -7e4, "F16"), ("TQ2_0", 1e5, "TQ2_0")]
)
def test_a_weight_that_the_type_cannot_hold_is_named(tmp_path: Path, file_type: str, value: float, kind: str) -> None:
    original, unlearned = pair_with(tmp_path, value)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        run(original, unlearned, tmp_path / "out.gguf", file_type)
    assert caught.value.message == f"tensor {UP} of {unlearned} holds a weight of {value:g}, too large for {kind}"
    assert "overflow in the run that wrote" in str(caught.value.hint)
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(("file_type", "value"), [("F16", 65504.0), ("BF16", 1e5), ("F32", 1e5), ("Q8_0", 1e5)])
def test_what_fits_is_shipped(tmp_path: Path, file_type: str, value: float) -> None:
    original, unlearned = pair_with(tmp_path, value)
    document = run(original, unlearned, tmp_path / "out.gguf", file_type)
    assert document["totals"]["edited"] > 1000


@pytest.mark.parametrize(("kind", "fits"), [("F16", False), ("BF16", True)])
def test_an_edit_of_a_run_that_half_precision_cannot_hold_is_named(tmp_path: Path, kind: str, fits: bool) -> None:
    template, stock, out = (tmp_path / name for name in ("template.gguf", "stock.gguf", "out.gguf"))
    write_shape(template, "llama", shape_weights("llama"))
    quantize(template, stock, kind)
    delta = np.zeros((1, 256))
    delta[0, 7] = 1e5
    edits = [NeuronEdit(UP, ROWS, np.array([3]), delta, np.ones(delta.shape, bool))]
    if fits:
        (outcome,) = ship(template, stock, out, edits, hessians={}, metadata={})
        assert outcome.landed == 1
        return
    with pytest.raises(InputError, match=rf"tensor {UP} with its edit holds a weight of 1000\d\d, too large for F16"):
        ship(template, stock, out, edits, hessians={}, metadata={})
    assert sorted(tmp_path.iterdir()) == [stock, template]


@pytest.mark.parametrize("name", [UP, NORM])
def test_a_twin_that_cannot_hold_a_weight_is_refused(tmp_path: Path, name: str) -> None:
    """Of ``UP``, where the shipped file's grid is wide enough; a norm stays F32, where nothing is too large."""
    weights = shape_weights("llama")
    weights[UP][3, :32] = np.linspace(-6e4, 6e4, 32)  # the steps of this block are thousands wide
    changed = edited(weights)
    if name == UP:
        changed[UP][3, 31] = 9e4
    else:
        changed[NORM][5] = 1e5
    original = write_shape(tmp_path / "base.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "forgets.gguf", "llama", changed)
    out, twin = tmp_path / "out.gguf", tmp_path / "twin.gguf"
    options = ExportOptions(threads=2, rounding=RoundingOptions(saturated="widen"))
    run(original, unlearned, out, "Q4_0", options)
    with opened_pair(original, unlearned, tmp_path, Progress()) as pair:
        planned = plan_export(pair, ["Q4_0"], options)
        if name == NORM:
            assert export_twin(pair, planned.edited, out, twin, twin, "F16", options, Progress())["moved"] > 1000
            return
        with pytest.raises(
            InputError, match=rf"tensor {UP} of the twin {twin} holds a weight of .*, too large for F16"
        ):
            export_twin(pair, planned.edited, out, twin, twin, "F16", options, Progress())
