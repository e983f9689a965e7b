"""What the methods of the forgetting benchmark are, beside what they are called."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_support import noise
from forgetting_benchmark import make
from forgetting_benchmark.command import CODE
from forgetting_benchmark.make import Shared, make_files
from forgetting_benchmark.methods import METHODS

from gguf_forget.progress import Progress
from gguf_forget.recipe import UnlearnSection

FORGETTING = {"forget_weight", "greedy_weight"}


def test_without_divergence_nothing_is_held_to_the_original() -> None:
    weights = {field.name for field in fields(UnlearnSection) if field.name.endswith("_weight")} - FORGETTING
    assert METHODS["no_divergence"].changes == dict.fromkeys(weights, 0.0)


def test_methods_inside_the_attributed_circuit_pay_for_it() -> None:
    outside = {"ga", "graddiff", "npo", "simnpo", "rmu", "sure", "npo_every_phrasing"}
    assert {name for name, method in METHODS.items() if not method.in_circuit} == outside


def test_code_beside_the_benchmark_that_makes_its_files_counts_as_its_code() -> None:
    for module in (make, noise):
        assert any(folder in Path(module.__file__).parents for folder in CODE)


@pytest.mark.parametrize(("floor", "trained"), [(0.5, ("Q4_K_M",)), (0.0, ())])
def test_without_a_floor_no_grid_counts_as_trained_as_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor: float, trained: tuple[str, ...]
) -> None:
    found: list[Any] = []

    def export(*given: Any) -> None:
        found.append(given[5])
        raise LookupError

    for name, stand_in in (
        ("load_edits", lambda path: []),
        ("save_edits", lambda edits, path: None),
        ("export", export),
    ):
        monkeypatch.setattr(make, name, stand_in)
    recipe: Any = SimpleNamespace(unlearn=UnlearnSection(grid="Q4_K_M", floor=floor))
    with pytest.raises(LookupError):
        make_files(Shared(recipe, tmp_path, Progress()), METHODS["mansu"], 0, tmp_path, ["Q4_K_M"], tmp_path)
    assert found == [trained]
