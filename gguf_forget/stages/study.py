"""A circuit with all its evidence and pictures, from a model and facts alone: `gguf-forget attribute MODEL FACTS`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.architecture import attributable
from gguf_forget.checkpoint.components import components
from gguf_forget.checkpoint.open import open_model, open_tokenizer, outline
from gguf_forget.circuit.artifact import plain, save_circuit
from gguf_forget.circuit.attribution import Attribution
from gguf_forget.circuit.edges import score_edges
from gguf_forget.circuit.neurons import score_neurons
from gguf_forget.circuit.nodes import score_nodes
from gguf_forget.circuit.selection import neurons_for_parameters
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair
from gguf_forget.facts.schema import SPLITS, facts_hash, read_facts
from gguf_forget.progress import Progress
from gguf_forget.recipe import AttributeSection
from gguf_forget.run_directory import write_json_atomically
from gguf_forget.stages.attribute import (
    CIRCUIT,
    SUMMARY,
    PairedFacts,
    check_budget,
    find_circuit,
    pair_facts,
    scores_of,
    scoring_of,
    selection_of,
    summary_of,
)
from gguf_forget.stages.circuit_evidence import (
    across_seeds,
    agreement_with_patching,
    circuits_compared,
    curves,
    faithfulness_and_ablation,
)
from gguf_forget.stages.load import model_hash
from gguf_forget.whole_file import check_folder_writable, real_path

PATCHED_PAIRS = 16
PICTURES = tuple(f"{name}.{ending}" for name in ("scores", "components", "faithfulness") for ending in ("png", "svg"))
WRITTEN = {CIRCUIT, SUMMARY, *PICTURES}  # all that a study leaves


@dataclass(frozen=True)
class StudyOptions:
    """``section`` as in a recipe; ``parameters`` is a share of all the model's parameters, in place of its budget.

    ``level``: "neurons" alone, which the circuit consists of; "nodes" scores heads and MLPs as well, "edges" also what
    runs between them, all on the facts to forget. ``evidence``: whether everything is measured, on
    ``section.evidence_pairs`` pairs of each split, with ``controls`` random circuits and ``patched`` top and as many
    random neurons patched exactly.
    """

    section: AttributeSection
    parameters: float | None = None
    level: str = "nodes"
    evidence: bool = True
    controls: int = 3
    patched: int = 24


def _resolved(model: Any, options: StudyOptions) -> AttributeSection:
    """The section with a share of parameters turned into a number of neurons."""
    if options.parameters is None:
        return options.section
    entry, parts = attributable(model.config), components(model)
    first = entry.layer.format(0)
    inputs = [
        parameter for path in entry.mlp_inputs for parameter in model.get_submodule(f"{first}.{path}").parameters()
    ]
    per_neuron = sum(parameter.numel() for parameter in inputs) // parts.neurons + parts.hidden
    total = sum(parameter.numel() for parameter in model.parameters())
    count = neurons_for_parameters(options.parameters, parameters=total, per_neuron=per_neuron)
    return replace(options.section, neurons=count)


def _paired(model: Path, facts: Path, section: AttributeSection) -> PairedFacts:
    return pair_facts(
        read_facts(facts, free_text=True),
        open_tokenizer(model),
        pairs=section.pairs,
        seed=section.seed,
        mean_embedding=section.mean_embedding,
    )


def plan(model: Path, facts: Path, options: StudyOptions, out: Path) -> dict[str, Any]:
    """What :func:`study` would do: no weight is read, nothing is written. Raises the same errors for bad input."""
    _check_place(real_path(out))
    shape = outline(model)
    section = _resolved(shape, options)
    wanted = check_budget(shape, section)
    paired = _paired(model, facts, section)
    parts = components(shape)
    total = len(parts.layers) * parts.neurons
    return {
        "schema_version": 1,
        "folder": str(out),
        "parameters": sum(parameter.numel() for parameter in shape.parameters()),
        "layers": len(parts.layers),
        "neurons": total,
        "neurons_wanted": wanted,
        "pairs": {split: paired.built[split].counts() for split in SPLITS},
        "attribute": asdict(section),
        "evidence": options.evidence,
    }


def study(model_path: Path, facts_path: Path, options: StudyOptions, out: Path, progress: Progress) -> dict[str, Any]:
    """Write circuit.safetensors, circuit.json and the pictures into ``out``; returns what circuit.json says.

    ``out`` appears whole or not at all; what an earlier study left there is replaced, anything else is refused.
    """
    out = real_path(out)
    _check_place(out)
    paired = _paired(model_path, facts_path, options.section)
    paired.tell_unattributed(progress)
    progress.note(f"reading {model_path}")
    model = open_model(model_path)
    section = _resolved(model, options)
    check_budget(model, section)
    found = find_circuit(model, paired, section, progress)
    scores = scores_of(found)
    record = {
        **summary_of(found, paired, section),
        "model": model_path.name,
        "model_sha256": model_hash(model_path),
        "facts_sha256": facts_hash(paired.facts),
        "options": {**asdict(section), "parameters": options.parameters},
        "evidence": _evidence(model, paired, found, section, options, progress) if options.evidence else None,
    }
    others = _components(model, paired.pairs("forget"), section, options.level, record, progress)
    document: dict[str, Any] = plain(record)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        save_circuit(partial / CIRCUIT, found.circuit, scores["forget"], scores["retain"], others)
        write_json_atomically(partial / SUMMARY, document)
        _pictures(partial, found, document, others)
        _publish(partial, out)
    except OSError as error:
        raise InputError(f"cannot write {out}", cause=str(error), hint="choose another folder with -o") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return document


def _components(
    model: Any,
    pairs: tuple[Pair, ...],
    section: AttributeSection,
    level: str,
    record: dict[str, Any],
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Scores of heads [L, H], MLPs [L] and edges [U, V], as far as ``level`` asks; ``record`` learns the names."""
    arrays: dict[str, np.ndarray] = {}
    scoring = scoring_of(section)
    if level in ("nodes", "edges"):
        with progress.task("EAP-IG of heads and MLPs", len(pairs)) as advance:
            nodes = score_nodes(model, pairs, progress=advance, **scoring)
        arrays |= {"heads": nodes.heads.cpu().numpy(), "mlps": nodes.mlps.cpu().numpy()}
    if level == "edges":
        with progress.task("EAP-IG of edges", len(pairs)) as advance:
            edges = score_edges(model, pairs, progress=advance, **scoring)
        arrays["edges"] = edges.scores.cpu().numpy()
        record["graph"] = {"sources": list(edges.graph.sources), "destinations": list(edges.graph.destinations)}
    return arrays


