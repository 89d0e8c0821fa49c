"""The command line: what it prints, what it promises under --json, and that a mistake costs nothing but one line."""

from __future__ import annotations

import json
from dataclasses import fields

import emulated_cupy
import numpy as np
import pytest
from click.testing import CliRunner
from engines import engine
from safetensors.numpy import load_file

from refgba import backends
from refgba.cli import main
from refgba.config import GBAConfig
from refgba.model import imbalanced
from refgba.recipe import FIXED
from refgba.runs import folder
from refgba.sae import unit_rows

QUICK = ["--width", "24", "--groups", "3", "--steps", "30", "--batch", "32"]


@pytest.fixture
def cli(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return run


@pytest.fixture
def data(tmp_path):
    truth = imbalanced()
    np.save(tmp_path / "x.npy", truth.draw(0, 500).X)
    np.save(tmp_path / "v.npy", truth.V)
    return tmp_path / "x.npy"


def last_json(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_train_then_evaluate(cli, data, tmp_path):
    result = last_json(cli("train", data, "-o", "run", *QUICK, "--json"))
    assert {"fvu", "l0", "dead", "loss", "steps", "seconds", "run"} <= set(result)
    assert (result["steps"], result["run"]) == (30, "run")
    assert len(result["groups"]) == 3
    judged = last_json(cli("evaluate", "run", data, "--truth", tmp_path / "v.npy", "--json"))
    assert {"fvu", "explained_variance", "l0", "dead", "frr"} <= set(judged)
    assert set(judged["frr"]) == {"0.8", "0.9"}
    for name in ("fvu", "l0", "dead", "loss"):  # train judged itself on the same 500 rows
        assert judged[name] == pytest.approx(result[name], rel=1e-12)
    shown = cli("evaluate", "run", data)
    assert shown.exit_code == 0
    assert f"FVU {judged['fvu']:.4f}" in shown.stdout


def test_the_same_seed_gives_the_same_run_and_another_another(cli, data):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli("train", data, "-o", name, *QUICK, "--seed", seed).exit_code == 0
    a, b, c = ((folder.open_network(data.parent / name)).params.W for name in "abc")
    assert (a == b).all()
    assert (a != c).any()


def test_demo_reports_what_it_promises(cli):
    arguments = ["demo", "--rows", "2000", *QUICK]
    result = last_json(cli(*arguments, "--seed", "3", "--json"))
    assert {"fvu", "l0", "dead", "loss", "steps", "seconds", "run", "frr"} <= set(result)
    assert result["run"] == "runs/demo"
    shown = cli(*arguments)
    assert shown.exit_code == 0
    for part in ("FRR(0.8)", "FRR(0.9)", "100.0%", "resonance band", "at or under target", "runs/demo-2"):
        assert part in shown.stdout
    judged = last_json(
        cli("evaluate", "runs/demo", "runs/demo/data/X.npy", "--truth", "runs/demo/data/V.npy", "--json")
    )
    assert judged["frr"] == result["frr"]


def test_the_demo_is_judged_on_rows_it_was_not_trained_on(cli, tmp_path):
    result = last_json(cli("demo", "--rows", "2000", *QUICK, "--seed", "3", "--json"))
    np.save(tmp_path / "fresh.npy", imbalanced(3).draw(2000, 22_000).X)
    judged = last_json(cli("evaluate", "runs/demo", "fresh.npy", "--json"))
    assert judged["fvu"] == pytest.approx(result["fvu"], rel=1e-9)
    assert judged["rows"] == result["rows"] == 20_000


@pytest.mark.parametrize("command", ["demo", "train"])
def test_every_setting_is_a_flag(cli, command):
    text = cli(command, "--help").stdout
    for field in fields(GBAConfig):
        assert f"--{field.name.replace('_', '-')} " in text, field.name


def test_a_flag_goes_before_the_file_and_the_file_before_the_recipe(cli, data, tmp_path):
    (tmp_path / "settings.json").write_text('{"lr": 0.25, "gamma_plus": 0.125}')
    assert cli("train", data, "-o", "run", *QUICK, "--config", "settings.json", "--lr", "0.5").exit_code == 0
    config = folder.open_network(tmp_path / "run").config
    assert (config.lr, config.gamma_plus, config.form) == (0.5, 0.125, FIXED["form"])


def test_the_record_of_a_run_repeats_it(cli, data, tmp_path):
    assert cli("train", data, "-o", "a", *QUICK, "--seed", 5).exit_code == 0
    assert cli("train", data, "-o", "b", "--config", "a/config.json").exit_code == 0
    a, b = (folder.open_network(tmp_path / name) for name in "ab")
    assert a.config == b.config
    assert (a.params.W == b.params.W).all()


def test_the_papers_recipe_is_selectable(cli, data, tmp_path):
    assert cli("train", data, "-o", "run", *QUICK, "--recipe", "paper").exit_code == 0
    assert folder.open_network(tmp_path / "run").config == GBAConfig(width=24, groups=3, steps=30, batch=32)


def test_zero_rows_can_be_dropped(cli, tmp_path):
    x = imbalanced().draw(0, 100).X
    x[10] = 0
    np.save(tmp_path / "x.npy", x)
    assert "row 10 is all zeros and has no direction; --drop-zero-rows skips" in cli("train", "x.npy", "-o", "r").stderr
    assert last_json(cli("train", "x.npy", "-o", "r", *QUICK, "--drop-zero-rows", "--json"))["rows"] == 99


@pytest.mark.parametrize("kind", ["imbalanced", "uniform", "independent", "zipf", "pairs", "hierarchy"])
def test_synth_writes_what_it_says(cli, tmp_path, kind):
    result = last_json(
        cli("synth", "-o", "s", "--kind", kind, "--rows", 300, "--keep-h", "--dtype", "float32", "--json")
    )
    assert set(result["conditions"]) == {"H1", "H2", "H3", "V1"}
    X, H, V = (np.load(tmp_path / "s" / f"{name}.npy") for name in "XHV")
    assert (X.shape, H.shape, V.shape, X.dtype) == ((300, 42), (300, 128), (128, 42), np.float32)
    np.testing.assert_allclose(X, H @ V, atol=1e-4)
    assert cli("synth", "-o", "s").exit_code == 2


def test_theory_prints_the_band(cli):
    said = last_json(cli("theory", "--n", 128, "--d", 42, "--s", 3, "--p", 0.1, "--json"))
    assert said["band"]["low"] == pytest.approx(1 / 128)
    assert said["band"]["high"] == pytest.approx(128 ** (-2 / 3))
    assert said["inside"] is False
    assert "outside the band" in cli("theory", "--n", 128, "--d", 42, "--s", 3, "--p", 0.1).stdout


def test_theory_simulates_modified_ba(cli):
    arguments = ["theory", "--n", 32, "--d", 24, "--s", 2, "--p", 0.02, "--simulate", "--width", 512, "--rows", 8000]
    recovered = last_json(cli(*arguments, "--json"))["frr"]
    assert len(recovered) == 5
    assert recovered[-1] == 1.0


def test_backends_tells_which_are_usable_and_why_others_are_not(cli):
    told = last_json(cli("backends", "--json"))
    assert list(told) == list(backends.NAMES)
    assert told["numpy"] == {"usable": True, "reason": None}
    shown = cli("backends").stdout.splitlines()
    for line, (name, found) in zip(shown, told.items(), strict=True):
        assert line == f"{name:8} {'usable' if found['usable'] else 'not usable: ' + found['reason']}"


def test_a_run_of_numba_is_judged_alike_by_every_backend(cli, data):
    pytest.importorskip("numba")
    result = last_json(cli("train", data, "-o", "run", *QUICK, "--backend", "numba", "--dtype", "float32", "--json"))
    for backend, dtype in (("numba", "float32"), ("numpy", "float32"), ("numpy", "float64")):
        judged = last_json(cli("evaluate", "run", data, "--backend", backend, "--dtype", dtype, "--json"))
        assert judged["fvu"] == pytest.approx(result["fvu"], rel=1e-5)


def test_a_backend_without_its_hardware_is_refused(cli, data, tmp_path):
    reason = backends.status()["cupy"]
    if reason is None:
        pytest.skip("there is a GPU")
    for command in (["train", data, "-o", "run", *QUICK], ["demo"]):
        assert_one_line(cli(*command, "--backend", "cupy"), f"backend 'cupy' cannot run here: {reason}")
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_too_small_is_told_in_one_line_and_leaves_nothing(cli, data, tmp_path, monkeypatch):
    with engine("cupy emulated") as cupy:
        monkeypatch.setattr(cupy, "unusable", lambda: None)
        emulated_cupy.Device.mem_info = (2000, 2**30)
        refused = cli("train", data, "-o", "run", *QUICK, "--backend", "cupy")
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1].startswith(
        "Error: the GPU's memory is too small: width 24, batch 32 and d 42"
    )
    assert not (tmp_path / "run").exists()


# ---- mistakes --------------------------------------------------------------------------------------------------------


def npy(array):
    def write(path):
        np.save(path, array)

    return write


def raw(data):
    return lambda path: path.write_bytes(data)


def truncated(path):
    np.save(path, np.ones((50, 4)))
    path.write_bytes(path.read_bytes()[:-8])


def header(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return raw(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64_000))


BAD_ROWS = np.ones((20, 4))
BAD_ROWS[7, 2] = np.nan
ZERO_ROWS = np.ones((20, 4))
ZERO_ROWS[[5, 9]] = 0

BAD_DATA = {
    "missing": (lambda _: None, "no such file"),
    "empty file": (raw(b""), "the file is empty"),
    "not npy": (raw(b"PK\x03\x04 or whatever"), "not a .npy file"),
    "truncated": (truncated, "truncated"),
    "truncated header": (raw(b"\x93NUMPY\x01\x00v\x00{'descr'"), "truncated or damaged"),
    "1-D": (npy(np.ones(4)), "1-D (4,)"),
    "3-D": (npy(np.ones((2, 3, 4))), "3-D (2, 3, 4)"),
    "no rows": (npy(np.ones((0, 4))), "the array is empty, shape (0, 4)"),
    "complex": (npy(np.ones((5, 4), complex)), "dtype is complex128"),
    "integer": (npy(np.ones((5, 4), int)), "dtype is int64"),
    "object": (npy(np.array([[{}, 1]], dtype=object)), "dtype is object"),
    "parallel rows": (npy(np.outer(np.arange(1.0, 30), [1.0, 2.0, 3.0])), "all 29 rows point the same way"),
    "one row": (npy(np.ones((1, 4))), "all 1 rows point the same way"),
    "negative shape": (header((-5, 16)), "truncated or damaged"),
    "huge shape": (header((10**18, 16)), "truncated or damaged"),
    "huger shape": (header((10**30, 16)), "truncated or damaged"),
    "shape of a bool": (header((True, 16)), "truncated or damaged"),
    "NaN": (npy(BAD_ROWS), "row 7 holds a NaN, an infinity"),
    "zero rows": (npy(ZERO_ROWS), "row 5 is all zeros and has no direction; --drop-zero-rows skips"),
}


def assert_one_line(result, complaint):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert complaint in lines[0]
    assert result.stderr.rstrip().splitlines()[-1] == lines[0]
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("write", "complaint"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_one_line_and_nothing_is_written(cli, tmp_path, write, complaint):
    write(tmp_path / "bad.npy")
    before = sorted(tmp_path.rglob("*"))
    result = cli("train", "bad.npy", "-o", "runs/mine")
    assert_one_line(result, complaint)
    assert "bad.npy" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--width", 5], "width (5) must be at least groups (10)"),
        (["--htf", 0.001, "--ltf", 0.1], "htf (0.001) must be above ltf (0.1)"),
        (["--htf", 1.5], "htf must lie strictly between 0 and 1, not 1.5"),
        (["--ltf", 0], "ltf must lie strictly between 0 and 1, not 0.0"),
        (["--lr", -1], "lr must not be negative, not -1.0"),
        (["--gamma-minus", -0.1], "gamma_minus must not be negative, not -0.1"),
        (["--steps", 0], "steps must be at least 1, not 0"),
        (["--steps", "many"], "not a valid integer"),
        (["--width", 0], "width must be at least 1, not 0"),
        (["--config", "absent.json"], "absent.json: cannot be read"),
        (["--backend", "abacus"], "there is no backend 'abacus'; the backends are numpy"),
        (["--dtype", "bfloat16"], "backend 'numpy' has no dtype bfloat16; it has float64, float32"),
        (["--backend", "numba", "--dtype", "tf32"], "backend 'numba' has no dtype tf32; it has float64, float32"),
        (["--adam-eps", 0], "adam_eps must be positive, not 0.0"),
        (["--width", 10**11], "width must be at most 2,147,483,647"),
        (["--recipe", "best"], "'best' is not one of 'default', 'paper'"),
    ],
)
@pytest.mark.parametrize("command", [["train", "x.npy", "-o", "runs/mine"], ["demo"]], ids=["train", "demo"])
def test_a_bad_setting_is_one_line_and_nothing_is_written(cli, data, tmp_path, command, arguments, complaint):  # noqa: ARG001
    before = sorted(tmp_path.rglob("*"))
    assert_one_line(cli(*command, *arguments), complaint)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", [["train", "x.npy"], ["demo", "--rows", "500"]], ids=["train", "demo"])
