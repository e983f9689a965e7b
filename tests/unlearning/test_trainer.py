"""Training on the random model: deterministic, inside its mask, on the grid, and in the right direction."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_edits import dense_copy, make_edits

from gguf_forget.errors import EvaluationError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.code_moves import CodeMoves
from gguf_forget.unlearning.framings import KINDS, Framings
from gguf_forget.unlearning.objectives import shortfall
from gguf_forget.unlearning.scoring import answer_log_probability, answers, greedy_lead, log_probabilities, pack
from gguf_forget.unlearning.trainer import Mixture, StepLosses, TrainingState, Weights, train
from gguf_forget.unlearning.unknown_subject import build_rivals, standing

FACTS = [
    Fact(f"s{i}", "capital" if i < 6 else "currency", "a", ("b",), "forget" if i < 3 else "retain", ("p",))
    for i in range(9)
]
EXAMPLES = [Example((300 + i, 20, 21, 400 + 2 * i, 401 + 2 * i), 3, i, 0) for i in range(9)]
FORGET, RETAIN = EXAMPLES[:3], EXAMPLES[3:]
TEXT = [[50 + (7 * i + 3 * k) % 200 for k in range(16)] for i in range(4)]


def run(bases: list[Any], edits: list[CodeMoves], forget: list[Example] = FORGET, **changes: Any) -> list[StepLosses]:
    arguments: dict[str, Any] = {
        "objective": "npo",
        "rivals": build_rivals(FACTS, FORGET),
        "targets": torch.full((len(FORGET),), -30.0),
        "margin": 0.0,
        "greedy_margin": 0.0,
        "greedy_weight": 1.0,
        "steps": 8,
        "soft_share": 0.0,
        "learning_rate": 0.4,
        "damping": 0.1,
        "weights": Weights(),
        "mixture": Mixture(forget=3, retain=4, text=2),
        "npo_beta": 0.1,
        "seed": 0,
    }
    return train(bases, edits, FACTS, forget, RETAIN, TEXT, **{**arguments, **changes})


def answer_nats(model: Any) -> torch.Tensor:
    with torch.no_grad():
        batch = pack(answers(FORGET))
        return answer_log_probability(log_probabilities(model, batch), batch)


def test_the_same_seed_gives_the_same_moves_bit_for_bit(tiny_model: Any) -> None:
    found = [make_edits() for _ in range(3)]
    histories = [run([tiny_model], edits, seed=seed) for edits, seed in zip(found, (4, 4, 5), strict=True)]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]
    for first, second in zip(found[0], found[1], strict=True):
        assert torch.equal(first.latent, second.latent)
        assert torch.equal(first.delta, second.delta)
    assert any(not torch.equal(a.delta, b.delta) for a, b in zip(found[0], found[2], strict=True))


@pytest.mark.parametrize("objective", ["npo", "unknown_subject"])
def test_forgetting_gets_better_and_the_weights_say_so(tiny_model: Any, objective: str) -> None:
    edits = make_edits()
    told: list[StepLosses] = []
    history = run([tiny_model], edits, objective=objective, steps=16, progress=told.append)
    assert told == history
    assert [losses.step for losses in history] == list(range(1, 17))
    assert history[0].retain == pytest.approx(0, abs=1e-5)
    assert history[0].text == pytest.approx(0, abs=1e-5)
    assert history[-1].moved > 0
    assert history[-1].forget < history[0].forget - 0.5
    edited = dense_copy(tiny_model, edits)  # what ships, without hooks
    assert float((answer_nats(edited) - answer_nats(tiny_model)).mean()) < -0.5


def test_each_answer_is_held_to_its_own_target(tiny_model: Any) -> None:
    """With the original's own standings as targets nothing is left to forget, whatever is drawn."""
    rivals = build_rivals(FACTS, FORGET)
    batch = pack(answers(FORGET))
    with torch.no_grad():
        own = standing(log_probabilities(tiny_model, batch), batch, rivals, range(len(FORGET)))
    assert len(set(own.tolist())) == len(FORGET)
    for seed in range(4):
        history = run(
            [tiny_model],
            make_edits(),
            objective="unknown_subject",
            targets=own + 2.0,
            margin=2.0,
            learning_rate=0.0,
            mixture=Mixture(forget=2, retain=4, text=2),
            seed=seed,
        )
        assert max(losses.forget for losses in history) < 1e-6


