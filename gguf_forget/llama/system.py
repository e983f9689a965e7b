"""What llama.cpp was compiled for and finds on this machine."""

from __future__ import annotations

from gguf_forget.llama.library import _library


def system_info() -> str:
    """llama.cpp's own line, such as ``CPU : SSE3 = 1 | AVX2 = 1 | …``. Raises LlamaError where it cannot be loaded."""
    return str(_library().module.llama_print_system_info().decode("utf-8", "replace")).strip()
