"""Corrupted prompts: equal length, another subject, the same phrasing; and a count of what has none."""

from __future__ import annotations

from gguf_forget.facts.corruption import Pairs, build_pairs
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import encode_facts

VOCABULARY: dict[str, int] = {}


def words(text: str) -> list[int]:
    """One token a word, numbered in the order of first sight."""
    return [VOCABULARY.setdefault(word, len(VOCABULARY)) for word in text.split()]


def fact(subject: str, answer: str, distractors: tuple[str, ...] = ("rome", "lima"), **changes: str) -> Fact:
    prompts = (f"capital of {subject} is", f"{subject} has capital")
    return Fact(
        subject,
        changes.get("relation", "capital"),
        answer,
        distractors,
        changes.get("split", "forget"),
        prompts,
    )


FACTS = (
    fact("norway", "oslo"),
    fact("japan", "tokyo", split="retain"),
    fact("kenya", "nairobi", split="retain"),
    fact("south korea", "seoul"),
    fact("north korea", "pyongyang"),
    fact("bosnia and herzegovina", "sarajevo"),  # no other subject of three words
    fact("nauru", "yaren", distractors=("yaren district", "yaren town")),  # all begin like the answer
    fact("france", "euro", relation="currency"),  # alone in its relation
)


def built(*, seed: int = 0, limit: int | None = None) -> Pairs:
    examples = encode_facts(FACTS, words)
    own = [example for example in examples if FACTS[example.fact].split == "forget"]
    return build_pairs(FACTS, own, words, pool=examples, seed=seed, limit=limit)


def test_pairs_and_counts() -> None:
    pairs = built()
    assert len(pairs.pairs) == 2 * 3  # norway, south korea, north korea in two phrasings
    assert pairs.unpaired == 2 * 2  # bosnia and herzegovina; the currency of france
    assert pairs.undecidable == 2  # nauru


def test_a_pair_differs_in_its_subject_alone() -> None:
    names = {number: word for word, number in VOCABULARY.items()} | {}
    for pair in built().pairs:
        names = {number: word for word, number in VOCABULARY.items()}
        clean, corrupted = ([names[token] for token in prompt] for prompt in (pair.clean, pair.corrupted))
        subject = FACTS[pair.fact].subject.split()
        assert len(clean) == len(corrupted)
        others = [other.subject.split() for other in FACTS if other.subject.split() != subject]
        start = clean.index(subject[0])
        place = slice(start, start + len(subject))
        assert clean[place] == subject
        assert corrupted[place] in others
        assert clean[: place.start] + clean[place.stop :] == corrupted[: place.start] + corrupted[place.stop :]


def test_answer_and_distractors_are_first_tokens() -> None:
    pair = built().pairs[0]
    assert pair.fact == 0
    assert pair.clean == tuple(words("capital of norway is"))
    assert pair.answer == words("oslo")[0]
    assert pair.distractors == tuple(sorted(words("rome lima")))
    shared = fact("chad", "ndjamena", distractors=("ndjamena beach", "quito", "quito sur"))
    facts = (shared, fact("peru", "lima"))
    found = build_pairs(facts, encode_facts(facts, words)[:1], words, pool=encode_facts(facts, words), seed=0)
    assert found.pairs[0].distractors == tuple(words("quito"))


def test_a_partner_with_the_same_first_answer_token_is_not_taken() -> None:
    facts = (fact("chad", "port moresby"), fact("mali", "port louis"), fact("peru", "cusco"))
    examples = encode_facts(facts, words)
    for seed in range(8):
        pairs = build_pairs(facts, examples[:1], words, pool=examples, seed=seed).pairs
        assert [pair.corrupted for pair in pairs] == [examples[4].prompt]


def test_the_seed_decides_and_the_limit_counts() -> None:
    assert built(seed=3) == built(seed=3)
    assert len({built(seed=seed).pairs for seed in range(8)}) > 1
    for seed in range(4):
        few = built(seed=seed, limit=5)
        assert len(few.pairs) + few.unpaired + few.undecidable == 5
    assert built(limit=1000) == built()
