"""The work that both sides of the attribution benchmark do: the same weights, the same pairs, the same metric.

Imported in two environments (ours, and the reference's with its older transformers), so it uses nothing but
numpy, torch and what both versions of transformers have in common. Nothing is written or downloaded: weights
and tokens follow from the names of the parameters and the numbers of the pairs.

Shapes: T tokens of a prompt.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

TOKENS = 16
_SUBJECT = slice(5, 8)  # the positions where clean and corrupted prompt differ
_DISTRACTORS = 3


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``family`` is its Hugging Face ``model_type``."""

    family: str
    layers: int
    heads: int
    key_value_heads: int
    d_model: int
    d_ff: int
    vocabulary: int


SHAPES = {
    "gpt2-small": Shape("gpt2", 12, 12, 12, 768, 3072, 50257),
    "smollm2-135m": Shape("llama", 30, 9, 3, 576, 1536, 49152),
    "gpt2-tiny": Shape("gpt2", 2, 2, 2, 32, 64, 101),
    "smollm2-tiny": Shape("llama", 2, 4, 2, 32, 64, 101),
}


@dataclass(frozen=True)
class Prompts:
    """One pair: two prompts of T tokens each, and the tokens whose logits the metric compares at the last one."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: int
    distractors: tuple[int, ...]


def prompts(shape: Shape, count: int) -> list[Prompts]:
    """The first ``count`` pairs of a model's vocabulary; a pair depends on its number alone."""
    pairs = []
    for number in range(count):
        generator = np.random.default_rng(number)
        clean = generator.integers(shape.vocabulary, size=TOKENS)
        corrupted = clean.copy()
        corrupted[_SUBJECT] = (corrupted[_SUBJECT] + generator.integers(1, shape.vocabulary, size=3)) % shape.vocabulary
        answer, *distractors = generator.choice(shape.vocabulary, size=1 + _DISTRACTORS, replace=False).tolist()
        pairs.append(Prompts(tuple(clean.tolist()), tuple(corrupted.tolist()), answer, tuple(distractors)))
    return pairs


def random_model(shape: Shape) -> Any:
    """A Hugging Face model in float32, in evaluation mode, its parameters without gradients.

    Matrices are normal with the usual standard deviation 0.02; biases and the weights of norms vary as well,
    because with zeros and ones a side that left them out would go unnoticed.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    model: Any
    if shape.family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=shape.vocabulary,
                n_embd=shape.d_model,
                n_layer=shape.layers,
                n_head=shape.heads,
                n_inner=shape.d_ff,
                n_positions=1024,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.vocabulary,
                hidden_size=shape.d_model,
                intermediate_size=shape.d_ff,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.key_value_heads,
                rms_norm_eps=1e-5,
                tie_word_embeddings=True,
            )
        )
    model = model.float().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        values = generator.standard_normal(tuple(parameter.shape), dtype=np.float32)
        if parameter.ndim == 1 and name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.02
        parameter.copy_(torch.from_numpy(values))
    return model
