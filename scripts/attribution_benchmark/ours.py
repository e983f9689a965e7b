"""Our side of the attribution benchmark: gguf_forget's edge scores of a plain Hugging Face model."""

from __future__ import annotations

from attribution_benchmark.child import Edges, Loaded, Request, serve
from attribution_benchmark.work import Prompts, Shape, random_model

from gguf_forget.circuit.edges import score_edges
from gguf_forget.circuit.inputs import metric as pair_metric
from gguf_forget.circuit.inputs import pair_batches
from gguf_forget.facts.corruption import Pair


def _pairs(prompts: list[Prompts]) -> list[Pair]:
    return [Pair(p.clean, p.corrupted, p.answer, p.distractors, fact=number) for number, p in enumerate(prompts)]


def _load(shape: Shape) -> Loaded:
    model = random_model(shape)

    def score(prompts: list[Prompts], request: Request) -> Edges:
        found = score_edges(model, _pairs(prompts), integration_steps=request.steps, batch_size=request.batch_size)
        scores = found.scores.masked_fill(~found.graph.mask, float("nan")).numpy()
        return Edges(list(found.graph.sources), list(found.graph.destinations), scores)

    def metric(prompts: list[Prompts]) -> list[float]:
        (batch,) = pair_batches(model, _pairs(prompts), len(prompts))
        return pair_metric(model, batch.clean, batch).tolist()

    return Loaded(score, metric)


if __name__ == "__main__":
    serve(_load)
