"""Asking one file, attributing it again, and training it again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from forgetting_benchmark.figures import Roles, figures_of
from forgetting_benchmark.make import Shared
from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.circuit.divergence import divergence
from gguf_forget.circuit.neurons import score_neurons
from gguf_forget.llama.child import IsolatedScorer, run_in_child
from gguf_forget.llama.quantizer import quantize
from gguf_forget.stages.attribute import pair_facts, scoring_of
from gguf_forget.stages.facts import load_facts
from gguf_forget.verification.attacks.prompts import targets
from gguf_forget.verification.attacks.relearning import relearning
from gguf_forget.verification.attacks.sampling import sampled_answers
from gguf_forget.verification.probes import ask
from gguf_forget.verification.questions import Question


def measure(
    shared: Shared, file: Path, questions: Sequence[Question], chosen: Roles, *, samples: int
) -> dict[str, float | None]:
    """All figures of one file, through llama.cpp in a process of its own. ``samples`` 0: none is drawn."""
    options = shared.recipe.verify
    _, text = load_facts(shared.facts)
    with (
        shared.progress.counts(f"asking {file.parent.name}/{file.name} through llama.cpp") as count,
        IsolatedScorer(file, threads=options.threads or None, progress=count) as scorer,
    ):
        scores = ask(scorer, questions, text.measure, max_new_tokens=options.max_new_tokens)
        asked = [q for q in targets(questions, every_phrasing=False) if q.key.relation == chosen.forgotten]
        sampled = None
        if samples:
            sampled = sampled_answers(scorer, asked, samples=samples, k=samples, max_new_tokens=options.max_new_tokens)
    return figures_of(scores, chosen, sampled)


def dequantized(file: Path, folder: Path) -> Path:
    target = folder / f"{file.stem}.dequantized.gguf"
    run_in_child(quantize, file, target, "F32", allow_requantize=True)
    return target


def attribution(shared: Shared, file: Path) -> np.ndarray:
    """The EAP-IG scores of all neurons on the forget pairs in the file as it ships, float32 [layers, d_mlp]."""
    options = shared.recipe.attribute
    facts, _ = load_facts(shared.facts)
    paired = pair_facts(
        facts,
        load_tokenizer(shared.template),
        pairs=options.pairs,
        seed=options.seed,
        mean_embedding=options.mean_embedding,
        whole_answer=options.whole_answer,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = load_torch(dequantized(file, Path(folder)), bfloat16=options.precision == "bfloat16")
    pairs = paired.pairs("forget")
    with shared.progress.task(f"EAP-IG on {file.name}", len(pairs)) as advance:
        found: np.ndarray = score_neurons(model, pairs, progress=advance, **scoring_of(options)).scores.cpu().numpy()
    return found


def circuit_divergence(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """CAD (ours): of the attribution of a shipped file from that of another, all neurons."""
    found = divergence(before, after)
    return {"l1": found.l1, "one_minus_cosine": found.one_minus_cosine, "mass_ratio": found.mass_ratio}


def relearned(
    shared: Shared, file: Path, stock: Path, questions: Sequence[Question], forgotten: str, *, steps: int
) -> dict[str, Any]:
    """Steps until training on a quarter of the facts has half of the others back; None: not within ``steps``.

    ``forgotten``: the relation that is trained again and asked about.
    """
    asked = [question for question in targets(questions, every_phrasing=False) if question.key.relation == forgotten]
    tokens: Any = SimpleNamespace(tokenize=load_tokenizer(shared.template))
    with tempfile.TemporaryDirectory() as folder:
        model, original = (load_torch(dequantized(path, Path(folder))) for path in (file, stock))
    with shared.progress.task("relearning", steps) as advance:
        found = relearning(model, original, tokens, asked, [], [], steps=steps, progress=advance)
    if not found:
        return {"steps": None, "within": steps, "accuracy": []}
    figures = found[0].figures  # on a slice of the forgotten facts
    return {"steps": figures["steps_to_half"], "within": steps, "accuracy": figures["accuracy"]}
