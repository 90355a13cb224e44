"""Prediction sets and intervals against MAPIE and crepes, where installed, and against numbers that they gave.

To run the comparisons: `pip install mapie crepes`.
"""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import StratifiedShuffleSplit

from bdl.calibration.conformal import SplitConformalClassifier, SplitConformalRegressor, conformal_quantile

Array = NDArray[Any]

COVERAGE = 0.8

# Both sides compute the same few float64 operations on numbers of order 1 to 10.
SAME_ARITHMETIC = 1e-12


def predictions(n: int, seed: int = 0, num_classes: int = 8) -> tuple[Array, Array]:
    """Probabilities `(n, classes)` and labels `(n,)`."""
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(num_classes, 0.5), size=n)
    return p, (np.log(p) / 2 + random.gumbel(size=p.shape)).argmax(axis=1)


class Given:
    """Classifier that predicts its own inputs, for libraries that want one."""

    def __init__(self, num_classes: int) -> None:
        self.classes_ = np.arange(num_classes)

    def fit(self, x: Array, y: Array) -> "Given":
        return self

    def predict(self, x: Array) -> Array:
        return x.argmax(axis=1)

    def predict_proba(self, x: Array) -> Array:
        return x

    def __sklearn_is_fitted__(self) -> bool:
        return True


def mapie_sets(p: Array, y: Array, new: Array, method: str, **parameters: Any) -> tuple[Array, Any]:
    mapie = pytest.importorskip("mapie.classification")
    other = mapie.SplitConformalClassifier(
        Given(p.shape[1]), confidence_level=COVERAGE, conformity_score=method, random_state=3
    )
    sets = other.conformalize(p, y).predict_set(new, conformity_score_params=parameters)[1][..., 0]
    return sets, other._mapie_classifier.conformity_score_function_


def test_lac_equals_mapie() -> None:
    (p, y), (new, _) = predictions(500), predictions(300, seed=1)
    sets, score = mapie_sets(p, y, new, "lac")
    conformal = SplitConformalClassifier("lac").fit(p, y)
    assert_allclose(1 + conformal_quantile(conformal.scores_, COVERAGE), score.quantiles_[0], rtol=1e-12)
    assert_array_equal(conformal.predict_set(new, COVERAGE), sets)


def test_aps_equals_mapie_with_its_uniforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAPIE subtracts `U p` from the sum down to the label; its calibration and prediction restart one stream."""
    (p, y), (new, _) = predictions(500), predictions(300, seed=1)
    sets, score = mapie_sets(p, y, new, "aps", include_last_label="randomized")
    monkeypatch.setattr(
        SplitConformalClassifier, "_uniforms", lambda _, n, stream: 1 - np.random.RandomState(3).uniform(size=n)
    )
    conformal = SplitConformalClassifier("aps").fit(p, y)
    assert_allclose(conformal_quantile(conformal.scores_, COVERAGE), score.quantiles_[0], rtol=1e-12)
    assert_array_equal(conformal.predict_set(new, COVERAGE), sets)


def test_raps_equals_mapie_with_its_uniforms_and_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAPIE 1.6.0 tunes both parameters on a tenth of the examples, and calibrates on the rest."""
    (p, y), (new, _) = predictions(500), predictions(300, seed=1)
    sets, score = mapie_sets(p, y, new, "raps", include_last_label="randomized")
    kept, _ = next(StratifiedShuffleSplit(n_splits=1, test_size=0.1, random_state=3).split(p, y))
    monkeypatch.setattr(
        SplitConformalClassifier, "_uniforms", lambda _, n, stream: 1 - np.random.RandomState(3).uniform(size=n)
    )
    penalty, regularized_rank = np.ravel(score.lambda_star)[0], int(score.k_star[0])
    assert penalty > 0
    assert regularized_rank < p.shape[1]
    conformal = SplitConformalClassifier("raps", penalty=penalty, regularized_rank=regularized_rank)
    conformal.fit(p[kept], y[kept])
    assert_allclose(conformal_quantile(conformal.scores_, COVERAGE), score.quantiles_[0], rtol=1e-12)
    assert_array_equal(conformal.predict_set(new, COVERAGE), sets)


def crepes_sets(p: Array, y: Array, new: Array, coverage: float, class_conditional: bool) -> Array:
    crepes = pytest.importorskip("crepes")
    scores = 1 - p[np.arange(len(y)), y]
    columns = []
    for label in range(p.shape[1]):
        bins = {"bins": np.full(len(new), label)} if class_conditional else {}
        other = crepes.ConformalClassifier().fit(scores, bins=y if class_conditional else None)
        columns.append(other.predict_set(1 - new[:, [label]], confidence=coverage, smoothing=False, **bins)[:, 0])
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("class_conditional", [False, True])
def test_lac_equals_crepes(class_conditional: bool) -> None:
    """Where `(n + 1) coverage` is whole, crepes takes one rank more: it keeps p-values equal to `1 - coverage`."""
    (p, y), (new, _) = predictions(500), predictions(300, seed=1)
    conformal = SplitConformalClassifier("lac", class_conditional).fit(p, y)
    assert_array_equal(conformal.predict_set(new, 0.777), crepes_sets(p, y, new, 0.777, class_conditional))


