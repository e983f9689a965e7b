"""The grid before a file is there against llama.cpp's own file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exported import UP, random_importance
from tiny_shapes import shape_weights, write_shape

from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.errors import InputError
from gguf_forget.export import rows
from gguf_forget.export.shipped_grid import shipped_grids
from gguf_forget.grids import CODECS
from gguf_forget.llama.options import Importance, QuantizeOptions
from gguf_forget.llama.quantizer import quantize

EXPERTS = "blk.0.ffn_up_exps.weight"
EMBEDDINGS = "token_embd.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    weights = shape_weights("llama")
    weights[EXPERTS] = np.random.default_rng(5).standard_normal((3, 40, 256)).astype(np.float32)
    return weights


@pytest.fixture(scope="module")
def importance(weights: dict[str, np.ndarray]) -> Importance:
    matrix = random_importance(weights)
    experts = np.random.default_rng(6).exponential(size=3 * 256).astype(np.float32)
    return replace(matrix, values={**matrix.values, EXPERTS: experts})


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize(
    ("file_type", "asked"),
    [
        ("Q4_K_M", {}),
        ("Q4_K_M", {"pure": True}),
        ("Q3_K_M", {"tensor_types": (("attn_q", "q5_1"),), "token_embedding_type": "q6_k"}),
        ("Q4_0", {"importance": True}),
        ("Q2_K_S", {"importance": True}),
        ("Q8_0", {"importance": True}),
    ],
)
def test_every_row_is_that_of_llama_cpps_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: dict[str, np.ndarray],
    importance: Importance,
    kind: str,
    file_type: str,
    asked: dict,
) -> None:
    monkeypatch.setattr(rows, "WEIGHTS_AT_ONCE", 5_000)
    model = write_shape(tmp_path / "model.gguf", "llama", weights, kind)
    options = QuantizeOptions(**{**asked, "importance": importance if "importance" in asked else None})
    quantize(model, tmp_path / "stock.gguf", file_type, threads=1, options=options, allow_requantize=True)
    tensors, stock = stored_tensors(model), stored_tensors(tmp_path / "stock.gguf")
    grids = shipped_grids(model, tensors, file_type, options)
    assert grids.keys() == {name for name, tensor in stock.items() if tensor.type in CODECS}
    for name, grid in grids.items():
        assert grid.codec.name == stock[name].type
        for start, stop in rows.runs_of_rows(tensors[name]):
            some = np.arange(0, stop - start, 3)
            np.testing.assert_array_equal(grid.blocks(start, stop, some), stock[name].raw[start:stop][some])


def test_importances_of_another_size_are_refused_but_those_of_the_embeddings_left_out(
    tmp_path: Path, weights: dict[str, np.ndarray]
) -> None:
    model = write_shape(tmp_path / "model.gguf", "llama", weights)
    short = np.ones(128, np.float32)

    def grids(name: str) -> dict:
        options = QuantizeOptions(Importance(Path("some.imatrix"), {name: short}))
        return shipped_grids(model, stored_tensors(model), "Q4_K_M", options)

    with pytest.raises(InputError, match=rf"some\.imatrix holds 128 importances for {UP}, needed 256"):
        grids(UP)
    with pytest.raises(InputError, match=rf"128 importances for {EXPERTS}, needed 768"):
        grids(EXPERTS)
    assert grids(EMBEDDINGS)[EMBEDDINGS].importance is None


def test_a_type_that_needs_importances_is_refused_without(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    model = write_shape(tmp_path / "model.gguf", "llama", weights)
    with pytest.raises(InputError, match="makes no Q2_K_S without an importance matrix"):
        shipped_grids(model, stored_tensors(model), "Q2_K_S", QuantizeOptions())
    assert "Q2_K" in {
        grid.codec.name for grid in shipped_grids(model, stored_tensors(model), "Q2_K", QuantizeOptions()).values()
    }


def test_tensors_in_coarser_types_have_no_grid(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    model = write_shape(tmp_path / "model.gguf", "llama", weights)
    quantize(model, tmp_path / "coarse.gguf", "Q4_K_M", threads=1)
    tensors = stored_tensors(tmp_path / "coarse.gguf")
    assert shipped_grids(tmp_path / "coarse.gguf", tensors, "Q4_K_M", QuantizeOptions()) == {}
