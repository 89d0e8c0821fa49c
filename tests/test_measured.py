"""Targets measured from the data: hand-worked examples, all backends, checkpoints, and worlds whose truth is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from engines import ENGINES, engine
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from refgba import gba, measured, recipe, sae
from refgba.backends import shards
from refgba.backends.comm import Ranks
from refgba.config import GBAConfig
from refgba.data.laws import zipf_frequencies
from refgba.errors import InputError
from refgba.measured import Shares
from refgba.model import Independent, SyntheticModel, imbalanced
from refgba.runs import console
from refgba.sae import Params

every_engine = pytest.mark.parametrize(("name", "dtype"), ENGINES)
CONFIG = GBAConfig(
    width=300, groups=1, steps=40, batch=37, adapt_every=5, lr=0.01, a_init=0.5, b_init=-0.2, gamma_minus=0.05,
    gamma_plus=0.05, floor=0.8, lr_decay=0.5, untied=True, targets_from="data", l0=6,
)  # fmt: skip


# ---- by hand ---------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 12), st.integers(1, 9), st.floats(0.05, 9), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_shares_add_up_to_what_is_wanted(L, M, l0, seed):
    z = np.random.default_rng(seed).permutation(L * M).reshape(L, M).astype(float)
    share = measured.ranked(z, l0)
    chosen = min(L * M, max(1, round(L * l0)))
    assert share.sum() == pytest.approx(chosen / L)
    assert share.tolist() == [np.count_nonzero(z[:, m] >= L * M - chosen) / L for m in range(M)]


def test_parts_of_the_neurons_rank_as_all_of_them():
    z = np.random.default_rng(0).standard_normal((20, 9))
    parts = [z[:, k::3] for k in range(3)]
    highest = np.concatenate([measured.largest(part, 50) for part in parts])
    for k, part in enumerate(parts):
        np.testing.assert_array_equal(measured.ranked(part, 2.5, lambda _: highest), measured.ranked(z, 2.5)[k::3])


def test_pursuit_counts_what_rows_are_made_of():
    """Rows of 1, 2, 3 and 6 orthogonal features in 200 dimensions; and of noise, which shows one in a hundred rows."""
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((200, 200)))[0]
    made = np.array([V[:k].sum(axis=0) for k in (1, 2, 3, 6)])
    assert measured.counted(sae.unit_rows(made), V) == pytest.approx(3)
    noise = sae.unit_rows(rng.standard_normal((4000, 40)))
    all_of_it = 40 * measured.UNSEEN_PER_DIMENSION
    assert measured.counted(noise, sae.unit_rows(rng.standard_normal((200, 40)))) == pytest.approx(all_of_it, abs=0.02)


def test_pursuit_counts_a_feature_once_that_it_takes_again():
    """v_1 · v_2 = -0.5: of v_1 + 0.9 v_2 pursuit takes both in turn, eleven times, and each time less of them."""
    V = np.zeros((2, 64))
    V[0, 0], V[1, :2] = 1, (-0.5, math.sqrt(0.75))
    assert measured.counted(sae.unit_rows(V[:1] + 0.9 * V[1:]), V) == pytest.approx(2, abs=1e-3)


def test_zeros_beyond_d_change_nothing():
    rng = np.random.default_rng(1)
    x, V = rng.standard_normal((30, 20)), sae.unit_rows(rng.standard_normal((50, 20)))
    wide = [np.pad(array, ((0, 0), (0, 12))) for array in (x, V)]
    assert measured.counted(*wide, d=20) == measured.counted(x, V)


def test_targets_are_running_means_of_shares_above_the_middle_of_the_band():
    config = replace(CONFIG, width=2, l0=1.0)
    shares, seen = Shares(2), iter([np.array([0.75, 0.25]), np.array([0.25, 0.75]), np.array([1.0, 0.0])])
    rank, never = (lambda _: next(seen)), lambda: pytest.fail("l0 is given, and nothing need be counted")
    middle = 0.9  # of 0.8 and 1
    for p in ([0.75, 0.25], [0.5, 0.5], [2 / 3, 1 / 3]):
        target = measured.targets(shares, config, rank, never)
        np.testing.assert_allclose(target, np.array(p) / middle)


def test_no_target_is_zero():
    shares = Shares(4)
    rank = lambda l0: np.array([l0, 0, 0, 0])  # noqa: E731
    target = measured.targets(shares, replace(CONFIG, width=4, l0=2.0), rank, lambda: 0.0)
    np.testing.assert_allclose(target[1:] * 0.9, measured.MIN_TARGET_SHARE * 2 / 4)


def test_what_pursuit_leaves_counts_by_its_size():
    """Rows (3, 4, 0, ...) / 5 of two features, of which the network has none, the weaker, the stronger, or both."""
    x = np.zeros((1, 240))
    x[0, :2] = 0.6, 0.8
    known = ([2], [0], [1], [0, 1])
    for V, features, left in zip(known, (0, 1, 1, 2), (1, 0.64, 0.36, 0), strict=True):
        assert measured.counted(x, np.eye(240)[V]) == pytest.approx(features + left**2 * 240 / 12)


def test_the_count_is_what_is_asked_for_unless_an_l0_is_given():
    shares, asked = Shares(300), []
    rank = lambda l0: asked.append(l0) or np.zeros(300)  # noqa: E731
    measured.targets(shares, replace(CONFIG, l0=0.0), rank, lambda: 20.0)
    measured.targets(shares, replace(CONFIG, l0=0.0), rank, lambda: 3.0)
    measured.targets(shares, CONFIG, rank, lambda: 20.0)
    assert asked == [20, (20 + 3) / 2, 6]


def test_a_neuron_moves_towards_its_own_target():
    """Of four rows neuron 0 has 2 of the 4 largest products, neuron 1 one, and 2 one; all fire on all rows."""
    config = replace(CONFIG, width=3, l0=1.0, gamma_minus=0.1, gamma_plus=0.1)
    x = np.array([[1, 0, 0], [0.9, 0.43589, 0], [0, 1, 0], [0, 0, 1.0]])
    state = gba.init(Params(np.eye(3), np.ones(3), np.full(3, -0.1), np.zeros(3), np.eye(3)), config)
    state.buffer.add(np.array([[0.9, 0.8, -1], [0.9, -1, -1], [0.9, -1, -1], [-1, -1, -1]]))
    gba.adapt(state, x)
    # Targets 0.5, 0.25 and 0.25 over 0.9; frequencies 3/4, 1/4 and 0; the mean positive peak is 0.85.
    np.testing.assert_allclose(state.params.b, [-0.1 - 0.1 * 0.9, -0.1, -0.1 + 0.1 * 0.85])


def test_peaks_are_the_highest_products_and_fade():
    shares, config = Shares(2), replace(CONFIG, width=2, l0=1.0, relative=0.5)
    np.testing.assert_allclose(measured.divisors(shares, config, np.array([0.25, 0])), [0.5, measured.MIN_PEAK**0.5])
    np.testing.assert_allclose(measured.divisors(shares, config, np.array([0.01, 0.36])) ** 2, [0.25 * 0.95, 0.36])


def test_a_weak_neuron_outranks_a_strong_one_where_it_is_nearer_to_its_peak():
    """Neuron 0 is at 0.6 of its peak 1 on row 1, and neuron 1 at 0.4, its peak, on row 2.

    Two products count.  Over their peaks they are 1, 0.6 and 1.
    """
    x = np.array([[1, 0, 0], [0.6, 0, 0.8], [0, 0.4, 0.91652]])
    for relative, share in ((0.0, [2 / 3, 0]), (1.0, [1 / 3, 1 / 3])):
        config = replace(CONFIG, width=2, l0=2 / 3, relative=relative)
        state = gba.init(Params(np.eye(3)[:2], np.ones(2), np.full(2, -0.1), np.zeros(3), np.eye(3)[:2]), config)
        state.buffer.add(x[:, :2])
        gba.adapt(state, x)
        np.testing.assert_allclose(state.shares.p, share)


# ---- backends --------------------------------------------------------------------------------------------------------


@every_engine
@pytest.mark.parametrize("more", [{"l0": 6.0}, {"l0": 0.0}, {"relative": 1.0}], ids=["given", "counted", "relative"])
def test_every_backend_measures_the_same_targets(name, dtype, more):
    config = replace(CONFIG, dtype=dtype, **more)
    X = imbalanced(1).draw(0, 200).X
    params = gba.random_params(replace(config, dtype="float64"), X.shape[1])
    twin = gba.init(params, replace(config, dtype="float64"))
    for _ in gba.train(twin, gba.minibatches(X, twin.config)):
        pass
    with engine(name) as backend:
        state = backend.init(params.astype(config.master), config)
        rows = (backend.put(state, x) for x in gba.minibatches(X, config))
        for _ in gba.train(state, rows, backend.step, backend.adapt):
            pass
        host = backend.export(state)
        assert host.shares.looks == twin.shares.looks == 8
        if dtype == "float64":
            np.testing.assert_allclose(host.shares.p, twin.shares.p, atol=1e-12)
            assert host.shares.active == pytest.approx(twin.shares.active)
            np.testing.assert_allclose(backend.params(state).b, twin.params.b, rtol=1e-9)
        else:
            assert host.shares.p.sum() == pytest.approx(twin.shares.p.sum(), rel=0.05)
            assert np.corrcoef(host.shares.p, twin.shares.p)[0, 1] > 0.9
        again = backend.export(backend.restore(host))
        np.testing.assert_array_equal(again.shares.p, host.shares.p)
        np.testing.assert_array_equal(again.shares.peaks, host.shares.peaks)
        assert host.shares.peaks.any() == bool(config.relative)


@every_engine
def test_an_adaptation_without_rows_says_so(name, dtype):
    config = replace(CONFIG, dtype=dtype)
    with engine(name) as backend:
        state = backend.init(gba.random_params(config, 12), config)
        with pytest.raises(InputError, match="measured on the rows of a step"):
            backend.adapt(state)


# ---- worlds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [2, 6])
def test_l0_follows_the_truth_and_features_are_found(active):
    """192 features in 128 dimensions, 2 or 6 in a row, and no setting changed."""
    truth = SyntheticModel(Independent(zipf_frequencies(192, active / 192, 0.5)), d=128, seed=active)
    rows = truth.draw(0, 24_000)
    kept = rows.support.any(axis=1)
    x, support = rows.X[kept], rows.support[kept]
    config = recipe.measured(128, width=192, steps=1200, batch=256, seed=1, dtype="float32")
    state = gba.init(gba.random_params(config, 128), config)
    for _ in gba.train(state, gba.minibatches(x[4000:], config)):
        pass
    fwd = sae.forward(state.params, sae.unit_rows(x[:4000]).astype("float32"), "jumprelu")
    assert fwd.on.sum(axis=1).mean() == pytest.approx(support[:4000].sum(axis=1).mean(), rel=0.25)
    cosine = state.params.V @ truth.V.T
    neuron, feature = linear_sum_assignment(-cosine)
    assert cosine[neuron, feature].mean() > 0.9
    on, true = fwd.on[:, neuron], support[:4000, feature]
    f1 = 2 * (on & true).sum(axis=0) / np.maximum(1, on.sum(axis=0) + true.sum(axis=0))
    assert f1.mean() > 0.7


def test_l0_is_what_is_asked_for():
    X = imbalanced().draw(0, 20_000).X
    for l0 in (3.0, 9.0):
        config = recipe.measured(42, width=256, steps=400, l0=l0, dtype="float32")
        state = gba.init(gba.random_params(config, 42), config)
        late = [m.l0 for m in gba.train(state, gba.minibatches(X, config))][-50:]
        assert np.mean(late) == pytest.approx(l0, rel=0.1)


def test_thresholds_become_the_same_share_of_every_peak():
    X = imbalanced().draw(0, 20_000).X
    spread = {}
    for relative in (0.0, 1.0):
        config = recipe.measured(42, width=256, steps=400, l0=6.0, relative=relative, dtype="float32")
        state = gba.init(gba.random_params(config, 42), config)
        late = [m.l0 for m in gba.train(state, gba.minibatches(X, config))][-50:]
        assert np.mean(late) == pytest.approx(6, rel=0.1)
        y = sae.forward(state.params, sae.unit_rows(X[:4096]).astype("float32"), "jumprelu").y
        at = -state.params.b / (y.max(axis=0) - state.params.b)
        spread[relative] = at.std() / at.mean()
    assert spread[1.0] < spread[0.0] / 2, spread


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((400, 12)))
    return tmp_path / "x.npy"


QUICK = ("--width", 64, "--steps", 40, "--batch", 50, "--recipe", "measured")


def test_a_run_of_the_recipe_is_judged_reported_and_exported(cli, data, tmp_path):
    run = tmp_path / "run"
    result = cli("train", data, "-o", run, *QUICK, "--l0", 5, "--json")
    assert result.exit_code == 0, result.output
    assert "groups" not in json.loads(result.stdout.splitlines()[-1])
    config = json.loads((run / "config.json").read_text())
    assert (config["targets_from"], config["l0"], config["groups"], config["form"]) == ("data", 5, 1, 0)
    page = tmp_path / "report.html"
    assert cli("report", run, "-o", page).exit_code == 0
    assert "GBA, measured targets for L0 5, recipe measured" in page.read_text()
    assert cli("export", run, "-o", tmp_path / "out", "--format", "saelens").exit_code == 0


@pytest.mark.parametrize("more", [("--l0", 5), (), ("--relative", 1)], ids=["given", "counted", "relative"])
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(cli, data, tmp_path, more):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert cli("train", data, "-o", whole, *QUICK, *more, "--checkpoint-every", 15, "--keep", 9).exit_code == 0
    assert cli("train", data, "-o", part, *QUICK, *more, "--checkpoint-every", 15, "--keep", 9).exit_code == 0
    for step in (30, 40):
        for path in sorted((part / f"checkpoints/step-{step}").iterdir()):
            path.unlink()
        (part / f"checkpoints/step-{step}").rmdir()
    for path in sorted((part / "final").iterdir()):
        path.unlink()
    (part / "final").rmdir()
    result = cli("train", "--resume", part)
    assert result.exit_code == 0, result.output
    for name in ("params.safetensors", "training.safetensors"):
        here, there = (run / "checkpoints/step-40" / name for run in (part, whole))
        assert here.read_bytes() == there.read_bytes()


def test_mistakes_are_told_in_one_line(cli, data, tmp_path):
    for more, words in (
        (("--l0", 5), "l0 (5) is for measured targets"),
        (("--relative", 1), "relative (1) is for measured targets"),
        (("--recipe", "measured", "--relative", 2), "relative must lie in [0, 1]"),
        (("--recipe", "measured", "--l0", 99), "--l0 must lie between 0 and --width (64)"),
        (("--recipe", "measured", "--l0", -1), "--l0 must lie between 0 and --width (64)"),
    ):
        result = cli("train", data, "-o", tmp_path / "run", "--width", 64, *more)
        assert result.exit_code == 2
        assert words in result.stderr
        assert not (tmp_path / "run").exists()


def test_long_runs_have_a_lower_learning_rate():
    rates = {steps: recipe.measured(576, width=4608, steps=steps, l0=5).lr for steps in (1000, 2000, 4000, 20_000)}
    assert rates == pytest.approx({1000: 7.5e-3, 2000: 7.5e-3, 4000: 3.75e-3, 20_000: 7.5e-4})
    assert recipe.measured(576, steps=4000, lr=0.01).lr == 0.01


@pytest.mark.parametrize(("l0", "told"), [(7.4, False), (7.6, True), (3.4, False), (3.3, True)])
def test_an_l0_far_from_what_was_asked_for_is_told(l0, told):
    config = recipe.measured(12, width=64, l0=5, lr=0.01)
    said = console.off_target(config, l0)
    assert bool(said) == told
    if told:
        assert said.startswith(f"L0 is {l0} where 5 was asked for")
        assert said.endswith("a learning rate (lr) below 0.01, or more steps than 4000, may help")
    assert not console.off_target(replace(config, l0=0.0), l0)
    assert not console.off_target(recipe.default(12), l0)


def test_the_oracle_says_that_it_has_no_trace_of_them(cli, data, tmp_path):
    run = tmp_path / "run"
    assert cli("train", data, "-o", run, *QUICK, "--l0", 5).exit_code == 0
    result = cli("oracle", "record", "--run", run, "--window", "2:3", "-o", tmp_path / "t.npz")
    assert result.exit_code == 2
    assert "those of this run are measured" in result.stderr


def test_several_ranks_have_to_be_told_how_many_neurons_are_to_be_active():
    config = recipe.measured(12, width=64)
    with pytest.raises(InputError, match="2 ranks cannot count the features of a row"):
        shards.refuse_too_many(config, Ranks(size=2))
    shards.refuse_too_many(replace(config, l0=5.0), Ranks(size=2))
    shards.refuse_too_many(config, Ranks())
