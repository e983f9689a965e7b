"""The machine and its libraries as far as they can change a result: threads and CPU features alter sums."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf_forget import __version__
from gguf_forget.errors import InputError
from gguf_forget.whole_file import sha256_file

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("llama-cpp-python", "gguf", "torch", "transformers", "numpy", "safetensors")
_TELLING = re.compile(r"avx.*|amx.*|fma|f16c|bmi2|sse4_2|asimd.*|neon|s(?:ve.*|me\d*)|i8mm|bf16")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY")


def tool_versions() -> dict[str, str]:
    """Versions that decide results: part of every stage's inputs."""
    return {"gguf_forget": __version__, **{name: version(name) for name in LIBRARIES}}


def code_hash(*folders: Path) -> str:
    """SHA-256 of all Python files in ``folders``: one version has many commits, whose results may differ."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Name, number of cores that this process may use, and the features that change arithmetic, where known."""
    fields: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass  # not Linux: the architecture alone is known
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "architecture": platform.machine(),
        "name": fields.get("model name") or platform.processor() or None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": sorted(flag for flag in flags if _TELLING.fullmatch(flag)),
    }


def torch_device(name: str, index: int = 0) -> Any:
    """Number ``index`` of the devices called ``name``; :class:`InputError` where this machine's torch has none."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "unlearn.device: found 'cuda', but torch sees no such device here",
            hint="use --device cpu, or install a torch that is built for your graphics card",
        )
    if name == "cuda" and index >= torch.cuda.device_count():
        raise InputError(
            f"unlearn.processes: found {index + 1} or more, but torch sees {torch.cuda.device_count()} graphics cards",
            hint="every process needs one of its own",
        )
    return torch.device(name, index) if name == "cuda" else torch.device(name)


def environment() -> dict[str, Any]:
    """Python, operating system, processor, threads, and what llama.cpp and torch make of it."""
    import torch

    from gguf_forget.llama.system import system_info

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "threads": {
            "torch": torch.get_num_threads(),
            **{name: os.environ[name] for name in _THREADS if name in os.environ},
        },
        "torch": {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "cuda": torch.cuda.is_available()},
        "llama.cpp": system_info(),
    }
