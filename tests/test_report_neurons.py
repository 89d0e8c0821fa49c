"""The table of neurons: what the page's script unpacks is what the run holds, and a browser shows it."""

from __future__ import annotations

import base64
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
from refgba.report import RunData, report
from refgba.report.neurons import data_blocks
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


def test_a_browser_shows_the_table_of_a_million_neurons(million, tmp_path, tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium to open the report with")
    path = tmp_path_factory.getbasetemp() / "million.html"
    if not path.exists():
        path.write_text(report([million]), encoding="utf-8")
    quiet = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
    command = [chromium, "--headless", "--no-sandbox", "--no-first-run", "--disable-sync", *quiet]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, timeout=60, check=False).stdout.decode()
    assert 'data-ready="' in shown
    assert "1 to 25 of 1,000,000 neurons" in shown
    assert len(re.findall(r"<tr>", shown[shown.index('id="neurons"') : shown.index('class="pager"')])) == 1 + 25
    assert 'aria-sort="ascending"' in shown
