"""The report: one file that needs nothing else, in which whatever the data say is text."""

from __future__ import annotations

import base64
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from reports import CONFIG, EVIL, Page, evaluated, full, log, params

from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.report import RunData, page, report
from refgba.runs.accumulate import Evaluation
from refgba.runs.judging import result, summarise

SECTIONS = ["Training", "Frequencies", "Rows", "Recovery", "Neurons", "Table of neurons", "Settings"]

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


def test_only_figures_of_matplotlib_need_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert Page(report([full()])).headings  # `make demo` does not install it
    with pytest.raises(InputError, match="pip install matplotlib"):
        page.figure(None, "nothing")


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
    pytest.importorskip("matplotlib")
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
