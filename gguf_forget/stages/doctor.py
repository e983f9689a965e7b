"""What is installed, what the machine is, and what a model or recipe will need of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf_forget.checkpoint.convert import PROGRAM, cache_directory
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.errors import EvaluationError, InputError, LlamaError
from gguf_forget.llama.quantizer import plan_file
from gguf_forget.llama.self_check import self_check
from gguf_forget.recipe import Recipe, load_recipe
from gguf_forget.stages.machine import environment, tool_versions

# What a weight takes at least; activations and gradients of the codes come on top.
BYTES_A_WEIGHT = 8  # two copies in bfloat16 and one in float32
BYTES_A_TRAINED_WEIGHT = 20  # the baseline trains all: two copies in float32, a gradient, two moments
COPIES = 2  # of each exported type beside stock: unlearned, and the unlearned weights as anyone would round them
BASELINE = "Q4_0"  # the type that the baseline is rounded to


def doctor(target: Path | None) -> dict[str, Any]:
    """Versions, environment, llama.cpp's self-check, converter, memory and disk.

    ``target``: a GGUF, a recipe (.toml), or None.
    Raises InputError for a target that cannot be read.
    """
    converter = cache_directory() / PROGRAM
    if target is not None and not target.exists():
        raise InputError(f"{target} is not there, needed a GGUF or a recipe (.toml)", hint="check the path")
    folder = Path.cwd() if target is None else target.absolute().parent
    document: dict[str, Any] = {
        "schema_version": 1,
        "tools": tool_versions(),
        "environment": environment(),
        "self_check": _self_check(),
        "converter": str(converter) if converter.is_file() else None,
        "memory": {"free": free_memory()},
        "disk": {"folder": str(folder), "free": shutil.disk_usage(folder).free},
    }
    if target is None:
        return document
    recipe = load_recipe(target) if target.suffix == ".toml" else None
    model = target if recipe is None else recipe.model.path
    if model.is_dir():
        raise InputError(f"{model} is a directory, needed a GGUF to say what it takes", hint="convert it first")
    weights = sum(tensor.rows * tensor.columns for tensor in stored_tensors(model).values())
    types = ("Q4_K_M",) if recipe is None else recipe.export.types
    document["model"] = {"file": str(model), "weights": weights, "types": list(types)}
    trained = recipe is not None and recipe.verify.baselines
    document["memory"]["needed_at_least"] = (BYTES_A_TRAINED_WEIGHT if trained else BYTES_A_WEIGHT) * weights
    document["disk"]["needed"] = disk_needed(model, weights, types, recipe)
    return document


def _self_check() -> dict[str, Any]:
    try:
        self_check()
    except (EvaluationError, LlamaError) as error:
        return {"passed": False, "error": error.message, "hint": error.hint}
    return {"passed": True, "error": None, "hint": None}


def disk_needed(model: Path, weights: int, types: Sequence[str], recipe: Recipe | None) -> int:
    """Bytes of all files of a run; with a GGUF alone, of its quantizations."""
    if recipe is None:
        return sum(plan_file(model, kind).bytes for kind in types)
    rounded = (BASELINE,) if recipe.verify.baselines else ()
    # The original is quantized to every type that is shipped, trained or compared with.
    stock = {kind: plan_file(model, kind).bytes for kind in {*types, *recipe.unlearn.grids, *rounded, "F16"}}
    full = 4 * weights
    baseline = full + stock[BASELINE] if rounded else 0
    return 2 * full + sum(stock.values()) + COPIES * sum(stock[kind] for kind in types) + baseline


def free_memory() -> int | None:
    """Bytes that a new process can have, None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
