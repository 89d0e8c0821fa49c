"""A run meets the store that it is for: of its site, by its own record or by the store that it names, and all of it."""

from __future__ import annotations

import json

import pytest
from commands import assert_one_line
from llm_stores import SITE, random_store

from refgba.errors import InputError
from refgba.llm.dashboard import survey_features
from refgba.llm.matching import run_about, trained_on

SMALL = ("--width", 12, "--groups", 2, "--steps", 4, "--batch", 16, "--seed", 0, "--backend", "numpy")


def changed(store, **settings):
    """The same store as of another site, or of another side."""
    meta = json.loads((store / "meta.json").read_text())
    meta["harvest"]["settings"] |= settings
    (store / "meta.json").write_text(json.dumps(meta))
    return store


@pytest.fixture
def trained(cli, tmp_path):
    """A run on a store, another store of the same site, and two of other places."""
    random_store(tmp_path / "store")
    random_store(tmp_path / "fresh", seed=1)
    changed(random_store(tmp_path / "other", seed=1), site="model.layers.0.mlp")
    changed(random_store(tmp_path / "input", seed=1), of="input")
    assert cli("train", "store", "-o", "run", *SMALL).exit_code == 0
    return tmp_path


def earlier(run):
    """The run as an earlier version wrote it, without the site."""
    about = json.loads((run / "about.json").read_text())
    del about["data"]["harvest"]
    (run / "about.json").write_text(json.dumps(about))


def test_a_run_says_where_it_was_trained(trained):
    place = {"model": "tiny/model", "site": SITE, "of": "output"}
    for network in (trained / "run", trained / "run" / "final"):
        assert trained_on(run_about(network)) == place
    earlier(trained / "run")
    assert trained_on(run_about(trained / "run")) == place  # by the store
    (trained / "store").rename(trained / "moved")
    assert trained_on(run_about(trained / "run")) is None
    random_store(trained / "store", seed=1, contexts=30)  # another one in its place
    assert trained_on(run_about(trained / "run")) is None
    assert run_about(trained / "store") is None


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("network", ["run", "run/final"])
def test_a_store_of_another_site_is_refused(trained, network, before):
    if before:
        earlier(trained / "run")
    else:
        (trained / "store").rename(trained / "moved")  # the record of the run is enough
    assert survey_features(trained / network, trained / "fresh").rows
    with pytest.raises(InputError, match=f"is of the output of model.layers.0.mlp, but .* the output of {SITE}"):
        survey_features(trained / network, trained / "other")
    with pytest.raises(InputError, match=f"is of the input of {SITE}, but .* was trained on the output of {SITE}"):
        survey_features(trained / network, trained / "input")


def test_no_command_writes_of_another_site(cli, trained):
    for command in (
        ("dashboard",), *(("features", "--format", name) for name in ("saedashboard", "circuit-tracer", "delphi")),
    ):  # fmt: skip
        for store in ("other", "input"):
            assert_one_line(cli("llm", *command, "run", store, "-o", "out"), f"run was trained on the output of {SITE}")
            assert not (trained / "out").exists()


def test_all_that_read_a_store_say_that_it_is_not_whole(cli, trained):
    meta = json.loads((trained / "fresh" / "meta.json").read_text())
    (trained / "fresh" / "meta.json").write_text(json.dumps(meta | {"complete": False}))
    rows = sum(shard["rows"] for shard in meta["shards"])
    for k, command in enumerate(
        (
            ("train", "fresh", *SMALL),
            ("train", "fresh", *SMALL, "--dry-run"),
            ("train", "store", *SMALL, "--held-out", "fresh"),
            ("evaluate", "run", "fresh"),
            ("report", "run", "--data", "fresh"),
            ("data", "pack", "fresh"),
            ("data", "verify", "fresh"),
            ("llm", "dashboard", "run", "fresh"),
            *(("llm", "features", "run", "fresh", "--format", name) for name in ("saedashboard", "delphi")),
        )
    ):
        out = f"out{k}.safetensors" if command[0] == "evaluate" else f"out{k}"
        result = cli(*command, *(() if "verify" in command else ("-o", out)))
        assert result.exit_code == 0, result.output
        remark = f"Note: fresh: has not been written to its end; these are the {rows} rows that it has so far"
        assert result.stderr.splitlines().count(remark) == 1, (command, result.stderr)
    assert "written to its end" not in cli("train", "store", "-o", "whole", *SMALL).stderr
