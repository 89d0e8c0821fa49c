"""A port's trained parameters, brought back as bare arrays, are judged as the network that they are."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from commands import REFERENCE
from safetensors.numpy import save_file

from refgba import backends, gba, recipe, sae
from refgba.errors import InputError
from refgba.formats import parameters
from refgba.runs.folder import open_network


def network(activation="jumprelu", untied=True, dtype=np.float64):
    """Parameters of 7 neurons in 4 dimensions with biases of at most 0, and their settings."""
    rng = np.random.default_rng(0)
    W, V = (sae.unit_rows(rng.standard_normal((7, 4))) for _ in range(2))
    params = sae.Params(
        W, rng.standard_normal(7), -rng.random(7) / 4, rng.standard_normal(4) / 4, V if untied else None
    )
    return params.astype(dtype), recipe.paper(4, width=7, groups=1, activation=activation, dtype=np.dtype(dtype).name)


def saved(path, arrays):
    """The file of these arrays, by its suffix."""
    np.savez(path, **arrays) if path.suffix == ".npz" else save_file(arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@pytest.mark.parametrize("untied", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_network_read_has_the_codes_and_reconstructions_of_the_one_saved(
    suffix, activation, untied, dtype, tmp_path
):
    params, config = network(activation, untied, dtype)
    dictionary = parameters.read(saved(tmp_path / f"port{suffix}", params.arrays()), activation)
    x = sae.unit_rows(np.random.default_rng(1).standard_normal((50, 4))).astype(dtype)
    backend = backends.load("numpy")
    state = backend.init(params, config)
    y, s = dictionary.encode(x)
    expected_y, expected_s = backend.encode(state, x)
    bound = 1e-12 if dtype == np.float64 else 1e-5
    assert 0 < (expected_y > 0).mean() < 1
    np.testing.assert_array_equal(y > 0, expected_y > 0)
    np.testing.assert_allclose(s, expected_s, atol=bound)
    np.testing.assert_allclose(dictionary.decode(s), backend.decode(state, expected_s), atol=bound)


def test_import_makes_a_dictionary_that_is_judged_as_the_run_itself(cli, data, tmp_path):
    done = cli("train", data, "-o", "run", "--steps", 20, "--width", 32, "--batch", 64, *REFERENCE)
    assert done.exit_code == 0, done.output
    saved(tmp_path / "port.npz", open_network(tmp_path / "run").params.arrays())
    assert cli("import", "port.npz", "-o", "port").exit_code == 0
    ours, theirs = (
        json.loads(cli("evaluate", name, data, "--json").stdout.splitlines()[-1]) for name in ("run", "port")
    )
    assert theirs["fvu"] == pytest.approx(ours["fvu"], rel=1e-6)
    assert theirs["l0"] == pytest.approx(ours["l0"])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b_pre": None}, "b_pre is missing"),
        ({"a": np.ones(3)}, r"a has shape \(3,\), with this W it should be \(7,\)"),
        ({"W": np.ones(7)}, r"W has shape \(7,\), it should be \(neurons, dimensions\)"),
        ({"W_dec": np.ones((4, 7))}, r"W_dec has shape \(4, 7\), with this W it should be \(7, 4\)"),
        ({"b": np.full(7, 0.5)}, "neuron 0 has the bias 0.5"),
        ({"a": np.full(7, np.nan)}, "W_dec holds a NaN or an infinity"),
        ({"a": np.ones(7, np.int64)}, "float32 or float64"),
    ],
)
def test_parameters_that_cannot_be_are_refused_by_name(suffix, change, message, tmp_path):
    arrays = {name: array for name, array in (network()[0].arrays() | change).items() if array is not None}
    with pytest.raises(InputError, match=message) as refusal:
        parameters.read(saved(tmp_path / f"port{suffix}", arrays))
    assert str(refusal.value).startswith(str(tmp_path / f"port{suffix}"))


@pytest.mark.parametrize("name", ["port.npz", "port.safetensors"])
def test_files_that_are_none_are_refused(name, tmp_path):
    path = tmp_path / name
    with pytest.raises(InputError, match=name):
        parameters.read(path)
    path.write_bytes(b"PK, but not really")
    with pytest.raises(InputError, match=f"{name}: damaged or cannot be read"):
        parameters.read(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=name):
        parameters.read(path)
    with pytest.raises(InputError, match=r"parameters are read from \.npz and \.safetensors files"):
        parameters.read(tmp_path / "port.pt")


def test_a_folder_takes_no_activation(cli, tmp_path):
    (tmp_path / "folder").mkdir()
    refused = cli("import", "folder", "-o", "out", "--activation", "relu")
    assert refused.exit_code == 2
    assert "leave --activation out" in refused.stderr


def test_folders_that_look_like_runs_and_are_none_are_told_so(cli, data, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    (others / "config.json").write_text('{"model_type": "bert"}')
    bare = tmp_path / "bare"
    bare.mkdir()
    saved(bare / "params.safetensors", network()[0].arrays())
    for folder, lacks in ((others, "about.json"), (bare, "config.json")):
        refused = cli("evaluate", folder, data)
        assert refused.exit_code == 2
        assert f"not a run, it has no {lacks}" in refused.stderr
        assert "refgba import" in refused.stderr


def test_the_reference_s_own_step_can_be_brought_back(tmp_path):
    params, config = network(untied=False)
    state = gba.init(params, config)
    gba.step(state, sae.unit_rows(np.random.default_rng(2).standard_normal((20, 4))))
    dictionary = parameters.read(saved(tmp_path / "port.npz", state.params.arrays()))
    np.testing.assert_array_equal(dictionary.W_enc, state.params.W)
