"""The paper in one file, refgba/paper.py: short, NumPy alone, and `--recipe paper` to the bit."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refgba import gba, paper, recipe, sae
from refgba.bias import Buffer
from refgba.bias import adapt as algorithm_2
from refgba.groups import assign_groups, target_frequencies

SOURCE = Path(paper.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_it_is_the_recipe_paper_to_the_bit(jump, groups):
    X = np.random.default_rng(0).standard_normal((300, 7))
    settings = {"lr": 0.02, "a_init": 0.3, "htf": 0.3, "adapt_every": 4}
    config = recipe.paper(
        7, width=23, groups=groups, batch=40, steps=60, gamma_minus=0.05, gamma_plus=0.05,
        activation="jumprelu" if jump else "relu", **settings,
    )  # fmt: skip
    state = gba.init(gba.random_params(config, 7), config)
    W = state.params.W.copy()
    steps = list(gba.train(state, gba.minibatches(X, config)))
    batches = (X[rows] for rows in gba.row_numbers(len(X), config))
    W, a, b, b_pre = paper.train(W, batches, K=groups, gamma=0.05, jump=jump, **settings)
    assert len(steps) == 60
    assert len(np.unique(state.params.b)) > 20  # biases adapted, each in its own way
    for name, array in {"W": W, "a": a, "b": b, "b_pre": b_pre}.items():
        assert (getattr(state.params, name) == array).all(), name


def test_its_parts_are_those_of_the_reference():
    rng = np.random.default_rng(1)
    params = sae.Params(sae.unit_rows(rng.standard_normal((9, 5))), *(rng.standard_normal(n) / 4 for n in (9, 9, 5)))
    x = sae.unit_rows(rng.standard_normal((30, 5)))
    y, on, s, f = paper.forward(params.W, params.a, params.b, params.b_pre, x)
    fwd = sae.forward(params, x, "jumprelu")
    assert all(
        (ours == theirs).all() for ours, theirs in zip((y, on, s, f), (fwd.y, fwd.on, fwd.s, fwd.f), strict=True)
    )
    grads = sae.gradients(params, x, fwd)
    for ours, name in zip(
        paper.gradients(params.W, params.a, params.b_pre, x, on, s, f), ("W", "a", "b_pre"), strict=True
    ):
        assert (ours == getattr(grads, name)).all()
    assert (paper.target_frequencies(6, 0.3, 0.01) == target_frequencies(6, 0.3, 0.01)).all()
    buffer, group = Buffer(9), assign_groups(9, 6)
    buffer.add(y)
    arguments = (group, target_frequencies(6, 0.3, 0.01), 0.2, 0.1, 0.05)
    expected = algorithm_2(params.b, buffer, *arguments)
    assert (paper.adapt(params.b, buffer.counts, buffer.peaks, buffer.rows, *arguments) == expected).all()


def test_it_is_short_and_imports_numpy_alone():
    assert len(SOURCE.splitlines()) <= 120
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"__future__", "numpy"}


def test_it_marks_the_lines_of_algorithm_1_in_their_order():
    train = SOURCE[SOURCE.index("def train") : SOURCE.index("def adam")]
    assert re.findall(r"# (\d)\. ", train) == list("123456")


def test_run_by_itself_it_finds_the_features():
    run = subprocess.run([sys.executable, paper.__file__], capture_output=True, text=True, check=True)
    assert "at cosine 0.9 or more: 100%" in run.stdout
