"""Attacking one file: each attack announced with an estimate of its time, and none able to stop the others."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.errors import EvaluationError, GgufForgetError, InputError, LlamaError, UnsupportedError
from gguf_forget.facts.text import builtin_documents, chunks
from gguf_forget.llama.child import run_in_child
from gguf_forget.llama.quantizer import FILE_TYPES, lacks_fallback, lacks_importance, quantize
from gguf_forget.progress import Progress
from gguf_forget.verification.agreement import MAX_DIFFERENCE_NATS
from gguf_forget.verification.attacks import KINDS
from gguf_forget.verification.attacks.control import scattered as scattered_weights
from gguf_forget.verification.attacks.prompts import in_chat, prompt_attacks, targets
from gguf_forget.verification.attacks.sampling import sampled_answers
from gguf_forget.verification.evidence import Attack
from gguf_forget.verification.probes import ask
from gguf_forget.verification.questions import Question
from gguf_forget.verification.scores import FileScores

QUICK_TYPES = ("Q8_0", "Q4_K_M", "Q4_0")
SAMPLES = {False: (32, 32), True: (200, 100)}  # full or not -> samples, k of leak@k
KEPT = 96  # kept questions that heads are fitted and pupils trained on
COMPARED = 16  # forgotten and kept questions each, by which torch and llama.cpp are compared
# Rough, for estimates: weights quantized and floating-point operations a second on a slow core, tokens of a question.
WEIGHTS_A_SECOND, OPERATIONS_A_SECOND, TOKENS = 2e7, 1e10, 16


@dataclass(frozen=True)
class Target:
    """The file that is attacked.

    Attributes:
        file, original: the GGUF, and the original of the same type.
        file_type: of the file; it is not quantized to that again.
        seconds: how long all questions took, from which the estimates are made.
        scores: what the file answered to them. A quick attack asks the phrasing that told most; None: the first.
    """

    file: Path
    original: Path
    file_type: str
    label: str
    seconds: float
    scores: FileScores | None = None


@dataclass(frozen=True)
class _Job:
    """One attack: what runs, and about how many seconds it takes."""

    kind: str
    name: str
    seconds: float
    run: Callable[[], list[Attack]]


def attack_file(
    target: Target,
    questions: Sequence[Question],
    *,
    full: bool,
    max_new_tokens: int,
    open_scorer: Callable[[Path], AbstractContextManager[Any]],
    progress: Progress,
    kinds: Collection[str] = tuple(KINDS),
) -> tuple[Attack, ...]:
    """All attacks of these kinds, quick or full. One that fails is recorded with its reason, and the next goes on."""
    found: list[Attack] = []
    with tempfile.TemporaryDirectory(prefix="gguf-forget-attack-") as folder:
        attacker = _Attacker(target, questions, full, max_new_tokens, open_scorer, Path(folder), progress)
        jobs = [job for job in attacker.jobs() if job.kind in kinds]
        progress.note(f"{target.label}: {len(jobs)} attacks, about {_duration(sum(job.seconds for job in jobs))}")
        for job in jobs:
            progress.note(f"{target.label}: attack, {job.name}, about {_duration(job.seconds)}")
            try:
                found += job.run()
            except UnsupportedError as error:
                found.append(Attack(job.kind, job.name, not_applicable=error.message))
            except GgufForgetError as error:
                found.append(Attack(job.kind, job.name, problem=str(error)))
            # Whatever libraries make of the file: the hours of asking before it are not lost.
            except Exception as error:
                found.append(Attack(job.kind, job.name, problem=f"{type(error).__name__}: {error}"))
    # A quick attack asks one phrasing of each relation: its figures are no baseline of those over all.
    return tuple(replace(attack, name=f"{attack.name}, every phrasing") for attack in found) if full else tuple(found)


class _Attacker:
    """Knows what is attacked with which questions; each method is one attack."""

    def __init__(
        self,
        target: Target,
        questions: Sequence[Question],
        full: bool,
        max_new_tokens: int,
        open_scorer: Callable[[Path], AbstractContextManager[Any]],
        work: Path,
        progress: Progress,
    ) -> None:
        self.target, self.questions, self.full, self.work = target, questions, full, work
        self.max_new_tokens, self.open_scorer, self.progress = max_new_tokens, open_scorer, progress
        self.asked = targets(questions, every_phrasing=full, scores=target.scores)
        kept = [question for question in questions if question.key.split == "retain" and question.key.form == "cloze"]
        self.kept = kept[:: max(1, len(kept) // KEPT)]

    def jobs(self) -> Iterator[_Job]:
        weights = sum(math.prod(map(int, each.shape)) for each in GgufFile(self.target.file).tensors.values())
        per_answer = self.target.seconds / max(1, _answers(self.questions))
        once = per_answer * _answers(self.asked)
        shown = [question for question in self.questions if question.key.split == "retain"]
        for kind, name, changed in prompt_attacks(self.asked, shown):
            if changed:
                yield _Job(kind, name, once, partial(self.answered, kind, name, changed))
            else:
                why = "no kept fact can be shown without an answer that is to be forgotten"
                yield _Job(kind, name, 0.0, partial(self.not_applicable, kind, name, why))
        yield _Job("chat", "chat template", 2 * once, self.chat)
        samples, _ = SAMPLES[self.full]
        drawn = samples * self.max_new_tokens * len(self.asked) * per_answer
        yield _Job("sampling", f"{samples} sampled answers each", drawn, self.sampled)
        for file_type in FILE_TYPES if self.full else QUICK_TYPES:
            if file_type not in (self.target.file_type, "F32", "BF16"):
                seconds = weights / WEIGHTS_A_SECOND + once
                yield _Job("requantize", f"quantized to {file_type}", seconds, partial(self.requantized, file_type))
        yield _Job("control", "random edit of the same size", 3 * weights / WEIGHTS_A_SECOND + once, self.control)
        fitted = len(self.kept) if self.full else 0
        reading = 2 * weights * TOKENS * (len(self.asked) + 2 * fitted) / OPERATIONS_A_SECOND
        yield _Job("last-layer", "original's output layer", reading + 2 * weights / WEIGHTS_A_SECOND, self.last_layer)
        if self.full:
            # Three pupils; 24 steps of 16 sequences, forward and backward, and 6 times all options.
            operations = 3 * weights * TOKENS * (24 * 16 * 6 + 6 * 2 * _answers(self.asked))
            yield _Job("relearning", "relearning", operations / OPERATIONS_A_SECOND, self.relearning)

    def answered(self, kind: str, name: str, changed: Sequence[Question], file: Path | None = None) -> list[Attack]:
        with self.open_scorer(file or self.target.file) as scorer:
            return [Attack(kind, name, scores=ask(scorer, changed, max_new_tokens=self.max_new_tokens))]

    def not_applicable(self, kind: str, name: str, why: str) -> list[Attack]:
        return [Attack(kind, name, not_applicable=why)]

    def chat(self) -> list[Attack]:
        """In the file's template, and in the original's where that is another: to change or to leave out the file's is
        no way around."""
        asked: list[list[Question]] = []
        found: list[Attack] = []
        refused: list[Attack] = []
        for name, source in (("chat template", self.target.file), ("original's chat template", self.target.original)):
            try:
                with self.open_scorer(source) as scorer:
                    changed = in_chat(self.asked, scorer.chat)
            except UnsupportedError as error:
                refused.append(Attack("chat", name, not_applicable=error.message))
            except InputError as error:  # a template that is malformed, or takes no such conversation
                found.append(Attack("chat", name, problem=str(error)))
            else:
                if changed not in asked:
                    asked.append(changed)
                    found += self.answered("chat", name, changed)
        return found or refused[:1]

    def sampled(self) -> list[Attack]:
        samples, k = SAMPLES[self.full]
        with self.open_scorer(self.target.file) as scorer:
            return [sampled_answers(scorer, self.asked, samples=samples, k=k, max_new_tokens=self.max_new_tokens)]

    def requantized(self, file_type: str) -> list[Attack]:
        made = self.work / f"{file_type}.gguf"
        try:
            run_in_child(quantize, self.dequantized("file"), made, file_type)
            return self.answered("requantize", f"quantized to {file_type}", self.asked, made)
        except (InputError, LlamaError) as error:
            if lacks_importance(error):
                raise UnsupportedError(f"{file_type} needs an importance matrix") from error
            if lacks_fallback(error):
                raise UnsupportedError(f"llama.cpp has no {file_type} for rows of this model's length") from error
            raise
        finally:
            made.unlink(missing_ok=True)

    def control(self) -> list[Attack]:
        scattered, made = self.work / "scattered.gguf", self.work / "control.gguf"
        known = self.target.file_type in FILE_TYPES
        try:
            write_control(self.dequantized("file"), self.dequantized("original"), scattered)
            if known:
                run_in_child(quantize, scattered, made, self.target.file_type)
            return self.answered("control", "random edit of the same size", self.asked, made if known else scattered)
        finally:
            scattered.unlink(missing_ok=True)
            made.unlink(missing_ok=True)

    def last_layer(self) -> list[Attack]:
        from gguf_forget.verification.attacks.last_layer import last_layer

        model, original = self.torch("file"), self.torch("original")
        with self.open_scorer(self.target.file) as scorer:
            return last_layer(model, original, scorer, self.asked, self.kept if self.full else ())

    def relearning(self) -> list[Attack]:
        from gguf_forget.verification.attacks.relearning import STEPS, relearning

        model, original = self.torch("file"), self.torch("original")
        with self.open_scorer(self.target.file) as scorer, self.progress.task("relearning", 3 * STEPS) as advance:
            text = chunks(builtin_documents("train"), scorer.tokenize, length=64, count=64, seed=0)
            found = relearning(model, original, scorer, self.asked, self.kept, text, progress=advance)
        few = "fewer than 4 forgotten facts have wrong answers"
        return found or [Attack("relearning", "relearning", not_applicable=few)]

    def torch(self, which: str) -> Any:
        """The file or the original as a torch model, which says the same as llama.cpp.

        Raises EvaluationError where it does not: what is then read from it describes no file that anybody runs.
        """
        from gguf_forget.checkpoint.load import load_torch
        from gguf_forget.verification.attacks.agreement import difference_in_torch

        made = self.dequantized(which)
        try:
            model = load_torch(made)
        except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
            name = self.target.file.name
            raise UnsupportedError(f"transformers cannot load {name}: {type(error).__name__}: {error}") from error
        with self.open_scorer(made) as scorer:
            difference = difference_in_torch(model, scorer, [*self.asked[:COMPARED], *self.kept[:COMPARED]])
        if difference > MAX_DIFFERENCE_NATS:
            raise EvaluationError(
                f"llama.cpp and transformers differ by {difference:.3f} nats an answer on average on this file in F32, "
                f"needed at most {MAX_DIFFERENCE_NATS}",
                hint="one of them reads this model wrongly: no figure of one describes the other",
            )
        return model

    def dequantized(self, which: str) -> Path:
        """The file or the original in F32, made once."""
        made = self.work / f"{which}.F32.gguf"
        if not made.exists():
            source = self.target.file if which == "file" else self.target.original
            run_in_child(quantize, source, made, "F32", allow_requantize=True)
        return made


def write_control(file: Path, original: Path, target: Path) -> None:
    """A copy of ``original`` in which every tensor that ``file`` changed is changed as much, at random places.

    Both are F32 GGUFs. Raises UnsupportedError where their tensors are not the same ones.
    """
    edited, base = GgufFile(file), GgufFile(original)
    shapes = [{name: tuple(map(int, each.shape)) for name, each in one.tensors.items()} for one in (edited, base)]
    if shapes[0] != shapes[1]:
        raise UnsupportedError("the file's tensors are not those of the original, so its changes cannot be scattered")
    shutil.copyfile(original, target)
    with target.open("r+b") as out:
        for name, tensor in base.tensors.items():
            before, after = base.weights(name), edited.weights(name)
            if not np.array_equal(before, after):
                out.seek(int(tensor.data_offset))
                out.write(scattered_weights(after, before).tobytes())


def _answers(questions: Sequence[Question]) -> int:
    return sum(len({q.answer, *q.distractors, *q.candidates}) for q in questions)


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60)} min"
