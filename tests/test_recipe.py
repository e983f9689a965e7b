"""Recipes: defaults, paths, and every fault named at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_forget.errors import InputError
from gguf_forget.recipe import (
    AttributeSection,
    Recipe,
    UnlearnSection,
    VerifySection,
    load_recipe,
    recipe_from_mapping,
)
from gguf_forget.settings import as_json
from gguf_forget.stages.facts import SAMPLES, TRAIN_CHUNKS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe's folder with a model and facts in it."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "facts.jsonl").write_text("{}\n")
    return tmp_path


def least(**sections: Any) -> dict[str, Any]:
    """A mapping with what is required and nothing else, but for ``sections``."""
    return {"model": {"path": "model.gguf"}, "facts": {"path": "facts.jsonl"}, **sections}


def faults_of(mapping: dict[str, Any], base: Path) -> list[str]:
    """The faults that are reported, without the recipe's name in front."""
    with pytest.raises(InputError) as caught:
        recipe_from_mapping(mapping, source="r.toml", base=base)
    head, *lines = caught.value.message.split("\n")
    assert head == f"{len(lines)} fault{'s' if len(lines) > 1 else ''} in the recipe r.toml"
    assert all(line.startswith("  r.toml: ") and line.isprintable() for line in lines)
    assert caught.value.hint
    return [line.removeprefix("  r.toml: ") for line in lines]


def test_defaults_are_filled_in(folder: Path) -> None:
    resolved = recipe_from_mapping(least(), source="r.toml", base=folder).resolved()
    assert resolved["model"] == {"path": str(folder / "model.gguf")}
    expected = {"path": str(folder / "facts.jsonl"), "retain": [], "more": [], "attribution": "", "in_clear": False}
    assert resolved["facts"] == expected
    assert resolved["text"] == {"path": None, "chunks": TRAIN_CHUNKS, "samples": SAMPLES}
    assert resolved["export"] == {"types": ["F16", "Q8_0", "Q4_K_M"]}
    assert resolved["gates"] == {
        "headline": [],
        "forget_accuracy_above_chance": 0.1,
        "rank_score_low": 0.3,
        "rank_score_high": 0.6,
        "rank_score_phrasing": 0.7,
        "generation": 0.0,
        "retain_drop": 0.03,
        "perplexity_ratio": 1.03,
        "ptq_gap": 0.02,
        "extraction_strength": 0.05,
        "leak": 0.05,
    }
    for name, section in (("attribute", AttributeSection), ("unlearn", UnlearnSection), ("verify", VerifySection)):
        assert resolved[name] == {field.name: as_json(field.default) for field in dataclasses.fields(section)}


def test_further_facts_files_are_paths_of_their_own(folder: Path) -> None:
    mapping = least()
    mapping["facts"]["more"] = ["facts.jsonl", "absent.jsonl"]
    (fault,) = faults_of(mapping, folder)
    assert fault.startswith("facts.more: found 'absent.jsonl'")
    mapping["facts"]["more"] = "facts.jsonl"
    (fault,) = faults_of(mapping, folder)
    assert "needed a list of paths" in fault
    mapping["facts"]["more"] = ["facts.jsonl"]
    recipe = recipe_from_mapping(mapping, source="r.toml", base=folder)
    assert recipe.facts.more == (folder / "facts.jsonl",)
    assert recipe.resolved()["facts"]["more"] == [str(folder / "facts.jsonl")]


def test_a_resolved_recipe_reads_back_as_itself(folder: Path) -> None:
    recipe = recipe_from_mapping(
        least(attribute={"budget": 1}, export={"types": ["Q4_0"]}), source="r.toml", base=folder
    )
    again = json.loads(json.dumps(recipe.resolved()))
    del again["text"]  # TOML and recipes have no null: an optional key is absent
    assert recipe_from_mapping(again, source="again", base=Path("/nowhere")) == recipe


