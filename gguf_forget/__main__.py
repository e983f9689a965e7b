"""``python -m gguf_forget``: the same as the command ``gguf-forget``."""

from __future__ import annotations

from gguf_forget.cli import main

if __name__ == "__main__":
    main()
