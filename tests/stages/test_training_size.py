"""What training is said to take, on the tiny model: in proportion to what is in memory at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_training import OPTIONS, Inputs, training_inputs

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_tokenizer
from gguf_forget.facts.tokens import Example, encode_facts
from gguf_forget.stages.facts import load_facts
from gguf_forget.stages.training_size import training_size


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return training_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def examples(inputs: Inputs) -> list[Example]:
    return encode_facts(load_facts(inputs[2])[0], load_tokenizer(inputs[0]))


def size(inputs: Inputs, examples: list[Example], text: list[list[int]], **changes: Any) -> int:
    return training_size(GgufFile(inputs[0]), [], examples, examples, text, replace(OPTIONS, **changes))


def test_every_scored_position_takes_four_rows_of_logits(inputs: Inputs, examples: list[Example]) -> None:
    """With recomputation and 300 tokens, what a layer keeps is small beside them."""
    longer = [replace(e, tokens=(*e.tokens, *[5] * 300)) for e in examples]
    few, many = (size(inputs, own, [], gradient_checkpointing=True, batch_text=0) for own in (examples, longer))
    vocabulary = GgufFile(inputs[0]).weights("token_embd.weight").shape[0]
    prompts = OPTIONS.batch_forget + OPTIONS.batch_retain
    assert many - few > 16 * 300 * prompts * vocabulary
    assert few > 2 * 2 * sum(np.prod(tensor.shape) for tensor in GgufFile(inputs[0]).tensors.values())


def test_what_is_cut_recomputed_or_rounded_takes_less(inputs: Inputs, examples: list[Example]) -> None:
    text = [list(range(20, 116))] * 4
    whole = size(inputs, examples, text, batch_text=4)
    assert size(inputs, examples, text, batch_text=4, gradient_checkpointing=True) < whole
    assert size(inputs, examples, text, batch_text=4, accumulation=4) < whole
    assert size(inputs, examples, text, batch_text=4, precision="float32") > whole
    assert size(inputs, examples, text, batch_text=0) < whole
    assert size(inputs, [], text, batch_text=4) < whole