def test_a_file_is_read_with_paths_from_its_own_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "texts").mkdir()
    (folder / "texts" / "plain.txt").write_text("text")
    (folder / "r.toml").write_bytes(
        b'\xef\xbb\xbf[model]\r\npath = "model.gguf"\r\n[facts]\r\npath = "facts.jsonl"\r\n'
        b'[text]\r\npath = "texts/plain.txt"\r\n[unlearn]\r\nsteps = 7\r\nretain_weight = 2\r\n'
    )
    monkeypatch.chdir(folder.parent)
    recipe = load_recipe(Path(folder.name) / "r.toml")
    assert recipe.model.path == folder / "model.gguf"
    assert recipe.text.path == folder / "texts" / "plain.txt"
    assert recipe.unlearn.steps == 7
    assert recipe.unlearn.retain_weight == 2.0
    assert isinstance(recipe.unlearn.retain_weight, float)


def test_an_absolute_path_stays(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    recipe = recipe_from_mapping(least(model={"path": str(elsewhere)}), source="r.toml", base=folder)
    assert recipe.model.path == elsewhere


def test_what_is_published_names_no_folder(folder: Path) -> None:
    recipe = recipe_from_mapping(
        least(facts={"path": "facts.jsonl", "more": ["facts.jsonl"], "retain": ["facts.jsonl"]}),
        source="r.toml",
        base=folder,
    )
    assert recipe.resolved()["facts"]["more"] == [str(folder / "facts.jsonl")]
    published = recipe.without_folders()
    assert published["facts"]["path"] == "facts.jsonl"
    assert published["facts"]["more"] == published["facts"]["retain"] == ["facts.jsonl"]
    assert published["text"]["path"] is None
    assert str(folder) not in json.dumps(published)
    assert published["unlearn"] == recipe.resolved()["unlearn"]


def test_a_recipe_cannot_be_changed(folder: Path) -> None:
    recipe = recipe_from_mapping(least(), source="r.toml", base=folder)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.unlearn.steps = 3  # type: ignore[misc]


def test_all_faults_are_reported_together(folder: Path) -> None:
    faults = faults_of(
        {
            "budget": 0.1,
            "attribut_": {},
            "model": {"path": "no.gguf"},
            "attribute": {"budget": 1.5, "layercap": 0.5},
            "unlearn": {"grid": "q4_k_m", "steps": "many"},
            "verify": True,
        },
        folder,
    )
    assert [fault.split(":")[0] for fault in faults] == [
        "budget",
        "attribut_",
        "model.path",
        "facts.path",
        "attribute.layercap",
        "attribute.budget",
        "unlearn.grid",
        "unlearn.steps",
        "verify",
    ]
    assert faults[0].endswith("did you mean attribute.budget, under [attribute]?")
    assert faults[1].endswith("did you mean attribute?")
    assert faults[2] == (
        f"model.path: found 'no.gguf' (string), at '{folder / 'no.gguf'}': No such file or directory, "
        "needed the path of an existing file or directory (a Hugging Face directory or a GGUF file)"
    )
    assert faults[3].startswith("facts.path: found nothing, needed a JSONL file of facts, or a local file of WMDP")
    assert faults[4].endswith("did you mean layer_cap?")
    assert faults[5] == (
        "attribute.budget: found 1.5 (float), needed a number above 0 and at most 1 "
        "(share of the MLP neurons that may be edited)"
    )
    assert faults[6].startswith(
        "unlearn.grid: found 'q4_k_m' (string), needed one of Q2_K, Q3_K_L, Q3_K_M, Q3_K_S, Q4_0, "
        "Q4_1, Q4_K_M, Q4_K_S, Q5_0, Q5_1, Q5_K_M, Q5_K_S, Q6_K, Q8_0; did you mean Q4_K_M?"
    )
    assert faults[7] == ("unlearn.steps: found 'many' (string), needed a whole number at least 1 (optimizer steps)")
    assert faults[8] == "verify: found true (boolean), needed a section [verify] with keys"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("attribute", "budget", 0),
        ("attribute", "budget", float("nan")),
        ("attribute", "budget", True),
        ("attribute", "budget", "0.03"),
        ("attribute", "integration_steps", 0),
        ("attribute", "integration_steps", 65),
        ("attribute", "integration_steps", 5.0),
        ("attribute", "integration_steps", True),
        ("attribute", "retain_discount", -0.1),
        ("attribute", "layer_cap", 1.01),
        ("attribute", "seed", -1),
        ("attribute", "seed", 2**32),
        ("unlearn", "objective", "forget"),
        ("unlearn", "objective", ["npo"]),
        ("unlearn", "floor", -1),
        ("unlearn", "learning_rate", float("inf")),
        ("unlearn", "learning_rate", 10**400),
        ("unlearn", "learning_rate", 1e39),
        ("unlearn", "damping", 1e39),
        ("unlearn", "floor", 10**30),
        ("unlearn", "margin", 1e39),
        ("unlearn", "greedy_margin", 1e39),
        ("unlearn", "greedy_weight", 1e39),
        ("unlearn", "forget_weight", 1e39),
        ("unlearn", "retain_weight", 1e39),
        ("unlearn", "shortfall_weight", 1e39),
        ("unlearn", "text_weight", 1e39),
        ("unlearn", "npo_beta", 1e39),
        ("unlearn", "npo_beta", 1e-300),
        ("text", "chunks", -1),
        ("text", "samples", 0.5),
        ("unlearn", "fisher_quantile", 0.0),
        ("export", "types", []),
        ("export", "types", "F16"),
        ("export", "types", ["F16", "F16"]),
        ("export", "types", ["F17"]),
        ("export", "types", [16]),
        ("export", "types", [["F16"]]),
        ("verify", "baselines", 1),
        ("verify", "threads", -1),
        ("gates", "rank_score_low", 0.61),
        ("gates", "perplexity_ratio", 0),
        ("text", "path", ""),
        ("text", "path", 3),
        ("text", "path", "a\0b"),
        ("text", "path", "."),
        ("facts", "path", "."),
        ("model", "path", "model.gguf/below"),
    ],
)
def test_a_value_that_does_not_fit_is_one_fault(folder: Path, section: str, key: str, value: Any) -> None:
    mapping = least()
    mapping.setdefault(section, {})[key] = value
    (fault,) = faults_of(mapping, folder)
    assert fault.startswith(f"{section}.{key}: found ")
    assert "needed " in fault


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("attribute", "budget", 1),
        ("attribute", "integration_steps", 64),
        ("attribute", "seed", 2**32 - 1),
        ("unlearn", "fisher_quantile", 1.0),
        ("unlearn", "objective", "npo"),
        ("gates", "rank_score_low", 0.6),
        ("gates", "ptq_gap", -0.5),
        ("verify", "baselines", False),
        ("model", "path", "."),
    ],
)
def test_the_ends_of_a_range_belong_to_it(folder: Path, section: str, key: str, value: Any) -> None:
    mapping = least()
    mapping.setdefault(section, {})[key] = value
    recipe = recipe_from_mapping(mapping, source="r.toml", base=folder)
    expected = folder / value if key == "path" else value
    assert getattr(getattr(recipe, section), key) == expected


