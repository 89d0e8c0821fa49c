"""Algorithm 1: what a step is, what the loop does, what the recipe adds; and that together they recover the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgba import gba, recipe, sae
from refgba.adam import AdamW
from refgba.bias import adapt as algorithm_2
from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.metrics import frr
from refgba.model import SyntheticModel, Uniform, imbalanced
from refgba.sae import unit_rows

PAPER = GBAConfig(width=12, groups=3, steps=9, batch=16, adapt_every=4, lr=0.01, a_init=0.3)
UNEVEN = replace(PAPER, gamma_minus=0.3, gamma_plus=0.1, floor=0.5, eps=0.02)  # no two settings alike


def rows(N=64, d=5, seed=0):
    return np.random.default_rng(seed).standard_normal((N, d))


def start(config, d=5):
    return gba.init(gba.random_params(config, d), config)


# ---- a step ----------------------------------------------------------------------------------------------------------


def test_parameters_start_as_documented():
    params = gba.random_params(replace(PAPER, untied=True, width=4000), 5)
    assert (params.W_dec == params.W).all()
    assert params.W is not params.W_dec
    assert (params.a == PAPER.a_init).all()
    assert not params.b.any()
    assert not params.b_pre.any()
    np.testing.assert_allclose(np.linalg.norm(params.W, axis=1), 1, rtol=1e-12)
    assert (params.W**4).mean() == pytest.approx(3 / 35, rel=0.05)  # uniform on the sphere: 3 / (d (d + 2))
    other = gba.random_params(replace(PAPER, untied=True, width=4000, seed=1), 5)
    assert (params.W != other.W).all()


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@pytest.mark.parametrize("untied", [False, True])
def test_a_step_is_lines_2_to_5(untied, activation):
    config = replace(PAPER, untied=untied, activation=activation)
    state, x = start(config), unit_rows(rows(16))
    state.params.b -= 0.1
    before = state.params.astype("float64")
    fwd = sae.forward(before, x, activation)
    grads = sae.gradients(before, x, fwd)
    metrics = gba.step(state, x)
    assert metrics.loss == sae.loss(x, fwd.f)
    assert metrics.l0 == (fwd.y > 0).sum(axis=1).mean()
    for name in ("W", "W_dec", "a", "b_pre") if untied else ("W", "a", "b_pre"):
        theta = getattr(before, name)
        moved = AdamW.like(theta).update(theta, getattr(grads, name), config.lr, config)
        expected = unit_rows(moved) if name.startswith("W") else moved
        np.testing.assert_array_equal(getattr(state.params, name), expected)
    assert (state.params.b == before.b).all()  # Algorithm 2 alone moves b
    assert state.buffer.counts.tolist() == (fwd.y > 0).sum(axis=0).tolist()  # y of the forward pass, before the update
    assert state.buffer.peaks.tolist() == np.maximum(fwd.y.max(axis=0), 0).tolist()


def test_the_loop_adapts_every_so_many_steps_and_empties_the_buffers():
    state = start(PAPER)
    biases, buffered = [], []
    for _ in gba.train(state, gba.minibatches(rows(), PAPER)):
        biases.append(state.params.b.copy())
        buffered.append(state.buffer.rows)
    assert buffered == [16, 32, 48, 0, 16, 32, 48, 0, 16]
    changes = [t for t in range(1, 9) if (biases[t] != biases[t - 1]).any()]
    assert changes == [3, 7]  # after steps 4 and 8
    assert state.last.rows == 64


def test_adapt_is_algorithm_2_on_the_buffers():
    state, p = start(UNEVEN), UNEVEN.target()
    state.params.b[:] = -0.4
    state.buffer.rows = 1000  # groups of four: over target, between, under the floor, dead by eps or floor
    counts = [[1000 * q * share for share in (1.5, 0.8, 0.4)] + [15] for q in p]
    state.buffer.counts[:] = np.round(counts).astype(int).ravel()
    state.buffer.peaks[:] = np.linspace(0.1, 0.6, 12)
    expected = algorithm_2(
        b=state.params.b,
        buffer=state.buffer,
        group=np.repeat([0, 1, 2], 4),
        target=0.5 * 0.002 ** np.array([0, 0.5, 1]),
        gamma_minus=0.3,
        gamma_plus=0.1,
        eps=0.02,
        floor=0.5,
    )
    used = state.buffer
    gba.adapt(state)
    assert state.params.b.tolist() == expected.tolist()
    assert {(expected < -0.4).any(), (expected == -0.4).any(), (expected > -0.4).any()} == {True}
    assert state.last is used
    assert (state.buffer.rows, state.buffer.counts.any()) == (0, False)


def test_init_shares_no_memory_with_its_parameters():
    params = gba.random_params(PAPER, 5)
    before = params.astype("float64")
    state = gba.init(params, PAPER)
    for _ in gba.train(state, gba.minibatches(rows(), PAPER)):
        pass
    assert all((a == b).all() for a, b in zip(params.arrays().values(), before.arrays().values(), strict=True))


def test_an_untied_decoder_begins_where_forming_left_the_detectors():
    config = replace(PAPER, untied=True, form=0.5, steps=20, lr=0.05)
    tied = replace(config, untied=False)
    free, bound = (gba.init(gba.random_params(c, 5), c) for c in (config, tied))
    batches = list(gba.minibatches(rows(), config))
    for x in batches[:10]:
        for state in (free, bound):
            gba.step(state, x)
    assert free.params.W_dec is None
    assert (free.params.W == bound.params.W).all()  # forming is tied
    W, moments = free.params.W.copy(), free.optimiser["W"].m.copy()
    recipe.begin_fit(free)
    assert (free.params.W_dec == W).all()
    assert (free.optimiser["W_dec"].m == moments).all()
    assert free.optimiser["W_dec"].t == 10
    gba.step(free, batches[10])
    assert (free.params.W_dec != free.params.W).any()
    np.testing.assert_allclose(np.linalg.norm(free.params.W_dec, axis=1), 1)


# ---- minibatches -----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(N=st.integers(1, 30), L=st.integers(1, 40), seed=st.integers(0, 1000))
def test_minibatches_are_epochs(N, L, seed):
    config = replace(PAPER, batch=L, steps=12, seed=seed)
    X = np.arange(1, N + 1)[:, None] * np.array([[1.0, 0.0]]) + np.array([[0.0, 1.0]])  # row i has tan = 1 / (i + 1)
    drawn = [np.round(x[:, 0] / x[:, 1]).astype(int) - 1 for x in gba.minibatches(X, config)]
    assert [len(rows) for rows in drawn] == [L] * 12
    sequence = np.concatenate(drawn)
    for epoch in range(len(sequence) // N):
        assert sorted(sequence[epoch * N : (epoch + 1) * N]) == list(range(N))


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    X = np.arange(1, 65)[:, None] * np.array([[1.0, 0.0]]) + np.array([[0.0, 1.0]])
    config = replace(PAPER, batch=64, steps=2)
    orders = [x[:, 0].tolist() for seed in (0, 1) for x in gba.minibatches(X, replace(config, seed=seed))]
    orders.append(unit_rows(X)[:, 0].tolist())
    assert len({tuple(order) for order in orders}) == 5
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_minibatches_have_unit_rows_in_the_dtype_of_the_run():
    x = next(gba.minibatches(rows().astype(np.float16), replace(PAPER, dtype="float32")))
    assert x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-6)


def test_of_no_rows_no_minibatch_is_drawn():
    with pytest.raises(InputError, match="no rows to draw minibatches from"):
        next(gba.minibatches(np.ones((0, 3)), PAPER))


def test_a_row_of_zeros_is_named_by_its_number_in_the_data():
    X = np.ones((64, 5))
    X[17] = 0
    with pytest.raises(InputError, match="row 17 is all zeros"):
        list(gba.minibatches(X, PAPER))


# ---- the recipe ------------------------------------------------------------------------------------------------------


def test_at_the_papers_settings_the_recipe_is_without_effect():
    config = recipe.paper(5)
    assert config == GBAConfig()
    assert {recipe.learning_rate(config, t) for t in (1, 100, config.steps)} == {config.lr}
    assert {recipe.trained(config, t) for t in (1, config.steps)} == {("W", "a", "b_pre")}
    assert not recipe.agreeing(np.ones((3, 1)), config.hold).any()


@pytest.mark.parametrize("untied", [False, True])
def test_while_features_form_scale_and_offset_stand_still_and_held_neurons_never_turn_again(untied):
    config = replace(PAPER, width=30, steps=20, form=0.5, hold=0.999, untied=untied)
    state = start(config, d=2)  # thirty directions in a plane: some agree
    seen = []
    for _ in gba.train(state, gba.minibatches(rows(d=2), config)):
        seen.append(state.params.astype("float64"))
    formed = seen[9]
    assert (formed.a == config.a_init).all()
    assert (formed.b_pre == 0).all()
    assert (seen[9].W != seen[8].W).all()  # nothing is held while features form
    assert (seen[10].a != config.a_init).any()
    assert (seen[10].b_pre != 0).any()
    cosine = formed.W @ formed.W.T - 2 * np.eye(30)
    assert (state.held == (cosine.max(axis=1) >= 0.999)).all()
    assert 0 < state.held.sum() < 30
    for last in (seen[-1].W, seen[-1].V):
        assert (last == formed.W)[state.held].all()
        assert (last != formed.W)[~state.held].all()


def test_each_phase_ends_with_a_linear_decay():
    config = replace(PAPER, steps=8, form=0.5, lr_decay=0.5, lr=1.0)
    assert [recipe.learning_rate(config, t) for t in range(1, 9)] == [1, 1, 1, 0.5, 1, 1, 1, 0.5]
    config = replace(config, form=0.0)
    assert [recipe.learning_rate(config, t) for t in range(1, 9)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_without_a_forming_phase_nothing_is_held():
    config = replace(PAPER, width=30, steps=3, hold=0.5)
    state = start(config, d=2)
    for _ in gba.train(state, gba.minibatches(rows(d=2), config)):
        pass
    assert not state.held.any()


@pytest.mark.parametrize(("M", "d"), [(50, 2), (200, 5), (1024, 16), (2000, 42)])
def test_agreement_by_chance_has_probability_one_percent(M, d):
    random = np.random.default_rng(0)
    tau = recipe.agreement_by_chance(M, d)
    share = np.mean([recipe.agreeing(unit_rows(random.standard_normal((M, d))), tau).mean() for _ in range(20)])
    assert 0.002 < share < 0.025


def test_hold_follows_the_dimension():
    assert recipe.default(384, width=3072).hold == 0.85
    assert recipe.default(16).hold == 0.85
    assert 0.85 < recipe.default(12).hold == recipe.agreement_by_chance(1024, 12) < recipe.default(8).hold < 1
    assert recipe.default(2).hold > 0.999
    assert recipe.default(1).hold == 1


def test_agreeing_does_not_depend_on_the_blocks(monkeypatch):
    W = unit_rows(rows(40, 3))
    whole = recipe.agreeing(W, 0.95)
    monkeypatch.setattr(recipe, "BLOCK", 40 * 7)
    assert (recipe.agreeing(W, 0.95) == whole).all()
    assert 0 < whole.sum() < 40


def test_the_default_recipe_follows_the_run_and_yields_to_what_is_given():
    short, long = recipe.default(42, steps=1000), recipe.default(42, steps=100_000)
    assert short.steps / short.adapt_every == pytest.approx(long.steps / long.adapt_every, rel=0.05)
    assert recipe.default(42, a_init=0.7, steps=10).a_init == 0.7
    assert recipe.default(384, groups=2000).groups == 2000  # of the 3072 neurons that follow from d
    with pytest.raises(InputError, match="width must be a whole number"):
        recipe.default(42, width="many")


def test_initial_weights_know_nothing_of_the_features_drawn_from_the_same_seed():
    W, V = gba.random_params(replace(PAPER, width=1000), 42).W, imbalanced(PAPER.seed).V
    assert np.abs(W @ V.T).max() < 0.8  # 128,000 random pairs in 42 dimensions reach about 0.65


# ---- ground truth ----------------------------------------------------------------------------------------------------


def recovered(truth, config, N=50_000):
    X = truth.draw(0, N).X
    state = gba.init(gba.random_params(config, truth.d), config)
    for _ in gba.train(state, gba.minibatches(X, config)):
        pass
    return state.params.V


def test_orthogonal_features_are_recovered_in_seconds():
    truth = SyntheticModel(Uniform(16, (2,)), d=20, features="orthogonal", seed=1)
    W = recovered(truth, recipe.default(20, width=128, steps=600, batch=256), N=10_000)
    assert frr(W, truth.V, 0.9) == 1.0


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_default_recipe_recovers_the_imbalanced_set(seed):
    truth = imbalanced(seed)
    W = recovered(truth, recipe.default(truth.d, width=1024, steps=3000, seed=seed, dtype="float32"))
    assert frr(W, truth.V, 0.8) == 1.0
    assert frr(W, truth.V, 0.9) >= 0.95


def test_frequencies_far_from_the_features_recover_almost_nothing():
    truth = imbalanced(0)
    config = recipe.default(truth.d, width=1024, steps=3000, seed=0, dtype="float32", htf=0.9, ltf=0.5)
    assert frr(recovered(truth, config), truth.V, 0.9) < 0.2


@pytest.mark.parametrize("recipe_of", [recipe.default, recipe.measured])
def test_data_without_dimensions_have_no_recipe(recipe_of):
    with pytest.raises(InputError, match="at least 1 dimension, not d = 0"):
        recipe_of(0)
