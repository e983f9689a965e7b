"""The reference's side of the attribution benchmark: hannamw/EAP-IG on transformer-lens, as it is published.

Runs in the reference's own environment, with its ``src`` on the path. Its code is used unchanged, with three
things handed in from outside: the prompts as tokens in place of text, the CPU in place of its CUDA device,
and integration points in the middle of the intervals (see ``_Midpoints``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from attribution_benchmark.child import Edges, Loaded, Request, serve
from attribution_benchmark.work import Prompts, Shape, random_model


class _Midpoints(int):
    """A number of steps m, by which k / m is (k + 1/2) / m: the reference integrates at left ends, k / m."""

    def __rtruediv__(self, k: int) -> float:
        return (k + 0.5) / int(self)


def _lens(shape: Shape) -> Any:
    """The same weights in transformer-lens, nothing folded or centred, with the options that the reference needs."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_llama_weights

    common = {
        "n_layers": shape.layers,
        "d_model": shape.d_model,
        "d_mlp": shape.d_ff,
        "d_head": shape.d_model // shape.heads,
        "n_heads": shape.heads,
        "d_vocab": shape.vocabulary,
        "n_ctx": 1024,
        "eps": 1e-5,
        "device": "cpu",
        "use_split_qkv_input": True,
        "use_attn_result": True,
        "use_hook_mlp_in": True,
        "default_prepend_bos": False,
    }
    if shape.family == "gpt2":
        family = {"act_fn": "gelu_new", "normalization_type": "LN"}
        convert = convert_gpt2_weights
    else:
        family = {
            "act_fn": "silu",
            "normalization_type": "RMS",
            "positional_embedding_type": "rotary",
            "rotary_dim": shape.d_model // shape.heads,
            "rotary_adjacent_pairs": False,
            "rotary_base": 10000,
            "final_rms": True,
            "gated_mlp": True,
            "n_key_value_heads": shape.key_value_heads,
            "ungroup_grouped_query_attention": True,
        }
        convert = convert_llama_weights
    config = HookedTransformerConfig(**common, **family)
    model = HookedTransformer(config)
    model.load_and_process_state_dict(
        convert(random_model(shape), config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model


def _named(graph: Any, shape: Shape) -> Edges:
    """Scores by name, the reference's one key and value input per query head summed to one per group.

    An edge to a group is the sum over the query heads that read it: their gradients add up there.
    """
    scores = graph.scores.numpy().astype(np.float64)
    scores[~graph.real_edge_mask.numpy()] = np.nan
    sources, destinations, columns = ["embedding"], [], []
    column = 0
    for layer in range(shape.layers):
        sources += [f"a{layer}.h{head}" for head in range(shape.heads)] + [f"m{layer}"]
        names = [f"a{layer}.h{head}.q" for head in range(shape.heads)]
        names += [f"a{layer}.g{group}.{kind}" for kind in "kv" for group in range(shape.key_value_heads)]
        copies = shape.heads // shape.key_value_heads
        for name, width in zip(
            [*names, f"m{layer}"], [1] * shape.heads + [copies] * 2 * shape.key_value_heads + [1], strict=True
        ):
            destinations.append(name)
            columns.append(scores[:, column : column + width].sum(axis=1))
            column += width
    destinations.append("logits")
    columns.append(scores[:, column])
    return Edges(sources, destinations, np.stack(columns, axis=1))


def _load(shape: Shape) -> Loaded:
    import eap.attribute
    from eap.graph import Graph

    zeros = torch.zeros

    def zeros_without_cuda(*arguments: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return zeros(*arguments, device="cpu" if device == "cuda" else device, **options)

    def tokens(_model: Any, prompts: list[tuple[int, ...]], max_length: int | None = None) -> tuple:
        ids = torch.tensor(prompts)
        return ids, torch.ones_like(ids), torch.full((len(ids),), ids.shape[1]), ids.shape[1]

    torch.zeros = zeros_without_cuda
    eap.attribute.tokenize_plus = tokens
    model = _lens(shape)

    def difference(logits: torch.Tensor, label: list[Prompts]) -> torch.Tensor:
        last = logits[:, -1]
        return torch.stack(
            [row[p.answer] - row[list(p.distractors)].mean() for row, p in zip(last, label, strict=True)]
        )

    def loss(logits: torch.Tensor, _clean: torch.Tensor, _lengths: torch.Tensor, label: list[Prompts]) -> torch.Tensor:
        """-L, summed: the reference multiplies by corrupted minus clean, and divides by the number of pairs itself."""
        return -difference(logits, label).sum()

    def score(pairs: list[Prompts], request: Request) -> Edges:
        graph = Graph.from_model(model)
        starts = range(0, len(pairs), request.batch_size)
        batches = [pairs[start : start + request.batch_size] for start in starts]
        data = [([p.clean for p in batch], [p.corrupted for p in batch], batch) for batch in batches]
        steps = request.steps if request.own_points else _Midpoints(request.steps)
        eap.attribute.attribute(model, graph, data, loss, method="EAP-IG-inputs", ig_steps=steps, quiet=True)
        return _named(graph, shape)

    def metric(pairs: list[Prompts]) -> list[float]:
        with torch.inference_mode():
            return difference(model(torch.tensor([p.clean for p in pairs])), pairs).tolist()

    return Loaded(score, metric)


if __name__ == "__main__":
    serve(_load)