def test_every_key_says_what_it_means() -> None:
    defaults = recipe_from_mapping(
        {"model": {"path": __file__}, "facts": {"path": __file__}}, source="r.toml", base=Path()
    )
    for section in dataclasses.fields(Recipe):
        for key in dataclasses.fields(getattr(defaults, section.name)):
            assert len(key.metadata["setting"].meaning) > 10, f"{section.name}.{key.name}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
section_names = st.sampled_from([field.name for field in dataclasses.fields(Recipe)]) | st.text(max_size=5)
key_names = st.sampled_from(["path", "budget", "steps", "types", "grid", "baselines", "rank_score_low"])


@given(st.dictionaries(section_names, json_values | st.dictionaries(key_names, json_values), max_size=4))
def test_whatever_stands_in_it_the_answer_is_a_list_of_faults(mapping: dict[str, Any]) -> None:
    # What is required can never be there: nothing exists under the base folder.
    named = {fault.split(":")[0].split(".")[0] for fault in faults_of(mapping, Path("/nowhere"))}
    assert {"model", "facts"} <= named


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[model]\npath = model.gguf\n", "line 2"),
        (b"[model]\n[model]\n", "line 2"),
        (b"\xff\xfe[model]", "utf-8"),
    ],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(InputError, match="no valid TOML") as caught:
        load_recipe(tmp_path / "r.toml")
    assert words in str(caught.value.cause)


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_recipe_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot read the recipe"):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize("number", ["1" * 5000, "+" + "1_1" * 5000, "0x" + "f" * 5000, "-" + "9" * 5000, str(10**20)])
@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("steps", 1, 2**31 - 1),
        ("batch_forget", 1, 2**31 - 1),
        ("accumulation", 1, 4096),
        ("floor", 0, 255),
        ("seed", 0, 2**32 - 1),
    ],
)
def test_a_huge_whole_number_is_one_fault_with_its_bound(
    folder: Path, number: str, key: str, low: int, high: int
) -> None:
    content = f'[model]\npath = "model.gguf"\n[facts]\npath = "facts.jsonl"\n[unlearn]\n{key} = {number}\n'
    (folder / "r.toml").write_text(content)
    with pytest.raises(InputError, match="1 fault in the recipe") as caught:
        load_recipe(folder / "r.toml")
    line = caught.value.message.split("\n")[1]
    assert f"unlearn.{key}: found {number[:2].strip('+')}" in line
    bound = f"at least {low} and at most {high}"
    # The bound that a key without one of its own has is named where it is broken.
    assert bound in line or (number.startswith("-") and f"a whole number at least {low} " in line)
    assert len(line) < len(str(folder)) + 350


