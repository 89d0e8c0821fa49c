"""Algorithm 2 and the groups: a hand-worked example of two groups, and the laws the biases obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgba.bias import Buffer, adapt
from refgba.errors import InputError
from refgba.groups import assign_groups, target_frequencies

EPS = 1e-6


def filled(counts, peaks, rows):
    buffer = Buffer(len(counts))
    buffer.rows, buffer.counts, buffer.peaks = rows, np.array(counts), np.array(peaks, float)
    return buffer


def test_two_groups_worked_by_hand():
    # G_1 = neurons 0, 1, 2 with p_1 = 0.5;  G_2 = neurons 3, 4, 5 with p_2 = 0.1;  100 rows in the buffers.
    b = np.array([-0.20, -0.20, -0.20, -0.995, -0.005, -0.50])
    buffer = filled(counts=[60, 40, 0, 20, 0, 0], peaks=[0.4, 0.2, 0, 0.8, 0, 0], rows=100)
    new = adapt(b, buffer, np.array([0, 0, 0, 1, 1, 1]), np.array([0.5, 0.1]), 0.01, 0.05, EPS)
    # T_1 = (0.4 + 0.2) / 2 = 0.3;  T_2 = 0.8 / 1 = 0.8: neurons without a positive peak do not count.
    assert new == pytest.approx(
        [
            -0.20 - 0.01 * 0.4,  # 0.60 > 0.5: lowered by gamma_minus r
            -0.20,  # 0.40 is between eps and the target: stays
            -0.20 + 0.05 * 0.3,  # never fired: raised by gamma_plus T_1
            -1.0,  # 0.20 > 0.1: -0.995 - 0.008 is clipped at -1
            0.0,  # never fired: -0.005 + 0.04 is clipped at 0
            -0.50 + 0.05 * 0.8,  # never fired
        ],
        abs=1e-15,
    )


def test_at_the_target_or_at_the_floor_nothing_moves():
    buffer = filled(counts=[50, 25], peaks=[0.4, 0.2], rows=100)
    assert adapt(np.full(2, -0.5), buffer, np.zeros(2, int), np.array([0.5]), 0.1, 0.1, EPS, 0.5).tolist() == [
        -0.5,
        -0.5,
    ]


def test_too_often_comes_before_never():
    buffer = filled(counts=[30], peaks=[0.4], rows=100)  # 0.3 is over the target of 0.2 and under an eps of 0.4
    assert adapt(np.array([-0.5]), buffer, np.zeros(1, int), np.array([0.2]), 0.1, 0.1, 0.4) == pytest.approx([-0.54])


def test_the_larger_of_eps_and_floor_counts():
    buffer = filled(counts=[25], peaks=[0.4], rows=100)  # 0.25: over eps 0.2 and over the floor of 0.2, under their sum
    assert adapt(np.array([-0.5]), buffer, np.zeros(1, int), np.array([0.4]), 0.1, 0.1, 0.2, 0.5).tolist() == [-0.5]


def test_a_pre_activation_of_zero_does_not_count():
    buffer = Buffer(1)
    buffer.add(np.array([[0.0], [1.0], [-1.0]]))
    assert (buffer.rows, buffer.counts.tolist(), buffer.peaks.tolist()) == (3, [1], [1.0])


def test_with_a_floor_a_neuron_far_below_target_is_raised():
    # Target 0.5, floor 0.5: frequencies 0.2, 0.3 and 0.6 are below the floor of 0.25, in between, and over target.
    buffer = filled(counts=[20, 30, 60], peaks=[0.2, 0.4, 0.6], rows=100)
    new = adapt(np.full(3, -0.5), buffer, np.zeros(3, int), np.array([0.5]), 0.1, 0.1, EPS, floor=0.5)
    assert new == pytest.approx([-0.5 + 0.1 * 0.4, -0.5, -0.5 - 0.1 * 0.6])


def test_a_silent_group_does_not_move():
    buffer = filled([0, 0], [0, 0], 10)
    b = np.array([-0.3, -0.9])
    assert adapt(b, buffer, np.zeros(2, int), np.array([0.1]), 0.01, 0.01, EPS).tolist() == b.tolist()


def test_empty_buffers_are_refused():
    with pytest.raises(InputError, match="buffers are empty"):
        adapt(np.zeros(2), Buffer(2), np.zeros(2, int), np.array([0.1]), 0.01, 0.01, EPS)


@st.composite
def situations(draw):
    K = draw(st.integers(1, 4))
    M = draw(st.integers(K, 20))
    rows = draw(st.integers(1, 1000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = np.where(rng.random(M) < 0.3, 0, rng.integers(0, rows + 1, M))
    peaks = np.where(counts > 0, rng.uniform(1e-3, 2, M), 0)
    b = -rng.choice([0.0, 1.0, *rng.random(3)], M)
    target = np.sort(rng.uniform(0.01, 0.9, K))[::-1]
    gammas = rng.uniform(1e-3, 3, 2)
    floor = draw(st.sampled_from([0.0, 0.5, 1.0]))
    return b, filled(counts, peaks, rows), assign_groups(M, K), target, *gammas, EPS, floor


@settings(max_examples=200, deadline=None)
@given(situations())
def test_bias_never_leaves_minus_one_to_zero(case):
    new = adapt(*case)
    assert (new >= -1).all()
    assert (new <= 0).all()


@settings(max_examples=200, deadline=None)
@given(situations())
def test_over_target_never_rises_and_in_between_never_moves(case):
    b, buffer, group, target, *_, floor = case
    p = buffer.counts / buffer.rows
    new = adapt(*case)
    over, under = p > target[group], (p < EPS) | (p < floor * target[group])
    between = ~over & ~under
    assert (new[over] <= b[over]).all()
    assert (new[between] == b[between]).all()
    assert (new[under] >= b[under]).all()


@settings(max_examples=100, deadline=None)
@given(situations(), st.randoms(use_true_random=False))
def test_group_order_does_not_matter(case, random):
    b, buffer, group, target, *rest = case
    order = list(range(len(target)))
    random.shuffle(order)
    relabel = np.argsort(order)  # group g is now called relabel[g]
    shuffled = adapt(b, buffer, relabel[group], target[order], *rest)
    assert shuffled == pytest.approx(adapt(*case), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    L=st.integers(1, 40),
    M=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_counts_and_peaks_equal_the_whole_buffer(L, M, cuts, seed):
    y = np.random.default_rng(seed).standard_normal((L, M))
    buffer = Buffer(M)
    for part in np.split(y, sorted(c for c in cuts if c < L)):
        if len(part):
            buffer.add(part)
    assert buffer.rows == L
    assert buffer.counts.tolist() == (y > 0).sum(axis=0).tolist()
    assert buffer.peaks.tolist() == np.maximum(y.max(axis=0), 0).tolist()


def test_target_frequencies_are_geometric_from_htf_to_ltf():
    p = target_frequencies(4, 0.8, 0.1)
    assert p == pytest.approx([0.8, 0.4, 0.2, 0.1])  # the ratio of neighbours is (1/8)^(1/3) = 1/2
    assert target_frequencies(1, 0.3, 0.9).tolist() == [0.3]  # BA: one group at HTF


def test_groups_are_equal_or_differ_by_one():
    assert assign_groups(6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    sizes = np.bincount(assign_groups(23, 5))
    assert sizes.max() - sizes.min() == 1
    with pytest.raises(InputError, match="at least as many neurons"):
        assign_groups(3, 4)
