"""The dashboard's folder: what is in it, that text stays text, and that a browser opens it from disk."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest
from commands import assert_one_line, last_json
from dictionaries import network
from llm_stores import SPECIAL, random_store, write_run, write_store

from refgba.errors import InputError
from refgba.llm.dashboard import Features, survey_features, write_dashboard
from refgba.llm.dashboard.folder import PER_FILE
from refgba.llm.dashboard.logits import Effects
from refgba.llm.dashboard.survey import Choice, Survey

EVIL = "</script><script>document.title='owned'</script>"


def inflated(text):
    return zlib.decompress(base64.b64decode(text), -15)


def blocks(folder):
    """The blocks of data in index.html, by name."""
    text = (folder / "index.html").read_text()
    found = dict(re.findall(r'<script type="application/octet-stream" id="(\w+)">([^<]*)</script>', text))
    about = json.loads(found["about"])
    data, columns, at = inflated(found["columns"]), {}, 0
    for column in about["columns"]:
        size = about["neurons"] * column.get("width", 1)
        words = np.frombuffer(data, np.uint8, 4 * size, at).reshape(4, -1).T.copy().view("<u4").ravel()
        columns[column["name"]] = words.view(np.float32) if column["kind"] == "float" else words
        at += 4 * size
    return about, columns, json.loads(inflated(found["words"]))


def entries(folder):
    """What the files say of each neuron, with texts in place of their numbers."""
    found = {}
    for file in folder.glob("neurons-*.js"):
        for line in file.read_text().splitlines():
            part = json.loads(inflated(re.fullmatch(r'neuronFile\(\d+, "([\w+/=]+)"\);', line)[1]))
            for entry in part["neurons"]:
                for context in entry["contexts"]:
                    context[4] = [part["texts"][i] for i in context[4]]
                for name in ("promoted", "suppressed"):
                    if name in entry:
                        entry[name] = [(part["texts"][i], value) for i, value in entry[name]]
                found[entry["neuron"]] = entry
    return found


def browser(tmp_path, page, width=1280):
    """The page as Chromium has it when its scripts have run."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium to open the page with")
    quiet = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
    command = [chromium, "--headless", "--no-sandbox", "--no-first-run", "--disable-sync", *quiet]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'chromium'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", page]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).stdout.decode()


@pytest.fixture
def features(tmp_path):
    store = random_store(tmp_path / "store")
    return survey_features(write_run(tmp_path / "run", network(M=PER_FILE + 6, d=6)[0]), store, top=3, examples=1)


def test_the_folder_says_what_the_survey_found(features, tmp_path, monkeypatch):
    monkeypatch.setattr("refgba.llm.dashboard.examples.CELLS", 8 * 48 * 10)  # ten neurons at a time
    write_dashboard(features, tmp_path / "page", other=tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "page").iterdir())
    assert names == ["index.html", "neurons-0.js", "neurons-1.js"]
    about, columns, words = blocks(tmp_path / "page")
    assert (about["neurons"], about["rows"]) == (features.M, features.rows)
    np.testing.assert_array_equal(columns["count"], features.survey.count)
    np.testing.assert_array_equal(columns["peak"], features.peak.astype(np.float32))
    np.testing.assert_allclose(columns["target"], features.target)
    np.testing.assert_allclose(columns["agreeing"], 1, atol=1e-6)  # the other run is the same
    found = entries(tmp_path / "page")
    assert sorted(found) == list(range(features.M))
    for m, entry in found.items():
        examples = features.examples(m)
        assert entry["agreeing"] == [[m, 1.0]]
        assert sum(entry.get("histogram", [0, []])[1]) == features.survey.count[m]
        assert len(entry["contexts"]) == len(examples)
        for e, (part, document, position, peak, tokens, fired, left) in enumerate(entry["contexts"]):
            assert (part, document, position) == (examples.part[e], examples.document[e], examples.position[e])
            assert tokens == examples.tokens(e)
            assert dict(fired)[peak] == pytest.approx(examples.value[e], rel=1e-3)
            assert left == np.flatnonzero(np.isnan(examples.activation[e, : examples.length[e]])).tolist()
        top = [c[4][c[3]] for c in entry["contexts"] if c[0] == 0]
        shown = columns["tokens"].reshape(features.M, -1)[m]
        assert [words[i] for i in shown if i != about["absent"]] == list(dict.fromkeys(top))


def test_effects_on_logits_are_shown_where_they_are_known(features, tmp_path):
    M = features.M
    ids = np.tile([4, 5], (M, 1))
    value = np.tile([2.0, 1.0], (M, 1))
    effects = Effects(ids, value, ids[:, ::-1], -value, np.ones((M, 40), np.int64), {4: " up", 5: EVIL})
    write_dashboard(features, tmp_path / "page", effects)
    entry = entries(tmp_path / "page")[0]
    assert entry["promoted"] == [(" up", 2.0), (EVIL, 1.0)]
    assert entry["suppressed"] == [(EVIL, -2.0), (" up", -1.0)]