REFERENCE_P = np.array(
    [
        [70, 20, 10], [15, 60, 25], [30, 45, 25], [5, 15, 80], [55, 40, 5], [34, 33, 33],
        [10, 8, 82], [22, 71, 7], [48, 39, 13], [62, 14, 24], [3, 46, 51], [18, 65, 17],
    ]
) / 100  # fmt: skip
REFERENCE_Y = np.array([0, 1, 0, 2, 1, 2, 2, 1, 0, 2, 1, 0])
REFERENCE_NEW = np.array([[52, 31, 17], [21, 36, 43], [90, 6, 4], [8, 57, 35], [26, 38, 36]]) / 100

# What `mapie_sets` and `crepes_sets` above gave for these arrays with MAPIE 1.6.0 and crepes 0.9.1 on NumPy 2.4.6.
REFERENCE_LAC = [[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 1]]  # of both, coverage 0.8
REFERENCE_LAC_BY_CLASS = [[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1], [0, 0, 1]]  # crepes, coverage 0.5
REFERENCE_APS = [[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 1, 1], [0, 1, 1]]  # MAPIE, coverage 0.8
REFERENCE_APS_THRESHOLD = 0.7542056375238473
REFERENCE_UNIFORMS = [  # of MAPIE: np.random.RandomState(3).uniform(size=12)
    0.5507979025745755, 0.7081478226181048, 0.2909047389129443, 0.510827605197663, 0.8929469543476547,
    0.8962930889334381, 0.12558531046383625, 0.20724287813818676, 0.05146720330082988, 0.44080984365063647,
    0.029876210878566956, 0.4568332243947111,
]  # fmt: skip


def test_sets_equal_the_committed_sets_of_mapie_and_crepes(monkeypatch: pytest.MonkeyPatch) -> None:
    lac = SplitConformalClassifier("lac").fit(REFERENCE_P, REFERENCE_Y)
    assert_array_equal(lac.predict_set(REFERENCE_NEW, COVERAGE), REFERENCE_LAC)
    by_class = SplitConformalClassifier("lac", class_conditional=True).fit(REFERENCE_P, REFERENCE_Y)
    assert_array_equal(by_class.predict_set(REFERENCE_NEW, 0.5), REFERENCE_LAC_BY_CLASS)
    uniforms = 1 - np.array(REFERENCE_UNIFORMS)
    monkeypatch.setattr(SplitConformalClassifier, "_uniforms", lambda _, n, stream: uniforms[:n])
    aps = SplitConformalClassifier("aps").fit(REFERENCE_P, REFERENCE_Y)
    assert_allclose(conformal_quantile(aps.scores_, COVERAGE), REFERENCE_APS_THRESHOLD, rtol=1e-12)
    assert_array_equal(aps.predict_set(REFERENCE_NEW, COVERAGE), REFERENCE_APS)


# Regression


class Columns(RegressorMixin, BaseEstimator):
    """Regressor that predicts a column of its inputs, and the next as scale."""

    fitted_ = True

    def __init__(self, column: int = 0) -> None:
        self.column = column

    def fit(self, x: Array, y: Array) -> "Columns":
        return self

    def predict(self, x: Array, return_std: bool = False) -> Any:
        return (x[:, self.column], x[:, self.column + 1]) if return_std else x[:, self.column]


