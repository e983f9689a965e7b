"""Whether the llama.cpp that is installed computes right on this machine.

It is compiled for the processor it is compiled on. A package that was compiled elsewhere, or wrongly, ends its process
with SIGILL at the first matrix product, or gives numbers that mean nothing; either way no file could be judged.

Shapes:
    n: tokens scored
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import EvaluationError
from .child import run_in_child
from .process import REBUILD
from .quantizer import quantize
from .scorer import Scorer

# File type → least correlation of its log-probabilities with those of F32; 0.9998 and 0.976 were measured.
LEAST_CORRELATION = {"Q8_0": 0.99, "Q4_K_M": 0.9}
_HIDDEN, _INNER, _WORDS, _HEADS, _TOKENS = 256, 256, 512, 4, 64  # rows of 256, so that K-quants fit


def self_check() -> None:
    """A random layer of the llama architecture, in F32, Q8_0 and Q4_K_M, has to say nearly the same in all three.

    Raises:
        EvaluationError: llama.cpp's process died, or the numbers do not agree.
        LlamaError: llama.cpp is missing or cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="gguf-forget-") as folder:
        source = Path(folder) / "F32.gguf"
        _write_model(source)
        found = run_in_child(random_model_log_probabilities, source)
    with np.errstate(invalid="ignore", divide="ignore"):  # of numbers that are all alike: NaN, which is refused
        agreement = {kind: float(np.corrcoef(found["F32"], found[kind])[0, 1]) for kind in LEAST_CORRELATION}
    for kind, least in LEAST_CORRELATION.items():
        if not agreement[kind] >= least:
            raise EvaluationError(
                f"llama.cpp computes wrongly on this machine: log-probabilities of a random model in {kind} correlate "
                f"with those in F32 by {agreement[kind]:.3f}, needed at least {least}",
                hint=REBUILD,
            )


def random_model_log_probabilities(source: Path) -> dict[str, NDArray[np.float64]]:
    """File type → log-probabilities [n] of fixed tokens; the quantized files are written beside ``source``."""
    tokens = np.random.default_rng(1).integers(0, _WORDS, _TOKENS).tolist()
    found = {}
    for kind in ("F32", *LEAST_CORRELATION):
        file = source.with_name(f"{kind}.gguf")
        if file != source:
            quantize(source, file, kind, durable=False)
        with Scorer(file, cells=_TOKENS) as scorer:
            (found[kind],) = scorer.sequence_log_probabilities([tokens])
    return found


def _write_model(path: Path) -> None:
    import gguf

    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(_TOKENS)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_WORDS)
    writer.add_tokenizer_model("no_vocab")
    shapes = {"token_embd": (_WORDS, _HIDDEN), "output": (_WORDS, _HIDDEN)}
    shapes |= {f"blk.0.attn_{name}": (_HIDDEN, _HIDDEN) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (_INNER, _HIDDEN) for name in ("gate", "up", "down")}
    for name, shape in shapes.items():
        weights = generator.standard_normal(shape) / np.sqrt(_HIDDEN)
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(_HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
