"""No file, however damaged or contrived, makes a reader do anything but return or refuse it in one line that names it.

Each test takes files as they are written and changes them: bytes, and what JSON says.  Nor may a file make its reader
allocate much more than it is long.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from refgba import backends
from refgba.config import GBAConfig, settings_from_json
from refgba.data.activations import open_activations, reopen
from refgba.data.inspection import info, verify
from refgba.data.store import open_store
from refgba.data.survey import survey
from refgba.data.writer import Writer
from refgba.errors import InputError
from refgba.runs import checkpoints, folder
from refgba.runs.trainer import Saving, train_run

TIMES = int(os.environ.get("FUZZ", "1"))  # 1: 2000 inputs in all; FUZZ=100 for a night
READ = settings(max_examples=300 * TIMES, suppress_health_check=list(HealthCheck))
RUN = settings(READ, max_examples=100 * TIMES)

HUGE = "9" * 4000
RAW = [  # what may stand in JSON, and what should not, in place of a value
    *("null", "true", "false", "0", "-0", "-1", "1", "1.0", "0.5", "1e-400", "1e400", "-1e400", "NaN", "Infinity"),
    *("-Infinity", "[]", "{}", "[[]]", "[{}]", '{"file": []}', "[null, 1]", '""', '"x"', '".."', '"."', '"a/b"', '"/"'),
    *(str(2**k + e) for k in (31, 32, 53, 62, 63, 64, 80) for e in (-1, 0, 1)),
    *(
        HUGE,
        "-" + HUGE,
        HUGE * 3,
        "1" + "0" * 307,
        "1" + "0" * 309,
        '"nan"',
        '"1"',
        '"float64"',
        '"BF16"',
        '"I64"',
        '"F4"',
        '"C64"',
    ),
    *(r'"\u0000"', r'"\ud800"', r'"a\nb"', r'"\u2028"', '"é\u2028"', json.dumps("x" * 300), json.dumps("x" * 10**5)),
    *("[" * 10**5, "[" * 10**5 + "]" * 10**5, '{"a":' * 10**5, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900),
    *("[" + "1," * 10**4 + "1]", "[" + "[]," * 10**4 + "[]]", "", ",", '"', "'", "\x00", "\ufeff", "// no"),
]


class Changed(bytes):
    """Bytes that a failing test shows the beginning of."""

    def __repr__(self):
        return f"{bytes(self[:1000])!r}{'...' if len(self) > 1000 else ''}"


def places(value, path=()):
    """The path of every value in JSON."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from places(inner, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


@st.composite
def other_json(draw, data):
    """The bytes of a JSON file with a value that is another, gone, or there twice."""
    value = json.loads(data)
    where = draw(st.sampled_from(list(places(value))))
    raw = draw(st.sampled_from(RAW))
    what = draw(st.sampled_from(["another", "another", "another", "gone", "twice", "more"]))
    if not where:
        if what == "another":
            return raw.encode("utf-8", "surrogatepass")
        what = "more"
    parent = at(value, where[:-1]) if where else value
    key = where[-1] if where else "x"
    if what == "another":
        parent[key] = "@value@"
    elif what == "gone":
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]) if what == "twice" else "@value@")
    else:
        parent["@key@"] = "@value@"
    name = json.dumps(key if what == "twice" else draw(st.sampled_from(["x", "\n", "\u0000", "\ud800", "../x", ""])))
    text = json.dumps(value).replace('"@key@"', name).replace('"@value@"', raw)
    return text.encode(draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32-be"])), "surrogatepass")


@st.composite
def other_bytes(draw, data):
    """Bytes that flip, are cut off, come in, or come from elsewhere."""
    for _ in range(draw(st.integers(1, 3))):
        size = len(data)
        a, b = sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "insert", "splice", "fill", "without"]))
        if kind == "flip" and a < size:
            data = data[:a] + bytes([data[a] ^ draw(st.integers(1, 255))]) + data[a + 1 :]
        elif kind == "cut":
            data = data[:a]
        elif kind == "insert":
            data = data[:a] + draw(st.binary(min_size=1, max_size=20)) + data[a:]
        elif kind == "splice":
            c = draw(st.integers(0, size))
            data = data[:c] + data[a:b] + data[c:]
        elif kind == "fill":
            data = data[:a] + draw(st.sampled_from([b"\xff", b"\x00", b" ", b"9"])) * min(b - a, 8) + data[a + 8 :]
        else:
            data = data[:a] + data[b:]
    return data


def other(data, as_json=True):
    ways = [other_bytes(data)]
    if as_json:
        ways += [other_json(data), other_json(data), other_json(data).flatmap(other_bytes)]
    return st.one_of(ways).map(Changed)


