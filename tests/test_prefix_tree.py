"""Waves against a direct check of everything a wave promises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_forget.prefix_tree import Wave, plan_waves

# Few tokens and short lists: many shared prefixes, duplicates and prefixes of one another.
requests_strategy = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=25)


def check_wave(wave: Wave, requests: list[list[int]], own_sequence: bool) -> None:
    of_sequence: dict[int, list[int]] = {}  # sequence id -> its nodes, in order of decoding
    for node, (first, count) in enumerate(zip(wave.first_sequence, wave.sequence_count, strict=True)):
        for sequence in range(first, first + count):
            of_sequence.setdefault(int(sequence), []).append(node)
    for nodes in of_sequence.values():
        assert [int(wave.positions[node]) for node in nodes] == list(range(len(nodes)))
    for index, path, sequence in zip(wave.requests, wave.paths, wave.sequences, strict=True):
        assert [int(wave.tokens[node]) for node in path] == requests[index]
        # The request sees exactly its own tokens: its path begins its sequence.
        assert of_sequence[sequence][: len(path)] == path.tolist()
        if own_sequence:
            assert len(of_sequence[sequence]) == len(path)
    if own_sequence:
        assert len(set(wave.sequences)) == len(wave.requests)
    prefixes = {tuple(requests[i][: k + 1]) for i in wave.requests for k in range(len(requests[i]))}
    assert len(wave.tokens) == len(prefixes)  # each distinct prefix is decoded once


@settings(max_examples=300, deadline=None)
@given(
    requests=requests_strategy,
    cells=st.integers(8, 40),
    max_sequences=st.integers(1, 6),
    comfortable=st.none() | st.integers(1, 40),
    reserve=st.integers(0, 2),
    own_sequence=st.booleans(),
)
def test_waves_hold_every_request_once(
    requests: list[list[int]],
    cells: int,
    max_sequences: int,
    comfortable: int | None,
    reserve: int,
    own_sequence: bool,
) -> None:
    waves = list(
        plan_waves(
            requests,
            cells=cells,
            max_sequences=max_sequences,
            comfortable=comfortable,
            reserve=reserve,
            own_sequence=own_sequence,
        )
    )
    assert sorted(index for wave in waves for index in wave.requests) == list(range(len(requests)))
    for wave in waves:
        check_wave(wave, requests, own_sequence)
        assert len(wave.tokens) + reserve * len(wave.requests) <= cells
        assert max(wave.sequences) < max_sequences


def test_a_long_prefix_is_not_computed_again_for_comfort() -> None:
    prompt = [1] * 100
    requests = [[*prompt, token] for token in range(60)]
    together = list(plan_waves(requests, cells=1000, max_sequences=256, comfortable=110))
    assert [len(wave.tokens) for wave in together] == [160]
    short = [[1, 1, token] for token in range(60)]
    assert [len(wave.tokens) for wave in plan_waves(short, cells=1000, max_sequences=256, comfortable=22)] == [22] * 3


def test_single_token_continuations_need_one_sequence() -> None:
    (wave,) = plan_waves([[1, 2, 3]] * 38, cells=10, max_sequences=1)
    assert wave.tokens.tolist() == [1, 2, 3]
    assert wave.sequence_count.tolist() == [1, 1, 1]