def test_no_answer_stays_the_likeliest_even_where_chance_is_to_give_it(tiny_model: Any) -> None:
    """Forgotten answers that the model gives, and targets that they already meet."""
    with torch.no_grad():
        said = [int(tiny_model(torch.tensor([e.prompt])).logits[0, -1].argmax()) for e in FORGET]
    forget = [Example((*e.prompt, token), len(e.prompt), e.fact, 0) for e, token in zip(FORGET, said, strict=True)]
    rivals = build_rivals(FACTS, forget)
    batch = pack(answers(forget))
    with torch.no_grad():
        found = log_probabilities(tiny_model, batch)
        targets = standing(found, batch, rivals, range(len(forget)))
        assert bool((greedy_lead(found, batch) > 0).all())
    leads = {}
    for greedy_margin in (0.0, 0.5):
        edits = make_edits()
        run(
            [tiny_model],
            edits,
            forget=forget,
            objective="unknown_subject",
            rivals=rivals,
            targets=targets,
            greedy_margin=greedy_margin,
            steps=40,
        )
        with torch.no_grad():
            leads[greedy_margin] = greedy_lead(log_probabilities(dense_copy(tiny_model, edits), batch), batch)
    assert bool((leads[0.0] > 0).any())
    assert bool((leads[0.5] < 0).all())


def test_the_retain_terms_hold_the_kept_answers(tiny_model: Any) -> None:
    def kept(weights: Weights) -> tuple[float, float]:
        history = run([tiny_model], make_edits(), steps=16, weights=weights)
        return history[-1].retain, history[-1].text

    free, held = kept(Weights(retain=0.0, text=0.0)), kept(Weights(retain=30.0, text=30.0))
    assert held[0] < 0.5 * free[0]
    assert held[1] < 0.5 * free[1]


def test_kept_answers_lose_less_with_a_weight_on_what_they_lose(tiny_model: Any) -> None:
    """While the divergence alone, which counts what they win as well, is weighed as before."""
    batch = pack(answers(RETAIN))

    def lost(weights: Weights) -> float:
        edits = make_edits()
        run([tiny_model], edits, steps=16, weights=weights)
        with torch.no_grad():
            before, after = (
                log_probabilities(model, batch).gather(-1, batch.targets[:, None])
                for model in (tiny_model, dense_copy(tiny_model, edits))
            )
        return float(shortfall(before, after))

    without, held = lost(Weights(retain=1.0, text=0.0)), lost(Weights(retain=1.0, text=0.0, shortfall=30.0))
    assert without > 0.01
    assert held < 0.5 * without


@pytest.mark.parametrize("soft_share", [0.0, 0.6])
def test_nothing_moves_outside_the_mask_and_the_bases_stay_bit_identical(tiny_model: Any, soft_share: float) -> None:
    bases = [copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)]
    edits = make_edits()
    for edit in edits[:3]:
        edit.allowed[:, ::2] = False
    edits[4].allowed[:] = False
    run(bases, edits, soft_share=soft_share)
    for edit in edits:
        assert edit.delta[~edit.allowed].eq(0).all()
        assert edit.latent[~edit.allowed].eq(0).all()
        moves = edit.moves()
        assert torch.equal(edit.delta.detach(), moves * edit.step)
        assert torch.equal(moves, moves.round())
        assert ((edit.lowest <= moves) & (moves <= edit.highest)).all()
    assert edits[4].delta.eq(0).all()
    assert sum(int(edit.delta.ne(0).sum()) for edit in edits) > 0
    for base in bases:
        for (name, own), original in zip(base.named_parameters(), tiny_model.parameters(), strict=True):
            assert torch.equal(own, original), name
            assert own.grad is None
        assert not any(module._forward_hooks for module in base.modules())


