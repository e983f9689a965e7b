"""Attention for gradients is torch's own, output and gradients, and is there only while it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_families import FAMILIES
from torch.nn.functional import scaled_dot_product_attention

from gguf_forget.checkpoint.attention import attention, differentiable_attention
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.scoring import Batch, answer_log_probability, answers, log_probabilities, pack

ROWS, TOKENS, WIDTH = 2, 7, 4


def some(heads: int, dtype: torch.dtype, seed: int, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, heads, TOKENS, width, generator=generator, dtype=torch.float64).to(dtype)


def looks(rows: int = ROWS) -> torch.Tensor:
    """What each token may look at: itself, and others at random."""
    generator = torch.Generator().manual_seed(5)
    return (torch.rand(rows, 1, TOKENS, TOKENS, generator=generator) < 0.4) | torch.eye(TOKENS, dtype=torch.bool)


@pytest.mark.parametrize(("heads", "groups"), [(6, 6), (6, 3), (6, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_output_and_gradients_are_torchs(heads: int, groups: int, dtype: torch.dtype, tolerance: float) -> None:
    inputs = [some(heads, dtype, 1), some(groups, dtype, 2), some(groups, dtype, 3, width=5)]
    mask, scale = looks(), 0.7
    weights = some(heads, dtype, 4, width=5).transpose(1, 2)
    own = [tensor.clone().requires_grad_(True) for tensor in inputs]
    found = attention(*own, mask, scale)
    assert found.shape == (ROWS, TOKENS, heads, 5)
    found.backward(weights)
    exact = [tensor.double().requires_grad_(True) for tensor in inputs]
    query, key, value = exact
    repeated = [tensor.repeat_interleave(heads // groups, dim=1) for tensor in (key, value)]
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=scale).transpose(1, 2)
    expected.backward(weights.double())
    for got, wanted in zip(
        (found, *(tensor.grad for tensor in own)), (expected, *(tensor.grad for tensor in exact)), strict=True
    ):
        assert got is not None
        assert wanted is not None
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tolerance * float(wanted.detach().abs().max()))


def test_one_mask_may_serve_all_rows() -> None:
    query, key, value = some(2, torch.float64, 1), some(2, torch.float64, 2), some(2, torch.float64, 3)
    whole = looks(1).expand(ROWS, 1, TOKENS, TOKENS)
    torch.testing.assert_close(attention(query, key, value, looks(1), 1.0), attention(query, key, value, whole, 1.0))


EXAMPLES = (Example((30, 20, 31, 7, 8), 3, 0, 0), Example((5, 6), 1, 1, 0), Example((30, 20, 11, 9), 2, 2, 0))


def model_and_batch(name: str) -> tuple[Any, Batch]:
    torch.manual_seed(0)
    kind, sizes = FAMILIES[name]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes)).eval()
    return model.requires_grad_(False), pack(answers(EXAMPLES))


def gradient(model: Any, batch: Batch) -> torch.Tensor:
    """Of what the answers are worth, on the embeddings: through every layer."""
    weight = model.get_input_embeddings().weight.requires_grad_(True)
    weight.grad = None
    answer_log_probability(log_probabilities(model, batch), batch).sum().backward()
    assert weight.grad is not None
    return weight.grad.clone()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_architecture_computes_the_same(name: str) -> None:
    model, batch = model_and_batch(name)
    own = model.config._attn_implementation
    with torch.no_grad():
        expected = log_probabilities(model, batch)
    wanted = gradient(model, batch)
    with differentiable_attention(model):
        assert (model.config._attn_implementation != own) is (own == "sdpa")
        with torch.no_grad():
            torch.testing.assert_close(log_probabilities(model, batch), expected)
        torch.testing.assert_close(gradient(model, batch), wanted)
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("padding", [None, [1] * 7, [1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_a_batch_without_a_tree_sees_what_came_before(name: str, padding: list[int] | None) -> None:
    """Not what is padding, nor what is past the window; where there is neither, transformers hands over no mask."""
    model, _ = model_and_batch(name)
    ids = torch.arange(5, 19).reshape(2, 7)
    mask = None if padding is None else torch.tensor([[1] * 7, padding])
    real = torch.ones(2, 7, dtype=torch.bool) if mask is None else mask.bool()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        with differentiable_attention(model):
            found = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[real], expected[real])


def test_other_masks_are_left_to_torch() -> None:
    """One that is added, and one that is longer than the queries."""
    model, _ = model_and_batch("llama")
    ids, added = torch.tensor([[5, 6, 7]]), torch.tensor([[0.0, -9.0, -9.0], [1.0, 0.0, -9.0], [0.5, 0.0, 2.0]])
    with torch.no_grad():
        expected = model(ids, attention_mask=added[None, None]).logits
        cache = model(ids, use_cache=True).past_key_values
        following = model(torch.tensor([[8]]), past_key_values=cache).logits
        with differentiable_attention(model):
            torch.testing.assert_close(model(ids, attention_mask=added[None, None]).logits, expected)
            cache = model(ids, use_cache=True).past_key_values
            torch.testing.assert_close(model(torch.tensor([[8]]), past_key_values=cache).logits, following)


def test_it_ends_where_training_fails() -> None:
    model, _ = model_and_batch("llama")
    own = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="cut off"), differentiable_attention(model):
        raise RuntimeError("cut off")
    assert model.config._attn_implementation == own == "sdpa"
