"""Libraries that are broken or misled: `refgba backends` lists all backends, and a run that cannot begin is one line
and leaves no folder.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import emulated_cupy
import numpy as np
import pytest
from commands import QUICK, assert_one_line
from engines import engine
from environments import TEST_NUMBA, reasons, refgba_in

from refgba import backends
from refgba.backends import environment
from refgba.baselines import METHODS

# ---- what the environment says ---------------------------------------------------------------------------------------


@TEST_NUMBA
@pytest.mark.parametrize(
    ("settings", "why", "cure"),
    [
        ({"NUMBA_THREADING_LAYER": "tbb"}, "No threading layer could be loaded", "unset NUMBA_THREADING_LAYER=tbb"),
        ({"NUMBA_THREADING_LAYER": "none"}, "requested 'none' is unknown", "unset NUMBA_THREADING_LAYER=none"),
        ({"NUMBA_NUM_THREADS": "0"}, "Number of threads specified must be > 0", "unset NUMBA_NUM_THREADS=0"),
        ({"NUMBA_NUM_THREADS": "many"}, "'NUMBA_NUM_THREADS' is defined but its associated value 'many'", "unset it"),
        ({"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set", "unset it"),
        ({"NUMBA_CACHE_LOCATOR_CLASSES": "foo"}, "Unknown cache locator", "unset NUMBA_CACHE_LOCATOR_CLASSES=foo"),
    ],
)
def test_a_setting_that_numba_cannot_take_is_one_line_with_its_cure_and_leaves_no_run(tmp_path, settings, why, cure):
    if settings == {"NUMBA_THREADING_LAYER": "tbb"} and importlib.util.find_spec("tbb"):
        pytest.skip("tbb is installed")
    reason = reasons(refgba_in(settings, "backends"))["numba"]
    assert why in reason
    assert cure in reason
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((100, 5)))
    trained = refgba_in(settings, "train", tmp_path / "x.npy", "-o", tmp_path / "run", *QUICK, "--backend", "numba")
    error = trained.stderr.splitlines()[-1]  # before it a slow machine is told that numba is being loaded
    assert (trained.returncode, error) == (2, f"Error: backend 'numba' cannot run here: {reason}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_library_that_replaced_functions_of_math_is_told_of(monkeypatch):
    def fabs(x):
        return abs(x)

    error = NotImplementedError(f"No definition for lowering {fabs}(float32,) -> float32")
    assert "pip install" in environment.reason("numba", "its first use fails", error)
    monkeypatch.setattr("math.fabs", fabs)
    assert "replaced functions of Python's math" in environment.reason("numba", "its first use fails", error)
    assert "pip install" in environment.reason("numba", "its first use fails", NotImplementedError("another"))


BROKEN = [
    'raise ImportError("libLLVM-15.so: cannot open shared object file\\nsecond line")',
    'raise RuntimeError("built for another NumPy")',
    'raise OSError(8, "Exec format error")',
    "raise SystemExit(3)",
    "import numpy.nothing_of_the_kind",
    "numpy",
    "class Failure(Exception): pass\nraise Failure",
    "yield",
]


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_library_is_one_line_and_takes_no_other_backend_down(tmp_path, monkeypatch, code):
    for library in ("numba", "threadpoolctl", "cupy"):
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text(code)
    for broken, backend in (("numba", "numba"), ("cupy", "cupy"), ("threadpoolctl", "numba")):
        others = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == broken or "refgba.backends.numba" in n}
        with monkeypatch.context() as patch:
            for name in others:
                patch.delitem(sys.modules, name)
            patch.syspath_prepend(tmp_path)
            if broken == "threadpoolctl":
                patch.setitem(sys.modules, "numba", sys)  # whatever can be imported
            status = backends.status()
        assert status["numpy"] is None
        assert status[backend].startswith(f"{broken} fails ("), status
        again = environment.NEEDS[backend].install.replace("pip install", "pip install --force-reinstall")
        assert status[backend].endswith(again)
        assert "\n" not in status[backend]
        for name in [name for name in sys.modules if name.partition(".")[0] == broken]:
            del sys.modules[name]
        sys.modules.update(others)


@TEST_NUMBA
def test_a_broken_library_is_one_line_of_the_command(tmp_path):
    (tmp_path / "threadpoolctl.py").write_text("raise ZeroDivisionError('half\\nimported')")
    reason = reasons(refgba_in({}, "backends", path=[tmp_path]))["numba"]
    assert reason.startswith("threadpoolctl fails (ZeroDivisionError: half imported): ")


def test_a_part_of_a_library_that_is_missing_is_not_the_library_missing():
    absent = ModuleNotFoundError("No module named 'abacus'", name="abacus.beads")
    assert environment.missing(absent) == "abacus.beads"
    assert environment.missing(ModuleNotFoundError("No module named 'numpy.beads'", name="numpy.beads")) is None
    assert environment.missing(ImportError("numpy is odd", name="numpy")) is None


def test_help_and_numpy_load_no_library_of_the_other_backends():
    code = "import sys; from refgba import backends, cli; backends.load('numpy', 'float32'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numba", "cupy", "threadpoolctl"} & set(result.stdout.split()) == set()


# ---- the first use ---------------------------------------------------------------------------------------------------

FAILURES = [
    RuntimeError("Failed in nopython mode pipeline\n(step: nopython frontend)"),
    EOFError(),
    OSError(28, "No space left on device"),
    KeyError("kernel"),
]


@pytest.fixture
def untried(monkeypatch):
    monkeypatch.setattr(backends, "_tried", set())


@TEST_NUMBA
@pytest.mark.parametrize("where", ["numba.step", "numba.init", "numba_kernels.encode", "numba_kernels.sweep"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.usefixtures("untried")
def test_what_fails_at_first_use_is_one_line_and_leaves_no_run(cli, data, monkeypatch, where, failure):
    backends.load("numba")

    def fail(*_args, **_named):
        raise failure

    monkeypatch.setattr(f"refgba.backends.{where}", fail)
    result = cli("train", data, "-o", "run", *QUICK, "--backend", "numba")
    assert_one_line(result, f"backend 'numba' cannot run here: its first use fails ({type(failure).__name__}")
    assert not Path("run").exists()


@pytest.mark.parametrize("where", ["Device.product", "Device.launch", "Device.__init__"])
@pytest.mark.usefixtures("untried")
def test_what_fails_at_first_use_of_a_gpu_is_one_line(cli, data, monkeypatch, where):
    with engine("cupy emulated"):
        monkeypatch.setattr(environment, "refusal", lambda _name: None)
        backends.load("cupy", "float32")
        monkeypatch.setattr(backends, "_tried", set())

        def fail(*_args, **_named):
            raise emulated_cupy.cuda.runtime.CUDARuntimeError("cudaErrorLaunchFailure:\nunspecified")

        monkeypatch.setattr(f"refgba.backends.cupy_device.{where}", fail)
        for arguments in (["train", data, "-o", "run", *QUICK], ["evaluate", "other", data]):
            if arguments[0] == "evaluate":
                cli("train", data, "-o", "other", *QUICK)
            result = cli(*arguments, "--backend", "cupy", "--dtype", "float32")
            assert_one_line(result, "cannot run here: its first use fails (CUDARuntimeError: cudaErrorLaunchFailure: u")
        assert not Path("run").exists()


@pytest.mark.parametrize("failure", [OSError(30, "Read-only file system"), RuntimeError("nvrtc: no"), KeyError("x")])
def test_what_fails_while_cupy_is_looked_at_is_one_line(monkeypatch, failure):
    with engine("cupy emulated"):
        monkeypatch.setattr(environment, "refusal", lambda _name: None)

        def fail(*_args, **_named):
            raise failure

        monkeypatch.setattr(emulated_cupy, "RawKernel", fail)
        reason = backends.status()["cupy"]
    assert str(failure.args[-1]) in reason
    assert "\n" not in reason


@TEST_NUMBA
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("untried")
def test_the_trial_compiles_all_that_a_run_needs(method):
    from refgba.backends import numba_kernels
    from refgba.backends.baselines import numba_kernels as baselines_kernels

    backends.load("numba", "float32", method)
    top = ("encode", "decode_dense", "decode_sparse", "decode_codes", "sweep")
    if method == "gba":
        assert [name for name in top if not getattr(numba_kernels, name).signatures] == []
    else:
        assert (baselines_kernels.sweep_gated if method == "gated" else baselines_kernels.sweep).signatures
