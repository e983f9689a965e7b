"""Small valid files of every kind that the program reads, made once."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize as quantize_numpy


@dataclass(frozen=True)
class Material:
    """``moves``: from ``stock`` to ``shipped``; ``report``: a report on files.

    ``items_…``: a public set; ``model``: a whole one that llama.cpp loads; ``evidence``: the signed folder of an export
    from ``model_stock`` to ``model_shipped``.
    """

    stock: Path
    shipped: Path
    moves: Path
    facts: Path
    recipe: Path
    report: Path
    circuit: Path
    edit: Path
    items_json: Path
    items_jsonl: Path
    items_csv: Path
    items_parquet: Path
    imatrix: Path
    legacy_imatrix: Path
    model: Path
    model_stock: Path
    model_shipped: Path
    evidence: Path
    public_key: Path


def write_gguf(path: Path, shift: int = 0) -> Path:
    """Two layers of MLPs in Q8_0 and a norm; ``shift`` moves some codes."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("fuzz")
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.tokens", [f"token {index}" for index in range(64)])
    writer.add_tensor("output_norm.weight", np.ones(256, dtype=np.float32))
    for layer in range(2):
        for name, shape in (("ffn_up", (64, 256)), ("ffn_down", (256, 64))):
            raw = quantize_numpy(
                generator.standard_normal(shape).astype(np.float32), gguf.GGMLQuantizationType.Q8_0
            ).copy()
            if shift:
                raw[::3, 2] = np.where(raw[::3, 2] < 100, raw[::3, 2] + shift, raw[::3, 2])
            writer.add_tensor(f"blk.{layer}.{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make(folder: Path) -> Material:
    from safetensors.numpy import save_file

    from gguf_forget.export.edit import ROWS, NeuronEdit, save_edits
    from gguf_forget.export.moves import write_moves
    from gguf_forget.facts.schema import Fact, dump_facts

    stock, shipped = write_gguf(folder / "stock.gguf"), write_gguf(folder / "shipped.gguf", 1)
    write_moves(stock, shipped, folder / "list.moves.npz")
    cities = ("Paris", "Rome", "Oslo", "Bern", "Lima", "Cairo")
    facts = [
        Fact(f"Land {index}", "capital", city, tuple(c for c in cities if c != city)[:3], split, (f"Of {index}:",))
        for index, city in enumerate(cities)
        for split in (("forget", "retain")[index % 2],)
    ]
    (folder / "facts.jsonl").write_bytes(dump_facts(facts))
    (folder / "recipe.toml").write_text(
        '[model]\npath = "stock.gguf"\n[facts]\npath = "facts.jsonl"\n[export]\ntypes = ["Q8_0"]\n'
    )
    report = {"schema_version": 1, "kind": "verification of files", "tools": {}, "facts": {}, "remarks": []}
    report |= {"evidence": {"files": [], "originals": {}, "limits": {}, "headline": None}, "baseline": None}
    report |= {"headline": [], "rows": [], "verdict": {"status": "", "gates": []}, "sha256": ""}
    (folder / "report.json").write_text(json.dumps(report))
    scores = np.zeros((2, 64), dtype=np.float32)
    arrays = {"mask": np.eye(2, 64, dtype=np.uint8), "forget": scores, "retain": scores}
    save_file(arrays, folder / "circuit.safetensors")
    delta = np.ones((2, 256), dtype=np.float32)
    edit = NeuronEdit("blk.0.ffn_up.weight", ROWS, np.array([1, 2]), delta, delta > 0)
    save_edits([edit], folder / "edit.safetensors")
    return Material(
        stock=stock,
        shipped=shipped,
        moves=folder / "list.moves.npz",
        facts=folder / "facts.jsonl",
        recipe=folder / "recipe.toml",
        report=folder / "report.json",
        circuit=folder / "circuit.safetensors",
        edit=folder / "edit.safetensors",
        **_items(folder),
        **_importances(folder),
        **_signed_export(folder),
    )


def _items(folder: Path) -> dict[str, Path]:
    """The same questions in every format."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"question": f"What is said of {index}?", "A": "that", "B": "an apple", "C": "salt", "D": "rain", "answer": "B"}
        for index in range(4)
    ]
    listed = [{"question": row["question"], "choices": [row[letter] for letter in "ABCD"], "answer": 1} for row in rows]
    paths = {f"items_{kind}": folder / f"items.{kind}" for kind in ("json", "jsonl", "csv", "parquet")}
    paths["items_json"].write_text(json.dumps(listed))
    paths["items_jsonl"].write_text("".join(json.dumps(row) + "\n" for row in listed))
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    paths["items_csv"].write_text("".join(",".join(line) + "\n" for line in table))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(listed), paths["items_parquet"])
    return paths


def _importances(folder: Path) -> dict[str, Path]:
    """Both forms of an importance matrix."""
    new, old = folder / "new.gguf", folder / "old.dat"
    writer = gguf.GGUFWriter(new, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 2)
    for layer in range(2):
        writer.add_tensor(f"blk.{layer}.ffn_up.weight.in_sum2", np.ones((1, 256), dtype=np.float32))
        writer.add_tensor(f"blk.{layer}.ffn_up.weight.counts", np.ones((1, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    name, sums = b"blk.0.ffn_up.weight", np.ones(256, dtype="<f4").tobytes()
    old.write_bytes(struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 2, 256) + sums + struct.pack("<i", 0))
    return {"imatrix": new, "legacy_imatrix": old}


def _signed_export(folder: Path) -> dict[str, Path]:
    """A tiny model, quantized beside an edited copy with evidence, and the evidence signed."""
    from fuzzing.harness import call

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from signing_keys import make_keys
    from tiny import build_tiny_gguf

    model, edited, again = (folder / f"{name}.gguf" for name in ("model", "edited", "again"))
    build_tiny_gguf(model, hidden=64, feed_forward=128)
    shutil.copy(model, edited)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(edited, "r+").tensors}
    tensors["blk.0.ffn_up.weight"].data[:, ::9] += 0.02
    outs = {"model_stock": folder / "model.Q8_0.gguf", "model_shipped": folder / "edited.Q8_0.gguf"}
    evidence = folder / "evidence"
    commands = [
        ("quantize", model, model, outs["model_stock"], "Q8_0", "-q"),
        ("quantize", model, edited, outs["model_shipped"], "Q8_0", "--evidence", evidence, "-q"),
        ("rebuild", outs["model_stock"], evidence, "-o", again, "-q"),
        ("sign", evidence, "--private-key", folder / "private.pem"),
    ]
    make_keys(folder)
    for command in commands:
        code, said = call(*command)
        if code != 0:
            raise RuntimeError(f"{command[0]}: exit code {code}: {said}")
    return {"model": model, "evidence": evidence, "public_key": folder / "public.pem", **outs}
