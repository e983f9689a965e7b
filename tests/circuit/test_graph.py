"""Names, numbering and real edges of the graph, by hand."""

from __future__ import annotations

import pytest

from gguf_forget.circuit.graph import Graph

GROUPED = Graph(layers=2, heads=2, groups=1, parallel=False)


def test_names_in_the_order_of_rows_and_columns() -> None:
    assert GROUPED.sources == ("embedding", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    first = ("a0.h0.q", "a0.h1.q", "a0.g0.k", "a0.g0.v", "m0")
    second = ("a1.h0.q", "a1.h1.q", "a1.g0.k", "a1.g0.v", "m1")
    assert GROUPED.destinations == (*first, *second, "logits")


@pytest.mark.parametrize("parallel", [False, True])
def test_numbers_are_those_of_the_names(parallel: bool) -> None:
    graph = Graph(layers=3, heads=4, groups=2, parallel=parallel)
    for layer in range(3):
        assert graph.sources[graph.head(layer, 3)] == f"a{layer}.h3"
        assert graph.sources[graph.mlp(layer)] == f"m{layer}"
        assert graph.destinations[graph.attention_input(layer, "q", 3)] == f"a{layer}.h3.q"
        assert graph.destinations[graph.attention_input(layer, "k", 1)] == f"a{layer}.g1.k"
        assert graph.destinations[graph.attention_input(layer, "v", 0)] == f"a{layer}.g0.v"
        assert graph.destinations[graph.mlp_input(layer)] == f"m{layer}"
    assert graph.destinations[graph.logits] == "logits"


@pytest.mark.parametrize("parallel", [False, True])
def test_an_edge_is_real_when_its_source_writes_first(parallel: bool) -> None:
    graph = Graph(layers=3, heads=4, groups=2, parallel=parallel)

    def written(name: str) -> float:
        """When a source has written, in layers; attention writes in the first half of a layer, MLPs in the second."""
        return 0.0 if name == "embedding" else int(name[1:].split(".")[0]) + (0.4 if name[0] == "a" else 0.9)

    def read(name: str) -> float:
        if name == "logits":
            return 9.0
        return int(name[1:].split(".")[0]) + (0.5 if name[0] == "m" and not parallel else 0.1)

    for u, source in enumerate(graph.sources):
        for v, destination in enumerate(graph.destinations):
            assert bool(graph.mask[u, v]) == (written(source) < read(destination)), (source, destination)
    assert int(graph.mask.sum()) == 16 * 1 + sum(
        (1 + 5 * layer) * 8 + 1 + 5 * layer + (0 if parallel else 4) for layer in range(3)
    )
