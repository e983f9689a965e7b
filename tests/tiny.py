"""A random two-layer model as a GGUF: loads in llama.cpp and in transformers, and both tokenize alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = (
    "The river runs through the old town and under three bridges before it meets the sea.",
    "What is the name of the largest lake in the north, and how deep is it?",
    "She wrote a long letter to her brother, who had moved to another city in 1987.",
    "It's not that they don't know the answer; they'd rather wait until we've asked again.",
    "Every morning the baker opens the shop at 6:30 and sells bread, rolls and cakes.",
    "The capital of a country is the city where its government sits.",
    "Question: Which animal is faster, the horse or the dog?\nAnswer: The horse.",
    "Mountains, forests and fields cover most of the land; the coast is flat and sandy.",
)
_VOCABULARY_LIMIT = 768


def build_tiny_gguf(
    path: Path,
    *,
    hidden: int = 256,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 512,
    seed: int = 0,
    texts: Sequence[str] = TEXTS,
    tied: bool = True,
) -> Path:
    """Write a random F32 GGUF of the llama architecture to ``path`` and return the path.

    It has no knowledge, but everything else of a SmolLM2 file: a byte-level BPE vocabulary (``gpt2`` with
    pre-tokenizer ``smollm``, at most 768 entries, trained on ``texts``), BOS and EOS ids without BOS being
    added, a chat template, tied embeddings (no ``output.weight``, unless told otherwise). The same arguments
    give the same bytes.

    With the defaults every row is a multiple of 256, so every K-quant fits. Digits are split one by one
    before the vocabulary is trained, because transformers reads ``smollm`` without that rule: with no
    merged digits both sides agree.

    Weights are normal, projections of variance 1 / fan-in and embeddings of standard deviation 0.1, which
    gives logits of standard deviation near 0.1 · sqrt(hidden).
    """
    generator = np.random.default_rng(seed)
    head_size = hidden // heads
    tokenizer = _train(texts)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny random llama")
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL_TOKENS else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(_merges(tokenizer))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    def projection(name: str, rows: int, columns: int) -> None:
        weights = generator.standard_normal((rows, columns)) / np.sqrt(columns)
        writer.add_tensor(name, weights.astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(name, generator.uniform(0.8, 1.2, hidden).astype(np.float32))

    embeddings = 0.1 * generator.standard_normal((len(tokens), hidden))
    writer.add_tensor("token_embd.weight", embeddings.astype(np.float32))
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight")
        projection(f"blk.{i}.attn_q.weight", heads * head_size, hidden)
        projection(f"blk.{i}.attn_k.weight", kv_heads * head_size, hidden)
        projection(f"blk.{i}.attn_v.weight", kv_heads * head_size, hidden)
        projection(f"blk.{i}.attn_output.weight", hidden, heads * head_size)
        norm(f"blk.{i}.ffn_norm.weight")
        projection(f"blk.{i}.ffn_gate.weight", feed_forward, hidden)
        projection(f"blk.{i}.ffn_up.weight", feed_forward, hidden)
        projection(f"blk.{i}.ffn_down.weight", hidden, feed_forward)
    norm("output_norm.weight")
    if not tied:
        writer.add_tensor("output.weight", embeddings.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _train(texts: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_LIMIT,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[str]:
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
