"""Ranking metrics against scikit-learn, loops and closed forms."""

import itertools
from unittest import mock

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from bdl.calibration import (
    area_under_risk_coverage,
    excess_area_under_risk_coverage,
    out_of_distribution_aupr,
    risk_coverage_curve,
)
from bdl.calibration.metrics import ranking

quick = settings(max_examples=30, deadline=None, derandomize=True)
tied_scores = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
@quick
def test_aupr_equals_that_of_scikit_learn(seed, n, m):
    random = np.random.default_rng(seed)
    inside, outside = random.integers(0, 9, n).astype(float), random.integers(3, 12, m).astype(float)
    expected = sklearn.metrics.average_precision_score([0] * n + [1] * m, [*inside, *outside])
    assert_allclose(out_of_distribution_aupr(inside, outside), expected, rtol=1e-12)


@given(tied_scores, st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 2**14]))
@quick
def test_risk_is_its_mean_over_all_orders_of_ties(uncertainty, seed, block):
    losses = np.random.default_rng(seed).uniform(size=len(uncertainty))
    kept = np.arange(1, len(losses) + 1)
    orders = [
        order
        for order in itertools.permutations(range(len(losses)))
        if all(uncertainty[i] <= uncertainty[j] for i, j in itertools.pairwise(order))
    ]
    expected = np.mean([np.cumsum(losses[list(order)]) / kept for order in orders], axis=0)
    with mock.patch.object(ranking, "_TIES_IN_A_BLOCK", block):
        curve = risk_coverage_curve(losses, uncertainty)
    assert_allclose(curve.risk, expected, rtol=1e-10)
    assert_allclose(curve.area, expected.mean(), rtol=1e-10)
    assert curve.excess_area >= -1e-12


def test_excess_of_zero_one_losses_approaches_the_limit_of_geifman():
    n, rate = 100_000, 0.2
    losses = (np.arange(n) < rate * n).astype(float)
    shuffled = np.random.default_rng(0).permutation(losses)
    area, excess = (f(shuffled, np.arange(n)) for f in (area_under_risk_coverage, excess_area_under_risk_coverage))
    assert_allclose(area - excess, rate + (1 - rate) * np.log(1 - rate), rtol=1e-4)


def test_a_useless_uncertainty_has_the_mean_loss_everywhere():
    assert_allclose(risk_coverage_curve([0, 1, 0, 1], [1, 1, 1, 1]).risk, 0.5)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"`losses` and `uncertainty` .*not 2 losses and 1 uncertainties"):
        risk_coverage_curve([0, 1], [1])
