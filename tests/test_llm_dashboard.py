"""What neurons fire on: the survey of a store, its heaps, and the contexts that are shown, against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dictionaries import network, topk
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_stores import SPECIAL, random_store, write_run, write_store

from refgba import formats
from refgba.config import GBAConfig
from refgba.data.activations import open_activations
from refgba.errors import InputError
from refgba.formats.trained import from_params
from refgba.llm.dashboard import survey, survey_features
from refgba.llm.dashboard.best import Best
from refgba.llm.records import open_harvest
from refgba.runs import judging
from refgba.sae import Params

D, M = 6, 40


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return random_store(tmp_path_factory.mktemp("store") / "store", d=D)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Runs of GBA, whose neuron 3 never fires, one of them of centred rows, and dictionaries of other kinds.

    In these neurons compete, or rows are scaled to another norm.
    """
    path = tmp_path_factory.mktemp("networks")
    params, config = network(M=M, d=D)
    params.b[:] = -0.2
    params.a[:] = 1 + np.arange(M) / M
    params.b[3] = -1e9
    made = {"gba": write_run(path / "gba", params, config)}
    made["centred"] = write_run(path / "centred", params, config, centre=np.linspace(-2.0, 3.0, D))
    formats.export(*topk(k=4, M=M, d=D), {}, path / "topk", "npz")
    formats.export(params, config, {}, path / "saelens", "saelens")
    return made | {name: path / name for name in ("topk", "saelens")}


KINDS = ("gba", "centred", "topk", "saelens")


def dense(features):
    """Codes (rows, M) of the whole store, and of each row its context and its last tokens."""
    harvest, dictionary = features.harvest, features.dictionary
    rows = np.concatenate([harvest.rows(k) for k in range(len(harvest.files))])
    margin, codes = dictionary.encode(dictionary.prepare(rows))
    contexts = [harvest.context(row) for row in range(len(rows))]
    keys = [tuple(c.ids[max(0, c.position - 7) : c.position + 1].tolist()) for c in contexts]
    return codes * (margin > 0), np.array([c.number for c in contexts]), keys


def passages(codes, context, keys, m):
    """Of a neuron the row and activation of each different passage, the highest first."""
    best = {}
    for c in np.unique(context):
        rows = np.flatnonzero(context == c)
        row = int(rows[np.argmax(codes[rows, m])])
        if codes[row, m] > 0 and (keys[row] not in best or codes[best[keys[row]], m] < codes[row, m]):
            best[keys[row]] = row
    rows = sorted(best.values(), key=lambda row: (-codes[row, m], row))
    return rows, [float(codes[row, m]) for row in rows]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 4)), max_size=40), st.integers(1, 9))
