"""The list of moves gives back the shipped file bit for bit, and refuses whatever it was not made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.moves import MovesFile, rebuild, write_moves
from gguf_forget.grids import CODECS
from gguf_forget.llama.quantizer import quantize

NORM, UP, DOWN = "blk.0.attn_norm.weight", "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"]
TYPES += ["IQ4_NL", "IQ4_XS", "TQ2_0"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_gguf(tmp_path_factory.mktemp("model") / "template.gguf")


def shipped_from(stock: Path, destination: Path, *, rescale: bool = False) -> dict[str, int]:
    """A file with other codes (or bytes, or floats) and three more keys; the moves of each tensor."""
    generator = np.random.default_rng(0)
    tensors = stored_tensors(stock)
    new, moved = {}, {}
    for name in (NORM, UP, DOWN):
        tensor = tensors[name]
        raw = np.array(tensor.raw)
        if tensor.type in CODECS and not rescale:
            levels = CODECS[tensor.type].decode(raw)
            chosen = generator.random(levels.codes.shape) < 0.02
            shift = generator.integers(-1, 2, levels.codes.shape) * chosen
            codes = np.clip(levels.codes + shift, levels.lowest, levels.highest)
            raw, moved[name] = CODECS[tensor.type].with_codes(raw, codes), int((codes != levels.codes).sum())
        else:
            flat = raw.reshape(-1)
            flat[5::97] ^= 1  # the low byte of the scale of some blocks, or of some weights
            size = 4 if tensor.type == "F32" else 2 if tensor.type in ("F16", "BF16") else 1
            moved[name] = len(np.unique(np.arange(5, len(flat), 97) // size))
        new[name] = raw
    keys = {"gguf_forget.version": "0", "gguf_forget.count": 3, "gguf_forget.share": 0.5}
    write_derived(stock, destination, metadata=keys, tensors=new)
    return moved


@pytest.mark.parametrize(
    ("file_type", "rescale"), [*((kind, False) for kind in TYPES), ("Q4_0", True), ("Q8_0", True), ("Q3_K_M", True)]
)
def test_the_shipped_file_comes_back_bit_for_bit(template: Path, tmp_path: Path, file_type: str, rescale: bool) -> None:
    stock, shipped, moves, out = (tmp_path / name for name in ("stock.gguf", "shipped.gguf", "m.npz", "out.gguf"))
    if file_type == "F32":
        stock = template
    else:
        quantize(template, stock, file_type)
    moved = shipped_from(stock, shipped, rescale=rescale)
    about = write_moves(stock, shipped, moves)
    assert {name: entry["moves"] for name, entry in about.tensors.items()} == moved
    assert about.tensors[NORM]["unit"] == "float"
    kind = stored_tensors(stock)[UP].type
    unit = "byte" if rescale or kind not in CODECS else "code"
    assert about.tensors[UP]["unit"] == ("float" if kind in ("F32", "F16", "BF16") else unit)
    rebuild(stock, MovesFile(moves), out)
    assert out.read_bytes() == shipped.read_bytes()
    assert moves.stat().st_size < shipped.stat().st_size / 5


@pytest.fixture
def made(template: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    stock, shipped, moves = (tmp_path / name for name in ("stock.gguf", "shipped.gguf", "m.npz"))
    quantize(template, stock, "Q4_K_M")
    shipped_from(stock, shipped)
    write_moves(stock, shipped, moves)
    return stock, shipped, moves


def test_the_list_says_what_it_holds_and_is_the_same_twice(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    stock, shipped, moves = made
    write_moves(stock, shipped, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == moves.read_bytes()
    with np.load(moves, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        position, before, after = (arrays[f"{UP}/{part}"] for part in ("position", "before", "after"))
    assert [key[0] for key in about["keys"] if isinstance(key, list)] == [
        "gguf_forget.version",
        "gguf_forget.count",
        "gguf_forget.share",
    ]
    for path, codes in ((stock, before), (shipped, after)):
        file = GgufFile(path)
        decoded = CODECS[file.type_name(UP)].decode(file.rows(UP)).codes.ravel()
        assert np.array_equal(decoded[position.astype(int)], codes)


def test_an_empty_list_gives_the_stock_file(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    stock, _, _ = made
    about = write_moves(stock, stock, tmp_path / "none.npz")
    assert about.tensors == {}
    rebuild(stock, MovesFile(tmp_path / "none.npz"), tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == stock.read_bytes()


def test_another_stock_file_is_refused_by_its_hash(
    made: tuple[Path, Path, Path], template: Path, tmp_path: Path
) -> None:
    _, shipped, moves = made
    out = tmp_path / "out.gguf"
    for wrong in (shipped, template):
        with pytest.raises(InputError, match=r"has sha256 [0-9a-f]{64}, needed [0-9a-f]{64} \(stock\.gguf"):
            rebuild(wrong, MovesFile(moves), out)
    assert not out.exists()


def test_files_of_another_layout_are_refused(made: tuple[Path, Path, Path], template: Path, tmp_path: Path) -> None:
    stock, _, _ = made
    with pytest.raises(InputError, match="tensors of other types"):
        write_moves(stock, template, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def changed(moves: Path, destination: Path, name: str, change: object) -> MovesFile:
    with np.load(moves, allow_pickle=False) as arrays:
        content = dict(arrays)
    content[name] = change(content[name])  # type: ignore[operator]
    np.savez_compressed(destination.with_suffix(""), **content)
    return MovesFile(destination.with_suffix("").with_suffix(".npz"))


def test_a_changed_list_never_gives_a_file(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    stock, _, moves = made
    out = tmp_path / "out.gguf"

    def flipped(values: np.ndarray) -> np.ndarray:
        return np.concatenate([[values[0] ^ 1], values[1:]]).astype(values.dtype)

    for part, error, message in (
        ("after", EvaluationError, "was changed after it was written"),
        ("before", InputError, "other values in the stock file"),
    ):
        with pytest.raises(error, match=message):
            rebuild(stock, changed(moves, tmp_path / "c.npz", f"{UP}/{part}", flipped), out)
    for change in (lambda v: v[::-1], lambda v: v + np.uint64(1 << 40), lambda v: v[:-1], lambda v: v.astype(float)):
        with pytest.raises(InputError, match="cannot be read"):
            rebuild(stock, changed(moves, tmp_path / "c.npz", f"{UP}/position", change), out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def with_about(moves: Path, destination: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The same list, about something else."""
    with np.load(moves, allow_pickle=False) as arrays:
        content = dict(arrays)
    record = json.loads(content["about"].tobytes())
    change(record)
    content["about"] = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
    np.savez_compressed(destination, **content)
    return destination


