"""Stage 4: train code moves of the circuit's neurons through the grid that ships."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.circuit.artifact import load_circuit
from gguf_forget.circuit.selection import random_circuit
from gguf_forget.errors import EvaluationError, InputError, UnsupportedError
from gguf_forget.export.edit import COLUMNS, ROWS, NeuronEdit, save_edits
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example, Tokenize, encode_facts
from gguf_forget.llama.child import IsolatedScorer
from gguf_forget.progress import Progress
from gguf_forget.recipe import UnlearnSection
from gguf_forget.run_directory import write_json_atomically
from gguf_forget.stages.facts import FACTS, TEXT, load_facts
from gguf_forget.stages.helpers import together as together_with
from gguf_forget.stages.machine import torch_device
from gguf_forget.stages.trained_grid import grid_moves, tensor_name
from gguf_forget.stages.training_checks import check_facts, check_floor, check_parts
from gguf_forget.stages.training_size import training_size
from gguf_forget.stages.training_state import SavedState
from gguf_forget.unlearning.code_moves import CodeMoves
from gguf_forget.unlearning.fisher import diagonal_fisher, projection, retain_bound
from gguf_forget.unlearning.framings import Framings
from gguf_forget.unlearning.together import Together, shard
from gguf_forget.unlearning.trainer import Mixture, StepLosses, TrainingState, Weights, train
from gguf_forget.unlearning.unknown_subject import build_rivals, unknown_subject_targets
from gguf_forget.unlearning.validation import above_chance

EDIT = "edit.safetensors"
SUMMARY = "unlearn.json"


def _fisher(
    model: Any,
    edits: list[CodeMoves],
    examples: list[Example],
    count: int,
    seed: int,
    progress: Progress,
    label: str,
) -> list[torch.Tensor]:
    drawn = random.Random(seed).sample(examples, min(count, len(examples)))
    with progress.task(f"Fisher of {label} facts", len(drawn)) as advance:
        return diagonal_fisher(model, edits, drawn, progress=advance)


def _split(facts: tuple[Fact, ...], examples: list[Example], split: str) -> list[Example]:
    return [example for example in examples if facts[example.fact].split == split]


def _mixture(options: UnlearnSection) -> Mixture:
    return Mixture(
        options.batch_forget,
        options.batch_retain,
        options.batch_text,
        options.text_every,
        options.near_turns,
        options.match_phrasings,
    )


def _held_back(facts: tuple[Fact, ...], forget: list[Example], phrasing: int) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and those of the validation phrasing; a fact's only phrasing is always trained on."""
    held = [e for e in forget if e.phrasing == phrasing and len(facts[e.fact].prompts) > 1]
    return [example for example in forget if example not in held], held


def _targets(
    model: Any, facts: tuple[Fact, ...], forget: list[Example], pool: list[Example], seed: int, progress: Progress
) -> torch.Tensor:
    with progress.task("what the original says of an unknown subject", len(forget)) as advance:
        return unknown_subject_targets(
            model,
            facts,
            forget,
            build_rivals(facts, forget),
            pool,
            first_token_subjects=48,
            later_token_subjects=4,
            seed=seed,
            progress=advance,
        )


def _stopper(
    model: Any,
    edits: list[CodeMoves],
    facts: tuple[Fact, ...],
    held: list[Example],
    targets: torch.Tensor,
    options: UnlearnSection,
    progress: Progress,
) -> Callable[[int], bool]:
    """Whether the validation phrasing is at chance, looked at every few steps."""
    rivals = build_rivals(facts, held)

    def stop(step: int) -> bool:
        if step % options.validation_every:
            return False
        above = above_chance(model, edits, held, rivals, targets)
        progress.note(f"step {step}: answers to the validation phrasing stand {above:.2f} nats above chance")
        return above <= 0

    return stop


def chat_frame(template: Path) -> tuple[str, str] | None:
    """What the model's chat template writes before and after a user's message; None where it has none to speak of."""
    message = "gguf-forget"
    with IsolatedScorer(template, cells=256, max_sequences=1) as scorer:
        try:
            text = scorer.chat([{"role": "user", "content": message}])
        except (UnsupportedError, InputError):  # no template, or one that wants other roles
            return None
    before, found, after = text.partition(message)
    return (before, after) if found and message not in after else None


