"""The command line: what it prints, and what it promises under --json."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import emulated_cupy
import numpy as np
import pytest
from click.testing import CliRunner
from commands import QUICK, REFERENCE, assert_one_line, commands, last_json
from engines import engine
from safetensors.numpy import load_file

from refgba import backends
from refgba.baselines import CHOICES
from refgba.cli import main
from refgba.config import CHOOSING, GBAConfig
from refgba.model import imbalanced
from refgba.recipe import FIXED
from refgba.runs import folder, settings
from refgba.sae import unit_rows


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
    text = cli(command, "--help-all").stdout
    for field in fields(GBAConfig):
        assert f"--{field.name.replace('_', '-')} " in text, field.name


@pytest.mark.parametrize("command", [["train", "x.npy"], ["demo"], ["oracle", "record"]], ids=lambda words: words[-1])
def test_the_opposite_of_untied_is_tied(cli, data, tmp_path, command):  # noqa: ARG001
    small = ["--width", 24, "--steps", 4, "--batch", 8]
    for flags, untied in (([], True), (["--tied"], False), (["--untied"], True)):
        out = f"run{len(list(tmp_path.iterdir()))}"
        assert cli(*command, "-o", out, *small, *flags).exit_code == 0
        record = json.loads((tmp_path / out / ("index.json" if "oracle" in command else "config.json")).read_text())
        assert record.get("config", record)["untied"] is untied
    refused = cli(*command, "-o", "other", *small, "--no-untied")
    assert refused.exit_code == 2
    assert "No such option" in refused.stderr


def test_every_setting_that_is_true_or_false_has_a_flag_for_either():
    switched = {f.name for f in settings.flags() if f.kind is bool}
    assert switched == set(settings.OPPOSITES)
    assert settings.switch("untied", False) == "--tied"
    assert settings.switch("gamma_plus", 0.0) == "--gamma-plus"


def test_a_flag_goes_before_the_file_and_the_file_before_the_recipe(cli, data, tmp_path):
    (tmp_path / "settings.json").write_text('{"lr": 0.25, "gamma_plus": 0.125}')
    assert cli("train", data, "-o", "run", *QUICK, "--config", "settings.json", "--lr", "0.5").exit_code == 0
    config = folder.open_network(tmp_path / "run").config
    assert (config.lr, config.gamma_plus, config.form) == (0.5, 0.125, FIXED["form"])


def test_the_record_of_a_run_repeats_it(cli, data, tmp_path):
    assert cli("train", data, "-o", "a", *QUICK, "--seed", 5).exit_code == 0
    assert cli("train", data, "-o", "b", "--config", "a/config.json", "--backend", "numpy").exit_code == 0
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
    assert (
        "row 10 is all zeros and has no direction; --drop-zero-rows skips"
        in cli("train", "x.npy", "-o", "r", *QUICK).stderr
    )
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


@pytest.mark.parametrize("group", [[], ["data"], ["llm"], ["oracle"]], ids=str)
def test_help_lists_commands_in_whole_sentences(group):
    shown = CliRunner().invoke(main, [*group, "--help"], terminal_width=80, max_content_width=80).stdout
    listed = shown.partition("Commands:\n")[2].splitlines()
    assert len(listed) >= 3
    assert all(line.startswith("  ") and line[2] != " " and line.endswith(".") for line in listed), shown
    assert not any(line.endswith("...") for line in listed), shown


def test_the_commands_without_json_are_those_that_the_page_names():
    page = (Path(__file__).parents[1] / "docs" / "usage.md").read_text()
    _, _, after = page.partition("Every command whose result is numbers takes `--json`")
    sentence = after.partition(" say where it is")[0]
    without = {name for name, command in commands(main) if not any(p.name == "as_json" for p in command.params)}
    assert set(re.findall("`(.*?)`", sentence)) | {"oracle format"} == without


# ---- methods, exports, stores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name in CHOICES if name != "gba"])
def test_every_method_trains_is_judged_and_resumes(cli, data, method):
    quick = ["--width", 24, "--steps", 30, "--batch", 32, "--method", method, *REFERENCE]
    quick += ["--k", 4] if method in CHOOSING else []
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
        (["--method", "l1", "--tied"], "--tied is no setting of method l1"),
        (["--k", 3], "--k is no setting of method gba"),
        (["--method", "ba", "--groups", 3], "method ba has one group, not 3"),
        (["--method", "topk", "--k", 0], "k must be at least 1, not 0"),
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


@pytest.mark.parametrize("method", ["matryoshka", "gated"])
def test_what_others_call_a_jumprelu_is_exported_as_one(cli, data, method):
    flags = ["--width", 24, "--steps", 60, "--batch", 32, "--lr", 0.01, "--method", method, *REFERENCE]
    assert cli("train", data, "-o", "run", *flags, *(["--k", 4] if method in CHOOSING else [])).exit_code == 0
    assert cli("export", "run", "-o", "out").exit_code == 0
    assert json.loads((data.parent / "out" / "cfg.json").read_text())["architecture"] == "jumprelu"
    theirs, ours = (last_json(cli("evaluate", name, data, "--json")) for name in ("out", "run"))
    assert theirs["fvu"] == pytest.approx(ours["fvu"], rel=1e-5)
    assert theirs["l0"] == pytest.approx(ours["l0"], rel=1e-3)


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