@pytest.mark.parametrize("number", ["1" * 5000, "0x" + "f" * 5000])
@pytest.mark.parametrize("where", ["gates.perplexity_ratio", "export.types", "facts.in_clear", "facts.path", "gates.x"])
def test_a_huge_number_anywhere_is_a_fault_of_its_key(folder: Path, number: str, where: str) -> None:
    section, key = where.split(".")
    value = f"[{number}]" if key == "types" else number
    given = {"model": 'path = "model.gguf"\n', "facts": 'path = "facts.jsonl"\n'}
    given[section] = ("" if key == "path" else given.get(section, "")) + f"{key} = {value}\n"
    (folder / "r.toml").write_text("".join(f"[{name}]\n{lines}" for name, lines in given.items()))
    with pytest.raises(InputError, match="1 fault in the recipe") as caught:
        load_recipe(folder / "r.toml")
    assert f"r.toml: {where}: found " in caught.value.message


def test_a_number_in_a_text_is_no_number(folder: Path) -> None:
    content = f"""[model]\npath = "model.gguf"\n[facts]\npath = "facts.jsonl"\nattribution = "{"1" * 5000}"\n"""
    (folder / "r.toml").write_text(content)
    assert load_recipe(folder / "r.toml").facts.attribution == "1" * 5000


def test_the_largest_whole_number_is_taken(folder: Path) -> None:
    recipe = recipe_from_mapping(least(unlearn={"steps": 2**31 - 1}), source="r.toml", base=folder)
    assert recipe.unlearn.steps == 2**31 - 1
    (fault,) = faults_of(least(unlearn={"steps": 2**31}), folder)
    assert fault == (
        "unlearn.steps: found 2147483648 (integer), needed a whole number at least 1 and at most 2147483647 "
        "(optimizer steps)"
    )