def _framings(
    template: Path,
    facts: tuple[Fact, ...],
    forget: list[Example],
    retain: list[Example],
    tokenize: Tokenize,
    options: UnlearnSection,
    progress: Progress,
) -> Framings | None:
    if not options.framed or not options.framings:
        return None
    chat = chat_frame(template) if "chat" in options.framings else None
    if "chat" in options.framings and chat is None:
        progress.note("the model has no chat template: its prompts are asked in the other framings")
    return Framings(
        facts, forget, retain, tokenize, kinds=options.framings, share=options.framed, chat=chat, seed=options.seed
    )


def _base(path: Path, options: UnlearnSection, device: torch.device, together: Together) -> Any:
    base = load_torch(path, bfloat16=options.precision == "bfloat16").to(device)
    if options.shard:  # before the next one is loaded: no process ever holds two whole models
        shard(base, base.model.layers, together)
    return base


def _keeper(saved: SavedState, progress: Progress) -> Callable[[TrainingState], None]:
    """Keeps the state; a disk that is full ends no training, only what could be gone on with."""

    def keep(state: TrainingState) -> None:
        try:
            saved.save(state)
        except OSError as error:
            progress.note(
                f"{saved.path} cannot be written ({error.strerror or error}): training goes on, but after an "
                "interruption it would start from the last state that was kept"
            )

    return keep


def _remark(losses: StepLosses) -> str:
    """What the progress line says of a step."""

    def answered(accuracy: float | None) -> str:
        return "" if accuracy is None else f" ({accuracy:.0%} right)"

    return (
        f"forget {losses.forget:.2f}{answered(losses.forget_accuracy)} "
        f"retain {losses.retain:.3f}{answered(losses.retain_accuracy)} text {losses.text:.3f} moved {losses.moved:,}"
    )


def unlearn(
    template: Path,
    stocks: Sequence[Path],
    facts_folder: Path,
    circuit_path: Path,
    options: UnlearnSection,
    out: Path,
    progress: Progress,
) -> None:
    """Write ``out``/edit.safetensors and ``out``/unlearn.json. ``stocks``: the original on the grids of the options.

    What an interruption would go on from stays beside ``out``: for :func:`.training_state.remove_states`, once ``out``
    is where it is to stay.
    """
    check_parts(options)
    arguments = (template, stocks, facts_folder, circuit_path, options, out)
    with together_with(options.processes, options.device, _help, arguments) as together:
        _unlearn(*arguments, progress, together)


def _help(*arguments: Any) -> None:
    """What the processes beside the first do: the same, in silence, and nothing is written."""
    template, stocks, facts_folder, circuit_path, options, out, together = arguments
    _unlearn(template, stocks, facts_folder, circuit_path, options, out, Progress(), together)


