"""SAELens' own synthetic world, judged by SAELens: measured targets find its features, and how many are active.

The full size, three seeds, and SAELens' networks beside ours are in benchmarks/results.
"""

from __future__ import annotations

import numpy as np
import pytest
from engines import program, real


@pytest.fixture
def worlds(monkeypatch):
    """benchmarks/saelens_worlds.py as a module."""
    return program(monkeypatch, "saelens_worlds", "torch", "sae_lens")


@real
def test_measured_targets_find_the_features_of_saelens_world_and_how_many_are_active(worlds):
    found = worlds.of_ours(worlds.World(3), "measured", steps=1000)
    print(found)
    assert found["mcc"] >= 0.80
    assert found["uniqueness"] >= 0.85
    assert found["f1"] >= 0.6
    assert found["l0"] == pytest.approx(found["true_l0"], rel=0.25)


@real
def test_the_world_is_saelens_own_at_unit_norm(worlds):
    world = worlds.World(3, features=64, d=32)
    [first, again] = [next(world.minibatches(1, 500)) for _ in range(2)]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    zeros = world.dictionary(worlds.torch.zeros(1, 64)).numpy()
    assert not zeros.any()
    one = world.dictionary(2 * worlds.torch.eye(64)[:1]).numpy()
    np.testing.assert_allclose(one, world.dictionary.feature_vectors[:1].numpy(), atol=1e-5)


@real
@pytest.mark.parametrize("name", ["topk", "batchtopk", "jumprelu", "matryoshka"])
def test_networks_of_saelens_are_trained_and_judged_by_saelens(worlds, name):
    found = worlds.of_theirs(worlds.World(3, features=64, d=32), name, lr=1e-3, steps=20)
    assert 0 < found["mcc"] <= 1
    assert found["l0"] > 0
