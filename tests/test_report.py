"""The report: one file that needs nothing else, in which whatever the data say is text."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from refgba import backends, sae
from refgba.config import GBAConfig, Settings
from refgba.data.activations import open_activations
from refgba.data.survey import survey
from refgba.errors import InputError
from refgba.report import RunData, Truth, load_evaluation, load_run, pack, page, report, summarise
from refgba.report.findings import findings
from refgba.runs.accumulate import Evaluation
from refgba.runs.judging import evaluate, result, save
from refgba.runs.trainer import train_run

pytest.importorskip("matplotlib", reason="reports are drawn with matplotlib")

CONFIG = GBAConfig(width=12, groups=3, steps=40, batch=16, adapt_every=4, htf=0.5, ltf=0.1, dtype="float32")
NUMPY = backends.load("numpy")
VOID = {"br", "hr", "img", "input", "link", "meta"}
EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\'&amp;'
SECTIONS = ["Training", "Frequencies", "Rows", "Recovery", "Neurons", "Table of neurons", "Settings"]


class Page(HTMLParser):
    """What a page holds, and that every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.text, self.headings = [], [], [], [], []
        self.scripts, self.links, self.alts = {}, [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        assert len(self.ids) == len(set(self.ids)), "an id occurs twice"

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert len(given) == len(attributes), f"<{tag}> has an attribute twice"
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[name] for name in ("href", "src", "srcset", "action", "data") if name in given]
        assert not [name for name in given if name.startswith("on")], "an inline handler"
        if tag == "svg" and given.get("aria-hidden") != "true":
            assert given["role"] == "img"
            self.alts.append(given["aria-label"])
        if tag not in VOID:
            self.open.append((tag, given.get("id", "")))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> of nothing"
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data):
        tag, name = self.open[-1] if self.open else ("", "")
        if tag == "script":
            self.scripts[name] = data
        elif tag != "style":
            self.text.append(data)
            self.headings += [data] if tag == "h2" else []


def evaluated(M=12, N=200, seed=0):
    """The arrays and the summary of an evaluation of M neurons with some frequencies."""
    rng = np.random.default_rng(seed)
    evaluation = Evaluation(M, 4, top=3)
    x, y = rng.standard_normal((N, 4)), rng.standard_normal((N, M)) - np.linspace(0.2, 3.5, M)
    evaluation.update(x, x + 0.4 * rng.standard_normal((N, 4)), y)
    names = ("frequency", "peak", "mean", "std", "z_score", "l0_histogram", "top_rows", "top_values")
    return {name: getattr(evaluation, name) for name in names}, result(evaluation, replace(CONFIG, width=M))


def log(steps=40, loss=lambda t: 1 / t):
    return [
        {"step": t, "loss": loss(t), "l0": 5.0, "fvu": 0.5, "dead": 0.0, "within": 0.9, "seconds": 0.1 * t}
        for t in range(1, steps + 1)
    ]


def params(M=12):
    rng = np.random.default_rng(2)
    return sae.Params(sae.unit_rows(rng.standard_normal((M, 4))), rng.random(M), -rng.random(M), np.zeros(4))


def full(name="mine", **more):
    arrays, summary = evaluated()
    about = {"backend": "numpy", "recipe": "default", "refgba": "0.1.0", "data": {"path": "x.npy", "rows": 100, "d": 4}}
    truth = Truth(np.linspace(0.5, 1, 30), np.geomspace(0.001, 0.2, 30))
    return RunData(name, CONFIG, about, log(), params(), arrays, summary, truth, data="held-out.npy", **more)


# ---- what is on the page ---------------------------------------------------------------------------------------------


def test_a_report_is_well_formed_and_has_every_section():
    found = Page(report([full()]))
    assert found.headings == ["What to look at", *SECTIONS]
    said = " ".join(found.text)
    for told in ("x.npy", "held-out.npy: 200 rows", "M = 12 neurons, K = 3", "targets 50% to 10%", "numpy", "FRR(0.8)"):
        assert told in said
    assert len(found.alts) == 5 + 2 + 1 + 1 + 2 + 2  # curves, frequencies, rows, recovery, neurons, and two small ones
    assert all(len(alt) > 20 for alt in found.alts)


