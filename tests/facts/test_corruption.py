"""Corrupted prompts: equal length, another subject, the same phrasing; and a count of what has none."""

from __future__ import annotations

import re
from dataclasses import replace

from gguf_forget.facts.corruption import Pairs, build_pairs, is_multiple_choice
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


def built(*, seed: int = 0, limit: int | None = None, mean_embedding: bool = True) -> Pairs:
    examples = encode_facts(FACTS, words)
    own = [example for example in examples if FACTS[example.fact].split == "forget"]
    return build_pairs(FACTS, own, words, pool=examples, seed=seed, limit=limit, mean_embedding=mean_embedding)


def test_a_limit_is_dealt_to_the_relations_by_the_square_root_of_their_prompts() -> None:
    cities = [("ca", "oslo"), ("cb", "rome"), ("cc", "lima"), ("cd", "bern"), ("ce", "kiev"), ("cf", "riga")]
    money = [("ma", "euro"), ("mb", "yen"), ("mc", "won")]
    facts = [Fact(s, "capital", a, ("paris",), "forget", tuple(f"{n} of {s} is" for n in "abc")) for s, a in cities]
    facts += [Fact(s, "currency", a, ("rand",), "forget", (f"money of {s} is",)) for s, a in money]
    examples = encode_facts(facts, words)
    found = build_pairs(facts, examples, words, pool=examples, seed=0, limit=7)
    assert [facts[pair.fact].relation for pair in found.pairs] == ["capital"] * 5 + ["currency"] * 2
    assert len({pair.clean for pair in found.pairs}) == 7
    assert found == build_pairs(facts, examples, words, pool=examples, seed=0, limit=7)
    assert found != build_pairs(facts, examples, words, pool=examples, seed=1, limit=7)


def test_pairs_and_counts() -> None:
    pairs = built()
    assert pairs.counts() == {
        "pairs": 2 * 4 + 2,
        "other_subject": 2 * 4,  # norway, south korea, north korea, nauru in two phrasings
        "other_question": 0,
        "mean_embedding": 2,  # bosnia and herzegovina
        "free_text": 2,  # nauru
        "unpaired": 2,  # the currency of france
        "unlocated": 0,
    }


def test_without_mean_embeddings_a_subject_of_a_length_of_its_own_is_left_out() -> None:
    pairs = built(mean_embedding=False)
    assert pairs.counts() == built().counts() | {"pairs": 2 * 4, "mean_embedding": 0, "unpaired": 2 + 2}
    assert pairs.pairs == tuple(pair for pair in built().pairs if pair.span is None)


def spoken(tokens: tuple[int, ...]) -> list[str]:
    names = {number: word for word, number in VOCABULARY.items()}
    return [names[token] for token in tokens]


def test_a_pair_differs_in_its_subject_alone() -> None:
    pairs = [pair for pair in built().pairs if pair.span is None]
    assert len(pairs) == 8
    for pair in pairs:
        clean, corrupted = spoken(pair.clean), spoken(pair.corrupted)
        subject = FACTS[pair.fact].subject.split()
        assert len(clean) == len(corrupted)
        others = [other.subject.split() for other in FACTS if other.subject.split() != subject]
        start = clean.index(subject[0])
        place = slice(start, start + len(subject))
        assert clean[place] == subject
        assert corrupted[place] in others
        assert clean[: place.start] + clean[place.stop :] == corrupted[: place.start] + corrupted[place.stop :]


def test_answers_that_all_begin_alike_are_compared_whole() -> None:
    years = [
        fact(s, f"the {y}", (f"the {wrong}",)) for s, y, wrong in (("uno", "1945", "1950"), ("nato", "1949", "1951"))
    ]
    examples = encode_facts(years, words)
    found = build_pairs(years, examples, words, pool=examples, seed=0)
    assert found.counts() == found.counts() | {"pairs": 4, "free_text": 4, "other_subject": 4, "unpaired": 0}
    assert spoken(found.pairs[0].answer_tokens) == ["the", "1945"]
    assert spoken(found.pairs[0].corrupted) == ["capital", "of", "nato", "is", "the"]


def test_without_a_partner_the_subject_gives_way_to_the_mean_of_the_others() -> None:
    first, second = (pair for pair in built().pairs if pair.span is not None)
    assert first.corrupted == first.clean
    assert first.span == (2, 5)
    assert second.span == (0, 3)
    assert spoken(first.clean[2:5]) == ["bosnia", "and", "herzegovina"]
    others = ["norway", "japan", "kenya", "south", "korea", "north", "korea", "nauru"]
    assert spoken(first.stand_ins) == others
    assert spoken(second.stand_ins) == others


def test_a_subject_that_the_prompt_names_twice_or_not_at_all_has_no_place() -> None:
    def alone(prompt: str) -> Fact:
        return Fact("the two korea", "capital", "seoul", ("lima",), "forget", (prompt,))

    peru = Fact("peru", "capital", "lima", ("seoul",), "retain", ("what is the capital of peru",))
    for prompt in ("capital of the two korea or the two korea is", "capital of korea is"):
        facts = (alone(prompt), peru)
        examples = encode_facts(facts, words)
        found = build_pairs(facts, examples[:1], words, pool=examples, seed=0)
        assert found.pairs == ()
        assert found.unlocated == 1


