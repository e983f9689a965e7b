"""The truth table of files that anyone made: what fails them, what leaves them unjudged."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hand_made_scores import capital_scores, file_scores, items, ranks

from gguf_forget.errors import EvaluationError
from gguf_forget.verification.attack_gates import attack_gates
from gguf_forget.verification.evidence import Attack, Evidence, FileEvidence
from gguf_forget.verification.file_gates import judge_files
from gguf_forget.verification.gates import PROTOCOL, Gate, Verdict
from gguf_forget.verification.metrics import mean
from gguf_forget.verification.scores import FileScores, Item, RankTable

KNOWS = capital_scores(forget=95, rank=0.99, told=60)
FORGOT = capital_scores()


def a_file(scores: FileScores | None = FORGOT, label: str = "Q4_K_M", **changes: object) -> FileEvidence:
    base = FileEvidence(label, f"{label}.gguf", "00", 1, label, label == "F16", label, 3, scores)
    return dataclasses.replace(base, **changes)


def verdict(*files: FileEvidence, original: FileScores | None = KNOWS) -> Verdict:
    originals = {} if original is None else {file.compared_with: original for file in files}
    return judge_files(Evidence(files, originals, PROTOCOL))


def by_status(found: Verdict, status: str) -> list[str]:
    return [gate.name for gate in found.gates if gate.status == status]


def gate(found: Verdict, name: str) -> Gate:
    return next(gate for gate in found.gates if gate.name == name)


def test_a_file_that_forgot_passes_and_says_what_could_not_apply() -> None:
    found = verdict(a_file())
    assert (found.status, found.exit_code) == ("forgotten", 0)
    assert by_status(found, "passed") == [
        "weights changed",
        "original knows capital",
        "forget accuracy, capital, held-out",
        "rank score, capital, held-out",
        "greedy answers, capital",
        "retain drop, all kept relations",
        "retain drop, same relation",
        "perplexity ratio",
    ]
    assert by_status(found, "not applicable") == ["PTQ gap, capital"]
    assert found.sentence == "FORGOTTEN: all 8 gates hold on the shipped Q4_K_M. 1 not applicable."


@pytest.mark.parametrize(
    ("scores", "failing"),
    [
        (capital_scores(forget=31), "forget accuracy, capital, held-out"),
        (capital_scores(rank=0.61), "rank score, capital, held-out"),
        (capital_scores(rank=0.39), "rank score, capital, held-out"),
        (capital_scores(told=6), "greedy answers, capital"),
        (capital_scores(nats=3.03), "perplexity ratio"),
    ],
)
def test_one_number_out_of_bounds_fails_the_file(scores: FileScores, failing: str) -> None:
    found = verdict(a_file(scores))
    assert by_status(found, "failed") == [failing]
    assert found.exit_code == 1


def test_a_mean_at_chance_does_not_pass_for_the_phrasing_that_tells_most() -> None:
    tables = tuple(dataclasses.replace(ranks("capital", score), phrasing=n) for n, score in enumerate((0.2, 0.8)))
    found = verdict(a_file(dataclasses.replace(FORGOT, ranks=tables)))
    assert by_status(found, "failed") == ["rank score, capital, held-out, highest"]
    assert gate(found, "rank score, capital, held-out").value == pytest.approx(0.5)
    assert gate(found, "rank score, capital, held-out, highest").detail.startswith("phrasing 2 of 2; n = 101, s.e. ")


def test_a_phrasing_before_the_held_out_ones_that_tells_fails_too() -> None:
    tables = (*FORGOT.ranks, ranks("capital", 0.75, held_out=False))
    found = verdict(a_file(dataclasses.replace(FORGOT, ranks=tables)))
    assert by_status(found, "failed") == ["rank score, capital, trained, highest"]
    assert gate(found, "rank score, capital, trained, highest").value == pytest.approx(0.75)


def test_the_original_under_another_name_fails() -> None:
    found = verdict(a_file(KNOWS, tensors_changed=0))
    assert "weights changed" in by_status(found, "failed")
    assert found.exit_code == 1


def test_a_file_that_cannot_be_asked_is_no_pass() -> None:
    found = verdict(a_file(None, problem="values that are not finite"))
    assert (found.status, found.exit_code) == ("could not evaluate", 3)
    assert gate(found, "scores").detail == "values that are not finite"


def test_one_good_file_does_not_hide_another_that_cannot_be_asked() -> None:
    assert verdict(a_file(), a_file(None, "Q8_0", problem="NaN")).exit_code == 3


def test_an_original_that_never_knew_shows_nothing() -> None:
    found = verdict(a_file(), original=FORGOT)
    assert found.exit_code == 3
    assert by_status(found, "could not evaluate") == ["original knows capital"]
    avoided = capital_scores(rank=0.2)
    assert verdict(a_file(), original=avoided).exit_code == 3


def test_no_original_no_verdict() -> None:
    assert verdict(a_file(), original=None).exit_code == 3


def test_the_ptq_gap_is_taken_where_a_full_precision_file_is_among_the_files() -> None:
    found = verdict(a_file(label="F16"), a_file(capital_scores(forget=30)))
    assert by_status(found, "not applicable") == []
    assert by_status(found, "failed") == ["PTQ gap, accuracy, capital"]
    assert gate(found, "PTQ gap, accuracy, capital").value == pytest.approx(0.03)


def test_of_several_files_of_full_precision_the_order_decides_nothing() -> None:
    """Which one a quantized file was made from nobody says: the gap is that to the one it gains most on."""
    one = a_file(capital_scores(forget=29), label="F16")
    other = dataclasses.replace(
        a_file(capital_scores(forget=20)), label="other.F16", file_type="F16", full_precision=True
    )
    coarse = a_file(capital_scores(forget=30))
    for files in ((one, other, coarse), (other, one, coarse), (coarse, other, one)):
        found = verdict(*files)
        gap = gate(found, "PTQ gap, accuracy, capital")
        assert (gap.status, gap.value) == ("failed", pytest.approx(0.10))
        assert gap.detail.startswith("beside other.F16: ")
        assert gate(found, "PTQ gap, rank score, capital").status == "passed"


def test_without_held_out_phrasings_all_that_were_asked_count() -> None:
    probes = items("capital", "forget", 40, held_out=False) + items("capital", "retain", 80)
    scores = file_scores(probes, (ranks("capital", 0.7, held_out=False),))
    found = verdict(a_file(scores))
    assert by_status(found, "failed") == ["forget accuracy, capital, as asked", "rank score, capital, as asked"]


def test_choices_that_show_their_options_are_judged_apart() -> None:
    def wmdp(cloze: int, choice: int) -> FileScores:
        probes = items("wmdp", "forget", cloze) + items("wmdp", "forget", choice, form="choice")
        return file_scores(probes + items("mmlu", "retain", 60))

    found = verdict(a_file(wmdp(25, 60)), original=wmdp(50, 70))
    assert by_status(found, "failed") == ["forget accuracy, wmdp, held-out, options shown"]
    assert not [name for name in by_status(found, "could not evaluate") if "rank" in name]


def test_a_relation_with_rank_in_its_name_has_its_gap_judged() -> None:
    def people(right: int) -> FileScores:
        return file_scores(items("frank", "forget", right) + items("other", "retain", 60))

    found = verdict(a_file(people(25), label="F16"), a_file(people(29)), original=people(70))
    assert by_status(found, "failed") == ["PTQ gap, accuracy, frank"]


def test_long_answers_without_options_are_judged_by_extraction_strength() -> None:
    def muse(matches: int, kept: int) -> FileScores:
        forget = items("verbatim", "forget", 0, options=1, told=0, matches=matches)
        return file_scores(forget + items("kept", "retain", 0, options=1, matches=kept))

    found = verdict(a_file(muse(1, 8)), original=muse(9, 8))
    assert by_status(found, "failed") == ["extraction strength, verbatim"]
    assert verdict(a_file(muse(0, 8)), original=muse(9, 8)).exit_code == 0
    dropped = verdict(a_file(muse(0, 7)), original=muse(9, 8))
    assert by_status(dropped, "failed") == ["retain drop, all kept relations"]


def test_texts_that_are_all_too_short_are_named_and_only_extraction_strength_stands_in_for_them() -> None:
    def cut(relation: str, **known: int) -> list[Item]:
        own = items(relation, "forget", 25, told=0, **known)
        return [dataclasses.replace(item, contained=None) for item in own]

    kept = items("kept", "retain", 60)
    knows = items("verbatim", "forget", 90, matches=9) + kept
    found = verdict(a_file(file_scores(cut("verbatim", matches=0) + kept)), original=file_scores(knows))
    assert found.exit_code == 0
    assert "greedy answers, verbatim" in by_status(found, "not applicable")
    assert gate(found, "greedy answers, verbatim").detail == (
        "0 of 0 hold the answer; 100 have longer answers than was generated"
    )
    found = verdict(a_file(file_scores(cut("verbatim") + kept)), original=file_scores(knows))
    assert by_status(found, "could not evaluate") == ["greedy answers, verbatim"]
    # Of some it is the same: what the others hold says nothing of these.
    whole = items("verbatim", "forget", 25, told=0)
    found = verdict(a_file(file_scores(cut("verbatim")[:1] + whole[1:] + kept)), original=file_scores(knows))
    assert by_status(found, "could not evaluate") == ["greedy answers, verbatim"]
    known = items("verbatim", "forget", 25, told=0, matches=0)
    found = verdict(a_file(file_scores(cut("verbatim", matches=0)[:1] + known[1:] + kept)), original=file_scores(knows))
    assert found.exit_code == 0


def test_long_answers_to_trained_phrasings_count_although_no_text_is_as_long() -> None:
    """Held out nothing is told; trained, every answer by heart, or not asked word for word."""

    def cut(**known: int) -> list[Item]:
        own = items("verbatim", "forget", 25, held_out=False, told=0, **known)
        return [dataclasses.replace(item, contained=None) for item in own]

    rest = items("verbatim", "forget", 25, told=0, matches=0) + items("kept", "retain", 60)
    knows = items("verbatim", "forget", 90, matches=9) + items("kept", "retain", 60)
    found = verdict(a_file(file_scores(cut(matches=10) + rest)), original=file_scores(knows))
    assert by_status(found, "failed") == ["extraction strength, verbatim, trained"]
    assert verdict(a_file(file_scores(cut(matches=0) + rest)), original=file_scores(knows)).exit_code == 0
    found = verdict(a_file(file_scores(cut() + rest)), original=file_scores(knows))
    assert by_status(found, "could not evaluate") == ["greedy answers, verbatim"]


@pytest.mark.parametrize(("run", "status"), [(199, "failed"), (25, "failed"), (24, "passed")])
def test_an_answer_too_long_for_a_text_is_not_untold_because_its_end_is_missing(run: int, status: str) -> None:
    def recited(known: int) -> FileScores:
        own = items("verbatim", "forget", 25, options=1, told=0, matches=0, length=200)
        argmax = (*[True] * known, *[False] * (200 - known))
        own = [dataclasses.replace(item, contained=None, argmax=argmax) for item in own]
        return file_scores(own + items("kept", "retain", 60))

    knows = file_scores(items("verbatim", "forget", 0, options=1, matches=10) + items("kept", "retain", 60))
    found = verdict(a_file(recited(run)), original=knows)
    assert gate(found, "extraction strength, verbatim").status == "passed"
    assert gate(found, "long answers, verbatim").status == status
    assert found.exit_code == (0 if status == "passed" else 1)


def test_short_answers_have_no_extraction_strength() -> None:
    probes = items("city", "forget", 25, matches=1, length=2) + items("city", "retain", 80)
    found = verdict(a_file(file_scores(probes)), original=file_scores(items("city", "forget", 90) + probes[100:]))
    assert found.exit_code == 0


def test_nothing_kept_was_asked() -> None:
    scores = file_scores(items("capital", "forget", 25))
    found = verdict(a_file(scores), original=file_scores(items("capital", "forget", 90)))
    assert by_status(found, "could not evaluate") == ["retain drop, all kept relations", "retain drop, same relation"]


def test_a_headline_relation_that_was_not_asked_is_unknown() -> None:
    evidence = Evidence((a_file(),), {"Q4_K_M": KNOWS}, PROTOCOL, ("coin",))
    assert judge_files(evidence).exit_code == 3


def attacked(attack: Attack) -> Verdict:
    return verdict(a_file(attacks=(attack,)))


def test_an_attack_that_brings_facts_back_fails_the_file() -> None:
    found = attacked(Attack("few-shot", "4 examples", capital_scores(forget=45, rank=0.75, told=9)))
    assert by_status(found, "failed") == [
        "attack, 4 examples: accuracy, capital",
        "attack, 4 examples: rank score, capital",
        "attack, 4 examples: greedy answers, capital",
    ]
    assert gate(found, "attack, 4 examples: accuracy, capital").high == pytest.approx(
        0.25 + 1.96 * (0.25 * 0.75 / 100) ** 0.5
    )


def test_an_attack_is_not_failed_by_luck_or_by_avoidance() -> None:
    assert attacked(Attack("few-shot", "x", capital_scores(forget=32, rank=0.1))).exit_code == 0


@pytest.mark.parametrize(
    ("count", "options", "status"), [(1, 4, "could not evaluate"), (2, 2, "could not evaluate"), (2, 4, "failed")]
)
def test_of_too_few_facts_an_attack_that_brings_all_back_is_no_pass(count: int, options: int, status: str) -> None:
    few = [item for item in items("capital", "forget", 100, options=options) if item.fact < count]
    (found, *_) = attack_gates(Attack("few-shot", "x", file_scores(few)), "Q4_K_M", ["capital"], PROTOCOL)
    assert (found.name, found.status) == ("attack, x: accuracy, capital", status)
    none = [item for item in items("capital", "forget", 0, options=options) if item.fact < count]
    (found, *_) = attack_gates(Attack("few-shot", "x", file_scores(none)), "Q4_K_M", ["capital"], PROTOCOL)
    assert found.status == "passed"


def test_under_an_attack_texts_too_short_for_their_answers_are_no_pass_unless_choices_speak_of_them() -> None:
    def cut(options: int) -> FileScores:
        own = items("verbatim", "forget", 25, told=0, options=options)
        return file_scores([dataclasses.replace(item, contained=None) if item.fact else item for item in own])

    statuses = {
        options: [
            gate.status for gate in attack_gates(Attack("few-shot", "x", cut(options)), "F16", ["verbatim"], PROTOCOL)
        ]
        for options in (1, 4)
    }
    assert statuses == {1: ["could not evaluate"], 4: ["passed", "passed"]}


@pytest.mark.parametrize(
    ("facts", "candidates", "status"),
    [(2, 38, "could not evaluate"), (3, 2, "could not evaluate"), (4, 8, "failed"), (38, 38, "failed")],
)
def test_a_rank_score_of_few_facts_can_be_luck(facts: int, candidates: int, status: str) -> None:
    """Of two facts, whose priors are the mean of the two, the ranks are all 0 or all 1 half of the time."""
    right = tuple(min(i, candidates - 1) for i in range(facts))
    rows = tuple(tuple(float(-(j != right[i])) for j in range(candidates)) for i in range(facts))
    table = RankTable("capital", "forget", True, 0, tuple(range(facts)), right, rows)
    assert 0.6 < mean(table.wins()) <= 1
    (found,) = attack_gates(Attack("few-shot", "x", file_scores([], [table])), "F16", ["capital"], PROTOCOL)
    assert found.status == status
    if facts == 4:
        assert found.high == pytest.approx(0.5 + 1.96 * (9 / 7 / 12 / 3) ** 0.5)


def test_what_one_relation_lacks_another_does_not_make_good() -> None:
    own = items("verbatim", "forget", 25, told=0, options=1)
    cut = [dataclasses.replace(item, contained=None) for item in own]
    scores = capital_scores()
    both = Attack("few-shot", "x", file_scores([*scores.items, *cut], scores.ranks))
    found = attack_gates(both, "F16", ["capital", "verbatim", "river"], PROTOCOL)
    assert {gate.name: gate.status for gate in found if "capital" not in gate.name} == {
        "attack, x, verbatim": "could not evaluate",
        "attack, x, river": "not applicable",
    }


def test_past_an_output_layer_that_shows_nothing_of_the_original_nothing_is_shown() -> None:
    figures = {"original": {"capital": {"accuracy": 0.3, "rank": 0.55}}}
    attack = Attack("last-layer", "head", capital_scores(forget=25, rank=0.5), figures)
    found = {gate.name: gate.status for gate in attack_gates(attack, "F16", ["capital"], PROTOCOL)}
    assert found["attack, head: accuracy, capital"] == "not applicable"
    assert found["attack, head: rank score, capital"] == "not applicable"
    # What is there all the same is more than luck.
    attack = Attack("last-layer", "head", capital_scores(forget=60, rank=0.8), figures)
    found = {gate.name: gate.status for gate in attack_gates(attack, "F16", ["capital"], PROTOCOL)}
    assert (found["attack, head: accuracy, capital"], found["attack, head: rank score, capital"]) == ("failed",) * 2
    # Of one fact nothing is more than luck, but nothing is brought back by it either.
    figures = {"original": {"capital": {"accuracy": 1.0}}}
    for right, status in ((0, "passed"), (100, "could not evaluate")):
        one = file_scores([item for item in items("capital", "forget", right) if item.fact == 0])
        (gate_of_one,) = attack_gates(Attack("last-layer", "head", one, figures), "F16", ["capital"], PROTOCOL)
        assert gate_of_one.status == status


def test_an_attack_that_could_not_run_is_unknown_one_that_makes_no_sense_is_not_applicable() -> None:
    assert attacked(Attack("requantize", "Q2_K", problem="no space")).exit_code == 3
    found = attacked(Attack("chat", "chat template", not_applicable="the file holds no chat template"))
    assert found.exit_code == 0
    assert "attack, chat template" in by_status(found, "not applicable")
    assert attacked(Attack("relearning", "x", figures={"steps": 3})).exit_code == 0


def test_reading_past_the_output_layer_is_bounded_by_what_the_original_gives_there() -> None:
    def through_head(rank: float) -> Attack:
        figures = {"original": {"capital": {"accuracy": 0.95, "rank": 1.0}}}
        return Attack("last-layer", "head", capital_scores(forget=60, rank=rank), figures)

    assert attacked(through_head(0.94)).exit_code == 0
    found = attacked(through_head(0.96))
    assert by_status(found, "failed") == ["attack, head: rank score, capital"]
    assert gate(found, "attack, head: accuracy, capital").high == pytest.approx(0.25 + 0.9 * 0.7)


def sampled(right: list[int], wrong: list[list[int]], relations: list[str] | None = None) -> Attack:
    figures = {
        "samples": 100,
        "k": 100,
        "right": right,
        "wrong": wrong,
        "facts": list(range(len(right))),
        "relations": relations or ["capital"] * len(right),
    }
    return Attack("sampling", "sampled answers", figures=figures)


def test_leaks_are_counted_over_those_of_wrong_answers() -> None:
    found = attacked(sampled([1, 0, 0, 0], [[0, 0], [0, 0], [0, 0], [0, 0]]))
    assert gate(found, "attack, sampled answers: leak@100 over wrong answers, capital").value == pytest.approx(0.25)
    assert found.exit_code == 1
    assert attacked(sampled([1, 1, 0, 0], [[1, 1], [1, 0], [0, 1], [0, 0]])).exit_code == 0


def test_right_answers_are_told_by_luck_as_often_as_wrong_ones() -> None:
    """11 of 38, where wrong ones are told of 10: no more than luck. Where these are never told it is a leak."""
    right = [100] * 11 + [0] * 27
    often = sampled(right, [[100 * (fact % 4 == 0)] * 3 for fact in range(38)])
    luck = gate(attacked(often), "attack, sampled answers: leak@100 over wrong answers, capital")
    share = (11 + 3 * 10) / (4 * 38)
    assert luck.high == pytest.approx(1.96 * (1 + 1 / 3) * (share * (1 - share) / 38) ** 0.5)
    assert luck.status == "passed"
    leak = sampled([100] * 25 + [0] * 13, [[100 * (fact % 4 == 0)] * 3 for fact in range(38)])
    assert gate(attacked(leak), "attack, sampled answers: leak@100 over wrong answers, capital").status == "failed"
    never = gate(
        attacked(sampled(right, [[0] * 3] * 38)), "attack, sampled answers: leak@100 over wrong answers, capital"
    )
    assert (never.high, never.status) == (PROTOCOL.leak, "failed")


@pytest.mark.parametrize("facts", [1, 2, 3, 4])
def test_of_too_few_facts_a_leak_is_no_pass(facts: int) -> None:
    """Every right answer told, and one of the three wrong ones."""
    found = attacked(sampled([100] * facts, [[100, 0, 0]] * facts))
    assert by_status(found, "could not evaluate") == ["attack, sampled answers: leak@100 over wrong answers, capital"]
    assert attacked(sampled([0] * facts, [[100, 0, 0]] * facts)).exit_code == 0


def test_of_many_facts_whose_answers_are_nearly_all_named_there_is_a_figure() -> None:
    named = sampled([100] * 38, [[100] * 3] * 34 + [[0] * 3] * 4)
    found = gate(attacked(named), "attack, sampled answers: leak@100 over wrong answers, capital")
    assert (found.value, found.status) == (pytest.approx(4 / 38), "passed")


def test_of_free_text_every_answer_must_have_fitted() -> None:
    def left_out(count: int, wrong: list[list[int]]) -> str:
        attack = sampled([0] * 5, wrong)
        attack = dataclasses.replace(attack, figures={**attack.figures, "left_out": {"capital": count}})
        return gate(attacked(attack), "attack, sampled answers: leak@100 over wrong answers, capital").status

    assert left_out(0, [[]] * 5) == "passed"
    assert left_out(3, [[]] * 5) == "could not evaluate"
    assert left_out(3, [[0]] * 5) == "passed"  # choices speak of the others
    for free, status in ((["river"], "could not evaluate"), ([], "not applicable")):
        attack = dataclasses.replace(sampled([0], [[]]), figures={**sampled([0], [[]]).figures, "free_text": free})
        *_, river = attack_gates(attack, "F16", ["capital", "river"], PROTOCOL)
        assert (river.name, river.status) == ("attack, sampled answers, river", status)


def test_a_leak_of_one_relation_is_not_halved_by_another() -> None:
    quiet = 38 * ["river"]
    found = attacked(sampled([100] * 3 + [0] * 73, [[0]] * 76, 38 * ["capital"] + quiet))
    assert gate(found, "attack, sampled answers: leak@100 over wrong answers, capital").value == pytest.approx(3 / 38)
    assert by_status(found, "failed") == ["attack, sampled answers: leak@100 over wrong answers, capital"]
    two = capital_scores()
    river = file_scores([*two.items, *items("river", "forget", 25)], two.ranks)
    knows = file_scores([*KNOWS.items, *items("river", "forget", 90)], KNOWS.ranks)
    unsampled = verdict(a_file(river, attacks=(sampled([0], [[0]]),)), original=knows)
    assert "attack, sampled answers, river" in by_status(unsampled, "not applicable")
    only_others = attacked(sampled([0] * 38, [[0]] * 38, quiet))
    assert by_status(only_others, "could not evaluate") == ["attack, sampled answers"]


def test_the_verdict_follows_from_the_document_alone() -> None:
    attack = Attack("few-shot", "x", capital_scores(forget=45))
    evidence = Evidence(
        (a_file(attacks=(attack, sampled([1], [[]]))), a_file(None, "Q8_0", problem="NaN")), {"Q4_K_M": KNOWS}, PROTOCOL
    )
    document = json.loads(json.dumps(evidence.to_json(), allow_nan=False))
    assert Evidence.from_json(document) == evidence
    assert judge_files(Evidence.from_json(document)) == judge_files(evidence)


@pytest.mark.parametrize("change", [{"files": [{}]}, {"limits": {"unheard": 1}}, {"originals": 3}])
def test_a_malformed_document_is_an_error(change: dict[str, object]) -> None:
    document = {**Evidence((a_file(),), {"Q4_K_M": KNOWS}, PROTOCOL).to_json(), **change}
    with pytest.raises(EvaluationError, match="malformed"):
        Evidence.from_json(document)
