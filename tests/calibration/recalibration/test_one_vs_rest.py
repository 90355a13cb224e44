"""One class against the rest, against scikit-learn and by hand."""

import time

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize
from scipy.special import expit, logit
from scipy.stats import beta as beta_distribution
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from bdl.calibration import BetaCalibration, HistogramBinning, IsotonicCalibration, PlattScaling
from bdl.calibration.recalibration.one_vs_rest import _log_odds


def binary(seed=0, n=500):
    random = np.random.default_rng(seed)
    p = random.beta(0.7, 0.7, size=n)
    return p, (random.uniform(size=n) < expit(0.5 * logit(p) - 0.3)).astype(int)


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.filterwarnings("ignore:Since FrozenEstimator")  # weights are for the calibration alone, as meant
@pytest.mark.parametrize(("ours", "theirs"), [(PlattScaling, "sigmoid"), (IsotonicCalibration, "isotonic")])
def test_binary_calibration_is_that_of_scikit_learn(ours, theirs, is_weighted):
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    model = LogisticRegression(C=1.0).fit(x[:300, :4], y[:300])
    weights = 1 + np.arange(len(y) - 300) % 3 if is_weighted else None
    expected = CalibratedClassifierCV(FrozenEstimator(model), method=theirs)
    expected = expected.fit(x[300:, :4], y[300:], sample_weight=weights)
    odds = model.decision_function(x[300:, :4])
    fitted = ours(from_logits=True).fit(odds, y[300:], sample_weight=weights)
    assert_allclose(fitted.predict_proba(odds), expected.predict_proba(x[300:, :4]), atol=1e-4)


def test_beta_calibration_with_weights_is_scikit_learns_logistic_regression():
    p, y = binary(5)
    weights = 1 + np.arange(len(p)) % 3
    features = np.stack([np.log(p), -np.log1p(-p)], axis=1)
    expected = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(features, y, sample_weight=weights)
    assert (expected.coef_ > 0).all()  # where beta calibration allows the free minimum
    found = BetaCalibration().fit(p, y, sample_weight=weights).predict_proba(p)
    assert_allclose(found, expected.predict_proba(features), atol=1e-7)
    assert np.abs(found - BetaCalibration().fit(p, y).predict_proba(p)).max() > 1e-3


def test_platt_scaling_recovers_a_logistic_distortion():
    p, y = binary(n=100_000)
    a, b = PlattScaling().fit(p, y).maps_[0]
    # Standard errors from the information of a logistic regression at the truth, variance about 0.2 an example.
    assert abs(a - 0.5) < 4 / np.sqrt(len(p) * 0.15 * np.var(logit(p)))
    assert abs(b + 0.3) < 4 / np.sqrt(len(p) * 0.15)


def test_beta_calibration_recovers_the_identity_which_platt_scaling_bends_to():
    random = np.random.default_rng(1)
    y = random.uniform(size=100_000) < 0.5
    # Scores of both classes are beta distributed, so log odds are linear in log s and log(1 - s) (Kull et al. 2017).
    s = np.where(y, random.beta(3, 2, size=y.size), random.beta(1.5, 4, size=y.size))
    a, b, c = BetaCalibration().fit(s, y.astype(int)).maps_[0]
    truth = beta_distribution(3, 2).logpdf(0.3) - beta_distribution(1.5, 4).logpdf(0.3)
    assert_allclose([a, b], [1.5, 2.0], atol=0.06)  # standard errors of about 0.012, by halves of the data
    assert_allclose(a * np.log(0.3) - b * np.log(0.7) + c, truth, atol=0.06)


