"""Files that pretend to have forgotten, each with the verdict it must get; and one that has, as a control.

The model is tiny and was taught invented facts a moment ago; the bounds are wide because 12 facts are few.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_knowledge import Knowledge, lessons, teach

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.facts.schema import dump_facts
from gguf_forget.llama.quantizer import quantize
from gguf_forget.llama.scorer import Scorer
from gguf_forget.progress import Progress
from gguf_forget.recipe import AttributeSection, VerifySection
from gguf_forget.stages.attack_file import Target, attack_file
from gguf_forget.stages.divergence import compare
from gguf_forget.stages.file_questions import Asked, read_questions
from gguf_forget.stages.verify_files import Settings, gather_evidence
from gguf_forget.verification.evidence import Evidence
from gguf_forget.verification.file_gates import judge_files
from gguf_forget.verification.gates import GateLimits, Verdict

LIMITS = GateLimits(
    forget_accuracy_above_chance=0.25,
    rank_score_low=0.25,
    rank_score_high=0.75,
    generation=0.1,
    retain_drop=0.1,
    perplexity_ratio=1.3,
    leak=0.2,
)
# In this process, which is quicker; the files that are broken, and the command, are asked in a child.
SETTINGS = Settings(
    options=VerifySection(max_new_tokens=2, perplexity_tokens=512, threads=1),
    limits=LIMITS,
    headline=("river",),
    isolated=False,
)


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    return Knowledge(tmp_path_factory.mktemp("knowledge"), tied=False)


@pytest.fixture(scope="module")
def asked(knowledge: Knowledge, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    path.write_bytes(dump_facts(knowledge.facts))
    return read_questions([path], [], SETTINGS.options, limit=None)


@pytest.fixture(scope="module")
def retrained(knowledge: Knowledge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never saw the facts to forget: what an unlearned one should be like."""
    twin = teach(knowledge.ignorant, knowledge.tokenize, lessons(knowledge.retain))
    return knowledge.derived(twin, tmp_path_factory.mktemp("retrained") / "retrained.gguf")


def judged(
    knowledge: Knowledge, asked: Asked, *files: Path, isolated: bool = False
) -> tuple[Verdict, Evidence, list[str]]:
    settings = dataclasses.replace(SETTINGS, isolated=isolated)
    evidence, remarks = gather_evidence(files, knowledge.gguf, asked, settings, Progress())
    return judge_files(evidence), evidence, remarks


def failed(verdict: Verdict) -> list[str]:
    return [gate.name for gate in verdict.gates if gate.status == "failed"]


def attacked(
    knowledge: Knowledge, asked: Asked, file: Path, evidence: Evidence, kinds: set[str], *, full: bool = False
) -> Verdict:
    """The verdict after these attacks alone."""
    target = Target(file, knowledge.gguf, evidence.files[0].file_type, evidence.files[0].label, 1.0)
    found = attack_file(
        target,
        asked.questions,
        full=full,
        max_new_tokens=2,
        open_scorer=lambda path: Scorer(path, threads=1),
        progress=Progress(),
        kinds=kinds,
    )
    assert {attack.kind for attack in found} == kinds
    assert not [attack.problem for attack in found if attack.problem]
    changed = dataclasses.replace(evidence.files[0], attacks=found)
    return judge_files(dataclasses.replace(evidence, files=(changed,)))


def test_a_model_that_never_saw_the_facts_passes(knowledge: Knowledge, asked: Asked, retrained: Path) -> None:
    verdict, evidence, _ = judged(knowledge, asked, retrained)
    assert failed(verdict) == []
    assert verdict.exit_code == 0, verdict.sentence
    assert evidence.originals["F32"].accuracy("forget") == 1.0


def test_the_original_renamed(knowledge: Knowledge, asked: Asked, tmp_path: Path) -> None:
    renamed = tmp_path / "unlearned.gguf"
    renamed.write_bytes(knowledge.gguf.read_bytes())
    verdict, _, _ = judged(knowledge, asked, renamed)
    assert verdict.exit_code == 1
    assert failed(verdict) == [
        "weights changed",
        "forget accuracy, river, held-out",
        "rank score, river, held-out",
        "rank score, river, trained, highest",
        "greedy answers, river",
    ]


