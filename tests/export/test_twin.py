"""Anybody's stock quantization of the twin has the edits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from exported import DOWN, FILE_TYPES, NORM, UP, edited, run
from libggml_oracle import dequantize
from tiny_shapes import shape_weights, write_shape

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.cli import main
from gguf_forget.export.inputs import opened_pair
from gguf_forget.export.quantize import ExportOptions, plan_export
from gguf_forget.export.twin import export_twin, twin_path
from gguf_forget.grids import CODECS
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress


@pytest.mark.parametrize("file_type", [*FILE_TYPES, "Q4_1", "Q5_1"])
def test_stock_quantization_of_the_twin_keeps_the_edits(tmp_path: Path, file_type: str) -> None:
    weights = shape_weights("llama")
    changed = edited(weights)
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", changed)
    out, twin, options = tmp_path / "out.gguf", tmp_path / "twin.gguf", ExportOptions(threads=2)
    run(original, unlearned, out, file_type)
    with opened_pair(original, unlearned, tmp_path, Progress()) as pair:
        planned = plan_export(pair, [file_type], options)
        found = export_twin(pair, planned.edited, out, twin, twin, "F16", options, Progress())
    quantize(original, tmp_path / "stock.gguf", file_type, threads=1)
    quantize(twin, tmp_path / "by-anyone.gguf", file_type, threads=1)
    stock, shipped, anyone = (stored_tensors(tmp_path / f"{name}.gguf") for name in ("stock", "out", "by-anyone"))
    moved = kept = 0
    for name in (UP, DOWN):
        kind, columns = stock[name].type, stock[name].columns
        old, new, again = (dequantize(kind, side[name].raw, columns) for side in (stock, shipped, anyone))
        step = CODECS[kind].decode(stock[name].raw).step_towards(new - old)
        went = (again - old) * np.sign(new - old)
        moved += int(np.count_nonzero(new != old))
        kept += int(((new != old) & (went >= 0.5 * step)).sum())
    norms = int(np.count_nonzero(changed[NORM] != weights[NORM]))
    assert (found["moved"], found["kept"]) == (moved + norms, kept + norms)
    assert kept / moved > 0.99
    plain = stored_tensors(twin)
    assert plain[UP].type == "F16"
    untouched = "blk.0.ffn_gate.weight"
    np.testing.assert_array_equal(plain[untouched].weights(0, 512), weights[untouched].astype(np.float16))
    elsewhere = changed[UP] == weights[UP]
    np.testing.assert_array_equal(plain[UP].weights(0, 512)[elsewhere], weights[UP].astype(np.float16)[elsewhere])
    np.testing.assert_array_equal(plain[NORM].weights(0, 1)[0], changed[NORM])


def test_blocks_that_were_copied_are_no_edits(tmp_path: Path) -> None:
    """Whose largest code is not 127, as after an earlier export: llama.cpp would choose other scales for them."""
    original = tmp_path / "original.gguf"
    quantize(write_shape(tmp_path / "float.gguf", "llama", shape_weights("llama")), original, "Q8_0", threads=1)
    up = stored_tensors(original)[UP]
    blocks = np.array(up.raw).reshape(-1, 34)  # a half-precision scale, 32 codes
    codes = blocks[:, 2:].view(np.int8)
    codes[np.abs(codes) == 127] -= np.sign(codes[np.abs(codes) == 127])
    with original.open("r+b") as file:
        file.seek(int(GgufFile(original).tensor(UP).data_offset))
        file.write(blocks.tobytes())
    weights = {name: tensor.weights(0, tensor.rows) for name, tensor in stored_tensors(original).items()}
    changed = {name: values.reshape(shape_weights("llama")[name].shape).copy() for name, values in weights.items()}
    before = changed[UP].copy()
    changed[UP][3, 5] += 0.5 * np.abs(before[3]).max()
    unlearned, out, twin = write_shape(tmp_path / "unlearned.gguf", "llama", changed), tmp_path / "o", tmp_path / "t"
    run(original, unlearned, out, "Q8_0")
    options = ExportOptions(threads=2)
    with opened_pair(original, unlearned, tmp_path, Progress()) as pair:
        planned = plan_export(pair, ["Q8_0"], options)
        found = export_twin(pair, planned.edited, out, twin, twin, "F16", options, Progress())
    assert found["moved"] == 1
    elsewhere = changed[UP] == before
    plain = stored_tensors(twin)[UP].weights(0, len(before))
    np.testing.assert_array_equal(plain[elsewhere], before.astype(np.float16)[elsewhere])


def test_the_command_writes_it_beside_the_file(tmp_path: Path) -> None:
    weights = shape_weights("llama")
    original = write_shape(tmp_path / "original.gguf", "llama", weights)
    unlearned = write_shape(tmp_path / "unlearned.gguf", "llama", edited(weights))
    out = tmp_path / "out.gguf"
    arguments = ["quantize", str(original), str(unlearned), str(out), "Q4_0", "--twin", "BF16", "-q"]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    (file,) = json.loads(result.stdout)["files"]
    twin = tmp_path / "out.twin.BF16.gguf"
    assert twin_path(out, "BF16") == twin == Path(file["twin"]["file"])
    assert file["twin"]["bytes"] == twin.stat().st_size
    assert stored_tensors(twin)[UP].type == "BF16"
    assert file["twin"]["moved"] == file["totals"]["moved"]
    result = CliRunner().invoke(main, arguments)
    assert f"its stock Q4_0 keeps {file['twin']['kept']:,} of the {file['totals']['moved']:,} weights" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "original.gguf",
        "out.gguf",
        "out.twin.BF16.gguf",
        "unlearned.gguf",
    ]
    clash = CliRunner().invoke(main, ["quantize", str(original), str(twin), str(out), "Q4_0", "--twin", "BF16", "-q"])
    assert clash.exit_code == 2
    assert "is one of the inputs" in clash.stderr
