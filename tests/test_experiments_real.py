"""The experiments on real activations: their statistics by hand, and verdicts that follow from the numbers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from commands import assert_one_line

pytest.importorskip("matplotlib")

from refgba import backends, experiments, gba, recipe
from refgba.errors import InputError
from refgba.experiments import consistency, frequencies, frontier, histograms, training, width
from refgba.model import Uniform
from refgba.sae import unit_rows

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Files of rows of one's own, (400, 12) to train on and (300, 12) to judge on."""
    folder = tmp_path_factory.mktemp("own")
    X = training.mixture(Uniform(16, (2,)), training.gaussian(16, 12, 0), 700, 0)
    np.save(folder / "mine.npy", X[:400])
    np.save(folder / "others.npy", X[400:])
    return folder / "mine.npy", folder / "others.npy"


# ---- data ------------------------------------------------------------------------------------------------------------


def test_activations_of_ones_own_are_trained_on_and_judged_on(own):
    real = training.opened(own)
    assert real.about() == {"name": "mine.npy", "rows": 400, "held_out": 300, "d": 12}
    config = recipe.default(12, width=32, steps=6, dtype="float32")
    for rows, file in ((real.seen(config), own[0]), (real.judged(config), own[1])):
        np.testing.assert_array_equal(np.concatenate(list(rows)), np.load(file))
    _, evaluation = training.evaluated(real, config, "numpy")
    assert evaluation.rows == 300


def test_held_out_rows_of_other_dimensions_are_an_input_error(own, tmp_path):
    np.save(tmp_path / "wide.npy", np.ones((5, 13)))
    with pytest.raises(InputError, match="wide"):
        training.opened((own[0], tmp_path / "wide.npy"))


def damaged(X, row, value):
    X = X.copy()
    X[row] = value
    return X


def test_reproduce_looks_at_its_data_before_anything_is_computed(cli, own, tmp_path, monkeypatch):
    for module in (width, frontier):
        monkeypatch.setattr(module, "measure", None)
    X = np.load(own[0])
    for name, rows in (("nan", damaged(X, 7, np.nan)), ("zero", damaged(X, 9, 0)), ("wide", np.ones((5, 13)))):
        np.save(tmp_path / f"{name}.npy", rows)
    (tmp_path / "link.npy").symlink_to(own[0])
    for train, held_out, complaint in (
        ("missing.npy", own[1], "missing.npy: no such file"),
        (own[0], "missing.npy", "missing.npy: no such file"),
        (own[0], "wide.npy", "wide.npy: its rows have d = 13"),
        (own[0], "nan.npy", "nan.npy: row 7"),
        ("zero.npy", own[1], "zero.npy: row 9"),
        (own[0], own[0], f"{own[0]}: is what is trained on; give other rows to judge on"),
        (own[0], "link.npy", "link.npy: is what is trained on"),
    ):
        files = ["--data", train, "--held-out", held_out]
        assert_one_line(cli("reproduce", "width", "frontier", *files), complaint)
        assert_one_line(cli("reproduce", "width", *files), "no experiment named takes data; these do: frontier, ")
    assert not (tmp_path / "experiments").exists()


def test_reproduce_says_which_experiments_take_no_data(cli, own, monkeypatch):
    def stopped(*_arguments, **_named):
        raise InputError("far enough")

    monkeypatch.setattr(width, "measure", stopped)
    said = cli("reproduce", "width", "frontier", "--data", own[0], "--held-out", own[1]).stderr
    assert said.splitlines() == [
        "--data and --held-out are not for width: known features are drawn for them",
        "Error: far enough",
    ]


def test_the_command_of_an_outcome_names_data_unless_they_were_the_sample(own):
    about = {"scale": "quick", "backend": "numpy"}
    again = "refgba reproduce frontier --quick --backend numpy"
    assert experiments.command("frontier", about) == again
    assert experiments.command("frontier", about | {"data": training.opened(None).about()}) == again
    mine = experiments.command("frontier", about | {"data": training.opened(own).about()})
    assert mine == f"{again} --data D/X.npy --held-out D/Y.npy"


@pytest.mark.parametrize("name", ["consistency", "histograms", "frequencies"])
def test_an_experiment_takes_data_of_ones_own(name, own, monkeypatch):
    module = experiments.load(name)
    small = replace(module.SIZES["quick"], width=32, steps=6, seeds=2)
    if name == "consistency":
        small = replace(small, k=(2,), batchtopk=(2,))
    if name == "frequencies":
        small = replace(small, n=16, d=12, s=2, rows=400, M=32, known_steps=6)
    monkeypatch.setitem(module.SIZES, "quick", small)
    outcome = experiments.run(name, "quick", "numpy", list, own)
    assert outcome.data["data"] == {"name": "mine.npy", "rows": 400, "held_out": 300, "d": 12}