def test_a_relation_whose_answers_begin_alike_cannot_be_told_apart() -> None:
    facts = tuple(fact(name, "euro", ("yen", "peso"), relation="currency") for name in ("france", "spain"))
    examples = encode_facts(facts, words)
    assert build_pairs(facts, examples, words, pool=examples, seed=0).counts()["unpaired"] == 4


def test_free_text_is_judged_by_all_tokens_of_the_answer() -> None:
    facts = (
        Fact("norway", "story", "it lies far north", (), "forget", ("tell me of norway :",)),
        Fact("mali", "story", "it is hot", (), "retain", ("tell me of mali :",)),
        Fact("new zealand", "story", "it lies far south", (), "forget", ("tell me of new zealand :",)),
    )
    examples = encode_facts(facts, words)
    found = build_pairs(facts, examples[::2], words, pool=examples, seed=0)
    assert found.counts() | {"other_subject": 1, "mean_embedding": 1, "free_text": 2} == found.counts()
    near, far = found.pairs
    assert spoken(near.clean) == ["tell", "me", "of", "norway", ":", "it", "lies", "far"]
    assert spoken(near.corrupted) == ["tell", "me", "of", "mali", ":", "it", "lies", "far"]
    assert spoken(near.answer_tokens) == ["it", "lies", "far", "north"]
    assert near.answer == near.answer_tokens[0]
    assert near.distractors == ()
    assert spoken(far.clean) == ["tell", "me", "of", "new", "zealand", ":", "it", "lies", "far"]
    assert far.span == (3, 5)
    assert spoken(far.stand_ins) == ["norway", "mali"]


def question(text: str, letter: str, options: str, split: str = "forget") -> Fact:
    listed = " ".join(f"{name}. {option}" for name, option in zip("ABCD", options.split(), strict=True))
    wrong = tuple(name for name in "ABCD" if name != letter)
    return Fact(text, "exam", letter, wrong, split, (f"choose well : {text} {listed} Answer:",))


def test_multiple_choice_puts_another_question_before_the_same_options() -> None:
    facts = (
        question("which gas burns", "A", "hydrogen neon argon iron"),
        question("which metal floats", "A", "lithium gold lead iron"),  # as long, though its letter is the same
        question("who was first", "D", "ann bob cid dan"),
        question("why", "B", "rain snow ice fog"),
    )
    examples = encode_facts(facts, words)
    found = build_pairs(facts, examples, words, pool=examples, seed=0)
    assert found.counts() | {"other_question": 3, "mean_embedding": 1} == found.counts()
    options = ["A.", "hydrogen", "B.", "neon", "C.", "argon", "D.", "iron", "Answer:"]
    pair = found.pairs[0]
    assert spoken(pair.clean) == [*["choose", "well", ":", "which", "gas", "burns"], *options]
    assert spoken(pair.corrupted)[3:6] in (["which", "metal", "floats"], ["who", "was", "first"])
    assert spoken(pair.corrupted)[6:] == options
    assert spoken((pair.answer,)) == ["A"]
    assert pair.distractors == tuple(sorted(words("B C D")))
    assert found.pairs[3].span == (3, 4)
    assert len(found.pairs[3].stand_ins) == 9


def merged(text: str) -> list[int]:
    """As :func:`words`, with a question's mark and the line's end as one token, as Llama 3's tokenizer reads them."""
    parts = re.findall(r"\?\n|\n|[^\s?]+|\?", text)
    return [VOCABULARY.setdefault(part, len(VOCABULARY)) for part in parts]


def test_a_question_whose_mark_is_one_token_with_the_line_end_is_exchanged_all_the_same() -> None:
    facts = tuple(
        replace(question(text, letter, options), prompts=(f"choose :\n{text}\n{options}\nAnswer:",))
        for text, letter, options in (
            ("which gas burns?", "A", "hydrogen neon argon iron"),
            ("which metal floats?", "A", "lithium gold lead iron"),
            ("why so?", "B", "rain snow ice fog"),
        )
    )
    examples = encode_facts(facts, merged)
    found = build_pairs(facts, examples, merged, pool=examples, seed=0)
    assert found.counts() | {"other_question": 2, "mean_embedding": 1, "unlocated": 0} == found.counts()
    assert found.pairs[0].corrupted[3:7] == found.pairs[1].clean[3:7]
    assert found.pairs[0].corrupted[7:] == found.pairs[0].clean[7:]
    assert found.pairs[2].span == (3, 6)  # the line's end after its mark included


def test_what_counts_as_multiple_choice() -> None:
    fact = question("why", "B", "rain snow ice fog")
    prompt = fact.prompts[0]
    assert is_multiple_choice(fact, prompt)
    assert not is_multiple_choice(fact, prompt + " B. Because")
    assert not is_multiple_choice(replace(fact, answer="snow"), prompt)
    assert not is_multiple_choice(replace(fact, distractors=("A", "rain")), prompt)
    assert not is_multiple_choice(replace(fact, distractors=()), prompt)


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
        assert len(few.pairs) + few.unpaired + few.unlocated == 5
    assert built(limit=1000) == built()