def test_a_folder_with_a_run_is_left_alone(cli, data, tmp_path, command):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert_one_line(cli(*command, "-o", "run", *QUICK), "run: already holds a run")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_did_not_finish_is_told_from_one_that_did(cli, data, tmp_path):
    result = cli("train", data, "-o", "run", *QUICK, "--lr", "1e300")
    assert result.exit_code == 1
    assert "training diverged, the run has no result: try a lower lr" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "final").exists()
    assert_one_line(cli("train", data, "-o", "run", *QUICK), "run: holds config.json of a run that did not finish")
    assert_one_line(cli("evaluate", "run", data), "run: the run has not finished")


def test_the_last_update_is_checked_too(cli, data, tmp_path):
    flags = [*QUICK, "--steps", 1, "--form", 0, "--lr", "1e39", "--dtype", "float32"]
    assert cli("train", data, "-o", "run", *flags).exit_code == 1
    assert not (tmp_path / "run" / "final").exists()


def test_synth_overwrites_nothing(cli, tmp_path):
    (tmp_path / "V.npy").write_text("mine")
    assert_one_line(cli("synth", "-o", ".", "--rows", 10), "already holds V.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["V.npy"]
    assert (tmp_path / "V.npy").read_text() == "mine"


def test_a_full_disk_leaves_no_half_file(cli, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refgba.data.synthetic.np.save", full)
    assert_one_line(cli("synth", "-o", "s", "--rows", 10), "s: cannot be written (No space left on device)")
    assert not list((tmp_path / "s").iterdir())


def test_settings_that_never_adapt_are_remarked_on(cli, data):
    assert "no bias will adapt" in cli("train", data, "-o", "run", *QUICK, "--adapt-every", 31).stderr


def test_an_output_that_is_a_file_is_left_alone(cli, data, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert_one_line(cli("train", data, "-o", "out", *QUICK), "out: exists and is not a folder")
    assert (tmp_path / "out").read_text() == "mine"


def test_evaluating_what_does_not_fit_is_one_line(cli, data, tmp_path):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    np.save(tmp_path / "narrow.npy", np.ones((5, 3)))
    assert_one_line(cli("evaluate", "run", "narrow.npy"), "narrow.npy: its rows have d = 3, the network d = 42")
    assert_one_line(
        cli("evaluate", "run", data, "--truth", "narrow.npy"), "narrow.npy: its rows have d = 3, the network d = 42"
    )
    assert_one_line(cli("evaluate", "nowhere", data), "nowhere: not a run")
    np.save(tmp_path / "zero.npy", np.eye(42) * (np.arange(42) != 3))
    assert_one_line(cli("evaluate", "run", data, "--truth", "zero.npy"), "zero.npy: row 3 is zero or not finite")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["theory", "--n", 8, "--d", 4, "--s", 9], "s must be at most n"),
        (["theory", "--n", 8, "--d", 4, "--s", 2, "--simulate", "--width", -5], "-5 is not in the range x>=1"),
        (["synth", "-o", "s", "--kind", "hierarchy", "--children", -1], "-1 is not in the range x>=1"),
        (["synth", "-o", "s", "--noise", "1e308"], "the rows would not be finite"),
        (["theory", "--n", 8, "--d", 4, "--s", 2, "--p", 2], "p must lie strictly between 0 and 1"),
        (["synth", "-o", "s", "--rows", 0], "rows must be between 1 and"),
        (["synth", "-o", "s", "--features", "orthogonal"], "128 features cannot be orthogonal in 42 dimensions"),
        (["synth", "-o", "s", "--kind", "hierarchy", "--n", 127], "--n 127 must be a multiple of 1 + --children = 4"),
    ],
)
def test_what_cannot_be_is_one_line(cli, tmp_path, arguments, complaint):
    assert_one_line(cli(*arguments), complaint)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_width_bound_may_be_past_every_float(cli):
    arguments = ["theory", "--n", 1000, "--d", 100, "--s", 110]
    assert last_json(cli(*arguments, "--json"))["width"] is None
    assert cli(*arguments).exit_code == 0