def test_beta_calibration_is_monotone_where_the_data_are_not():
    p, y = binary()
    a, b, _ = BetaCalibration().fit(p, 1 - y).maps_[0]
    assert (a, b) == (0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_beta_calibration_is_the_best_of_its_maps(seed):
    """Against SciPy's bounded optimiser, for scores that are right, bent, contrary or of no use."""
    random = np.random.default_rng(seed)
    p = random.beta(0.8, 1.5, size=200)
    truth = [p, p**3, 1 - p, 0.3 + 0 * p, np.maximum(p, 0.6), np.minimum(p, 0.3)][seed]
    y = (random.uniform(size=200) < truth).astype(int)

    def loss(coefficients):
        odds = coefficients[0] * np.log(p) - coefficients[1] * np.log1p(-p) + coefficients[2]
        return np.mean(np.logaddexp(0, odds) - y * odds)

    best = optimize.minimize(loss, [1, 1, 0], bounds=[(0, None), (0, None), (None, None)], options={"ftol": 1e-14})
    found = BetaCalibration().fit(p, y).maps_[0]
    assert min(found[:2]) >= 0
    assert best.fun - 1e-6 < loss(found) <= best.fun


# Log odds


def test_log_odds_are_exact_where_probabilities_round_to_one():
    random = np.random.default_rng(3)
    scores = np.concatenate([random.normal(size=(20, 5)) * scale for scale in (1.0, 30.0, 700.0)])
    scores[0] = 0.0
    scores[1] = [0.0, 0.0, -700.0, -700.0, -700.0]
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    rest = [np.logaddexp.reduce(np.delete(log_p, k, axis=1), axis=1) for k in range(5)]
    assert_allclose(_log_odds(scores), log_p - np.stack(rest, axis=1), rtol=1e-12, atol=1e-12)


def test_log_odds_of_many_classes_take_linear_time():
    num_classes = 200_000
    scores = np.random.default_rng(4).normal(size=(2, num_classes))
    start = time.process_time()
    odds = _log_odds(scores)
    assert time.process_time() - start < 5  # a sum over the others for each class would take minutes
    p = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    assert_allclose(odds, np.log(p) - np.log1p(-p), rtol=1e-10)


def test_isotonic_calibration_of_many_classes_normalises_scikit_learns_regressions():
    random = np.random.default_rng(2)
    p = random.dirichlet(np.ones(3), size=300)
    y = np.array([random.choice(3, p=row) for row in p])
    mapped = np.stack([
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p[:, k], y == k).predict(p[:, k])
        for k in range(3)
    ], axis=1)  # fmt: skip
    assert_allclose(IsotonicCalibration().fit(p, y).predict_proba(p), mapped / mapped.sum(axis=1)[:, None], atol=1e-7)


@pytest.mark.parametrize("binning", ["mass", "width"])
def test_a_bin_says_the_share_of_its_examples(binning):
    p, y = binary()
    fitted = HistogramBinning(8, binning).fit(p, y)
    inner, shares = fitted.maps_[0]
    index = np.searchsorted(inner, p)
    for number in range(8):
        assert_allclose(shares[number], y[index == number].mean())
    if binning == "mass":
        assert np.ptp(np.bincount(index)) <= 1
    assert_allclose(fitted.predict_proba(p)[:, 1], shares[index])


def test_rows_of_zeros_become_uniform():
    p = np.array([[0.8, 0.1, 0.1]] * 4 + [[0.1, 0.8, 0.1]] * 4 + [[0.1, 0.1, 0.8]] * 4)
    y = [1] * 4 + [2] * 4 + [0] * 4
    unseen = HistogramBinning(2, "width").fit(p, y).predict_proba([[0.9, 0.05, 0.05]])
    assert_allclose(unseen.sum(), 1.0)
    fitted = HistogramBinning(1).fit(p, y)
    for _, shares in fitted.maps_:
        shares[:] = 0
    assert_allclose(fitted.predict_proba(p), 1 / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_bins": 0}, r"`num_bins` must be a positive integer"), ({"binning": "x"}, r"`binning` must be 'width'")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HistogramBinning(**options).fit([0.2, 0.8], [0, 1])
