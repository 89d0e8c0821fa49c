"""dictionary_learning itself: it computes what our networks do, and we read back what torch wrote."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from dictionaries import (
    CASES,
    NEAR,
    PROVENANCE,
    activations,
    agrees,
    network,
    refused,
    same,
    topk,
    trained,
)
from engines import library, real

from refgba import baselines
from refgba.errors import InputError
from refgba.formats import dictionary_learning, export, is_dictionary, read
from refgba.formats.trained import from_params
from refgba.sae import unit_rows


def test_without_torch_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"written and read by torch .*: pip install torch"):
        export(*network(), {}, tmp_path / "out", "dictionary-learning")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("input", ["sqrt_d", "layer_norm"])
def test_a_dictionary_for_rows_that_the_library_does_not_make_is_refused(tmp_path, input):
    with pytest.raises(InputError, match="dictionary_learning does not scale rows"):
        dictionary_learning.write(replace(from_params(*network()), input=input), {}, tmp_path / "out")


@real
@pytest.mark.parametrize(("activation", "untied", "dtype"), CASES)
def test_dictionary_learning_computes_what_the_network_does(tmp_path, activation, untied, dtype):
    torch, utils = library("torch"), library("dictionary_learning.utils")
    params, config, rows = trained(activation, untied, dtype)
    export(params, config, PROVENANCE, tmp_path / "out", "dictionary-learning")
    loaded, about = utils.load_dictionary(str(tmp_path / "out"), device="cpu")
    assert about["refgba"] == PROVENANCE
    assert not loaded.apply_b_dec_to_input
    with torch.no_grad():
        f, codes = loaded(torch.tensor(unit_rows(rows)), output_features=True)
    agrees(params, config, rows, codes.numpy(), f.numpy(), NEAR["float32"])  # it computes in float32 only
    assert is_dictionary(tmp_path / "out")
    ours = read(tmp_path / "out")
    for name, theirs in loaded.state_dict().items():
        array = getattr(ours, name)
        assert ((array.T if name == "W_enc" else array) == theirs.numpy()).all()
    assert (ours.input, ours.subtract_b_dec) == ("unit", False)
    for damaged in (b"", (tmp_path / "out" / "ae.pt").read_bytes()[:-100], b"cos\nsystem\n(S'true'\ntR."):
        (tmp_path / "out" / "ae.pt").write_bytes(damaged)
        assert "ae.pt: damaged, or not the weights of JumpReluAutoEncoder" in refused(tmp_path / "out")


@real
def test_dictionary_learning_computes_what_our_topk_does(tmp_path):
    torch, utils = library("torch"), library("dictionary_learning.utils")
    params, config = topk(k=9, dtype="float32", M=200, d=24)
    export(params, config, PROVENANCE, tmp_path / "out", "dictionary-learning")
    loaded, _ = utils.load_dictionary(str(tmp_path / "out"), device="cpu")
    x = unit_rows(activations(500, 24))
    with torch.no_grad():
        f, codes = loaded(torch.tensor(x), output_features=True)
    _, s = baselines.evaluation_codes(params, x, config)
    np.testing.assert_allclose(codes.numpy(), s, atol=1e-5 * s.max())
    np.testing.assert_allclose(f.numpy(), baselines.decode(params, s), atol=1e-4)
    same(read(tmp_path / "out"), from_params(params, config))
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    told["trainer"]["k"] = 8
    (tmp_path / "out" / "config.json").write_text(json.dumps(told))
    assert "its k is not 8, as config.json says" in refused(tmp_path / "out")
