"""The ``general.*`` keys of a derived model after GGUF's naming convention: its own name, and what it is made from.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "General metadata"
"""

from __future__ import annotations

from pathlib import Path

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.export.gguf_header import Uint32, Value

SUFFIX = "Unlearned"
_HUB = "https://huggingface.co/"


def derived_keys(original: Path) -> dict[str, Value]:
    """Key -> value for a file unlearned from ``original``: name, finetune, quantized_by, and base_model.0.*."""
    file = GgufFile(original)
    name = str(file.value("general.name", original.stem))
    finetune = file.value("general.finetune")
    keys: dict[str, Value] = {
        "general.name": f"{name} {SUFFIX}",
        "general.finetune": f"{finetune}-{SUFFIX}" if finetune else SUFFIX,
        "general.quantized_by": "gguf_forget",
        "general.base_model.count": Uint32(1),
        "general.base_model.0.name": name,
    }
    for key in ("author", "version", "organization", "description"):
        if value := file.value(f"general.{key}"):
            keys[f"general.base_model.0.{key}"] = str(value)
    if url := _repository(file):
        keys["general.base_model.0.repo_url"] = url
    return keys


def _repository(file: GgufFile) -> str | None:
    """Where the original itself says that it can be found."""
    for key in ("general.repo_url", "general.source.repo_url", "general.source.url", "general.url"):
        if value := file.value(key):
            return str(value)
    owned = file.value("general.source.huggingface.repository")
    return f"{_HUB}{owned}" if owned else None


def hub_name(original: Path) -> str | None:
    """``owner/name`` on Hugging Face, where the original's keys say so."""
    url = _repository(GgufFile(original)) or ""
    parts = url.removeprefix(_HUB).strip("/").split("/")
    return "/".join(parts[:2]) if url.startswith(_HUB) and len(parts) >= 2 else None
