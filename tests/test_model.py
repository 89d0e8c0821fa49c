"""refgba.model: the synthetic data has the statistics that it states, and rows depend on nothing but their index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgba.data.laws import F_MAX, Hierarchy, Pairs, zipf_frequencies
from refgba.errors import InputError
from refgba.identifiability import count
from refgba.model import BLOCK, FEATURES, WEIGHTS, Independent, Rows, SyntheticModel, Uniform, features, imbalanced

LAWS: dict[str, Rows] = {
    "uniform": Uniform(20, (4,)),
    "imbalanced": Uniform(30, (3, 20)),
    "independent": Independent(np.linspace(0.02, 0.9, 25)),
    "zipf": Independent(zipf_frequencies(40, mean=0.1)),
    "pairs": Pairs(20, 0.1, 0.6),
    "hierarchy": Hierarchy(parents=6, children=3, f_parent=0.3, p_child=0.4),
}
every_law = pytest.mark.parametrize("rows", LAWS.values(), ids=LAWS.keys())


def supports(rows: Rows, N: int, seed: int = 0) -> np.ndarray:
    return rows(np.random.default_rng(seed), N)


# ---- rows ----------------------------------------------------------------------------------------------------------


@every_law
def test_features_occur_with_their_population_frequencies(rows: Rows) -> None:
    N = 40_000
    f = supports(rows, N).mean(axis=0)
    assert f.shape == rows.f.shape == (rows.n,)
    # Each count is binomial (rows are independent); 5 standard deviations for each of at most 40 features.
    assert np.all(np.abs(f - rows.f) < 5 * np.sqrt(rows.f * (1 - rows.f) / N))


def test_uniform_rows_hold_exactly_s_features() -> None:
    assert np.all(supports(Uniform(20, (4,)), 1000).sum(axis=1) == 4)
    assert np.all(supports(Uniform(5, (5,)), 10))


def test_uniform_rows_hold_every_set_equally_often() -> None:
    N = 30_000
    sets, times = np.unique(supports(Uniform(5, (2,)), N), axis=0, return_counts=True)
    assert len(sets) == 10  # 5 choose 2
    assert np.all(np.abs(times - N / 10) < 5 * np.sqrt(N * 0.1 * 0.9))


def test_half_of_the_imbalanced_rows_hold_3_features_and_half_20() -> None:
    N = 10_000
    s, times = np.unique(supports(Uniform(128, (3, 20)), N).sum(axis=1), return_counts=True)
    assert s.tolist() == [3, 20]
    assert abs(times[0] - N / 2) < 5 * np.sqrt(N / 4)


@pytest.mark.parametrize("rho_2", [0.1, 0.3, 0.7, 1.0])
def test_pairs_hit_the_rho_2_of_the_dial(rho_2: float) -> None:
    f, N = 0.1, 100_000
    cooccurrence = count(supports(Pairs(10, f, rho_2), N).astype(float)).cooccurrence
    pair = np.arange(10) // 2
    within, across = pair[:, None] == pair, pair[:, None] != pair
    np.fill_diagonal(within, False)
    bound = 5 / np.sqrt(f * N)  # 5 standard deviations of |D_i n D_j| / |D_i|, times 2 sqrt(p (1 - p)) <= 1 at most
    assert np.all(np.abs(cooccurrence[within] - rho_2) <= bound * np.sqrt(rho_2 * (1 - rho_2)))
    assert np.all(np.abs(cooccurrence[across] - f) <= bound * np.sqrt(f * (1 - f)))


def test_a_child_never_occurs_without_its_parent_and_with_it_as_often_as_stated() -> None:
    rows = Hierarchy(parents=6, children=3, f_parent=0.3, p_child=0.4)
    support = supports(rows, 40_000)
    for child in range(6, rows.n):
        parent = (child - 6) // 3
        assert not np.any(support[:, child] & ~support[:, parent])
        share = support[support[:, parent], child].mean()
        assert abs(share - 0.4) < 5 * np.sqrt(0.4 * 0.6 / (0.3 * 40_000))


def test_empty_rows_are_kept_as_zero_rows() -> None:
    draw = SyntheticModel(Independent(np.full(3, 0.1)), d=2).draw(0, 2000)
    empty = ~draw.support.any(axis=1)
    assert abs(empty.mean() - 0.9**3) < 5 * np.sqrt(0.9**3 * (1 - 0.9**3) / 2000)
    assert np.all(draw.X[empty] == 0)
    assert np.all(np.any(draw.X[~empty] != 0, axis=1))


def test_zipf_frequencies_by_hand() -> None:
    # 1, 1/2, 1/3, 1/4 sum to 25/12: scaled to sum 4 * 0.25 = 1.
    np.testing.assert_allclose(zipf_frequencies(4, mean=0.25), np.array([12, 6, 4, 3]) / 25, rtol=1e-14)
    # At mean 0.5 the first would be 0.96; at 0.6 it would be 1.152, is cut, and the others share 2.4 - 0.99 = 1.41.
    np.testing.assert_allclose(zipf_frequencies(4, mean=0.5)[0], 0.96, rtol=1e-14)
    np.testing.assert_allclose(zipf_frequencies(4, mean=0.6)[1:], 1.41 * np.array([6, 4, 3]) / 13, rtol=1e-14)


@given(st.integers(1, 200), st.floats(0.001, F_MAX), st.floats(0, 3))
def test_zipf_frequencies_keep_their_mean_below_the_cap(n: int, mean: float, exponent: float) -> None:
    f = zipf_frequencies(n, mean, exponent)
    np.testing.assert_allclose(f.mean(), mean, rtol=1e-10)
    assert np.all((f > 0) & (f <= F_MAX))
    free = np.flatnonzero(f < F_MAX) + 1  # those below the cap follow the law: f_i i^exponent is one constant
    np.testing.assert_allclose(f[free - 1] * free**exponent, (f[free - 1] * free**exponent)[:1].repeat(len(free)))


# ---- weights and features ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_positive_with_second_moment_one(kind: str) -> None:
    # Fourth moments: 1 (constant), 3 (half-normal), e^4 = 54.6 (log-normal): standard error of the last 0.0073.
    h = WEIGHTS[kind](np.random.default_rng(0), 1_000_000)
    assert np.all(h > 0)
    assert abs(np.mean(h**2) - 1) < 0.04


def test_weights_follow_the_laws_they_are_named_after() -> None:
    draw = {kind: WEIGHTS[kind](np.random.default_rng(0), 200_000) for kind in WEIGHTS}
    assert np.all(draw["constant"] == 1)
    assert abs(draw["half-normal"].mean() - np.sqrt(2 / np.pi)) < 0.01
    assert abs(np.log(draw["log-normal"]).mean() + 1) < 0.01
    assert abs(np.log(draw["log-normal"]).std() - 1) < 0.01


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_lie_on_the_support_only(kind: str) -> None:
    model = SyntheticModel(Uniform(20, (4,)), d=8, weights=kind)
    draw = model.draw(0, 500)
    assert np.all(draw.support.sum(axis=1) == 4)
    assert np.all(draw.H[~draw.support] == 0)
    # The law of the weights does not disturb that of the supports.
    np.testing.assert_array_equal(draw.support, replace(model, weights="constant").draw(0, 500).support)


@pytest.mark.parametrize("kind", FEATURES)
def test_features_are_unit_rows(kind: str) -> None:
    V = features(10, 16, kind, np.random.default_rng(0))
    assert V.shape == (10, 16)
    assert V.dtype == np.float64
    assert V.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(V, axis=1), 1, rtol=1e-14)


def test_orthogonal_features_are_orthogonal() -> None:
    V = features(16, 16, "orthogonal", np.random.default_rng(0))
    np.testing.assert_allclose(V @ V.T, np.eye(16), atol=1e-13)


def test_tails_of_the_features_grow_from_gaussian_over_laplace_to_student_t() -> None:
    # Kurtosis of the entries: 3, 6, and none at all for 3 degrees of freedom.
    V = {kind: features(200, 500, kind, np.random.default_rng(0)) for kind in ("gaussian", "laplace", "student-t")}
    kurtosis = {kind: np.mean(v**4) / np.mean(v**2) ** 2 for kind, v in V.items()}
    assert kurtosis["gaussian"] == pytest.approx(3, abs=0.2)
    assert kurtosis["laplace"] == pytest.approx(6, abs=0.5)
    assert kurtosis["student-t"] > 10


# ---- the model -----------------------------------------------------------------------------------------------------


def test_rows_are_H_times_V_plus_noise_of_the_given_std() -> None:
    model = SyntheticModel(Uniform(20, (4,)), d=8, weights="half-normal")
    clean, noisy = model.draw(0, 5000), replace(model, noise=0.3).draw(0, 5000)
    np.testing.assert_allclose(clean.X, clean.H @ model.V, atol=1e-14)
    np.testing.assert_array_equal(noisy.H, clean.H)
    noise = noisy.X - clean.X  # (5000, 8)
    np.testing.assert_allclose(noise.std(axis=0), 0.3, rtol=0.05)  # standard error 1 / sqrt(2 * 5000) = 1%
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.3 * 5 / np.sqrt(5000))


@every_law
@settings(deadline=None, max_examples=20)
@given(N=st.integers(0, 3 * BLOCK), size=st.integers(1, 4 * BLOCK), seed=st.integers(0, 2**40))
def test_chunk_size_never_changes_a_bit(rows: Rows, N: int, size: int, seed: int) -> None:
    # A size of one row would draw every block BLOCK times: slow, and nothing is learnt beyond a few chunks a block.
    size = max(size, N // 20, 1)
    model = SyntheticModel(rows, d=7, weights="log-normal", noise=0.1, seed=seed)
    whole, parts = model.draw(0, N), list(model.chunks(N, size))
    assert [len(part.X) for part in parts] == [min(size, N - l) for l in range(0, N, size)]
    for array in ("X", "H"):
        joined = np.concatenate([getattr(whole, array)[:0], *(getattr(part, array) for part in parts)])
        assert joined.tobytes() == getattr(whole, array).tobytes()


@settings(deadline=None, max_examples=20)
@given(start=st.integers(0, 3 * BLOCK), rows=st.integers(0, BLOCK), more=st.integers(0, 2 * BLOCK))
def test_drawing_more_rows_leaves_the_first_ones_as_they_are(start: int, rows: int, more: int) -> None:
    model = imbalanced(seed=3)
    few, many = model.draw(start, start + rows), model.draw(0, start + rows + more)
    assert few.X.tobytes() == many.X[start : start + rows].tobytes()
    assert few.H.tobytes() == many.H[start : start + rows].tobytes()


def test_blocks_and_seeds_differ() -> None:
    first = imbalanced(seed=0).draw(0, 2 * BLOCK).H
    assert np.any(first[:BLOCK] != first[BLOCK:])
    assert np.any(first != imbalanced(seed=1).draw(0, 2 * BLOCK).H)
    assert np.any(imbalanced(seed=0).V != imbalanced(seed=1).V)


def test_V_does_not_depend_on_the_rows_nor_the_rows_on_V() -> None:
    model = imbalanced(seed=5)
    before = model.V.copy()
    model.draw(0, 10)
    np.testing.assert_array_equal(model.V, before)
    np.testing.assert_array_equal(replace(model, rows=Independent(np.full(128, 0.1)), noise=0.1).V, before)
    np.testing.assert_array_equal(replace(model, d=10, features="laplace").draw(0, 300).H, model.draw(0, 300).H)


class EveryFeature:
    """A law that uses no randomness, so that a block's stream starts with its noise."""

    n, f = 40, np.ones(40)

    def __call__(self, rng: np.random.Generator, N: int) -> np.ndarray:  # noqa: ARG002
        return np.ones((N, self.n), dtype=bool)


