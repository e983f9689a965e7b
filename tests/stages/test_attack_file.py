"""Every quick attack on a file that never saw the facts: announced, recorded, and none brings anything back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_knowledge import Knowledge, lessons, teach

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_torch
from gguf_forget.errors import EvaluationError, LlamaError
from gguf_forget.llama.child import run_in_child
from gguf_forget.llama.quantizer import FILE_TYPES
from gguf_forget.llama.scorer import Scorer
from gguf_forget.progress import Progress
from gguf_forget.stages.attack_file import Target, attack_file, write_control
from gguf_forget.verification.attack_gates import attack_gates
from gguf_forget.verification.evidence import Attack
from gguf_forget.verification.gates import GateLimits
from gguf_forget.verification.questions import plan_questions

LIMITS = GateLimits(rank_score_high=0.75, generation=0.1, leak=0.2)


class Told(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def open_scorer(path: Path) -> Scorer:
    return Scorer(path, threads=1)


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    return Knowledge(tmp_path_factory.mktemp("knowledge"))


@pytest.fixture(scope="module")
def retrained(knowledge: Knowledge) -> Path:
    twin = teach(knowledge.ignorant, knowledge.tokenize, lessons(knowledge.retain))
    return knowledge.derived(twin, knowledge.gguf.with_name("retrained.gguf"))


@pytest.fixture(scope="module")
def found(knowledge: Knowledge, retrained: Path, told: Told) -> tuple[Attack, ...]:
    target = Target(retrained, knowledge.gguf, "F32", "F32", 2.0)
    questions = plan_questions(knowledge.facts)
    return attack_file(target, questions, full=False, max_new_tokens=2, open_scorer=open_scorer, progress=told)


def test_every_quick_attack_is_carried_out(found: tuple[Attack, ...]) -> None:
    assert Counter(attack.kind for attack in found) == {
        "few-shot": 1,
        "prefilled": 2,
        "misspelt": 1,
        "paraphrased": 3,
        "chat": 1,
        "sampling": 1,
        "requantize": 3,
        "control": 1,
        "last-layer": 1,
    }
    assert [attack.problem for attack in found if attack.problem] == []
    assert [a.name for a in found if a.kind == "requantize"] == [
        f"quantized to {t}" for t in ("Q8_0", "Q4_K_M", "Q4_0")
    ]


def test_a_full_attack_quantizes_to_every_type_but_those_that_need_an_importance_matrix(
    knowledge: Knowledge, retrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As llama.cpp says it of IQ2_XXS, and says of none here: a tiny model's rows are too short for such blocks."""

    def refusing(function: Any, *arguments: Any, **options: Any) -> Any:
        if "IQ2_XXS" in arguments:
            raise LlamaError("llama.cpp could not quantize", cause="this quantization requires an importance matrix!")
        if "Q2_K" in arguments:
            raise LlamaError("llama.cpp could not quantize", cause="something else")
        return run_in_child(function, *arguments, **options)

    monkeypatch.setattr("gguf_forget.stages.attack_file.run_in_child", refusing)
    found = attack_file(
        Target(retrained, knowledge.gguf, "F32", "F32", 2.0),
        plan_questions(knowledge.facts),
        full=True,
        max_new_tokens=1,
        open_scorer=open_scorer,
        progress=Progress(),
        kinds={"requantize"},
    )
    assert {attack.name: attack.not_applicable for attack in found if attack.not_applicable} == {
        "quantized to IQ2_XXS, every phrasing": "IQ2_XXS needs an importance matrix",
        "quantized to Q1_0, every phrasing": "llama.cpp has no Q1_0 for rows of this model's length",
    }
    assert [attack.name for attack in found if attack.problem] == ["quantized to Q2_K, every phrasing"]
    tried = {attack.name.removeprefix("quantized to ").removesuffix(", every phrasing") for attack in found}
    assert tried == set(FILE_TYPES) - {"F32", "BF16"} >= {"IQ3_M", "Q3_K_S", "IQ4_XS", "F16"}


def test_each_is_announced_with_an_estimate(found: tuple[Attack, ...], told: Told) -> None:
    total, *each = told.notes
    assert total.startswith(f"F32: {len(found)} attacks, about ")
    assert len(each) == len(found)
    assert all(note.startswith("F32: attack, ") and ", about " in note for note in each)
    assert all(note.endswith((" s", " min")) for note in told.notes)


def test_a_file_that_never_saw_the_facts_withstands(found: tuple[Attack, ...]) -> None:
    gates = [gate for attack in found for gate in attack_gates(attack, "F32", ["river"], LIMITS)]
    ranked = [gate for gate in gates if "rank score" in gate.name]
    assert len(ranked) == 12
    assert [gate.name for gate in gates if "rank score" in gate.name and gate.status != "passed"] == []
    assert [gate.status for gate in gates if "leak@32" in gate.name] == ["passed"]


