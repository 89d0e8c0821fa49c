"""Verdicts follow from the numbers, on made-up ones."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from refgba import experiments
from refgba.experiments import NAMES, balance, cooccurrence, frontier, imbalanced, nongaussian, resonance, width
from refgba.experiments.outcome import grade


def band(p, low, high):
    """FRR of a band with clear edges."""
    return [1.0 if low <= q <= high else 0.0 for q in p]


def made_up_resonance(data, heavy, k_low, k_high):
    """Maps with a wide band where d is large, the given one where it is small, and edges that move as n^k."""
    data = deepcopy(data) | {"scale": "full"}
    p = np.geomspace(1e-4, 1, 41).tolist()
    for key in ("modified d", "ba d"):
        m = data[key]
        m["p"] = p
        m["frr"] = [[band(p, *(heavy if d**2 < n else (0.003, 0.1))) for n, d in zip(m["n"], m["d"], strict=True)]] * 2
    for m in data["modified n"]:
        m["n"] = [64, 128, 256]
        m["p"] = p
        m["theorem"] = [[1 / n, n ** (-2 / 3)] for n in m["n"]]
        m["frr"] = [[band(p, 0.3 * n**k_low, 3 * n**k_high) for n in m["n"]]] * 2
    for m in data["lower"]["modified"]:
        m["p"] = p
        m["frr"] = [[band(p, 0.003, 0.1)]] * 2
    return data


def test_resonance_is_judged_by_the_width_of_the_band_and_by_its_edges(outcomes):
    data = outcomes["resonance"].data
    verdict = resonance.verdict(made_up_resonance(data, (0.02, 0.03), -1, -2 / 3))
    assert verdict.startswith("Reproduced:")
    assert "first at d = 4 " in verdict
    assert "the same with more rows" in verdict
    finite = made_up_resonance(data, (0.02, 0.03), -1, -2 / 3)
    finite["lower"]["modified"][1]["frr"] = [[band(finite["lower"]["modified"][1]["p"], 0.001, 0.1)]] * 2
    assert resonance.verdict(finite).startswith("Reproduced in part:")
    assert "a matter of the number of rows" in resonance.verdict(finite)
    flat = resonance.verdict(made_up_resonance(data, (0.02, 0.03), 0, 0))
    assert flat.startswith("Reproduced in part:")
    backwards = made_up_resonance(data, (1e-4, 1), 0, 0)
    for key in ("modified d", "ba d"):
        backwards[key]["frr"] = [[[1.0] * 41, [0.0] * 41]] * 2
    assert resonance.verdict(backwards).startswith("Not reproduced:")
    assert "at no d" in resonance.verdict(made_up_resonance_nothing(data))


def made_up_resonance_nothing(data):
    data = made_up_resonance(data, (2, 2), -1, -2 / 3)
    for key in ("modified d", "ba d"):
        data[key]["frr"] = np.zeros_like(data[key]["frr"]).tolist()
    return data


def test_width_is_judged_by_the_factor(outcomes):
    data = deepcopy(outcomes["width"].data)
    data["settings"] |= {"s": [2, 3, 4], "p": [0.1]}
    data["bound"] = [[24 * 10**s] for s in (2, 3, 4)]
    data["needed"] = [[[[10.0**s, 10.0**s]]] for s in (1, 2, 3)]
    verdict = width.verdict(data)
    assert verdict.startswith("Reproduced:")
    assert "10.00 times as many" in verdict
    data["needed"] = [[[[m, m]]] for m in (50.0, 55.0, 60.0)]
    assert width.verdict(data).startswith("Reproduced in part:")
    assert "not what was seen" in width.verdict(data)
    data["needed"] = [[[[1e9, 1e9]]], [[[1e9, 1e9]]], [[[1.0, None]]]]
    data["bound"][2] = [10.0]
    verdict = width.verdict(data)
    assert verdict.startswith("Not reproduced:")
    assert "s = 4: not with" in verdict
    assert "not enough" in verdict


def test_cooccurrence_is_judged_on_both_sides_of_the_bound(outcomes):
    data = outcomes["cooccurrence"].data | {"rho_2": [0.1, 0.25, 0.5, 1.0], "bound": 0.25}

    def judged(*frr):
        return cooccurrence.verdict(data | {"frr": {"Modified BA": [list(frr)] * 2, "GBA": [list(frr)] * 2}})

    assert judged(1, 1, 0.5, 0).startswith("Reproduced: FRR(0.9) stays at 90% up to rho_2 = 0.30 (1.2 n^-1/2)")
    assert "is enough and more" in judged(1, 1, 1, 0)
    assert judged(1, 0.5, 0.5, 0).startswith("Reproduced in part")
    assert "not always enough" in judged(1, 0.5, 0.5, 0)
    assert judged(1, 1, 1, 1).startswith("Reproduced in part")
    assert judged(0.5, 0.5, 0.5, 0.5).startswith("Not reproduced: FRR(0.9) stays at 90% up to rho_2 = 0.00")


def test_balance_is_judged_against_the_best_ba(outcomes):
    data = outcomes["balance"].data | {"f": np.linspace(0.5, 0.01, 8).tolist()}

    def judged(gba, *ba):
        named = {"GBA": gba} | {f"BA, p = {k}": shares for k, shares in enumerate(ba)}
        return balance.verdict(data | {"cosine": {name: [shares] * 2 for name, shares in named.items()}})

    all_, none = [1.0] * 8, [0.0] * 8
    common_only, rare_only = [1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4
    assert judged(all_, none, none).startswith("Reproduced:")
    verdict = judged(all_, common_only, rare_only)
    assert verdict.startswith("Reproduced in part:")  # in its own quarter each BA is as good
    assert "100.0% against 100.0% (BA, p = 0) of the commonest quarter" in verdict
    assert "100.0% against 100.0% (BA, p = 1) of the rarest quarter" in verdict
    assert judged(none, all_, rare_only).startswith("Not reproduced:")


def test_nongaussian_is_judged_by_incoherence(outcomes):
    def law(coherence, modified, gba):
        found = {"coherence": [[coherence] * 4] * 2} | {method: [[1.0] * 4] * 2 for method in nongaussian.METHODS}
        return found | {"Modified BA": [[modified] * 4] * 2, "GBA": [[gba] * 4] * 2}

    def judged(**laws):
        return nongaussian.verdict(outcomes["nongaussian"].data | {"scale": "full", "threshold": 0.5, "laws": laws})

    verdict = judged(a=law(0.4, 1, 1), b=law(0.8, 0, 1))
    assert verdict.startswith("Reproduced: of the laws with max |cos| up to 0.50 (a) Modified BA loses none; GBA")
    assert "of those above (b) Modified BA loses b; GBA loses none" in verdict
    assert judged(a=law(0.4, 1, 1), b=law(0.4, 1, 0)).startswith("Reproduced in part")
    assert judged(a=law(0.4, 0, 0), b=law(0.8, 1, 1)).startswith("Not reproduced")
    assert judged(b=law(0.8, 1, 1)).startswith("Not reproduced: of the laws with max |cos| up to 0.50 (none)")


def points(**methods):
    """Data of `frontier` with these (setting, lr, L0, FVU) by method."""
    return {
        "points": [
            {"method": name.replace("_", ", "), "setting": s, "lr": lr, "seed": 0, "l0": l0, "fvu": fvu, "dead": 0.01}
            for name, found in methods.items()
            for s, lr, l0, fvu in found
        ]
    }


@pytest.mark.parametrize(
    ("fvu", "word"), [(0.19, "Reproduced:"), (0.21, "Reproduced in part:"), (0.9, "Not reproduced:")]
)
def test_gba_is_held_against_the_line_of_each_method_at_its_best_rate(fvu, word):
    data = points(
        GBA=[(None, 1, 20, fvu)], GBA_tied=[(None, 1, 20, fvu)],
        topk=[(10, 1, 10, 0.4), (10, 2, 10, 0.9), (40, 1, 40, 0.3), (40, 2, 40, 0.1)],  # 0.2 at 20, straight in logs
        batchtopk=[(10, 1, 10, 0.5), (40, 1, 40, 0.5)], l1=[(1, 1, 10, 0.8), (2, 1, 40, 0.8)],
        BA=[(1, 1, 10, 0.8), (2, 1, 40, 0.8)],
    )  # fmt: skip
    assert frontier.line(frontier.best(data, "topk"), 20) == pytest.approx(0.2)
    said = frontier.verdict(data)
    assert said.startswith(word)
    assert f"{fvu / 0.2 - 1:+.1%} from the line of TopK" in said


@pytest.mark.parametrize(("fvu", "holds"), [(0.19, True), (0.21, False)])
def test_measured_targets_are_held_against_the_lowest_line_at_each_l0(fvu, holds):
    flat = [(10, 1, 10, 0.5), (40, 1, 40, 0.5)]
    data = points(
        GBA=[(None, 1, 20, 0.1)], GBA_tied=[(None, 1, 20, 0.1)], batchtopk=flat, l1=flat, BA=flat,
        topk=[(10, 1, 10, 0.4), (40, 1, 40, 0.3)], matryoshka=[(10, 1, 10, 0.4), (40, 1, 40, 0.1)],  # 0.2 at 20
        measured=[(10, 1, 10, 0.3), (20, 1, 20, fvu)],
    )  # fmt: skip
    said = frontier.verdict(data)
    assert said.claims[frontier.MEASURED] is holds
    assert f"-25.0% to {fvu / 0.2 - 1:+.1%} from the lowest of the lines" in said


def test_the_table_of_the_paper_is_judged_by_its_claims():
    paper = imbalanced.PAPER
    frr = {name: [list(paper.get(name, (0.1, 0.1)))] for name in (*imbalanced.VARIANTS, *imbalanced.BASELINES)}
    for k, tied in zip(imbalanced.KS, (0.9, 0.5, 0.0), strict=True):
        frr |= {imbalanced.FROM_TRUTH.format(k): [[0.2, 0.1]], imbalanced.TIED.format(k): [[tied, tied]]}
    said = imbalanced.verdict({"frr": frr})
    assert said.startswith("Reproduced: at cosine 0.8 / 0.9 GBA recovers 100.0 / 100.0% (paper")
    assert "begun as the features it keeps 20.0 / 10.0%" in said
    worse = frr | {"GBA": [[0.9, 0.5]]}
    assert imbalanced.verdict({"frr": worse}).startswith("Reproduced in part: at cosine 0.8 / 0.9 GBA recovers 90.0")


# ---- what a quick run cannot resolve ---------------------------------------------------------------------------------

CLAIMS = [(name, claim) for name in NAMES for claim in getattr(experiments.load(name), "BEYOND_QUICK", ())]


@pytest.mark.parametrize(("name", "claim"), CLAIMS)
def test_a_claim_that_a_quick_run_cannot_resolve_is_neither_yes_nor_no(outcomes, name, claim):
    experiment, data = experiments.load(name), outcomes[name].data
    quick, full = (experiment.verdict(data | {"scale": scale}) for scale in ("quick", "full"))
    assert quick.claims[claim] is None
    assert full.claims[claim] in (True, False)
    settled = {c: holds for c, holds in quick.claims.items() if holds is not None}
    assert settled == {c: full.claims[c] for c in settled}
    assert quick.partition(": ")[2] == full.partition(": ")[2]
    text = experiments.page([replace(outcomes[name], verdict=quick)])
    assert f"<td>{claim.replace(chr(39), '&#x27;')}</td><td>not resolved</td>" in text
    assert f"{list(quick.claims.values()).count(None)} not resolved:</strong>" in text


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ((True, True), "Reproduced"), ((True, False), "Reproduced in part"), ((False, False), "Not reproduced"),
        ((True, None), "Reproduced as far as resolved"), ((True, False, None), "Reproduced in part"),
        ((False, None), "Not reproduced"), ((None, None), "Not resolved"),
    ],
)  # fmt: skip
def test_the_grade_counts_only_what_was_resolved(claims, words):
    assert grade(dict(enumerate(claims))) == words
