"""The settings of GBA and of the baselines: what they refuse, and that they survive JSON."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, fields
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgba.config import Baseline, BaselineConfig, GBAConfig, Settings, config_from_json, settings_from_json
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


# ---- of the baselines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "complaint"),
    [
        ({"method": "gba"}, "method must be one of l1, topk, batchtopk, jumprelu, matryoshka, gated, not 'gba'"),
        ({"width": 31}, r"width \(31\) must be at least k \(32\)"),
        ({"method": "batchtopk", "width": 8, "k": 9}, r"width \(8\) must be at least k \(9\)"),
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"k": 2.5}, "k must be a whole number, not 2.5"),
        ({"dead_after": 0}, "dead_after must be at least 1, not 0"),
        ({"prefixes": 0}, "prefixes must be at least 1, not 0"),
        ({"method": "matryoshka", "width": 40, "prefixes": 7}, r"width \(40\) must be at least 64 to have 7 prefixes"),
        ({"method": "matryoshka", "prefixes": 10**9}, r"width \(1024\) must be at least 2,147,483,648 to have"),
        ({"sparsity": -1}, "sparsity must not be negative, not -1.0"),
        ({"theta_init": -0.1}, "theta_init must not be negative, not -0.1"),
        ({"aux": -1}, "aux must not be negative, not -1.0"),
        ({"aux_k": -1}, "aux_k must not be negative, not -1"),
        ({"bandwidth": 0}, "bandwidth must be positive, not 0.0: thresholds would never move"),
        ({"lr": -1e-3}, "lr must not be negative, not -0.001"),
        ({"adam_eps": 0}, "adam_eps must be positive, not 0.0"),
        ({"beta1": 1}, r"beta1 must lie in \[0, 1\), not 1.0"),
        ({"lr_decay": 2}, r"lr_decay must lie in \[0, 1\], not 2.0"),
        ({"width": 2**31}, "width must be at most 2,147,483,647"),
        ({"dtype": "float16"}, "dtype must be one of float64, float32"),
    ],
)
def test_a_baseline_s_setting_out_of_bounds_is_named(given_, complaint):
    with pytest.raises(InputError, match=complaint):
        BaselineConfig(**given_)


@pytest.mark.parametrize("method", ["l1", "jumprelu"])
def test_a_k_that_the_method_does_not_use_is_not_held_against_its_width(method):
    assert BaselineConfig(method=method, width=8).width == 8


@pytest.mark.parametrize(
    ("method", "unused"),
    [
        ("l1", {"k", "bandwidth", "theta_init", "aux", "aux_k", "dead_after", "prefixes"}),
        ("topk", {"sparsity", "bandwidth", "theta_init", "prefixes"}),
        ("batchtopk", {"sparsity", "bandwidth", "theta_init", "prefixes"}),
        ("jumprelu", {"k", "aux", "aux_k", "dead_after", "prefixes"}),
        ("matryoshka", {"sparsity", "bandwidth", "theta_init"}),
        ("gated", {"k", "bandwidth", "theta_init", "aux", "aux_k", "dead_after", "prefixes"}),
    ],
)
def test_a_baseline_knows_which_settings_it_uses(method, unused):
    config = BaselineConfig(method=method)
    assert {f.name for f in fields(config) if not config.uses(f.name)} == unused


@pytest.mark.parametrize(
    ("width", "prefixes", "ends"),
    [(16, 5, (1, 2, 4, 8, 16)), (17, 3, (5, 9, 17)), (3072, 2, (1536, 3072)), (7, 1, (7,))],
)
def test_a_prefix_is_half_of_the_next_rounded_up(width, prefixes, ends):
    assert BaselineConfig(method="matryoshka", width=width, k=1, prefixes=prefixes).ends() == ends


def test_gba_has_a_method_that_is_no_setting():
    config = GBAConfig()
    assert config.method == "gba"
    assert "method" not in json.loads(config.to_json())
    assert all(config.uses(f.name) for f in fields(config))


@pytest.mark.parametrize("kind", [GBAConfig, BaselineConfig])
def test_every_setting_has_its_help_and_the_shared_ones_are_there(kind):
    given_ = {f.name: f for f in fields(kind)}
    assert all(f.metadata["help"] for f in given_.values())
    assert set(Settings.__annotations__) - {"__dataclass_fields__"} <= set(given_)


def test_shared_settings_have_one_help_but_for_the_decay():
    ours, theirs = ({f.name: f.metadata["help"] for f in fields(kind)} for kind in (GBAConfig, BaselineConfig))
    assert {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]} == {"lr_decay"}


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (75, 1), (300, 2), (4000, 27)])
def test_a_baseline_s_counters_are_emptied_about_150_times_a_run(steps, every):
    assert BaselineConfig(steps=steps).adapt_every == every


@given(
    method=st.sampled_from(get_args(Baseline)),
    width=st.integers(32, 10**6),
    sparsity=st.floats(0, 1e3),
    seed=st.integers(0, 2**63),
)
def test_json_says_whose_settings_it_has(**settings):
    baseline, ours = BaselineConfig(**settings), GBAConfig(width=settings["width"], seed=settings["seed"])
    assert config_from_json(baseline.to_json()) == BaselineConfig.from_json(baseline.to_json()) == baseline
    assert config_from_json(ours.to_json()) == GBAConfig.from_json(ours.to_json()) == ours
    assert settings_from_json(baseline.to_json()) == asdict(baseline)
    assert settings_from_json(ours.to_json()) == asdict(ours)


def test_settings_of_one_are_refused_by_the_other():
    with pytest.raises(InputError, match="unknown setting 'method'; the settings are width, groups"):
        GBAConfig.from_json('{"method": "topk"}')
    with pytest.raises(InputError, match="unknown setting 'groups'; the settings are method, width, k"):
        config_from_json('{"method": "topk", "groups": 3}')
    with pytest.raises(InputError, match="unknown setting 'k'; the settings are width, groups"):
        config_from_json('{"k": 3}')
    with pytest.raises(
        InputError, match="method must be one of l1, topk, batchtopk, jumprelu, matryoshka, gated, not 'gba'"
    ):
        config_from_json('{"method": "gba"}')


def test_settings_of_no_method_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Settings()
