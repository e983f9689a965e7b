"""The random two-layer model."""

from __future__ import annotations

from tiny_fixtures import tiny_double, tiny_gguf, tiny_model, tiny_tokenize

__all__ = ["tiny_double", "tiny_gguf", "tiny_model", "tiny_tokenize"]
