"""Stage 6: every file asked the same questions through llama.cpp, and one verdict over the answers."""

from __future__ import annotations

import random
from pathlib import Path

from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.errors import EvaluationError
from gguf_forget.facts.schema import Fact, continuation
from gguf_forget.facts.tokens import encode_facts
from gguf_forget.llama.child import IsolatedScorer
from gguf_forget.progress import Progress
from gguf_forget.run_directory import read_json, write_json_atomically
from gguf_forget.stages.facts import load_facts
from gguf_forget.verification.agreement import (
    MAX_DIFFERENCE_NATS,
    check_token_agreement,
    mean_absolute_difference,
)
from gguf_forget.verification.probes import probe_file
from gguf_forget.verification.scores import FileScores

SCORES = "scores.json"
AGREEMENT = "agreement.json"
MOST_COMPARED = 1024  # answers: more say no more of a mean, and take a minute
RANKED_PHRASINGS = 1  # trained ones; with all candidates after every subject they cost most of the time


def score(
    file: Path,
    facts_folder: Path,
    out: Path,
    progress: Progress,
    *,
    max_new_tokens: int,
    retain_items: int,
    trained_phrasings: int,
    threads: int,
) -> FileScores:
    """Write ``out``/scores.json: all that llama.cpp says of ``file``."""
    facts, text = load_facts(facts_folder)
    with (
        progress.counts(f"asking {file.parent.name}/{file.name} through llama.cpp") as count,
        IsolatedScorer(file, threads=threads or None, progress=count) as scorer,
    ):
        scores = probe_file(
            scorer,
            facts,
            text.measure,
            max_new_tokens=max_new_tokens,
            retain_items=retain_items,
            ranked_phrasings=RANKED_PHRASINGS,
            trained_phrasings=trained_phrasings,
            generate_held_out=False,
        )
    write_json_atomically(out / SCORES, scores.to_json())
    return scores


def load_scores(folder: Path) -> FileScores:
    return FileScores.from_json(read_json(folder / SCORES))


def _probe_texts(facts: tuple[Fact, ...]) -> list[str]:
    texts = []
    for fact in facts:
        for prompt in fact.prompts + fact.held_out_prompts:
            texts += [prompt + continuation(prompt, answer) for answer in (fact.answer, *fact.distractors)]
            texts.append(prompt)
    return texts


def check_agreement(
    template: Path, original_f16: Path, facts_folder: Path, out: Path, progress: Progress, *, batch_size: int = 64
) -> None:
    """Write ``out``/agreement.json: llama.cpp and transformers split every probe alike and score answers alike.

    Raises :class:`EvaluationError` when a token differs, or answer log-probabilities of the forgotten facts differ by
    more than 0.05 nats on average (at most 1,024 of them, drawn at random): then what was trained is not what would be
    judged.
    """
    from gguf_forget.unlearning.scoring import answer_log_probability, answers, log_probabilities, pack

    facts, _ = load_facts(facts_folder)
    tokenize = load_tokenizer(template)
    forget = [fact for fact in facts if fact.split == "forget"]
    examples = encode_facts(forget, tokenize)
    examples = random.Random(0).sample(examples, min(MOST_COMPARED, len(examples)))
    model = load_torch(template)
    with IsolatedScorer(original_f16) as scorer:
        texts = check_token_agreement(scorer, tokenize, _probe_texts(facts))
        ours = scorer.continuation_log_probabilities(
            [example.prompt for example in examples], [[example.answer] for example in examples]
        )
    theirs = []
    with progress.task("comparing llama.cpp with transformers", len(examples)) as advance:
        for start in range(0, len(examples), batch_size):
            batch = pack(answers(examples[start : start + batch_size]))
            theirs += answer_log_probability(log_probabilities(model, batch), batch).tolist()
            advance(batch.sequences)
    difference = mean_absolute_difference([float(parts[0].sum()) for parts in ours], theirs)
    if difference > MAX_DIFFERENCE_NATS:
        raise EvaluationError(
            f"llama.cpp (F16) and transformers (F32) differ by {difference:.4f} nats an answer on average, needed at "
            f"most {MAX_DIFFERENCE_NATS}",
            hint="one of them reads this model wrongly: no figure of one describes the other",
        )
    write_json_atomically(
        out / AGREEMENT,
        {
            "schema_version": 1,
            "texts_tokenized_alike": texts,
            "answers": len(examples),
            "mean_absolute_difference_nats": difference,
        },
    )
