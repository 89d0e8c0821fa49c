"""The page that the demonstration ends on: features being found, drawn by the demonstration itself."""

from __future__ import annotations

import re
import webbrowser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from commands import QUICK, last_json
from reports import Page

from refgba.report.demo import picture
from refgba.report.run import RunData
from refgba.runs import demo, plane
from refgba.runs.settings import Request

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def turned():
    return plane.turn()


def test_in_the_plane_every_neuron_turns_to_a_feature_and_every_feature_gets_one(turned):
    assert (turned.cosine > 0.99).all()
    ends = np.cos(turned.neurons[-1][:, None] - turned.features)
    assert (ends.max(axis=0) > 0.99).all()
    begins = np.cos(turned.neurons[0][:, None] - turned.features).max(axis=1)
    assert np.mean(begins > 0.99) < 0.3, "they began near features"
    assert np.abs(np.diff(turned.neurons, axis=0)).max() < np.pi / 2, "a jump"


def test_the_demo_ends_on_a_page(cli, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    result = last_json(cli("demo", "--rows", "2000", *QUICK, "--json"))
    assert (result["page"], opened) == ("runs/demo/demo.html", [])
    found = Page(Path(result["page"]).read_text(encoding="utf-8"))
    assert found.headings == [
        "Features are found", "Neurons lock on to features", "Neurons fire as often as they should", "Go on",
    ]  # fmt: skip
    said = " ".join(found.text)
    assert f"Judged on 20,000 rows that the network was not trained on: FVU {result['fvu']:.3f}" in said
    assert "0% of 128 hidden features" in said
    assert len(found.alts) == 6
    assert all(link.startswith("#") for link in found.links)
    shown = cli("demo", "--rows", "2000", *QUICK, "--open")
    assert "See features being found: runs/demo-2/demo.html" in shown.stdout
    assert opened == [Path("runs/demo-2/demo.html").resolve().as_uri()]


def test_a_demo_without_groups_has_its_page_too(cli):
    flags = ["--width", 24, "--steps", 10, "--batch", 16, "--method", "topk", "--k", 4, "--backend", "numpy"]
    assert cli("demo", "--rows", "500", *flags).exit_code == 0
    assert "Neurons fire as often" not in Path("runs/demo/demo.html").read_text(encoding="utf-8")


def test_the_looks_are_those_of_the_training_and_change_none_of_its_numbers(cli, tmp_path):
    flags = {"width": 24, "groups": 3, "steps": 30, "batch": 32}
    run = demo.begin(tmp_path / "run", 2000, "constant", Request(flags, backend="numpy"))
    list(run.launch.steps(int))
    _, result = run.judged()
    assert [look.step for look in run.looks] == list(range(31))
    assert run.looks[-1].frr == (result["frr"]["0.8"], result["frr"]["0.9"])
    assert cli("train", "run/data/X.npy", "-o", "plain", "--held-out-share", 0, "--config", "run/config.json",
               "--backend", "numpy").exit_code == 0  # fmt: skip
    a, b = ((tmp_path / name / "final" / "params.safetensors").read_bytes() for name in ("run", "plain"))
    assert a == b


def test_the_picture_of_readme_is_drawn_by_the_demo_and_needs_nothing_else(turned):
    looks = [demo.Look(step, (step / 100, step / 200)) for step in range(0, 101, 10)]
    config = RunData("", Request({"width": 24, "groups": 3, "steps": 100}).config(42)).config
    drawn = picture(looks, config, np.full(24, 0.01), turned)
    committed = (ROOT / "docs" / "features.svg").read_text(encoding="utf-8")
    for text in (drawn, committed):
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(r"<script|url\(|href=", text)
        assert "prefers-color-scheme: dark" in text
        assert "prefers-reduced-motion" in text
    assert "docs/features.svg" in (ROOT / "README.md").read_text(encoding="utf-8")
    turns = re.compile(r"@keyframes.*?\}\}")
    assert turns.findall(drawn) == turns.findall(committed), "python benchmarks/picture.py draws it anew"
