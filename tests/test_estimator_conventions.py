"""`refgba.GBA` keeps scikit-learn's conventions: by the library's own checks, in clones, pipelines and searches."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import refgba

pytest.importorskip("sklearn")

SMALL = {"width": 16, "groups": 2, "steps": 12, "batch": 8}

# Checks that fail, and why that is right.
FAILING = {
    "check_estimators_dtypes": "its integers have a row of zeros, which has no direction and is refused",
    "check_fit2d_1feature": "rows of one positive number all point the same way; they are refused by that name",
}


@pytest.mark.parametrize(
    "estimator",
    [
        refgba.GBA(**SMALL),
        refgba.GBA(**SMALL, dtype="float32", backend="numba"),
        refgba.GBA("topk", k=3, width=16, steps=12, batch=8),
    ],
    ids=str,
)
def test_the_checks_of_scikit_learn_pass_but_for_those_named(estimator):
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_fail=None, expected_failed_checks=FAILING)
    outcomes = {result["check_name"]: result["status"] for result in results}
    assert len(outcomes) > 30
    assert {name for name, status in outcomes.items() if status == "failed"} == set()
    assert {name for name, status in outcomes.items() if status == "xfail"} == set(FAILING)


def test_a_clone_has_the_parameters_and_nothing_learned():
    from sklearn.base import clone

    fitted = refgba.GBA(**SMALL).fit(np.random.default_rng(0).standard_normal((40, 5)))
    twin = clone(fitted)
    assert twin.get_params() == fitted.get_params()
    assert not hasattr(twin, "components_")


def test_it_works_in_a_pipeline_and_in_a_search():
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = np.random.default_rng(0).standard_normal((60, 5))
    codes = make_pipeline(StandardScaler(), refgba.GBA(**SMALL)).fit_transform(X)
    assert codes.shape == (60, 16)
    search = GridSearchCV(refgba.GBA(**SMALL), {"seed": [0, 1]}, cv=2).fit(X)
    assert search.best_params_["seed"] in (0, 1)