@st.composite
def other_safetensors(draw, data):
    """A safetensors file whose header says something else, at its right length or not; or with other bytes."""
    length = int.from_bytes(data[:8], "little")
    if draw(st.integers(0, 3)) == 0:
        return Changed(draw(other_bytes(data)))
    header = draw(other(data[8 : 8 + length]))
    said = draw(st.sampled_from([len(header)] * 6 + [length, 0, 2**32, 2**63, 2**64 - 1]))
    return Changed(said.to_bytes(8, "little") + header + data[8 + length :])


PYTHON = [
    *(
        "0",
        "-1",
        "1",
        "True",
        "None",
        "1.5",
        "2**60",
        "1j",
        "0x" + "f" * 4000,
        HUGE,
        "9" * 5000,
        "()",
        "[]",
        "{}",
        "'<f4'",
    ),
    *(
        "'>f8'",
        "'|O'",
        "'<f2'",
        "'<f16'",
        "'<i4'",
        "'x'",
        "'<f4,<f4'",
        "('<f4', (2,))",
        "[('a', '<f4')]",
        "'" + "f" * 9000,
    ),
    *(
        "(" * 9000,
        "[" * 100 + "]" * 100,
        "-" * 5000 + "1",
        "f''",
        "b''",
        "'\\d'",
        "'\\ud800'",
        "__import__('os')",
        "10L",
    ),
    *(str(2**k) for k in (31, 32, 60, 62, 63, 64, 100)),
]
HEADER = "{'descr': DESCR, 'fortran_order': ORDER, 'shape': (ROWS, D), }"


