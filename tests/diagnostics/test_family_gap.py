"""Refits name the cause that was built in: the family, the prior, or scales that the optimizer left behind (Q20)."""

import importlib

import keras
import numpy as np
import pytest

import bdl
from bdl.diagnostics import diagnose

N, D = 12, 3  # so few examples that what a family cannot say costs much for each
NOISE = 0.5


def model_of(x, y, prior, posterior, moves_scales=True):
    """Trained, in closed form: the mean of the exact posterior, and scales from the diagonal of its precision."""
    layer = bdl.layers.DenseReparameterization(1, use_bias=False, kernel_prior=prior, kernel_posterior=posterior)
    network = keras.Sequential([keras.Input((D,)), layer])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=NOISE), num_examples=N, kl_weight=1.0)
    model.compile(keras.optimizers.Adam(0.02))
    precision = x.T @ x / NOISE**2 + np.eye(D) / prior.scale**2
    weight = layer.sampled_weights["kernel"]
    weight.mean.assign(np.linalg.solve(precision, x.T @ y[:, None] / NOISE**2))
    if moves_scales:
        weight.variables["rho"].assign(-0.5 * np.log(np.diag(precision))[:, None] / posterior.speed)
    return model


def regression(correlation, weights=(1.0, -1.0, 0.5)):
    random = np.random.default_rng(0)
    shared = random.normal(size=(N, 1))
    x = np.sqrt(correlation) * shared + np.sqrt(1.0 - correlation) * random.normal(size=(N, D))
    y = x @ np.array(weights) + NOISE * random.normal(size=N)
    return x.astype("float32"), y.astype("float32")


CASES = {  # beside the family, which is named below
    "prior": (bdl.priors.Normal(0.0, 0.02), bdl.posteriors.MeanFieldNormal()),
    # Scales far below what the data call for, and stored so that they never move.
    "optimizer": (bdl.priors.Normal(), bdl.posteriors.MeanFieldNormal(1e-4, speed=1e-3)),
}


@pytest.mark.parametrize("change", CASES)
def test_the_cause_that_was_built_in_is_named(change):
    prior, posterior = CASES[change]
    x, y = regression(0.0)
    model = model_of(x, y, prior, posterior, moves_scales=change != "optimizer")
    before = [weight.copy() for weight in model.get_weights()]
    report = diagnose(model, x, y, family_gap=True, batch_size=1)  # few epochs of a refit's steps
    assert [each.change for each in report.quantities.refits] == ["nothing", "family", "prior", "optimizer"]
    assert f"names the {change}" in " ".join(report.evidence)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_is_named_where_nothing_gains():
    x, y = regression(0.0)
    model = model_of(x, y, bdl.priors.Normal(), bdl.posteriors.MeanFieldNormal(0.05))
    report = diagnose(model, x, y, family_gap=True, batch_size=1)
    assert "No refit gained" in " ".join(report.evidence)


def test_the_family_is_named_and_a_bound_with_fitted_means_does_not_judge_the_prior():
    """Inputs that are nearly one: only the sum of the weights is known, which independent ones cannot say."""
    x, y = regression(0.99, (0.5, 0.5, 0.5))
    prior = bdl.priors.TiedMean(scale=1.0, mean_prior=bdl.priors.Normal())
    model = model_of(x, y, prior, bdl.posteriors.MeanFieldNormal())
    report = diagnose(model, x, y, family_gap=True, batch_size=3)  # less noise for correlations to be learned from
    assert [each.change for each in report.quantities.refits] == ["nothing", "family", "optimizer"]
    assert "names the family" in report.evidence[-1]  # correlated deviations from the means
    assert "means are point estimates" in report.evidence[-1]


def dense(*layers):
    return keras.Sequential([keras.Input((D,)), *layers])


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        (lambda: dense(keras.layers.Dense(1)), True, "bdl's layers with a posterior"),
        (lambda: dense(bdl.layers.DenseFlipout(1)), False, "needs x, y"),
        (lambda: dense(bdl.layers.DenseRank1(1)), True, "rank-1"),
        (lambda: [dense(bdl.layers.DenseFlipout(1)) for _ in range(2)], True, "one network"),
    ],
)
def test_what_cannot_be_refitted_is_said_before_the_twin_is_trained(model, training, message, monkeypatch):
    x, y = regression(0.0)
    module = importlib.import_module("bdl.diagnostics.diagnose")  # the package's `diagnose` is the function
    monkeypatch.setattr(module, "train_twin", lambda *args: pytest.fail("a twin was trained"))
    data = (x, y) if training else (None, None)
    with pytest.raises(ValueError, match=message):
        likelihood = bdl.likelihoods.Normal(scale=0.5)
        diagnose(model(), *data, validation_data=(x, y), likelihood=likelihood, family_gap=True, twin="auto")