def test_a_report_loads_nothing():
    text = report([full(), full("other")])
    for link in Page(text).links:
        assert link.startswith("#"), link
    assert not re.search(r"(?i)https?://|@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_the_policy_of_a_page_allows_its_own_script_only():
    import hashlib

    text = report([full()])
    digest = base64.b64encode(hashlib.sha256(Page(text).scripts[""].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_what_comes_from_the_data_is_text():
    run = full(EVIL, labels={0: EVIL, 5: "<!-- <script>"})
    run.data = run.about["recipe"] = run.about["data"]["path"] = EVIL
    for text in (report([run]), report([run, replace(run, name=EVIL + "2")])):
        found = Page(text)
        assert "img" not in found.tags
        assert sum("alert(1)" in data for data in found.text) > 2
        assert all("alert" not in data for name, data in found.scripts.items() if not name.endswith("-about"))
        labels = dict(json.loads(found.scripts["neurons-0-about"])["labels"])
        assert labels == {0: EVIL, 5: "<!-- <script>"}
        assert "<" not in found.scripts["neurons-0-about"]


def test_names_may_hold_anything():
    names = ("$x$ $\\frac{", "a\0b\x1b[31m", "\ud800", "\u202etxt", "", "日本語")
    found = Page(report([RunData(name, CONFIG, metrics=log()) for name in names]))
    assert {"$x$ $\\frac{", "a\ufffdb\ufffd[31m", "?", "日本語"} <= set(found.text)


def test_runs_stand_side_by_side():
    bigger, summary = evaluated(24)
    config = replace(CONFIG, width=24, groups=4)
    summary["groups"] = summarise(bigger, config)["groups"]
    other = RunData("wide", config, {}, log(20), None, bigger, summary)
    found = Page(report([full(), other]))
    assert found.headings == ["What to look at", "Differences", *SECTIONS]
    assert {"neurons-0", "neurons-1"} <= set(found.scripts)
    said = " ".join(found.text)
    assert "2 runs: mine, wide" in said
    assert "The runs were judged on different data." in said


@pytest.mark.parametrize("missing", ["truth", "metrics", "params", "evaluation", "about", "config", "summary"])
def test_anything_but_the_name_may_be_missing(missing):
    run, empty = full(), RunData("empty")
    setattr(run, missing, getattr(empty, missing))
    if missing == "evaluation":
        run.summary, run.truth = {}, None
    if missing == "config":
        run.summary.pop("groups")
    found = Page(report([run]))
    gone = {"truth": {"Recovery"}, "metrics": {"Training"}, "config": {"Settings"}}.get(missing, set())
    gone |= {"Frequencies", "Rows", "Recovery", "Neurons", "Table of neurons"} if missing == "evaluation" else set()
    assert found.headings[1:] == [title for title in SECTIONS if title not in gone]


def test_a_network_of_others_has_no_groups():
    arrays, _ = evaluated()
    run = RunData("theirs", evaluation=arrays, summary=summarise(arrays, None))
    found = Page(report([run]))
    assert json.loads(found.scripts["neurons-0-about"])["targets"] == []
    assert "M = 12 neurons, no groups" in found.text
    assert "At or under target" not in " ".join(found.text)


def test_dead_runs_and_single_neurons_are_drawn():
    y = -np.ones((5, 1))
    evaluation = Evaluation(1, 2)
    evaluation.update(np.eye(5, 2), np.eye(5, 2), y)
    arrays = {
        name: getattr(evaluation, name) for name in ("frequency", "peak", "mean", "std", "z_score", "l0_histogram")
    }
    config = GBAConfig(width=1, groups=1)
    dead = RunData("dead", config, evaluation=arrays, summary=result(evaluation, config), metrics=log(1))
    assert "5 rows" in " ".join(Page(report([dead, RunData("nothing")])).text)


def test_what_does_not_fit_is_named():
    with pytest.raises(InputError, match="at least one run"):
        report([])
    run = full()
    with pytest.raises(InputError, match="mine: the evaluation has 12 neurons, the run 24"):
        report([replace(run, config=replace(CONFIG, width=24), params=None)])
    with pytest.raises(InputError, match=r"mine: peak has shape \(3,\), it should be \(12,\)"):
        report([replace(run, evaluation={**run.evaluation, "peak": np.zeros(3)})])
    with pytest.raises(InputError, match="mine: peak holds values that are not finite"):
        report([replace(run, evaluation={**run.evaluation, "peak": np.full(12, np.nan)})])
    with pytest.raises(InputError, match="mine: the evaluation has no std"):
        report([replace(run, evaluation={n: a for n, a in run.evaluation.items() if n != "std"})])
    with pytest.raises(InputError, match=r"mine: has 12 neurons, but b of shape \(5,\)"):
        report([replace(run, params=params(5))])


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'refgba\[report\]'"):
        report([full()])
    with pytest.raises(InputError, match=r"pip install 'refgba\[report\]'"):
        page.figure(None, "nothing")


# ---- findings --------------------------------------------------------------------------------------------------------


def said(run):
    return " ".join(text for text, _ in findings(run))


def quiet(**more):
    """A run in which nothing stands out: all at half their target, and as well as can be."""
    N = 10_000
    p = np.round(CONFIG.target()[CONFIG.group()] * 0.6 * N) / N
    h = np.zeros(13, np.int64)
    h[4] = N
    arrays = {name: np.ones(12) for name in ("peak", "mean", "std", "z_score")} | {"frequency": p, "l0_histogram": h}
    run = RunData("quiet", CONFIG, {}, log(loss=lambda _: 1.0), params(), arrays, truth=Truth(np.ones(3)))
    run.summary = summarise(arrays, CONFIG) | {"fvu": 0.5}
    for name, value in more.items():
        setattr(run, name, value)
    return run


def with_frequency(m, p):
    run = quiet()
    frequency = run.evaluation["frequency"].copy()
    frequency[m] = p
    run.evaluation = {**run.evaluation, "frequency": frequency}
    run.summary |= summarise(run.evaluation, CONFIG)
    return run


def test_nothing_is_said_where_nothing_stands_out():
    assert findings(quiet()) == []
    assert "Nothing stands out" in report([quiet()])


def test_neurons_over_target_are_counted():
    text = said(with_frequency(11, 0.102))
    assert "Over target: 25% of the neurons of group 3 (target 10%)." in text
    assert "at most 0% of a group" in text  # 1020 of 10,000 is within chance of a tenth
    assert "at most 25% of a group" in said(with_frequency(11, 0.2))


def test_dead_and_dense_neurons_are_counted():
    assert "1 of 12 neurons (8.33%) fired on none of the 10,000 rows, all of them in group 3." in said(
        with_frequency(11, 0)
    )
    assert "One neuron fires on more than half of the rows (neuron 2 on 75%)." in said(with_frequency(2, 0.75))


def test_empty_rows_are_counted():
    run = quiet()
    h = run.evaluation["l0_histogram"].copy()
    h[:] = 0
    h[[0, 4]] = 100, 9900
    assert "1% of the rows have no active neuron" in said(
        replace(run, evaluation={**run.evaluation, "l0_histogram": h})
    )


def test_the_end_of_the_loss_is_judged_beyond_its_noise():
    rng = np.random.default_rng(0)
    falling = log(200, lambda t: 2 - t / 200 + 0.001 * rng.standard_normal())
    long = replace(CONFIG, steps=200)
    assert "The loss was still falling" in said(quiet(config=long, metrics=falling))
    assert "The loss was rising" in said(quiet(config=long, metrics=log(200, lambda t: 1 + t / 200)))
    noisy = log(200, lambda t: 1 + 0.1 * (-1) ** t)
    assert "The loss" not in said(quiet(config=long, metrics=noisy))


def test_an_unfinished_run_says_so():
    assert "its log ends at step 20 of 40" in said(quiet(metrics=log(20, lambda _: 1.0)))


def test_the_other_checks_speak_where_they_should():
    assert "FVU is 0.6 on the rows judged here, 0.5 on the last batches" in said(
        quiet(summary=quiet().summary | {"fvu": 0.6})
    )
    theta = params()
    theta.a[:3] = -1
    assert "3 neurons (25%) have an output scale a of 0 or less" in said(quiet(params=theta))
    truth = Truth(np.array([0.5, 0.85, 0.95, 1.0]), np.array([0.001, 0.001, 0.1, 0.1]))
    assert (
        "2 of 4 true features have no neuron at cosine 0.9 or more, 1 none at 0.8; those missed at 0.9 occur in 0.1% "
        "of the rows (median), the others in 10%." in said(quiet(truth=truth))
    )


# ---- the table -------------------------------------------------------------------------------------------------------


def unpacked(about, data):
    """What report.js makes of a packed run."""
    about = json.loads(re.fullmatch(r"<script[^>]*>(.*)</script>", about)[1])
    data = zlib.decompress(base64.b64decode(re.fullmatch(r"<script[^>]*>(.*)</script>", data)[1]), -15)
    columns, at = {}, 0
    for column in about["columns"]:
        size = about["neurons"] * column.get("width", 1)
        words = np.frombuffer(data, np.uint8, 4 * size, at).reshape(4, -1).T.copy().view("<u4").ravel()
        columns[column["name"]] = words.view(np.float32) if column["kind"] == "float" else words
        at += 4 * size
    assert at == len(data)
    return about, columns


def test_the_packed_numbers_are_those_of_the_run():
    run = full()
    about, found = unpacked(*pack(run, "x"))
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
    _, found = unpacked(*pack(million, "x"))
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


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and the file of its evaluation."""
    path = tmp_path_factory.mktemp("runs")
    x = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
    np.save(path / "x.npy", x)
    data, found = survey(open_activations(path / "x.npy"))
    list(train_run(data, found, CONFIG, NUMPY, {"backend": "numpy", "recipe": "paper"}, path / "run"))
    evaluation = evaluate(load_run(path / "run").params, CONFIG, NUMPY, [x], top=2)
    save(evaluation, path / "ev.safetensors", {"network": "run", "data": "x.npy"})
    return path, result(evaluation, CONFIG)


def test_a_run_and_its_evaluation_are_read_back(trained):
    path, measured = trained
    run = load_run(path / "run")
    assert (run.name, run.config, len(run.metrics)) == ("run", CONFIG, 40)
    run.evaluation, run.summary, run.data = load_evaluation(path / "ev.safetensors", run.config)
    assert run.data == "x.npy"
    for name, value in run.summary.items():
        assert value == (pytest.approx(measured[name]) if isinstance(value, float) else measured[name])
    assert Page(report([run])).headings


def test_damaged_metrics_are_named(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0] / "run", run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for bad, complaint in (
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: should hold a JSON object"),
        ('{"loss": 1}', "line 2: damaged: it has no step"),
        ('{"step": 2, "loss": NaN}', "line 2: damaged: loss should be a finite number"),
        ('{"step": 2, "l0": "many"}', "line 2: damaged: l0 should be a finite number"),
    ):
        (run / "metrics.jsonl").write_text("\n".join([lines[0], bad, *lines[2:], ""]))
        with pytest.raises(InputError) as error:
            load_run(run)
        assert str(error.value).startswith(f"{run / 'metrics.jsonl'}: {complaint}")
        assert "\n" not in str(error.value)
    (run / "metrics.jsonl").write_text("\n".join([lines[0], '{"step": 2, "lo']))
    assert [line["step"] for line in load_run(run).metrics] == [1]


def test_an_unfinished_run_is_read(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0] / "run", run)
    shutil.rmtree(run / "final")
    (run / "about.json").unlink()
    assert load_run(run).params is None
    assert Page(report([load_run(run)])).headings == ["What to look at", "Training", "Settings"]


def test_what_is_no_run_or_evaluation_is_named(trained, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: not a run"):
        load_run(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_evaluation(tmp_path / "none")
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(InputError, match=f"{path}: not a file of `refgba evaluate -o`"):
        load_evaluation(path)
    with pytest.raises(InputError, match="the evaluation has 12 neurons, the run 24"):
        load_evaluation(trained[0] / "ev.safetensors", replace(CONFIG, width=24))


def test_a_checkpoint_is_a_run_without_its_log(trained):
    run = load_run(trained[0] / "run" / "final")
    assert isinstance(run.config, Settings)
    assert run.metrics == []


# ---- the blocks ------------------------------------------------------------------------------------------------------


def test_text_is_escaped_and_markup_is_not():
    assert page.element("p", "<b>", page.Html("<b></b>"), title='"') == '<p title="&quot;">&lt;b&gt;<b></b></p>'
    assert page.element("input", hidden=True, name=None, aria_label="x") == '<input hidden aria-label="x">'
    made = page.page(
        "<t>", "<lead>", [page.Section("<s>", "<body>"), page.Section("<s>", page.table(["<c>"], [["<d>"]]))]
    )
    found = Page(made)
    assert found.headings == ["<s>", "<s>"]
    assert {"<t>", "<lead>", "<body>", "<c>", "<d>"} <= set(found.text)


def test_data_for_a_script_cannot_end_it():
    with pytest.raises(ValueError, match="ASCII without <"):
        page.data_script("x", "</script>")
    assert json.loads(page.json_text(json.dumps([EVIL]))) == [EVIL]
    with pytest.raises(ValueError, match="must not hold"):
        page.page("t", "", [], "'</SCRIPT>'")


def test_figures_take_the_colours_of_the_page():
    from matplotlib.figure import Figure

    fig = Figure()
    ax = fig.add_subplot()
    ax.plot([1, 2], [3, 4], color="black")
    ax.plot([1, 2], [4, 3])
    ax.set_title('<script> $ #1f77b4 id="a"')
    text = page.figure(fig, 'a "line"', "title", "note")
    assert "currentColor" in text
    assert "var(--s1)" in text
    assert "http" not in text
    assert Page(text + page.figure(fig, "the same with another alt")).alts == ['a "line"', "the same with another alt"]
