"""Trends of curves with known slopes."""

import numpy as np
import pytest

from bdl.diagnostics import measure_trends


def epochs(n, **curves):
    return [{key: float(values[t]) for key, values in curves.items()} for t in range(n)]


def test_slope_times_window_is_the_change():
    t = np.arange(30)
    trends = measure_trends(epochs(30, elbo=0.1 * t, nll=1 - 0.02 * t), None)
    assert trends.elbo_change == pytest.approx(0.1 * (trends.window - 1))
    assert trends.nll_change == pytest.approx(-0.02 * (trends.window - 1))


def test_one_wild_epoch_does_not_move_a_slope():
    elbo = 0.1 * np.arange(30)
    elbo[25] = -1e6
    assert measure_trends(epochs(30, elbo=elbo), None).elbo_change == pytest.approx(0.9, rel=0.15)


def test_noise_without_a_trend_is_significant_at_its_level():
    random = np.random.default_rng(0)
    n = 400
    p = [measure_trends(epochs(30, elbo=random.normal(size=30)), None).elbo_p for _ in range(n)]
    share = np.mean(np.array(p) < 0.05)
    assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / n)


def test_kappa_above_one_where_the_nll_got_worse():
    t = np.arange(20)
    trends = measure_trends(epochs(20, elbo=0.1 * t, nll=1 + 0.1 * t, kl=1000 - 20.0 * t), num_examples=100)
    assert trends.kappa == pytest.approx(2.0)


def test_rise_of_validation_nll_from_its_best():
    curve = np.concatenate([np.linspace(2, 1, 20), np.linspace(1, 1.5, 20)])
    trends = measure_trends(epochs(40, val_nll=curve), None)
    assert trends.val_nll_rise == pytest.approx(0.4, abs=0.1)
    assert trends.val_nll_rise_errors > 2
    width = 8  # a fifth of the epochs
    end = np.mean(curve[-width:])
    assert trends.val_nll_best == pytest.approx(end - trends.val_nll_rise)
    assert trends.val_nll_best == pytest.approx(np.convolve(curve, np.full(width, 1 / width), "valid").min())


def test_few_epochs_have_no_trend():
    assert measure_trends(epochs(4, elbo=np.arange(4)), None) is None


def test_of_a_few_epochs_only_the_last_change_is_known():
    trends = measure_trends(epochs(3, nll=np.array([2.0, 1.5, 1.2])), None)
    assert (trends.window, trends.nll_p, trends.elbo_p) == (3, None, None)
    assert trends.nll_change == pytest.approx(-0.3)
    assert measure_trends(epochs(1, nll=np.array([2.0])), None) is None


def test_rise_of_the_training_nll_and_fall_of_the_kl_since():
    nll = np.concatenate([np.linspace(2, 1, 10), np.linspace(1, 2, 10)])
    kl = np.linspace(1000, 0, 20)
    trends = measure_trends(epochs(20, nll=nll, kl=kl), num_examples=10)
    width = 4
    smooth = np.convolve(nll, np.full(width, 1 / width), "valid")
    assert trends.nll_rise == pytest.approx(smooth[-1] - smooth.min())
    since = len(smooth) - 1 - smooth.argmin()
    assert trends.kl_fall == pytest.approx(since * (1000 / 19) / 10)


def test_validation_has_a_trend_of_its_own():
    trends = measure_trends(epochs(30, val_nll=2.0 - 0.01 * np.arange(30)), None)
    assert trends.val_nll_change == pytest.approx(-0.01 * (trends.window - 1))
    assert trends.val_nll_p < 0.05
