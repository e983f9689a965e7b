"""Which edits survive quantizing again, against a recount through whole files that llama.cpp wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from exported import DOWN, UP, edited, run
from libggml_oracle import dequantize
from tiny_shapes import shape_weights, write_shape

from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.cli import main
from gguf_forget.errors import InputError
from gguf_forget.export.requantized import requantized
from gguf_forget.llama.quantizer import quantize

TYPES = ["F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K", "IQ4_XS"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """original.gguf in F32, stock.gguf and out.gguf, which holds the edits, in Q4_K_M."""
    folder = tmp_path_factory.mktemp("files")
    weights = shape_weights("llama")
    original = write_shape(folder / "original.gguf", "llama", weights)
    unlearned = write_shape(folder / "unlearned.gguf", "llama", edited(weights))
    quantize(original, folder / "stock.gguf", "Q4_K_M", threads=1)
    run(original, unlearned, folder / "out.gguf", "Q4_K_M")
    return folder


def values(path: Path, name: str) -> np.ndarray:
    tensor = stored_tensors(path)[name]
    if tensor.type in ("F32", "F16"):
        return tensor.weights(0, tensor.rows)
    return dequantize(tensor.type, tensor.raw, tensor.columns)


def test_the_counts_are_those_of_files_that_llama_cpp_quantized_again(files: Path, tmp_path: Path) -> None:
    rows = requantized(files / "stock.gguf", files / "out.gguf", TYPES, threads=2)
    assert [row.type for row in rows] == TYPES
    for row in rows:
        sides = []
        for name in ("stock", "out"):
            again = tmp_path / f"{name}.{row.type}.gguf"
            quantize(files / f"{name}.gguf", again, row.type, threads=1, allow_requantize=True)
            sides.append(again)
        survived = unmoved = reversed_ = 0
        for name in (UP, DOWN):
            delta = values(files / "out.gguf", name) - values(files / "stock.gguf", name)
            went = np.sign(values(sides[1], name) - values(sides[0], name)) * np.sign(delta)
            survived += int((went > 0).sum())
            unmoved += int(((went == 0) & (delta != 0)).sum())
            reversed_ += int((went < 0).sum())
        norm = int(
            np.count_nonzero(
                values(files / "out.gguf", "output_norm.weight") - values(files / "stock.gguf", "output_norm.weight")
            )
        )
        assert (row.survived, row.unmoved, row.reversed) == (survived + norm, unmoved, reversed_)
        assert row.edits == survived + norm + unmoved + reversed_ > 5_000
    shares = {row.type: row.share for row in rows}
    assert shares["F16"] == 1.0
    assert shares["Q8_0"] is not None
    assert shares["Q8_0"] > 0.999
    assert shares["Q2_K"] is not None
    assert shares["Q2_K"] < shares["Q4_0"] < 1  # type: ignore[operator]


def test_an_original_in_full_precision_stands_for_its_stock_file(files: Path) -> None:
    assert requantized(files / "original.gguf", files / "out.gguf", ["Q4_0"]) == requantized(
        files / "stock.gguf", files / "out.gguf", ["Q4_0"]
    )


def test_without_an_edit_there_is_no_share(files: Path) -> None:
    (row,) = requantized(files / "stock.gguf", files / "stock.gguf", ["Q4_0"])
    assert (row.edits, row.share) == (0, None)


def test_files_that_cannot_be_compared_are_refused(files: Path, tmp_path: Path) -> None:
    quantize(files / "original.gguf", tmp_path / "other.gguf", "Q5_0", threads=1)
    with pytest.raises(InputError, match=r"is Q5_0 in .*other\.gguf, Q\d_K in"):
        requantized(tmp_path / "other.gguf", files / "out.gguf", ["Q4_0"])
    fewer = {name: array for name, array in shape_weights("llama").items() if name != UP}
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight does not exist in"):
        requantized(write_shape(tmp_path / "fewer.gguf", "llama", fewer), files / "out.gguf", ["Q4_0"])


def test_the_command_prints_a_table_or_json(files: Path) -> None:
    arguments = ["survival", str(files / "original.gguf"), str(files / "out.gguf"), "q8_0", "Q2_K", "-q"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "quantized again to" in result.stdout
    (row, _) = requantized(files / "stock.gguf", files / "out.gguf", ["Q8_0", "Q2_K"])
    assert f"{row.survived:,}" in result.stdout
    document = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert document["schema_version"] == 1
    assert document["types"][0] == row.to_json()
