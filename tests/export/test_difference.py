"""What ``diff`` says against edits whose every code is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_shapes import shape_weights, write_shape

from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.errors import InputError
from gguf_forget.export import rows
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.difference import difference
from gguf_forget.grids import codec_for
from gguf_forget.llama.options import Importance, QuantizeOptions
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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("file_type", ["Q4_0", "Q8_0", "Q4_K_M"])
def test_a_block_that_is_not_finite_is_refused(base: Path, tmp_path: Path, file_type: str, value: float) -> None:
    stock, broken = tmp_path / "stock.gguf", tmp_path / "broken.gguf"
    quantize(base, stock, file_type, threads=1)
    broken.write_bytes(stock.read_bytes())
    tensor = stored_tensors(stock)[UP]
    assert tensor.type in ("Q4_0", "Q8_0", "Q4_K")
    with broken.open("r+b") as file:
        file.seek(tensor.offset + tensor.raw.shape[1])  # the scale of the second row's first block comes first
        file.write(np.float16(value).tobytes())
    count = 256 if tensor.type == "Q4_K" else 32
    message = f"{broken}: tensor {UP} holds {count} weights that are NaN or infinite"
    for pair in ((stock, broken), (broken, stock)):
        with pytest.raises(InputError) as caught:
            difference(*pair)
        assert caught.value.message == message


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
    (tensor,) = difference(base, after).tensors
    assert (tensor.grid, tensor.step_to_update) == (None, None)


def test_of_two_q8_0_files_codes_and_steps_of_another_grid_are_shown(base: Path, tmp_path: Path) -> None:
    a8, b8, stock = tmp_path / "a8.gguf", tmp_path / "b8.gguf", tmp_path / "stock.gguf"
    quantize(base, a8, "Q8_0", threads=1)
    codec, raw = codec_for("Q8_0"), stored_tensors(a8)[UP].raw
    levels = codec.decode(raw)
    codes = levels.codes.copy()
    codes[::3] += np.where(codes[::3] > 0, -2, 2)  # never past the end of the grid
    write_derived(a8, b8, metadata={}, tensors={UP: codec.with_codes(raw, codes)})
    (plain,) = difference(a8, b8).tensors
    assert (plain.moved, plain.grid, plain.step_to_update, plain.updates) == (171 * 256, None, None, None)
    (tensor,) = difference(a8, b8, file_type="Q4_K_S").tensors
    assert (tensor.type_before, tensor.moved, tensor.shifts) == ("Q8_0", 171 * 256, plain.shifts)
    assert (tensor.up, tensor.down, tensor.regridded, tensor.largest) == (plain.up, plain.down, 0, plain.largest)
    # What the ratio is by hand: steps of llama.cpp's own file of A against the known updates.
    quantize(a8, stock, "Q4_K_S", threads=1, allow_requantize=True)
    shipped = stored_tensors(stock)[UP]
    steps = codec_for(shipped.type).decode(shipped.raw).scale_per_weight()[::3]
    update = 2 * np.abs(levels.scale_per_weight()[::3])
    assert tensor.grid == shipped.type == "Q4_K"
    assert tensor.step_to_update == pytest.approx(np.median(steps / update), rel=0.1)
    assert tensor.updates is not None
    assert sum(tensor.updates.values()) == np.count_nonzero(steps)
    (tensor,) = difference(a8, b8, file_type="Q8_0").tensors  # A as it is: updates of two whole steps
    assert tensor.grid == "Q8_0"
    assert tensor.median_update == pytest.approx(2, rel=0.1)
    assert tensor.updates == {2.0: 171 * 256}


def test_the_grid_is_that_of_the_options(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "WEIGHTS_AT_ONCE", 5_000)
    weights = shape_weights("llama")
    weights[UP][::3] += np.float32(0.001)
    after = write_shape(tmp_path / "after.gguf", "llama", weights)
    generator = np.random.default_rng(0)
    importance = Importance(Path("some.imatrix"), {UP: generator.exponential(size=256).astype(np.float32) ** 4})
    ratios = set()
    for options in (
        QuantizeOptions(),
        QuantizeOptions(importance),
        QuantizeOptions(tensor_types=(("ffn_up", "q5_1"),)),
    ):
        quantize(base, tmp_path / "stock.gguf", "Q4_K_M", threads=1, options=options)
        kind = stored_tensors(tmp_path / "stock.gguf")[UP]
        steps = codec_for(kind.type).decode(kind.raw).scale_per_weight()[::3]
        (tensor,) = difference(base, after, file_type="Q4_K_M", options=options).tensors
        assert tensor.grid == kind.type
        assert tensor.updates is not None
        change = stored_tensors(after)[UP].weights(0, 512)[::3] - stored_tensors(base)[UP].weights(0, 512)[::3]
        assert tensor.updates == binned(change[steps != 0] / steps[steps != 0])
        ratios.add(tuple(tensor.updates.items()))
    assert len(ratios) == 3
    pure = difference(base, after, file_type="Q4_K_M", options=QuantizeOptions(pure=True)).tensors[0]
    assert pure.grid == "Q4_K"


def binned(ratios: np.ndarray) -> dict[float, int]:
    """Eight bins to a power of two, by their lower edge."""
    edges, counts = np.unique(np.floor(8 * np.log2(np.abs(ratios.astype(np.float64)))), return_counts=True)
    return {2.0 ** (edge / 8): count for edge, count in zip(edges.tolist(), counts.tolist(), strict=True)}


def test_tensors_of_one_side_only_and_of_another_shape(base: Path, tmp_path: Path) -> None:
    weights = shape_weights("llama") | {"output.weight": np.ones((64, 256), np.float32)}
    del weights["output_norm.weight"]
    found = difference(base, write_shape(tmp_path / "b.gguf", "llama", weights))
    assert (found.only_before, found.only_after, found.tensors) == (["output_norm.weight"], ["output.weight"], [])
    fewer = write_shape(tmp_path / "c.gguf", "llama", weights | {"token_embd.weight": np.ones((3, 256), np.float32)})
    with pytest.raises(InputError, match=r"token_embd\.weight is \[256, 64\] in .* \[256, 3\] in"):
        difference(base, fewer)
