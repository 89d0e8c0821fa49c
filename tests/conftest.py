"""Hypothesis: no deadlines, which would test the machine; in CI the same examples every time.  And what a run reports:
how near to their bounds the backends came, and how many gates rounding flipped.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import defaultdict
from dataclasses import astuple, dataclass, field

import pytest
from hypothesis import settings

# A shell lets what it starts in the background ignore this signal, and tests send it, to themselves and to programs.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("refgba", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("refgba")


@pytest.fixture(autouse=True)
def one_module_per_name():
    """A backend imported again by an earlier test, which then put the old module back, is the old one everywhere.

    Import sets the attribute of the package, sys.modules has the entry: monkeypatch undoes the entry alone.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("refgba.backends."):
            package, _, last = name.rpartition(".")
            setattr(sys.modules[package], last, module)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run a command of `refgba` in a folder of its own."""
    from click.testing import CliRunner

    from refgba.cli import main

    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def data(tmp_path):
    """The file of 500 rows of the imbalanced set; its true features lie in v.npy beside it."""
    import numpy as np

    from refgba.model import imbalanced

    truth = imbalanced()
    np.save(tmp_path / "x.npy", truth.draw(0, 500).X)
    np.save(tmp_path / "v.npy", truth.V)
    return tmp_path / "x.npy"


@pytest.fixture(scope="session")
def outcomes():
    """What each experiment ends in at the size of `experiments_micro`, run once."""
    pytest.importorskip("matplotlib")
    from experiments_micro import shrink

    from refgba import experiments
    from refgba.experiments import workers

    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr(workers.os, "cpu_count", lambda: 1)  # beginning processes would take longer than all of it
        return {name: experiments.run(name, "quick", "numpy", list) for name in experiments.NAMES}


@dataclass
class Seen:
    """What the conformance tests saw of a backend in a dtype."""

    gates: int = 0
    flips: int = 0
    worst: dict[str, tuple[float, float]] = field(default_factory=dict)  # largest error, and share of its bound
    notes: list[str] = field(default_factory=list)

    def see(self, what: str, error: float, share: float) -> None:
        """Keep the result that came nearest to its bound."""
        if share >= self.worst.get(what, (0.0, 0.0))[1]:
            self.worst[what] = float(error), float(share)


REPORT: defaultdict[tuple[str, str], Seen] = defaultdict(Seen)


def pytest_sessionfinish(session) -> None:
    """A worker process of pytest-xdist hands its part of the table over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["conformance"] = [(*key, *astuple(seen)) for key, seen in REPORT.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:  # noqa: ARG001 - pytest-xdist names the arguments
    """The main process puts the parts together."""
    for name, dtype, gates, flips, worst, notes in getattr(node, "workeroutput", {}).get("conformance", []):
        seen = REPORT[name, dtype]
        seen.gates, seen.flips, seen.notes = seen.gates + gates, seen.flips + flips, [*seen.notes, *notes]
        for what, (nearest, share) in worst.items():
            seen.see(what, nearest, share)


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of the conformance suite."""
    if not REPORT:
        return
    write = terminalreporter.write_line
    terminalreporter.section("backends against the reference")
    write(f"{'':24} {'gates':>9} {'flipped':>8}  largest share of its bound, and the error there")
    for (name, dtype), seen in sorted(REPORT.items()):
        worst = max(seen.worst.items(), key=lambda item: item[1][1], default=("", (0.0, 0.0)))
        what, (error, share) = worst
        near = f"{share:7.1%} by {what}, {error:.1e}" if what else ""
        write(f"{name + ' ' + dtype:24} {seen.gates:9d} {seen.flips:8d}  {near}  {'; '.join(seen.notes)}")
