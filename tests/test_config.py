"""GBAConfig: what it refuses, and that it survives JSON."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgba.config import GBAConfig
from refgba.errors import InputError


@pytest.mark.parametrize(
    ("given_", "complaint"),
    [
        ({"width": 5, "groups": 6}, r"width \(5\) must be at least groups \(6\)"),
        ({"htf": 0.1, "ltf": 0.1}, r"htf \(0.1\) must be above ltf \(0.1\)"),
        ({"htf": 0.01, "ltf": 0.1}, r"htf \(0.01\) must be above ltf \(0.1\)"),
        ({"htf": 1.0}, "htf must lie strictly between 0 and 1, not 1.0"),
        ({"ltf": 0}, "ltf must lie strictly between 0 and 1, not 0.0"),
        ({"gamma_minus": -0.1}, "gamma_minus must not be negative, not -0.1"),
        ({"gamma_plus": -1}, "gamma_plus must not be negative, not -1.0"),
        ({"lr": -1e-3}, "lr must not be negative, not -0.001"),
        ({"adam_eps": 0}, "adam_eps must be positive, not 0.0"),
        ({"lr": 10**400}, "lr must be a finite number, not 1000"),
        ({"width": 2**31}, "width must be at most 2,147,483,647"),
        ({"lr": float("nan")}, "lr must be a finite number, not nan"),
        ({"weight_decay": -1}, "weight_decay must not be negative"),
        ({"seed": -1}, "seed must not be negative, not -1"),
        ({"beta2": 1}, r"beta2 must lie in \[0, 1\), not 1.0"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 10.5}, "steps must be a whole number, not 10.5"),
        ({"batch": True}, "batch must be a whole number, not True"),
        ({"form": 1.5}, r"form must lie in \[0, 1\], not 1.5"),
        ({"untied": 1}, "untied must be true or false, not 1"),
        ({"activation": "gelu"}, "activation must be one of jumprelu, relu, not 'gelu'"),
        ({"dtype": "float16"}, "dtype must be one of float64, float32, tf32, bfloat16, not 'float16'"),
        ({"activation": ["relu"]}, "activation must be one of jumprelu, relu"),
    ],
)
def test_a_setting_out_of_bounds_is_named(given_, complaint):
    with pytest.raises(InputError, match=complaint):
        GBAConfig(**given_)


def test_with_one_group_the_lowest_frequency_is_not_used():
    assert GBAConfig(groups=1, htf=0.1, ltf=0.5).target().tolist() == [0.1]


def test_targets_and_groups_are_those_of_section_3():
    config = GBAConfig(width=8, groups=4, htf=0.8, ltf=0.1)
    assert config.target() == pytest.approx([0.8, 0.4, 0.2, 0.1])
    assert config.group().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_numbers_of_numpy_are_numbers():
    config = GBAConfig(width=np.int64(64), lr=np.float32(0.5), seed=np.uint8(3))
    assert [type(v) for v in (config.width, config.lr, config.seed)] == [int, float, int]


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        GBAConfig().width = 3


@given(
    width=st.integers(10, 10**6),
    htf=st.floats(0.01, 0.99),
    lr=st.floats(0, 1e3),
    untied=st.booleans(),
    seed=st.integers(0, 2**63),
)
def test_json_round_trip(**settings):
    config = GBAConfig(**settings)
    assert GBAConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json()) == asdict(config)


def test_what_json_leaves_out_keeps_its_default():
    assert GBAConfig.from_json('{"width": 64}') == GBAConfig(width=64)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"widht": 64}', "unknown setting 'widht'; the settings are width, groups"),
        ("[1, 2]", "a configuration is a JSON object"),
        ('{"width": 64', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ('{"lr": "fast"}', "lr must be a finite number, not 'fast'"),
        ('{"lr": NaN}', "lr must be a finite number, not nan"),
    ],
)
def test_bad_json_is_refused(text, complaint):
    with pytest.raises(InputError, match=complaint):
        GBAConfig.from_json(text)