def test_a_floor_of_two_makes_no_single_step(tiny_model: Any) -> None:
    edits = make_edits(floor=2)
    run([tiny_model], edits, steps=12)
    sizes = torch.cat([edit.moves().abs().flatten() for edit in edits])
    assert set(sizes.int().tolist()) >= {0, 2}
    assert 1 not in sizes.int().tolist()


def test_without_a_floor_edits_of_any_size_are_trained(tiny_model: Any) -> None:
    edits = make_edits(floor=0)
    history = run([tiny_model], edits, steps=12, learning_rate=0.05)
    assert history[-1].forget < history[0].forget
    sizes = torch.cat([edit.moves().abs().flatten() for edit in edits])
    assert 0 < float(sizes[sizes > 0].median()) < 0.5  # whole moves would all be nothing


def test_bases_take_turns(tiny_model: Any) -> None:
    """The second base has every other step: with one that already forgot, its steps start from another loss."""
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.model.embed_tokens.weight[400:406] -= 0.3 * other.model.embed_tokens.weight[300:303].mean(dim=0)
    history = run([tiny_model, other], make_edits(), learning_rate=0.0, steps=6, mixture=Mixture(3, 6, 4, 1))
    for step, losses in enumerate(history):
        if step % 2 == 0:
            assert losses.retain == pytest.approx(0, abs=1e-5)
        else:
            assert losses.retain > 1e-4  # the reference is the first base, also for the second


class Seen:
    """In place of framings: what every step asks, left as it is."""

    def __init__(self, forget: list[Example]) -> None:
        self.forget, self.steps = forget, []

    def step(self, _number: int, rows: list[int], kept: list[Example]) -> tuple[Any, Any, Any]:
        asked = [self.forget[row] for row in rows]
        self.steps.append((asked, list(kept)))
        return rows, asked, kept


@pytest.mark.parametrize("matched", [True, False])
def test_matched_steps_keep_facts_in_the_phrasings_that_they_forget(tiny_model: Any, matched: bool) -> None:
    forget = [replace(example, phrasing=phrasing) for phrasing in (0, 1, 2) for example in FORGET]
    retain = [replace(example, phrasing=phrasing) for phrasing in (0, 1, 2) for example in RETAIN]
    seen = Seen(forget)
    mixture = Mixture(forget=1, retain=4, text=2, matched=matched)
    train(
        [tiny_model],
        make_edits(),
        FACTS,
        forget,
        retain,
        TEXT,
        objective="npo",
        rivals=build_rivals(FACTS, forget),
        targets=torch.zeros(len(forget)),
        margin=0.0,
        greedy_margin=0.0,
        greedy_weight=1.0,
        steps=6,
        soft_share=0.0,
        learning_rate=0.0,
        damping=0.1,
        weights=Weights(),
        mixture=mixture,
        npo_beta=0.1,
        seed=0,
        framings=seen,  # type: ignore[arg-type]
    )
    alike = [
        asked[0].phrasing == example.phrasing
        for asked, kept in seen.steps
        for example in kept
        if FACTS[example.fact].relation == "capital"
    ]
    assert len(alike) == 20
    assert all(alike) if matched else 0 < sum(alike) < 20


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_end_the_run(tiny_model: Any, bad: float) -> None:
    broken = copy.deepcopy(tiny_model)
    with torch.no_grad():
        broken.model.norm.weight[0] = bad
    with pytest.raises(EvaluationError, match="training diverged at step 1: losses"):
        run([broken], make_edits())
    assert not any(module._forward_hooks for module in broken.modules())