# ---- consistency -----------------------------------------------------------------------------------------------------


def run_of(V, peak=None, frequency=None, W=None):
    """What `compared` looks at in a run with decoder rows V (M, d)."""
    M = len(V)
    peak = np.linspace(2, 1, M) if peak is None else peak
    frequency = np.linspace(0.1, 0.2, M) if frequency is None else frequency
    evaluation = SimpleNamespace(peak=peak, frequency=frequency, z_score=peak, summary=dict(fvu=0.1, l0=3, dead=0).copy)
    return SimpleNamespace(W=V if W is None else W, V=V), evaluation


def test_shares_are_over_the_neurons_selected():
    a, b = np.eye(40)[:20], np.eye(40)[20:]
    shared = a.copy()
    shared[10:] = b[10:]  # B has A's first ten, which have the highest peaks and the lowest frequencies
    found = consistency.compared([run_of(a), run_of(shared)])
    share = np.array(found["share"])  # (seed, by, selection, threshold)
    assert share.shape == (2, 2, 4, 4)
    by_peak, by_frequency = share[0, :, :, 2]
    np.testing.assert_array_equal(by_peak, [1, 1, 1, 0.5])
    np.testing.assert_array_equal(by_frequency, [0, 0, 0, 0.5])
    assert found["spearman"]["peak"][0] > 0.8 > -0.8 > found["spearman"]["frequency"][0]


def test_a_cosine_counts_below_its_threshold_only():
    a = np.eye(3)[:1]
    b = np.array([[0.85, np.sqrt(1 - 0.85**2), 0]])
    share = np.array(consistency.compared([run_of(a), run_of(b)])["share"])
    np.testing.assert_array_equal(share[0, 0, -1], [1, 1, 0, 0])  # at 0.7, 0.8, 0.9, 0.95


def test_decoder_rows_are_compared_and_encoder_rows_told_beside_them():
    V = np.eye(8)
    found = consistency.compared([run_of(V, W=V), run_of(V, W=unit_rows(V + np.roll(V, 1, 1)))])
    assert np.all(np.array(found["share"]) == 1)
    np.testing.assert_array_equal(found["encoder"], [[1, 0, 0, 0]] * 2)  # cosine 0.707


def test_neurons_that_are_alike_count_once():
    V = np.repeat(np.eye(4), 2, axis=0)
    assert consistency.distinct(V, np.arange(8.0), np.ones(8, bool)) == 0.5
    assert consistency.distinct(V, np.arange(8.0), np.arange(8) < 2) == 0.125
    assert consistency.distinct(V, np.arange(8.0), np.zeros(8, bool)) == 0


def test_neurons_that_never_fire_are_left_out_of_the_correlations_only():
    V = np.eye(20)
    W = V.copy()
    W[:10] = np.roll(V[:10], 10, axis=1) * np.sqrt(0.5) + V[:10] * np.sqrt(0.5)
    silent = np.where(np.arange(20) < 10, 0.0, 0.1 + np.arange(20) / 100)
    found = consistency.compared([run_of(V, frequency=silent), run_of(V[::-1], frequency=silent)])
    assert found["share"][0][0][-1] == [1, 1, 1, 1]
    assert sum(len(bins) for bins in found["curves"].values()) == 3 * min(consistency.BINS, 20)
    assert min(x for x, *_ in found["curves"]["frequency"]) > 0.1
    assert found["spearman"]["frequency"] == [None, None]  # all are found again: no correlation is defined


def test_curves_have_the_quartiles_of_bins():
    x = np.arange(120.0)
    bins = consistency.curve(x[::-1].copy(), 2 * x[::-1])
    assert len(bins) == consistency.BINS
    assert bins[0] == [4.5, 4.5, 9, 13.5]
    assert consistency.curve(x[:3], x[:3])[-1] == [2, 2, 2, 2]


