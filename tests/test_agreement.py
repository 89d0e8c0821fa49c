"""Agreement of dictionaries: copies raise the maximum cosine, not the matching; and what random ones agree on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from refgba.experiments import consistency
from refgba.experiments.agreement import Agreement, agreement, mean, null, random_like
from refgba.sae import unit_rows

COMMITTED = Path(__file__).parent.parent / "benchmarks" / "results" / "consistency.json"


def test_copies_agree_with_one_neuron_by_maximum_cosine_and_not_one_to_one():
    A = np.eye(4)[[0, 0, 0, 1]]
    B = np.eye(4)[[0, 1, 2, 3]]
    found = agreement(A, B)
    assert found.mcs == [0.75, 0.75]  # all four of A, and two of the four of B
    assert found.matched == [0.5, 0.5]
    assert (found.mcs_mean, found.matched_mean) == (0.75, 0.5)


def test_agreement_does_not_depend_on_the_order_of_neurons_nor_on_their_lengths():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 20, 6))
    found = agreement(A, B)
    assert agreement(B, A) == found
    assert agreement(3 * A[::-1], B[rng.permutation(20)]) == found
    assert agreement(A, A[::-1]) == Agreement(1, [1, 1], 1, [1, 1])


def test_a_neuron_between_the_levels_counts_at_the_lower_one():
    A, B = np.eye(3)[:1], np.array([[0.8, 0.6, 0]])
    assert agreement(A, B) == Agreement(0.8, [1, 0], 0.8, [1, 0])


def test_the_mean_of_agreements_is_that_of_each_number():
    one, other = Agreement(0.5, [0.5, 0.25], 0.5, [0.5, 0]), Agreement(1, [1, 0.75], 0.75, [0.5, 0.5])
    assert mean([one, other]) == Agreement(0.75, [0.75, 0.5], 0.625, [0.5, 0.25])


def test_random_dictionaries_have_the_spectrum_of_the_trained_one():
    rng = np.random.default_rng(0)
    V = rng.standard_normal((2000, 12)) * np.geomspace(1, 0.5, 12) @ np.linalg.qr(rng.standard_normal((12, 12)))[0]
    unit, drawn = unit_rows(V), random_like(V, np.random.default_rng(1))
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(1)
    assert drawn.T @ drawn / 2000 == pytest.approx(unit.T @ unit / 2000, abs=0.01)


def test_chance_agrees_on_more_where_few_directions_hold_the_variance():
    rng = np.random.default_rng(0)
    flat, narrow = rng.standard_normal((300, 40)), rng.standard_normal((300, 3)) @ rng.standard_normal((3, 40))
    assert null(flat).mcs == [0, 0]
    assert null(narrow).mcs[1] > 0.9
    assert null(flat) == null(flat)


def test_a_dead_neuron_without_a_direction_is_no_part_of_the_spectrum():
    V = np.vstack([np.eye(3), np.zeros((1, 3))])
    assert random_like(V, np.random.default_rng(0)).shape == (4, 3)


def test_the_verdict_tells_matched_agreement_where_it_was_measured_and_opens_what_was_not():
    record = json.loads(COMMITTED.read_text(encoding="utf-8"))
    data = record["data"]
    assert consistency.verdict(data) == record["verdict"]
    for network in data["networks"]:
        network["agreement"] = asdict(Agreement(0.6, [0.5, 0.125], 0.5, [0.4, 0.25]))
        network["null"] = asdict(Agreement(0.4, [0.1, 0.02], 0.3, [0.0, 0.01]))
    said = consistency.verdict(data)
    assert "Matched one to one 25.0% against 25.0% do, of random dictionaries with these spectra 1.0%." in said
    assert said.endswith("matched one to one.")
    assert said.count("25.0% matched one to one.") == said.count("With measured targets") == 2
