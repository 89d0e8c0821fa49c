"""Stores and files of rows, sound and lying, for the tests of data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from refgba.data import store
from refgba.data.store import META
from refgba.data.writer import Writer
from refgba.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def rows(N=100, d=5, seed=0):
    return np.random.default_rng(seed).standard_normal((N, d)).astype(np.float32)


def of(x, dtype):
    """x as it is stored in `dtype`, by ml_dtypes."""
    return x.astype(BFLOAT16).view(np.uint16) if dtype == "bfloat16" else x.astype(dtype)


def numbers(raw, dtype):
    return raw.view(BFLOAT16).astype(np.float32) if dtype == "bfloat16" else raw


def safetensors(path, raw, name="activations", **others):
    save_file({name: raw.view(BFLOAT16) if raw.dtype == np.uint16 else raw, **others}, path)
    return path


def npy(path, array):
    np.save(path, array)
    return path


def everything(opened):
    """All rows of a store as they are stored."""
    return np.concatenate([shard.read(0, shard.rows) for shard in opened.shards])


def written(path, x, rows_per_shard=None, format="npy", dtype="float32", **about):
    with Writer(path, x.shape[1], dtype, rows_per_shard, format, about) as writer:
        writer.append(x)
    return path


def change(path, **fields):
    """Change meta.json; the fields of shard k as {k: {...}}."""
    meta = json.loads((path / META).read_text())
    for name, value in fields.items():
        if name == "shards" and isinstance(value, dict):
            for k, entry in value.items():
                meta["shards"][k] |= entry
        else:
            meta[name] = value
    (path / META).write_text(json.dumps(meta))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def one_line(call, *names):
    """`call` raises an InputError of one line that has these names in it."""
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    for name in names:
        assert str(name) in said, said
    return said


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        cwd=Path(store.__file__).parents[2],
        **options,
    )


def lying_npy(shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


def lying_safetensors(**tensor):
    said = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | tensor
    header = json.dumps({"activations": said}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(64)


LIES = {
    "rows.npy": lying_npy((2**60, 4)),
    "d.npy": lying_npy((4, 2**60)),
    "negative.npy": lying_npy((-4, -4)),
    "boolean.npy": lying_npy((4, True)),
    "too-long-to-print.npy": lying_npy(f"(0x{'f' * 4000}, 0x{'f' * 4000})").replace(b"\x76\x00", b"\x90\x1f", 1),
    "header.npy": b"\x93NUMPY\x02\x00" + b"\xf0\xff\xff\xff" + b"{'descr'" * 20,
    "rows.safetensors": lying_safetensors(shape=[2**60, 4], data_offsets=[0, 2**64]),
    "place.safetensors": lying_safetensors(data_offsets=[2**61, 2**61 + 64]),
    "beyond.safetensors": lying_safetensors(data_offsets=[8, 72]),
    "other-place.safetensors": lying_safetensors(data_offsets=[0, 32]),
    "deep.safetensors": (10**5).to_bytes(8, "little") + b"[" * 10**5,
    "header.safetensors": (2**32).to_bytes(8, "little") + b"{" * 100,
}
