"""The dashboard by keyboard alone, in a browser: keys and what is seen after each."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
from dictionaries import network
from llm_stores import random_store, write_run

from refgba.llm.dashboard import folder, survey_features, write_dashboard

# What a reader presses, and what is seen after each key: a neuron or the table, and what has the focus.
DRIVER = """
(async () => {
  const table = document.getElementById("table"), one = document.getElementById("neuron"), seen = [];
  const wait = () => new Promise((done) => setTimeout(done, 300));
  while (!table.dataset.ready) await wait();
  const find = table.querySelector('[name="find"]');
  const shown = () => one.hidden ? "table" : one.querySelector("h3").firstChild.textContent.trim();
  const focus = () => document.activeElement === find ? "search" : document.activeElement.className;
  const press = async (key, at = document.activeElement) => {
    at.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    await wait();
    seen.push([key, shown(), focus()]);
  };
  await press("ArrowRight");  // nothing to go from
  location.hash = "#1";
  await wait();
  await press("ArrowRight");
  await press("ArrowLeft");
  await press("ArrowLeft");
  await press("ArrowLeft");  // there is none before neuron 0
  await press("Escape");
  location.hash = "#2";
  await wait();
  await press("/");
  find.value = "3";
  find.dispatchEvent(new Event("input"));
  await wait();
  await press("ArrowRight");  // moves within the text
  const found = [...table.querySelectorAll("tbody th, tbody td:first-child")].map((cell) => cell.textContent);
  table.querySelector("tbody a").click();
  await wait();
  await press("ArrowRight");  // from one that was found to the next, of which there is none
  document.body.dataset.seen = JSON.stringify({ seen, found });
})();
"""


def test_the_dashboard_is_gone_through_by_keyboard(tmp_path, monkeypatch):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium to open the page with")
    original = folder.resource
    monkeypatch.setattr(folder, "resource", lambda name: original(name) + DRIVER * (name == "dashboard.js"))
    run = write_run(tmp_path / "run", network(M=9, d=6)[0])
    write_dashboard(survey_features(run, random_store(tmp_path / "store"), top=3, examples=1), tmp_path / "page")
    quiet = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
    command = [chromium, "--headless", "--no-sandbox", "--no-first-run", "--disable-sync", *quiet]
    command += [f"--user-data-dir={tmp_path / 'chromium'}", "--enable-logging=stderr", "--virtual-time-budget=30000"]
    page = (tmp_path / "page" / "index.html").as_uri()
    done = subprocess.run([*command, "--dump-dom", page], capture_output=True, timeout=120, check=False)
    assert [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line] == []
    record = re.search(r'data-seen="([^"]*)"', done.stdout.decode())
    assert record, "the keys were not all pressed"
    told = json.loads(html.unescape(record[1]))
    keys = [(key, shown) for key, shown, _ in told["seen"]]
    assert keys == [
        ("ArrowRight", "table"), ("ArrowRight", "Neuron 2"), ("ArrowLeft", "Neuron 1"), ("ArrowLeft", "Neuron 0"),
        ("ArrowLeft", "Neuron 0"), ("Escape", "table"), ("/", "table"), ("ArrowRight", "table"),
        ("ArrowRight", "Neuron 3"),
    ]  # fmt: skip
    focus = [at for _, _, at in told["seen"]]
    assert focus[1:5] == ["name-of"] * 4  # so a screen reader reads the neuron's name
    assert focus[6:8] == ["search", "search"]
    assert told["found"][0] == "3"
