"""The table of neurons: what the page's script unpacks is what the run holds, and a browser shows it."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest
from reports import EVIL, full

from refgba import sae
from refgba.config import GBAConfig
from refgba.report import RunData, page, report
from refgba.report.likeness import likeness
from refgba.report.neurons import data_blocks
from refgba.report.run import Likeness
from refgba.runs.judging import summarise


def unpacked(about, data):
    """What report.js makes of a packed run."""
    about = json.loads(re.fullmatch(r"<script[^>]*>(.*)</script>", about)[1])
    data = zlib.decompress(base64.b64decode(re.fullmatch(r"<script[^>]*>(.*)</script>", data)[1]), -15)
    columns, at = {}, 0
    for column in about["columns"]:
        size = about["neurons"] * column["width"]
        if column["kind"] == "byte":
            columns[column["name"]] = np.frombuffer(data, np.uint8, size, at)
            at += size
            continue
        words = np.frombuffer(data, np.uint8, 4 * size, at).reshape(4, -1).T.copy().view("<u4").ravel()
        columns[column["name"]] = words.view(np.float32) if column["kind"] == "float" else words
        at += 4 * size
    assert at == len(data)
    return about, columns


def test_the_packed_numbers_are_those_of_the_run():
    run = full()
    about, found = unpacked(*data_blocks(run, "x", {}))
    assert about["neurons"] == 12
    np.testing.assert_array_equal(found["count"] / about["rows"], run.evaluation["frequency"])
    for name in ("peak", "mean", "std"):
        np.testing.assert_array_equal(found[name], run.evaluation[name].astype(np.float32))
    np.testing.assert_array_equal(found["a"], run.params.a.astype(np.float32))
    np.testing.assert_array_equal(found["top"].astype(np.int32).reshape(12, 3), run.evaluation["top_rows"])


@pytest.fixture(scope="module")
def million():
    rng, M, N = np.random.default_rng(0), 1_000_000, 1_000_000
    config = GBAConfig(width=M, ltf=1e-4, htf=0.1)
    p = rng.binomial(N, config.target()[config.group()] * rng.lognormal(-0.5, 0.3, M)) / N
    mean, std, peak = rng.normal(-0.1, 0.02, M), rng.lognormal(-2, 0.2, M), rng.lognormal(-1, 0.4, M)
    h = np.zeros(M + 1, np.int64)
    h[400] = N
    arrays = {"frequency": p, "peak": peak, "mean": mean, "std": std, "z_score": (peak - mean) / std, "l0_histogram": h}
    arrays |= {"top_rows": rng.integers(0, N, (M, 10))}
    theta = sae.Params(np.zeros((M, 1)), rng.lognormal(0, 0.3, M), -rng.random(M), np.zeros(1))
    labels = {999_999: EVIL}
    return RunData("million", config, {}, [], theta, arrays, summarise(arrays, config), labels=labels)


def test_a_million_neurons_fit_in_20_megabytes(million, tmp_path_factory):
    text = report([million])
    assert len(text.encode()) < 20e6
    _, found = unpacked(*data_blocks(million, "x", {}))
    np.testing.assert_array_equal(np.rint(million.evaluation["frequency"] * million.rows), found["count"])
    for name in ("peak", "mean", "std"):
        np.testing.assert_allclose(found[name], million.evaluation[name], rtol=2**-13 + 2**-23)
    (tmp_path_factory.getbasetemp() / "million.html").write_text(text, encoding="utf-8")


def browse(path, profile):
    """The DOM of a page in Chromium, after its script has run; nothing may be told on the console."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium to open the report with")
    quiet = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
    command = [chromium, "--headless", "--no-sandbox", "--no-first-run", "--disable-sync", *quiet]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, timeout=120, check=False)
    assert [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line] == []
    return done.stdout.decode()