def test_V_and_the_blocks_have_streams_of_their_own() -> None:
    model = SyntheticModel(EveryFeature(), d=30, noise=1.0)
    draw = model.draw(0, 3 * BLOCK)
    noise = (draw.X - draw.H @ model.V).reshape(3, BLOCK, 30)
    starts = [model.V, *noise[:, : model.n]]  # four times 40 Gaussian rows: on one stream, two would be parallel
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in starts]
    for a in range(4):
        for b in range(a):
            assert np.abs(np.mean(unit[a] * unit[b]) * 30) < 5 / np.sqrt(30 * 40)  # the mean cosine


def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    imbalanced().draw(0, 10)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_float32_rows_are_the_float64_rows_rounded() -> None:
    model = replace(imbalanced(), weights="log-normal", noise=0.1)
    single, double = replace(model, dtype=np.float32).draw(0, 300), model.draw(0, 300)
    assert single.X.dtype == single.H.dtype == np.float32
    assert double.X.dtype == double.H.dtype == np.float64
    np.testing.assert_array_equal(single.X, double.X.astype(np.float32))
    np.testing.assert_array_equal(single.H, double.H.astype(np.float32))


def test_imbalanced_is_the_set_of_section_7() -> None:
    model = imbalanced()
    assert (model.n, model.d) == (128, 42)
    np.testing.assert_allclose(model.rows.f, 0.09, atol=0.001)
    assert set(model.draw(0, 100).support.sum(axis=1)) == {3, 20}


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: Uniform(5, (3, 6)), "from 1 to n = 5"),
        (lambda: Uniform(5, (0,)), "from 1 to n = 5"),
        (lambda: Uniform(5, ()), "at least one"),
        (lambda: Independent(np.array([0.5, 1.5])), "0 to 1"),
        (lambda: Independent(np.array([0.5, np.nan])), "0 to 1"),
        (lambda: Independent(np.full((2, 2), 0.5)), "one-dimensional"),
        (lambda: zipf_frequencies(5, mean=0.995), "at most 0.99"),
        (lambda: zipf_frequencies(5, mean=0.0), "above 0"),
        (lambda: zipf_frequencies(5, mean=0.1, exponent=-1.0), "exponent >= 0"),
        (lambda: Pairs(5, 0.1, 0.5), "even n"),
        (lambda: Pairs(4, 0.5, 0.1), "frequency <= rho_2"),
        (lambda: Pairs(4, 0.5, 1.1), "rho_2 <= 1"),
        (lambda: Hierarchy(0, 3, 0.1, 0.5), "at least 1"),
        (lambda: Hierarchy(2, 3, 0.1, 1.5), "at most 1"),
        (lambda: features(5, 4, "orthogonal", np.random.default_rng()), "n <= d"),
        (lambda: features(5, 4, "cauchy", np.random.default_rng()), "gaussian, orthogonal, student-t, laplace"),
        (lambda: features(5, 0, "gaussian", np.random.default_rng()), "at least 1"),
        (lambda: replace(imbalanced(), weights="uniform"), "constant, half-normal, log-normal"),
        (lambda: replace(imbalanced(), features="cauchy"), "gaussian, orthogonal"),
        (lambda: replace(imbalanced(), noise=-1.0), ">= 0"),
        (lambda: replace(imbalanced(), d=0), "at least 1 dimension"),
        (lambda: replace(imbalanced(), dtype=np.float16), "float32 or float64"),
        (lambda: imbalanced(seed=-1), ">= 0"),
        (lambda: imbalanced().draw(5, 4), "start <= stop"),
        (lambda: imbalanced().chunks(10, 0), "size >= 1"),
    ],
)
def test_mistakes_are_refused_with_what_would_be_right(mistake: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        mistake()
    assert "\n" not in str(refusal.value)


def test_chunks_may_start_anywhere():
    model = imbalanced(3)
    parts = list(model.chunks(700, 256, start=100))
    assert [len(part.X) for part in parts] == [256, 256, 88]
    assert (np.concatenate([part.X for part in parts]) == model.draw(100, 700).X).all()
    with pytest.raises(InputError, match="rows 5 to 4 in chunks of 2"):
        model.chunks(4, 2, start=5)
