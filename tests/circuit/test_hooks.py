"""Hooks read and replace what they should, and leave the model as found, also when something breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attribution_oracle as oracle
import pytest
import torch
from tiny_families import family

from gguf_forget.circuit.edges import score_edges
from gguf_forget.circuit.hooks import frozen, hooked, recorded_activations, replaced_activations
from gguf_forget.circuit.neurons import score_neurons
from gguf_forget.circuit.nodes import score_nodes
from gguf_forget.facts.corruption import Pair

PAIRS = (
    Pair((3, 20, 31), (4, 20, 31), 42, (50, 51), 0),
    Pair((7, 8, 9, 10), (7, 8, 33, 10), 11, (12,), 1),
    Pair((13, 8), (14, 8), 11, (12,), 2),
)
IDS = torch.tensor([[3, 20, 31, 8], [4, 9, 31, 10]])
NAMES = ("llama-biases", "gemma3_text", "olmo2", "gpt2", "gpt_neox-parallel")


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    return family(request.param)


def state(model: Any) -> list[Any]:
    """Everything that scoring might leave behind. Hooks by identity, weights and outputs to the bit."""
    modes = [module.training for module in model.modules()]
    hooks = [
        (dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._backward_hooks), dict(m._backward_pre_hooks))
        for m in model.modules()
    ]
    weights = [(p.requires_grad, p.grad is None, p.detach().numpy().tobytes()) for p in model.parameters()]
    model.eval()
    with torch.no_grad():
        outputs = model(IDS).logits.numpy().tobytes()
    for module, training in zip(model.modules(), modes, strict=True):
        module.training = training
    return [modes, hooks, weights, outputs, torch.is_grad_enabled()]


def unusual(model: Any) -> None:
    """A state that is neither all-training nor all-frozen, with a hook of the user's own."""
    parameters = list(model.parameters())
    for index, parameter in enumerate(parameters):
        parameter.requires_grad_(index % 3 == 0)
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    model.get_output_embeddings().register_forward_hook(lambda m, i, output: None)


SCORERS = [score_edges, score_nodes, score_neurons]


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("variant", ["inputs", "activations"])
def test_scoring_leaves_no_trace(model: Any, scorer: Callable[..., Any], variant: str) -> None:
    unusual(model)
    before = state(model)
    told: list[int] = []
    scorer(model, PAIRS, integration_steps=1, variant=variant, batch_size=2, progress=told.append)
    assert told == [2, 1]
    assert state(model) == before


@pytest.mark.parametrize("scorer", SCORERS)
def test_an_exception_midway_leaves_no_trace(model: Any, scorer: Callable[..., Any]) -> None:
    """In the loop over batches, in the forward pass and in the backward pass."""
    unusual(model)
    before = state(model)

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer(model, PAIRS, integration_steps=1, progress=interrupt)
    assert state(model) == before

    calls = 0

    def break_down(where: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            nonlocal calls
            calls += 1
            if where == "forward" and calls == 3:
                raise ZeroDivisionError
            if where == "backward" and output.requires_grad:
                output.register_hook(lambda gradient: 1 / 0)

        return hook

    layers, _, _ = oracle.places(model)
    for where in ("forward", "backward"):
        handle = layers[1].down.register_forward_hook(break_down(where))
        with pytest.raises(ZeroDivisionError):
            scorer(model, PAIRS, integration_steps=2)
        handle.remove()
        assert state(model) == before


def test_scores_do_not_depend_on_the_state(model: Any) -> None:
    """Parameters that require gradients, training mode and a caller without gradients change nothing."""
    expected = score_edges(model, PAIRS).scores
    model.requires_grad_(True).train()
    with torch.no_grad():
        found = score_edges(model, PAIRS).scores
    assert torch.equal(found, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_is_undone_after_an_exception(model: Any) -> None:
    unusual(model)
    before = state(model)
    with torch.no_grad(), frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert torch.is_grad_enabled()
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), frozen(model):
        raise ZeroDivisionError
    assert state(model) == before


def test_recorded_activations_are_what_the_output_maps_read(model: Any) -> None:
    before = state(model)
    layers, _, sizes = oracle.places(model)
    heads: list[torch.Tensor] = []
    neurons: list[torch.Tensor] = []
    own = [(layer.output, "pre_", lambda m, inputs: heads.append(inputs[0])) for layer in layers]
    own += [(layer.down, "pre_", lambda m, inputs: neurons.append(inputs[0])) for layer in layers]
    with recorded_activations(model) as record:
        with oracle.hooks(own):
            model(IDS)
        assert len(record.heads) == len(record.neurons) == len(layers)
        for found, expected in zip(record.heads, heads, strict=True):
            assert found.shape == (*IDS.shape, sizes["heads"], sizes["size"])
            assert torch.equal(found.flatten(-2), expected)
        for found, expected in zip(record.neurons, neurons, strict=True):
            assert torch.equal(found, expected)
        first = record.neurons[0].clone()
        model(IDS.flip(0))
        assert len(record.neurons) == len(layers)
        assert torch.equal(record.neurons[0], first.flip(0))
    assert state(model) == before


def test_replaced_activations(model: Any) -> None:
    """Given values reach the output maps at the chosen places, all else is computed as before."""
    before = state(model)
    neurons = torch.tensor([1, 7, 3])
    values = torch.arange(6, dtype=torch.float64).reshape(2, 1, 3)
    heads = torch.tensor([2, 0])
    with torch.no_grad(), recorded_activations(model) as plain:
        model(IDS)
        own = [x.clone() for x in plain.neurons], [x.clone() for x in plain.heads]
    replacements = {"neurons": {1: (neurons, values)}, "heads": {0: (heads, torch.zeros(()))}}
    with torch.no_grad(), replaced_activations(model, **replacements), recorded_activations(model) as record:
        replaced = model(IDS).logits
    assert torch.equal(record.neurons[1][..., neurons], values.expand(2, 4, 3))
    assert not record.heads[0][:, :, heads].any()
    assert torch.equal(record.heads[0][:, :, [1, 3]], own[1][0][:, :, [1, 3]])
    assert not torch.equal(replaced, model(IDS).logits)
    same = {1: (neurons, own[0][1][..., neurons])}
    with torch.no_grad(), replaced_activations(model, neurons=same):
        assert torch.equal(model(IDS).logits, model(IDS).logits)
    assert state(model) == before


def test_replaced_activations_are_undone_after_an_exception(model: Any) -> None:
    before = state(model)
    replacement = {0: (torch.tensor([0]), torch.zeros(()))}
    with pytest.raises(ZeroDivisionError), replaced_activations(model, neurons=replacement, heads=replacement):
        raise ZeroDivisionError
    assert state(model) == before


def test_a_hook_that_cannot_be_set_takes_the_others_with_it(model: Any) -> None:
    before = state(model)
    layers, _, _ = oracle.places(model)
    with pytest.raises(AttributeError), hooked([(layers[0].down, "input", print), (None, "output", print)]):
        pass
    assert state(model) == before
