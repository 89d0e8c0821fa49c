"""Small cases of the baselines, for tests to share: settings, parameters, rows, runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refgba import baselines, gba, sae
from refgba.baselines import METHODS, Params, evaluation_codes
from refgba.baselines.auxk import auxiliary
from refgba.config import BaselineConfig
from refgba.model import SyntheticModel, Uniform
from refgba.sae import unit_rows

BASELINES = [name for name in METHODS if name != "gba"]
CHOOSING = ["topk", "batchtopk", "matryoshka"]


def config_of(method, **settings_):
    """Settings for the small cases here; no two penalties alike."""
    settings = {"width": 8, "k": 2, "sparsity": 0.3, "bandwidth": 0.2, "theta_init": 0.1, "aux": 0.7, "aux_k": 2}
    given_ = {"method": method, "batch": 6, "steps": 40, "lr": 0.01, **settings, **settings_}
    return BaselineConfig(**{"prefixes": prefixes_of(given_["width"]), **given_})


def prefixes_of(M):
    """Three nested prefixes, or as many as M neurons have."""
    return min(3, M.bit_length())


def random_case(method, L, d, M, seed):
    """Settings, parameters, rows, and who is dead, such that no z is within 2e-4 of another, of 0 or of a threshold."""
    rng = np.random.default_rng(seed)
    config = config_of(method, width=M, k=int(rng.integers(1, M + 1)), aux_k=int(rng.integers(0, M)))
    for _ in range(1000):
        params = METHODS[method].Params(
            W=rng.standard_normal((M, d)),
            b=0.5 * rng.standard_normal(M),
            b_pre=0.1 * rng.standard_normal(d),
            W_dec=unit_rows(rng.standard_normal((M, d))),
            theta=rng.uniform(0.05, 0.8, M) if method == "jumprelu" else np.zeros(M),
            **magnitudes(rng, method, M),
        )
        x = rng.standard_normal((L, d))
        z = encode(params, x, config, training=True)[0]
        edges = np.sort(np.concatenate([z.ravel(), *([gates(params, x).ravel()] * (method == "gated")), [0.0]]))
        if min(np.diff(edges).min(), np.abs(z - params.theta).min()) > 2e-4:
            return config, params, x, rng.random(M) < 0.5
    raise AssertionError("no such case found")


def magnitudes(rng, method, M):
    """The scales and biases of Gated's codes, which no other method has."""
    return {"r_mag": 0.3 * rng.standard_normal(M), "b_mag": 0.3 * rng.standard_normal(M)} if method == "gated" else {}


def gates(params, x):
    """π of Gated, (L, M), before the gates are cut off at 0."""
    return (x - params.b_pre) @ params.W.T + params.b


CASES = given(L=st.integers(1, 6), d=st.integers(1, 6), M=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))


class Loss(NamedTuple):
    """The loss of a batch, and the two of which it is the sum."""

    total: float
    reconstruction: float
    penalty: float


def loss(params, x, fwd, config, aux=None):
    """The losses on rows x, with the method's penalty, and AuxK where it has a part."""
    reconstruction, of_aux = sae.loss(x, fwd.f), () if aux is None else (aux,)
    penalty = METHODS[config.method].penalty(params, fwd, config, *of_aux)
    return Loss(reconstruction + penalty, reconstruction, penalty)


def gradients(params, x, fwd, config, aux=None):
    """The gradients of the same."""
    return METHODS[config.method].gradients(params, x, fwd, config, *() if aux is None else (aux,))


def encode(params, x, config, training):
    return METHODS[config.method].encode(params, x, config, training)


def aux_of(x, fwd, config, dead):
    """What AuxK needs, None for methods without it."""
    return auxiliary(x, fwd, config, dead) if config.method in CHOOSING else None


def axes(b=(0.0, 0.0), theta=(0.0, 0.0)):
    """Two neurons along the axes, encoder and decoder."""
    return Params(np.eye(2), np.array(b), np.zeros(2), np.eye(2), np.array(theta))


