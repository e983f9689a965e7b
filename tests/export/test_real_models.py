"""SmolLM2 and its widened form: untouched tensors are llama.cpp's bytes, stock quantization of the twin keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exported import FILE_TYPES, run

from gguf_forget.checkpoint.stored import StoredTensor, stored_tensors
from gguf_forget.demo.prepare import embedded_model
from gguf_forget.demo.widening import widen
from gguf_forget.export.inputs import opened_pair
from gguf_forget.export.quantize import ExportOptions, plan_export
from gguf_forget.export.requantized import requantized
from gguf_forget.export.twin import export_twin
from gguf_forget.llama.options import Importance, QuantizeOptions
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress

pytestmark = pytest.mark.slow
EDITED = ("blk.3.ffn_up.weight", "blk.3.ffn_down.weight", "blk.17.ffn_gate.weight", "blk.29.ffn_down.weight")


def write_edited(original: Path, path: Path) -> Path:
    """3 % of the weights of four matrices, by about a step of four bits."""
    path.write_bytes(original.read_bytes())
    content = np.memmap(path, dtype=np.float32, mode="r+", offset=0)
    generator = np.random.default_rng(7)
    for name in EDITED:
        tensor = stored_tensors(original)[name]
        weights = content[tensor.offset // 4 : (tensor.offset + tensor.raw.nbytes) // 4]
        place = np.flatnonzero(generator.random(weights.size) < 0.03)
        weights[place] += 0.2 * weights.std() * generator.choice([-1.0, 1.0], place.size)
    content.flush()
    return path


@pytest.fixture(scope="module", params=["plain", "widened"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    original = folder / "original.gguf"
    quantize(embedded_model(), original, "F32", allow_requantize=True)
    if request.param == "widened":
        widen(original, folder / "widened.gguf")
        original.unlink()
        original = folder / "widened.gguf"
    return original, write_edited(original, folder / "unlearned.gguf")


def importance(tensors: dict[str, StoredTensor]) -> Importance:
    generator = np.random.default_rng(3)
    values = {
        name: generator.exponential(size=tensor.columns).astype(np.float32)
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2
    }
    return Importance(Path("imatrix"), values)


@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_untouched_tensors_are_llama_cpps(
    models: tuple[Path, Path], tmp_path: Path, file_type: str, with_importance: bool
) -> None:
    original, unlearned = models
    chosen = QuantizeOptions(importance(stored_tensors(original)) if with_importance else None)
    stock, out = tmp_path / "stock.gguf", tmp_path / "out.gguf"
    quantize(original, stock, file_type, options=chosen)
    document = run(original, unlearned, out, file_type, ExportOptions(chosen))
    before, after = stored_tensors(stock), stored_tensors(out)
    assert before.keys() == after.keys()
    differing = [name for name in before if not np.array_equal(before[name].raw, after[name].raw)]
    assert sorted(differing) == sorted(EDITED)
    assert before["token_embd.weight"].offset == after["token_embd.weight"].offset
    assert stock.stat().st_size == out.stat().st_size
    totals = document["totals"]
    assert totals["landed"] + totals["saturated"] == totals["asked"] > 30_000  # Q2_K has the widest steps
    assert document["not_protected"] == []
    stock.unlink()
    out.unlink()


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_stock_quantization_of_the_twin_keeps_the_edits(
    models: tuple[Path, Path], tmp_path: Path, file_type: str
) -> None:
    original, unlearned = models
    options, out, twin = ExportOptions(), tmp_path / "out.gguf", tmp_path / "twin.gguf"
    run(original, unlearned, out, file_type, options)
    with opened_pair(original, unlearned, tmp_path, Progress()) as pair:
        edited = plan_export(pair, [file_type], options).edited
        found = export_twin(pair, edited, out, twin, twin, "F16", options, Progress())
    assert found["kept"] / found["moved"] > 0.999
    (row,) = requantized(original, twin, [file_type], threads=2)
    assert row.share is not None
    assert row.share > 0.999
    out.unlink()
    twin.unlink()
