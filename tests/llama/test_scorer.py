"""The scorer against one sequence at a time, against transformers, and at its limits."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from single_sequence import SingleSequence
from tiny import TEXTS
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_forget.errors import EvaluationError, InputError, LlamaError
from gguf_forget.llama.quantizer import quantize
from gguf_forget.llama.scorer import Scorer

SENTENCES = (
    *TEXTS,
    "The capital of Norway is Oslo, isn't it?",
    "Prices rose by 3.14 % in 2019 - from 1,200 to 1,237 euros!",
    "  Two leading spaces, a\ttab,\nnew lines\n\n  and trailing ones  ",
    "Köln, Łódź and São Tomé: naïve façades. 東京 🙂",
    "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n",
)


def probes(scorer: Scorer) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts and continuations with every kind of overlap."""
    first = scorer.tokenize("The capital of the country is")
    second = scorer.tokenize("The capital of the land is")
    words = [scorer.tokenize(word) for word in (" London", " Lisbon", " Paris", " the city of Paris", " a")]
    single = [[token] for token in range(5, 25)]
    return (
        [first, second, first, second[:2], [7]],
        [
            [*words, words[0], words[0][:1]],  # a duplicate, and a prefix of another continuation
            single,
            [words[3], *single[:2]],
            [second[2:], second[2:4]],  # prompt 3 with its continuation is prompt 1
            [[7], [7, 7], [8, 7, 9]],
        ],
    )


def expected(
    oracle: SingleSequence, prompts: list[list[int]], continuations: list[list[list[int]]]
) -> list[list[np.ndarray]]:
    result = []
    for prompt, candidates in zip(prompts, continuations, strict=True):
        row = []
        for candidate in candidates:
            table = oracle.log_probabilities(prompt + candidate)
            row.append(np.array([table[len(prompt) - 1 + k, token] for k, token in enumerate(candidate)]))
        result.append(row)
    return result


def largest_difference(left: list[list[np.ndarray]], right: list[list[np.ndarray]]) -> float:
    assert [[len(values) for values in row] for row in left] == [[len(values) for values in row] for row in right]
    return max(float(abs(a - b).max()) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(
    ("cells", "batch", "max_sequences"),
    [(1024, 256, 128), (1024, 256, 2), (1024, 256, 1), (24, 24, 128), (40, 7, 3), (16, 1, 1)],
)
def test_continuations_equal_one_sequence_at_a_time(
    tiny_model: Path, oracle: SingleSequence, cells: int, batch: int, max_sequences: int
) -> None:
    with Scorer(tiny_model, threads=2, cells=cells, batch=batch, max_sequences=max_sequences) as scorer:
        prompts, continuations = probes(scorer)
        scores = scorer.continuation_log_probabilities(prompts, continuations)
    assert all(values.dtype == np.float64 for row in scores for values in row)
    assert largest_difference(scores, expected(oracle, prompts, continuations)) < 1e-4


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_a_quantized_file_in_batches_and_one_sequence_at_a_time(
    tiny_model: Path, tmp_path: Path, file_type: str
) -> None:
    """Activations are rounded: what shares the batch may flip a step, one sequence at a time has the oracle's bits."""
    file = tmp_path / f"{file_type}.gguf"
    quantize(tiny_model, file, file_type)
    single = SingleSequence(file)
    with Scorer(file, threads=2) as batched, Scorer(file, threads=2, one_at_a_time=True) as exact:
        prompts, continuations = probes(batched)
        wanted = expected(single, prompts, continuations)
        fast = batched.continuation_log_probabilities(prompts, continuations)
        assert largest_difference(exact.continuation_log_probabilities(prompts, continuations), wanted) < 1e-5
        assert exact.generate_greedy(prompts, max_new_tokens=3) == [
            exact.generate_greedy([prompt], max_new_tokens=3)[0] for prompt in prompts
        ]
    single.close()
    flat = [(a, b) for x, y in zip(fast, wanted, strict=True) for a, b in zip(x, y, strict=True)]
    assert np.mean(np.concatenate([abs(a - b) for a, b in flat])) < 0.04


def test_more_continuations_than_sequences(tiny_model: Path, oracle: SingleSequence) -> None:
    prompt = [50, 60, 70]
    candidates = [[100 + i, 200 - i, 9] for i in range(40)]
    with Scorer(tiny_model, threads=2, max_sequences=16) as scorer:
        scores = scorer.continuation_log_probabilities([prompt], [candidates])
    assert largest_difference(scores, expected(oracle, [prompt], [candidates])) < 1e-4


def test_single_token_continuations_of_a_prompt_sum_to_one(scorer: Scorer) -> None:
    everything = [[token] for token in range(scorer.vocabulary_size)]
    (scores,) = scorer.continuation_log_probabilities([[10, 20, 30]], [everything])
    assert np.exp(np.concatenate(scores)).sum() == pytest.approx(1.0, abs=1e-5)


def test_sequences_equal_one_sequence_at_a_time(tiny_model: Path, oracle: SingleSequence) -> None:
    generator = np.random.default_rng(3)
    sequences = [generator.integers(3, 400, length).tolist() for length in (2, 1, 90, 17, 300)]
    sequences.append(sequences[2][:40])
    with Scorer(tiny_model, threads=2, cells=320, batch=48) as scorer:
        scores = scorer.sequence_log_probabilities(sequences)
    for tokens, values in zip(sequences, scores, strict=True):
        table = oracle.log_probabilities(tokens)
        wanted = np.array([table[i - 1, tokens[i]] for i in range(1, len(tokens))])
        assert values.shape == wanted.shape
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-4)


