"""Every experiment at a size that takes a second: what the tests of experiments run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from refgba import experiments
from refgba.experiments import (
    ablation,
    balance,
    consistency,
    cooccurrence,
    frequencies,
    frontier,
    histograms,
    imbalanced,
    nongaussian,
    resonance,
    sensitivity,
    width,
)

MICRO = {
    "resonance": replace(
        resonance.SIZES["quick"], n=32, d=(4, 24), ns=(16, 32), few=4, p=(0.01, 0.05, 0.3), rows=600, lower=16,
        more_rows=1200, per_feature=4, steps=2, seeds=2, ba_d=(4, 24), ba_ns=(16, 32), ba_p=(0.01, 0.3),
        ba_per_feature=2, ba_steps=15, ba_batch=64,
    ),
    "width": replace(width.SIZES["quick"], n=24, d=20, s=(1, 2, 20), p=(0.05, 0.1), rows=1500, M=300, after=(1, 4)),
    "cooccurrence": replace(
        cooccurrence.SIZES["quick"], n=16, d=12, s=2, rho_2=(0.125, 0.5, 1.0), rows=600, M=64, steps=30, batch=64,
        seeds=2,
    ),
    "balance": replace(
        balance.SIZES["quick"], n=16, d=12, s=2, p=(0.05, 0.3), bins=4, rows=600, M=64, steps=30, batch=64, seeds=2
    ),
    "nongaussian": replace(
        nongaussian.SIZES["quick"], n=16, d=12, s=2, laws=("gaussian", "student-t", "rank 3", "shared 0.5"), rows=600,
        M=64, steps=30, batch=64, seeds=2,
    ),
    "frontier": replace(
        frontier.SIZES["quick"], width=64, steps=12, k=(4, 16), htf=(0.05, 0.2), l1=(0.01, 0.1), jumprelu=(0.001, 0.01),
        gated=(0.01, 0.1), lr=(1e-3, 1e-2), batch=(256, 512), seeds=2,
    ),
    "imbalanced": replace(imbalanced.SIZES["quick"], rows=600, M=64, steps=12, lr=(1e-3, 1e-2), seeds=2),
    "consistency": replace(
        consistency.SIZES["quick"], width=64, steps=12, k=(4, 16), measured=(4,), batchtopk=(4,), jumprelu=(0.01,),
        l1=(0.1,), htf=0.05, lr=(1e-3, 1e-2), seeds=2,
    ),
    "histograms": replace(histograms.SIZES["quick"], width=64, steps=12, seeds=2),
    "frequencies": replace(
        frequencies.SIZES["quick"], width=64, steps=12, n=16, d=12, s=2, rows=600, M=64, known_steps=60, seeds=2
    ),
    "ablation": replace(
        ablation.SIZES["quick"], width=64, steps=12, k=(4, 16), rows=600, M=64, known_steps=12, batch=64, seeds=2
    ),
    "sensitivity": replace(
        sensitivity.SIZES["quick"], width=64, steps=12, rows=600, M=64, known_steps=12, batch=64, lr=(1e-3, 1e-2),
        lowered=(0, 2), seeds=2,
    ),
}  # fmt: skip


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Let a quick run of each experiment have the size in MICRO."""
    for name, sizes in MICRO.items():
        patch.setitem(experiments.load(name).SIZES, "quick", sizes)
