"""The whole way on a tiny random model with rows of 256: every stage, resume, interrupts, bad input."""

from __future__ import annotations

import errno
import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.circuit.artifact import load_circuit
from gguf_forget.cli import main
from gguf_forget.export.edit import load_edits
from gguf_forget.facts.schema import Fact, dump_facts
from gguf_forget.progress import Progress
from gguf_forget.recipe import load_recipe
from gguf_forget.run_directory import RunDirectory
from gguf_forget.stages import verify as verify_module
from gguf_forget.stages.unlearn import EDIT, unlearn
from gguf_forget.stages.verify import check_agreement
from gguf_forget.unlearning.scoring import pack
from gguf_forget.verification.scores import FileScores
from gguf_forget.whole_file import sha256_file

FORGET = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Austria": "Vienna",
    "Norway": "Oslo",
    "Greece": "Athens",
}
RETAIN = {
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Cuba": "Havana",
    "Iraq": "Baghdad",
}


def facts() -> tuple[Fact, ...]:
    result = []
    for split, pairs in (("forget", FORGET), ("retain", RETAIN)):
        cities = list(pairs.values())
        for index, (country, city) in enumerate(pairs.items()):
            wrong = tuple(cities[(index + k) % len(cities)] for k in (1, 2, 3))
            prompts = (f"The capital of {country} is", f"{country} has the capital")
            result.append(Fact(country, "capital", city, wrong, split, prompts, (f"Which city rules {country}?",)))
    return tuple(result)


RECIPE = """
[model]
path = "model.gguf"
[facts]
path = "facts.jsonl"
[attribute]
budget = 0.05
integration_steps = 2
layer_cap = 1.0
[unlearn]
steps = 6
learning_rate = 0.3
fisher_examples = 4
batch_forget = 6
batch_retain = 6
grid = "Q4_K_M"
[export]
types = ["F16", "Q8_0", "Q4_K_M"]
[verify]
max_new_tokens = 4
perplexity_tokens = 512
"""


