"""What no verdict can be given on, told before hours of training."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Tokenize, split_tokens
from gguf_forget.verification.gates import FULL_PRECISION
from gguf_forget.verification.probes import LONGEST_TEXT


def check_types(types: Sequence[str]) -> None:
    """Raises InputError for quantized files without the F16 that the gap of quantizing is measured against."""
    quantized = [kind for kind in types if kind not in FULL_PRECISION]
    if quantized and "F16" not in types:
        raise InputError(
            f"export.types: found {', '.join(types)}, needed F16 among them: what quantizing brings back is the "
            f"difference of {quantized[0]} from it",
            hint='add "F16"; gguf-forget export writes files that are not judged',
        )


def check_judged(headline: Sequence[str], facts: Sequence[Fact]) -> None:
    """Raises InputError where a relation that the verdict is on is not to be forgotten, or holds no phrasing out."""
    held_out: dict[str, bool] = {}
    for fact in facts:
        if fact.split == "forget":
            held_out[fact.relation] = held_out.get(fact.relation, False) or bool(fact.held_out_prompts)
    unknown = sorted(set(headline) - held_out.keys())
    if unknown:
        raise InputError(
            f"gates.headline: found {unknown[0]!r}, needed relations that are to be forgotten: "
            f"{', '.join(sorted(held_out))}",
            hint="correct the name in the recipe",
        )
    for relation in headline or held_out:
        if not held_out[relation]:
            raise InputError(
                f"no fact to forget of the relation {relation!r} has held_out_prompts, which the verdict is given on",
                hint="hold a phrasing out of training, or name the relations to judge in [gates] headline",
            )


def check_lengths(headline: Sequence[str], facts: Sequence[Fact], tokenize: Tokenize, max_new_tokens: int) -> None:
    """Raises InputError for answers that the verdict is on and that no greedy text is long enough to hold."""
    most = max(max_new_tokens, LONGEST_TEXT)
    lengths = {
        fact: max((len(split_tokens(prompt, fact.answer, tokenize)[1]) for prompt in fact.prompts), default=0)
        for fact in facts
        if fact.split == "forget" and (not headline or fact.relation in headline)
    }
    long = {fact: length for fact, length in lengths.items() if length > most}
    if long:
        first = next(iter(long))
        raise InputError(
            f"{len(long)} answers to forget, the first of the relation {first.relation!r}, have up to "
            f"{max(long.values())} tokens; greedy texts have at most {most}, and what is not seen whole is never said "
            "to be untold",
            hint=f"set verify.max_new_tokens to {max(long.values())}, or shorten the answers",
        )
