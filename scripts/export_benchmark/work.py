"""The files of the export benchmark: random models of given shapes, edited copies, Hessians."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MLP = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.weight")
EDITED_SHARE = 0.03
EDIT_SIZE = 0.2  # of the matrix' standard deviation: about a step at 4 bits
_POOL = 1 << 24  # random numbers, used again at another offset by every tensor
TOKENS = 2048  # behind a Hessian
_SAMPLE = 1 << 16  # weights from which a standard deviation is taken


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of the architecture llama, its output not tied to the embeddings."""

    layers: int
    d_model: int
    d_ff: int
    heads: int
    key_value_heads: int
    vocabulary: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, rows first."""
        head = self.d_model // self.heads
        yield "token_embd.weight", (self.vocabulary, self.d_model)
        for layer in range(self.layers):
            block = f"blk.{layer}."
            yield block + "attn_norm.weight", (self.d_model,)
            yield block + "attn_q.weight", (self.d_model, self.d_model)
            yield block + "attn_k.weight", (self.key_value_heads * head, self.d_model)
            yield block + "attn_v.weight", (self.key_value_heads * head, self.d_model)
            yield block + "attn_output.weight", (self.d_model, self.d_model)
            yield block + "ffn_norm.weight", (self.d_model,)
            yield block + "ffn_gate.weight", (self.d_ff, self.d_model)
            yield block + "ffn_up.weight", (self.d_ff, self.d_model)
            yield block + "ffn_down.weight", (self.d_model, self.d_ff)
        yield "output_norm.weight", (self.d_model,)
        yield "output.weight", (self.vocabulary, self.d_model)


SHAPES = {
    "tinyllama-1.1b": Shape(22, 2048, 5632, 32, 4, 32000),
    "tiny": Shape(2, 256, 512, 4, 2, 64),
}


def eight_billion(layers: int) -> Shape:
    """The width of Llama-3-8B."""
    return Shape(layers, 4096, 14336, 32, 8, 128256)


def write_random(path: Path, shape: Shape) -> Path:
    """An F16 GGUF of normal weights, written a tensor at a time."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.d_model)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    for name, size in shape.tensors():
        kind = np.dtype(np.float16 if len(size) > 1 else np.float32)
        writer.add_tensor_info(name, size, kind, int(np.prod(size)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    pool = (0.02 * generator.standard_normal(_POOL, dtype=np.float32)).astype(np.float16)
    for _, size in shape.tensors():
        count = int(np.prod(size))
        values = np.resize(np.roll(pool, -int(generator.integers(_POOL))), count).reshape(size)
        writer.write_tensor_data(values if len(size) > 1 else 1 + values.astype(np.float32))
    writer.close()
    return path


def write_edited(original: Path, path: Path) -> Path:
    """A copy of an F32 or F16 GGUF with random edits in every MLP matrix."""
    from gguf_forget.checkpoint.stored import stored_tensors

    shutil.copyfile(original, path)
    generator = np.random.default_rng(1)
    content = np.memmap(path, dtype=np.uint8, mode="r+")
    for name, tensor in stored_tensors(original).items():
        if not MLP.fullmatch(name):
            continue
        end = tensor.offset + tensor.raw.nbytes
        weights = content[tensor.offset : end].view(np.float32 if tensor.type == "F32" else np.float16)
        spread = float(weights[:_SAMPLE].astype(np.float32).std())
        place = np.flatnonzero(generator.random(weights.size, dtype=np.float32) < EDITED_SHARE)
        size = spread * EDIT_SIZE * (0.5 + generator.random(place.size, dtype=np.float32))
        weights[place] += (size * generator.choice([-1, 1], place.size)).astype(weights.dtype)
    content.flush()
    return path


def write_hessian(folder: Path, columns: int) -> None:
    """``columns``.npy: Σ x·xᵀ of correlated random inputs, float32 [columns, columns]."""
    generator = np.random.default_rng(columns)
    inputs = generator.standard_normal((TOKENS, columns), dtype=np.float32)
    shared = generator.standard_normal((8, columns), dtype=np.float32)
    inputs += generator.standard_normal((TOKENS, 8), dtype=np.float32) @ shared
    np.save(folder / f"{columns}.npy", inputs.T @ inputs)


def widths(path: Path) -> set[int]:
    """The row lengths of the MLP matrices."""
    from gguf_forget.checkpoint.stored import stored_tensors

    return {tensor.columns for name, tensor in stored_tensors(path).items() if MLP.fullmatch(name)}
