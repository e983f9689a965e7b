"""Edge, node and neuron scores the slow way, from the definitions: one unpadded pair at a time.

Every destination gets a leaf of its own: zeros added to the residual stream where that destination alone reads
it (the projection is computed again from norm(residual + leaf), and only the head's own rows are taken). Sources
are read by ablation: what the output projection gives with a head less what it gives without.

Nothing of the package is used. Shapes: T tokens, d_model, U sources, V destinations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Places:
    """Where a layer's parts are; ``rows(kind, head)`` are the head's rows of the output of ``projection[kind]``."""

    attention_norm: Any | None
    projection: dict[str, Any]
    rows: Callable[[str, int], slice]
    output: Any
    post_attention: Any | None
    mlp_entry: Any
    down: Any
    mlp_block: Any


def places(model: Any) -> tuple[list[Places], Any, dict[str, int]]:
    """Each layer's places, the final norm, and the numbers of heads and groups and the head size."""
    config = model.config
    kind = config.model_type
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    starts = {"q": 0, "k": heads, "v": heads + groups}

    def separate(_kind: str, head: int) -> slice:
        return slice(head * size, (head + 1) * size)

    def blocks(kind: str, head: int) -> slice:
        return slice((starts[kind] + head) * size, (starts[kind] + head + 1) * size)

    def interleaved(kind: str, head: int) -> slice:
        start = (3 * head + "qkv".index(kind)) * size
        return slice(start, start + size)

    found = []
    if kind == "gpt2":
        for layer in model.transformer.h:
            fused = dict.fromkeys("qkv", layer.attn.c_attn)
            found.append(
                Places(layer.ln_1, fused, blocks, layer.attn.c_proj, None, layer.ln_2, layer.mlp.c_proj, layer.mlp)
            )
        final = model.transformer.ln_f
    elif kind == "gpt_neox":
        for layer in model.gpt_neox.layers:
            fused = dict.fromkeys("qkv", layer.attention.query_key_value)
            norms = layer.input_layernorm, layer.post_attention_layernorm
            down = layer.mlp.dense_4h_to_h
            found.append(Places(norms[0], fused, interleaved, layer.attention.dense, None, norms[1], down, layer.mlp))
        final = model.gpt_neox.final_layer_norm
    else:
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            if kind == "phi3":
                projection, rows = dict.fromkeys("qkv", attention.qkv_proj), blocks
            else:
                projection, rows = {k: getattr(attention, f"{k}_proj") for k in "qkv"}, separate
            if kind == "olmo2":
                norms = (None, layer.post_attention_layernorm, mlp, layer.post_feedforward_layernorm)
            elif kind.startswith("gemma"):
                before, after = layer.input_layernorm, layer.post_attention_layernorm
                norms = (before, after, layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm)
            else:
                norms = (layer.input_layernorm, None, layer.post_attention_layernorm, mlp)
            found.append(
                Places(norms[0], projection, rows, attention.o_proj, norms[1], norms[2], mlp.down_proj, norms[3])
            )
        final = model.model.norm
    return found, final, {"heads": heads, "groups": groups, "size": size}


