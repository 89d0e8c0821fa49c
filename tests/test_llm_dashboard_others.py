"""What neurons fire on in the files of other projects, by an example worked by hand.

Two neurons, which see the two dimensions as they are above a threshold of 1.  The store has two contexts; the rows of
their first tokens were left out:

    <bos>  a(2, 0)  b(4, 0.5)      and      <bos>  c(0, 3)  a(3, 0)  d(0, 0)
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import assert_one_line, last_json
from dictionaries import network
from llm_stores import MODEL, SITE, SPECIAL, random_store, write_run, write_store
from safetensors.numpy import load_file

from refgba import formats
from refgba.errors import InputError
from refgba.llm.dashboard import examples as shown
from refgba.llm.dashboard import others, survey_features, write_delphi, write_features
from refgba.llm.dashboard.logits import BINS, Effects
from refgba.llm.dashboard.others import distribution

X = [np.array([[9.0, 9], [2, 0], [4, 0.5]]), np.array([[9.0, 9], [0, 3], [3, 0], [0, 0]])]


@pytest.fixture
def hand(tmp_path):
    contexts = [([SPECIAL, "a", "b"], X[0]), ([SPECIAL, "c", "a", "d"], X[1])]
    write_store(tmp_path / "store", [contexts[:1], contexts[1:]])
    W = np.array([[1.0, 0], [0, 1]])
    arrays = {"W_enc": W, "W_dec": W, "b_enc": np.zeros(2), "threshold": np.ones(2), "b_dec": np.zeros(2)}
    formats.npz.write(formats.Dictionary(**arrays, subtract_b_dec=False, input="raw"), {}, tmp_path / "two")
    return tmp_path


@pytest.fixture
def features(hand):
    return survey_features(hand / "two", hand / "store", top=2, quantiles=2, examples=2)


EFFECTS = Effects(
    np.array([[1], [2]]), np.array([[0.5], [0.25]]), np.array([[2], [1]]), np.array([[-0.5], [-0.25]]),
    np.ones((2, BINS), np.int64), {1: " up", 2: " down"},
)  # fmt: skip


def test_saedashboard_by_hand(features, tmp_path):
    write_features(features, tmp_path / "out", "saedashboard", EFFECTS)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["batch-0.json"]
    batch = json.loads((tmp_path / "out" / "batch-0.json").read_text())
    first, second = batch.pop("features")
    assert batch == {"model_id": "model", "layer": 3, "sae_set": "two", "sae_id_suffix": None}
    assert first["feature_index"] == 0
    assert first["frac_nonzero"] == 3 / 5
    assert first["n_prompts_total"] == 2
    assert first["n_tokens_in_prompt"] == 8
    assert first["dataset"] == "a.txt"
    assert first["vector"] == [1.0, 0.0]
    assert first["neuron_alignment_indices"] == [0, 1]
    assert first["neuron_alignment_values"] == [1.0, 0.0]
    assert first["neuron_alignment_l1"] == [1.0, 0.0]
    assert (first["pos_str"], first["pos_values"]) == ([" up"], [0.5])
    assert (second["neg_str"], second["neg_values"]) == ([" up"], [-0.25])
    assert first["freq_hist_data_bar_heights"] == [1, 1, 1]  # of 2, 3 and 4
    low, high = first["logits_hist_data_bar_values"][0], first["logits_hist_data_bar_values"][-1]
    assert (low, high) == (-0.4875, 0.4875)  # middles of 40 bins from -0.5 to 0.5
    top = {"bin_min": -1, "bin_max": 4.0, "bin_contains": -1}
    assert first["activations"] == [
        top | {"tokens": [SPECIAL, "a", "b"], "values": [0.0, 2.0, 4.0], "qualifying_token_index": 2},
        top | {"tokens": [SPECIAL, "c", "a", "d"], "values": [0.0, 0.0, 3.0, 0.0], "qualifying_token_index": 2},
    ]
    assert [a["values"] for a in second["activations"]] == [[0.0, 3.0, 0.0, 0.0]]  # 0.5 is under the threshold


@pytest.mark.parametrize("held", [1, 3, 5, 7, 12, 100])
def test_no_neuron_is_lost_however_many_are_held_at_a_time(tmp_path, monkeypatch, held):
    """Windows of `held` neurons fit in memory, and files are of 5."""
    M = 12
    write_run(tmp_path / "run", network(M=M, d=6)[0])
    features = survey_features(tmp_path / "run", random_store(tmp_path / "store"), top=2, quantiles=2, examples=1)
    monkeypatch.setattr(shown, "CELLS", held * 4 * features.survey.choice.window)
    monkeypatch.setattr(others, "PER_BATCH", 5)
    assert len(next(features.batches())[0]) == min(held, M)
    write_features(features, tmp_path / "sae", "saedashboard")
    write_features(features, tmp_path / "tracer", "circuit-tracer")
    batches = [json.loads((tmp_path / "sae" / f"batch-{k}.json").read_text()) for k in range(3)]
    assert len(list((tmp_path / "sae").iterdir())) == 3
    assert [[f["feature_index"] for f in batch["features"]] for batch in batches] == [
        [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11],
    ]  # fmt: skip
    assert {batch["model_id"] for batch in batches} == {"model"}
    assert sorted(int(p.stem) for p in (tmp_path / "tracer").iterdir()) == list(range(M))


def test_circuit_tracer_by_hand(features, tmp_path):
    write_features(features, tmp_path / "out", "circuit-tracer", EFFECTS)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.json", "1.json"]
    first = json.loads((tmp_path / "out" / "0.json").read_text())
    assert first["transcoder_id"] == f"model/{SITE}/two"
    assert first["index"] == 0
    assert (first["top_logits"], first["bottom_logits"]) == ([" up"], [" down"])
    assert (first["act_min"], first["act_max"]) == (2.0, 4.0)
    assert first["activation_frequency"] == 3 / 5
    assert sum(first["histogram"]) == pytest.approx(3)
    assert first["quantile_values"] == sorted(first["quantile_values"])
    assert len(first["quantile_values"]) == 99
    [quantile] = first["examples_quantiles"]
    assert quantile["quantile_name"] == "Top activations"
    assert quantile["examples"][0] == {
        "tokens": [SPECIAL, "a", "b"], "tokens_acts_list": [0.0, 2.0, 4.0], "train_token_ind": 2,
        "is_repeated_datapoint": False,
    }  # fmt: skip


def test_the_distribution_is_that_of_the_histogram_up_to_the_peak(features):
    limits, counts = distribution(features, 0)
    assert limits[0] == 2
    assert limits[-1] == 4
    np.testing.assert_allclose(np.interp([2, 2 * 2**0.25, 4], limits, counts), [0, 1, 3])


def test_delphi_by_hand(hand, features):
    assert write_delphi(features.dictionary, features.harvest, hand / "out") == 4
    folder = hand / "out" / SITE
    assert sorted(p.name for p in folder.iterdir()) == ["0_0.safetensors", "1_1.safetensors", "config.json"]
    first, second = (load_file(folder / f"{k}_{k}.safetensors") for k in range(2))
    assert first["locations"].tolist() == [[0, 1, 0], [0, 2, 0], [1, 2, 0]]
    assert first["activations"].tolist() == [2.0, 4.0, 3.0]
    assert (first["locations"].dtype, first["activations"].dtype) == (np.uint16, np.float16)
    assert second["locations"].tolist() == [[1, 1, 0]]
    assert second["activations"].tolist() == [3.0]
    assert first["tokens"].tolist() == second["tokens"].tolist() == [[0, 1, 2, 0], [0, 3, 1, 4]]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_name"] == MODEL
    assert (config["cache_ctx_len"], config["n_tokens"], config["n_splits"]) == (4, 7, 2)


def test_delphi_refuses_what_its_float16_cannot_hold(hand):
    rows = np.array([[0, 0], [1e5, 0.0]])
    write_store(hand / "large", [[([SPECIAL, "a"], rows)]])
    features = survey_features(hand / "two", hand / "large")
    with pytest.raises(InputError, match="100000 is beyond what delphi's float16 can hold"):
        write_delphi(features.dictionary, features.harvest, hand / "out")
    assert not (hand / "out").exists()


def test_without_a_model_there_are_no_logits(features, tmp_path):
    write_features(features, tmp_path / "a", "saedashboard")
    write_features(features, tmp_path / "b", "circuit-tracer")
    first = json.loads((tmp_path / "a" / "batch-0.json").read_text())["features"][0]
    assert first["pos_str"] == first["neg_values"] == first["logits_hist_data_bar_heights"] == []
    assert json.loads((tmp_path / "b" / "0.json").read_text())["top_logits"] == []


@pytest.mark.parametrize("format", ["saedashboard", "circuit-tracer", "delphi"])
def test_the_command_writes_each_format(cli, hand, format):
    found = last_json(cli("llm", "features", "two", "store", "-o", "out", "--format", format, "--json"))
    assert found["neurons"] == 2
    assert any((hand / "out").iterdir())
    assert_one_line(cli("llm", "features", "two", "store", "-o", "out", "--format", format), "is not empty")


def test_delphi_takes_no_model(cli, hand):
    result = cli("llm", "features", "two", "store", "model", "-o", "out", "--format", "delphi")
    assert_one_line(result, "delphi's files hold no effects on logits")
    assert not (hand / "out").exists()
