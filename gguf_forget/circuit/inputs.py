"""From pairs of prompts to input embeddings, and from embeddings to the metric L.

L is the logit of the answer's first token minus the mean logit of the distractors' first tokens, read at the
last prompt token; for free text, the sum of the answer tokens' log-probabilities.

Shapes: P pairs in a batch, T tokens (right-padded), d_model, V vocabulary, C tokens compared, A answer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gguf_forget.facts.corruption import Pair
from gguf_forget.facts.tokens import pad


@dataclass(frozen=True)
class PairBatch:
    """Clean and corrupted input embeddings [P, T, d_model]; mask int64 [P, T], 1 on real tokens."""

    clean: torch.Tensor
    corrupted: torch.Tensor
    mask: torch.Tensor
    pairs: tuple[Pair, ...]


def pair_batches(model: Any, pairs: Sequence[Pair], size: int) -> Iterator[PairBatch]:
    """Batches of at most ``size`` pairs, those of similar length together so that little padding is computed."""
    embed = model.get_input_embeddings()
    device = embed.weight.device
    ordered = sorted(pairs, key=lambda pair: len(pair.clean))
    for start in range(0, len(ordered), size):
        batch = tuple(ordered[start : start + size])
        ids, mask = pad([pair.clean for pair in batch])
        corrupted_ids, _ = pad([pair.corrupted for pair in batch])
        with torch.no_grad():
            clean = embed(torch.from_numpy(ids).to(device))
            corrupted = embed(torch.from_numpy(corrupted_ids).to(device))
            for row, pair in enumerate(batch):
                if pair.span is not None:
                    stand_ins = embed(torch.tensor(pair.stand_ins, device=device))
                    corrupted[row, pair.span[0] : pair.span[1]] = stand_ins.mean(dim=0)
        yield PairBatch(clean, corrupted, torch.from_numpy(mask).to(device), batch)


def _capped(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Logits as the model's own head gives them: Gemma squeezes them into (-cap, cap)."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _accurate(logits: torch.Tensor) -> torch.Tensor:
    """At least float32: sums of hundreds of nats have steps of whole ones in bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _logit_differences(model: Any, last: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
    """[P] from the final hidden states at the last prompt token, [P, d_model]. Only 1 + distractors logits each."""
    head = model.get_output_embeddings()
    ids, present = pad([(pair.answer, *pair.distractors) for pair in pairs])
    tokens = torch.from_numpy(ids).to(last.device)  # [P, C]
    logits = torch.einsum("pcd,pd->pc", head.weight[tokens], last)
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias[tokens]
    logits = _accurate(_capped(model, logits))
    weights = -torch.from_numpy(present).to(logits)
    weights /= torch.tensor([len(pair.distractors) for pair in pairs]).to(logits)[:, None]
    weights[:, 0] = 1.0
    return (logits * weights).sum(dim=-1)


def _answer_log_probabilities(model: Any, states: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
    """[P] from the final hidden states of whole prompts, [P, T, d_model]. All V logits, but only where needed."""
    lengths = [len(pair.answer_tokens) for pair in pairs]
    rows = [row for row, length in enumerate(lengths) for _ in range(length)]
    columns = [len(pair.clean) - length + i for pair, length in zip(pairs, lengths, strict=True) for i in range(length)]
    targets = torch.tensor([token for pair in pairs for token in pair.answer_tokens], device=states.device)
    logits = _accurate(_capped(model, model.get_output_embeddings()(states[rows, columns])))  # [sum of A, V]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return -torch.stack([part.sum() for part in losses.split(lengths)])


def metric(model: Any, embeddings: torch.Tensor, batch: PairBatch) -> torch.Tensor:
    """L of every pair, [P], with ``embeddings`` [P, T, d_model] as the input; logits only where L needs them."""
    states = model.base_model(inputs_embeds=embeddings, attention_mask=batch.mask, use_cache=False).last_hidden_state
    free = [row for row, pair in enumerate(batch.pairs) if pair.answer_tokens]
    choice = [row for row, pair in enumerate(batch.pairs) if not pair.answer_tokens]
    parts = []
    if choice:
        last = states[choice, [len(batch.pairs[row].clean) - 1 for row in choice]]
        parts.append(_logit_differences(model, last, [batch.pairs[row] for row in choice]))
    if free:
        parts.append(_answer_log_probabilities(model, states[free], [batch.pairs[row] for row in free]))
    order = torch.tensor(choice + free, device=states.device).argsort()
    return torch.cat(parts)[order]