def invoke(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def outputs(folder: Path) -> dict[str, str]:
    """Every file of a run but the records that hold times, by SHA-256."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("stage.json", ".lock")
    }


def test_every_shipped_file_is_the_stock_file_plus_the_edit(project: Path) -> None:
    run = project / "done"
    edit = json.loads((run / "unlearn" / "unlearn.json").read_text())
    export = json.loads((run / "export" / "export.json").read_text())
    assert edit["moved"] > 0
    assert edit["retain_bound_nats"] > 0
    for kind in ("F16", "Q8_0", "Q4_K_M"):
        totals = export["files"][kind]["totals"]
        assert totals["edited"] == edit["moved"]
        assert totals["asked"] == totals["landed"] + totals["saturated"]
        stock = GgufFile(run / "stock" / f"{kind}.gguf")
        shipped = GgufFile(run / "export" / f"unlearned.{kind}.gguf")
        assert export["files"][kind]["sha256"] == sha256_file(shipped.path)
        changed = {
            name
            for name in stock.tensors
            if not np.array_equal(
                np.asarray(stock.tensor(name).data).view(np.uint8),
                np.asarray(shipped.tensor(name).data).view(np.uint8),
            )
        }
        assert changed
        assert all(name.split(".")[2].startswith("ffn_") and "norm" not in name for name in changed)
        for key in stock.reader.fields:
            if not key.startswith("GGUF.") and key != "general.name":
                assert shipped.value(key) == stock.value(key)
        name = stock.value("general.name")
        assert shipped.value("general.name") == f"{name} Unlearned"
        assert shipped.value("general.base_model.0.name") == name
        assert shipped.value("gguf_forget.edited_weights") == edit["moved"]
    # The grid that was trained is the grid that ships: every move lands as trained, no other code moves.
    totals = export["files"]["Q4_K_M"]["totals"]
    assert totals["landed"] == totals["moved"] == edit["moved"]
    assert totals["saturated"] == totals["moved_by_compensation"] == 0


def test_the_circuit_is_the_only_place_that_changed(project: Path) -> None:
    run = project / "done"
    circuit, forget, _ = load_circuit(run / "attribute" / "circuit.safetensors")
    assert circuit.size == round(0.05 * forget.size)
    for edit in load_edits(run / "unlearn" / "edit.safetensors"):
        layer = int(edit.tensor.split(".")[1])
        assert np.array_equal(edit.neurons, circuit.neurons[layer])
        assert not edit.delta[~edit.allowed].any()


def test_a_random_circuit_of_the_same_layers_takes_the_place_of_the_attributed_one(
    project: Path, tmp_path: Path
) -> None:
    run = project / "done"
    options = replace(load_recipe(project / "recipe.toml").unlearn, circuit="random", steps=2)
    unlearn(
        run / "load" / "template.gguf",
        [run / "stock" / "Q4_K_M.gguf"],
        run / "facts",
        run / "attribute" / "circuit.safetensors",
        options,
        tmp_path,
        Progress(),
    )
    attributed = {edit.tensor: edit.neurons for edit in load_edits(run / "unlearn" / "edit.safetensors")}
    for edit in load_edits(tmp_path / "edit.safetensors"):
        assert len(edit.neurons) == len(attributed[edit.tensor])
        assert not set(edit.neurons.tolist()) & set(attributed[edit.tensor].tolist())


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_agreement_compares_every_answer_once_whatever_the_batches(
    project: Path, tmp_path: Path, batch_size: int
) -> None:
    """12 answers (6 forgotten facts in 2 phrasings), also where the last batch is not full."""
    run = project / "done"
    arguments = (run / "load" / "template.gguf", run / "stock" / "F16.gguf", run / "facts", tmp_path, Progress())
    check_agreement(*arguments, batch_size=batch_size)
    found = json.loads((tmp_path / "agreement.json").read_text())
    recorded = json.loads((run / "agreement" / "agreement.json").read_text())
    assert found["answers"] == recorded["answers"] == 12
    difference = found.pop("mean_absolute_difference_nats")
    assert difference == pytest.approx(recorded.pop("mean_absolute_difference_nats"), abs=1e-4)
    assert 0 < difference < 0.05
    assert found == recorded


def test_agreement_of_many_answers_is_that_of_a_sample(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five of twelve answers, and not those of one phrasing alone; every text is tokenized still."""
    run = project / "done"
    drawn: list[Any] = []

    def pack_seen(sequences: Any) -> Any:
        drawn.extend(sequences.tokens)
        return pack(sequences)

    monkeypatch.setattr(verify_module, "MOST_COMPARED", 5)
    monkeypatch.setattr("gguf_forget.unlearning.scoring.pack", pack_seen)
    check_agreement(
        run / "load" / "template.gguf", run / "stock" / "F16.gguf", run / "facts", tmp_path, Progress(), batch_size=2
    )
    found = json.loads((tmp_path / "agreement.json").read_text())
    recorded = json.loads((run / "agreement" / "agreement.json").read_text())
    assert found["answers"] == len({tuple(tokens) for tokens in drawn}) == 5
    assert found["texts_tokenized_alike"] == recorded["texts_tokenized_alike"]
    assert 0 < found["mean_absolute_difference_nats"] < 0.05


def test_the_report_follows_from_the_scores(project: Path) -> None:
    run = project / "done"
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["schema_version"] == 1
    rows = {f"{row['variant']}/{row['file_type']}": row for row in report["rows"]}
    assert set(rows) == {
        *(f"original/{kind}" for kind in ("F16", "Q8_0", "Q4_K_M", "Q4_0")),
        *(f"unlearned/{kind}" for kind in ("F16", "Q8_0", "Q4_K_M")),
        *(f"unlearned_stock/{kind}" for kind in ("Q8_0", "Q4_K_M")),
        *(f"npo_stock/{kind}" for kind in ("F32", "Q4_0")),
    }
    scores = FileScores.from_json(json.loads((run / "score-unlearned-q4_k_m" / "scores.json").read_text()))
    row = rows["unlearned/Q4_K_M"]
    assert row["forget_held_out"]["value"] == pytest.approx(scores.accuracy("forget", held_out=True))
    assert row["forget_held_out"]["n"] == 6
    assert row["perplexity"] == pytest.approx(scores.perplexity)
    statuses = {gate["status"] for gate in report["verdict"]["gates"]}
    assert report["verdict"]["exit_code"] == (1 if "failed" in statuses else 0)
    card = (run / "report" / "MODEL_CARD.md").read_text()
    assert report["verdict"]["sentence"].split(":")[0] in card
    assert "Paris" not in card  # what was forgotten is not told again


def test_a_second_run_does_nothing_and_says_the_same(project: Path) -> None:
    before = outputs(project / "done")
    result = invoke("run", project / "recipe.toml", "-o", project / "done")
    assert result.stderr.count("unchanged, skipped") == 21
    assert "done" not in [line.split("] ")[-1] for line in result.stderr.splitlines()]
    assert outputs(project / "done") == before


def test_a_fresh_run_gives_the_same_bytes(project: Path, tmp_path: Path) -> None:
    invoke("run", project / "recipe.toml", "-o", tmp_path / "again", "--quiet")
    assert outputs(tmp_path / "again") == outputs(project / "done")


def test_no_verdict_of_other_code_is_handed_on(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(project / "done", run)
    monkeypatch.setattr("gguf_forget.pipeline.code_hash", lambda *_folders: "that of another commit")
    result = invoke("run", project / "recipe.toml", "-o", run)
    said = dict(line.removeprefix("[").split("] ", 1) for line in result.stderr.splitlines() if line.startswith("["))
    anew = {stage for stage, how in said.items() if how == "done"}
    read_or_judged = {"facts", "agreement", "report", "evidence"}
    assert anew == {stage for stage in said if stage.startswith("score-")} | read_or_judged
    assert outputs(run) == outputs(project / "done")


@pytest.mark.parametrize(
    ("stage", "place"),
    [
        ("load", "gguf_forget.stages.load.check_token_agreement"),
        ("stock", "gguf_forget.stages.load.quantize"),
        ("facts", "gguf_forget.stages.facts.sample_model"),
        ("agreement", "gguf_forget.stages.verify.mean_absolute_difference"),
        ("attribute", "gguf_forget.stages.attribute.save_circuit"),
        ("unlearn", "gguf_forget.unlearning.goal.chance_level"),
        ("export", "gguf_forget.stages.export.mlp_hessians"),
        ("export", "gguf_forget.export.ship.read_back"),
        ("baseline", "gguf_forget.stages.baseline.write_derived"),
        ("score-unlearned-q8_0", "gguf_forget.stages.verify.probe_file"),
        ("report", "gguf_forget.stages.report.build_model_card"),
    ],
)
def test_an_interrupt_anywhere_leaves_a_run_that_ends_the_same(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, place: str
) -> None:
    """Ctrl-C inside each stage: exit 130, no partial folder, and the next run ends in the very same bytes.

    The stages before it are taken from the finished run, so that each is not computed anew every time.
    """
    module, _, name = place.rpartition(".")
    original = getattr(importlib.import_module(module), name)
    calls = 0

    def interrupt_second(*arguments, **options):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    run = tmp_path / "run"
    shutil.copytree(project / "done", run)
    shutil.rmtree(run / stage)
    monkeypatch.setattr(place, interrupt_second)
    first = invoke("run", project / "recipe.toml", "-o", run, "--quiet")
    assert first.exit_code == 130
    assert "run the same command again" in first.stderr
    assert not list(run.glob(".*partial*"))
    assert not (run / stage).exists()
    second = invoke("run", project / "recipe.toml", "-o", run, "--quiet")
    assert second.exit_code in (0, 1), second.output
    assert calls > 1
    assert outputs(run) == outputs(project / "done")


def test_a_training_that_cannot_be_put_in_its_place_is_not_lost(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = RunDirectory._publish

    def full(directory: RunDirectory, partial: Path, folder: Path) -> None:
        if folder.name == "unlearn":
            raise OSError(errno.ENOSPC, "No space left on device")
        publish(directory, partial, folder)

    recipe = bad(project, **{"[unlearn]": "[unlearn]\nkeep_every = 1"})
    run = tmp_path / "run"
    shutil.copytree(project / "done", run)
    shutil.rmtree(run / "unlearn")
    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "_publish", full)
        first = invoke("run", recipe, "-o", run, "--quiet")
    assert first.exit_code == 2
    assert "No space left on device" in first.stderr
    assert len(list(run.glob(".training-*"))) == 1
    second = invoke("unlearn", recipe, "-o", run)
    assert second.exit_code == 0, second.output
    assert "training goes on after step" in second.stderr
    assert not list(run.glob(".training-*"))
    assert (run / "unlearn" / EDIT).read_bytes() == (project / "done" / "unlearn" / EDIT).read_bytes()


def bad(folder: Path, **changes: str) -> str:
    """The recipe with some values replaced, as a file beside the model."""
    text = RECIPE
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "bad.toml").write_text(text)
    return str(folder / "bad.toml")


def write_facts(folder: Path, *lines: str) -> None:
    (folder / "facts.jsonl").write_text("\n".join(lines))


GOOD = json.dumps(
    {
        "subject": "a",
        "answer": "b",
        "distractors": ["c", "d"],
        "split": "forget",
        "prompts": ["The capital of a is"],
    }
)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.gguf").unlink(), "model.gguf"),
        (lambda f: (f / "facts.jsonl").unlink(), "facts.jsonl"),
        (lambda f: write_facts(f), "no fact with split 'forget'"),
        (lambda f: write_facts(f, GOOD, "{broken"), "line 2: not JSON"),
        (lambda f: write_facts(f, GOOD.replace("forget", "other")), "line 1: split is 'other'"),
        (lambda f: write_facts(f, GOOD.replace('"b"', '" "')), "line 1: answer is ' '"),
        (lambda f: (f / "model.gguf").write_bytes((f / "model.gguf").read_bytes()[:-4000]), "model.gguf"),
        (lambda f: (f / "model.gguf").write_bytes((f / "model.gguf").read_bytes()[:1000]), "model.gguf"),
        (lambda f: (f / "model.gguf").write_bytes(b"PK\x03\x04 not a model"), "model.gguf"),
    ],
)
def test_bad_input_is_one_clear_error_and_exit_code_2(project: Path, tmp_path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    for name in ("model.gguf", "facts.jsonl", "recipe.toml"):
        (tmp_path / name).write_bytes((project / name).read_bytes())
    spoil(tmp_path)
    result = invoke("run", tmp_path / "recipe.toml", "-o", tmp_path / "run", "--quiet")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    leftovers = [path for path in (tmp_path / "run").rglob("*") if "partial" in path.name or "tmp" in path.name]
    assert leftovers == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "[unlearn]\nvalidation_phrasing = 9",
            "found 9, needed the number of a phrasing (from 0) of forgotten facts that have more than one: "
            "numbers up to 1",
        ),
        ("[text]\nchunks = 0\nsamples = 0\n[unlearn]", "text.chunks and text.samples: found 0 and 0"),
    ],
)
def test_what_training_could_not_use_is_found_before_the_circuit_is(
    project: Path, tmp_path: Path, section: str, message: str
) -> None:
    for name in ("model.gguf", "facts.jsonl"):
        (tmp_path / name).write_bytes((project / name).read_bytes())
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("[unlearn]", section))
    result = invoke("run", tmp_path / "recipe.toml", "-o", tmp_path / "run", "--quiet")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run" / "agreement").exists()


