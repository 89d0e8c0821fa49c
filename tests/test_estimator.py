"""`import refgba`: what a notebook's user gets is what the command line gives, and nothing is written unasked."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refgba
from refgba import formats
from refgba.baselines import METHODS
from refgba.config import CHOOSING
from refgba.data.store import open_store
from refgba.errors import InputError
from refgba.formats.dictionary import Dictionary
from refgba.runs import folder, log, settings
from refgba.runs.trainer import TrainingError

SMALL = {"width": 24, "groups": 3, "steps": 30, "batch": 16, "seed": 3}
BASELINE = {name: value for name, value in SMALL.items() if name != "groups"}
WAYS = [
    ("gba", "numpy", "float64"),
    ("gba", "numpy", "float32"),
    ("ba", "numpy", "float64"),
    ("gba", "numba", "float32"),
    ("l1", "numpy", "float64"),
    ("topk", "numba", "float64"),
    ("batchtopk", "numpy", "float32"),
    ("jumprelu", "numpy", "float64"),
    ("matryoshka", "numba", "float32"),
    ("gated", "numba", "float32"),
    ("gated", "numpy", "float64"),
]


def small(method="gba", **others):
    """A small estimator of a method."""
    given = SMALL if method == "gba" else BASELINE
    return refgba.GBA(method, **given | ({"k": 4} if method in CHOOSING else {}) | others)


def raw(N=300, d=7, dtype="float64", seed=0):
    """Rows of many norms."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((N, d)) * rng.uniform(0.1, 30, (N, 1))).astype(dtype)


@pytest.fixture(scope="module")
def model():
    return small().fit(raw())


# ---- the numbers are the command line's ------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "backend", "dtype"), WAYS)
def test_an_array_trains_to_the_same_bits_as_the_command_on_a_file(method, backend, dtype, cli, tmp_path):
    X = raw(dtype="float16" if method == "gba" else dtype)
    np.save("x.npy", X)
    estimator = small(method, backend=backend, dtype=dtype).fit(X)
    flags = [f"--{name}={value}" for name, value in estimator.get_params().items() if value is not None
             and name in (*SMALL, "k", "dtype", "backend", "method")]  # fmt: skip
    assert cli("train", "x.npy", "-o", "run", *flags).exit_code == 0
    network = folder.open_network(tmp_path / "run")
    assert network.config == estimator.config_
    for name, array in network.params.arrays().items():
        np.testing.assert_array_equal(refgba.load("run")._network.params.arrays()[name], array)
        np.testing.assert_array_equal(estimator._network.params.arrays()[name], array)
    timeless = [{k: v for k, v in line.items() if k != "seconds"} for line in estimator.history_]
    assert timeless == [{k: v for k, v in line.items() if k != "seconds"} for line in log.read(tmp_path / "run")]
    judged = json.loads(cli("evaluate", "run", "x.npy", "--backend", backend, "--json").stdout.splitlines()[-1])
    found = estimator.evaluate(X)
    counts = {"dropped", "faint", "faint_dropped", "median_norm", "drop_below"}  # of rows that a file may leave out
    assert counts <= set(judged)
    assert {name: found[name] for name in judged if name not in counts} == {
        name: value for name, value in judged.items() if name not in counts
    }