# ---- methods, exports, stores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ba", "l1", "topk", "batchtopk", "jumprelu"])
def test_every_method_trains_is_judged_and_resumes(cli, data, method):
    quick = ["--width", 24, "--steps", 30, "--batch", 32, "--method", method]
    quick += ["--k", 4] if "topk" in method else []
    result = last_json(cli("train", data, "-o", "run", *quick, "--json"))
    assert result["steps"] == 30
    assert ("groups" in result) == (method == "ba")
    told = last_json(cli("evaluate", "run", data, "--truth", data.with_name("v.npy"), "--json"))
    assert told["fvu"] == pytest.approx(result["fvu"])
    assert set(told["frr"]) == {"0.8", "0.9"}
    assert last_json(cli("train", "--resume", "run", "--steps", 40, "--json"))["steps"] == 40


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--method", "topk", "--htf", 0.3], "--htf is no setting of method topk"),
        (["--k", 3], "--k is no setting of method gba"),
        (["--method", "ba", "--groups", 3], "method ba has one group, not 3"),
        (["--method", "topk", "--k", 0], "k must be at least 1, not 0"),
        (["--method", "l1", "--backend", "cupy"], "backend 'cupy' trains with method gba only"),
    ],
)
def test_settings_that_a_method_lacks_are_named(cli, data, flags, complaint):
    assert_one_line(cli("train", data, "-o", "run", *flags), complaint)


