"""The oracle: it records what the reference does, lets right ports pass, and finds and names what is wrong in them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from engines import engine
from mutations import MUTANTS, compiled, step
from safetensors.numpy import load_file, save_file

from refgba import gba, oracle, recipe
from refgba.cli import main
from refgba.errors import InputError
from refgba.oracle import compare, traces
from refgba.oracle.mistakes import MISTAKES
from refgba.oracle.rounding import Sizes
from refgba.oracle.stepwise import FORMULAS, ORDER, QUANTITIES, names, needs
from refgba.sae import unit_rows

TRACES = Path(__file__).parent / "traces"
KINDS = {
    "default": ("default", {}),
    "tied": ("default", {"untied": False}),
    "relu": ("default", {"activation": "relu"}),
    "paper": ("paper", {}),
}

every_kind = pytest.mark.parametrize("kind", KINDS)


def config_of(kind, **more):
    name, given = KINDS[kind]
    return recipe.RECIPES[name](5, **traces.SMALL | given | more)


@pytest.fixture(scope="module")
def trace():
    """Traces by name, each recorded once."""
    known = {}

    def of(kind="default"):
        if kind not in known:
            known[kind] = traces.example(config_of(kind), 5)
        return known[kind]

    return of


@pytest.fixture(scope="module")
def port():
    """GBA written a second time, in tests/mutations.py."""
    return compiled()


def halved(arrays):
    """What a port in float32 writes."""
    return {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in arrays.items()}


# ---- recording -------------------------------------------------------------------------------------------------------


@every_kind
def test_a_trace_is_the_run_of_the_reference(kind):
    config = config_of(kind)
    X = np.random.default_rng(0).standard_normal((config.steps * config.batch, 5))
    trace = oracle.record(config, X)
    state = gba.init(gba.random_params(config, 5), config)
    batches = (unit_rows(rows) for rows in np.split(X, config.steps))
    for t, metrics in enumerate(gba.train(state, batches), start=1):
        at = trace.at(t)
        assert at["loss"] == metrics.loss
        assert at["on"].sum() / config.batch == metrics.l0
        for name, array in state.params.arrays().items():
            np.testing.assert_array_equal(at[name], array)
        for name, adam in state.optimiser.items():
            if name in state.params.arrays():
                assert (at[f"m.{name}"] == adam.m).all()
                assert (at[f"v.{name}"] == adam.v).all()
                assert at[f"updates.{name}"] == adam.t
        assert at["left.counts"].tolist() == state.buffer.counts.tolist()
        if t % config.adapt_every == 0:
            assert at["counts"].tolist() == state.last.counts.tolist()
            assert (at["peaks"] == state.last.peaks).all()


@every_kind
def test_every_formula_gives_what_the_reference_does_to_the_bit(kind, trace):
    for t in range(1, trace(kind).steps + 1):
        computed = trace(kind).step(t)
        for name in names(trace(kind).config, t):
            np.testing.assert_array_equal(np.asarray(computed[name]), trace(kind).at(t)[name], err_msg=f"{t}/{name}")


@every_kind
def test_every_quantity_is_computed_from_earlier_ones(kind, trace):
    for t in (1, 6, 12):
        computed = trace(kind).step(t)
        for name in names(trace(kind).config, t):
            earlier = [part for part in needs(name, computed) if not part.endswith(" before")]
            assert all(ORDER[part] < ORDER[name] for part in earlier), (name, earlier)
            assert all(ORDER[part] <= ORDER[name] for part in computed.values), name  # helpers too


@pytest.mark.parametrize("kind", ["default", "paper"])
def test_the_committed_traces_are_what_is_recorded_now(kind, trace):
    kept, fresh = traces.read_trace(TRACES / kind), trace(kind)
    assert kept.config == fresh.config
    assert kept.arrays.keys() == fresh.arrays.keys()
    for name, value in fresh.arrays.items():
        assert value.dtype == kept.arrays[name].dtype
        np.testing.assert_allclose(kept.arrays[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_the_traces_reach_every_branch_of_the_algorithm(trace):
    seen = set()
    for kind in ("default", "paper"):
        c = trace(kind).config
        for t in range(c.adapt_every, trace(kind).steps + 1, c.adapt_every):
            now, was = trace(kind).at(t), trace(kind).at(t - 1)["b"]
            target, T = now["target"][now["group"]], now["T"][now["group"]]
            seen |= {"clipped at -1"} if (now["lowered"] & (was - c.gamma_minus * now["peaks"] < -1)).any() else set()
            seen |= {"clipped at 0"} if (now["raised"] & (was + c.gamma_plus * T > 0)).any() else set()
            seen |= {"at its target"} if (now["p"] == target).any() else set()
            seen |= {"below the floor, not dead"} if (now["raised"] & (now["p"] > c.eps)).any() else set()
            seen |= {"between"} if (~now["raised"] & ~now["lowered"]).any() else set()
            seen |= {"no positive peak"} if (now["peaks"] == 0).any() else set()
            seen |= {"held", "free"} if 0 < now["held"].sum() < c.width else set()
    assert seen == {
        "clipped at -1", "clipped at 0", "at its target", "below the floor, not dead", "between", "no positive peak",
        "held", "free",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "more", "complaint"),
    [
        (13, {}, "13 rows should be from 1 to 12 batches of 12"),
        (0, {}, "0 rows should be"),
        (156, {}, "156 rows should be"),
        (12, {"dtype": "float32"}, "recorded in float64, not in float32"),
        (12, {"width": 2**26}, "the trace would take"),
    ],
)
def test_what_cannot_be_recorded_is_refused(rows, more, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)):
        oracle.record(replace(config_of("default"), **more), np.ones((rows, 5)))


# ---- right ports pass ------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("starts", traces.STARTS)
def test_a_trace_agrees_with_itself_exactly(kind, starts, trace):
    report = compare(trace(kind), trace(kind).arrays, starts)
    assert report.agrees
    assert (report.compared, report.nearest[0], report.flips) == (len(trace(kind).arrays), 0, [])


@every_kind
@pytest.mark.parametrize("starts", traces.STARTS)
def test_a_second_implementation_agrees_far_within_the_tolerance(kind, starts, trace, port):
    report = compare(trace(kind), port(trace(kind), starts), starts)
    assert report.agrees, str(report)
    assert report.tolerance == 1e-10
    assert report.nearest[0] < 1e-3
    in_float32 = compare(trace(kind), halved(port(trace(kind), starts, np.float32)), starts)
    assert in_float32.agrees, str(in_float32)
    assert in_float32.tolerance == 1e-5
    assert in_float32.nearest[0] < 0.2


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance", "starts", "kind"),
    [
        *(("numpy", "float32", None, *how) for how in product(traces.STARTS, KINDS)),
        *(("numba", "float32", None, "trace", kind) for kind in KINDS),
        ("numba", "float32", None, "own", "default"),
        ("numba", "float64", None, "own", "relu"),
        ("cupy emulated", "tf32", 1e-3, "own", "default"),
        ("cupy emulated", "bfloat16", 1e-2, "trace", "paper"),
    ],
)
def test_our_backends_agree(name, dtype, tolerance, starts, kind, trace):
    with engine(name) as backend:
        report = compare(trace(kind), traces.dump(trace(kind), backend, dtype, starts), starts, tolerance)
    assert report.agrees, str(report)
    assert report.tolerance == (tolerance or oracle.TOLERANCE[dtype])
    assert report.compared > 300


def test_noise_of_the_size_of_tf32_on_one_gradient_is_found_at_that_gradient(trace):
    with engine("numba") as backend:
        dumped = traces.dump(trace(), backend, "float32")
    for name in ("8/dW", "9/da", "7/db_pre"):
        noise = 2.0**-11 * np.random.default_rng(0).standard_normal(dumped[name].shape)
        report = compare(trace(), dumped | {name: (dumped[name] * (1 + noise)).astype(np.float32)})
        assert (f"{report.deviation.step}/{report.deviation.name}", report.deviation.causes) == (name, [])
        assert compare(trace(), dumped, tolerance=1e-3).agrees


def test_a_gate_that_rounding_flips_is_told_and_not_failed(trace):
    row, m = 4, 3
    state = trace().before(8)
    x = unit_rows(trace().at(8)["rows"])
    y = (x - state["b_pre"]) @ state["W"].T
    state["b"] = np.where(np.arange(12) == m, 1e-9 - y[row, m], state["b"])  # y = 1e-9 there
    right = trace().step(8, state)
    assert right["on"][row, m]
    quantities = [*trace().quantities[:7], state, {name: np.asarray(right[name]) for name in trace().at(8)}]
    edge = oracle.Trace(trace().config, quantities)
    flip = np.zeros((12, 12), bool)
    flip[row, m] = True
    shut = edge.step(8, values={"on": right["on"] ^ flip})
    assert not np.allclose(shut["s"], right["s"], rtol=0, atol=1e-2)  # JumpReLU: all of z is gone
    candidate = halved({f"8/{name}": np.asarray(shut[name]) for name in edge.at(8)})
    report = compare(edge, candidate)
    assert report.agrees, str(report)
    assert report.flips == [(8, row, m)]
    assert "1 gates flipped" in str(report)
    without = {name: value for name, value in candidate.items() if name not in ("8/on", "8/y")}
    assert compare(edge, {"8/counts": without["8/counts"]}, tolerance=1e-5).agrees
    assert compare(edge, without).deviation.name == "s"
    far = candidate["8/on"].copy()
    far[row, m + 1] ^= True
    found = compare(edge, candidate | {"8/on": far}).deviation
    assert (found.name, found.index) == ("on", [row, m + 1])


# ---- mutants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_caught_and_named(mutant, trace):
    found = compare(trace(mutant.of), compiled(mutant)(trace(mutant.of), mutant.starts), mutant.starts).deviation
    assert found is not None
    assert found.name == mutant.quantity
    assert found.causes == ([mutant.cause] if mutant.cause else [])


@pytest.mark.parametrize("mutant", MUTANTS[3::5], ids=lambda mutant: mutant.name)
def test_a_mistake_is_caught_and_named_in_float32_too(mutant, trace):
    dumped = halved(compiled(mutant)(trace(mutant.of), mutant.starts, np.float32))
    found = compare(trace(mutant.of), dumped, mutant.starts).deviation
    assert (found.name, found.causes) == (mutant.quantity, [mutant.cause] if mutant.cause else [])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("reconstructor path missing", {"W"}),
        ("gradient through closed gates", {"W", "b_pre"}),
        ("epsilon inside the root", {"W"}),
        ("bias correction missing", {"a"}),
        ("T_k by the group's size", {"b"}),
        ("y passed instead of z", {"loss"}),
        ("targets linear", {"b"}),
    ],
)
def test_the_cause_is_found_upstream_of_what_is_shown(name, shown, trace):
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    dumped = compiled(mutant)(trace(mutant.of), "trace")
    found = compare(trace(mutant.of), {k: v for k, v in dumped.items() if k.split("/")[1] in shown}).deviation
    assert found.name in shown
    assert found.causes == [mutant.cause]
    assert found.unseen
    assert not set(found.unseen) & shown


def test_every_known_mistake_changes_something():
    """On some trace; but for gates of y >= 0, since no y is exactly 0."""
    silent = set(MISTAKES)
    with np.errstate(all="ignore"):
        for kind, seed in product(KINDS, range(10, 16)):
            trace = traces.example(config_of(kind, seed=seed, batch=10, adapt_every=5), 5)  # 2 of 50 is floor x HTF
            for t, text in product(range(1, 13), sorted(silent)):
                replaced = [name for name in (*MISTAKES[text], "y", "m.a") if name in names(trace.config, t)]
                right, wrong = trace.at(t), trace.step(t, instead=MISTAKES[text])
                if any(not np.array_equal(np.asarray(wrong[name]), right[name]) for name in replaced):
                    silent.discard(text)
    assert silent == {"gates are 1{y >= 0}, not 1{y > 0}", "the counts are of y >= 0, not y > 0"}


@pytest.mark.parametrize("more", [{"groups": 1}, {"batch": 1}, {"width": 3}, {"adapt_every": 1}, {"form": 1.0}])
def test_mistakes_can_be_worked_through_whatever_the_settings(more, port):
    trace = traces.example(config_of("default", **more), 2)
    assert compare(trace, port(trace)).agrees
    for t in (1, 6, 12):
        if f"{t}/y" in trace.arrays:
            wrong = {f"{t}/y": trace.at(t)["y"] + 1.0}
            assert compare(trace, wrong).deviation.name == "y"


def test_of_two_deviations_the_earlier_in_the_algorithm_is_told(trace):
    right = trace().arrays
    for first, second in (("5/dW", "5/W"), ("4/W", "5/x"), ("3/p", "3/b"), ("7/on", "7/dW"), ("0/a", "1/x")):
        off = {name: right[name] ^ True if right[name].dtype == bool else right[name] + 0.5 for name in (first, second)}
        found = compare(trace(), dict(reversed((right | off).items()))).deviation
        assert f"{found.step}/{found.name}" == first


def test_a_deviation_says_where_and_by_how_much(trace):
    wrong = trace().at(5)["dW"].copy()
    wrong[4, 2] += 0.25
    report = compare(trace(), {"5/dW": wrong})
    found = report.deviation
    assert (found.step, found.name, found.index, found.off, found.entries) == (5, "dW", [4, 2], 1, 60)
    assert found.got - found.expected == pytest.approx(0.25)
    assert 0 < found.allowed < 1e-9
    assert found.needs == found.unseen == ["dW.detector", "dW.reconstructor"]
    told = str(report)
    for part in ("step 5: dW deviates", f"dW[4, 2] should be {found.expected!r}, is {found.got!r}", "1 of 60 entries",
                 "no known mistake", "dW.detector, dW.reconstructor"):  # fmt: skip
        assert part in told


def test_who_says_that_steps_start_elsewhere_is_told_so(trace, port):
    ran_on = {name: value for name, value in port(trace(), "own", np.float32).items() if not name.startswith("1/x")}
    found = compare(trace(), halved(ran_on), "trace").deviation
    assert found.causes == ["the step starts from the port's own state, not from the trace's"]
    assert compare(trace(), halved(ran_on), "own").agrees


def test_size_bounds_what_rounding_does(trace):
    """Every step in float32, formula by formula, from rounded states and rows: within a tenth of the bound."""
    for kind in KINDS:
        for t in range(1, 13):
            exact = trace(kind).step(t)
            rounded = trace(kind).step(t, halved(trace(kind).before(t)))
            rounded.values["rows"] = exact["rows"].astype(np.float32)
            sizes = Sizes(exact, 1e-5)
            for name in names(exact.config, t):
                error = abs(np.asarray(rounded[name], np.float64) - np.asarray(exact[name], np.float64))
                assert (error <= 0.1 * sizes.allowed(name)).all(), (kind, t, name)
    assert set(sizes.known) <= {*QUANTITIES, "x - b_pre", "r", "v . r", "moved.a", "moved.b_pre"}
    assert set(QUANTITIES) <= set(FORMULAS)


# ---- partial and faulty dumps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_any_quantity_may_come_alone_and_is_compared(quantity, trace):
    for kind in KINDS:
        alone = {name: value for name, value in trace(kind).arrays.items() if name.split("/")[1] == quantity}
        if not alone:
            continue
        assert compare(trace(kind), alone).compared == len(alone)
        last = max(alone, key=lambda name: int(name.split("/")[0]))
        value = alone[last]
        moved = ~value if value.dtype == bool else value + 1
        found = compare(trace(kind), alone | {last: moved}).deviation
        assert f"{found.step}/{found.name}" == last


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda _: {}, "nothing to compare"),
        (lambda a: {"3/dW.detectors": a["3/dW"]}, "step 3 has no quantity 'dW.detectors'; is it dW.detector?"),
        (lambda a: {"3/nothing at all": a["3/dW"]}, "known are rows, x,"),
        (lambda a: {"dW": a["3/dW"]}, "dW: names are STEP/QUANTITY"),
        (lambda a: {"13/dW": a["3/dW"]}, "with steps 0 to 12"),
        (lambda a: {"03/dW": a["3/dW"]}, "03/dW: names are"),
        (lambda a: {"9" * 5000 + "/dW": a["3/dW"]}, "names are STEP/QUANTITY"),
        (lambda a: {"0/dW": a["3/dW"]}, "step 0 has no quantity 'dW'"),
        (lambda a: {"0/W_dec": a["3/W"]}, "step 0 has no quantity 'W_dec'"),
        (lambda a: {"3/dW": a["3/dW"].T}, "3/dW has shape (5, 12), it should be (12, 5); it looks transposed"),
        (lambda a: {"3/dW": a["3/dW"][:4]}, "3/dW has shape (4, 5), it should be (12, 5)"),
        (lambda a: {"3/dW": a["3/dW"].astype(np.float16)}, "3/dW holds float16, it should hold float32 or float64"),
        (lambda a: {"3/counts": a["3/peaks"]}, "3/counts holds float64, it should hold whole numbers"),
        (lambda a: {"3/on": a["3/y"]}, "3/on holds float64, it should hold bool"),
        (lambda a: {"3/f": np.where(a["3/f"] == a["3/f"][1, 2], np.nan, a["3/f"])}, "3/f holds nan at [1, 2]"),
        (lambda _: {"3/loss": np.array(np.inf)}, "3/loss holds inf at []"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_its_name(change, complaint, trace):
    with pytest.raises(InputError, match=re.escape(complaint)):
        compare(trace(), change(trace().arrays))


@pytest.mark.parametrize("tolerance", [0, -1, 1, float("nan")])
def test_a_tolerance_that_means_nothing_is_refused(tolerance, trace):
    with pytest.raises(InputError, match="tolerance"):
        compare(trace(), trace().arrays, tolerance=tolerance)


def test_a_scalar_may_be_an_array_of_one(trace):
    assert compare(trace(), {"3/loss": trace().at(3)["loss"].reshape(1)}).agrees


def test_what_should_not_be_there_at_a_step_deviates(trace):
    found = compare(trace(), {"2/p": trace().at(3)["p"], "2/b": trace().at(2)["b"]}).deviation
    assert (found.step, found.name, found.expected) == (2, "p", None)
    assert "adapt_every = 3" in found.causes[0]
    found = compare(trace(), {"2/W_dec": trace().at(2)["W"]}).deviation
    assert (found.name, found.causes) == ("W_dec", ["there is no decoder of its own at this step"])
    assert "there should be no W_dec" in str(found)


# ---- files and the command line --------------------------------------------------------------------------------------


@pytest.fixture
def cli(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, ["oracle", *(str(a) for a in arguments)])

    return run


def test_record_dump_and_check_on_the_command_line(cli, tmp_path):
    assert cli("record", "-o", "trace").exit_code == 0
    assert (
        load_file(tmp_path / "trace/arrays.safetensors").keys() == traces.read_trace(TRACES / "default").arrays.keys()
    )
    assert cli("dump", "trace", "--backend", "numpy", "-o", "candidate").exit_code == 0
    agrees = cli("check", "trace", "candidate")
    assert agrees.exit_code == 0
    assert agrees.stdout.startswith("390 quantities of 12 steps agree to 1e-05 of their size")
    arrays = load_file(tmp_path / "candidate/arrays.safetensors")
    arrays["5/loss"] *= 2
    save_file(arrays, tmp_path / "candidate/arrays.safetensors")
    deviates = cli("check", "trace", "candidate")
    assert deviates.exit_code == 1
    assert "step 5: loss deviates" in deviates.stdout
    assert "likely cause: the loss lacks its 1/2\n" in deviates.stdout
    as_json = cli("check", "trace", "candidate", "--json")
    assert as_json.exit_code == 1
    found = json.loads(as_json.stdout.splitlines()[-1])
    assert found["agrees"] is False
    assert (found["deviation"]["name"], found["deviation"]["step"]) == ("loss", 5)
    assert found["deviation"]["causes"] == ["the loss lacks its 1/2"]


def test_settings_of_a_trace_come_from_files_and_flags(cli, tmp_path):
    (tmp_path / "c.json").write_text('{"width": 8, "groups": 2, "gamma_minus": 0.125}')
    assert cli("record", "-o", "t", "--config", "c.json", "--d", 4, "--first", 2, "--seed", 3).exit_code == 0
    trace = traces.read_trace(tmp_path / "t")
    c = trace.config
    assert (c.width, c.groups, c.gamma_minus, c.seed, c.steps, trace.steps, trace.d) == (8, 2, 0.125, 3, 12, 2, 4)
    assert cli("check", "t", "t").exit_code == 0
    (tmp_path / "c.json").write_text('{"width": -8}')
    refused = cli("record", "-o", "t2", "--config", "c.json")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "t2").exists()


def test_what_exists_is_never_replaced(cli, tmp_path):
    for name in ("file", "folder"):
        (tmp_path / name).mkdir() if name == "folder" else (tmp_path / name).write_text("kept")
        for command in (["record"], ["dump", TRACES / "default", "--backend", "numpy"]):
            refused = cli(*command, "-o", name)
            assert refused.exit_code == 2
            assert f"{name}: exists" in refused.stderr
    assert (tmp_path / "file").read_text() == "kept"
    assert not list((tmp_path / "folder").iterdir())


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def rewrite(path, change):
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)


def set_index(path, **changes):
    index = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in index.items() if value is not None}))


FAULTS = {
    "no folder": (lambda f: shutil.rmtree(f), "index.json: no such file"),
    "no arrays": (lambda f: (f / "arrays.safetensors").unlink(), "arrays.safetensors: cannot be read"),
    "truncated": (lambda f: cut(f / "arrays.safetensors"), "arrays.safetensors: cannot be read"),
    "empty": (lambda f: (f / "arrays.safetensors").write_bytes(b""), "arrays.safetensors: cannot be read"),
    "no JSON": (lambda f: (f / "index.json").write_text("{"), "index.json: not JSON"),
    "a list": (lambda f: (f / "index.json").write_text("[]"), "should hold a JSON object"),
    "another format": (lambda f: set_index(f / "index.json", format="x"), 'should say "format": "refgba-trace"'),
    "a later version": (lambda f: set_index(f / "index.json", version=2), '"version": 1'),
    "no start": (lambda f: set_index(f / "index.json", starts=None), '"starts" should be'),
}
TRACE_FAULTS = FAULTS | {
    "no settings": (lambda f: set_index(f / "index.json", config=None), "a dump to compare, not a trace?"),
    "bad settings": (lambda f: set_index(f / "index.json", config={"width": 0}), "width must be at least 1"),
    "unknown settings": (lambda f: set_index(f / "index.json", config={"colour": 1}), "unknown setting 'colour'"),
    "another width": (lambda f: set_index(f / "index.json", config={"width": 9, "groups": 3, "batch": 12}), "no trace"),
    "an array less": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a.pop("7/da")), "arrays.safetensors: no trace: 7/da is"),
    "an array more": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a.update({"7/q": a["7/da"]})), "7/q does not belong"),
    "no steps": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: [a.pop(n) for n in list(a) if "/rows" in n]),
        "1/rows is missing"),
    "a matrix for b_pre": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a.update({"0/b_pre": a["0/W"]})), "one dimension"),
    "float32": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a.update({"7/da": a["7/da"].astype("f4")})),
        "7/da holds float32, in a trace it should hold float64"),
    "NaN": (
        lambda f: rewrite(f / "arrays.safetensors", lambda a: a["7/da"].__setitem__(3, np.nan)),
        "7/da holds nan at [3]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_candidate_is_one_line_and_status_2(fault, cli, tmp_path):
    shutil.copytree(TRACES / "default", tmp_path / "candidate")
    break_it, complaint = FAULTS[fault]
    break_it(tmp_path / "candidate")
    refused = cli("check", TRACES / "default", "candidate")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert complaint in refused.stderr


def test_a_candidate_with_a_nan_is_told_its_file_and_place(cli, tmp_path):
    shutil.copytree(TRACES / "default", tmp_path / "candidate")
    rewrite(tmp_path / "candidate/arrays.safetensors", lambda a: a["7/da"].__setitem__(3, np.nan))
    refused = cli("check", TRACES / "default", "candidate")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "Error: candidate/arrays.safetensors: 7/da holds nan at [3]; 1 of its 12 entries are not finite\n"
    )


@pytest.mark.parametrize("fault", TRACE_FAULTS)
def test_a_faulty_trace_is_one_line_and_status_2(fault, cli, tmp_path):
    shutil.copytree(TRACES / "default", tmp_path / "trace")
    break_it, complaint = TRACE_FAULTS[fault]
    break_it(tmp_path / "trace")
    refused = cli("check", "trace", TRACES / "default")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert complaint in refused.stderr


def test_writing_that_fails_leaves_nothing(tmp_path, monkeypatch, trace):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(traces.files, "write_folder", full)
    with pytest.raises(InputError, match="out: cannot be written"):
        traces.write_trace(trace(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_names_every_quantity_and_its_example_runs(cli, tmp_path, capsys):
    page = cli("format").stdout
    assert page == Path(oracle.__file__).with_name("format.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([^`]+)`", page.split("## What a step holds")[1].split("## Where")[0]))
    for name in QUANTITIES:
        theta = re.sub(r"^(updates|m|v)\..*", r"\1.θ", name)
        assert theta in told, name
    shutil.copytree(TRACES / "default", tmp_path / "trace")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {"my_step": step})
    assert capsys.readouterr().out.startswith("474 quantities of 12 steps agree to 1e-10")
    for kind in ("default", "paper"):
        about = json.loads((TRACES / kind / "index.json").read_text())
        assert list(about["quantities"]) == list(QUANTITIES)
        assert f"record -o trace{' --recipe paper' if kind == 'paper' else ''}" in page