def test_a_heap_holds_the_best_of_different_keys_however_it_is_fed(entries, step):
    heap = Best(3, 4)
    neuron, score, key = (np.array([e[k] for e in entries], np.int64) for k in range(3))
    row = np.arange(len(entries))
    for start in range(0, len(entries), step):
        part = slice(start, start + step)
        value = score[part].astype(float)
        heap.add(neuron[part], value, row[part], key[part].astype(np.uint64), -value)
    for m in range(3):
        best = {}
        for i in row[neuron == m].tolist():
            if key[i] not in best or score[best[key[i]]] < score[i]:
                best[key[i]] = i
        expected = sorted(best.values(), key=lambda i: (-score[i], i))[:4]
        assert heap.row[m][heap.row[m] >= 0].tolist() == expected
        assert heap.value[m, : len(expected)].tolist() == [-score[i] for i in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_evaluate_on_rows_scaled_as_in_training(networks, store, kind):
    features = survey_features(networks[kind], store)
    judged = judging.judge(networks[kind], store).arrays()
    np.testing.assert_array_equal(features.frequency, judged["frequency"])
    codes, _, _ = dense(features)
    assert features.rows == len(codes) == len(open_activations(store))
    np.testing.assert_allclose(features.peak, codes.max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(features.mean, codes.sum(0) / np.maximum(1, (codes > 0).sum(0)), rtol=1e-6)
    np.testing.assert_array_equal(features.survey.histogram.sum(axis=1), features.survey.count)
    limits = survey.edges()
    for m in range(M):
        expected, _ = np.histogram(codes[:, m][codes[:, m] > 0], limits)
        np.testing.assert_array_equal(features.survey.histogram[m], expected)
    assert f"{M} neurons, {len(codes)} rows" in repr(features)


@pytest.mark.parametrize("kind", KINDS)
def test_the_highest_contexts_are_those_of_brute_force_each_passage_once(networks, store, kind):
    features = survey_features(networks[kind], store, top=5)
    found = dense(features)
    repeated = 0
    for m in range(M):
        rows, values = passages(*found, m)
        kept = features.survey.top.row[m] >= 0
        assert features.survey.top.row[m][kept].tolist() == rows[:5]
        np.testing.assert_allclose(features.survey.top.value[m][kept], values[:5], rtol=1e-6)
        firing = {c for c in np.unique(found[1]) if found[0][found[1] == c, m].any()}
        repeated += len(firing) - len(rows)
    assert repeated > 0  # there were passages to be left out


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_depends_on_how_many_rows_are_worked_on_at_once(networks, store, kind, monkeypatch):
    whole = survey_features(networks[kind], store)
    monkeypatch.setattr(survey, "ENTRIES", 1)  # 16 rows at a time: contexts are cut
    cut = survey_features(networks[kind], store)
    for name in ("count", "histogram"):
        np.testing.assert_array_equal(getattr(whole.survey, name), getattr(cut.survey, name))
    for heap in ("top", "sample"):
        np.testing.assert_array_equal(getattr(whole.survey, heap).row, getattr(cut.survey, heap).row)


def test_the_sample_follows_the_seed_and_takes_every_passage_alike(networks, store):
    taken: list[int] = []
    features = survey_features(networks["gba"], store)
    found = dense(features)
    m = int(np.argmax(features.survey.count))
    ends = [found[2][row] for row in passages(*found, m)[0]]  # each passage by its last tokens
    for seed in range(200):
        sample = survey_features(networks["gba"], store, seed=seed, quantiles=2, examples=2).survey.sample
        drawn = [found[2][row] for row in sample.row[m].tolist()]
        assert len(set(drawn)) == 4
        assert (found[0][sample.row[m], m] > 0).all()
        taken += [ends.index(end) for end in drawn]
    again = survey_features(networks["gba"], store, seed=199, quantiles=2, examples=2).survey.sample
    np.testing.assert_array_equal(again.row, sample.row)
    expected = 800 / len(ends)
    chi_squared = ((np.bincount(taken, minlength=len(ends)) - expected) ** 2 / expected).sum()
    assert chi_squared < 2 * len(ends)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_show_the_activation_at_every_token(networks, store, kind):
    features = survey_features(networks[kind], store, top=4, quantiles=3, examples=2, window=5)
    codes, _, _ = dense(features)
    harvest = features.harvest
    row_of = {(c.number, c.position): r for r in range(len(codes)) if (c := harvest.context(r))}
    [(neurons, examples)] = list(features.batches())
    assert neurons.tolist() == list(range(M))
    for e in range(len(examples)):
        m, context = int(examples.neuron[e]), harvest.context(int(examples.row[e]))
        begin, length = int(examples.begin[e]), int(examples.length[e])
        assert length == min(5, len(context.ids))
        assert begin <= context.position < begin + length <= len(context.ids)
        assert examples.document[e] == context.document
        pieces = [text or SPECIAL for text in context.pieces]
        assert examples.tokens(e) == pieces[begin : begin + length]
        assert examples.id[e, :length].tolist() == context.ids[begin : begin + length].tolist()
        for i in range(length):
            row = row_of.get((context.number, begin + i))
            value = examples.activation[e, i]
            assert np.isnan(value) if row is None else value == pytest.approx(codes[row, m], rel=1e-5)
        assert np.isnan(examples.activation[e, length:]).all()
        assert examples.activation[e, examples.peak(e)] == np.float32(examples.value[e]) > 0
    for m in range(M):
        mine = examples.of(m)
        assert len(set(zip(examples.row[mine].tolist(), strict=True))) == mine.stop - mine.start
        for part in range(4):
            values = examples.value[mine][examples.part[mine] == part]
            assert (np.diff(values) <= 0).all()
        assert (np.diff(examples.part[mine]) >= 0).all()
    alone = features.examples(7)
    np.testing.assert_array_equal(alone.row, examples.row[examples.of(7)])
    assert "[" in repr(alone)


def test_quantiles_cut_the_sample_by_activation(tmp_path):
    """One neuron, which fires on 12 passages with 1, 2, .., 12; of two quantiles, the first has the higher half."""
    contexts = [([SPECIAL, f"w{i}"], np.array([[0.0, 0], [i, 0]])) for i in range(1, 13)]
    store = write_store(tmp_path / "store", [contexts])
    dictionary = {"W_enc": np.array([[1.0, 0]]), "W_dec": np.array([[1.0, 0]]), "b_enc": np.zeros(1)}
    formats.npz.write(
        formats.Dictionary(**dictionary, threshold=np.zeros(1), b_dec=np.zeros(2), subtract_b_dec=False, input="raw"),
        {},
        tmp_path / "one",
    )
    features = survey_features(tmp_path / "one", store, top=2, quantiles=2, examples=6)
    examples = features.examples(0)
    shown = {int(q): examples.value[examples.part == q].tolist() for q in np.unique(examples.part)}
    assert shown == {0: [12.0, 11.0], 1: [10.0, 9.0, 8.0, 7.0], 2: [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}
    assert examples.tokens(0) == [SPECIAL, "w12"]


def test_targets_are_those_of_the_groups(tmp_path, networks, store):
    params, _ = network(M=8, d=D)
    config = GBAConfig(width=8, groups=2, htf=0.5, ltf=0.25)
    features = survey_features(write_run(tmp_path / "run", params, config), store)
    np.testing.assert_allclose(features.target, [0.5] * 4 + [0.25] * 4)
    assert survey_features(networks["topk"], store).target is None


def test_rows_of_zeros_are_left_out_where_rows_are_scaled(tmp_path, networks):
    x = np.random.default_rng(0).standard_normal((4, D))
    x[2] = 0
    store = write_store(tmp_path / "store", [[([SPECIAL, "a", "b", "c"], x)]])
    features = survey_features(networks["gba"], store)
    assert (features.rows, features.survey.zeros) == (2, 1)
    assert len(features.examples(list(range(M)))) > 0


def test_what_does_not_fit_is_refused(tmp_path, networks, store):
    with pytest.raises(InputError, match="its rows have d = 6, the network d = 4"):
        survey_features(write_run(tmp_path / "run", network(M=7, d=4)[0]), store)
    with pytest.raises(InputError, match="window is 0, it should be from 1 to 4096"):
        survey_features(networks["gba"], store, window=0)
    np.save(tmp_path / "X.npy", np.ones((4, D)))
    with pytest.raises(InputError, match="not of `refgba harvest`"):
        survey_features(networks["gba"], tmp_path / "X.npy")
    with pytest.raises(InputError, match="there is no neuron 40; they are numbered from 0 to 39"):
        survey_features(networks["gba"], store).examples(40)


def test_a_row_that_is_not_finite_is_named(tmp_path, networks):
    x = np.ones((3, D))
    store = write_store(tmp_path / "store", [[([SPECIAL, "a", "b"], x)], [([SPECIAL, "a", "b"], x)]])
    rows = np.load(store / "00001.npy")
    rows[1, 0] = np.nan
    np.save(store / "00001.npy", rows)
    with pytest.raises(InputError, match=r"00001.npy: row 1 \(row 3 of .*\): is not finite"):
        survey_features(networks["gba"], store)


def test_parameters_are_never_held_against_another_scale(tmp_path, store):
    """A network's codes do not change with the norm of the rows, since it is trained on rows of unit norm."""
    params = Params(np.eye(2, D), np.ones(2), np.full(2, -0.1), np.zeros(D))
    features = survey_features(write_run(tmp_path / "run", params), store)
    harvest = open_harvest(Path(store))
    rows = np.concatenate([harvest.rows(k) for k in range(len(harvest.files))]).astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_array_equal(features.survey.count, (unit[:, :2] > 0.1).sum(axis=0))
    assert from_params(params, GBAConfig(width=2, groups=1)).input == "unit"