def framings(seed: int = 0) -> Framings:
    """Every prompt inside a framing; characters are tokens, so that the prompts are no longer those of ``EXAMPLES``."""
    return Framings(
        FACTS,
        FORGET,
        RETAIN,
        lambda text: [ord(character) for character in text],
        kinds=tuple(KINDS),
        share=1.0,
        chat=("<", ">"),
        seed=seed,
    )


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("objective", ["npo", "unknown_subject"])
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(tiny_model: Any, objective: str, framed: bool) -> None:
    whole, cut, resumed = make_edits(), make_edits(), make_edits()
    options: dict[str, Any] = {"objective": objective, "steps": 7, "soft_share": 0.6, "phrasing_rate": 0.3}
    options["framings"] = framings() if framed else None
    history = run([tiny_model, tiny_model], whole, **options)
    kept: list[TrainingState] = []

    def killed(losses: StepLosses) -> None:
        if losses.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([tiny_model, tiny_model], cut, keep=kept.append, keep_every=2, progress=killed, **options)
    assert [len(state.history) for state in kept] == [2, 4]
    assert bool(kept[-1].shifts.any()) is (objective == "unknown_subject")  # NPO has no goal
    told: list[StepLosses] = []
    again = run([tiny_model, tiny_model], resumed, state=kept[-1], progress=told.append, **options)
    assert again == history
    assert [losses.step for losses in told] == [5, 6, 7]  # nothing is computed twice
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one.latent, other.latent)
        assert torch.equal(one.delta, other.delta)


def test_the_step_that_was_enough_is_not_gone_on_from(tiny_model: Any) -> None:
    kept: list[TrainingState] = []
    options: dict[str, Any] = {"steps": 8, "keep": kept.append, "keep_every": 2, "stop": lambda step: step == 6}
    history = run([tiny_model], make_edits(), **options)
    assert len(history) == 6
    assert [len(state.history) for state in kept] == [2, 4]
    assert run([tiny_model], make_edits(), state=kept[-1], **options) == history  # and asks again


def test_a_step_tells_the_accuracy_of_what_it_saw(tiny_model: Any) -> None:
    """All three facts to forget are in every batch of three: the slow way over the whole set gives the same."""
    history = run([tiny_model], make_edits(), learning_rate=0.0, steps=2)
    credits = []
    with torch.no_grad():
        for example in FORGET:
            batch = pack(answers([example]))
            first = log_probabilities(tiny_model, batch)[0]
            others = {other.answer[0] for other in FORGET} - {example.answer[0]}
            credits.append(float(all(first[other] < first[example.answer[0]] for other in others)))
    assert [losses.forget_accuracy for losses in history] == [pytest.approx(sum(credits) / 3)] * 2
    parts = run([tiny_model], make_edits(), learning_rate=0.0, steps=2, accumulation=3)
    assert [(losses.forget_accuracy, losses.retain_accuracy) for losses in parts] == [
        (losses.forget_accuracy, losses.retain_accuracy) for losses in history
    ]