def network(method, l0, share, setting=None):
    """A network with the same share over all selections, at each threshold."""
    shares = np.broadcast_to(np.asarray(share, float), (2, 2, 4, 4)).tolist()
    return {"method": method, "setting": setting, "l0": [l0, l0], "share": shares, "encoder": [[0.0] * 4] * 2}


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (0.5, 0.2, "Reproduced: of 32 comparisons (threshold by selection) GBA (L0 10) is above TopK (K = 8) in"),
        ([0.5, 0.5, 0.5, 0.1], 0.2, "Reproduced in part"),
        ([0.5, 0.1, 0.1, 0.1], 0.2, "Not reproduced"),  # above in a quarter of them
        (0.1, 0.2, "Not reproduced"),
        (0.0, 0.0, "Not reproduced"),  # nothing found by either is no win
        (1.0, 1.0, "Reproduced"),  # everything found by both is no loss
    ],
)
def test_gba_is_held_against_the_topk_of_nearest_l0(ours, theirs, words):
    rest = [network("GBA, tied", 9, 0.3), network("BA", 9, 0.1, 0.02), network("L1", 16, 0.6, 0.08)]
    tops = [network("TopK", 8, theirs, 8), network("TopK", 60, 0.9, 60)]
    said = consistency.verdict({"networks": [network("GBA", 10, ours), *rest, *tops]})
    assert said.startswith(words)
    assert "TopK (K = 8)" in said
    assert f"above every K in {32 if np.all(np.equal(ours, 1)) else 0}" in said


def test_the_most_consistent_of_the_other_methods_is_named():
    networks = [network("GBA", 10, 0.9), network("GBA, tied", 9, 0.95), network("TopK", 10, 0.1, 10)]
    said = consistency.verdict({"networks": [*networks, network("L1", 16, 0.6, 0.08)]})
    assert said.endswith("tied 95.0%. Of the others L1 0.08 (L0 16) is the most consistent, 60.0%.")


# ---- histograms ------------------------------------------------------------------------------------------------------


def test_frequencies_are_told_against_the_target_of_the_group():
    config = recipe.default(4, width=8, groups=2, htf=0.1, ltf=0.01, steps=10)
    p = np.array([0.1, 0.05, 0.2, 0.02, 0.01, 0.0, 0.004, 0.02])
    first, second = histograms.frequencies(p, config)
    assert (first["within"], first["above"], first["below"], first["never"]) == (0.5, 0.25, 0.25, 0)
    assert (second["within"], second["above"], second["below"], second["never"]) == (0.25, 0.25, 0.5, 0.25)
    assert first["median"] == pytest.approx(0.075)


def test_a_run_is_looked_at_before_its_first_step_after_forming_and_at_its_end(own):
    real = training.opened(own)
    config = recipe.default(12, width=32, steps=8, form=0.5, dtype="float64")
    seen = list(histograms.snapshots(real, config, backends.load("numpy")))
    assert len(seen) == len(histograms.STAGES)
    np.testing.assert_array_equal(seen[0].W, gba.random_params(config, 12).W)
    assert (seen[0].b == config.b_init).all()
    trained, _ = training.evaluated(real, config, "numpy")
    np.testing.assert_array_equal(seen[2].W, trained.W)
    assert (seen[1].b != config.b_init).any()
    assert not seen[1].b_pre.any()  # trained after the forming steps only


def test_pooled_pre_activations_of_random_neurons_are_gaussian_with_the_gate_in_the_middle():
    config = recipe.default(64, width=40, groups=4, steps=10)
    y = RNG(0).standard_normal((4000, 40)) * np.linspace(1, 5, 40) + np.linspace(-3, 3, 40)
    evaluation = SimpleNamespace(mean=y.mean(axis=0), std=y.std(axis=0))
    groups = histograms.pooled(y, evaluation, config)
    middles = (histograms.EDGES[1:] + histograms.EDGES[:-1]) / 2
    assert len(groups) == 3
    for group in groups:
        np.testing.assert_allclose(
            group["density"], np.exp(-(middles**2) / 2) / np.sqrt(2 * np.pi), rtol=0.1, atol=5e-3
        )
    low, median, high = groups[0]["gate"]  # neurons of the first group have means below 0: their gate is above them
    assert 0 < low < median < high


def test_counting_noise_alone_is_that_of_binomial_draws():
    config = recipe.default(4, width=40, groups=2, htf=0.1, ltf=0.01, steps=10)
    target = config.target()[config.group()]
    p = 0.8 * target
    drawn = RNG(4).binomial(500, p, (20_000, 40)) / 500
    within = np.mean((drawn >= target / 2 - 1e-12) & (drawn <= target + 1e-12))
    assert histograms.by_chance(p, 500, config) == pytest.approx(within, abs=0.005)
    assert histograms.by_chance(p, 10**7, config) == pytest.approx(1, abs=1e-3)


def histogram_data(within, median, never=0.0):
    def group(p):
        shares = {"within": within, "above": 0.0, "below": 1 - within, "never": never}
        return {"low": p, "median": median * p, "high": p} | shares

    target = [0.1, 0.01]
    frequency = {s: {rows: [[group(p) for p in target]] * 2 for rows in histograms.ROWS} for s in histograms.STAGES}
    return {"target": target, "frequency": frequency, "by_chance": [0.8, 0.8]}