@pytest.mark.parametrize(
    ("recipe", "backend", "dtype"), [("default", "numba", "float32"), ("paper", "numpy", "float64")]
)
def test_defaults_differ_from_the_commands_as_the_docstring_says(recipe, backend, dtype, cli, tmp_path):
    np.save("x.npy", X := raw(1200))
    estimator = refgba.GBA(recipe=recipe, adapt_every=10, **SMALL).fit(X)
    flags = ["--recipe", recipe, "--adapt-every", 10, *(f"--{name}={value}" for name, value in SMALL.items())]
    assert cli("train", "x.npy", "-o", "its-own", *flags).exit_code == 0
    told = ["--backend", "numpy", "--dtype", "float64", "--held-out-share", 0, "--centre", "auto"]
    assert cli("train", "x.npy", "-o", "told", *flags, *told).exit_code == 0
    own, same = folder.open_network(tmp_path / "its-own"), folder.open_network(tmp_path / "told")
    np.testing.assert_array_equal(same.params.V, estimator.components_)
    about = json.loads((tmp_path / "its-own/about.json").read_text())
    assert (about["backend"], own.config.dtype) == (backend, dtype)
    assert about["held_out"]["rows"] == 120
    for line in ("backend        numpy", "dtype          float64", "centre         auto", "rows held out  none"):
        assert line in refgba.GBA.__doc__


def test_an_array_a_path_and_a_store_are_one(tmp_path):
    X = raw()
    np.save(tmp_path / "x.npy", X)
    sources = [X, X.tolist(), X[:, ::-1][:, ::-1], tmp_path / "x.npy", str(tmp_path / "x.npy")]
    fitted = [small().fit(source) for source in [*sources, open_store(tmp_path / "x.npy")]]
    for other in fitted[1:]:
        np.testing.assert_array_equal(other.components_, fitted[0].components_)
    np.testing.assert_array_equal(fitted[0].transform(tmp_path / "x.npy"), fitted[0].transform(X))


def test_fitting_writes_nothing_and_leaves_the_array_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    X = raw()
    before = X.copy()
    small().fit(X).transform(X)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(X, before)


def test_with_run_the_run_is_kept_and_can_go_on(cli, tmp_path):
    X = raw()
    np.save("x.npy", X)
    kept = small().fit(tmp_path / "x.npy", run="run")
    np.testing.assert_array_equal(kept.components_, small().fit(X).components_)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    assert cli("train", "--resume", "run", "--steps", "40").exit_code == 0
    with pytest.raises(InputError, match="already holds a run"):
        small().fit(X, run="run")
    saved = kept.save("copy")
    np.testing.assert_array_equal(refgba.load(saved).components_, kept.components_)


# ---- codes of raw rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_codes_of_raw_rows_are_as_sparse_as_the_run(method):
    X = raw()
    estimator = small(method, k=4) if method in CHOOSING else small(method)
    codes = estimator.fit_transform(X)
    assert codes.shape == (300, 24)
    assert np.count_nonzero(codes) / len(X) == estimator.evaluate(X)["l0"]
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(estimator.transform(unit), codes, atol=1e-9)
    np.testing.assert_allclose(estimator.transform(1000 * X), codes, atol=1e-9)


def test_many_rows_are_coded_piece_by_piece(model, monkeypatch):
    X = raw(500)
    whole = model.transform(X)
    monkeypatch.setattr("refgba.runs.judging.ENTRIES", 24 * 7)
    np.testing.assert_allclose(model.transform(X), whole, atol=1e-12)


def test_reconstructions_are_at_unit_norm_or_at_the_scale_of_the_rows(model):
    X = raw()
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    f = model.inverse_transform(model.transform(X))
    fvu = np.sum((unit - f) ** 2) / np.sum((unit - unit.mean(axis=0)) ** 2)
    assert model.score(X) == pytest.approx(1 - fvu)
    np.testing.assert_allclose(model.reconstruct(X), f * np.linalg.norm(X, axis=1, keepdims=True), atol=1e-12)


def test_recovery_is_that_of_the_command(cli, data, tmp_path):
    estimator = small().fit(data)
    estimator.save("run")
    V = np.load(tmp_path / "v.npy")
    judged = json.loads(cli("evaluate", "run", data, "--truth", "v.npy", "--json").stdout.splitlines()[-1])
    recovery = estimator.recovery(V)
    assert {name: judged[name] for name in recovery} == recovery
    assert recovery == estimator.recovery("v.npy")
    assert estimator.frr(V, 0.8) == recovery["frr"]["0.8"]