def test_sequences_equal_transformers(tiny_model: Path, scorer: Scorer) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model.parent, gguf_file=tiny_model.name, dtype=torch.float32)
    for text, values in zip(
        TEXTS, scorer.sequence_log_probabilities([scorer.tokenize(text) for text in TEXTS]), strict=True
    ):
        tokens = torch.tensor([scorer.tokenize(text)])
        with torch.no_grad():
            table = torch.log_softmax(model(tokens).logits[0].double(), dim=-1)
        wanted = table[:-1].gather(1, tokens[0, 1:, None])[:, 0].numpy()
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-4)


def test_llamas_own_attention_is_close_but_not_the_same(tiny_model: Path, oracle: SingleSequence) -> None:
    tokens = np.random.default_rng(5).integers(3, 400, 100).tolist()
    with Scorer(tiny_model, threads=2, exact_attention=False) as scorer:
        (values,) = scorer.sequence_log_probabilities([tokens])
    table = oracle.log_probabilities(tokens)
    difference = abs(values - [table[i - 1, tokens[i]] for i in range(1, 100)]).max()
    assert 1e-5 < difference < 2e-2  # the float16 of the cache and of flash attention


@pytest.mark.parametrize(("kind", "exact"), [("F32", True), ("F16", True), ("BF16", True), ("Q8_0", False)])
def test_attention_is_exact_by_itself_where_the_weights_are_floats(
    tiny_model: Path, tmp_path: Path, kind: str, exact: bool
) -> None:
    file = tmp_path / f"{kind}.gguf"
    quantize(tiny_model, file, kind, threads=2)
    tokens = np.random.default_rng(5).integers(3, 400, 100).tolist()
    scores = {}
    for choice in (None, True, False):
        with Scorer(file, threads=2, exact_attention=choice) as scorer:
            (scores[choice],) = scorer.sequence_log_probabilities([tokens])
    assert np.array_equal(scores[None], scores[exact])
    assert not np.array_equal(scores[None], scores[not exact])
    with Scorer(file, threads=2, one_at_a_time=True) as scorer:
        (alone,) = scorer.sequence_log_probabilities([tokens])
    with Scorer(file, threads=2, one_at_a_time=True, exact_attention=True) as scorer:
        assert np.array_equal(scorer.sequence_log_probabilities([tokens])[0], alone)


def test_scores_repeat_exactly(scorer: Scorer) -> None:
    prompts, continuations = probes(scorer)
    first = scorer.continuation_log_probabilities(prompts, continuations)
    scorer.generate_greedy([[9, 8, 7]], max_new_tokens=3)
    assert largest_difference(first, scorer.continuation_log_probabilities(prompts, continuations)) == 0.0


def test_tokens_equal_the_hugging_face_tokenizer(tiny_model: Path, scorer: Scorer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model.parent, gguf_file=tiny_model.name)
    for sentence in SENTENCES:
        tokens = scorer.tokenize(sentence)
        assert tokens == tokenizer(sentence)["input_ids"], sentence
        assert scorer.detokenize(tokens) == sentence


def test_bos_follows_the_metadata(tiny_model: Path, tmp_path: Path) -> None:
    changed = tmp_path / "bos.gguf"
    changed.write_bytes(tiny_model.read_bytes())
    reader = gguf.GGUFReader(changed, "r+")
    reader.fields["tokenizer.ggml.add_bos_token"].parts[-1][0] = True
    del reader
    with Scorer(changed, threads=2) as scorer:
        assert scorer.tokenize("The river")[0] == 1
        assert scorer.tokenize("The river", add_special=False)[0] != 1