def put(place: str, value: object) -> Callable[[dict[str, Any]], object]:
    """A change of one value, which ``place`` names by its keys; of a tensor's by ``tensors/KEY``, those of ``UP``."""
    first, _, key = place.partition("/")

    def change(record: dict[str, Any]) -> None:
        inside = record["tensors"][UP] if first == "tensors" and key else record[first] if key else record
        if value is None:
            del inside[key or first]
        else:
            inside[key or first] = value

    return change


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("version", value) for value in ("3", -1, 2**40, True, 3.0, None, 0)),
        *(("alignment", value) for value in ("32", 0, -32, 10**13, 32.5, None)),
        *(("tensors", value) for value in ([UP], "x", {UP: "x"}, {UP: [1]}, None)),
        *(("tensors/unit", value) for value in (None, [1], "bit", "float")),
        *(("tensors/type", value) for value in (None, 3, "TQ2_0")),
        *(("tensors/moves", value) for value in (None, "3", -1, 1.5, True)),
        *(("keys", value) for value in (None, "abc", [3], [["a"]], [["a", "zz"]], [["a", 3]], [[3, "00"]], {"a": 1})),
        *(("stock", value) for value in (None, "x", {}, [1])),
        *(("shipped/sha256", value) for value in (None, 3)),
        *(("stock/bytes", value) for value in (None, "3", True, -1)),
        *(("stock/name", value) for value in (None, 5, "")),
        ("schema_version", 2),
        ("more", 1),
    ],
)
def test_a_malformed_list_is_refused_before_anything_is_written(
    made: tuple[Path, Path, Path], tmp_path: Path, place: str, value: object
) -> None:
    path = with_about(made[2], tmp_path / "c.npz", put(place, value))
    with pytest.raises(InputError) as caught:
        MovesFile(path)
    assert caught.value.message == f"{path} is no readable list of moves"
    assert caught.value.cause
    assert caught.value.hint == "give a .moves.npz of an evidence folder"


def test_codes_of_a_type_without_codes_are_refused(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path = with_about(made[2], tmp_path / "c.npz", lambda record: record["tensors"][NORM].update(unit="code"))
    with pytest.raises(InputError, match="no readable list of moves") as caught:
        MovesFile(path)
    assert str(caught.value.cause).startswith(f"{NORM}: ")


def test_a_number_of_moves_that_is_not_theirs_gives_no_file(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path = with_about(made[2], tmp_path / "c.npz", put("tensors/moves", 7))
    with pytest.raises(InputError, match=f"the moves of {UP} cannot be read") as caught:
        rebuild(made[0], MovesFile(path), tmp_path / "out.gguf")
    assert "needed 7" in str(caught.value.cause)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"no list", b"{}"])
def test_what_is_no_list_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no readable list of moves"):
        MovesFile(path)


def test_a_list_cut_short_is_refused(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    stock, _, moves = made
    whole = moves.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(InputError):
            rebuild(stock, MovesFile(tmp_path / "cut.npz"), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
