"""`attribute MODEL FACTS` and `divergence`, on a tiny random model: files, figures, refusals."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from test_pipeline import facts
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.circuit.artifact import load_circuit
from gguf_forget.circuit.faithfulness import faithfulness
from gguf_forget.circuit.neurons import score_neurons
from gguf_forget.circuit.selection import discounted_scores, normalised, random_circuit, select_neurons
from gguf_forget.circuit.text_need import text_need
from gguf_forget.cli import main
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import build_pairs
from gguf_forget.facts.schema import dump_facts
from gguf_forget.facts.tokens import encode_facts
from gguf_forget.progress import Progress
from gguf_forget.recipe import AttributeSection
from gguf_forget.stages.attribute import find_circuit, pair_facts
from gguf_forget.stages.circuit_evidence import FEWEST


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("circuits")
    texts = [f"{prompt} {fact.answer}." for fact in facts() for prompt in fact.prompts + fact.held_out_prompts]
    for name, seed in (("model", 0), ("other", 1)):
        build_tiny_gguf(folder / f"{name}.gguf", texts=texts * 4, hidden=64, feed_forward=128, seed=seed)
    (folder / "facts.jsonl").write_bytes(dump_facts(facts()))
    return folder


STUDY = (
    *("--budget", "5%", "--pairs", "8", "--steps", "2", "--layer-cap", "0.2"),
    *("--ranking", "signed", "--precision", "float32", "--quiet"),
)


@pytest.fixture(scope="module")
def study(folder: Path) -> dict[str, Any]:
    arguments = ("attribute", folder / "model.gguf", folder / "facts.jsonl", "-o", folder / "out", *STUDY)
    result = invoke(*arguments, "--json", "--evidence-pairs", "4")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_what_a_study_leaves_behind(folder: Path, study: dict[str, Any]) -> None:
    pictures = [f"{name}.{kind}" for name in ("components", "faithfulness", "scores") for kind in ("png", "svg")]
    names = sorted(["circuit.json", "circuit.safetensors", *pictures])
    assert sorted(path.name for path in (folder / "out").iterdir()) == names
    saved = json.loads((folder / "out" / "circuit.json").read_text())
    assert {**saved, "folder": str(folder / "out")} == study
    assert saved["schema_version"] == 1
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_the_circuit_is_the_one_that_the_parts_give(folder: Path, study: dict[str, Any]) -> None:
    model, tokenize = load_torch(folder / "model.gguf"), load_tokenizer(folder / "model.gguf")
    examples = encode_facts(facts(), tokenize)
    scores = {}
    for split in ("forget", "retain"):
        own = [example for example in examples if facts()[example.fact].split == split]
        pairs = build_pairs(facts(), own, tokenize, pool=examples, seed=0, limit=8).pairs
        scores[split] = score_neurons(model, pairs, integration_steps=2).scores.numpy()
    circuit, forget, retain = load_circuit(folder / "out" / "circuit.safetensors")
    np.testing.assert_allclose(forget, scores["forget"], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(retain, scores["retain"], rtol=1e-3, atol=1e-7)
    expected = select_neurons(discounted_scores([forget], [retain], 1.0, signed=True), budget=0.05, layer_cap=0.2)
    assert np.array_equal(circuit.mask(), expected.mask())
    assert study["neurons"] == circuit.size == 13
    share = np.abs(forget)[circuit.mask()].sum() / np.abs(forget).sum()
    assert study["share_of_attribution"]["forget"] == pytest.approx(share)


def test_gradients_are_in_bfloat16_unless_told_otherwise(folder: Path) -> None:
    model = load_torch(folder / "model.gguf")
    paired = pair_facts(facts(), load_tokenizer(folder / "model.gguf"), pairs=8, seed=0)
    section = AttributeSection(integration_steps=2)
    exact = replace(section, precision="float32")
    found, fine = find_circuit(model, paired, section, Progress()), find_circuit(model, paired, exact, Progress())
    half = find_circuit(load_torch(folder / "model.gguf", bfloat16=True), paired, exact, Progress())
    assert torch.equal(found.forget.scores, half.forget.scores)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert found.forget.scores.dtype == torch.float64
    assert not torch.equal(found.forget.scores, fine.forget.scores)
    pair = torch.stack([found.forget.scores.flatten(), fine.forget.scores.flatten()])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.999


def test_the_evidence_is_what_the_parts_measure(folder: Path, study: dict[str, Any]) -> None:
    model = load_torch(folder / "model.gguf")
    circuit, _, _ = load_circuit(folder / "out" / "circuit.safetensors")
    paired = pair_facts(facts(), load_tokenizer(folder / "model.gguf"), pairs=8, seed=0)
    judged = paired.judges("forget", count=4, seed=0)
    assert judged.unseen
    assert study["evidence"]["unseen_pairs"] == {"forget": True, "retain": True}
    assert {pair.clean for pair in judged.pairs} & {pair.clean for pair in paired.pairs("forget")} == set()
    rows = {(row["split"], row["circuit"]): row for row in study["evidence"]["faithfulness"]}
    assert list(rows) == [
        (split, name) for split in ("forget", "retain") for name in ("circuit", "undiscounted", "random control")
    ]
    controls = [random_circuit(circuit, seed=seed) for seed in range(3)]
    values = faithfulness(model, judged.pairs, [circuit, *controls]).values
    assert rows["forget", "circuit"]["faithfulness"] == pytest.approx(values[0], rel=1e-4)
    assert rows["forget", "random control"]["faithfulness"] == pytest.approx(np.mean(values[1:]), rel=1e-4)
    assert {row["kind"] for row in study["evidence"]["ablation"]} == {"resample", "mean"}
    curve = study["evidence"]["curve"]["circuit"]
    assert curve["faithfulness"][-1] == pytest.approx(1)
    assert curve["neurons"][-1] == 256
    assert study["evidence"]["exact_patching"]["spearman"] > 0.5
    assert study["evidence"]["across_seeds"]["overlap"]["chance"] == pytest.approx(0.05, abs=0.05)


def test_the_same_circuit_comes_without_evidence_and_is_printed(
    folder: Path, study: dict[str, Any], tmp_path: Path
) -> None:
    arguments = ("attribute", folder / "model.gguf", folder / "facts.jsonl", "-o", tmp_path / "out", *STUDY)
    result = invoke(*arguments, "--no-evidence", "--level", "edges")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("13 neurons (5.1 %) hold")
    assert "forget: 8 pairs (another subject 8)" in result.stdout
    assert result.stderr == ""
    assert json.loads((tmp_path / "out" / "circuit.json").read_text())["evidence"] is None
    for name in ("components.png", "components.svg", "scores.png", "scores.svg"):
        assert (folder / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    first, second = (load_file(where / "out" / "circuit.safetensors") for where in (folder, tmp_path))
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name
    assert set(second) - set(first) == {"edges"}

    # Heads and MLPs score what their edges add up to.
    graph = json.loads((tmp_path / "out" / "circuit.json").read_text())["graph"]
    assert second["edges"].shape == (len(graph["sources"]), len(graph["destinations"]))
    outgoing = dict(zip(graph["sources"], second["edges"].sum(axis=1), strict=True))
    assert second["heads"].shape == (2, 4)
    assert second["mlps"].shape == (2,)
    for layer in (0, 1):
        assert second["mlps"][layer] == pytest.approx(outgoing[f"m{layer}"], rel=1e-3, abs=1e-6)
        assert second["heads"][layer, 3] == pytest.approx(outgoing[f"a{layer}.h3"], rel=1e-3, abs=1e-6)


def test_a_dry_run_reads_sizes_and_pairs_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    arguments = ("attribute", folder / "model.gguf", folder / "facts.jsonl", "-o", tmp_path / "out", "--dry-run")
    result = invoke(*arguments, "--parameters", "1%", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["layers"], plan["neurons"], plan["pairs"]["forget"]["pairs"]) == (2, 256, 12)
    # a neuron owns its row of gate and up and its column of down: 3 of 64
    assert plan["neurons_wanted"] == round(0.01 * plan["parameters"] / (3 * 64))
    assert not (tmp_path / "out").exists()


def test_a_circuit_grows_to_the_minimum_faithfulness(folder: Path) -> None:
    model = load_torch(folder / "model.gguf")
    paired = pair_facts(facts(), load_tokenizer(folder / "model.gguf"), pairs=4, seed=0)
    options = AttributeSection(neurons=4, layer_cap=1, integration_steps=1, minimum_faithfulness=1)
    found = find_circuit(model, paired, options, Progress())
    assert faithfulness(model, paired.pairs("forget"), [found.circuit]).values[0] >= 1
    assert found.circuit.size > 4
    assert np.array_equal(found.circuit.mask(), select_neurons(found.ranking, neurons=found.circuit.size).mask())


def test_the_text_that_is_given_is_discounted_or_the_built_in_one(folder: Path) -> None:
    model = load_torch(folder / "model.gguf")
    paired = pair_facts(facts(), load_tokenizer(folder / "model.gguf"), pairs=4, seed=0)
    options = AttributeSection(neurons=9, layer_cap=1, integration_steps=1, text_discount=1.5)
    own = [list(range(start, start + 8)) for start in range(3, 40)]  # more than are drawn
    drawn = random.Random(0).sample(own, 32)
    plain, given, built_in = (
        find_circuit(model, paired, each, Progress(), text=text).ranking
        for each, text in ((replace(options, text_discount=0.0), own), (options, own), (options, None))
    )
    np.testing.assert_allclose(given, plain - 1.5 * normalised(text_need(model, drawn)), rtol=1e-4, atol=1e-6)
    assert np.abs(built_in - given).max() > 0.1


def test_no_circuit_is_faithful_where_neurons_do_nothing(folder: Path) -> None:
    model = load_torch(folder / "model.gguf")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
    paired = pair_facts(facts(), load_tokenizer(folder / "model.gguf"), pairs=4, seed=0)
    options = AttributeSection(neurons=4, layer_cap=1, integration_steps=1, minimum_faithfulness=0.5)
    with pytest.raises(InputError, match="no circuit can be faithful to the answers to forget: L is"):
        find_circuit(model, paired, options, Progress())


def test_a_folder_of_something_else_is_not_touched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = invoke("attribute", folder / "model.gguf", folder / "facts.jsonl", "-o", tmp_path, "--dry-run")
    assert result.exit_code == 2
    assert "holds 'mine.txt', which no circuit's folder has" in result.stderr
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("out", "found"),
    [
        ("mine.txt", "is there and is no folder"),
        ("loop", "is there and is no folder"),
        ("mine.txt/new/out", "is no directory"),
        ("loop/new", "is no directory"),
        ("locked/new", "nothing can be written in"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, found: str, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr("gguf_forget.stages.study.open_model", None)
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path))  # root may write anywhere
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "locked").mkdir()
    result = invoke("attribute", folder / "model.gguf", folder / "facts.jsonl", "-o", tmp_path / out, *more)
    assert result.exit_code == 2, result.output
    assert found in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["locked", "loop", "mine.txt"]


def test_a_circuits_folder_that_holds_anything_else_is_not_replaced(
    folder: Path, study: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(folder / "out", tmp_path / "out")
    shutil.copy(folder / "facts.jsonl", tmp_path / "out")
    result = invoke("attribute", folder / "model.gguf", tmp_path / "out" / "facts.jsonl", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "holds 'facts.jsonl', which no circuit's folder has" in result.stderr
    assert (tmp_path / "out" / "facts.jsonl").read_bytes() == (folder / "facts.jsonl").read_bytes()
    (tmp_path / "out" / "facts.jsonl").unlink()
    options = ("--pairs", "4", "--steps", "1", "--level", "neurons", "--no-evidence", "--quiet")
    result = invoke("attribute", folder / "model.gguf", folder / "facts.jsonl", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "circuit.json",
        "circuit.safetensors",
        "scores.png",
        "scores.svg",
    ]


def test_a_relation_to_be_forgotten_that_gives_no_pair_is_named(folder: Path) -> None:
    lone = replace(next(fact for fact in facts() if fact.split == "forget"), relation="river")
    paired = pair_facts((*facts(), lone), load_tokenizer(folder / "model.gguf"), pairs=8, seed=0)
    assert paired.unattributed() == ["river"]
    notes: list[str] = []
    progress = Progress()
    progress.note = notes.append  # type: ignore[method-assign]
    paired.tell_unattributed(progress)
    assert [note.split(":")[0] for note in notes] == ["the circuit is found without 'river', which is to be forgotten"]


def test_few_pairs_that_no_attribution_saw_are_not_enough_to_judge_by(folder: Path) -> None:
    def judged(pairs: int, count: int) -> tuple[int, bool]:
        paired = pair_facts(facts(), load_tokenizer(folder / "model.gguf"), pairs=pairs, seed=0)
        found = paired.judges("forget", count=count, seed=0)
        return len(found.pairs), found.unseen

    every = sum(len(fact.prompts) for fact in facts() if fact.split == "forget")
    assert judged(every - 1, 64) == (every - 1, False)
    assert judged(every - 1, 1) == (1, True)
    assert judged(every - FEWEST, 64) == (FEWEST, True)


def test_judges_are_corrupted_as_the_attributed_pairs_are(folder: Path) -> None:
    some = next(fact for fact in facts() if fact.split == "forget")
    subject = f"{some.subject} and all of its many provinces"
    odd = replace(
        some, subject=subject, prompts=tuple(prompt.replace(some.subject, subject) for prompt in some.prompts)
    )
    tokenize = load_tokenizer(folder / "model.gguf")
    kinds: dict[bool, list[bool]] = {True: [], False: []}
    for mean_embedding, seed in product(kinds, range(4)):  # in some draws the odd fact is left for the judges
        paired = pair_facts((*facts(), odd), tokenize, pairs=4, seed=seed, mean_embedding=mean_embedding)
        found = paired.judges("forget", count=64, seed=0)
        assert found.unseen
        kinds[mean_embedding] += [pair.span is not None for pair in found.pairs]
    assert any(kinds[True])
    assert not any(kinds[False])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model.gguf", "facts.jsonl"), "give it with -o DIR"),
        (("recipe.toml", "--neurons", "3"), "--neurons need MODEL and FACTS"),
        (("model.gguf", "facts.jsonl", "-o", "new", "--neurons", "3", "--budget", "1%"), "at most one of them"),
        (("model.gguf", "facts.jsonl", "-o", "new", "--budget", "3"), "needed a share like 0.03 or 3%"),
        (
            ("model.gguf", "facts.jsonl", "-o", "new", "--no-evidence", "--evidence-pairs", "3"),
            "--evidence-pairs with --no-evidence: the circuit is not judged",
        ),
        (("missing.gguf", "facts.jsonl", "-o", "new"), "does not exist"),
        (("model.gguf", "missing.jsonl", "-o", "new"), "does not exist"),
        (("model.gguf", "facts.jsonl", "-o", "new", "--neurons", "250"), "does not fit into 2 layers"),
        (("model.gguf", "facts.jsonl", "-o", "new", "--budget", "50%", "--dry-run"), "does not fit into 2 layers"),
        (("model.gguf", "facts.jsonl", "-o", "new", "--parameters", "100%", "--dry-run"), "does not fit into 2 layers"),
        (("model.gguf", "facts.jsonl", "-o", "new", "--retain-discount", "nan"), "'nan', needed a finite number"),
        (("model.gguf", "facts.jsonl", "-o", "."), "is the current folder"),
        (("model.gguf", "facts.jsonl", "-o", "facts.jsonl"), "is no folder"),
    ],
)
def test_usage_errors(folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str) -> None:
    monkeypatch.chdir(folder)
    result = invoke("attribute", *arguments, "--quiet")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (folder / "new").exists()


FEW = ("--pairs", "4", "--steps", "1", "--quiet", "--json")


def test_divergence_of_a_model_from_itself_and_from_another(folder: Path, study: dict[str, Any]) -> None:
    own, other = folder / "model.gguf", folder / "other.gguf"
    result = invoke("divergence", own, own, folder / "facts.jsonl", "--circuit", folder / "out", *FEW)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["circuit_neurons"] == 13
    assert [row["of"] for row in document["divergence"]] == ["all neurons", "circuit", "random control"] * 2
    for row in document["divergence"]:
        assert (row["l1"], row["mass_ratio"]) == (0, 1)
        assert row["one_minus_cosine"] == pytest.approx(0, abs=1e-12)
    result = invoke("divergence", own, other, folder / "facts.jsonl", *FEW)
    rows = json.loads(result.stdout)["divergence"]
    assert all(0.1 < row["l1"] <= 2 for row in rows)
    assert rows[1]["neurons"] == round(0.03 * 256)


CHOOSING = (
    "--neurons 3",
    "--budget 1%",
    "--ranking signed",
    "--layer-cap 1",
    "--retain-discount 1",
    "--text-discount 0",
)


@pytest.mark.parametrize("option", CHOOSING)
def test_divergence_in_a_given_circuit_refuses_what_would_choose_one(folder: Path, option: str) -> None:
    own = folder / "model.gguf"
    arguments = ("divergence", own, own, folder / "facts.jsonl", *option.split(), "--dry-run", *FEW)
    assert invoke(*arguments).exit_code == 0
    result = invoke(*arguments, "--circuit", folder / "out", "--seed", 1, "--variant", "inputs")
    assert result.exit_code == 2
    name = option.split()[0]
    assert f"{name} with --circuit: the circuit is given, none is chosen" in " ".join(result.stderr.split())


def test_all_options_that_would_choose_a_circuit_are_named(folder: Path) -> None:
    own = folder / "model.gguf"
    options = ("--layer-cap", 1, "--budget", "1%", "--circuit", folder / "out")
    result = invoke("divergence", own, own, folder / "facts.jsonl", *options)
    assert result.exit_code == 2
    assert "--budget, --layer-cap with --circuit" in " ".join(result.stderr.split())


def test_divergence_needs_one_architecture_and_one_tokenizer(folder: Path, tmp_path: Path) -> None:
    wide = build_tiny_gguf(tmp_path / "wide.gguf", hidden=64, feed_forward=160)
    result = invoke("divergence", folder / "model.gguf", wide, folder / "facts.jsonl", *FEW)
    assert result.exit_code == 2
    assert "2 layers of 128 neurons" in result.stderr
    assert "2 of 160" in result.stderr
    texts = [f"{prompt} {fact.answer}." for fact in facts() for prompt in fact.prompts]
    spoken = build_tiny_gguf(tmp_path / "spoken.gguf", texts=texts * 4, hidden=64, feed_forward=128)
    result = invoke("divergence", folder / "model.gguf", spoken, folder / "facts.jsonl", *FEW)
    assert result.exit_code == 2
    assert "tokenize the facts differently" in result.stderr


def test_divergence_refuses_a_circuit_of_another_model_before_scoring(
    folder: Path, study: dict[str, Any], tmp_path: Path
) -> None:
    wide = build_tiny_gguf(tmp_path / "wide.gguf", hidden=64, feed_forward=160)
    for more in ((), ("--dry-run",)):
        result = invoke("divergence", wide, wide, folder / "facts.jsonl", "--circuit", folder / "out", *FEW, *more)
        assert result.exit_code == 2
        assert "has 2 layers of 128 neurons, the models 2 of 160" in result.stderr
