"""What the tests of reports share: runs that are made up, and a parser that checks a page and says what it holds."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from refgba import sae
from refgba.config import GBAConfig
from refgba.report import RunData, Truth
from refgba.runs.accumulate import Evaluation
from refgba.runs.judging import result

CONFIG = GBAConfig(width=12, groups=3, steps=40, batch=16, adapt_every=4, htf=0.5, ltf=0.1, dtype="float32")
VOID = {"br", "hr", "img", "input", "link", "meta"}
EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\'&amp;'


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
