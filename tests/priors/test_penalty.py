"""What point estimates pay: the log density at the mode minus that at the value."""

from typing import Any

import numpy as np
import pytest
from gradients import gradients
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose
from scipy import special, stats

from bdl.priors import (
    EmpiricalBayes,
    FanInNormal,
    Horseshoe,
    Laplace,
    Normal,
    Prior,
    ScaleMixture,
    TiedMean,
    WidthNormal,
)

VALUES = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def mixture(weights: Any, scales: Any) -> Any:
    def log_density(values: Any) -> Any:
        parts = [np.log(p) + stats.norm.logpdf(values, 0, s) for p, s in zip(weights, scales, strict=True)]
        return special.logsumexp(parts, axis=0)

    return log_density


CASES = [
    (Normal(0.3, 2.0), lambda w: stats.norm.logpdf(w, 0.3, 2.0), 0.3),
    (FanInNormal(0.5), lambda w: stats.norm.logpdf(w, 0, 0.5 / np.sqrt(6)), 0.0),
    (WidthNormal(0.2), lambda w: stats.norm.logpdf(w, 0, 0.2), 0.0),
    (Laplace(-0.2, 0.7), lambda w: stats.laplace.logpdf(w, -0.2, 0.7), -0.2),
    (Laplace(scale="fan_in"), lambda w: stats.laplace.logpdf(w, 0, 1 / np.sqrt(12)), 0.0),
    (ScaleMixture(), mixture((0.5, 0.5), (1.0, 0.0025)), 0.0),
    (ScaleMixture((0.25, 0.75), (3.0, 0.5), "fan_in"), mixture((0.25, 0.75), np.array([3.0, 0.5]) / np.sqrt(6)), 0.0),
]


@pytest.mark.core
@pytest.mark.parametrize(("prior", "log_density", "mode"), CASES, ids=[repr(case[0]) for case in CASES])
def test_it_is_the_difference_of_log_densities(prior: Prior, log_density: Any, mode: float):
    expected = np.sum(log_density(np.float64(mode)) - log_density(VALUES.astype("float64")))
    assert_allclose(array(prior.penalty(VALUES, (0,))), expected, rtol=1e-5)
    assert expected > 0
    at_mode = np.full((6, 4), mode, "float32")
    assert array(prior.penalty(at_mode, (0,))) == pytest.approx(0.0, abs=1e-5)
    (slope,) = gradients(lambda values: prior.penalty(values[0], (0,)), [ops.convert_to_tensor(VALUES)])
    assert np.all(np.isfinite(array(slope)))
    assert prior.why_no_penalty is None


@pytest.mark.parametrize(
    ("prior", "reason"),
    [
        (EmpiricalBayes(), "would shrink to zero, where the density has no bound"),
        (Horseshoe(), "would shrink to zero, where the density has no bound"),
        (ScaleMixture(learned=True), "shrink to zero, where the density has no bound"),
        (TiedMean(), "centred on the weight itself, and would charge nothing"),
    ],
    ids=repr,
)
def test_priors_without_one_say_why(prior: Prior, reason: str):
    with pytest.raises(ValueError, match=f"cannot be the prior of a point estimate: .*{reason}"):
        prior.penalty(VALUES)
