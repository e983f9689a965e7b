"""Edge, node and neuron scores of every family against the slow definitions; what must hold between the levels."""

from __future__ import annotations

from typing import Any

import attribution_oracle as oracle
import pytest
import torch
from tiny_families import FAMILIES, family

from gguf_forget.circuit.edges import score_edges
from gguf_forget.circuit.hooks import recorded_activations, replaced_activations
from gguf_forget.circuit.inputs import metric, pair_batches
from gguf_forget.circuit.neurons import score_neurons
from gguf_forget.circuit.nodes import score_nodes
from gguf_forget.facts.corruption import Pair

PAIRS = (
    Pair((3, 20, 31), (4, 20, 31), 42, (50, 51), 0),
    Pair((7, 8, 9, 10, 11, 12), (7, 8, 33, 34, 11, 12), 11, (), 1, answer_tokens=(11, 12, 13)),
    Pair((5, 6, 7, 8, 9), (5, 6, 7, 8, 9), 40, (41, 42), 3, span=(1, 3), stand_ins=(30, 31, 32)),
)
STEPS = 2
POST_NORMS = ("gemma2", "gemma3_text", "olmo2")
VARIANTS = ("inputs", "activations")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return family(request.param)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To a relative 1e-8 of every single score; none of the expected ones is zero by accident."""
    assert found.dtype == torch.float64
    assert float(expected.abs().min()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_edges(model: Any, variant: Any) -> None:
    found = score_edges(model, PAIRS, integration_steps=STEPS, batch_size=2, variant=variant)
    expected = oracle.edge_scores(model, PAIRS, STEPS, variant=variant)
    real = found.graph.mask
    assert found.scores.shape == (len(found.graph.sources), len(found.graph.destinations)) == expected.shape[1:]
    assert_equal(found.scores[real], expected.sum(dim=0)[real])
    assert not found.scores[~real].any()
    kept_apart = score_edges(model, PAIRS, integration_steps=STEPS, batch_size=3, variant=variant, per_position=True)
    assert kept_apart.positions is not None
    torch.testing.assert_close(kept_apart.positions, expected * real, rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(kept_apart.scores, found.scores, rtol=1e-8, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nodes(model: Any, variant: Any) -> None:
    found = score_nodes(model, PAIRS, integration_steps=STEPS, batch_size=2, variant=variant, per_position=True)
    expected = oracle.node_scores(model, PAIRS, STEPS, variant=variant)
    assert found.positions is not None
    torch.testing.assert_close(found.positions, expected, rtol=1e-8, atol=1e-13)
    assert_equal(found.scores, expected.sum(dim=0))
    summed = score_nodes(model, PAIRS, integration_steps=STEPS, batch_size=3, variant=variant)
    assert summed.positions is None
    torch.testing.assert_close(summed.scores, found.scores, rtol=1e-8, atol=0)
    heads, graph = found.graph.heads, found.graph
    assert found.heads.shape == (graph.layers, heads)
    assert float(found.heads[1, 2]) == float(found.scores[graph.sources.index("a1.h2")])
    assert float(found.mlps[1]) == float(found.scores[graph.sources.index("m1")])


@pytest.mark.parametrize("variant", VARIANTS)
def test_neurons(model: Any, variant: Any) -> None:
    found = score_neurons(model, PAIRS, integration_steps=STEPS, batch_size=2, variant=variant, per_position=True)
    expected = oracle.neuron_scores(model, PAIRS, STEPS, variant=variant)
    assert found.positions is not None
    torch.testing.assert_close(found.positions, expected, rtol=1e-8, atol=1e-13)
    assert_equal(found.scores, expected.sum(dim=0))
    summed = score_neurons(model, PAIRS, integration_steps=STEPS, batch_size=3, variant=variant)
    assert summed.positions is None
    torch.testing.assert_close(summed.scores, found.scores, rtol=1e-8, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_node_is_the_sum_of_its_edges(model: Any, variant: Any) -> None:
    edges = score_edges(model, PAIRS, integration_steps=STEPS, variant=variant)
    nodes = score_nodes(model, PAIRS, integration_steps=STEPS, variant=variant)
    torch.testing.assert_close(edges.scores.sum(dim=1), nodes.scores, rtol=1e-8, atol=1e-13)
    assert edges.embedding_score == pytest.approx(nodes.embedding_score, rel=1e-9)
    assert edges.metric_gap == pytest.approx(nodes.metric_gap, rel=1e-9)


def test_an_mlp_is_the_sum_of_its_neurons_unless_a_norm_follows(model: Any) -> None:
    nodes = score_nodes(model, PAIRS, integration_steps=STEPS)
    neurons = score_neurons(model, PAIRS, integration_steps=STEPS)
    equal = torch.allclose(neurons.scores.sum(dim=1), nodes.mlps, rtol=1e-8, atol=0)
    assert equal == (model.config.model_type not in POST_NORMS)
    assert neurons.embedding_score == pytest.approx(nodes.embedding_score, rel=1e-9)


def test_what_the_sources_write_sums_to_the_residual_stream(model: Any) -> None:
    """The oracle's own check: every part of the stream has a source, apart from biases, which cancel."""
    for pair in PAIRS:
        clean, corrupted = (oracle.run(model, x, pair) for x in oracle.embeddings(model, pair))
        written = sum(a - b for a, b in zip(clean.written, corrupted.written, strict=True))
        stream = clean.final - corrupted.final
        if model.config.model_type == "gpt2":  # position embeddings are in both runs
            assert not torch.equal(clean.written[0], clean.final)
        torch.testing.assert_close(written, stream, rtol=1e-9, atol=1e-12)


def test_the_embedding_s_score_tends_to_the_whole_gap(model: Any) -> None:
    residuals = [score_nodes(model, PAIRS, integration_steps=m).completeness_residual for m in (4, 64)]
    assert residuals[1] < 0.01
    assert residuals[1] < residuals[0]


def test_a_layer_s_neurons_tend_to_what_patching_them_all_does(model: Any) -> None:
    """Completeness of the variant "activations": one layer's scores sum to the gap that its neurons make."""
    pairs = PAIRS[:1]
    found = score_neurons(model, pairs, integration_steps=24, variant="activations")
    batch = next(pair_batches(model, pairs, 1))
    with recorded_activations(model) as record:
        metric(model, batch.corrupted, batch)
        corrupted = list(record.neurons)
    clean = float(metric(model, batch.clean, batch))
    everything = torch.arange(corrupted[0].shape[-1])
    for layer, values in enumerate(corrupted):
        with replaced_activations(model, neurons={layer: (everything, values)}):
            patched = float(metric(model, batch.clean, batch))
        assert float(found.scores[layer].sum()) == pytest.approx(clean - patched, rel=0.01)
