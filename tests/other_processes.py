"""What a test asks of processes beside its own: they import it by name."""

from __future__ import annotations

import atexit
import os
from typing import Any

import torch
import transformers
from tiny_families import FAMILIES

from gguf_forget.errors import InputError
from gguf_forget.unlearning.together import Together, shard


def fail(text: str, _: Together) -> None:
    raise InputError(text)


class Gone:
    """Ends the process that unpickles it, before it has begun."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def vanish(_: Together) -> None:
    os._exit(7)


def fall_at_the_end(others: Together) -> None:
    """Does its part; taking Python down in this process would abort it."""
    atexit.register(os.abort)
    others.add([torch.tensor([10.0])])


def add_own(rounds: int, others: Together) -> None:
    """Adds 10 and hears a value, so many times."""
    for _ in range(rounds):
        others.add([torch.tensor([10.0])])
        others.share([torch.tensor([2.0])])


def tiny_llama() -> Any:
    """The same random one wherever it is called."""
    torch.manual_seed(0)
    name, sizes = FAMILIES["llama"]
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**sizes))


def share_a_model(others: Together) -> tuple[list[int], list[int], torch.Tensor]:
    """Rows of a projection and of the embeddings that this process keeps, and the whole model's logits."""
    model = tiny_llama()
    shard(model, model.model.layers, others)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    gate, embeddings = model.model.layers[0].mlp.gate_proj.weight, model.model.embed_tokens.weight
    return list(gate.to_local().shape), list(embeddings.shape), logits