@contextmanager
def hooks(functions: list[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, kind, function in functions:
            handle = getattr(module, f"register_forward_{kind}hook")(function)
            stack.callback(handle.remove)
        yield


def metric(model: Any, embeddings: torch.Tensor, pair: Any) -> torch.Tensor:
    logits = model(inputs_embeds=embeddings[None]).logits[0]
    if pair.answer_tokens:
        before = logits[-len(pair.answer_tokens) :].log_softmax(dim=-1)
        return sum(row[token] for row, token in zip(before, pair.answer_tokens, strict=True))
    return logits[-1, pair.answer] - sum(logits[-1, wrong] for wrong in pair.distractors) / len(pair.distractors)


def embeddings(model: Any, pair: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and corrupted, [T, d_model] each."""
    embed = model.get_input_embeddings()
    clean, corrupted = embed(torch.tensor(pair.clean)), embed(torch.tensor(pair.corrupted)).clone()
    if pair.span is not None:
        corrupted[pair.span[0] : pair.span[1]] = embed(torch.tensor(pair.stand_ins)).mean(dim=0)
    return clean, corrupted


@dataclass
class Run:
    """``written``: what every source adds to the residual stream [T, d_model]; ``final``: the whole stream."""

    metric: float
    written: list[torch.Tensor]
    final: torch.Tensor
    neurons: list[torch.Tensor]  # [T, d_ff] a layer
    attention_blocks: list[torch.Tensor]
    mlp_blocks: list[torch.Tensor]


def run(model: Any, x: torch.Tensor, pair: Any) -> Run:
    layers, final, sizes = places(model)
    heads: list[list[torch.Tensor]] = []
    found: dict[str, list[torch.Tensor]] = {"mlp": [], "neurons": [], "final": [], "attention": []}

    def read_heads(layer: Places) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            whole = module.forward(inputs[0])
            stretch = 1.0 if layer.post_attention is None else layer.post_attention.forward(whole) / whole
            found["attention"].append((whole * stretch)[0])
            parts = []
            for head in range(sizes["heads"]):
                without = inputs[0].clone()
                without[..., head * sizes["size"] : (head + 1) * sizes["size"]] = 0
                parts.append(((whole - module.forward(without)) * stretch)[0])
            heads.append(parts)

        return hook

    functions: list[tuple[Any, str, Callable[..., Any]]] = []
    for layer in layers:
        functions.append((layer.output, "", read_heads(layer)))
        functions.append((layer.mlp_block, "", lambda m, i, output: found["mlp"].append(output[0])))
        functions.append((layer.down, "pre_", lambda m, inputs: found["neurons"].append(inputs[0][0])))
    functions.append((final, "pre_", lambda m, inputs: found["final"].append(inputs[0][0])))
    with torch.no_grad(), hooks(functions):
        value = float(metric(model, x, pair))
    written = [x]
    for parts, mlp in zip(heads, found["mlp"], strict=True):
        written += [*parts, mlp]
    return Run(value, written, found["final"][0], found["neurons"], found["attention"], found["mlp"])


@dataclass
class Leaves:
    """One zero leaf a destination, in the order of V; the last is the logits'."""

    leaves: list[torch.Tensor] = field(default_factory=list)
    functions: list[tuple[Any, str, Callable[..., Any]]] = field(default_factory=list)

    def new(self, like: torch.Tensor) -> torch.Tensor:
        self.leaves.append(torch.zeros_like(like).requires_grad_(True))
        return self.leaves[-1]


def leaves_for(model: Any, like: torch.Tensor) -> Leaves:
    layers, final, sizes = places(model)
    found = Leaves()

    def added(leaf: torch.Tensor) -> Callable[..., Any]:
        return lambda module, inputs: (inputs[0] + leaf[None], *inputs[1:])

    def of_layer(layer: Places) -> None:
        stream: list[torch.Tensor] = []
        if layer.attention_norm is not None:
            found.functions.append(
                (layer.attention_norm, "pre_", lambda m, inputs: stream.clear() or stream.append(inputs[0]))
            )
        own = [("q", head) for head in range(sizes["heads"])]
        own += [(kind, group) for kind in "kv" for group in range(sizes["groups"])]
        leaf = {place: found.new(like) for place in own}

        def recompute(kinds: str) -> Callable[..., torch.Tensor]:
            def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
                output = output.clone()
                for kind, head in own:
                    if kind in kinds:
                        if layer.attention_norm is None:
                            again = module.forward(inputs[0] + leaf[kind, head])
                        else:
                            again = module.forward(layer.attention_norm.forward(stream[0] + leaf[kind, head]))
                        output[..., layer.rows(kind, head)] = again[..., layer.rows(kind, head)]
                return output

            return hook

        if len(set(layer.projection.values())) == 1:
            found.functions.append((layer.projection["q"], "", recompute("qkv")))
        else:
            found.functions.extend((layer.projection[kind], "", recompute(kind)) for kind in "qkv")
        found.functions.append((layer.mlp_entry, "pre_", added(found.new(like))))

    for layer in layers:
        of_layer(layer)
    found.functions.append((final, "pre_", added(found.new(like))))
    return found


def gradients(model: Any, x: torch.Tensor, pair: Any, replaced: list[Any] | None = None) -> list[torch.Tensor]:
    """dL/d(leaf) of every destination, V x [T, d_model]; zeros where nothing depends on it."""
    leaves = leaves_for(model, x)
    with hooks([*leaves.functions, *(replaced or [])]):
        value = metric(model, x, pair)
    found = torch.autograd.grad(value, leaves.leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g in found]


def aligned_sums(contributions: list[tuple[Any, torch.Tensor]], pairs: Any) -> torch.Tensor:
    """Mean over pairs of [T, ...] contributions whose positions are aligned at the ends of the prompts."""
    longest = max(len(pair.clean) for pair in pairs)
    total = torch.zeros(longest, *contributions[0][1].shape[1:], dtype=torch.float64)
    for pair, contribution in contributions:
        total[longest - len(pair.clean) :] += contribution / len(pairs)
    return total


def edge_scores(model: Any, pairs: Any, steps: int, *, variant: str = "inputs") -> torch.Tensor:
    """[T, U, V]: every pair of source and destination, real edge or not."""
    layers, _, sizes = places(model)
    contributions = []
    for pair in pairs:
        clean, corrupted = embeddings(model, pair)
        runs = run(model, clean, pair), run(model, corrupted, pair)
        differences = [a - b for a, b in zip(runs[0].written, runs[1].written, strict=True)]
        for step in range(steps):
            alpha = (step + 0.5) / steps
            at_inputs = gradients(model, corrupted + alpha * (clean - corrupted), pair)
            by_source = [at_inputs] * len(differences)
            if variant == "activations":
                by_source = [at_inputs]
                for index, layer in enumerate(layers):
                    for block, values, count in (
                        (
                            layer.post_attention or layer.output,
                            [r.attention_blocks[index] for r in runs],
                            sizes["heads"],
                        ),
                        (layer.mlp_block, [r.mlp_blocks[index] for r in runs], 1),
                    ):
                        value = (alpha * values[0] + (1 - alpha) * values[1])[None]
                        replaced = (block, "", lambda m, i, o, value=value: value)
                        by_source += [gradients(model, clean, pair, [replaced])] * count
            scores = torch.zeros(len(clean), len(differences), len(at_inputs), dtype=torch.float64)
            for u, (difference, found) in enumerate(zip(differences, by_source, strict=True)):
                for v, gradient in enumerate(found):
                    scores[:, u, v] = (difference * gradient).sum(dim=-1) / steps
            contributions.append((pair, scores))
    return aligned_sums(contributions, pairs)


Function = tuple[Any, str, Callable[..., Any]]


def gradient_at(model: Any, x: torch.Tensor, pair: Any, where: Any | None, kind: str, value: Any) -> torch.Tensor:
    """dL/d(leaf) [T, ...] of zeros added to a module's output or input, or to the embeddings if there is none.

    ``value``, where given, takes the place of that output or input.
    """
    leaf: list[torch.Tensor] = []

    def add(found: torch.Tensor) -> torch.Tensor:
        found = found if value is None else value[None]
        leaf.append(torch.zeros_like(found[0]).requires_grad_(True))
        return found + leaf[0]

    if where is None:
        return torch.autograd.grad(metric(model, add(x[None])[0], pair), leaf)[0]
    function: Function = (where, "", lambda m, i, output: add(output))
    if kind == "input":
        function = (where, "pre_", lambda m, inputs: (add(inputs[0]), *inputs[1:]))
    with hooks([function]):
        return torch.autograd.grad(metric(model, x, pair), leaf)[0]


def interpolated_gradient(
    model: Any, pair: Any, steps: int, variant: str, where: Any, kind: str, ends: tuple[Any, Any]
) -> torch.Tensor:
    """Mean gradient at one place, its clean and corrupted values being ``ends`` for the variant "activations"."""
    clean, corrupted = embeddings(model, pair)
    total = torch.zeros(())
    for step in range(steps):
        alpha = (step + 0.5) / steps
        if variant == "inputs" or where is None:
            found = gradient_at(model, corrupted + alpha * (clean - corrupted), pair, where, kind, None)
        else:
            found = gradient_at(model, clean, pair, where, kind, alpha * ends[0] + (1 - alpha) * ends[1])
        total = total + found / steps
    return total


def node_scores(model: Any, pairs: Any, steps: int, *, variant: str = "inputs") -> torch.Tensor:
    """[T, U]"""
    layers, _, sizes = places(model)
    contributions = []
    for pair in pairs:
        clean, corrupted = (run(model, x, pair) for x in embeddings(model, pair))
        gradients = [interpolated_gradient(model, pair, steps, variant, None, "output", (None, None))]
        for index, layer in enumerate(layers):
            ends = clean.attention_blocks[index], corrupted.attention_blocks[index]
            block = layer.post_attention or layer.output
            gradients += [interpolated_gradient(model, pair, steps, variant, block, "output", ends)] * sizes["heads"]
            ends = clean.mlp_blocks[index], corrupted.mlp_blocks[index]
            gradients.append(interpolated_gradient(model, pair, steps, variant, layer.mlp_block, "output", ends))
        differences = [a - b for a, b in zip(clean.written, corrupted.written, strict=True)]
        by_source = [(d * g).sum(dim=-1) for d, g in zip(differences, gradients, strict=True)]
        contributions.append((pair, torch.stack(by_source, dim=-1)))
    return aligned_sums(contributions, pairs)


def neuron_scores(model: Any, pairs: Any, steps: int, *, variant: str = "inputs") -> torch.Tensor:
    """[T, L, d_ff]"""
    layers, _, _ = places(model)
    contributions = []
    for pair in pairs:
        clean, corrupted = (run(model, x, pair) for x in embeddings(model, pair))
        by_layer = []
        for index, layer in enumerate(layers):
            ends = clean.neurons[index], corrupted.neurons[index]
            gradient = interpolated_gradient(model, pair, steps, variant, layer.down, "input", ends)
            by_layer.append((ends[0] - ends[1]) * gradient)
        contributions.append((pair, torch.stack(by_layer, dim=1)))
    return aligned_sums(contributions, pairs)