def first_moments(model: Any, **changes: Any) -> tuple[list[StepLosses], list[torch.Tensor]]:
    """Two steps whose retain terms pull too; Adam's first moment is made of the gradients alone."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.embed_tokens.weight[300:310] *= 1.2
    kept: list[TrainingState] = []
    history = run([model, other], make_edits(), steps=2, keep=kept.append, keep_every=2, **changes)
    return history, list(kept[-1].first)


@pytest.mark.parametrize("framed", [False, True])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_model: Any, framed: bool) -> None:
    asked, weights = framings() if framed else None, Weights(shortfall=20.0)
    _, whole = first_moments(tiny_model, framings=asked, weights=weights)
    _, without = first_moments(tiny_model, framings=asked)
    assert any(not torch.allclose(one, other, rtol=0.01) for one, other in zip(whole, without, strict=True))
    for parts in (3, 5):
        _, moments = first_moments(tiny_model, framings=asked, weights=weights, accumulation=parts)
        for one, other in zip(whole, moments, strict=True):
            assert float((other - one).norm() / one.norm()) < 1e-3


def test_framed_prompts_are_what_is_trained_on(tiny_model: Any) -> None:
    """Kept prompts are held in their framings, forgotten ones start from what the model says inside theirs."""
    plain, one, same, other = (
        first_moments(tiny_model, framings=asked, objective="unknown_subject")[0]
        for asked in (None, framings(), framings(), framings(seed=1))
    )
    assert one == same
    assert one != other
    assert one[0].forget != pytest.approx(plain[0].forget, rel=1e-3)
    assert one[1].retain != pytest.approx(plain[1].retain, rel=1e-3)
    assert one[1].text == pytest.approx(plain[1].text, rel=0.1)


def test_recomputed_activations_give_the_same_gradients(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0
    layer = type(tiny_model.model.layers[0])
    original = layer.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        return original(*arguments, **options)

    monkeypatch.setattr(layer, "forward", counted)
    history, moments = first_moments(tiny_model)
    once, passes = passes, 0
    again, recomputed = first_moments(tiny_model, recompute=True)
    layers = len(tiny_model.model.layers)
    assert passes == once + 2 * layers  # in each of two steps every layer once more
    assert again == history
    for one, other in zip(moments, recomputed, strict=True):
        assert torch.equal(one, other)
    assert not any("forward" in vars(module) for module in tiny_model.model.layers)


def test_a_bfloat16_model_trains_float32_masters_towards_the_same_losses(tiny_model: Any) -> None:
    half = copy.deepcopy(tiny_model).to(torch.bfloat16)
    kept: list[TrainingState] = []
    edits = make_edits()
    found = run([half], edits, objective="unknown_subject", keep=kept.append, keep_every=8)
    expected = run([tiny_model], make_edits(), objective="unknown_subject")
    for edit in edits:
        assert edit.latent.dtype == edit.delta.dtype == torch.float32
    for tensor in kept[-1].latents + kept[-1].first + kept[-1].second:
        assert tensor.dtype == torch.float32
    latents = torch.cat([latent.flatten() for latent in kept[-1].latents])
    assert not torch.equal(latents, latents.to(torch.bfloat16).float())  # finer than bfloat16 could hold
    for one, other in zip(found, expected, strict=True):
        assert one.forget == pytest.approx(other.forget, rel=0.1)
    assert found[-1].forget < found[0].forget


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graphics_card_gives_the_same_gradients(tiny_model: Any) -> None:
    device = torch.device("cuda")
    history, moments = first_moments(tiny_model)
    model, other = copy.deepcopy(tiny_model).to(device), copy.deepcopy(tiny_model).to(device)
    with torch.no_grad():
        other.model.embed_tokens.weight[300:310] *= 1.2
    kept: list[TrainingState] = []
    placed = [edit.to(device) for edit in make_edits()]
    found = run([model, other], placed, steps=2, keep=kept.append, keep_every=2)
    assert found[-1].forget == pytest.approx(history[-1].forget, rel=1e-3)
    for one, moment in zip(moments, kept[-1].first, strict=True):
        assert float((one - moment.cpu()).norm()) < 1e-3 * max(float(one.norm()), 1e-6)


def test_training_stops_when_told_to(tiny_model: Any) -> None:
    asked: list[int] = []

    def enough(step: int) -> bool:
        asked.append(step)
        return step == 3

    edits = make_edits()
    history = run([tiny_model], edits, stop=enough, soft_share=1.0)
    assert asked == [1, 2, 3]
    assert len(history) == 3
    for edit in edits:  # whole moves, although rounding had not set in yet
        assert torch.equal(edit.moves(), edit.moves().round())
        assert torch.equal(edit.delta.detach(), edit.moves() * edit.step)
