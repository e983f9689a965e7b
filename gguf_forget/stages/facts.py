"""Stage 2: the facts and plain text that every later stage uses, checked against the model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.errors import InputError
from gguf_forget.facts.joining import join_facts
from gguf_forget.facts.schema import SPLITS, Fact, dump_facts, facts_hash, read_facts
from gguf_forget.facts.set_facts import is_question_set, read_set_facts
from gguf_forget.facts.text import HALVES, builtin_documents, chunks, file_documents, sample_model
from gguf_forget.facts.tokens import encode_facts, split_tokens
from gguf_forget.progress import Progress
from gguf_forget.run_directory import read_json, write_json_atomically

FACTS = "facts.jsonl"
TEXT = "text.json"
TRAIN_LENGTH, TRAIN_CHUNKS = 96, 256
MEASURE_LENGTH = 256
SAMPLES = 48


@dataclass(frozen=True)
class PlainText:
    """Token chunks: ``train`` from text, ``samples`` from the original model itself, ``measure`` for perplexity."""

    train: list[list[int]]
    samples: list[list[int]]
    measure: list[list[int]]


def _read_all(facts_path: Path, retain: Sequence[Path], more: Sequence[Path], progress: Progress) -> tuple[Fact, ...]:
    """Files of facts and of public sets as one list."""

    about: dict[str, str] = {}

    def read(path: Path, split: str, needed: Sequence[str]) -> tuple[Fact, ...]:
        if not is_question_set(path):
            return read_facts(path, needed=needed)
        found = read_set_facts(path, split)
        about.update(found.about)
        return found.facts

    sets = [read(facts_path, "forget", ("forget",) if retain else SPLITS)]
    sets += [tuple(replace(fact, split="retain") for fact in read(path, "retain", ())) for path in retain]
    sets += [read(path, "forget", ()) for path in more]
    joined = join_facts(sets, about)
    left_out = joined.told()
    if left_out:
        progress.note(left_out)
    for split in SPLITS:
        if not any(fact.split == split for fact in joined.facts):
            raise InputError(
                f"{facts_path}: no fact with split {split!r}, needed at least one",
                cause=left_out,
                hint="name files of what is to be kept in [facts] retain",
            )
    return joined.facts


def prepare_facts(
    template: Path,
    facts_path: Path,
    text_path: Path | None,
    out: Path,
    progress: Progress,
    *,
    perplexity_tokens: int,
    seed: int,
    chunk_count: int = TRAIN_CHUNKS,
    sample_count: int = SAMPLES,
    retain: Sequence[Path] = (),
    more: Sequence[Path] = (),
) -> tuple[Fact, ...]:
    """Write ``out``/facts.jsonl, all of ``facts_path``, ``retain`` and ``more`` joined, and ``out``/text.json.

    Every prompt, answer and distractor is tokenized once here, so that an answer that tokenizes to nothing is found
    before any training.
    """
    facts = _read_all(facts_path, retain, more, progress)
    tokenize = load_tokenizer(template)
    for held_out in (False, True):
        encode_facts(facts, tokenize, held_out=held_out)
    for fact in facts:
        for wrong in fact.distractors:
            split_tokens((fact.prompts + fact.held_out_prompts)[0], wrong, tokenize)
    for split in SPLITS:
        if not any(fact.prompts for fact in facts if fact.split == split):
            raise InputError(f"{facts_path}: no {split} fact has a prompt to train on", hint="add prompts")
    if not chunk_count and not sample_count:
        raise InputError(
            "text.chunks and text.samples: found 0 and 0, needed at least one chunk to keep to",
            hint="raise one of them; unlearn.text_weight 0 leaves plain text out of training",
        )
    (out / FACTS).write_bytes(dump_facts(facts))
    documents = {half: file_documents(text_path, half) if text_path else builtin_documents(half) for half in HALVES}
    model = load_torch(template, bfloat16=True)  # its samples are as good a text, in half the time
    with progress.task("sampling from the original", sample_count) as advance:
        samples = sample_model(model, count=sample_count, length=TRAIN_LENGTH, seed=seed, progress=advance)
    text = PlainText(
        train=chunks(documents["train"], tokenize, length=TRAIN_LENGTH, count=chunk_count, seed=seed)
        if chunk_count
        else [],
        samples=samples,
        measure=chunks(
            documents["measure"],
            tokenize,
            length=MEASURE_LENGTH,
            count=max(1, perplexity_tokens // MEASURE_LENGTH),
            seed=seed,
        ),
    )
    write_json_atomically(
        out / TEXT,
        {
            "schema_version": 1,
            "source": text_path.name if text_path else "pydoc_data.topics",
            "facts_sha256": facts_hash(facts),
            "train": text.train,
            "samples": text.samples,
            "measure": text.measure,
        },
    )
    return facts


def load_facts(folder: Path) -> tuple[tuple[Fact, ...], PlainText]:
    """What :func:`prepare_facts` wrote."""
    record = read_json(folder / TEXT)
    return read_facts(folder / FACTS), PlainText(record["train"], record["samples"], record["measure"])