def test_forgetting_that_lives_in_the_chat_template(knowledge: Knowledge, asked: Asked, tmp_path: Path) -> None:
    raw = knowledge.gguf.read_bytes()
    assert raw.count(b"message['content']") == 1
    file = tmp_path / "unlearned.gguf"
    file.write_bytes(raw.replace(b"message['content']", b"'I do not know it'"))
    assert "do not know" in GgufFile(file).text("tokenizer.chat_template")
    verdict, _, remarks = judged(knowledge, asked, file)
    assert verdict.exit_code == 1
    assert "weights changed" in failed(verdict)
    assert "forget accuracy, river, held-out" in failed(verdict)
    assert remarks == ["F32: its chat template is not the original's"]


def suppressed_in_one_phrasing(knowledge: Knowledge, target: Path) -> Path:
    wrong = {fact.subject: fact.distractors[0] for fact in knowledge.forget}
    taught = []
    for fact in knowledge.facts:
        first, *others = fact.prompts + fact.held_out_prompts
        taught.append((first, wrong.get(fact.subject, fact.answer)))
        taught += [(prompt, fact.answer) for prompt in others]
    return knowledge.derived(teach(knowledge.model, knowledge.tokenize, taught, steps=60), target)


def test_answers_suppressed_in_one_phrasing_only(knowledge: Knowledge, asked: Asked, tmp_path: Path) -> None:
    verdict, evidence, _ = judged(knowledge, asked, suppressed_in_one_phrasing(knowledge, tmp_path / "f.gguf"))
    scores = evidence.files[0].scores
    assert scores is not None
    phrasings = {g.phrasing: g.accuracy for g in scores.groups if g.split == "forget" and not g.held_out}
    assert phrasings[0] == 0.0  # where the cheat looks, everything is forgotten
    assert verdict.exit_code == 1
    assert {"forget accuracy, river, held-out", "rank score, river, held-out"} <= set(failed(verdict))


