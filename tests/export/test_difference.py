"""What ``diff`` says against edits whose every code is known."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_shapes import shape_weights, write_shape

from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.cli import main
from gguf_forget.errors import InputError
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.difference import difference
from gguf_forget.grids import codec_for
from gguf_forget.llama.quantizer import quantize

UP = "blk.0.ffn_up.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape(tmp_path_factory.mktemp("base") / "base.gguf", "llama", shape_weights("llama"))


def test_moved_codes_are_counted_by_direction_and_distance(base: Path, tmp_path: Path) -> None:
    quantize(base, tmp_path / "stock.gguf", "Q4_0", threads=1)
    codec, raw = codec_for("Q4_0"), stored_tensors(tmp_path / "stock.gguf")[UP].raw
    levels = codec.decode(raw)
    codes = levels.codes.copy()
    codes[3, :4] = [5, 5, 5, 5]
    start = codec.with_codes(raw, codes)
    codes[3, :4] = [6, 7, 4, 5]
    moved = codec.with_codes(raw, codes)
    scale = float(levels.scale[3, 0])
    write_derived(tmp_path / "stock.gguf", tmp_path / "a.gguf", metadata={}, tensors={UP: start})
    write_derived(tmp_path / "stock.gguf", tmp_path / "b.gguf", metadata={"gguf_forget.x": 7}, tensors={UP: moved})
    found = difference(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert found.same == len(stored_tensors(base)) - 1
    assert (found.metadata_added, found.metadata_removed, found.metadata_changed) == ({"gguf_forget.x": "7"}, {}, {})
    (tensor,) = found.tensors
    assert (tensor.tensor, tensor.type_before, tensor.weights, tensor.moved) == (UP, "Q4_0", 512 * 256, 3)
    assert tensor.shifts == {-1: 1, 1: 1, 2: 1}
    assert (tensor.up, tensor.down) == ((2, 1) if scale > 0 else (1, 2))
    assert tensor.largest == pytest.approx(2 * abs(scale))
    assert tensor.regridded == 0


def test_another_grid_is_said_to_be_one(base: Path, tmp_path: Path) -> None:
    changed = shape_weights("llama")
    changed[UP][5, 40] = 3.0  # an outlier: its sub-block gets another scale
    quantize(base, tmp_path / "a.gguf", "Q4_0", threads=1)
    quantize(write_shape(tmp_path / "c.gguf", "llama", changed), tmp_path / "b.gguf", "Q4_0", threads=1)
    (tensor,) = difference(tmp_path / "a.gguf", tmp_path / "b.gguf").tensors
    assert tensor.regridded == 1
    assert 0 < tensor.moved <= 32


def test_updates_are_measured_in_steps_of_the_grid_that_would_ship(base: Path, tmp_path: Path) -> None:
    weights = shape_weights("llama")
    quantize(base, tmp_path / "stock.gguf", "Q4_K_S", threads=1)
    kind = stored_tensors(tmp_path / "stock.gguf")[UP]
    steps = codec_for(kind.type).decode(kind.raw).scale_per_weight()
    weights[UP][::3] += steps[::3] / 100
    after = write_shape(tmp_path / "after.gguf", "llama", weights)
    (tensor,) = difference(base, after, file_type="Q4_K_S").tensors
    assert (tensor.grid, tensor.moved) == (kind.type, np.count_nonzero(steps[::3]))
    assert tensor.step_to_update == pytest.approx(100, rel=0.1)
    assert tensor.updates is not None
    assert sum(tensor.updates.values()) == tensor.moved
    assert all(0.009 < edge < 0.011 for edge in tensor.updates)
    picture = tmp_path / "updates.png"
    arguments = ["diff", str(base), str(after), "--type", "q4_k_s", "--plot", str(picture), "-q"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(main, [*arguments[:-2], "updates.pdf", "-q"]).exit_code == 2
    (tensor,) = difference(base, after).tensors
    assert (tensor.grid, tensor.step_to_update) == (None, None)


def test_tensors_of_one_side_only_and_of_another_shape(base: Path, tmp_path: Path) -> None:
    weights = shape_weights("llama") | {"output.weight": np.ones((64, 256), np.float32)}
    del weights["output_norm.weight"]
    found = difference(base, write_shape(tmp_path / "b.gguf", "llama", weights))
    assert (found.only_before, found.only_after, found.tensors) == (["output_norm.weight"], ["output.weight"], [])
    fewer = write_shape(tmp_path / "c.gguf", "llama", weights | {"token_embd.weight": np.ones((3, 256), np.float32)})
    with pytest.raises(InputError, match=r"token_embd\.weight is \[256, 64\] in .* \[256, 3\] in"):
        difference(base, fewer)


def test_the_command_prints_a_table_or_json(base: Path, tmp_path: Path) -> None:
    quantize(base, tmp_path / "a.gguf", "Q8_0", threads=1)
    quantize(base, tmp_path / "b.gguf", "Q4_K_M", threads=1)
    result = CliRunner().invoke(main, ["diff", str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), "-q"])
    assert result.exit_code == 0, result.output
    assert "Q8_0 → Q4_K" in result.stdout
    q8, q4 = gguf.LlamaFileType.MOSTLY_Q8_0.value, gguf.LlamaFileType.MOSTLY_Q4_K_M.value
    assert f"~ general.file_type = {q8} → {q4}" in result.stdout
    result = CliRunner().invoke(main, ["diff", str(base), str(base), "-q", "--json"])
    document = json.loads(result.stdout)
    assert (document["schema_version"], document["tensors"], document["same"]) == (1, [], len(stored_tensors(base)))
    result = CliRunner().invoke(main, ["diff", str(base), str(tmp_path / "absent.gguf"), "-q"])
    assert result.exit_code == 2
    assert "absent.gguf cannot be read" in result.stderr
