"""Which questions a file is asked: every phrasing of facts, every row of public sets, with fixed seeds."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gguf_forget.facts.public_sets import LETTERS, SetItem, choice_prompt
from gguf_forget.facts.schema import Fact
from gguf_forget.verification.scores import GroupKey


@dataclass(frozen=True)
class Question:
    """One phrasing of one fact. ``candidates``, some of them options too, are for the rank score.

    Attributes:
        fact: what the question is about, a number; phrasings of one fact share it.
        distractors: wrong answers; none where only the right one is looked at.
        paraphrase: the right answer in other words.
        subject: as it stands in the prompt, where that is known.
        aliases: other names, of the answer and then of each distractor; empty where none has any.
    """

    key: GroupKey
    fact: int
    prompt: str
    answer: str
    distractors: tuple[str, ...]
    candidates: tuple[str, ...]
    paraphrase: str | None = None
    subject: str | None = None
    aliases: tuple[tuple[str, ...], ...] = ()

    def names(self) -> list[tuple[str, ...]]:
        """All that a text is read for: every name of the answer, then of each distractor."""
        options = (self.answer, *self.distractors)
        aliases = self.aliases or ((),) * len(options)
        return [(option, *others) for option, others in zip(options, aliases, strict=True)]


def plan_questions(
    facts: Sequence[Fact],
    *,
    retain_items: int | None = None,
    rank_candidates: int = 0,
    ranked_phrasings: int | None = None,
    trained_phrasings: int | None = None,
    seed: int = 0,
) -> list[Question]:
    """Every phrasing of every fact to forget, and of a seeded sample of those to keep; groups one by one.

    Args:
        retain_items: most subjects asked about in each phrasing of a kept relation, another sample for each
            phrasing; None: all.
        rank_candidates: most subjects, and so most candidates, of the rank score of a kept relation; below 2
            none is taken. Forgotten relations are always ranked in full.
        ranked_phrasings: most trained phrasings of a forgotten relation that are ranked, the first ones; None: all.
            Held-out phrasings always are.
        trained_phrasings: most trained phrasings of a relation that are asked, the first ones; None: all.
            Held-out phrasings are always asked.
        seed: of the samples. The same facts, caps and seed give the same questions for every file.
    """
    relations: dict[tuple[str, str], list[int]] = {}
    for index, fact in enumerate(facts):
        relations.setdefault((fact.relation, fact.split), []).append(index)
    questions: list[Question] = []
    # A wrong answer counts under its other names too, or what is compared with chance would lean.
    aliases: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)  # by relation and answer
    for fact in facts:
        aliases[fact.relation, fact.answer].update(dict.fromkeys(fact.aliases))
    for (relation, split), members in relations.items():
        for held_out in (False, True):
            count = max(len(facts[index].phrasings(held_out)) for index in members)
            if not held_out and trained_phrasings is not None:
                count = min(count, trained_phrasings)
            for phrasing in range(count):
                key = GroupKey(relation, split, held_out, phrasing)
                asked = [i for i in members if phrasing < len(facts[i].phrasings(held_out))]
                ranked = asked if held_out or ranked_phrasings is None or phrasing < ranked_phrasings else []
                if split == "retain":
                    # The name is spelled out, so that a further field of the key draws no other sample.
                    name = f"GroupKey({relation=}, {split=}, {held_out=}, {phrasing=})"
                    order = random.Random(f"{seed}/{name}").sample(asked, len(asked))
                    asked = sorted(order[:retain_items])
                    ranked = [i for i in order[:retain_items][:rank_candidates] if rank_candidates > 1]
                candidates = tuple(dict.fromkeys(facts[i].answer for i in sorted(ranked)))
                questions += [
                    Question(
                        key,
                        i,
                        facts[i].phrasings(held_out)[phrasing],
                        facts[i].answer,
                        facts[i].distractors,
                        candidates if i in ranked and len(candidates) > 1 else (),
                        subject=facts[i].subject,
                        aliases=tuple(
                            tuple(aliases.get((relation, text), ()))
                            for text in (facts[i].answer, *facts[i].distractors)
                        ),
                    )
                    for i in asked
                ]
    return questions


def plan_set(
    items: Sequence[SetItem], *, first_fact: int = 0, limit: int | None = None, seed: int | None = 0
) -> list[Question]:
    """Each row of a public set as a cloze, and where it shows its options as a multiple choice too.

    Args:
        first_fact: the number of the first row; the facts of several sets need different ones.
        limit: most rows of a relation, drawn with a fixed seed; None: all.
        seed: of the order in which options are shown; None: the right one first, for comparisons with others'
            code through :func:`choice_prompt`.

    Nobody but the trainer knows what was trained on, so every row counts as a held-out phrasing.
    """
    rows = sorted(_sample(items, limit))
    questions = []
    for form in ("cloze", "choice"):
        for row in rows:
            item, fact = items[row], first_fact + row
            # A subject that is not in the prompt may be a field of knowledge: then the question is about its own words.
            subject = item.subject if item.subject and item.subject in item.prompt else item.question.strip()
            key = GroupKey(item.relation, item.split, True, 0, form)
            if form == "cloze":
                names = (item.aliases, *((),) * len(item.distractors)) if item.aliases else ()
                questions.append(
                    Question(
                        key,
                        fact,
                        item.prompt,
                        item.answer,
                        item.distractors,
                        (),
                        item.paraphrase,
                        subject,
                        aliases=names,
                    )
                )
            elif item.options_shown:
                options = [item.answer, *item.distractors]
                if seed is not None:
                    random.Random(f"{seed}/{item.question}").shuffle(options)
                right = options.index(item.answer)
                letters = LETTERS[: len(options)]
                questions.append(
                    Question(
                        key,
                        fact,
                        choice_prompt(item.question, options),
                        letters[right],
                        tuple(letters[:right] + letters[right + 1 :]),
                        (),
                        subject=subject,
                    )
                )
    return sorted(questions, key=lambda question: (question.key.split, question.key.relation, question.key.form))


def _sample(items: Sequence[SetItem], limit: int | None) -> list[int]:
    relations: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        relations.setdefault((item.relation, item.split), []).append(index)
    chosen = []
    for name, members in relations.items():
        count = len(members) if limit is None else min(limit, len(members))
        chosen += random.Random(f"rows/{name}").sample(members, count)
    return chosen
