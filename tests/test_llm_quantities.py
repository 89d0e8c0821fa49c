"""Numbers in flags and in Python: those of any library are taken, and nonsense is refused in one line."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import llm_models
import numpy as np
import pytest
from commands import assert_one_line
from llm_models import CAUSAL, SITES, D, dictionary, llm, needs

from refgba.errors import InputError
from refgba.formats import npz
from refgba.llm import quantities

models, corpus = llm_models.models, llm_models.corpus  # fixtures


@pytest.fixture
def network(tmp_path):
    """The folder of a random dictionary."""
    npz.write(dictionary(), {}, tmp_path / "network")
    return tmp_path / "network"


# ---- without torch ---------------------------------------------------------------------------------------------------


def test_numbers_of_any_library_are_taken():
    assert [quantities.whole("--n", n, 2) for n in (2, np.int64(3), np.array(4))] == [2, 3, 4]
    assert [quantities.finite("--x", x) for x in (1, 0.5, np.float32(0.25), np.array(2))] == [1, 0.5, 0.25, 2]
    for one in (3, np.int64(3), [3], np.array([3])):
        numbers = quantities.neurons(one)
        assert numbers == [3]
        assert type(numbers[0]) is int
    assert quantities.neurons(range(2)) == [0, 1]
    assert quantities.each("--by", np.float32(0.5), 2) == [0.5, 0.5]
    assert quantities.each("--by", np.array([1, 2]), 2) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (lambda: quantities.whole("--tokens", 1.5), "--tokens should be a whole number, not 1.5"),
        (lambda: quantities.whole("--tokens", 1, 2), "--tokens should be at least 2, not 1"),
        (lambda: quantities.finite("--by", math.nan), "--by should be finite, not nan"),
        (lambda: quantities.finite("--by", np.float32("-inf")), "--by should be finite, not -inf"),
        (lambda: quantities.finite("--by", 10**400), "--by should be a number"),
        (lambda: quantities.finite("--temperature", -1, 0), "--temperature should be at least 0, not -1"),
        (lambda: quantities.finite("--by", None), "--by should be a number, not None"),
        (lambda: quantities.neurons([]), "give at least one --neuron"),
        (lambda: quantities.neurons([3, 4, np.int64(3)]), "--neuron 3 is given twice"),
        (lambda: quantities.neurons({3}), "--neuron should be a whole number"),
        (lambda: quantities.each("--by", [1, 2], 3), "give one --by, or one for each of the 3 neurons, not 2"),
        (lambda: quantities.each("--by", [], 3), "give one --by, or one for each of the 3 neurons, not 0"),
    ],
)
def test_anything_else_is_refused(ask, complaint):
    with pytest.raises(InputError) as refused:
        ask()
    assert str(refused.value).startswith(complaint)


def test_json_has_no_infinities():
    record = {"a": [1, math.inf, (math.nan, "x")], "b": {"c": 0.5, "d": None, "e": True}}
    assert quantities.for_json(record) == {"a": [1, None, [None, "x"]], "b": {"c": 0.5, "d": None, "e": True}}


# ---- with models -----------------------------------------------------------------------------------------------------


@llm
@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["steer", "--neuron", "1", "--by", "nan"], "--by should be finite, not nan"),
        (["steer", "--neuron", "1", "--by", "nan", "--temperature", "1"], "--by should be finite, not nan"),
        (["steer", "--neuron", "1", "--by", "1e30"], "are too large for the model; use a smaller strength"),
        (["steer", "--neuron", "1", "--by", "1", "--peak", "nan"], "--peak should be finite, not nan"),
        (["steer", "--neuron", "1", "--by", "1", "--temperature", "nan"], "--temperature should be finite, not nan"),
        (["steer", "--neuron", "1", "--by", "1", "--temperature", "inf"], "--temperature should be finite, not inf"),
        (["steer", "--neuron", "3", "--neuron", "3", "--by", "1"], "--neuron 3 is given twice"),
        (["effects", "--neuron", "1", "--strength", "nan"], "--strength should be finite, not nan"),
        (["effects", "--neuron", "1", "--strength", "inf"], "--strength should be finite, not inf"),
        (["effects", "--neuron", "1", "--strength", "1e30"], "are too large for the model; use a smaller strength"),
        (["effects", "--neuron", "3", "--neuron", "3", "--together", "--strength", "1"], "--neuron 3 is given twice"),
        (["effects", "--neuron", "3", "--neuron", "3"], "--neuron 3 is given twice"),
    ],
)
@pytest.mark.parametrize("kind", CAUSAL)
def test_what_no_model_can_compute_is_refused(cli, models, corpus, network, kind, flags, complaint):
    command, *more = flags
    more += ["--prompt", "the cat", "--new", "4"] if command == "steer" else ["--text", corpus, "--tokens", "200"]
    more += ["--peak", "1"] if command == "steer" and "--peak" not in more else []
    assert_one_line(cli("llm", command, network, models(kind), "--site", SITES[kind], *more), complaint)


@llm
def test_the_lowest_temperature_draws_the_likeliest_token(models, network):
    from refgba import llm as room

    site = {"site": SITES["gpt2"]}
    texts = [
        room.steer(network, models("gpt2"), "the cat", 1, by=2, peak=1, new=5, temperature=t, **site)[0].steered
        for t in (0, 1e-320)
    ]
    assert texts[0] == texts[1]


@llm
def test_what_is_not_defined_is_null_in_json(cli, models, tmp_path, network):
    (tmp_path / "short.txt").write_text("the cat sat on a mat")
    flags = ["--site", SITES["gpt2"], "--text", tmp_path / "short.txt", "--tokens", "2"]
    done = cli("llm", "evaluate", network, models("gpt2"), *flags, "--json", "-o", tmp_path / "out.json")
    for text in (done.stdout.splitlines()[-1], (tmp_path / "out.json").read_text()):
        record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert record["fvu"] is None  # of the one row that counts
        assert record["kept"]["loss_recovered"]["zero"]["value"] is None
    shown = cli("llm", "evaluate", network, models("gpt2"), *flags)
    assert "FVU not defined" in shown.stdout
    assert "nan" not in shown.stdout


@llm
def test_a_result_is_replaced_by_one_of_the_same_command_alone(cli, models, corpus, network):
    edits = ["--neuron", 1, "--peak", 1, "--by", 1, "--prompt", "the cat", "--new", 2]
    text = ["--text", corpus, "--tokens", 200]
    for command, flags, other in (
        ("evaluate", text, "effects"), ("effects", [*text, "--neuron", 1], "steer"), ("steer", edits, "evaluate"),
    ):  # fmt: skip
        write = ["llm", command, network, models("gpt2"), "--site", SITES["gpt2"], *flags, "-o"]
        for _ in range(2):
            done = cli(*write, f"{command}.json")
            assert done.exit_code == 0, done.stderr
        if Path(f"{other}.json").exists():
            assert_one_line(cli(*write, f"{other}.json"), f"is not what `refgba llm {command}` writes")


@llm
def test_python_takes_what_numpy_gives(models, corpus, network):
    from refgba import llm as room

    model, where = room.open_model(models("gpt2")), {"site": SITES["gpt2"]}
    surveyed = room.rank(network, model, corpus, tokens=200, **where)
    best = np.argmax(surveyed.peak)
    few = {"tokens": 200, "sample": 2, "random": 0} | where
    results = [
        room.effects_of(network, model, corpus, neurons, np.float32(1), **few)
        for neurons in (int(best), best, [best], np.array([best]))
    ]
    records = [json.dumps([effect.record() for effect in effects]) for effects in results]
    assert len(set(records)) == 1
    texts = [
        repr(room.steer(network, model, "the cat", neuron, by=by, peak=peak, new=4, **where))
        for neuron, by, peak in ((3, 4, 1), (np.int64(3), np.float32(4), np.float32(1)), ([np.int32(3)], [4], [1.0]))
    ]
    assert len(set(texts)) == 1
    assert room.open_network(str(network)).path == network
    stores = [
        room.harvest(model, SITES["gpt2"], corpus, corpus.parent / name, **{"tokens": tokens, "context": context})
        for name, tokens, context in (("a", 200, 16), ("b", np.int64(200), np.int32(16)))
    ]
    assert stores[0][0].about == stores[1][0].about


@llm
def test_python_refuses_nonsense(models, corpus, network):
    from refgba import llm as room
    from refgba.llm.splice import place

    model, where = room.open_model(str(models("gpt2")), device="cpu"), {"site": SITES["gpt2"]}
    put = place(room.open_network(network), model, SITES["gpt2"])
    site, out = SITES["gpt2"], corpus.parent / "store"
    for ask, complaint in (
        (lambda: room.harvest(model, [], corpus, out), "give at least one site"),
        (lambda: room.harvest(model, site, [], out), "text should be the path of a file or a folder, or several"),
        (lambda: room.harvest(model, site, "", out), "text should be the path of a file or a folder, or several"),
        (lambda: room.harvest(model, site, corpus, out, tokens="9"), "tokens should be a whole number, not 9"),
        (lambda: room.harvest(model, site, corpus, out, batch=1.5), "batch should be a whole number, not 1.5"),
        (lambda: room.harvest(model, site, corpus, out, max_norm=np.nan), "max_norm should be finite, not nan"),
        (lambda: room.harvest(model, site, corpus, out, dtype="float64"), "dtype should be one of float32, bfloat16"),
        (lambda: room.harvest(model, site, corpus, out, of="x"), "of a site there is output or input, not x"),
        (lambda: room.open_model(models("gpt2"), "float64"), "dtype should be one of float32, bfloat16, float16"),
        (lambda: room.evaluate(network, model, corpus, of="x", **where), "of should be output or input, not x"),
        (lambda: room.evaluate(network, model, corpus, context="8", **where), "context should be a whole number"),
        (lambda: room.steer(network, model, 3, 1, by=1, peak=1, **where), "prompt should be a text, or several"),
        (lambda: room.steer(network, model, [], 1, by=1, peak=1, **where), "prompt should be a text, or several"),
        (lambda: room.evaluate(network, model, corpus, tokens=0, **where), "tokens should be at least 2, not 0"),
        (lambda: room.evaluate(network, model, corpus, batch=0, **where), "batch should be at least 1, not 0"),
        (lambda: room.evaluate(network, model, corpus, seed=-1, **where), "seed should be at least 0, not -1"),
        (lambda: room.effects_of(network, model, corpus, [], together=True, **where), "give at least one neuron"),
        (lambda: room.effects_of(network, model, corpus, [3, 3], **where), "neuron 3 is given twice"),
        (lambda: room.effects_of(network, model, corpus, 99, **where), "there is no neuron 99"),
        (lambda: room.effects_of(network, model, corpus, 1, sample=0, **where), "sample should be at least 1, not 0"),
        (lambda: room.effects_of(network, model, corpus, 1, random=-1, **where), "random should be at least 0, not -1"),
        (lambda: room.rank(network, model, corpus, tokens=0, **where), "tokens should be at least 1, not 0"),
        (lambda: room.steer(network, model, "a", 1, by=1, peak=1, new=0, **where), "new should be at least 1, not 0"),
        (lambda: room.steer(network, model, "a", 1, by=[1, 2], peak=1, **where), "give one by, or one for each"),
        (lambda: room.evaluate(put, model, corpus, context=8), "context: was settled when the network was opened"),
    ):
        with pytest.raises(InputError) as refused:
            ask()
        assert complaint in str(refused.value)


@llm
def test_nothing_warns_of_caches_or_of_arrays_of_files(models):
    needs()
    from refgba.llm.models import open_model
    from refgba.llm.networks import Coder, Network
    from refgba.llm.splice import place
    from refgba.llm.steering import direction, write
    from refgba.llm.unembedding import Unembedding

    net = dictionary()
    for array in net.arrays().values():
        array.flags.writeable = False  # as those of an .npz file that is read without a copy
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Coder(net)
        for kind in CAUSAL:
            model = open_model(str(models(kind)), device="cpu")
            put = place(Network(models(kind), net, None), model, SITES[kind])
            assert write(put, "the cat", direction(put, [1], np.array([2.0])), new=3)
            assert len(Unembedding(model, SITES[kind], "output", D).effects(net.W_dec[0]))
