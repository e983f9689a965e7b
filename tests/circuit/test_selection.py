"""Which neurons are taken, by numbers that can be followed by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_forget.circuit.artifact import load_circuit, save_circuit
from gguf_forget.circuit.selection import (
    Circuit,
    discounted_scores,
    grow_until_faithful,
    neurons_for_parameters,
    normalised,
    random_circuit,
    select_neurons,
)
from gguf_forget.errors import InputError


def chosen(circuit: Circuit) -> list[list[int]]:
    return [layer.tolist() for layer in circuit.neurons]


def test_normalised_magnitudes_have_mean_one() -> None:
    assert normalised(np.array([[1.0, -3.0], [0.0, 4.0]])).tolist() == [[0.5, 1.5], [0.0, 2.0]]
    assert normalised(np.zeros((2, 2))).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_what_the_retain_set_needs_is_discounted() -> None:
    forget = np.array([[1.0, -3.0], [0.0, 4.0]])
    retain = np.array([[-10.0, 0.0], [10.0, 20.0]])  # magnitudes 1, 0, 1, 2 times their mean
    assert discounted_scores([forget], [retain], 0.5, signed=False).tolist() == [[0.0, 1.5], [-0.5, 1.0]]
    assert discounted_scores([forget], [retain], 0.0, signed=False).tolist() == normalised(forget).tolist()
    # With signs, what works against the kept facts gains by the discount, and what works against the forgotten loses.
    assert discounted_scores([forget], [retain], 0.5, signed=True).tolist() == [[1.0, -1.5], [-0.5, 1.0]]
    assert discounted_scores([forget], [retain], 0.0, signed=True).tolist() == (forget / 2).tolist()
    assert discounted_scores([np.zeros((2, 2))], [retain], 1.0, signed=True).tolist() == (-retain / 10).tolist()


SCORES = np.array([[9.0, 1.0, 8.0, 7.0], [2.0, 6.0, -5.0, 3.0], [0.0, 4.0, 0.5, -9.0]])


@pytest.mark.parametrize(
    ("budget", "cap", "expected"),
    [
        (5 / 12, 1.0, [[0, 2, 3], [1], [1]]),
        (5 / 12, 0.5, [[0, 2], [1, 3], [1]]),  # layer 0 is full at two: 3 of layer 1 takes the place of 7
        (5 / 12, 0.74, [[0, 2], [1, 3], [1]]),  # 0.74 of 4 are two whole neurons
        (3 / 12, 0.25, [[0], [1], [1]]),
        (3 / 12, 0.0, [[0], [1], [1]]),  # a layer may always give one
        (0.0, 1.0, [[0], [], []]),  # never nothing
        (1.0, 1.0, [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_the_highest_scores_within_the_caps(budget: float, cap: float, expected: list[list[int]]) -> None:
    circuit = select_neurons(SCORES, budget=budget, layer_cap=cap)
    assert chosen(circuit) == expected
    assert circuit.size == sum(map(len, expected))
    assert circuit.share == circuit.size / 12
    assert all(layer.dtype == np.int64 for layer in circuit.neurons)
    assert circuit.mask().tolist() == [[i in layer for i in range(4)] for layer in expected]


def test_a_cap_is_counted_in_whole_neurons_without_rounding_error() -> None:
    circuit = select_neurons(np.ones((2, 100)), budget=0.29, layer_cap=0.29)  # 0.29 * 100 = 28.999999999999996
    assert [len(layer) for layer in circuit.neurons] == [29, 29]


def test_ties_go_to_the_earlier_layer_and_lower_index() -> None:
    tied = np.array([[1.0, 2.0, 1.0], [2.0, 1.0, 2.0]])
    assert chosen(select_neurons(tied, budget=4 / 6)) == [[0, 1], [0, 2]]
    assert chosen(select_neurons(np.zeros((2, 3)), budget=4 / 6, layer_cap=0.67)) == [[0, 1], [0, 1]]


def test_ties_are_broken_alike_among_many() -> None:
    found = select_neurons(np.tile([1.0, 0.0, 1.0, 0.5], (3, 200)), budget=1000 / 2400)
    even = list(range(0, 800, 2))
    assert chosen(found) == [even, even, even[:200]]


def test_a_budget_that_the_caps_leave_no_room_for() -> None:
    with pytest.raises(InputError, match="7 neurons does not fit into 3 layers of at most 2 neurons"):
        select_neurons(SCORES, budget=7 / 12, layer_cap=0.5)


def test_a_budget_in_neurons() -> None:
    assert chosen(select_neurons(SCORES, neurons=5, layer_cap=0.5)) == [[0, 2], [1, 3], [1]]
    for budget, neurons in ((None, None), (0.5, 5)):
        with pytest.raises(InputError, match="exactly one of the two"):
            select_neurons(SCORES, budget=budget, neurons=neurons)


def test_a_budget_in_parameters() -> None:
    # 3 of 100 parameters, 6 a neuron: half a neuron, and never none
    assert neurons_for_parameters(0.03, parameters=100, per_neuron=6) == 1
    assert neurons_for_parameters(0.03, parameters=10_000, per_neuron=6) == 50


def test_a_circuit_grows_until_it_is_faithful_enough() -> None:
    sizes = []

    def measured(circuit: Circuit) -> float:
        sizes.append(circuit.size)
        return {2: 0.3, 3: 0.2, 5: 0.7}.get(circuit.size, 0.9)

    circuit, reached = grow_until_faithful(SCORES, measured, minimum=0.7, neurons=2)
    assert (circuit.size, reached) == (5, 0.7)
    assert sizes == [2, 3, 5]
    assert chosen(circuit) == [[0, 2, 3], [1], [1]]


def test_a_faithfulness_that_no_circuit_reaches() -> None:
    message = "no circuit of 2 to 6 neurons has a faithfulness of 0.95: the best is 0.600 with 5 neurons"
    with pytest.raises(InputError, match=message):
        grow_until_faithful(
            SCORES, lambda circuit: 0.6 if circuit.size == 5 else 0.1, minimum=0.95, neurons=2, layer_cap=0.5
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores = SCORES.copy()
    scores[1, 2] = scores[0, 0] = bad
    with pytest.raises(InputError, match="2 attribution scores are not finite"):
        select_neurons(scores, budget=0.1)


def test_a_random_circuit_has_the_same_profile_and_no_neuron_in_common() -> None:
    circuit = select_neurons(np.random.default_rng(0).standard_normal((6, 40)), budget=0.2, layer_cap=0.4)
    control = random_circuit(circuit, seed=1)
    assert [len(layer) for layer in control.neurons] == [len(layer) for layer in circuit.neurons]
    assert not (control.mask() & circuit.mask()).any()
    assert chosen(random_circuit(circuit, seed=1)) == chosen(control)
    assert chosen(random_circuit(circuit, seed=2)) != chosen(control)


def test_a_random_circuit_draws_uniformly() -> None:
    circuit = Circuit((np.array([0, 1]),), 10)
    counts = sum(random_circuit(circuit, seed=seed).mask()[0].astype(int) for seed in range(800))
    assert counts[:2].tolist() == [0, 0]
    assert abs(counts[2:] - 200).max() < 5 * (800 * 0.25 * 0.75) ** 0.5


def test_where_too_few_others_are_left_a_random_circuit_takes_its_own() -> None:
    circuit = Circuit((np.array([0, 1, 2]), np.array([], dtype=np.int64)), 4)
    control = random_circuit(circuit, seed=0)
    assert len(control.neurons[0]) == 3
    assert 3 in control.neurons[0]
    assert control.neurons[1].tolist() == []


def test_a_circuit_and_its_scores_come_back_from_disk(tmp_path: Path) -> None:
    circuit = Circuit((np.array([1, 3]), np.array([], dtype=np.int64), np.array([0])), 4)
    forget, retain = np.random.default_rng(0).standard_normal((2, 3, 4))
    save_circuit(tmp_path / "circuit.safetensors", circuit, forget, retain)
    found, forget_found, retain_found = load_circuit(tmp_path / "circuit.safetensors")
    assert chosen(found) == [[1, 3], [], [0]]
    assert found.width == 4
    assert np.array_equal(forget_found, forget)
    assert np.array_equal(retain_found, retain)


def test_a_circuit_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "circuit.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        load_circuit(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="cannot be read"):
        load_circuit(path)