# ---- saved, loaded, exported -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "backend", "dtype"), WAYS)
def test_what_is_saved_is_a_run_to_the_commands(method, backend, dtype, cli, tmp_path):
    X = raw(dtype=dtype)
    np.save("x.npy", X)
    estimator = small(method, backend=backend, dtype=dtype).fit(X)
    assert estimator.save("run") == Path("run")
    flags = [f"--{name}={value}" for name, value in estimator.get_params().items() if value is not None
             and name in (*SMALL, "k", "dtype", "backend", "method")]  # fmt: skip
    assert cli("train", "x.npy", "-o", "trained", *flags).exit_code == 0
    for run in ("run", "trained"):
        assert cli("evaluate", run, "x.npy").exit_code == 0
        assert cli("train", "--resume", run, "x.npy", "--steps", "45").exit_code == 0
    for name, array in folder.open_network(tmp_path / "trained").params.arrays().items():
        np.testing.assert_array_equal(folder.open_network(tmp_path / "run").params.arrays()[name], array)
    assert cli("report", "run", "--data", "x.npy", "-o", "page.html").exit_code == 0


def test_a_run_that_was_in_memory_says_so_where_its_rows_are_wanted(model, cli):
    model.save("run")
    assert "give --data" in cli("report", "run").output
    assert "an array in memory" in cli("train", "--resume", "run").output
    with pytest.raises(InputError, match="already holds a run"):
        model.save("run")