def test_a_script_in_a_token_stays_text(tmp_path):
    rows = np.abs(np.random.default_rng(0).standard_normal((3, 6)))
    store = write_store(tmp_path / "store", [[([SPECIAL, "<script>", EVIL], rows)]])
    params = network(M=4, d=6)[0]
    params.W[:] = np.abs(params.W)
    params.b[:], params.b_pre[:] = -0.01, 0
    features = survey_features(write_run(tmp_path / "run", params), store)
    write_dashboard(features, tmp_path / "page")
    for file in (tmp_path / "page").iterdir():
        assert "owned" not in file.read_text()
    page = (tmp_path / "page" / "index.html").as_uri()
    table, one = browser(tmp_path, page), browser(tmp_path, f"{page}#2")
    assert re.search(r"<title>(.*)</title>", one)[1].startswith("run: model.layers.3.mlp")
    assert "&lt;script&gt;" in table
    assert 'data-ready="2"' in one
    assert "&lt;/script&gt;&lt;script&gt;document.title='owned'&lt;/script&gt;</span>" in one
    assert "left out of the harvest" in one
    assert len(re.findall("<script", one)) == len(re.findall("<script", table)) == 4  # three of data, and the page's


@pytest.mark.slow
def test_sixty_six_thousand_neurons_open_at_once(tmp_path):
    M, rng = 66_000, np.random.default_rng(0)
    store = random_store(tmp_path / "store")
    params = network(M=M, d=6)[0]
    made = survey_features(write_run(tmp_path / "run", params), store, top=1, examples=0, window=2)
    survey = Survey(M, Choice(top=1, examples=0, window=2))
    survey.rows, survey.count = 10**6, rng.integers(0, 10**6, M)
    survey.total = rng.random(M) * survey.count
    survey.top = made.survey.top
    survey.top.value[:, 0] = rng.random(M)
    features = Features(made.path, made.dictionary, made.harvest, made.target, survey)
    write_dashboard(features, tmp_path / "page")
    index = tmp_path / "page" / "index.html"
    assert index.stat().st_size < 10e6
    assert len(list((tmp_path / "page").glob("neurons-*.js"))) == -(-M // PER_FILE)
    shown = browser(tmp_path, index.as_uri())
    assert "1 to 25 of 66,000 neurons" in shown
    assert int(re.search(r'data-ready="(\d+)"', shown)[1]) < 2000  # ms


def test_the_command_writes_the_folder_whole_or_not_at_all(cli, tmp_path):
    store = random_store(tmp_path / "store")
    run = write_run(tmp_path / "run", network(M=8, d=6)[0])
    found = last_json(cli("llm", "dashboard", run, store, "-o", "page", "--top", "2", "--json"))
    assert found["neurons"] == 8
    assert (tmp_path / found["page"]).is_file()
    assert_one_line(cli("llm", "dashboard", run, store, "-o", "page"), "is not empty")
    narrow = write_run(tmp_path / "narrow", network(M=8, d=4)[0])
    assert_one_line(cli("llm", "dashboard", run, store, "-o", "new", "--other", narrow), "is for rows of d = 4, not 6")
    assert_one_line(cli("llm", "dashboard", run, store, "-o", "new", "--quantiles", "0"), "quantiles is 0")
    assert_one_line(cli("llm", "dashboard", run, tmp_path / "run", "-o", "new"), "meta.json")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_fails_half_way_is_not_there(features, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("damaged")

    monkeypatch.setattr("refgba.llm.dashboard.folder._page", fail)
    with pytest.raises(InputError, match="damaged"):
        write_dashboard(features, tmp_path / "page")
    assert not [path for path in tmp_path.iterdir() if path.name not in ("store", "run")]


def test_a_run_that_was_centred_is_surveyed_as_it_was_trained(cli, tmp_path):
    store = random_store(tmp_path / "store", contexts=120)
    for k in range(2):  # rows far from the origin, which training therefore moves
        np.save(
            store / f"{k:05d}.npy", np.load(store / f"{k:05d}.npy") / 20 + np.array([5.0, 3, 0, 0, 0, 1], np.float32)
        )
    meta = json.loads((store / "meta.json").read_text())
    for shard in meta["shards"]:
        shard["sha256"] = hashlib.sha256((store / shard["file"]).read_bytes()).hexdigest()
    (store / "meta.json").write_text(json.dumps(meta))
    small = ["--width", 24, "--groups", 2, "--htf", 0.3, "--steps", 40, "--batch", 32, "--backend", "numpy"]
    assert cli("train", "store", "-o", "run", "--centre", "on", "--held-out-share", 0, *small).exit_code == 0
    judged = last_json(cli("evaluate", "run", "store", "--json"))
    found = survey_features(tmp_path / "run", store)
    assert found.dictionary.centre is not None
    assert found.frequency.sum() == pytest.approx(judged["l0"], rel=1e-3)
