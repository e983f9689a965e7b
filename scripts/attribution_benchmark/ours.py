"""Our side of the attribution benchmark: gguf_forget's edge scores of a plain Hugging Face model."""

from __future__ import annotations

from attribution_benchmark.child import Edges, Loaded, Request, serve
from attribution_benchmark.work import Prompts, Shape, random_model

from gguf_forget.circuit.edges import score_edges
from gguf_forget.circuit.inputs import metric as pair_metric
from gguf_forget.circuit.inputs import pair_batches
from gguf_forget.facts.corruption import Pair


def _load(shape: Shape) -> Loaded:
    model = random_model(shape)

    def as_pairs(pairs: list[Prompts]) -> list[Pair]:
        return [Pair(p.clean, p.corrupted, p.answer, p.distractors, fact=n) for n, p in enumerate(pairs)]

    def score(pairs: list[Prompts], request: Request) -> Edges:
        found = score_edges(model, as_pairs(pairs), integration_steps=request.steps, batch_size=request.batch_size)
        return found

    def metric(pairs: list[Prompts]) -> list[float]:
        (batch,) = pair_batches(model, as_pairs(pairs), len(pairs))
        return pair_metric(model, batch.clean, batch).tolist()

    return Loaded(score, metric)


if __name__ == "__main__":
    serve(_load)
