"""Training through the grid: what is optimised is what ships.

Each step adds the forget term and the retain terms over one mixed batch, computed with whole code moves
applied to one of the base models in turn (full precision, then each quantized original), and updates the
latent code moves with Adam. The reference of every retain term is the full-precision original.
A run that was cut off goes on from a :class:`TrainingState` and ends in the same bytes: what its finished steps drew
is drawn again, nothing is computed twice.

Shapes: see code_moves (edits) and scoring (batches).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from gguf_forget.checkpoint.attention import differentiable_attention
from gguf_forget.errors import EvaluationError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.batches import NEAR_TURNS, MatchedRetain, cycle, forget_cycle, retain_cycle
from gguf_forget.unlearning.code_moves import CodeMoves, applied
from gguf_forget.unlearning.framings import Framings
from gguf_forget.unlearning.goal import Goal
from gguf_forget.unlearning.live_accuracy import ChoiceAccuracy
from gguf_forget.unlearning.objectives import divergence, shortfall
from gguf_forget.unlearning.optimizer import DampedAdam
from gguf_forget.unlearning.phrasing_shifts import PhrasingShifts
from gguf_forget.unlearning.recomputation import recomputed
from gguf_forget.unlearning.scoring import (
    Sequences,
    answers,
    log_probabilities,
    pack,
    plain_text,
)
from gguf_forget.unlearning.together import ALONE, Together
from gguf_forget.unlearning.unknown_subject import Rivals


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step in nats, 4-way accuracies on its batch, and the moves so far.

    ``forget`` is with greedy_weight, ``retain`` the divergence alone. The accuracies (see live_accuracy) are those
    before the step, as rounded as its losses; None where nothing had another answer beside it.
    """

    step: int
    forget: float
    retain: float
    text: float
    forget_accuracy: float | None
    retain_accuracy: float | None
    moved: int


@dataclass(frozen=True)
class Mixture:
    """Prompts and text chunks in one step; in the text every ``text_every``-th token is scored.

    ``near``: turns of kept relations that are also forgotten. ``matched``: these are asked in the phrasings that the
    step forgets.
    """

    forget: int = 38
    retain: int = 36
    text: int = 2
    text_every: int = 2
    near: int = NEAR_TURNS
    matched: bool = False


@dataclass(frozen=True)
class Weights:
    """shortfall: of what kept answers lose (see :func:`.objectives.shortfall`), beside the divergence."""

    forget: float = 1.0
    retain: float = 8.0
    shortfall: float = 0.0
    text: float = 4.0


@dataclass(frozen=True)
class TrainingState:
    """All that the steps so far have left behind: latents and Adam's moments, one of each for every edit, and the
    table of :class:`.PhrasingShifts`.
    """

    latents: tuple[torch.Tensor, ...]
    first: tuple[torch.Tensor, ...]
    second: tuple[torch.Tensor, ...]
    shifts: torch.Tensor
    history: tuple[StepLosses, ...]


def _resume(
    state: TrainingState, edits: Sequence[CodeMoves], optimizer: DampedAdam, shifts: PhrasingShifts
) -> list[StepLosses]:
    with torch.no_grad():
        for own, kept in (
            ([edit.latent for edit in edits], state.latents),
            (optimizer.first, state.first),
            (optimizer.second, state.second),
        ):
            for tensor, value in zip(own, kept, strict=True):
                tensor.copy_(value)
        shifts.table.copy_(state.shifts)
    optimizer.steps = len(state.history)
    return list(state.history)


def _state(
    edits: Sequence[CodeMoves], optimizer: DampedAdam, shifts: PhrasingShifts, history: Sequence[StepLosses]
) -> TrainingState:
    def copied(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors)

    latents = copied([edit.latent for edit in edits])
    return TrainingState(
        latents, copied(optimizer.first), copied(optimizer.second), shifts.table.clone(), tuple(history)
    )


@dataclass(frozen=True)
class _Lists:
    """What a step or a part of it sees: examples to forget and their rows among all, kept examples, chunks of text."""

    rows: Sequence[int]
    asked: Sequence[Example]
    kept: Sequence[Example]
    prose: Sequence[Sequence[int]]

    def sequences(self, mixture: Mixture) -> list[Sequences]:
        return [answers(self.asked), answers(self.kept), plain_text(self.prose, every=mixture.text_every)]

    def counts(self, mixture: Mixture) -> list[int]:
        """What each term is a mean over: examples to forget, scored positions of kept facts and of text."""
        _, *kept = self.sequences(mixture)
        return [len(self.rows), *(sum(map(len, part.scored)) for part in kept)]

    def part(self, index: int, parts: int) -> _Lists:
        return _Lists(*(_part(each, index, parts) for each in (self.rows, self.asked, self.kept, self.prose)))


