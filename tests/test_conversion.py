"""Rows converted between dtypes: as NumPy and ml_dtypes round them, and nothing is lost silently."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_files import (
    BFLOAT16,
    npy,
    numbers,
    of,
    one_line,
    rows,
)

from refgba.data import pack
from refgba.data.conversion import convert
from refgba.data.store import DTYPES, stored, values


@given(st.lists(st.floats(width=32) | st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_float32_becomes_the_bfloat16_of_ml_dtypes(drawn):
    given = [np.uint32(v).view(np.float32) if isinstance(v, int) else np.float32(v) for v in drawn]
    x = np.array(given, np.float32)[:, None]
    with np.errstate(all="ignore"):
        right = x.astype(BFLOAT16)
    fits = np.isfinite(right.astype(np.float32)) | ~np.isfinite(x)
    fits &= (right != 0) | (x == 0)  # here every number is a row
    got = convert(x[fits[:, 0]], "bfloat16")
    np.testing.assert_array_equal(values(got), right[fits[:, 0]].astype(np.float32))
    np.testing.assert_array_equal(np.signbit(values(got)), np.signbit(x[fits[:, 0]]))


def test_ties_between_two_bfloat16_go_to_the_even_one_and_just_beside_them_do_not():
    for low, tie in ((0x3F80, 0x3F808000), (0x3F81, 0x3F818000), (0x0001, 0x00018000), (0x7F7E, 0x7F7E8000)):
        bits = np.array([[tie - 1], [tie], [tie + 1]], np.uint32)
        even = low + (low & 1)
        for sign in (0, 0x8000):
            got = convert((bits | np.uint32(sign << 16)).view(np.float32), "bfloat16")
            assert got[:, 0].tolist() == [low | sign, even | sign, low + 1 | sign]


@given(st.floats(2**-130, 3e38), st.integers(-1, 1))
def test_float64_is_rounded_once(x, ulp):
    bits = (np.float32(x).view(np.uint32) & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    tie = float(bits.view(np.float32))  # between two bfloat16
    near = np.nextafter(tie, ulp * np.inf) if ulp else tie
    low = int(bits >> 16)
    expected = low + {-1: 0, 0: low & 1, 1: 1}[ulp]
    assert convert(np.array([[near], [-near]]), "bfloat16").ravel().tolist() == [expected, expected | 0x8000]


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_conversion_is_that_of_numpy_and_ml_dtypes_and_widening_is_exact(source, target):
    raw = of(np.vstack([rows(), [[np.nan, np.inf, -np.inf, 0.0, -0.0]]]), source)
    got = convert(raw, target)
    assert got.dtype == stored(target)
    wide = numbers(raw, source).astype(np.float64)
    np.testing.assert_array_equal(numbers(got, target), numbers(of(wide, target), target))
    if stored(target).itemsize > stored(source).itemsize:
        np.testing.assert_array_equal(numbers(got, target).astype(np.float64), wide)


@pytest.mark.parametrize(
    ("source", "value", "target", "wider"),
    [
        (np.float32, 65520.0, "float16", "float32"),
        (np.float32, -1e30, "float16", "float32"),
        (np.float64, 1e300, "float16", "float64"),
        (np.float64, 3.5e38, "float32", "float64"),
        (np.float64, 3.4e38, "bfloat16", "float32"),
        (np.float32, 3.4e38, "bfloat16", "float32"),
        (np.float32, 1e-9, "float16", "float32"),
        (np.float64, 1e-60, "float32", "float64"),
        (np.float32, 1e-44, "bfloat16", "float32"),
    ],
)
def test_a_row_that_a_dtype_cannot_hold_is_named_with_one_that_can(tmp_path, source, value, target, wider):
    x = np.ones((50, 3), source)
    x[31] = [0, value, 0]
    path, out = npy(tmp_path / "x.npy", x), tmp_path / "out"
    one_line(
        lambda: pack.pack([path], out, dtype=target, format="safetensors"),
        f"{path}: row 31 holds ",
        f"{abs(float(source(value))):g}, too {'large' if abs(value) > 1 else 'small'} for {target}",
        f"; --dtype {wider} would hold it",
    )
    assert not out.exists()
    pack.pack([path], out, dtype=wider)


def test_the_largest_of_a_dtype_and_what_rounds_to_it_fit():
    assert convert(np.array([[65519.0]]), "float16") == np.float16(65504)
    assert convert(np.array([[3.3895e38]]), "bfloat16") == 0x7F7F