def test_a_loaded_run_is_the_fitted_estimator(model, tmp_path):
    X = raw()
    again = refgba.load(model.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    assert again.config_ == model.config_
    assert again.history_ == model.history_
    np.testing.assert_array_equal(again.fit(X).components_, model.components_)
    step = refgba.load(tmp_path / "run" / "checkpoints" / "step-30")
    np.testing.assert_array_equal(step.components_, model.components_)
    np.testing.assert_allclose(
        refgba.load(tmp_path / "run", "numba", "float32").transform(X), model.transform(X), atol=1e-4
    )


BEFORE = Path(__file__).parent / "before"


@pytest.mark.parametrize("path", sorted([*(BEFORE / "networks").iterdir(), *(BEFORE / "exports").iterdir()]), ids=str)
def test_what_earlier_versions_wrote_is_loaded_and_judged(path):
    expected = json.loads((BEFORE / "expected.json").read_text(encoding="utf-8"))
    data = BEFORE / "truth" / "X.npy"
    expected = expected[path.name]["evaluate"] if path.parent.name == "networks" else expected[f"exports/{path.name}"]
    network = refgba.load(path)
    found = network.evaluate(data)
    assert found["fvu"] == pytest.approx(expected["fvu"], rel=1e-5)
    codes = network.transform(data)
    assert np.count_nonzero(codes) / len(codes) == pytest.approx(expected["l0"], rel=1e-5)
    assert "<table>" in network._repr_html_()
    assert network.plot(data).axes


@pytest.mark.parametrize("method", ["gba", "topk"])
@pytest.mark.parametrize("format", [name for name in formats.FORMATS if name != "dictionary-learning"])
def test_exports_code_and_reconstruct_raw_rows_alike(method, format, tmp_path):
    X = raw()
    estimator = small(method).fit(X)
    exported = refgba.load(estimator.export(tmp_path / "out", format))
    assert np.count_nonzero(exported.transform(X)) == np.count_nonzero(estimator.transform(X))
    np.testing.assert_allclose(exported.reconstruct(X), estimator.reconstruct(X), atol=1e-9)
    assert exported.score(X) == pytest.approx(estimator.score(X))
    again = refgba.load(exported.export(tmp_path / "again", "npz"))
    np.testing.assert_array_equal(again.transform(X), exported.transform(X))
    assert str(tmp_path) in repr(exported)


def test_a_dictionary_for_layer_norm_reconstructs_at_the_scale_of_the_rows(tmp_path):
    X, rng = raw(d=5), np.random.default_rng(1)
    W = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    both = np.concatenate([W, -W])  # codes of a row along and against each axis: the reconstruction is exact
    zeros = np.zeros(10)
    dictionary = Dictionary(both, zeros, zeros, both, zeros[:5], subtract_b_dec=False, input="layer_norm")
    formats.npz.write(dictionary, {}, tmp_path / "out")
    np.testing.assert_allclose(refgba.load(tmp_path / "out").reconstruct(X), X, atol=1e-9)


def test_an_estimator_survives_pickle_and_copy_with_all_that_save_writes(model, tmp_path, cli):
    X = raw()
    for k, twin in enumerate((pickle.loads(pickle.dumps(model)), copy.deepcopy(model))):
        np.testing.assert_array_equal(twin.transform(X), model.transform(X))
        twin.save(f"run-{k}")
        assert cli("evaluate", f"run-{k}/checkpoints/step-30", "missing.npy").exit_code == 2
        network = folder.open_network(tmp_path / f"run-{k}")
        np.testing.assert_array_equal(network.params.V, model.components_)


# ---- parameters, mistakes, what is shown -----------------------------------------------------------------------------


def test_every_flag_of_training_is_a_parameter():
    of_settings = [name for name in refgba.GBA.parameters() if name not in
                   ("method", "recipe", "backend", "drop_zero_rows", "centre", "verbose")]  # fmt: skip
    assert of_settings == [flag.name for flag in settings.flags()]
    assert set(inspect.signature(refgba.GBA).parameters) == set(refgba.GBA().get_params())


@pytest.mark.parametrize(
    ("given", "X", "complaint"),
    [
        ({"k": 3}, raw(), "^k is no setting"),
        ({"method": "tokp"}, raw(), "method should be one of gba, ba"),
        ({"width": 2}, raw(), "must be at least groups"),
        ({"backend": "abacus"}, raw(), "there is no backend 'abacus'"),
        ({}, "missing.npy", "missing.npy: no such file"),
        ({}, raw()[0], "Reshape your data"),
        ({}, raw().reshape(30, 10, 7), "2-D array"),
        ({}, np.where(np.arange(7) == 2, np.nan, raw()), "the array: row 0 holds a NaN"),
        ({}, np.eye(3)[[0, 1, 2, 2]] * [[1], [1], [1], [0]], "row 3 is all zeros.*; drop_zero_rows skips"),
        ({}, raw()[:1], "1 sample"),
        ({}, raw()[:0], "0 sample"),
        ({}, raw() * 1j, "Complex data not supported"),
    ],
)
def test_a_mistake_is_an_error_of_one_line_in_terms_of_python(given, X, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        refgba.GBA(**SMALL | given).fit(X)
    assert "--" not in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_that_cannot_be_coded_are_named(model):
    with pytest.raises(InputError, match="row 1 is all zeros and has no direction; leave such rows out"):
        model.transform(raw(2) * [[1], [0]])
    with pytest.raises(InputError, match="X has 5 features, but GBA is expecting 7 features"):
        model.transform(raw(d=5))
    with pytest.raises(InputError, match="24 columns, one per neuron, not 7"):
        model.inverse_transform(raw())
    with pytest.raises(InputError, match="true features have d = 5"):
        model.frr(raw(d=5))
    with pytest.raises(InputError, match="unknown format"):
        model.export("out", "pickle")


def test_rows_of_zeros_are_dropped_if_that_is_asked_for():
    X = raw()
    with_zeros = np.insert(X, [5, 100], 0, axis=0)
    dropped = small(drop_zero_rows=True).fit(with_zeros)
    assert dropped._record.about["data"]["dropped"] == 2
    np.testing.assert_array_equal(dropped.components_, small().fit(X).components_)


def test_nothing_is_known_before_fit():
    estimator = refgba.GBA()
    assert not hasattr(estimator, "components_")
    for use in (estimator.transform, estimator.evaluate, estimator.frr, estimator.save):
        with pytest.raises(ValueError, match="not fitted yet"):
            use("anything")
    assert "not fitted" in estimator._repr_html_()


def test_training_that_diverges_says_so():
    with pytest.raises(TrainingError, match="training diverged"):
        small("l1", lr=1e200).fit(raw())


def test_an_estimator_shows_what_was_given_and_what_came_out(model):
    assert repr(model) == "GBA(width=24, groups=3, steps=30, batch=16, seed=3)"
    assert repr(refgba.GBA("topk", k=3)) == "GBA(method='topk', k=3)"
    html = model._repr_html_()
    assert all(f"<td>{value}</td>" in html for value in (24, 7, 30, "numpy, float64"))
    assert "&lt;" in refgba.GBA(recipe="<b>")._repr_html_()


def test_a_figure_shows_what_is_known(model, tmp_path):
    titles = [axes.get_title() for axes in model.plot().axes]
    assert titles[0] == "training"
    assert titles[1].startswith("how often neurons fire")
    assert len(model.plot(raw(), truth=np.eye(7)).axes) == 3
    assert model.plot()._repr_png_().startswith(b"\x89PNG")
    exported = refgba.load(model.export(tmp_path / "out", "npz"))
    assert len(exported.plot(truth=np.eye(7)).axes) == 1
    with pytest.raises(InputError, match="nothing is known to draw"):
        exported.plot()


def test_the_bar_is_one_line_where_someone_watches_and_nothing_elsewhere(capsys, monkeypatch):
    small().fit(raw())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    small().fit(raw())
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip("\r\n").split("\r")
    assert len(lines) == 30
    assert re.fullmatch(r"training \[#{24}\] 30/30  FVU \d\.\d+  L0 [\d.]+  dead [\d.]+%  \d+ s *", lines[-1])
    assert "s left" in lines[0]
    small(verbose=False).fit(raw())
    assert capsys.readouterr().err == ""


def test_useless_settings_warn():
    with pytest.warns(UserWarning, match="no bias will adapt"):
        small(adapt_every=50).fit(raw())


# ---- the package -----------------------------------------------------------------------------------------------------


def python(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_refgba_imports_little_and_lists_what_it_offers():
    code = "import sys, refgba; print({'numpy', 'click', 'scipy', 'matplotlib'} & set(sys.modules))"
    assert python("-c", code) == "set()\n"
    assert {"GBA", "load", "model", "metrics", "backends"} <= set(dir(refgba))
    for name in refgba.OFFERED:
        assert getattr(refgba, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'GAB'"):
        refgba.GAB  # noqa: B018


def test_every_module_is_reached_from_the_package_without_importing_it_first():
    package = Path(refgba.__file__).parent
    modules = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set(refgba.MODULES) == modules - {"__init__", "__main__"}
    code = "import refgba; print([name for name in refgba.MODULES if not getattr(refgba, name).__doc__])"
    assert python("-c", code) == "[]\n"


def test_training_and_drawing_need_no_scikit_learn():
    train = "import sys, refgba; refgba.GBA(width=16, steps=2).fit([[1, 2], [3, -1]]).plot()"
    assert python("-c", f"{train}; print('sklearn' in sys.modules)") == "False\n"


def test_types_are_told_of_the_names_that_are_imported_late():
    package = Path(refgba.__file__).parent
    assert (package / "py.typed").exists()
    stub = (package / "__init__.pyi").read_text(encoding="utf-8")
    assert set(re.findall(r"import (\w+) as \1", stub)) == {*refgba.OFFERED, *refgba.MODULES}


def test_python_m_refgba_is_the_command_line():
    assert refgba.__version__ in python("-m", "refgba", "--version")
