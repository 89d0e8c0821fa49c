"""AdamW against a step worked by hand and against its defining property."""

from __future__ import annotations

import numpy as np
import pytest

from refgba.adam import AdamW
from refgba.config import GBAConfig


def test_two_steps_worked_by_hand():
    theta, opt = np.array([1.0]), AdamW.like(np.array([1.0]))
    config = GBAConfig(beta1=0.9, beta2=0.99, adam_eps=0.5, weight_decay=0.5)
    theta = opt.update(theta, np.array([2.0]), 0.1, config)
    # First step: m_hat = g = 2, v_hat = g^2 = 4; the decay takes lr * 0.5 * theta = 0.05; epsilon is outside the root.
    assert theta == pytest.approx([1.0 - 0.05 - 0.1 * 2 / (2 + 0.5)])
    before = theta[0]
    theta = opt.update(theta, np.array([-1.0]), 0.1, config)
    m_hat = (0.9 * 0.2 + 0.1 * -1) / (1 - 0.9**2)  # 0.08 / 0.19
    v_hat = (0.99 * 0.04 + 0.01 * 1) / (1 - 0.99**2)  # 0.0496 / 0.0199
    assert theta == pytest.approx([before - 0.05 * before - 0.1 * m_hat / (v_hat**0.5 + 0.5)])


def test_scale_of_the_gradient_does_not_matter():
    g = np.random.default_rng(0).standard_normal((20, 5))
    ends = []
    for scale in (1.0, 1e4):
        theta, opt = np.ones(5), AdamW.like(np.ones(5))
        for row in g:
            theta = opt.update(theta, scale * row, 0.01, GBAConfig(adam_eps=1e-300))
        ends.append(theta)
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)
