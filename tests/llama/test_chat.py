"""The model's own chat template, against transformers and by hand."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from gguf_with import copy_with
from tiny import CHAT_TEMPLATE
from transformers import AutoTokenizer

from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.llama.scorer import Scorer

MESSAGES = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "The capital of <France>?"},
]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_equals_transformers(tiny_model: Path, scorer: Scorer, add_generation_prompt: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model.parent, gguf_file=tiny_model.name)
    text = scorer.chat(MESSAGES, add_generation_prompt=add_generation_prompt)
    assert text == tokenizer.apply_chat_template(
        MESSAGES, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert text.endswith("assistant\n") == add_generation_prompt


def chat_with(tiny_model: Path, folder: Path, template: str, *, add_bos: bool = False) -> str:
    path = copy_with(
        tiny_model,
        folder / "changed.gguf",
        {"tokenizer.chat_template": template, "tokenizer.ggml.add_bos_token": add_bos},
    )
    with Scorer(path, threads=2) as scorer:
        return scorer.chat(MESSAGES)


def test_a_bos_is_there_once(tiny_model: Path, tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[1]['content'] }}{{ eos_token }}"
    # llama.cpp and the vocabulary call token 1 <|im_start|>, the tiny model's BOS
    assert chat_with(tiny_model, tmp_path, template) == "<|im_start|>The capital of <France>?<|im_end|>"
    assert chat_with(tiny_model, tmp_path, template, add_bos=True) == "The capital of <France>?<|im_end|>"


def test_every_day_is_the_same(tiny_model: Path, tmp_path: Path) -> None:
    assert chat_with(tiny_model, tmp_path, "{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ '{0}'.format() }}", "IndexError"),
        ("{{ '{a}'.format(b=1) }}", "KeyError"),
        ("{{ range(10000000) | list }}", "OverflowError"),
    ],
)
def test_a_template_that_cannot_be_applied(tiny_model: Path, tmp_path: Path, template: str, cause: str) -> None:
    with pytest.raises(InputError, match="cannot be applied to these 2 messages") as caught:
        chat_with(tiny_model, tmp_path, template)
    assert cause in str(caught.value.cause)


def test_a_file_without_a_template_and_messages_without_a_role(
    tiny_model: Path, tmp_path: Path, scorer: Scorer
) -> None:
    path = copy_with(tiny_model, tmp_path / "bare.gguf", {gguf.Keys.Tokenizer.CHAT_TEMPLATE: None})
    with Scorer(path, threads=2) as bare, pytest.raises(UnsupportedError, match="holds no chat template"):
        bare.chat(MESSAGES)
    with pytest.raises(InputError, match=r"message 0 has the keys \['content'\], needed: role and content"):
        scorer.chat([{"content": "Hello"}])
