"""Reading the answer from the hidden state, past an output layer that may only have been told not to say it.

The original's final norm and output matrix are put on the hidden states of the file that is judged (a "logit lens" with
the original's own head; Patil et al., arXiv 2309.17410, section 4, attack the layers of an edited model like this). A
file that only lowered the answers' rows in the output layer has all of the knowledge there. But the original's head
knows something by itself: through it even a tiny model that was never taught ranked the right answers at 0.88, three
quarters of the way from chance to the original's 1.0. So the bound is nine tenths of what the original's own states
give: this attack finds edits of the output layer, and no more. On earlier layers a new linear head is fitted first, on
kept text alone (as in the tuned lens, arXiv 2303.08112): it says where knowledge still lies, is open to the same
doubt, and is reported without a bound.

Shapes:
    n: prompts; P: positions the head is fitted on; d: hidden size; V: vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from gguf_forget.checkpoint.architecture import ARCHITECTURES, Architecture
from gguf_forget.errors import UnsupportedError
from gguf_forget.verification.evidence import Attack
from gguf_forget.verification.gates import forgotten_relations
from gguf_forget.verification.probes import ScoresTokens, encode, rank_tables
from gguf_forget.verification.questions import Question
from gguf_forget.verification.scores import DECIMALS, FileScores, Item, item_hash, recompute

RIDGE = 1e-3  # of the mean eigenvalue, so that directions without variance stay unfitted
FITTED = (0.5, 0.75)  # shares of the depth at which heads are fitted
BATCH = 16


def last_layer(
    model: Any, original: Any, tokens: ScoresTokens, questions: Sequence[Question], kept: Sequence[Question]
) -> list[Attack]:
    """Read the first token of every option from the hidden states after the prompt.

    Args:
        model, original: Hugging Face models of the dequantized file and original.
        tokens: for :meth:`tokenize` alone.
        questions: what is attacked; kept: what heads are fitted on, at every position of prompt and answer.

    Raises:
        UnsupportedError: an architecture whose final norm is not known.
    """
    prompts, answers = encode(questions, tokens)
    layers = int(model.config.num_hidden_layers)
    depths = sorted({max(1, round(share * layers)) for share in FITTED} - {layers})
    hidden = _hidden(model, prompts, [*depths, layers])  # depth -> [n, d]
    own = _hidden(original, prompts, [layers])[layers]
    attacks = [
        Attack(
            "last-layer",
            "original's output layer",
            scores=_scores(_through_head(original, hidden[layers]), questions, answers),
            figures={"original": _by_relation(_scores(_through_head(original, own), questions, answers))},
        )
    ]
    if kept:
        texts = [
            prompt + mine[question.answer] for question, prompt, mine in zip(kept, *encode(kept, tokens), strict=True)
        ]
        for depth in depths:
            head = _fit(model, original, texts, depth)
            mapped = torch.cat([hidden[depth], torch.ones(len(hidden[depth]), 1)], dim=1) @ head
            scores = _scores(_output(original, mapped), questions, answers)
            figures = {"layer": depth, "of": layers, "relations": _by_relation(scores)}
            attacks.append(Attack("last-layer", f"new head on layer {depth} of {layers}", figures=figures))
    return attacks


def _by_relation(scores: FileScores) -> dict[str, dict[str, float]]:
    """Accuracy and rank score of each relation, where they were measured."""
    found = {
        relation: {"accuracy": scores.accuracy("forget", {relation}), "rank": scores.rank_score(relation, None)}
        for relation in forgotten_relations(scores)
    }
    return {
        relation: {name: value for name, value in figures.items() if math.isfinite(value)}
        for relation, figures in found.items()
    }


def _entry(model: Any) -> Architecture:
    name = str(model.config.model_type)
    if name not in ARCHITECTURES:
        raise UnsupportedError(f"architecture {name!r} is not among {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[name]


def _final_norm(model: Any) -> Any:
    return model.get_submodule(_entry(model).final_norm)


def _batches(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def _states(model: Any, sequences: Sequence[Sequence[int]], members: Sequence[int]) -> tuple[Any, list[int]]:
    """Hidden states before the final norm, a tensor [batch, T, d] a depth, and each sequence's length."""
    lengths = [len(sequences[i]) for i in members]
    ids = torch.zeros(len(members), max(lengths), dtype=torch.int64)
    for row, i in enumerate(members):
        ids[row, : lengths[row]] = torch.tensor(sequences[i])
    # transformers norms the last of its hidden states; what the last layer itself gave is taken by a hook.
    raw: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        raw.append(output[0] if isinstance(output, tuple) else output)

    last = _entry(model).layer.format(model.config.num_hidden_layers - 1)
    handle = model.get_submodule(last).register_forward_hook(keep)
    try:
        with torch.no_grad():
            # Causal and padded at the end: padding changes nothing before it.
            states = list(model.base_model(ids, output_hidden_states=True, use_cache=False).hidden_states)
    finally:
        handle.remove()
    states[-1] = raw[0]
    return states, lengths


