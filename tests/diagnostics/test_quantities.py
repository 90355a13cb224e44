"""Quantities against closed forms."""

import dataclasses
import json

import numpy as np
import pytest

from bdl.diagnostics import Fit, LayerHealth, Quantities, Trends
from bdl.diagnostics.quantities import data_gain, fit_figures


def test_gain_of_a_regression_is_the_explained_variance():
    null = 0.5 * np.log(2 * np.pi * np.e * 4.0)
    fitted = 0.5 * np.log(2 * np.pi * np.e * 1.0)  # residual variance 1 of 4
    assert data_gain(fitted, null, is_classifier=False) == pytest.approx(0.75)


def test_gain_does_not_depend_on_the_unit_of_the_target():
    y = np.random.default_rng(1).normal(size=200)
    mean = 0.8 * y
    gains = []
    for unit in (1.0, 1000.0):
        scale = 0.3 * unit
        nll = 0.5 * ((unit * (y - mean)) / scale) ** 2 + np.log(scale * np.sqrt(2 * np.pi))
        gains.append(fit_figures(nll[None], unit * y, unit * mean, is_classifier=False).gain)
    assert gains[0] == pytest.approx(gains[1], rel=1e-9)


def test_bma_is_below_gibbs_by_jensen():
    nll = np.random.default_rng(2).gamma(2.0, size=(16, 50))
    figures = fit_figures(nll, np.arange(50) % 2, np.full((50, 2), 0.5), is_classifier=True)
    assert figures.nll_bma < figures.nll_gibbs == pytest.approx(nll.mean())


def test_gain_error_is_the_standard_error_over_examples():
    nll = np.random.default_rng(3).gamma(2.0, size=(1, 400))
    figures = fit_figures(nll, np.arange(400) % 4, np.full((400, 4), 0.25), is_classifier=True)
    assert figures.gain_error == pytest.approx(nll.std(ddof=1) / np.sqrt(400) / np.log(4.0), rel=1e-9)


def test_gain_error_is_that_of_the_difference_to_the_null_model():
    """A network that predicts what the null model does has no gain, and no doubt about it."""
    y = np.random.default_rng(4).normal(size=100)
    null = 0.5 * y**2 + 0.5 * np.log(2 * np.pi)
    figures = fit_figures(null[None], y, np.zeros(100), is_classifier=False, nll_null=null)
    assert (figures.gain, figures.gain_error) == (0.0, 0.0)
    worse = fit_figures(null[None] + 0.1 * y, y, np.zeros(100), is_classifier=False, nll_null=null)
    slope = 2 * (1 - worse.gain)
    assert worse.gain_error == pytest.approx(slope * 0.1 * y.std(ddof=1) / 10, rel=1e-9)


def test_information_excess_follows_its_definition():
    fit = Fit(10, nll_null=2.3, nll_gibbs=0.4, nll_bma=0.3)
    q = Quantities(num_examples=100, kl=250.0, nll_prior=2.4, train=fit)
    assert q.rate == 2.5
    assert q.information_excess == pytest.approx(2.5 - (2.4 - 0.4))
    point_estimates = dataclasses.replace(q, kl=270.0, penalty=20.0)  # which the prior pays as well
    assert point_estimates.rate == 2.7
    assert point_estimates.information_excess == pytest.approx(q.information_excess)


def test_json_round_trip():
    q = Quantities(
        epoch=3,
        kl=2.0,
        penalty=0.5,
        unread=("a",),
        has_fitted_means=True,
        train=Fit(10, 2.3, 0.4, 0.3),
        layers=(LayerHealth("a", 4, stuck=0.5),),
        trends=Trends(5, 0.1, 0.02),
        dropout_rates=(0.1,),
    )
    assert Quantities.from_dict(json.loads(json.dumps(q.to_dict()))) == q


def test_fields_of_newer_versions_are_passed_over():
    assert Quantities.from_dict({"epoch": 2, "unheard_of": 1}) == Quantities(epoch=2)
