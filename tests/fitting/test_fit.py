"""The loop on the tiny model: what it looks at, what it leaves behind, and that answers come closer."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from libggml_oracle import dequantize, quantize
from test_pipeline import facts

from gguf_forget.errors import EvaluationError
from gguf_forget.facts.tokens import Tokenize, encode_facts
from gguf_forget.fitting import fit as fit_module
from gguf_forget.fitting import objective
from gguf_forget.fitting.fit import MEMORY, FittedTensor, codes_of, fit, mean_losses
from gguf_forget.fitting.flips import MovableCodes
from gguf_forget.fitting.layout import Layout
from gguf_forget.fitting.objective import Questions, batches, losses
from gguf_forget.grids import codec_for

PATHS = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj")
TEXT = [list(range(20, 60)), list(range(100, 140))]


def rounded(model: Any, kind: str = "Q4_0") -> tuple[Any, list[FittedTensor], dict[str, np.ndarray]]:
    """A copy with three maps in ``kind``, those maps, and their blocks."""
    copied, tensors, blocks = copy.deepcopy(model), [], {}
    for path in PATHS:
        module = copied.get_submodule(path)
        wanted = module.weight.numpy().copy()
        blocks[path] = quantize(kind, wanted)
        levels = codec_for(kind).decode(blocks[path])
        module.weight.data = torch.from_numpy(levels.values())
        everything = np.ones(wanted.shape, dtype=bool)
        codes = MovableCodes(levels, wanted, everything, np.zeros(wanted.shape, dtype=np.int8))
        tensors.append(FittedTensor(path, module, Layout(np.arange(len(wanted)), False), codes))
    return copied, tensors, blocks


@pytest.fixture(scope="module")
def unlearned(tiny_model: Any) -> Any:
    """The tiny model with a little noise: it answers otherwise."""
    model, generator = copy.deepcopy(tiny_model), torch.Generator().manual_seed(0)
    for path in PATHS:
        weight = model.get_submodule(path).weight
        weight.data += 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
    return model


def questions_of(unlearned: Any, tokenize: Tokenize, seed: int = 0, original: Any = None) -> Any:
    known = facts()
    return batches(unlearned, known, encode_facts(known, tokenize), TEXT, seed=seed, original=original)


def answered(model: Any, example: Any) -> float:
    """Log-probability of the answer to one prompt, by itself."""
    with torch.no_grad():
        log_probs = torch.log_softmax(model(torch.tensor([example.tokens])).logits[0].float(), dim=-1)
    places = range(example.answer_start, len(example.tokens))
    return sum(float(log_probs[place - 1, example.tokens[place]]) for place in places)


def huber(size: np.ndarray) -> np.ndarray:
    return np.where(size < objective.FAR, size**2 / 2, objective.FAR * (size - objective.FAR / 2))


def test_the_unlearned_model_itself_misses_nothing(tiny_model: Any, unlearned: Any, tiny_tokenize: Tokenize) -> None:
    asked = list(islice(questions_of(unlearned, tiny_tokenize), 3))
    own, others = mean_losses(unlearned, asked), mean_losses(tiny_model, asked)
    assert own.gap == pytest.approx(0, abs=1e-4)
    assert own.total < 1e-5
    assert min(others.forget, others.retain, others.text) > 1e-2


def test_the_gap_is_that_of_single_prompts(
    tiny_model: Any, unlearned: Any, tiny_tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = facts()
    forget = [e for e in encode_facts(known, tiny_tokenize) if known[e.fact].split == "forget"]
    monkeypatch.setattr(objective, "FORGET", len(forget))  # then a batch asks each of them once
    whole = losses(tiny_model, next(questions_of(unlearned, tiny_tokenize)))
    found = whole.losses
    assert float(whole.total) == pytest.approx(found.total, rel=1e-5)
    assert float(whole.gaps.mean()) == pytest.approx(found.gap, abs=1e-5)
    away = np.array([answered(tiny_model, example) - answered(unlearned, example) for example in forget])
    size = np.abs(away)
    assert size.max() > objective.FAR > np.median(size)  # both halves of the loss
    assert found.gap == pytest.approx(away.mean(), abs=1e-3)
    assert found.forget == pytest.approx(huber(size).mean(), abs=1e-3)
    assert found.lost == 0
    assert found.total == pytest.approx(found.forget + found.retain + found.text)


def test_what_kept_answers_lack_of_the_original_is_that_of_single_prompts(
    tiny_model: Any, unlearned: Any, tiny_tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = facts()
    kept = [e for e in encode_facts(known, tiny_tokenize) if known[e.fact].split == "retain"]
    relations = [known[e.fact].relation for e in kept]
    assert len(set(relations)) == 1  # then a batch asks each of them once
    monkeypatch.setattr(objective, "RETAIN", len(kept))
    whole = losses(unlearned, next(questions_of(unlearned, tiny_tokenize, original=tiny_model)))
    found = whole.losses
    lack = np.array([answered(tiny_model, example) - answered(unlearned, example) for example in kept])
    assert lack.min() < 0 < lack.max()  # an answer that is likelier than it was has nothing to lose
    lack = np.maximum(lack, 0)
    assert found.lost == pytest.approx(lack.mean(), abs=1e-3)
    weights = objective.AS_ORIGINAL
    expected = weights[0] * found.forget + weights[1] * found.retain + weights[2] * found.text
    assert found.total == pytest.approx(expected + weights[3] * huber(lack).mean(), rel=1e-3)
    assert whole.forget_weight == weights[0]
    assert float(whole.total) == pytest.approx(found.total, rel=1e-5)
    assert losses(tiny_model, next(questions_of(unlearned, tiny_tokenize, original=tiny_model))).losses.lost < 1e-4


@pytest.mark.parametrize("given_back", [False, True])
def test_gradients_and_curvatures_are_those_of_autograd(
    tiny_model: Any, unlearned: Any, tiny_tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch, given_back: bool
) -> None:
    seen = []
    monkeypatch.setattr(fit_module, "_candidates", lambda own, tensor: seen.append(own) or _none())
    monkeypatch.setattr(fit_module, "MULTIPLIER_STEP", 2.0)
    model, tensors, _ = rounded(unlearned)
    original = tiny_model if given_back else None
    asked: list[Questions] = list(islice(questions_of(unlearned, tiny_tokenize, original=original), 2))
    fit(model, tensors, iter(asked), steps=2)
    expected: list[list[Any]] = [[0, 0, 0] for _ in tensors]
    pushes = [np.zeros(8), np.zeros(8)]
    if given_back:
        pushes[1] = pushed(losses(model, asked[0]).gaps.detach().numpy(), asked[0].phrasings.numpy())
        assert np.abs(pushes[1]).max() > 0.1
    for questions, push in zip(asked, pushes, strict=True):
        for sums, values in zip(expected, by_autograd(model, tensors, questions, push), strict=True):
            for place, value in enumerate(values):
                sums[place] = MEMORY * sums[place] + (1 - MEMORY) * value
    for own, sums in zip(seen[-len(tensors) :], expected, strict=True):
        assert own.steps == 2
        for found, value in zip((own.gradient, own.read, own.given), sums, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-9)


def pushed(gaps: np.ndarray, phrasings: np.ndarray) -> np.ndarray:
    """What a nat of each phrasing's gap costs after one batch."""
    return np.array(
        [fit_module.MULTIPLIER_STEP * gaps[phrasings == n].mean() if n in phrasings else 0.0 for n in range(8)]
    )