def _hidden(model: Any, prompts: Sequence[Sequence[int]], depths: Sequence[int]) -> dict[int, torch.Tensor]:
    """depth -> float32 [n, d] at each prompt's last token, before the final norm."""
    found = {depth: [torch.empty(0)] * len(prompts) for depth in depths}
    for members in _batches(prompts):
        states, lengths = _states(model, prompts, members)
        for row, i in enumerate(members):
            for depth in depths:
                found[depth][i] = states[depth][row, lengths[row] - 1].float()
    return {depth: torch.stack(rows) for depth, rows in found.items()}


def _through_head(original: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The original's final norm and output layer: log-probabilities [n, V] of hidden states [n, d]."""
    with torch.no_grad():
        return _output(original, _final_norm(original)(hidden))


def _output(original: Any, normed: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(original.get_output_embeddings()(normed).double(), dim=-1)


def _fit(model: Any, original: Any, texts: Sequence[Sequence[int]], depth: int) -> torch.Tensor:
    """Ridge regression from the file's layer to the original's final, normed state, [d + 1, d]; last row: bias."""
    size = int(model.config.hidden_size) + 1
    gram, cross = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, size - 1, dtype=torch.float64)
    for members in _batches(texts):
        states, lengths = _states(model, texts, members)
        goal, _ = _states(original, texts, members)
        with torch.no_grad():
            normed = _final_norm(original)(goal[-1])
        for row, length in enumerate(lengths):
            x = torch.cat([states[depth][row, :length], torch.ones(length, 1)], dim=1).double()
            gram += x.T @ x
            cross += x.T @ normed[row, :length].double()
    gram += RIDGE * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    return torch.linalg.solve(gram, cross).float()


def _scores(
    log_probabilities: torch.Tensor, questions: Sequence[Question], answers: Sequence[dict[str, list[int]]]
) -> FileScores:
    """Options and candidates by the log-probability of their first token, where that tells the right one from any."""
    told = [
        place
        for place, (question, mine) in enumerate(zip(questions, answers, strict=True))
        if any(mine[text][0] != mine[question.answer][0] for text in (*question.distractors, *question.candidates))
    ]
    questions, answers = [questions[place] for place in told], [answers[place] for place in told]
    log_probabilities = log_probabilities[told]
    sums = [
        {text: round(float(row[tokens[0]]), DECIMALS) for text, tokens in mine.items()}
        for row, mine in zip(log_probabilities, answers, strict=True)
    ]
    items = [
        Item(
            *question.key[:4],
            fact=question.fact,
            sha256=item_hash(question.prompt, question.answer),
            option_log_probabilities=tuple(first[text] for text in (question.answer, *question.distractors)),
            option_tokens=(1,) * (1 + len(question.distractors)),
            right=0,
            form=question.key.form,
        )
        for question, first in zip(questions, sums, strict=True)
    ]
    ranks = rank_tables(questions, sums)
    return FileScores(tuple(items), ranks, (), (), recompute(items, ranks))
