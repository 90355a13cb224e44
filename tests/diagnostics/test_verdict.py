"""Each rule on hand-made quantities: it fires on its own case and not on its neighbours'."""

import dataclasses

import pytest

from bdl.diagnostics import REMEDIES, VERDICTS, Fit, LayerHealth, LocalLatents, Quantities, Trends, judge

GOOD = Fit(
    500, nll_null=2.3, nll_gibbs=0.15, nll_bma=0.1, gain=0.957, gain_error=0.01, accuracy=0.97, accuracy_error=0.01
)
POOR = Fit(500, nll_null=2.3, nll_gibbs=1.4, nll_bma=1.3, gain=0.43, gain_error=0.01, accuracy=0.8, accuracy_error=0.02)
NULL = Fit(
    500, nll_null=2.3, nll_gibbs=2.31, nll_bma=2.3, gain=0.0, gain_error=0.002, accuracy=0.1, accuracy_error=0.01
)
FLAT = Trends(20, elbo_change=0.001, elbo_p=0.6, nll_change=0.0, nll_p=0.9, val_nll_rise=0.0, val_nll_rise_errors=0.0)
LAYERS = (LayerHealth("a", 100, kl=100.0, counted=1.0, stuck=0.0, active_units=0.9),)
HEALTHY = Quantities(
    epoch=100,
    planned_epochs=100,
    num_examples=1000,
    temperature=1.0,
    declared_temperature=1.0,
    kl=200.0,
    train=GOOD,
    validation=GOOD,
    twin=GOOD,
    nll_prior=3.5,
    function_signal=0.95,
    function_variance=0.1,
    layers=LAYERS,
    trends=FLAT,
    has_noise=True,
)


def but(**changes):
    return dataclasses.replace(HEALTHY, **changes)


def layer(**changes):
    return (dataclasses.replace(LAYERS[0], **changes),)


RISING = dataclasses.replace(FLAT, elbo_change=0.4, elbo_p=1e-6, nll_change=-0.3, nll_p=1e-6)
FORGETTING = dataclasses.replace(
    FLAT, elbo_change=0.4, elbo_p=1e-6, nll_change=0.3, nll_p=1e-6, accuracy_drop=0.3, kappa=1.8
)
CASES = [
    ("healthy", HEALTHY),
    ("healthy", but(layers=layer(prior_matched=0.99, contraction=0.01, signal_to_noise=0.01))),  # no weight-space alarm
    ("diverged", but(finite=False)),
    ("accounting_error", but(layers=layer(counted=0.0))),
    ("accounting_error", but(layers=layer(counted=2.0))),
    ("accounting_error", but(temperature=0.0, declared_temperature=None, layers=layer(counted=0.0))),
    ("accounting_error", but(temperature=2.0, declared_temperature=None)),
    ("mis_scaled_kl", but(temperature=1000.0, declared_temperature=None)),
    ("mis_scaled_kl", but(temperature=0.001, declared_temperature=None)),
    ("mis_scaled_kl", but(temperature=10.0, declared_temperature=10.0)),
    ("still_training", but(trends=RISING, train=POOR, validation=POOR)),
    ("healthy", but(trends=RISING)),  # it has reached its twin
    ("underfitting", but(trends=FLAT, validation=POOR, train=POOR)),
    ("underfitting", but(trends=FORGETTING, validation=POOR, train=POOR, twin=None)),
    ("collapsed", but(validation=NULL, train=NULL, kl=1.0, function_signal=0.01)),
    ("still_training", but(validation=NULL, train=NULL, kl=9000.0, function_signal=0.01, trends=RISING)),
    ("over_pruned", but(validation=dataclasses.replace(GOOD, gain=0.7, accuracy=0.94), layers=layer(active_units=0.2))),
    ("variance_saturated", but(function_variance=0.95)),
    ("healthy", but(function_variance=0.95, has_fitted_means=True)),  # around means that fit, at little cost
    ("variance_saturated", but(has_fitted_means=True, validation=dataclasses.replace(GOOD, nll_gibbs=2.2))),
    ("variance_saturated", but(validation=dataclasses.replace(GOOD, nll_gibbs=2.2))),
    ("scales_not_learned", but(layers=layer(stuck=0.9))),
    ("near_deterministic", but(temperature=0.001, declared_temperature=0.001)),
    ("near_deterministic", but(layers=(), kl=None, dropout_rates=(0.0, 0.0), has_noise=False)),
    ("near_deterministic", but(layers=(), kl=None, dropout_rates=(0.5,), has_noise=False)),
    ("near_deterministic", but(layers=(), kl=None, num_members=5, has_noise=False)),
    ("near_deterministic", but(kl=9000.0)),  # costs more than it could pay
    ("overfitting", but(trends=dataclasses.replace(FLAT, val_nll_rise=0.8, val_nll_rise_errors=9.0, nll_change=-0.1))),
    ("healthy", but(trends=dataclasses.replace(FLAT, val_nll_rise=0.8, val_nll_rise_errors=9.0, nll_change=0.4))),
    ("collapsed", but(local=LocalLatents(kl=1e-5))),
    ("collapsed", but(local=LocalLatents(kl=0.5, attention_entropy=0.999))),
    ("healthy", but(local=LocalLatents(kl=0.5, attention_entropy=0.6, active_units=0.8))),
    ("inconclusive", Quantities(epoch=3, kl=1.0)),
    ("inconclusive", but(layers=(), kl=None, has_noise=False)),
]