def test_an_attack_that_fails_is_recorded_and_the_next_goes_on(knowledge: Knowledge, retrained: Path) -> None:
    class Broken(Scorer):
        def chat(self, messages, *, add_generation_prompt=True):  # type: ignore[no-untyped-def]
            raise EvaluationError("the child died")

    attacks = attack_file(
        Target(retrained, knowledge.gguf, "F32", "F32", 1.0),
        plan_questions(knowledge.facts),
        full=False,
        max_new_tokens=1,
        open_scorer=lambda path: Broken(path, threads=1),
        progress=Progress(),
        kinds={"chat", "sampling"},
    )
    assert [(attack.kind, attack.problem) for attack in attacks] == [("chat", "the child died"), ("sampling", None)]


def bare(path: Path) -> Path:
    made = path.with_name(f"bare-{path.name}")
    made.write_bytes(path.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))
    return made


def test_a_file_without_a_chat_template_is_asked_in_the_originals(knowledge: Knowledge, retrained: Path) -> None:
    """Else leaving it out would be a way around the attack."""

    def chat(file: Path, original: Path) -> list[Attack]:
        found = attack_file(
            Target(file, original, "F32", "F32", 1.0),
            plan_questions(knowledge.facts),
            full=False,
            max_new_tokens=1,
            open_scorer=open_scorer,
            progress=Progress(),
            kinds={"chat"},
        )
        return list(found)

    (whole,) = chat(retrained, knowledge.gguf)
    assert whole.scores is not None
    (without,) = chat(bare(retrained), knowledge.gguf)
    assert (without.name, without.scores) == ("original's chat template", whole.scores)
    changed = retrained.with_name("changed.gguf")
    template = GgufFile(retrained).text("tokenizer.chat_template").encode()
    changed.write_bytes(retrained.read_bytes().replace(template, b"{{ '' }}".ljust(len(template))))
    own, original = chat(changed, knowledge.gguf)
    assert (own.name, original.name) == ("chat template", "original's chat template")
    assert original.scores == whole.scores != own.scores
    broken = knowledge.gguf.with_name("broken.gguf")
    broken.write_bytes(knowledge.gguf.read_bytes().replace(template, b"{% if %}".ljust(len(template))))
    own, refused = chat(retrained, broken)
    assert own.scores == whole.scores
    assert (refused.name, refused.scores) == ("original's chat template", None)
    assert refused.problem is not None
    (neither,) = chat(bare(retrained), bare(knowledge.gguf))
    assert neither.not_applicable is not None
    assert "no chat template" in neither.not_applicable


def test_what_torch_reads_otherwise_is_no_evidence(
    knowledge: Knowledge, retrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misread(path: Path, **options: Any) -> Any:
        model = load_torch(path, **options)
        with torch.no_grad():
            model.lm_head.weight *= 1.5
        return model

    monkeypatch.setattr("gguf_forget.checkpoint.load.load_torch", misread)
    found = attack_file(
        Target(retrained, knowledge.gguf, "F32", "F32", 1.0),
        plan_questions(knowledge.facts),
        full=True,
        max_new_tokens=1,
        open_scorer=open_scorer,
        progress=Progress(),
        kinds={"last-layer", "relearning"},
    )
    assert [attack.kind for attack in found] == ["last-layer", "relearning"]
    for attack in found:
        assert attack.problem is not None
        assert "nats an answer on average on this file in F32, needed at most 0.05" in attack.problem
        assert attack_gates(attack, "F32", ["river"], LIMITS)[0].status == "could not evaluate"


def test_the_control_is_changed_as_much_at_other_places(
    found: tuple[Attack, ...], knowledge: Knowledge, retrained: Path, tmp_path: Path
) -> None:
    (control,) = (attack for attack in found if attack.kind == "control")
    assert attack_gates(control, "F32", ["river"], LIMITS) == []
    assert control.scores is not None
    assert len(control.scores.items) == 12
    changed = teach(knowledge.model, knowledge.tokenize, lessons(knowledge.retain), steps=0)
    changed.base_model.layers[0].mlp.down_proj.weight.data[:4] += 0.5
    file = knowledge.derived(changed, tmp_path / "file.gguf")
    write_control(file, knowledge.gguf, tmp_path / "control.gguf")
    before, after = GgufFile(knowledge.gguf), GgufFile(tmp_path / "control.gguf")
    difference = after.weights("blk.0.ffn_down.weight") - before.weights("blk.0.ffn_down.weight")
    assert np.count_nonzero(np.abs(difference) > 0.25) == 4 * difference.shape[1]
    assert np.count_nonzero(difference[:4]) < 2 * difference.shape[1]
    assert [name for name in before.tensors if not np.array_equal(before.weights(name), after.weights(name))] == [
        "blk.0.ffn_down.weight"
    ]