def _evidence(
    model: Any,
    paired: PairedFacts,
    found: Attribution,
    section: AttributeSection,
    options: StudyOptions,
    progress: Progress,
) -> dict[str, Any]:
    seed, scoring = section.seed, scoring_of(section)
    test = {split: paired.judges(split, count=max(1, section.evidence_pairs), seed=seed) for split in SPLITS}
    named = circuits_compared(found, controls=options.controls, seed=seed, undiscounted=found.undiscounted)
    faithful, ablated = faithfulness_and_ablation(model, test, named, progress, mean=True)
    few = test["forget"].pairs[:PATCHED_PAIRS]
    own_scores = score_neurons(model, few, **scoring).scores.cpu().numpy()  # of the very pairs that are patched
    other = pair_facts(
        paired.facts, paired.tokenize, pairs=section.pairs, seed=seed + 1, mean_embedding=section.mean_embedding
    )
    return {
        "unseen_pairs": {split: judged.unseen for split, judged in test.items()},
        "faithfulness": faithful,
        "ablation": ablated,
        "curve": curves(model, test["forget"], np.abs(scores_of(found)["forget"]), progress, seed=seed),
        "exact_patching": agreement_with_patching(
            model, few, own_scores, progress, top=options.patched, random=options.patched, seed=seed
        ),
        "across_halves": None if found.across_halves is None else asdict(found.across_halves),
        "across_seeds": across_seeds(
            model,
            found,
            other.pairs("forget"),
            other.pairs("retain"),
            paired.relation,
            selection_of(section, model, paired.tokenize, progress),
            progress,
            **scoring,
        ),
    }


def _pictures(
    folder: Path, found: Attribution, document: Mapping[str, Any], components: Mapping[str, np.ndarray]
) -> None:
    from gguf_forget.report.circuit_plots import plot_components, plot_faithfulness, plot_scores

    name = document["model"]
    plot_scores(folder, found.ranking, found.circuit.mask(), title=f"{name}: which neurons were chosen")
    if components:
        plot_components(
            folder,
            components["heads"],
            components["mlps"],
            document["neurons_by_layer"],
            unit="change of L",
            title=f"{name}: what the facts to forget go through",
        )
    evidence = document["evidence"]
    if evidence:
        own = next(row for row in evidence["faithfulness"] if (row["split"], row["circuit"]) == ("forget", "circuit"))
        chosen = None if own["faithfulness"] is None else (document["share_of_neurons"], own["faithfulness"])
        plot_faithfulness(
            folder,
            {
                label: (evidence["curve"][key]["shares"], evidence["curve"][key]["faithfulness"])
                for key, label in (("circuit", "top neurons by |forget score|"), ("random control", "random control"))
            },
            chosen=chosen,
            title=f"{name}: faithfulness on facts to forget",
        )


def _check_place(out: Path) -> None:
    """Refuse, before minutes of work, a folder that cannot be made, holds something else, or is the current one."""
    if out == Path.cwd():
        raise InputError(f"{out} is the current folder, which cannot be replaced", hint="choose another folder with -o")
    above = next(folder for folder in out.parents if os.path.lexists(folder))
    check_folder_writable(above)
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise InputError(f"{out} is there and is no folder", hint="choose another folder with -o")
    foreign = sorted(path.name for path in out.iterdir() if path.name not in (*WRITTEN, ".DS_Store"))
    if foreign:
        raise InputError(
            f"{out} holds {foreign[0]!r}, which no circuit's folder has: needed a free path or an earlier circuit's "
            "folder",
            hint="choose another folder with -o",
        )


def _publish(partial: Path, out: Path) -> None:
    """Put the finished folder in its place; an earlier one goes only once the new one is in."""
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        os.rename(out, old)
    try:
        os.rename(partial, out)
    except BaseException:
        if old.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)