def test_a_browser_shows_the_table_of_a_million_neurons(million, tmp_path, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "million.html"
    if not path.exists():
        path.write_text(report([million]), encoding="utf-8")
    shown = browse(path, tmp_path)
    assert 'data-ready="' in shown
    assert "1 to 25 of 1,000,000 neurons" in shown
    assert len(re.findall(r"<tr>", shown[shown.index('id="neurons"') : shown.index('class="pager"')])) == 1 + 25
    assert 'aria-sort="ascending"' in shown


# What a reader does, and what is seen after each act.
DRIVER = """
(async () => {
  const root = document.getElementById("neurons"), view = root.querySelector(".view"), seen = {};
  const wait = () => new Promise((done) => setTimeout(done, 400));
  const named = (name) => root.querySelector(`[name="${name}"]`);
  const title = () => (view.hidden ? "closed" : view.querySelector("h3").textContent);
  const event = (key) => new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
  const press = (node, key) => node.dispatchEvent(event(key));
  const say = (node, value, type) => { node.value = value; node.dispatchEvent(new Event(type)); };
  const rows = () => [...root.querySelectorAll(":scope > .scroll tbody th")].map((th) => th.textContent);
  while (!root.dataset.ready) await wait();
  const act = async (name, todo, told = title) => { todo(); await wait(); seen[name] = told(); };
  await act("click", () => root.querySelector(":scope > .scroll tbody th a").click());
  seen.parts = [...view.querySelectorAll("h4")].map((h) => h.textContent);
  seen.alt = view.querySelector("svg").getAttribute("aria-label");
  seen.top = [...view.querySelectorAll("td")].slice(0, 2).map((td) => td.textContent);
  seen.focused = document.activeElement === view;
  await act("right", () => press(view, "ArrowRight"));
  await act("left", () => press(view, "ArrowLeft"));
  await act("like", () => view.querySelectorAll(".parts > div:last-child a")[0].click());
  await act("escape", () => press(view, "Escape"));
  await act("filter", () => say(named("which"), "dead", "change"), rows);
  await act("find", () => say(named("find"), "0", "input"), rows);
  await act("enter", () => press(named("find"), "Enter"));
  const table = document.querySelector("table.sortable"), head = table.querySelectorAll("thead button")[1];
  const groups = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  await act("sorted", () => head.click(), groups);
  await act("turned", () => head.click(), groups);
  document.body.dataset.seen = JSON.stringify(seen);
})();
"""


def test_a_neuron_is_seen_alone_by_click_by_number_and_by_keyboard(tmp_path, monkeypatch):
    runs = [full("mine", labels={0: EVIL}), full("other")]
    for i, run in enumerate(runs):
        M = len(run.evaluation["frequency"])
        run.evaluation = {**run.evaluation, "activation_counts": np.eye(M, 32, dtype=np.int64) * 7}
        run.evaluation["activation_end"] = np.ones(M)
        like = Likeness(runs[1 - i].name, np.arange(M)[::-1, None], np.full((M, 1), 0.5))
        run.likeness = (*likeness(run.params.W, []), like)
    monkeypatch.setattr("refgba.report.resource", lambda name: page.resource(name) + DRIVER * (name == "report.js"))
    (tmp_path / "page.html").write_text(report(runs), encoding="utf-8")
    shown = browse(tmp_path / "page.html", tmp_path)
    found = re.search(r'data-seen="([^"]*)"', shown)
    assert found, "the acts were not all done"
    seen = json.loads(html.unescape(found[1]))
    assert seen["click"] == f"Neuron 0 of mine: {EVIL}"
    assert seen["parts"] == ["Activations", "Numbers", "Top rows", "Nearest neurons", "Nearest in other"]
    assert seen["alt"].startswith("Histogram of the activations of neuron 0 on ")
    assert seen["top"][0] == str(runs[0].evaluation["top_rows"][0, 0])
    assert seen["focused"]
    assert (seen["right"], seen["left"]) == ("Neuron 1 of mine", seen["click"])
    assert (seen["like"], seen["escape"]) == ("Neuron 11 of other", "closed")
    dead = [str(m) for m in np.flatnonzero(runs[1].evaluation["frequency"] == 0)]
    assert seen["filter"] == dead
    assert "0" not in dead
    assert seen["find"] == ["0"]  # whatever the filter
    assert seen["enter"] == "Neuron 0 of other"
    assert (seen["sorted"], seen["turned"]) == (["3", "2", "1"], ["1", "2", "3"])
