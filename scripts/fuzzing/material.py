"""Small valid files of every kind that the program reads, made once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize as quantize_numpy


@dataclass(frozen=True)
class Material:
    """``moves``: from ``stock`` to ``shipped``; ``report``: a report on files."""

    stock: Path
    shipped: Path
    moves: Path
    facts: Path
    recipe: Path
    report: Path
    circuit: Path
    edit: Path


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
        stock,
        shipped,
        folder / "list.moves.npz",
        folder / "facts.jsonl",
        folder / "recipe.toml",
        folder / "report.json",
        folder / "circuit.safetensors",
        folder / "edit.safetensors",
    )