@pytest.mark.parametrize(("verdict", "quantities"), CASES)
def test_verdict(verdict, quantities):
    finding = judge(quantities)
    assert finding.verdict == verdict
    assert finding.evidence
    assert all(finding.evidence)


def test_every_verdict_has_a_case_and_remedies():
    assert {verdict for verdict, _ in CASES} == set(VERDICTS) == set(REMEDIES)


def test_no_verdict_inside_two_standard_errors():
    vague = dataclasses.replace(POOR, gain_error=0.4, accuracy_error=0.2)
    assert judge(but(validation=vague)).verdict != "underfitting"


def test_without_a_twin_underfitting_is_at_most_probable():
    assert judge(but(trends=FORGETTING, validation=POOR, twin=None)).confidence == "probable"


@pytest.mark.parametrize("dropped", [field.name for field in dataclasses.fields(Quantities)])
def test_any_quantity_may_be_missing(dropped):
    empty = {"layers": (), "dropout_rates": (), "num_members": 1, "finite": True, "epoch": 0}
    for _, quantities in CASES:
        assert judge(dataclasses.replace(quantities, **{dropped: empty.get(dropped)})).verdict in VERDICTS


PRUNED = layer(active_units=0.2)


def test_pruned_units_are_named_before_underfitting():
    assert judge(but(validation=POOR, train=POOR)).verdict == "underfitting"
    assert judge(but(validation=POOR, train=POOR, layers=PRUNED)).verdict == "over_pruned"


def test_forgetting_is_named_before_pruned_units():
    assert judge(but(validation=POOR, train=POOR, layers=PRUNED, trends=FORGETTING)).verdict == "underfitting"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "overfitting"),
        ({"temperature": 1.0, "present_temperature": 0.5}, "healthy"),  # the KL does not count in full yet
        ({"temperature": 1.0, "present_temperature": 1.0}, "overfitting"),
        ({"validation": dataclasses.replace(GOOD, nll_gibbs=GOOD.nll_bma + 0.75)}, "healthy"),  # 0.75 of 0.8 is noise
    ],
)
def test_overfitting_is_neither_warm_up_nor_weight_noise(changes, verdict):
    rising = dataclasses.replace(FLAT, val_nll_rise=0.8, val_nll_rise_errors=9.0, nll_change=-0.1)
    assert judge(but(trends=rising, **changes)).verdict == verdict


@pytest.mark.parametrize(
    ("counted", "error", "verdict"),
    [
        (1.3, 0.1, "healthy"),
        (0.7, 0.1, "healthy"),
        (1.3, 0.05, "accounting_error"),
        (1.3, 0.0, "accounting_error"),
        (1.3, None, "accounting_error"),
        (0.0, 1.0, "accounting_error"),  # missing, whatever the error
    ],
)
def test_a_count_within_its_errors_is_one(counted, error, verdict):
    assert judge(but(layers=layer(counted=counted, counted_error=error))).verdict == verdict
