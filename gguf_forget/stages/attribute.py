"""Stage 3: EAP-IG scores of every MLP neuron on forget and retain pairs, and the circuit chosen from them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.components import components
from gguf_forget.checkpoint.load import bfloat16_copy, load_tokenizer, load_torch
from gguf_forget.circuit.artifact import plain, save_circuit
from gguf_forget.circuit.attribution import Attribution, Selection
from gguf_forget.circuit.attribution import attribute as attribute_pairs
from gguf_forget.circuit.faithfulness import faithfulness
from gguf_forget.circuit.selection import Circuit, grow_until_faithful, neurons_wanted
from gguf_forget.circuit.text_need import text_need
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair, Pairs, build_pairs
from gguf_forget.facts.schema import SPLITS, Fact
from gguf_forget.facts.text import HALVES, builtin_documents, chunks
from gguf_forget.facts.tokens import Example, Tokenize, encode_facts
from gguf_forget.progress import Progress
from gguf_forget.recipe import AttributeSection
from gguf_forget.run_directory import write_json_atomically
from gguf_forget.stages.circuit_evidence import Judges, circuits_compared, faithfulness_and_ablation, judges
from gguf_forget.stages.facts import TRAIN_LENGTH, load_facts

CIRCUIT = "circuit.safetensors"
SUMMARY = "circuit.json"
TEXT_CHUNKS = 32


@dataclass(frozen=True)
class PairedFacts:
    """Facts with the pairs of each split, and the examples and tokenizer they were made with."""

    facts: tuple[Fact, ...]
    examples: list[Example]
    tokenize: Tokenize
    built: Mapping[str, Pairs]
    mean_embedding: bool = True

    def pairs(self, split: str) -> tuple[Pair, ...]:
        return self.built[split].pairs

    def relation(self, pair: Pair) -> str:
        return self.facts[pair.fact].relation

    def judges(self, split: str, *, count: int, seed: int) -> Judges:
        """Pairs to judge on, if possible none of those attributed."""
        return judges(
            self.facts,
            _of(self.facts, self.examples, split),
            self.tokenize,
            self.pairs(split),
            pool=self.examples,
            count=count,
            seed=seed,
            mean_embedding=self.mean_embedding,
        )

    def unattributed(self) -> list[str]:
        """Relations to be forgotten of which no pair could be made, so that the circuit is found without them."""
        wanted = {fact.relation for fact in self.facts if fact.split == "forget" and fact.prompts}
        return sorted(wanted - {self.relation(pair) for pair in self.pairs("forget")})

    def tell_unattributed(self, progress: Progress) -> None:
        for relation in self.unattributed():
            progress.note(
                f"the circuit is found without {relation!r}, which is to be forgotten: none of its prompts that were "
                "drawn has a partner; give further facts of it, or more pairs"
            )


def _of(facts: Sequence[Fact], examples: Sequence[Example], split: str) -> list[Example]:
    return [example for example in examples if facts[example.fact].split == split]


def pair_facts(
    facts: tuple[Fact, ...],
    tokenize: Tokenize,
    *,
    pairs: int,
    seed: int,
    mean_embedding: bool = True,
    whole_answer: bool = False,
) -> PairedFacts:
    """At most ``pairs`` pairs of each split; :class:`InputError` when a split gives none.

    ``whole_answer``: every fact counts as free text, as if it had no wrong answers.
    """
    if whole_answer:
        facts = tuple(replace(fact, distractors=()) for fact in facts)
    examples = encode_facts(facts, tokenize)
    built = {}
    for split in SPLITS:
        own = _of(facts, examples, split)
        built[split] = build_pairs(
            facts, own, tokenize, seed=seed, limit=pairs, pool=examples, mean_embedding=mean_embedding
        )
        if not built[split].pairs:
            raise InputError(
                f"no pair of clean and corrupted prompts can be made from the {split} facts",
                cause=f"{len(own)} prompts, of which {min(pairs, len(own))} were drawn: {built[split].unpaired} have "
                "no other subject with another answer, "
                f"{built[split].unlocated} do not hold their subject exactly once",
                hint="add prompts, or facts of the same relation",
            )
    return PairedFacts(facts, examples, tokenize, built, mean_embedding)


def selection_of(
    options: AttributeSection,
    model: Any,
    tokenize: Tokenize,
    progress: Progress,
    *,
    text: Sequence[Sequence[int]] | None = None,
) -> Selection:
    """How the options choose; with a ``text_discount`` the model is run on some chunks of ``text``.

    text: token ids, all of one length; by default of the built-in text.
    """
    need = None
    if options.text_discount:
        if text is None:
            text = chunks(
                builtin_documents(HALVES[0]), tokenize, length=TRAIN_LENGTH, count=TEXT_CHUNKS, seed=options.seed
            )
        drawn = random.Random(options.seed).sample(list(text), min(TEXT_CHUNKS, len(text)))
        with progress.task("what plain text needs", len(drawn)) as advance:
            need = text_need(model, drawn, signed=options.ranking == "signed", progress=advance)
    return Selection(
        budget=options.budget,
        neurons=options.neurons or None,
        layer_cap=options.layer_cap,
        retain_discount=options.retain_discount,
        signed=options.ranking == "signed",
        text_discount=options.text_discount,
        text=need,
    )


def check_budget(model: Any, options: AttributeSection) -> int:
    """How many neurons the options mean in a model of that outline; :class:`InputError` where they do not fit."""
    parts = components(model)
    own = {"neurons": options.neurons} if options.neurons else {"budget": options.budget}
    return neurons_wanted(len(parts.layers), parts.neurons, layer_cap=options.layer_cap, **own)


def scoring_of(options: AttributeSection) -> dict[str, Any]:
    """Arguments of every scoring function."""
    return {"integration_steps": options.integration_steps, "variant": options.variant}


def find_circuit(
    model: Any,
    paired: PairedFacts,
    options: AttributeSection,
    progress: Progress,
    *,
    text: Sequence[Sequence[int]] | None = None,
) -> Attribution:
    """Score, select, and grow the circuit when a minimum faithfulness on the forget pairs is asked for.

    model: float32; a copy of it is scored where ``options.precision`` is another. text: see :func:`selection_of`.
    """
    selection = selection_of(options, model, paired.tokenize, progress, text=text)
    forget, retain = paired.pairs("forget"), paired.pairs("retain")
    with progress.task("EAP-IG on forget and retain facts", len(forget) + len(retain)) as advance:
        found = attribute_pairs(
            bfloat16_copy(model) if options.precision == "bfloat16" else model,
            forget,
            retain,
            relation=paired.relation,
            selection=selection,
            seed=options.seed,
            progress=advance,
            **scoring_of(options),
        )
    if options.minimum_faithfulness <= 0:
        return found

    def measured(circuit: Circuit) -> float:
        progress.note(f"faithfulness of {circuit.size} neurons …")
        found = faithfulness(model, forget, [circuit])
        if not found.full > found.empty:
            raise InputError(
                f"no circuit can be faithful to the answers to forget: L is {found.full:.3f} in the whole model and "
                f"{found.empty:.3f} where every MLP neuron is as if another subject were asked about",
                hint="add facts that the model knows, or leave out the minimum faithfulness",
            )
        return found.values[0]

    circuit, _ = grow_until_faithful(
        found.ranking,
        measured,
        minimum=options.minimum_faithfulness,
        neurons=found.circuit.size,
        layer_cap=options.layer_cap,
    )
    return replace(found, circuit=circuit)


def scores_of(found: Attribution) -> dict[str, np.ndarray]:
    """float64 [L, d_ff] of each split that was scored."""
    scored = {"forget": found.forget, "retain": found.retain}
    return {split: each.scores.cpu().numpy() for split, each in scored.items() if each is not None}


def summary_of(found: Attribution, paired: PairedFacts, options: AttributeSection) -> dict[str, Any]:
    """What circuit.json says of the circuit itself, schema version 1."""
    circuit, mask = found.circuit, found.circuit.mask()
    scores = scores_of(found)
    scored = {"forget": found.forget, "retain": found.retain}
    return {
        "schema_version": 1,
        "method": f"EAP-IG, MLP neurons, {options.variant} interpolated, m = {options.integration_steps}",
        "neurons": circuit.size,
        "share_of_neurons": circuit.share,
        "neurons_by_layer": [len(layer) for layer in circuit.neurons],
        "share_of_attribution": {
            split: float(abs(s)[mask].sum() / max(abs(s).sum(), 1e-30)) for split, s in scores.items()
        },
        "pairs": {
            split: {
                **paired.built[split].counts(),
                "metric_gap": each.metric_gap,
                "completeness_residual": each.completeness_residual,
            }
            for split, each in scored.items()
            if each is not None
        },
    }


def attribute(template: Path, facts_folder: Path, options: AttributeSection, out: Path, progress: Progress) -> Circuit:
    """Write ``out``/circuit.safetensors and ``out``/circuit.json, with evidence from ``options.evidence_pairs``."""
    facts, text = load_facts(facts_folder)
    model, tokenize = load_torch(template), load_tokenizer(template)
    paired = pair_facts(
        facts,
        tokenize,
        pairs=options.pairs,
        seed=options.seed,
        mean_embedding=options.mean_embedding,
        whole_answer=options.whole_answer,
    )
    paired.tell_unattributed(progress)
    found = find_circuit(model, paired, options, progress, text=text.train or text.samples)
    scores = scores_of(found)
    save_circuit(out / CIRCUIT, found.circuit, scores["forget"], scores["retain"])
    record = summary_of(found, paired, options)
    record["evidence"] = _cheap_evidence(model, paired, found, options, progress)
    write_json_atomically(out / SUMMARY, plain(record))
    shares = record["share_of_attribution"]
    progress.note(
        f"circuit: {found.circuit.size} of {found.ranking.size} neurons hold {shares['forget']:.0%} of the forget "
        f"attribution and {shares['retain']:.0%} of the retain attribution"
    )
    return found.circuit


def _cheap_evidence(
    model: Any, paired: PairedFacts, found: Attribution, options: AttributeSection, progress: Progress
) -> dict[str, Any]:
    """Seconds, not minutes: `gguf-forget attribute MODEL FACTS` measures the rest."""
    evidence: dict[str, Any] = {"across_halves": None if found.across_halves is None else asdict(found.across_halves)}
    if options.evidence_pairs:
        test = {split: paired.judges(split, count=options.evidence_pairs, seed=options.seed) for split in SPLITS}
        named = circuits_compared(found, controls=1, seed=options.seed)
        faithful, ablated = faithfulness_and_ablation(model, test, named, progress, mean=False)
        evidence |= {
            "unseen_pairs": {split: judged.unseen for split, judged in test.items()},
            "faithfulness": faithful,
            "ablation": ablated,
        }
    return evidence
