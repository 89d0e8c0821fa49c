"""A dictionary in torch gives the codes and reconstructions that it gives in NumPy, where the rows are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from llm_models import D, dictionary, llm, needs


@llm
@pytest.mark.parametrize("centre", [None, 3 * np.random.default_rng(1).standard_normal(D)], ids=["as they are", "less"])
def test_codes_and_reconstructions_are_those_of_numpy(centre):
    torch, _ = needs()
    from refgba.llm.networks import Coder

    ours = replace(dictionary(0), centre=centre)
    x = np.random.default_rng(0).standard_normal((20, D)) + (0 if centre is None else centre)
    coder = Coder(ours, dtype="float64")
    rows = ours.prepare(x)
    _, codes = ours.encode(rows)
    np.testing.assert_allclose(coder.codes(torch.from_numpy(x)).numpy(), codes, rtol=1e-4, atol=1e-6)
    left = x if centre is None else x - centre
    there = ours.decode(codes) * np.linalg.norm(left, axis=1, keepdims=True) + (x - left)
    np.testing.assert_allclose(coder.reconstruct(torch.from_numpy(x)).numpy(), there, rtol=1e-4, atol=1e-4)
    nothing = coder.edited(torch.from_numpy(x), lambda codes: codes, replaced=False)
    np.testing.assert_array_equal(nothing.numpy(), x)
