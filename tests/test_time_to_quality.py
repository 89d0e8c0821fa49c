"""benchmarks/time_to_quality.py at a small size: its clock, what counts as reached, and programs that run in turns."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from click.testing import CliRunner
from engines import program, real


@pytest.fixture
def times(monkeypatch):
    """The program as a module."""
    return program(monkeypatch, "time_to_quality", "torch", "sae_lens", "dictionary_learning")


@real
def test_a_quality_is_reached_at_the_first_look_that_has_it(times):
    looks = [
        {"seconds": 1.0, "matched fvu": 0.4, "capped fvu": 0.5},
        {"seconds": 2.0, "matched fvu": 0.2, "capped fvu": 0.3},
        {"seconds": 3.0, "matched fvu": 0.1, "capped fvu": 0.2},
    ]
    assert times.reached(looks, 0.2, "matched") == 2.0
    assert times.reached(looks, 0.2, "capped") == 3.0
    assert times.reached(looks, 0.1, "capped") is None


@real
def test_of_a_row_at_most_k_codes_are_kept_and_none_that_is_zero(times):
    codes = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 0.0, 0.0]])
    kept = times.largest(codes, 2)
    np.testing.assert_array_equal(kept, [[True, False, True, False], [False, True, False, False]])


@real
def test_a_clock_runs_for_its_own_program_only(times):
    held_out = np.eye(3, dtype=np.float32)

    def busy(seconds):
        def program(clock):
            for _ in clock.watched(iter([held_out] * 2 * times.LOOK), judged):
                end = time.process_time() + seconds / times.LOOK
                while time.process_time() < end:
                    pass

        return program

    def judged(x):
        busy_until = time.process_time() + 0.05  # a look takes time that does not count
        while time.process_time() < busy_until:
            pass
        pair = x, np.ones(len(x))
        return pair, pair, pair

    looks = times.in_turns({"slow": busy(0.2), "fast": busy(0.02)}, held_out)
    assert [look["step"] for look in looks["slow"]] == [100, 200]
    for name, seconds in (("slow", 0.2), ("fast", 0.02)):
        assert looks[name][0]["seconds"] == pytest.approx(seconds, abs=0.03)
        assert looks[name][1]["seconds"] == pytest.approx(2 * seconds, abs=0.05)


@real
def test_a_program_that_fails_ends_the_others(times):
    def program(clock):
        raise ZeroDivisionError(clock)

    with pytest.raises(ZeroDivisionError):
        times.in_turns({"it": program}, np.eye(3, dtype=np.float32))


@real
def test_all_programs_run_to_their_ends(times, tmp_path):
    rng = np.random.default_rng(0)
    for name, rows in (("x.npy", 2000), ("y.npy", 200)):
        np.save(tmp_path / name, rng.standard_normal((rows, 16)).astype(np.float32))
    files = [str(tmp_path / "x.npy"), "--held-out", str(tmp_path / "y.npy"), "-o", str(tmp_path / "out.json")]
    done = CliRunner().invoke(times.main, [*files, "--width", "32", "--steps", "400", "--k", "4"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert len(found["looks"]) == 7
    steps = {name: looks[-1]["step"] for name, looks in found["looks"].items()}
    assert set(steps.values()) == {400, 200, 100}
    for looks in found["looks"].values():
        assert all(0 < looks[-1][f"{way} fvu"] < 1 for way in times.WAYS)
        assert looks[-1]["matched l0"] <= 4
        assert looks[-1]["capped l0"] <= 4
        assert [look["seconds"] for look in looks] == sorted(look["seconds"] for look in looks)
    assert set(found["best"]) == set(found["reached"]["matched"]) == {"dictionary_learning", "SAELens"}