@st.composite
def other_npy(draw, data):
    """A .npy file whose header says something else, in version 1 or 2; or with other bytes."""
    if draw(st.integers(0, 2)) == 0:
        return draw(other_bytes(data))
    body = data[10 + int.from_bytes(data[8:10], "little") :]
    words = {"DESCR": "'<f4'", "ORDER": "False", "ROWS": "40", "D": "6", "(ROWS, D)": "(40, 6)", "'shape'": "'shape'"}
    for name in draw(st.lists(st.sampled_from(list(words)), min_size=1, max_size=2)):
        words[name] = draw(st.sampled_from(PYTHON))
    text = HEADER
    for name in ("(ROWS, D)", "'shape'", "DESCR", "ORDER", "ROWS", "D"):
        if name != "(ROWS, D)" or words[name] != "(40, 6)":
            text = text.replace(name, words[name], 1)
    header = text.encode() + b" " * draw(st.sampled_from([0, 10, 2000])) + b"\n"
    if draw(st.integers(0, 3)) == 0:
        header = draw(other_bytes(header))
    width = draw(st.sampled_from([2, 2, 4]))
    said = draw(st.sampled_from([len(header)] * 6 + [0, 2**16 - 1, 2 ** (8 * width) - 1]))
    said = min(said, 2 ** (8 * width) - 1)
    return b"\x93NUMPY" + bytes([width // 2, 0]) + said.to_bytes(width, "little") + header + body


# ---- the property ----------------------------------------------------------------------------------------------------


@contextmanager
def refused_in_one_line(named, size):
    """The body may raise an InputError of one line that has `named` in it, and nothing else; nor allocate much."""
    tracemalloc.start()
    try:
        with np.errstate(all="ignore"):  # as on the command line
            yield
    except InputError as error:
        said = str(error)
        assert len(said.splitlines()) == 1, said
        assert str(named) in said, said
        said.encode()  # can be printed
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 * size + 2**22, peak  # what JSON of brackets takes; and a constant


def rows(N=40, d=6):
    return np.random.default_rng(0).standard_normal((N, d)).astype(np.float32)


def read_all(path):
    opened = open_store(path)
    json.dumps(info(opened))
    verify(opened)


def npy_bytes():
    file = io.BytesIO()
    np.save(file, rows())
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@READ
@given(other_npy(npy_bytes()))
def test_any_npy_file_is_read_or_refused(place, data):
    path = place / "x.npy"
    path.write_bytes(data)
    with refused_in_one_line(path, len(data)):
        read_all(path)


@READ
@given(other_safetensors(save({"activations": rows()}, {"of": "x"})))
def test_any_safetensors_file_is_read_or_refused(place, data):
    path = place / "x.safetensors"
    path.write_bytes(data)
    with refused_in_one_line(path, len(data)):
        read_all(path)


def a_store(path):
    if not path.exists():
        with Writer(path, 6, "float32", 15, about={"model": "m", "layer": 3}) as writer:
            writer.append(rows())
    return path


META = json.dumps(
    {
        "format": "refgba-activations",
        "d": 6,
        "dtype": "float32",
        "complete": True,
        "shards": [{"file": f"0000{k}.npy", "rows": n, "sha256": None} for k, n in enumerate((15, 15, 10))],
        "model": "m",
        "layer": 3,
    }
).encode()


@READ
@given(other(META))
def test_any_meta_json_is_read_or_refused(place, data):
    path = a_store(place / "store")
    (path / "meta.json").write_bytes(data)
    with refused_in_one_line(path, len(data) + 1000):
        read_all(path)


@READ
@given(other(GBAConfig(width=64, groups=4).to_json().encode()))
def test_any_settings_are_taken_or_refused(data):
    text = data.decode("utf-8", "surrogateescape")  # lone surrogates too: from_json takes any str
    with refused_in_one_line("", len(data)):
        settings_from_json(text)
    with refused_in_one_line("", len(data)):
        assert isinstance(GBAConfig.from_json(text), GBAConfig)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run with a checkpoint, its files by name, and the fingerprint of its data."""
    path = tmp_path_factory.mktemp("run") / "run"
    config = GBAConfig(width=6, groups=2, steps=8, batch=4, adapt_every=2, dtype="float32")
    data, found = survey(open_activations(a_store(path.parent / "store")))
    list(train_run(data, found, config, backends.load("numpy"), {"backend": "numpy"}, path, Saving(4)))
    files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return path, config, data.fingerprint, files


NAMES = [
    *("config.json", "about.json", "data.safetensors", "final/state.json", "final/params.safetensors"),
    *(f"checkpoints/step-8/{name}" for name in ("state.json", "params.safetensors", "training.safetensors")),
]


def judge(run, name, changed):
    """Read the run with a file that is changed, and as it was again."""
    path, config, fingerprint, files = run
    file = path / name
    state = file.with_name("state.json")
    try:
        file.write_bytes(changed)
        if "/" in name and file != state:  # past the checksum
            told = json.loads(state.read_bytes())
            told["sha256"][file.name] = hashlib.sha256(changed).hexdigest()
            state.write_text(json.dumps(told))
        for read in readers(path, config, fingerprint):
            with refused_in_one_line(path.parent, len(changed) + 20_000):
                read()
    finally:
        for restored in {file, state} if "/" in name else {file}:
            restored.write_bytes(files[restored.relative_to(path).as_posix()])


@pytest.mark.parametrize("name", NAMES)
@RUN
@given(st.data())
def test_any_file_of_a_run_is_read_or_refused(run, name, data):
    original = run[3][name]
    judge(run, name, data.draw(other(original) if name.endswith(".json") else other_safetensors(original)))


CHECKPOINT = "checkpoints/step-8/"


@pytest.mark.parametrize(
    ("name", "where", "raw"),
    [
        ("about.json", ("data", "block"), str(2**63)),
        ("about.json", ("data", "dtype"), r'"a\nb"'),
        ("about.json", ("data", "dtype"), r'"\ud800"'),
        ("about.json", ("data", "path"), r'"\u0000"'),
        ("about.json", ("data", "shards", 0, 1), HUGE),
        ("data.safetensors", ("dropped", "dtype"), '"BF16"'),
        ("data.safetensors", ("dropped", "dtype"), '"F8_E4M3"'),
        ("data.safetensors", ("dropped", "dtype"), r'"a\nb"'),
        ("final/state.json", ("sha256", "\n"), "1"),
        ("final/state.json", ("sha256", "\0"), "1"),
        ("final/state.json", ("sha256", "\ud800"), "1"),
        ("final/params.safetensors", ("W", "dtype"), r'"a\nb"'),
        *((CHECKPOINT + "state.json", ("data",), raw) for raw in ("null", "[]", "1")),
        *((CHECKPOINT + "state.json", ("seconds",), raw) for raw in (HUGE, "null", "[]")),
        *((CHECKPOINT + "state.json", ("updates",), raw) for raw in ("null", '{"W": "x"}')),
        *((CHECKPOINT + "state.json", (name,), "[1]") for name in ("rows", "last_rows", "step")),
        (CHECKPOINT + "training.safetensors", ("counts", "dtype"), r'"a\nb"'),
        (CHECKPOINT + "training.safetensors", ("counts", "dtype"), '"BF16"'),
    ],
)
def test_what_was_found_in_the_files_of_runs_stays_fixed(run, name, where, raw):
    original = run[3][name]
    length = 0 if name.endswith(".json") else int.from_bytes(original[:8], "little")
    value = json.loads(original[8 : 8 + length] if length else original)
    at(value, where[:-1])[where[-1]] = "@value@"
    changed = json.dumps(value).replace('"@value@"', raw).encode()
    judge(run, name, len(changed).to_bytes(8, "little") + changed + original[8 + length :] if length else changed)


def readers(path, config, fingerprint):
    def again():
        record = folder.read_record(path)
        reopen(record.about["data"], record.dropped, record.crc, path.parent / "store")

    return (
        again,
        lambda: folder.open_network(path).provenance(),
        lambda: checkpoints.load(path / "checkpoints" / "step-8", config, fingerprint),
        lambda: checkpoints.newest(path, config, fingerprint, id),
    )