def start(config, d=5):
    return baselines.init(baselines.random_params(config, d), config)


def rows(N=64, d=5, seed=0):
    return unit_rows(np.random.default_rng(seed).standard_normal((N, d)))


def synthetic(d=24, n=40, s=3, seed=1):
    return SyntheticModel(Uniform(n, (s,)), d=d, seed=seed)


def train(truth, config, N=10_000):
    """The state after a run on N rows, and 2000 rows that it has not seen."""
    X = truth.draw(0, N + 2000).X
    state = start(config, truth.d)
    for _ in gba.train(state, gba.minibatches(X[:N], config), baselines.step, baselines.adapt):
        pass
    return state, unit_rows(X[N:])


def fvu(params, x, config):
    _, s = evaluation_codes(params, x, config)
    return np.sum((baselines.decode(params, s) - x) ** 2) / np.sum((x - x.mean(axis=0)) ** 2)


QUICK = {"width": 96, "steps": 400, "batch": 128, "lr": 3e-3, "k": 5, "sparsity": 0.01, "bandwidth": 0.05}


def gradient_sizes(params, x, config, s, on):
    """The largest sum of absolute terms behind each gradient: terms may cancel, and their rounding does not.

    s: (L, M) the codes, or more than they are.  on: (L, M) where a gradient may pass.
    """
    r = np.abs(x) + np.abs(params.b_pre) + np.abs(s) @ np.abs(params.W_dec)  # (L, d)
    r = r * (config.prefixes if config.uses("prefixes") else 1)
    dz = (r @ np.abs(params.W_dec).T + config.sparsity) * on  # (L, M)
    own = {}
    if "r_mag" in params.arrays():
        own = {"b_mag": dz.mean(axis=0), "r_mag": (dz * (np.abs(s) + np.abs(params.b_mag))).mean(axis=0)}
        dz = dz * (1 + np.exp(params.r_mag))
    db = dz.mean(axis=0)
    terms = own | {
        "W": dz.T @ np.abs(x - params.b_pre) / len(x),
        "b": db,
        "b_pre": r.mean(axis=0) + db @ np.abs(params.W),
        "W_dec": np.abs(s).T @ r / len(x),
        "theta": (params.theta * db + config.sparsity) / config.bandwidth,
    }
    return {name: float(size.max()) for name, size in terms.items()}


def some_config(method, M, k, L, dtype):
    """Settings whose every term counts, and that round little: few steps, a wide bandwidth, a large epsilon."""
    return BaselineConfig(
        method=method, width=M, k=min(k, M), batch=L, steps=9, sparsity=0.1, bandwidth=0.3, weight_decay=0.1, lr=0.01,
        adam_eps=1e-3, dtype=dtype, prefixes=prefixes_of(M),
    )  # fmt: skip


def some_params(rng, config, d):
    M = config.width
    W = rng.standard_normal((M, d)) / np.sqrt(d)
    V = unit_rows(rng.standard_normal((M, d)))
    theta = np.abs(rng.standard_normal(M)) / 5 if config.method == "jumprelu" else np.zeros(M)
    own = magnitudes(rng, config.method, M)
    params = METHODS[config.method].Params(W, rng.standard_normal(M) / 5, rng.standard_normal(d) / 5, V, theta, **own)
    return params.astype(config.master)


def with_dead_neurons(method, dtype, **others):
    """Settings of 40 steps in which neurons die, and rows to train on."""
    config = BaselineConfig(
        method=method, width=60, k=5, steps=40, batch=33, lr=0.02, sparsity=0.05, bandwidth=0.1, theta_init=0.05,
        dead_after=100, aux=0.5, aux_k=6, dtype=dtype, prefixes=4, **others,
    )  # fmt: skip
    return config, np.random.default_rng(0).standard_normal((200, 11))
