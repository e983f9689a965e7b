"""What training takes of memory, from the template's sizes and the recipe, before any model is loaded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import summarise
from gguf_forget.facts.tokens import Example
from gguf_forget.recipe import UnlearnSection
from gguf_forget.unlearning.code_moves import CodeMoves
from gguf_forget.unlearning.memory import activation_memory, training_memory
from gguf_forget.unlearning.scoring import Batch, answers, pack, plain_text


def training_size(
    file: GgufFile,
    edits: Sequence[CodeMoves],
    forget: Sequence[Example],
    retain: Sequence[Example],
    text: Sequence[Sequence[int]],
    options: UnlearnSection,
) -> int:
    """Bytes, roughly, in each process: models, edits with their optimizer, and one part of a drawn batch.

    What is asked inside a framing is counted without it. ``text``: chunks to draw from.
    """
    model = summarise(file)
    parameters = model.parameters
    if options.shard:  # embeddings and output stay whole
        layers = sum(math.prod(map(int, t.shape)) for name, t in file.tensors.items() if name.startswith("blk."))
        parameters -= layers - layers // options.processes
    weight_bytes = 2 if options.precision == "bfloat16" else 4
    part = _part(forget, retain, text, options)
    positions, (rows, longest) = len(part.positions), part.ids.shape
    return training_memory(
        parameters=parameters,
        bases=1 + len(options.grids),
        circuit_weights=sum(edit.step.numel() for edit in edits),
        positions=positions,
        vocabulary=int(file.tensors["token_embd.weight"].shape[-1]),  # stored as [d_model, vocabulary]
        weight_bytes=weight_bytes,
    ) + activation_memory(
        tokens=rows * longest,
        longest=longest,
        layers=model.layers - min((edit.layer for edit in edits), default=0),  # below, nothing has a gradient
        d_model=model.hidden,
        d_ff=model.feed_forward,
        heads=model.heads,
        keys_and_values=2 * model.kv_heads * model.hidden // model.heads,
        weight_bytes=weight_bytes,
        recompute=options.gradient_checkpointing,
    )


def _part(
    forget: Sequence[Example], retain: Sequence[Example], text: Sequence[Sequence[int]], options: UnlearnSection
) -> Batch:
    """The first of the parts into which a batch drawn at random is cut."""
    draw, parts = random.Random(options.seed), options.accumulation * options.processes

    def drawn(among: Sequence[Any], count: int) -> list[Any]:
        return draw.choices(among, k=-(-count // parts)) if among else []

    examples = drawn(forget, options.batch_forget) + drawn(retain, options.batch_retain)
    return pack(answers(examples) + plain_text(drawn(text, options.batch_text), every=options.text_every))
