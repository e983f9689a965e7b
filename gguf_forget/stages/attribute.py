"""Stage 3: EAP-IG scores of every MLP neuron on forget and retain pairs, and the circuit chosen from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.circuit.artifact import save_circuit
from gguf_forget.circuit.neurons import score_neurons
from gguf_forget.circuit.selection import Circuit, discounted_scores, select_neurons
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair, build_pairs
from gguf_forget.facts.tokens import encode_facts
from gguf_forget.progress import Progress
from gguf_forget.recipe import AttributeSection
from gguf_forget.run_directory import write_json_atomically
from gguf_forget.stages.facts import load_facts

CIRCUIT = "circuit.safetensors"
SUMMARY = "circuit.json"


def attribute(template: Path, facts_folder: Path, options: AttributeSection, out: Path, progress: Progress) -> Circuit:
    """Write ``out``/circuit.safetensors and ``out``/circuit.json."""
    facts, _ = load_facts(facts_folder)
    model, tokenize = load_torch(template), load_tokenizer(template)
    examples = encode_facts(facts, tokenize)
    scores, summary = {}, {}
    for split in ("forget", "retain"):
        own = [example for example in examples if facts[example.fact].split == split]
        built = build_pairs(facts, own, tokenize, seed=options.seed, limit=options.pairs, pool=examples)
        pairs: tuple[Pair, ...] = built.pairs
        if not pairs:
            raise InputError(
                f"no pair of clean and corrupted prompts can be made from the {split} facts",
                cause=f"{built.unpaired} prompts have no other subject of equal token length, "
                f"{built.undecidable} have only distractors that begin like the answer",
                hint="add facts of the same relation, or other distractors",
            )
        with progress.task(f"EAP-IG on {split} facts", len(pairs)) as advance:
            found = score_neurons(model, pairs, integration_steps=options.integration_steps, progress=advance)
        scores[split] = found.scores.numpy()
        summary[split] = {
            "pairs": found.pairs,
            "unpaired": built.unpaired,
            "undecidable": built.undecidable,
            "metric_gap": found.metric_gap,
            "completeness_residual": found.completeness_residual,
        }
    combined = discounted_scores(scores["forget"], scores["retain"], options.retain_discount)
    circuit = select_neurons(combined, budget=options.budget, layer_cap=options.layer_cap)
    mask = circuit.mask()
    shares = {split: float(abs(s)[mask].sum() / max(abs(s).sum(), 1e-30)) for split, s in scores.items()}
    save_circuit(out / CIRCUIT, circuit, scores["forget"], scores["retain"])
    record: dict[str, Any] = {
        "schema_version": 1,
        "method": f"EAP-IG, MLP neurons, inputs interpolated, m = {options.integration_steps}",
        "neurons": circuit.size,
        "share_of_neurons": circuit.share,
        "neurons_by_layer": [len(layer) for layer in circuit.neurons],
        "share_of_attribution": shares,
        "pairs": summary,
    }
    write_json_atomically(out / SUMMARY, record)
    progress.note(
        f"circuit: {circuit.size} of {mask.size} neurons hold {shares['forget']:.0%} of the forget attribution and "
        f"{shares['retain']:.0%} of the retain attribution"
    )
    return circuit