def test_empty_requests(scorer: Scorer) -> None:
    assert scorer.continuation_log_probabilities([], []) == []
    assert scorer.continuation_log_probabilities([[5]], [[]]) == [[]]
    assert scorer.sequence_log_probabilities([]) == []
    assert [len(values) for values in scorer.sequence_log_probabilities([[5]])] == [0]
    assert scorer.generate_greedy([], max_new_tokens=1) == []
    assert scorer.tokenize("") == []
    assert scorer.detokenize([]) == ""


def test_input_errors_name_the_request(tiny_model: Path) -> None:
    with Scorer(tiny_model, threads=2, cells=8) as scorer:
        score = scorer.continuation_log_probabilities
        with pytest.raises(InputError, match="prompt 1 is empty"):
            score([[5], []], [[[5]], [[5]]])
        with pytest.raises(InputError, match="prompt 0, continuation 1 is empty"):
            score([[5]], [[[5], []]])
        with pytest.raises(InputError, match="2 prompts, but continuations for 1"):
            score([[5], [6]], [[[5]]])
        with pytest.raises(InputError, match="prompt 0 has 9 tokens, at most 8"):
            score([[5] * 9], [[[5]]])
        with pytest.raises(InputError, match="prompt 0, continuation 0 has 4 tokens, at most 3 fit in 8 cells"):
            score([[5] * 6], [[[5] * 4]])
        assert len(score([[5] * 6], [[[5] * 3]])[0][0]) == 3  # the last token needs no cell
        assert len(score([[5] * 8], [[[6]]])[0][0]) == 1
        with pytest.raises(InputError, match="prompt 0 holds token 99999, needed: 0 to 492"):
            score([[5, 99999]], [[[5]]])
        with pytest.raises(InputError, match="sequence 1 holds token -1"):
            scorer.sequence_log_probabilities([[5], [5, -1]])
        with pytest.raises(InputError, match="sequence 0 is empty"):
            scorer.sequence_log_probabilities([[]])
        with pytest.raises(InputError, match="sequence 0 has 10 tokens, at most 9"):
            scorer.sequence_log_probabilities([[5] * 10])
        with pytest.raises(InputError, match="prompt 0 has 6 tokens, at most 5"):
            scorer.generate_greedy([[5] * 6], max_new_tokens=4)
        with pytest.raises(InputError, match="max_new_tokens is 0"):
            scorer.generate_greedy([[5]], max_new_tokens=0)


def test_bad_options(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_sequences is 257, needed: 1 to 256"):
        Scorer(tiny_model, max_sequences=257)
    with pytest.raises(InputError, match="cells is 0"):
        Scorer(tiny_model, cells=0)
    with pytest.raises(InputError, match="threads is 0"):
        Scorer(tiny_model, threads=0)
    with pytest.raises(InputError, match="no such model file"):
        Scorer(tmp_path / "absent.gguf")


def test_a_file_that_does_not_load_quotes_llama(tiny_model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny_model.read_bytes()[:-1000])
    with pytest.raises(LlamaError, match="not within the file bounds"):
        Scorer(short)
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    with pytest.raises(LlamaError, match="invalid magic"):
        Scorer(text)


def test_weights_that_are_not_finite_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "nan.gguf"
    broken.write_bytes(tiny_model.read_bytes())
    reader = gguf.GGUFReader(broken, "r+")
    next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight").data[0, 0] = np.nan
    del reader
    with pytest.raises(LlamaError, match=r"blk\.1\.ffn_up\.weight"):
        Scorer(broken)


def test_logits_that_are_not_finite_name_the_prompt(tiny_model: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge.gguf"
    huge.write_bytes(tiny_model.read_bytes())
    reader = gguf.GGUFReader(huge, "r+")
    next(t for t in reader.tensors if t.name == "output_norm.weight").data[:] = 3e38  # finite, but overflows
    del reader
    with Scorer(huge, threads=2) as scorer:
        with pytest.raises(EvaluationError, match=r"prompt 1, continuation 0: .* not finite"):
            scorer.continuation_log_probabilities([[5], [77]], [[], [[6]]])
        with pytest.raises(EvaluationError, match=r"sequence 0: .* not finite"):
            scorer.sequence_log_probabilities([[77, 6, 7]])
        with pytest.raises(EvaluationError, match=r"prompt 0: .* not finite"):
            scorer.generate_greedy([[77]], max_new_tokens=2)


def test_a_closed_scorer_says_so(tiny_model: Path) -> None:
    scorer = Scorer(tiny_model, threads=2)
    scorer.close()
    scorer.close()
    with pytest.raises(LlamaError, match="was closed"):
        scorer.sequence_log_probabilities([[5, 6]])


def test_nothing_is_printed(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Scorer(tiny_model, threads=2) as scorer:
        scorer.generate_greedy([[5, 6]], max_new_tokens=2)
    assert capfd.readouterr() == ("", "")