def by_autograd(
    model: Any, tensors: list[FittedTensor], questions: Questions, push: np.ndarray
) -> list[tuple[Any, Any, Any]]:
    """Of every tensor the gradient, and sums of squares over all tokens of inputs and of outputs' gradients."""
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, given: Any, out: Any) -> None:
            out.retain_grad()
            inputs[name], outputs[name] = given[0], out

        return hook

    handles = [tensor.module.register_forward_hook(keep(tensor.name)) for tensor in tensors]
    for tensor in tensors:
        tensor.module.weight.requires_grad_(True)
    found = losses(model, questions)
    each = [float(push[number]) * gap for number, gap in zip(questions.phrasings.tolist(), found.gaps, strict=True)]
    weight = objective.AS_ORIGINAL[0] if questions.kept is not None else 1.0
    (found.total + weight * sum(each) / len(each)).backward()
    measured = []
    for tensor, handle in zip(tensors, handles, strict=True):
        handle.remove()
        weight = tensor.module.weight
        read, given = inputs[tensor.name].detach().flatten(0, -2), outputs[tensor.name].grad.flatten(0, -2)
        measured.append((weight.grad, (read**2).sum(0), (given**2).sum(0)))
        weight.grad = None
        weight.requires_grad_(False)
    return measured


def test_few_prompts_of_a_phrasing_are_not_outvoted(
    tiny_model: Any, unlearned: Any, tiny_tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phrasing that stays on one side costs more at every step, by as much as it is off."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(fit_module, "_candidates", lambda own, tensor: _none())  # nothing moves
    monkeypatch.setattr(fit_module._Multipliers, "of", watched(seen))
    model, tensors, _ = rounded(unlearned)
    asked = next(questions_of(unlearned, tiny_tokenize, original=tiny_model))
    assert len(asked.phrasings.unique()) > 1
    fit(model, tensors, iter([asked] * 3), steps=3)
    gaps = losses(model, asked).gaps.detach().numpy()
    assert len(seen) == 3
    for step, values in enumerate(seen):
        np.testing.assert_allclose(values, step * pushed(gaps, asked.phrasings.numpy())[: len(values)], atol=1e-5)
    monkeypatch.setattr(fit_module, "MULTIPLIER_STEP", 1e6)
    fit(model, tensors, iter([asked] * 2), steps=2)
    assert np.abs(seen[-1]).max() == objective.FAR


def watched(seen: list[np.ndarray]) -> Any:
    """``_Multipliers.of`` that also keeps all of them."""
    inner = fit_module._Multipliers.of

    def call(own: Any, phrasings: Any) -> Any:
        found = inner(own, phrasings)
        seen.append(own.values.numpy().copy())
        return found

    return call


def _none() -> Any:
    from gguf_forget.fitting.flips import Candidates

    empty = np.zeros(0, dtype=np.float32)
    return Candidates(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.int16), empty, empty)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_answers_come_closer_and_the_model_is_what_its_codes_say(
    tiny_model: Any, unlearned: Any, tiny_tokenize: Tokenize, kind: str
) -> None:
    model, tensors, blocks = rounded(unlearned, kind)
    judges = list(islice(questions_of(unlearned, tiny_tokenize, seed=1), 4))
    before = mean_losses(model, judges)
    told: list[int] = []
    fit(
        model,
        tensors,
        questions_of(unlearned, tiny_tokenize),
        steps=12,
        threads=2,
        progress=lambda step, found: told.append(step),
    )
    after = mean_losses(model, judges)
    assert told == list(range(1, 13))
    assert after.total < 0.9 * before.total
    assert after.forget < before.forget
    for tensor in tensors:
        raw = codec_for(kind).with_codes(blocks[tensor.name], codes_of(tensors)[tensor.name])
        values = dequantize(kind, raw, tensor.codes.codes.shape[1]).reshape(tensor.codes.codes.shape)
        np.testing.assert_array_equal(tensor.module.weight.numpy(), values)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())


def test_the_same_again_is_the_same(tiny_model: Any, unlearned: Any, tiny_tokenize: Tokenize) -> None:
    found = []
    for _ in range(2):
        model, tensors, _ = rounded(unlearned)
        fit(model, tensors, questions_of(unlearned, tiny_tokenize), steps=3)
        found.append(codes_of(tensors))
    for path in PATHS:
        np.testing.assert_array_equal(found[0][path], found[1][path])


def test_a_loss_that_is_not_finite_is_an_error(tiny_model: Any, unlearned: Any, tiny_tokenize: Tokenize) -> None:
    model, tensors, _ = rounded(unlearned)
    tensors[0].module.weight.data[0, 0] = float("nan")
    with pytest.raises(EvaluationError, match="not finite at step 1"):
        fit(model, tensors, questions_of(unlearned, tiny_tokenize), steps=1)
    assert not any(module._forward_hooks for module in model.modules())
