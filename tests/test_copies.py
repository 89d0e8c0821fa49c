"""Neurons that share a feature: which sets they form, what they cost, and what the report says of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from reports import CONFIG, Page, full
from test_before import BEFORE as EARLIER
from test_before import DATA, EXPORTS, RUNS

import refgba.runs.copies as module
from refgba.baselines.method import Groups
from refgba.cli import main
from refgba.report import report
from refgba.report.findings import findings
from refgba.runs.copies import Copies, copies, copy_sets
from refgba.runs.passes import Pass


def greedy(V, frequency, tau):
    """The sets by their definition, one neuron at a time."""
    unit = V / np.linalg.norm(V, axis=1, keepdims=True)
    first, heads = np.arange(len(V)), []
    for m in np.argsort(-frequency, kind="stable"):
        like = [h for h in heads if unit[m] @ unit[h] >= tau]
        first[m] = like[0] if like else m
        heads += [] if like else [m]
    return first


@pytest.mark.parametrize("block", [1, 7, 64, 1024])
@pytest.mark.parametrize("d", [3, 6])
def test_sets_are_greedy_whatever_the_blocks(monkeypatch, block, d):
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "CELLS", 4 * block)
    rng = np.random.default_rng(d)
    V, frequency = rng.standard_normal((300, d)), rng.integers(0, 40, 300) / 40
    assert copy_sets(V, frequency).tolist() == greedy(V, frequency, 0.9).tolist()


def test_a_chain_of_neighbours_is_no_set():
    angle = np.deg2rad([0, 20, 40])  # cos 20° = 0.94, cos 40° = 0.77
    V = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert copy_sets(V, np.array([0.3, 0.2, 0.1])).tolist() == [0, 0, 2]
    assert copy_sets(V, np.array([0.1, 0.3, 0.2])).tolist() == [1, 1, 1]  # the one in the middle is first


def test_a_neuron_without_a_direction_is_like_no_other():
    assert copy_sets(np.array([[1.0, 0], [0, 0], [0, 0], [2, 0]]), np.zeros(4)).tolist() == [0, 1, 2, 0]


def planted(rng, exact):
    """A network of 6 features in 8 dimensions, of which the first has 3 neurons and the second 2, and rows."""
    basis = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    of = np.array([0, 1, 2, 3, 4, 5, 0, 0, 1])
    V = basis[of] + (0 if exact else 0.2) * basis[6] * (np.arange(9) >= 6)[:, None]
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    scale = rng.uniform(0.5, 2, 9)
    s = rng.uniform(0, 1, (500, 9)) * (rng.random((500, 9)) < [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.3, 0.2, 0.1])
    D = scale[:, None] * V
    x = s @ D + 0.1 * rng.standard_normal((500, 8))
    return V, D, s, x, (s > 0).mean(axis=0)


@pytest.mark.parametrize("exact", [True, False])
def test_planted_copies_are_found_and_cost_what_they_cost(exact):
    V, D, s, x, frequency = planted(np.random.default_rng(0), exact)
    groups = Groups(np.array([0, 0, 0, 1, 1, 1, 1, 2, 2]), np.array([0.5, 0.2, 0.1]))
    passes = [
        Pass(x[l : l + 99], s[l : l + 99] @ D, s[l : l + 99], lambda l=l: s[l : l + 99]) for l in range(0, 500, 99)
    ]
    result = copies(V, D, frequency, groups, passes)
    assert result.first.tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 1]
    assert result.cosine == pytest.approx(np.r_[np.ones(6), np.full(3, 1 if exact else 1.04**-0.5)])
    told = result.summary
    assert (told["sets"], told["copies"], told["largest"], told["groups"], told["rows"]) == (2, 3, 3, [0, 1, 2], 500)
    on = s > 0
    merged = on[:, [2, 3, 4, 5]].sum() + on[:, [0, 6, 7]].any(axis=1).sum() + on[:, [1, 8]].any(axis=1).sum()
    assert told["l0"] == pytest.approx(on.sum() / 500)
    assert told["l0_copies"] == pytest.approx((on.sum() - merged) / 500)
    along = D.copy()  # one neuron per set adds, in the first one's direction, what the members add in it
    for m in (6, 7, 8):
        head = V[result.first[m]]
        along[m] = (D[m] @ head) * head
    spread = ((x - x.mean(axis=0)) ** 2).sum()
    assert told["fvu"] == pytest.approx(((s @ D - x) ** 2).sum() / spread)
    assert told["fvu_merged"] == pytest.approx(((s @ along - x) ** 2).sum() / spread)
    assert (told["fvu_merged"] == pytest.approx(told["fvu"])) == exact


def test_a_network_without_copies_has_nothing_to_merge():
    rng = np.random.default_rng(0)
    s = rng.uniform(0, 1, (50, 4)) * (rng.random((50, 4)) < 0.5)
    x = s + 0.1 * rng.standard_normal((50, 4))
    told = copies(np.eye(4), np.eye(4), s.mean(axis=0), None, [Pass(x, s, s, lambda: s)]).summary
    assert (told["copies"], told["largest"], told["l0_copies"], told["fvu"] - told["fvu_merged"]) == (0, 1, 0, 0)


def test_networks_beyond_the_limit_are_not_searched(monkeypatch):
    monkeypatch.setattr(module, "MAX_PRODUCTS", 4 * 4 * 4 - 1)
    assert copies(np.eye(4), np.eye(4), np.ones(4), None, []) is None
    run = full()
    run.summary["copies"] = None
    assert "Not searched: that takes more than" in report([run])


@pytest.mark.parametrize("name", [*(f"networks/{name}" for name in RUNS), *(f"exports/{name}" for name in EXPORTS)])
def test_copies_of_networks_of_every_kind_and_version_are_judged(name):
    network = EARLIER / name
    result = CliRunner().invoke(main, ["evaluate", str(network), str(DATA), "--json"])
    told = json.loads(result.stdout.splitlines()[-1])
    found = told["copies"]
    assert (found["tau"], found["rows"]) == (0.9, told["rows"])
    assert found["fvu"] == pytest.approx(told["fvu"], rel=1e-4)  # all rows are few enough to be seen again
    assert found["l0"] == pytest.approx(told["l0"], rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_the_report_of_a_run_of_an_earlier_version_tells_its_copies(name, tmp_path):
    page = tmp_path / "page.html"
    result = CliRunner().invoke(
        main, ["report", str(EARLIER / "networks" / name), "--data", str(DATA), "-o", str(page)]
    )
    assert result.exit_code == 0, result.output
    assert "Copies" in Page(page.read_text(encoding="utf-8")).headings


def test_a_report_names_sets_groups_and_cost():
    run = full()
    first = np.arange(CONFIG.width)
    first[[4, 8]] = 0
    summary = {"tau": 0.9, "sets": 1, "copies": 2, "largest": 3, "groups": [0, 1, 1], "rows": 64, "l0": 3.0}
    summary |= {"l0_copies": 0.5, "fvu": 0.25, "fvu_merged": 0.375}
    run.copies = Copies(first, np.where(first == np.arange(len(first)), 1, 0.95), summary)
    [sentence] = [text for text, topic in findings(run) if topic == "Copies"]
    assert sentence.startswith("2 of 12 neurons (16.7%) are copies, within a cosine of 0.9 of a more frequent one; ")
    assert "take 0.5 of 3 active neurons per row away, and change FVU from 0.25 to 0.375." in sentence
    text = report([run])
    assert "Copies by group" in text
    assert "The largest sets, by the number of their first neuron" in text
    assert "0.95" in text
    first[:] = np.arange(len(first))
    run.copies = Copies(first, np.ones(len(first)), summary | {"copies": 0, "sets": 0})
    assert not [topic for _, topic in findings(run) if topic == "Copies"]