@pytest.mark.parametrize("format", ["saelens", "saelens-folded", "npz"])
def test_an_exported_network_is_judged_as_the_run_is(cli, data, format):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    assert cli("export", "run", "-o", "out", "--format", format).exit_code == 0
    theirs, ours = (last_json(cli("evaluate", name, data, "--json")) for name in ("out", "run"))
    assert theirs["fvu"] == pytest.approx(ours["fvu"], rel=1e-6)
    assert theirs["l0"] == ours["l0"]
    if format != "npz":
        assert cli("import", "out", "-o", "again").exit_code == 0
        assert last_json(cli("evaluate", "again", data, "--json")) == theirs
    assert_one_line(cli("export", "run", "-o", "out"), "out: is not empty; choose another folder")
    assert_one_line(cli("import", "run", "-o", "more"), "run: not a dictionary")
    assert_one_line(cli("evaluate", "out", data, "--backend", "numpy"), "a dictionary is evaluated with NumPy")


def test_what_each_neuron_does_is_written_with_rows_of_the_data(cli, data):
    x = np.load(data)
    x[[0, 7]] = 0
    np.save(data, x)
    assert cli("train", data, "-o", "run", *QUICK, "--drop-zero-rows").exit_code == 0
    result = cli("evaluate", "run", data, "--drop-zero-rows", "-o", "neurons.safetensors", "--top", 3, "--json")
    told, arrays = last_json(result), load_file("neurons.safetensors")
    assert told["l0_distribution"]["max"] <= 24
    assert arrays["frequency"].mean() * 24 == pytest.approx(told["l0"])
    params, unit = folder.open_network(data.parent / "run").params, unit_rows(np.delete(x, [0, 7], axis=0))
    y = (unit - params.b_pre) @ params.W.T + params.b
    rows = np.delete(np.arange(len(x)), [0, 7])
    best = rows[y.argmax(axis=0)]
    fired = y.max(axis=0) > 0
    assert (arrays["top_rows"][fired, 0] == best[fired]).all()
    assert (arrays["top_rows"][~fired] == -1).all()
    assert_one_line(cli("evaluate", "run", data, "-o", "neurons.safetensors"), "neurons.safetensors: exists")


def test_a_store_is_packed_told_of_and_verified(cli, data):
    flags = ["--rows-per-shard", 150, "--format", "safetensors", "--dtype", "bfloat16", "--model", "m", "--layer", 3]
    assert cli("data", "pack", data, data, "-o", "store", *flags).exit_code == 0
    told = last_json(cli("data", "info", "store", "--json"))
    assert (told["rows"], told["shards"], told["dtype"], told["about"]) == (
        1000,
        7,
        "bfloat16",
        {"model": "m", "layer": 3},
    )
    assert "1000 rows are sound; 7 of 7 shards have a checksum" in cli("data", "verify", "store").stdout
    assert cli("train", "store", "-o", "run", *QUICK).exit_code == 0
    assert_one_line(cli("data", "info", "."), "a folder without meta.json; `refgba data pack")