def _unlearn(
    template: Path,
    stocks: Sequence[Path],
    facts_folder: Path,
    circuit_path: Path,
    options: UnlearnSection,
    out: Path,
    progress: Progress,
    together: Together,
) -> None:
    facts, text = load_facts(facts_folder)
    check_facts(options, facts)
    circuit, _, _ = load_circuit(circuit_path)
    if options.circuit == "random":
        circuit = random_circuit(circuit, seed=options.seed)
    file = GgufFile(template)
    kind = file.text("general.architecture")
    tokenize = load_tokenizer(template)
    examples = encode_facts(facts, tokenize)
    forget, held = _held_back(facts, _split(facts, examples, "forget"), options.validation_phrasing)
    retain = _split(facts, examples, "retain")
    device = torch_device(options.device, together.index)
    edits = [edit.to(device) for edit in grid_moves(stocks, circuit, kind, floor=options.floor)]
    check_floor(edits, options)
    each = "" if options.processes == 1 else f" in each of {options.processes} processes"
    chunks = text.train + text.samples
    needed = training_size(file, edits, forget, retain, chunks, options)
    progress.note(f"training takes at least about {needed / 1e9:.1f} GB of memory{each}")
    bases = [_base(path, options, device, together) for path in (template, *stocks)]

    fisher_retain = _fisher(bases[0], edits, retain, options.fisher_examples, options.seed, progress, "kept")
    fisher_forget = _fisher(bases[0], edits, forget, options.fisher_examples, options.seed, progress, "forgotten")
    for edit, mask in zip(
        edits, projection(fisher_retain, fisher_forget, quantile=options.fisher_quantile), strict=True
    ):
        edit.allowed &= mask
    del fisher_forget

    targets = torch.zeros(len(forget))
    if options.objective == "unknown_subject":
        targets = _targets(bases[0], facts, forget, examples, options.seed, progress)
    stop: Callable[[int], bool] = lambda step: False  # noqa: E731
    if held:
        chance = _targets(bases[0], facts, held, examples, options.seed, progress)
        stop = _stopper(bases[1], edits, facts, held, chance, options, progress)
    framings = _framings(template, facts, forget, retain, tokenize, options, progress)
    saved = SavedState(
        out.parent,
        {
            "template": template,
            **{f"stock {grid}": stock for grid, stock in zip(options.grids, stocks, strict=True)},
            "circuit": circuit_path,
            "facts": facts_folder / FACTS,
            "text": facts_folder / TEXT,
        },
        asdict(options),
    )
    # On other devices sums may differ in their last bits: all start from what the first process found.
    targets = targets.to(device)
    together.share([*(edit.allowed for edit in edits), targets])
    state = saved.load()
    if state is None and saved.path.exists():
        progress.note(f"{saved.path} is damaged: training starts from its first step")
    elif state is None and saved.others():
        progress.note("an interrupted training had other settings, inputs or code: this one starts from its first step")
    if state is not None:
        progress.note(f"training goes on after step {len(state.history)}")
    with progress.task("training through the grid", options.steps) as advance:
        if state is not None:
            advance(len(state.history))

        def show(losses: StepLosses) -> None:
            advance(1, _remark(losses))

        history = train(
            bases,
            edits,
            facts,
            forget,
            retain,
            chunks,
            objective=options.objective,
            rivals=build_rivals(facts, forget),
            targets=targets,
            margin=options.margin,
            greedy_margin=options.greedy_margin,
            greedy_weight=options.greedy_weight,
            steps=options.steps,
            soft_share=options.soft_share,
            learning_rate=options.learning_rate,
            damping=options.damping,
            weights=Weights(
                options.forget_weight, options.retain_weight, options.shortfall_weight, options.text_weight
            ),
            mixture=_mixture(options),
            npo_beta=options.npo_beta,
            phrasing_rate=options.phrasing_rate,
            seed=options.seed,
            framings=framings,
            accumulation=options.accumulation,
            recompute=options.gradient_checkpointing,
            together=together,
            state=state,
            keep=_keeper(saved, progress) if together.index == 0 else None,
            keep_every=options.keep_every,
            stop=stop,
            progress=show,
        )
    if together.index:
        return
    found = [
        NeuronEdit(
            tensor=tensor_name(kind, edit.role, edit.layer),
            axis=COLUMNS if edit.role == "down" else ROWS,
            neurons=edit.neurons.cpu().numpy(),
            delta=edit.delta.detach().cpu().numpy(),
            allowed=edit.allowed.cpu().numpy(),
        )
        for edit in edits
    ]
    moved = sum(edit.edited for edit in found)
    if not moved:
        raise EvaluationError(
            "training moved no code at all",
            hint="raise unlearn.steps or unlearn.learning_rate, or lower unlearn.damping or unlearn.floor",
        )
    save_edits(found, out / EDIT)
    weights = sum(edit.allowed.size for edit in found)
    write_json_atomically(
        out / SUMMARY,
        {
            "schema_version": 1,
            "objective": options.objective,
            "grid": options.grid,
            "other_grids": list(options.grids[1:]),
            "steps": len(history),
            "circuit_weights": weights,
            "frozen_by_projection": int(weights - sum(int(edit.allowed.sum()) for edit in found)),
            "moved": moved,
            "retain_bound_nats": retain_bound(fisher_retain, [edit.delta.detach() for edit in edits]),
            "history": [vars(losses) for losses in history],
        },
    )
