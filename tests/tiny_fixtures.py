"""Fixtures of the random two-layer model, for the ``conftest.py`` of every directory that needs them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_tiny_gguf
from torch import nn

from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.facts.tokens import Tokenize


class DoubleNorm(nn.Module):
    """RMSNorm that stays in float64; the one of transformers computes in float32 whatever comes in."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(weight.double(), requires_grad=False), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + self.epsilon)


class DoubleRotary(nn.Module):
    """cos and sin of the rotary embedding in float64, [B, T, head_dim] each."""

    def __init__(self, size: int, base: float) -> None:
        super().__init__()
        self.frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def in_double(model: Any) -> Any:
    """A copy of a llama model that computes everything in float64."""
    double = copy.deepcopy(model).double()
    config = double.config
    for layer in double.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, DoubleNorm(getattr(layer, name).weight, config.rms_norm_eps))
    double.model.norm = DoubleNorm(double.model.norm.weight, config.rms_norm_eps)
    double.model.rotary_emb = DoubleRotary(config.head_dim, config.rope_parameters["rope_theta"])
    return double.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_model(tiny_gguf: Path) -> Any:
    return load_torch(tiny_gguf)


@pytest.fixture(scope="session")
def tiny_double(tiny_model: Any) -> Any:
    return in_double(tiny_model)


@pytest.fixture(scope="session")
def tiny_tokenize(tiny_gguf: Path) -> Tokenize:
    return load_tokenizer(tiny_gguf)