@pytest.mark.parametrize(
    ("within", "median", "word"),
    [(0.9, 0.7, "Reproduced:"), (0.5, 0.7, "Reproduced in part:"), (0.5, 1.2, "Not reproduced:")],
)
def test_targets_are_met_by_the_medians_and_by_most_neurons(within, median, word):
    said = histograms.verdict(histogram_data(within, median))
    assert said.startswith(word)
    assert f"in {within:.0%} of cases" in said


# ---- frequencies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [0.002, 0.02, 0.2, 0.5])
def test_how_often_a_feature_occurs_is_found_above_a_symmetric_bulk(f):
    rng = RNG(1)
    z = rng.standard_normal((40_000, 2)) + 8 * (rng.random((40_000, 2)) < f)
    z[:, 1] = 0.01 * z[:, 1] - 3  # scale and place do not matter
    assert frequencies.occurrence(z, 4) == pytest.approx(f, rel=0.1)


def test_a_bulk_with_heavy_tails_on_both_sides_holds_no_feature():
    z = RNG(2).standard_t(3, (40_000, 3))
    assert np.mean(z > 4, axis=0).min() > 0.01  # which counting one tail would take for a feature
    assert frequencies.occurrence(z, 4).max() < 0.002


def test_strengths_that_do_not_reach_the_level_are_missed():
    rng = RNG(3)
    z = rng.standard_normal((40_000, 1)) + 4 * (rng.random((40_000, 1)) < 0.05)
    estimate = [float(frequencies.occurrence(z, level)[0]) for level in (3, 4, 5)]
    assert 0.05 > estimate[0] > estimate[1] > estimate[2] > 0
    assert estimate[1] == pytest.approx(0.025, abs=0.005)


def test_seeds_agree_on_what_both_have_and_it_counts_once():
    E = np.eye(8)
    near = unit_rows(E[:1] + 0.2 * E[1:2])
    V = [np.concatenate([E[:2], near, E[2:3]]), np.concatenate([E[:2], E[3:5]]), np.stack([E[1], *E[5:8]])]
    directions = np.array([V[i][m] for i, m in frequencies.agreed(V)])
    assert len(directions) == 2  # E0 (near is the same) and E1; E2 to E7 are in one seed only
    np.testing.assert_array_equal(np.sort(directions.argmax(axis=1)), [0, 1])
    assert frequencies.agreed([E[:4], E[4:]]) == []


def test_nothing_is_estimated_of_no_features():
    assert frequencies.estimates(np.empty((0, 5)), np.ones((10, 5))) == []


def frequency_data(estimates, points=((0.01, 0.01), (0.02, 0.02), (0.1, 0.1))):
    known = {"points": [[f, e, e, e] for f, e in points]}
    real = {name: {"estimates": [[f] * 3 for f in found]} for name, found in estimates.items()}
    return {
        "data": {"held_out": 10_000, "d": 100},
        "range": {"htf": 0.1, "ltf": 1e-3},
        "target": [0.1, 0.01, 0.001],
        "known": dict.fromkeys(frequencies.WEIGHTS, known),
        "real": real,
    }


@pytest.mark.parametrize(
    ("estimates", "word"),
    [
        ({"GBA": [0.01, 0.02], "L1": [0.05]}, "Reproduced:"),
        ({"GBA": [0.01, 0.0], "L1": [0.05]}, "Reproduced in part:"),
        ({"GBA": [0.2, 0.0], "L1": []}, "Not reproduced:"),
        ({"GBA": [], "L1": []}, "Not reproduced:"),
    ],
)
def test_a_range_is_judged_by_the_features_outside_of_it(estimates, word):
    assert frequencies.verdict(frequency_data(estimates)).startswith(word)


def test_a_poor_estimator_reproduces_nothing():
    points = [(0.01, 0.1), (0.02, 0.01), (0.1, 0.02)]
    said = frequencies.verdict(frequency_data({"GBA": [0.01, 0.02]}, points))
    assert said.startswith("Not reproduced:")
    assert "too poor to tell" in said


def test_a_feature_is_covered_by_a_target_within_the_band_of_the_theory():
    data = frequency_data({"GBA": [0.2, 0.05, 0.0005, 0.0]})
    above, below, uncovered = frequencies.outside(data, "GBA")
    assert (above, below) == (0.25, 0.5)
    assert uncovered == 0.25  # 0.2, above all targets; for 0.0005 the band goes up to 0.022, and none is one of 10,000