def _accumulate(
    model: Any,
    reference: Any,
    edits: Sequence[CodeMoves],
    parts: Sequence[_Lists],
    totals: Sequence[int],
    mixture: Mixture,
    weights: Weights,
    goal: Goal,
    accuracy: ChoiceAccuracy,
    recompute: bool,
) -> list[float]:
    """What ``parts`` add to the forget, retain and text loss of the whole step; then, of what they forget and of what
    they keep, right answers and answers; then what they say to the shifts of the phrasings' goals.

    Gradients of the losses' weighted sum are left in the edits.
    """
    values = [0.0, 0.0, 0.0]
    credits: tuple[list[float], list[float]] = ([], [])
    heard = goal.shifts.silence()
    factors = (weights.forget, weights.retain, weights.text)
    for own in parts:
        asked, kept, prose = own.sequences(mixture)
        sequences = asked + kept + prose
        if not len(sequences):
            continue
        batch = pack(sequences).to(reference.device)
        split = batch.split([len(asked), len(kept), len(prose)])
        kept_and_prose = kept + prose
        with torch.no_grad():
            expected = (
                log_probabilities(reference, pack(kept_and_prose).to(reference.device)).split(
                    [len(p.rows) for p in split[1:]]
                )
                if len(kept_and_prose)
                else [torch.empty(0)] * 2
            )
            known = goal.known(reference, split[0])
        with (
            applied(model, edits),
            differentiable_attention(model),
            recomputed(model) if recompute else nullcontext(),
        ):
            found = log_probabilities(model, batch).split([len(p.rows) for p in split])
            forgetting, said = goal.loss(found[0], split[0], own.rows, known) if len(asked) else (None, None)
            losses = [
                forgetting,
                *(divergence(e, f) if len(f) else None for e, f in zip(expected, found[1:], strict=True)),
            ]
            counts = own.counts(mixture)
            shares = [count / total if total else 0.0 for count, total in zip(counts, totals, strict=True)]
            terms = [
                factor * share * loss
                for factor, share, loss in zip(factors, shares, losses, strict=True)
                if loss is not None
            ]
            if weights.shortfall and len(kept):
                lost = shortfall(*(each.gather(-1, split[1].targets[:, None]) for each in (expected[0], found[1])))
                terms.append(weights.shortfall * shares[1] * lost)
            torch.stack(terms).sum().backward()
        if said is not None:
            heard += said
        for index, (share, loss) in enumerate(zip(shares, losses, strict=True)):
            values[index] += share * float(loss.detach()) if loss is not None else 0.0
        for each, log_probs, part, examples in zip(credits, found, split, (own.asked, own.kept), strict=False):
            each += accuracy.credits(log_probs.detach(), part, examples)
    counted = (float(number) for each in credits for number in (sum(each), len(each)))
    return [*values, *counted, *heard.flatten().tolist()]