def skewed_targets(n: int, seed: int = 0) -> tuple[Array, Array]:
    """Means and scales `(n, 2)`, and targets `(n,)`."""
    random = np.random.default_rng(seed)
    mean, scale = random.normal(size=n), random.uniform(0.5, 2, size=n)
    return np.stack([mean, scale], axis=1), mean + scale * (random.standard_exponential(n) - 0.3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("n", [99, 128])
def test_absolute_intervals_equal_mapie(symmetric: bool, n: int) -> None:
    mapie, scores = pytest.importorskip("mapie.regression"), pytest.importorskip("mapie.conformity_scores")
    (x, y), (new, _) = skewed_targets(n), skewed_targets(50, seed=1)
    score = scores.AbsoluteConformityScore(sym=symmetric)
    other = mapie.SplitConformalRegressor(Columns(), confidence_level=COVERAGE, conformity_score=score)
    expected = other.conformalize(x, y).predict_interval(new)[1][..., 0]
    conformal = SplitConformalRegressor("absolute", symmetric).fit(x[:, 0], y)
    assert_allclose(conformal.predict_interval(new[:, 0], COVERAGE), expected, atol=SAME_ARITHMETIC)


@pytest.mark.parametrize("symmetric", [True, False])
def test_normalized_intervals_equal_mapie(symmetric: bool) -> None:
    """Where `(n + 1) coverage` is whole; elsewhere MAPIE 1.6.0 takes one rank less for the lower end if symmetric."""
    mapie = pytest.importorskip("mapie.regression")
    scores = pytest.importorskip("mapie.conformity_scores.bounds.std_normalised")
    (x, y), (new, _) = skewed_targets(99), skewed_targets(50, seed=1)
    score = scores.StdConformityScore(sym=symmetric)
    other = mapie.SplitConformalRegressor(Columns(), confidence_level=COVERAGE, conformity_score=score)
    expected = other.conformalize(x, y).predict_interval(new)[1][..., 0]
    conformal = SplitConformalRegressor("normalized", symmetric).fit(x, y)
    assert_allclose(conformal.predict_interval(new, COVERAGE), expected, atol=SAME_ARITHMETIC)


@pytest.mark.parametrize("symmetric", [True, False])
def test_cqr_intervals_equal_mapie(symmetric: bool) -> None:
    mapie = pytest.importorskip("mapie.regression")
    (x, y), (new, _) = skewed_targets(128), skewed_targets(50, seed=1)
    quantiles, new_quantiles = (np.cumsum(a, axis=1) for a in (x, new))
    models = [Columns(0), Columns(1), Columns(0)]  # the last one for MAPIE's own prediction, which no interval uses
    other = mapie.ConformalizedQuantileRegressor(models, confidence_level=COVERAGE, prefit=True)
    other.conformalize(quantiles, y)
    expected = other.predict_interval(new_quantiles, symmetric_correction=symmetric)[1][..., 0]
    conformal = SplitConformalRegressor("cqr", symmetric).fit(quantiles, y)
    assert_allclose(conformal.predict_interval(new_quantiles, COVERAGE), expected, atol=SAME_ARITHMETIC)


def test_intervals_equal_crepes() -> None:
    crepes = pytest.importorskip("crepes")
    (x, y), (new, _) = skewed_targets(128), skewed_targets(50, seed=1)
    absolute = crepes.ConformalRegressor().fit(y - x[:, 0]).predict_int(new[:, 0], confidence=COVERAGE)
    conformal = SplitConformalRegressor("absolute").fit(x[:, 0], y)
    assert_allclose(conformal.predict_interval(new[:, 0], COVERAGE), absolute, atol=SAME_ARITHMETIC)
    other = crepes.ConformalRegressor().fit(y - x[:, 0], sigmas=x[:, 1])
    normalized = other.predict_int(new[:, 0], sigmas=new[:, 1], confidence=COVERAGE)
    conformal = SplitConformalRegressor("normalized").fit(x, y)
    assert_allclose(conformal.predict_interval(new, COVERAGE), normalized, atol=SAME_ARITHMETIC)


REFERENCE_X = np.array(
    [
        [10, 5], [22, 10], [31, 8], [38, 12], [52, 6], [57, 9], [73, 7],
        [81, 11], [90, 4], [16, 7], [28, 13], [44, 9], [65, 5], [77, 8],
    ]
) / 10  # fmt: skip
REFERENCE_TARGETS = np.array([1.4, 2.1, 3.6, 2.9, 5.4, 6.5, 7.0, 9.9, 9.1, 1.5, 4.9, 4.4, 6.1, 8.2])
REFERENCE_NEW_X = np.array([[15, 5], [60, 12]]) / 10
# What MAPIE 1.6.0 gave for them as in the tests above, at coverage 0.8, to 12 digits. (crepes 0.9.1 takes one rank more
# here, where `(n + 1) coverage` is whole: it truncates `(1 - 0.8) * 15` = 2.9999999999999996.)
REFERENCE_INTERVALS = {
    ("absolute", True): [[0.6, 2.4], [5.1, 6.9]],
    ("normalized", True): [[1.055555555556, 1.944444444444], [4.933333333333, 7.066666666667]],
    ("cqr", True): [[0.8, 2.7], [5.3, 7.9]],
    ("absolute", False): [[0.6, 3.6], [5.1, 8.1]],
    ("normalized", False): [[1.1, 2.318181818182], [5.04, 7.963636363636]],
    ("cqr", False): [[0.6, 2.8], [5.1, 8.0]],
}


@pytest.mark.parametrize(("method", "symmetric"), REFERENCE_INTERVALS)
def test_intervals_equal_the_committed_intervals_of_mapie(method: Any, symmetric: bool) -> None:
    prepared = {"absolute": lambda a: a[:, 0], "normalized": lambda a: a, "cqr": lambda a: np.cumsum(a, axis=1)}[method]
    conformal = SplitConformalRegressor(method, symmetric).fit(prepared(REFERENCE_X), REFERENCE_TARGETS)
    intervals = conformal.predict_interval(prepared(REFERENCE_NEW_X), COVERAGE)
    assert_allclose(intervals, REFERENCE_INTERVALS[method, symmetric], atol=SAME_ARITHMETIC)