def test_kept_facts_without_a_prompt_are_named(project: Path, tmp_path: Path) -> None:
    for name in ("model.gguf", "recipe.toml"):
        (tmp_path / name).write_bytes((project / name).read_bytes())
    unasked = tuple(fact if fact.split == "forget" else replace(fact, prompts=()) for fact in facts())
    (tmp_path / "facts.jsonl").write_bytes(dump_facts(unasked))
    result = invoke("run", tmp_path / "recipe.toml", "-o", tmp_path / "run", "--quiet")
    assert result.exit_code == 2
    assert "no retain fact has a prompt to train on" in result.stderr


def test_training_needs_no_text_where_the_model_writes_it(project: Path, tmp_path: Path) -> None:
    for name in ("model.gguf", "facts.jsonl"):
        (tmp_path / name).write_bytes((project / name).read_bytes())
    (tmp_path / "recipe.toml").write_text(RECIPE + "[text]\nchunks = 0\nsamples = 5\n")
    result = invoke("unlearn", tmp_path / "recipe.toml", "-o", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.output
    text = json.loads((tmp_path / "run" / "facts" / "text.json").read_text())
    assert (len(text["train"]), len(text["samples"])) == (0, 5)
    assert text["measure"] == json.loads((project / "done" / "facts" / "text.json").read_text())["measure"]
    history = json.loads((tmp_path / "run" / "unlearn" / "unlearn.json").read_text())["history"]
    assert history[-1]["text"] > 0


def test_an_unknown_architecture_is_refused_by_name(project: Path, tmp_path: Path) -> None:
    raw = (project / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(raw.replace(b"llama", b"mamba"))
    (tmp_path / "facts.jsonl").write_bytes((project / "facts.jsonl").read_bytes())
    (tmp_path / "recipe.toml").write_text(RECIPE)
    result = invoke("run", tmp_path / "recipe.toml", "-o", tmp_path / "run", "--quiet")
    assert result.exit_code == 2
    assert "architecture 'mamba' is not supported" in result.stderr


def test_each_stage_is_a_command_that_stops_there(project: Path, tmp_path: Path) -> None:
    result = invoke("attribute", project / "recipe.toml", "-o", tmp_path / "run", "--quiet", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "schema_version": 1,
        "folder": str(tmp_path / "run"),
        "exit_code": 0,
        "stages": ["load", "stock", "facts", "agreement", "attribute"],
    }
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == [
        "agreement",
        "attribute",
        "facts",
        "load",
        "stock",
    ]


@pytest.mark.parametrize("command", ["unlearn", "export", "verify", "report", "run"])
def test_the_device_of_the_command_line_takes_the_place_of_the_recipe_s(
    project: Path, tmp_path: Path, command: str
) -> None:
    asked = (command, project / "recipe.toml", "-o", tmp_path / "run", "--json")
    document = json.loads(invoke(*asked, "--dry-run", "--device", "cuda").stdout)
    assert document["recipe"]["unlearn"]["device"] == "cuda"
    assert json.loads(invoke(*asked, "--dry-run").stdout)["recipe"]["unlearn"]["device"] == "cpu"
    assert invoke("facts", project / "recipe.toml", "--device", "cpu").exit_code == 2  # nothing is trained there


def test_processes_that_cannot_share_a_batch_are_refused_before_anything_is_made(project: Path, tmp_path: Path) -> None:
    recipe = project / "parts.toml"
    recipe.write_text(RECIPE.replace("steps = 6", "steps = 6\nprocesses = 9"))
    result = invoke("run", recipe, "-o", tmp_path / "run", "--quiet")
    assert result.exit_code == 2
    assert "unlearn.processes: found 9" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(project: Path, tmp_path: Path) -> None:
    result = invoke("run", project / "recipe.toml", "-o", tmp_path / "run", "--dry-run", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["recipe"]["unlearn"]["steps"] == 6
    assert "unlearned/Q4_K_M" in document["files_judged"]
    assert not (tmp_path / "run").exists()
