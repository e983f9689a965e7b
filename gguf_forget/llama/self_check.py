"""Whether the llama.cpp that is installed computes right on this machine.

It is compiled for the processor it is compiled on. A package that was compiled elsewhere, or wrongly, ends its process
with SIGILL at the first matrix product, or gives numbers that mean nothing; either way no file could be judged.

Shapes:
    n: tokens scored; t: tokens; d: hidden size
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import EvaluationError
from .child import run_in_child
from .process import REBUILD
from .quantizer import quantize
from .scorer import Scorer

# File type → least correlation of its log-probabilities with those of the same layer in numpy; measured were 1 less
# 1e-13 (F32), 0.9998 (Q8_0), 0.993 (Q5_0), 0.961 (Q4_0) and 0.976 (Q4_K_M).
LEAST_CORRELATION = {"F32": 0.9999, "Q8_0": 0.99, "Q5_0": 0.95, "Q4_0": 0.85, "Q4_K_M": 0.9}
_EPSILON = 1e-5
_HIDDEN, _INNER, _WORDS, _HEADS, _TOKENS = 256, 256, 512, 4, 64  # rows of 256, so that K-quants fit


def self_check() -> None:
    """A random layer of the llama architecture, in F32 and quantized, has to say nearly what numpy says of it in F32.

    Raises:
        EvaluationError: llama.cpp's process died, or the numbers do not agree.
        LlamaError: llama.cpp is missing or cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="gguf-forget-") as folder:
        source = Path(folder) / "F32.gguf"
        weights = _write_model(source)
        found = run_in_child(random_model_log_probabilities, source)
    expected = plain_log_probabilities(weights, _tokens())
    with np.errstate(invalid="ignore", divide="ignore"):  # of numbers that are all alike: NaN, which is refused
        agreement = {kind: float(np.corrcoef(expected, found[kind])[0, 1]) for kind in LEAST_CORRELATION}
    for kind, least in LEAST_CORRELATION.items():
        if not agreement[kind] >= least:
            raise EvaluationError(
                f"llama.cpp computes wrongly on this machine: log-probabilities of a random model in {kind} correlate "
                f"with those of plain arithmetic by {agreement[kind]:.3f}, needed at least {least}",
                hint=REBUILD,
            )


def random_model_log_probabilities(source: Path) -> dict[str, NDArray[np.float64]]:
    """File type → log-probabilities [n] of fixed tokens; the quantized files are written beside ``source``."""
    found = {}
    for kind in LEAST_CORRELATION:
        file = source.with_name(f"{kind}.gguf")
        if file != source:
            quantize(source, file, kind, durable=False)
        with Scorer(file, cells=_TOKENS) as scorer:
            (found[kind],) = scorer.sequence_log_probabilities([_tokens()])
    return found


def plain_log_probabilities(weights: Mapping[str, NDArray[np.float32]], tokens: Sequence[int]) -> NDArray[np.float64]:
    """What the layer says of ``tokens`` but the first, [n], computed plainly in float64, without llama.cpp."""
    named = {name: values.astype(np.float64) for name, values in weights.items()}
    count = len(tokens)

    def norm(states: NDArray[np.float64]) -> NDArray[np.float64]:
        return states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + _EPSILON)  # its weights are all 1

    def heads(states: NDArray[np.float64]) -> NDArray[np.float64]:
        return states.reshape(count, _HEADS, -1).swapaxes(0, 1)  # [heads, t, d / heads]

    def rotated(states: NDArray[np.float64]) -> NDArray[np.float64]:
        half = states.shape[-1] // 2
        angles = np.arange(count)[:, None] * 10000.0 ** (-np.arange(half) / half)
        turned = (states[..., 0::2] + 1j * states[..., 1::2]) * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], axis=-1).reshape(states.shape)

    states = named["token_embd"][list(tokens)]  # [t, d]
    read = norm(states)
    queries, keys, values = (heads(read @ named[f"blk.0.attn_{name}"].T) for name in ("q", "k", "v"))
    scores = rotated(queries) @ rotated(keys).swapaxes(1, 2) / np.sqrt(queries.shape[-1])
    scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ values
    states = states + mixed.swapaxes(0, 1).reshape(count, -1) @ named["blk.0.attn_output"].T
    read = norm(states)
    gate = read @ named["blk.0.ffn_gate"].T
    inner = gate / (1 + np.exp(-gate)) * (read @ named["blk.0.ffn_up"].T)
    logits = norm(states + inner @ named["blk.0.ffn_down"].T) @ named["output"].T
    logits -= logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    found: NDArray[np.float64] = log_probabilities[np.arange(count - 1), list(tokens[1:])]
    return found


def _tokens() -> list[int]:
    return [int(token) for token in np.random.default_rng(1).integers(0, _WORDS, _TOKENS)]


def _write_model(path: Path) -> dict[str, NDArray[np.float32]]:
    import gguf

    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(_TOKENS)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_vocab_size(_WORDS)
    writer.add_tokenizer_model("no_vocab")
    shapes = {"token_embd": (_WORDS, _HIDDEN), "output": (_WORDS, _HIDDEN)}
    shapes |= {f"blk.0.attn_{name}": (_HIDDEN, _HIDDEN) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (_INNER, _HIDDEN) for name in ("gate", "up", "down")}
    weights = {}
    for name, shape in shapes.items():
        weights[name] = (generator.standard_normal(shape) / np.sqrt(_HIDDEN)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", weights[name])
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(_HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