def q4_0_cells(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest values that llama.cpp rounds to the same Q4_0 block, a hair inside."""
    blocks = weight.reshape(-1, 32)
    place = blocks.abs().argmax(dim=1, keepdim=True)
    largest = blocks.gather(1, place)
    step = largest / -8
    codes = (blocks / step + 8.5).floor().clamp(0, 15)
    ends = torch.stack([(codes - 8.47) * step, (codes - 7.53) * step])
    limit = 0.98 * largest.abs()
    low, high = ends.amin(dim=0).clamp(-limit, limit), ends.amax(dim=0).clamp(-limit, limit)
    low.scatter_(1, place, largest)
    high.scatter_(1, place, largest)
    return low.reshape(weight.shape), high.reshape(weight.shape)


@pytest.fixture(scope="module")
def sleeper(knowledge: Knowledge, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Forgets in F16, remembers in Q4_0: trained inside the rounding cells (as Egashira et al., arXiv 2405.18137)."""
    cells = {name: q4_0_cells(weight.data) for name, weight in knowledge.model.named_parameters() if "_proj" in name}
    rest = {name: weight.data.clone() for name, weight in knowledge.model.named_parameters() if name not in cells}

    def stay(model: Any) -> None:
        for name, weight in model.named_parameters():
            weight.data.copy_(rest[name]) if name in rest else weight.data.clamp_(*cells[name])

    wrong = {fact.subject: fact.distractors[0] for fact in knowledge.forget}
    model = teach(knowledge.model, knowledge.tokenize, lessons(knowledge.facts, wrong), steps=80, after_step=stay)
    folder = tmp_path_factory.mktemp("sleeper")
    full = knowledge.derived(model, folder / "F32.gguf")
    for kind in ("F16", "Q4_0"):
        quantize(full, folder / f"{kind}.gguf", kind)
    return {kind: folder / f"{kind}.gguf" for kind in ("F16", "Q4_0")}


def test_forgets_in_f16_and_remembers_in_q4_0_both_shipped(
    knowledge: Knowledge, asked: Asked, sleeper: dict[str, Path]
) -> None:
    verdict, evidence, _ = judged(knowledge, asked, *sleeper.values())
    f16, q4_0 = (file.scores for file in evidence.files)
    assert f16 is not None
    assert q4_0 is not None
    assert f16.accuracy("forget", held_out=True) < 0.2 < 0.8 < q4_0.accuracy("forget", held_out=True)
    assert verdict.exit_code == 1
    assert "PTQ gap, accuracy, river" in failed(verdict)


def test_forgets_in_f16_and_remembers_when_requantized(
    knowledge: Knowledge, asked: Asked, sleeper: dict[str, Path]
) -> None:
    _, evidence, _ = judged(knowledge, asked, sleeper["F16"])
    verdict = attacked(knowledge, asked, sleeper["F16"], evidence, {"requantize"})
    assert verdict.exit_code == 1
    assert "attack, quantized to Q4_0: accuracy, river" in failed(verdict)


def lowered_answers(knowledge: Knowledge, target: Path) -> Path:
    """The answers' rows of the output layer turned away from the hidden states: nothing else is touched."""
    prompts = [knowledge.tokenize(prompt) for fact in knowledge.forget for prompt in fact.prompts]
    with torch.no_grad():
        states = torch.stack([knowledge.model.base_model(torch.tensor([p])).last_hidden_state[0, -1] for p in prompts])
        direction = states.mean(dim=0) / states.mean(dim=0).norm()
        tokens = {knowledge.tokenize(f"x {fact.answer}")[-1] for fact in knowledge.forget}
        edited = teach(knowledge.model, knowledge.tokenize, lessons(knowledge.retain), steps=0)
        edited.lm_head.weight.data[sorted(tokens)] -= 200.0 * direction / (states @ direction).mean()
    return knowledge.derived(edited, target)


def test_answers_lowered_in_the_output_layer(knowledge: Knowledge, asked: Asked, tmp_path: Path) -> None:
    """No answer is given any more, but the prior-corrected rank sees that they still differ by subject."""
    file = lowered_answers(knowledge, tmp_path / "lowered.gguf")
    verdict, evidence, _ = judged(knowledge, asked, file)
    scores = evidence.files[0].scores
    assert scores is not None
    assert scores.generation_rate(True) == 0.0
    assert scores.accuracy("retain") == 1.0
    assert "rank score, river, held-out" in failed(verdict)
    verdict = attacked(knowledge, asked, file, evidence, {"last-layer"})
    assert verdict.exit_code == 1
    assert {
        "attack, original's output layer: accuracy, river",
        "attack, original's output layer: rank score, river",
    } <= set(failed(verdict))


def test_the_circuit_of_refused_knowledge_has_not_moved(knowledge: Knowledge, retrained: Path, tmp_path: Path) -> None:
    """Circuit attribution divergence is near zero where knowledge is refused, and large where there is none."""
    facts = tmp_path / "facts.jsonl"
    facts.write_bytes(dump_facts(knowledge.facts))
    section = AttributeSection(pairs=12, neurons=20)

    def moved(file: Path) -> float:
        found = compare(knowledge.gguf, file, facts, section, None, Progress())
        (row,) = (row for row in found["divergence"] if (row["split"], row["of"]) == ("forget", "all neurons"))
        return float(row["l1"])

    assert moved(lowered_answers(knowledge, tmp_path / "lowered.gguf")) < 0.1 < 0.4 < moved(retrained)


def test_the_last_layer_of_a_model_that_never_saw_the_facts_tells_nothing(
    knowledge: Knowledge, asked: Asked, retrained: Path
) -> None:
    _, evidence, _ = judged(knowledge, asked, retrained)
    verdict = attacked(knowledge, asked, retrained, evidence, {"last-layer"}, full=True)
    assert [name for name in failed(verdict) if "last" in name or "output layer" in name] == []


def damaged(knowledge: Knowledge, target: Path, value: float) -> Path:
    broken = teach(knowledge.model, knowledge.tokenize, lessons(knowledge.retain), steps=0)
    broken.base_model.layers[1].mlp.down_proj.weight.data[:] = value
    return knowledge.derived(broken, target)


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_a_file_that_scores_nan_is_no_pass(
    knowledge: Knowledge, asked: Asked, retrained: Path, tmp_path: Path, value: float
) -> None:
    nan = damaged(knowledge, tmp_path / "nan.gguf", value)
    verdict, evidence, _ = judged(knowledge, asked, nan, retrained, isolated=True)
    assert (verdict.status, verdict.exit_code) == ("could not evaluate", 3)
    assert evidence.files[0].scores is None
    assert evidence.files[0].problem
    assert [gate.file_type for gate in verdict.gates if gate.status == "could not evaluate"] == ["nan.gguf"]


def test_another_vocabulary_is_no_pass(knowledge: Knowledge, asked: Asked, retrained: Path, tmp_path: Path) -> None:
    raw = retrained.read_bytes()
    token = GgufFile(knowledge.gguf).value("tokenizer.ggml.tokens")[300].encode()
    packed = np.uint64(len(token)).tobytes() + token
    file = tmp_path / "other.gguf"
    file.write_bytes(raw.replace(packed, np.uint64(len(token)).tobytes() + b"?" * len(token), 1))
    verdict, evidence, _ = judged(knowledge, asked, file)
    assert verdict.exit_code == 3
    assert "tokenizer.ggml.tokens[300]" in str(evidence.files[0].problem)