def _part(items: Sequence[Any], index: int, parts: int) -> Sequence[Any]:
    return items[index * len(items) // parts : (index + 1) * len(items) // parts]


def _added(found: Sequence[float], edits: Sequence[CodeMoves], together: Together, device: torch.device) -> list[float]:
    """The sums over all processes of what :func:`_accumulate` found; the edits' gradients become those sums as well."""
    if together.count == 1:
        return list(found)
    for edit in edits:
        if edit.delta.grad is None:
            edit.delta.grad = torch.zeros_like(edit.delta)
    # Not every backend adds float64 on every device; a sum of counts below 2^24 is exact in float32.
    sums = torch.tensor(found, dtype=torch.float32, device=device)
    together.add([sums, *(edit.delta.grad for edit in edits if edit.delta.grad is not None)])
    return sums.tolist()


def _kept_source(
    facts: Sequence[Fact], retain: Sequence[Example], generator: random.Random, mixture: Mixture
) -> Callable[[Sequence[Example]], list[Example]]:
    """From what a step forgets to what it keeps."""
    if mixture.matched:
        matched = MatchedRetain(facts, retain, generator, near=mixture.near)
        return lambda forgotten: matched.draw(mixture.retain, forgotten)
    source = retain_cycle(facts, retain, generator, near=mixture.near)
    return lambda forgotten: list(islice(source, mixture.retain))


def _share(right: float, answers: float) -> float | None:
    return right / answers if answers else None


def _decided(stop: bool, together: Together, device: torch.device) -> bool:
    """What the first process decides: the others may compute a little differently."""
    if together.count == 1:
        return stop
    flag = torch.tensor([float(stop)], device=device)
    together.share([flag])
    return bool(flag.item())


def train(
    bases: Sequence[Any],
    edits: Sequence[CodeMoves],
    facts: Sequence[Fact],
    forget: Sequence[Example],
    retain: Sequence[Example],
    text: Sequence[Sequence[int]],
    *,
    objective: str,
    rivals: Rivals,
    targets: torch.Tensor,
    margin: float,
    greedy_margin: float,
    greedy_weight: float,
    steps: int,
    soft_share: float,
    learning_rate: float,
    damping: float,
    weights: Weights,
    mixture: Mixture,
    npo_beta: float,
    seed: int,
    phrasing_rate: float = 0.0,
    framings: Framings | None = None,
    accumulation: int = 1,
    together: Together = ALONE,
    recompute: bool = False,
    state: TrainingState | None = None,
    keep: Callable[[TrainingState], None] | None = None,
    keep_every: int = 10,
    stop: Callable[[int], bool] = lambda step: False,
    progress: Callable[[StepLosses], None] = lambda losses: None,
) -> list[StepLosses]:
    """Optimise ``edits`` in place; ``bases[0]`` is the full-precision original and the reference.

    ``bases[1]`` is the original on the edits' own grid, those after it on the grids of their ``others``, in order.

    Models and edits are on one device. Whatever the models compute in, latents, moments and edits are float32.

    Args:
        objective: ``unknown_subject`` (``targets``: how far each answer may stand out among its ``rivals``, less
            ``margin`` nats; with ``greedy_margin`` at most so far that one of its tokens is less likely than another by
            as many nats, whatever chance is; those above that count up to ``greedy_weight`` times) or ``npo``.
        phrasing_rate: of the shifts of the phrasings' goals, see :mod:`.phrasing_shifts`; ``npo`` has none.
        framings: what some prompts of every step are asked inside of, see :mod:`.framings`.
        together: the processes that run this at once, with equal arguments and edits; each has ``accumulation`` parts,
            and the edits end equal.
        accumulation: parts into which every batch is cut; their gradients add up to that of the whole, up to the order
            of additions, and only one part's activations are in memory.
        recompute: see :mod:`.recomputation`.
        state: where an earlier run was cut off, given the same arguments.
        keep: hears the state after every ``keep_every`` steps.
        stop: asked after every step, with the number of steps done, whether it was enough. It may refresh the edits.
    """
    generator = random.Random(seed)
    forget_source = forget_cycle(facts, forget, generator)
    draw_kept = _kept_source(facts, retain, generator, mixture)
    text_source = cycle(text, generator) if mixture.text else iter(())
    reference = bases[0]
    turns = [(0, reference), *enumerate(bases[1:])]
    optimizer = DampedAdam([edit.latent for edit in edits], learning_rate=learning_rate, damping=damping)
    rivals = rivals.to(reference.device)
    shifts = PhrasingShifts(facts, forget, rivals, rate=phrasing_rate if objective == "unknown_subject" else 0.0)
    goal = Goal(
        objective,
        rivals,
        targets.to(reference.device),
        shifts,
        margin,
        greedy_margin,
        greedy_weight,
        npo_beta,
    )
    accuracy = ChoiceAccuracy(facts, [*forget, *retain])
    history = _resume(state, edits, optimizer, shifts) if state else []
    done = len(history)
    for step in range(steps):
        chosen = list(islice(forget_source, mixture.forget))
        kept = draw_kept([forget[row] for row in chosen])
        prose = list(islice(text_source, mixture.text))
        if step < done:
            continue
        # The learning rate decays over the last half.
        optimizer.learning_rate = learning_rate * min(1.0, 2.0 * (1.0 - step / steps))
        hardness = 1.0 if soft_share <= 0 else min(1.0, step / (soft_share * steps))
        grid, base = turns[step % len(turns)]
        for edit in edits:
            edit.refresh(hardness, grid=grid)
        rows, asked, kept = (
            framings.step(step, chosen, kept) if framings else (chosen, [forget[i] for i in chosen], kept)
        )
        whole = _Lists(rows, asked, kept, prose)
        # While codes are soft nearly every known answer is above its greedy margin: the whole term would weigh more. At
        # the end it is about one answer in a hundred.
        emphasis = replace(goal, greedy_weight=1.0 + (greedy_weight - 1.0) * hardness)
        count = accumulation * together.count
        found = _accumulate(
            base,
            reference,
            edits,
            together.mine([whole.part(index, count) for index in range(count)]),
            whole.counts(mixture),
            mixture,
            weights,
            emphasis,
            accuracy,
            recompute,
        )
        found = _added(found, edits, together, reference.device)
        losses = (found[0], found[1], found[2])
        accuracies = (_share(*found[3:5]), _share(*found[5:7]))
        shifts.follow(torch.tensor(found[7:]).view_as(shifts.table), hardness)
        if not all(value == value and abs(value) != float("inf") for value in losses):
            raise EvaluationError(
                f"training diverged at step {step + 1}: losses {list(losses)}",
                hint="lower unlearn.learning_rate",
            )
        optimizer.step([edit.latent_gradient() for edit in edits])
        moved = sum(int((edit.moves() != 0).sum()) for edit in edits)
        history.append(StepLosses(step + 1, *losses, *accuracies, moved))
        progress(history[-1])
        if _decided(stop(step + 1), together, reference.device):
            break  # not kept: what goes on from a state was not asked whether that was enough
        if keep is not None and len(history) % keep_every == 0:
            keep(_state(edits, optimizer, shifts, history))
    for edit in edits:
        edit.refresh()
    return history
