"""Each symptom at its threshold, just below and just above it: all other quantities are on the far side."""

import dataclasses
import math

import pytest

from bdl.diagnostics import THRESHOLDS, Fit, LayerHealth, LocalLatents, Quantities, Trends
from bdl.diagnostics.symptoms import (
    forgot,
    is_behind,
    is_cold,
    is_collapsed,
    is_done,
    is_less_accurate,
    is_local_collapse,
    is_unpaid,
    is_warming_up,
    pruned_layers,
    unit,
)

pytestmark = pytest.mark.core

NULL = 2.0  # a power of two, so that shares of it are exact
LEARNED_NOTHING = Fit(100, nll_null=NULL, nll_gibbs=NULL, nll_bma=NULL, gain=0.0)
LAYER = LayerHealth("a", 10)
COLLAPSED = Quantities(num_examples=1, kl=0.0, train=LEARNED_NOTHING, function_signal=0.0, layers=(LAYER,))
FORGETTING = Quantities(
    train=Fit(100, NULL, 1.0, 1.0, accuracy_error=0.0),
    trends=Trends(20, elbo_change=1.0, elbo_p=0.0, accuracy_drop=1.0, kappa=2.0),
)


def around(threshold):
    return math.nextafter(threshold, -math.inf), threshold, math.nextafter(threshold, math.inf)


def fires_below(threshold):
    return list(zip(around(threshold), (True, False, False), strict=True))


def fires_above(threshold):
    return list(zip(around(threshold), (False, False, True), strict=True))


def excess_of(value, **changes):
    """Quantities with this information excess: nothing learned, so that it is the rate."""
    return dataclasses.replace(COLLAPSED, kl=value, nll_prior=NULL, function_signal=1.0, **changes)


@pytest.mark.parametrize(("nll_null", "expected"), [(0.05, 1.0), (0.06, 0.06), (4.9, 4.9), (5.0, 1.0), (-3.0, 1.0)])
def test_changes_are_measured_by_the_null_nll_or_by_one_nat(nll_null, expected):
    assert unit(nll_null) == expected


@pytest.mark.parametrize(("rate", "expected"), fires_below(THRESHOLDS.collapsed_rate * NULL))
def test_collapse_says_next_to_nothing(rate, expected):
    assert is_collapsed(dataclasses.replace(COLLAPSED, kl=rate)) == expected


@pytest.mark.parametrize(("variance", "expected"), fires_above(THRESHOLDS.saturated_variance))
def test_collapse_on_its_way_varies_as_the_prior_does(variance, expected):
    assert is_collapsed(dataclasses.replace(COLLAPSED, kl=100.0, function_variance=variance)) == expected


@pytest.mark.parametrize(("gain", "expected"), fires_below(THRESHOLDS.collapsed_gain))
def test_collapse_has_learned_nothing(gain, expected):
    fit = dataclasses.replace(LEARNED_NOTHING, gain=gain)
    assert is_collapsed(dataclasses.replace(COLLAPSED, train=fit)) == expected


@pytest.mark.parametrize(("signal", "expected"), fires_below(THRESHOLDS.collapsed_signal))
def test_collapse_ignores_the_inputs(signal, expected):
    assert is_collapsed(dataclasses.replace(COLLAPSED, function_signal=signal)) == expected


@pytest.mark.parametrize("missing", [{"layers": ()}, {"kl": None}, {"train": None}, {"function_signal": None}])
def test_collapse_is_not_guessed(missing):
    assert not is_collapsed(dataclasses.replace(COLLAPSED, **missing))


@pytest.mark.parametrize(("rate", "expected"), fires_below(THRESHOLDS.local_rate))
def test_a_silent_code_has_collapsed(rate, expected):
    assert is_local_collapse(LocalLatents(kl=rate)) == expected


@pytest.mark.parametrize(("information", "expected"), fires_below(THRESHOLDS.local_rate))
def test_mutual_information_rescues_a_code_that_equals_its_prior(information, expected):
    assert is_local_collapse(LocalLatents(kl=0.0, mutual_information=information)) == expected


@pytest.mark.parametrize(("active", "expected"), [(0.0, True), (math.nextafter(0.0, 1.0), False), (1.0, False)])
def test_a_code_without_active_units_has_collapsed(active, expected):
    assert is_local_collapse(LocalLatents(kl=1.0, active_units=active)) == expected


@pytest.mark.parametrize(("entropy", "expected"), fires_above(THRESHOLDS.uniform_attention))
def test_uniform_attention_has_collapsed(entropy, expected):
    assert is_local_collapse(LocalLatents(kl=1.0, attention_entropy=entropy)) == expected


def test_nothing_measured_is_no_local_collapse():
    assert not is_local_collapse(LocalLatents())


@pytest.mark.parametrize("symptom", [is_cold, is_unpaid])
@pytest.mark.parametrize(("excess", "expected"), fires_above(THRESHOLDS.excess_rate * NULL))
def test_a_posterior_that_costs_more_than_it_could_pay(symptom, excess, expected):
    assert symptom(excess_of(excess)) == expected


@pytest.mark.parametrize(("stuck", "explains"), fires_above(THRESHOLDS.stuck))
def test_frozen_scales_explain_an_excess(stuck, explains):
    q = excess_of(10.0, layers=(LAYER, dataclasses.replace(LAYER, stuck=stuck)))
    assert is_cold(q)
    assert is_unpaid(q) != explains


@pytest.mark.parametrize(("temperature", "explains"), fires_below(THRESHOLDS.declared_cold))
def test_a_declared_temperature_explains_an_excess(temperature, explains):
    q = excess_of(10.0, declared_temperature=temperature)
    assert is_cold(q)
    assert is_unpaid(q) != explains


def test_a_collapse_explains_an_excess():
    q = dataclasses.replace(excess_of(10.0), function_signal=0.0, function_variance=1.0)
    assert is_collapsed(q)
    assert is_cold(q)
    assert not is_unpaid(q)


@pytest.mark.parametrize("gap", [THRESHOLDS.twin_gap, THRESHOLDS.pruned_gap])
@pytest.mark.parametrize("gain_error", [0.0, 0.25])
def test_behind_the_twin_by_the_gap_and_by_two_errors(gap, gain_error):
    fit = dataclasses.replace(LEARNED_NOTHING, gain_error=gain_error)
    for found, expected in fires_above(max(gap, THRESHOLDS.errors * gain_error)):
        twin = dataclasses.replace(LEARNED_NOTHING, gain=found)
        assert is_behind(Quantities(train=fit, twin=twin), gap) == expected


def test_behind_no_twin():
    assert not is_behind(Quantities(train=LEARNED_NOTHING), 0.0)


@pytest.mark.parametrize("accuracy_error", [0.0, 0.25])
def test_forgetting_drops_accuracy_by_the_limit_and_by_two_errors(accuracy_error):
    fit = dataclasses.replace(FORGETTING.train, accuracy_error=accuracy_error)
    for drop, expected in fires_above(max(THRESHOLDS.accuracy_drop, THRESHOLDS.errors * accuracy_error)):
        trends = dataclasses.replace(FORGETTING.trends, accuracy_drop=drop)
        assert forgot(dataclasses.replace(FORGETTING, train=fit, trends=trends)) == expected


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("elbo_p", fires_below(THRESHOLDS.significance)),
        ("elbo_change", fires_above(0.0)),
        ("kappa", fires_above(THRESHOLDS.kappa)),
        *((name, [(None, False)]) for name in ("accuracy_drop", "elbo_p", "elbo_change", "kappa")),
    ],
)
def test_forgetting_is_a_rise_of_the_elbo_that_the_kl_bought(name, cases):
    for value, expected in cases:
        trends = dataclasses.replace(FORGETTING.trends, **{name: value})
        assert forgot(dataclasses.replace(FORGETTING, trends=trends)) == expected


def test_pruned_layers_are_those_with_few_active_units():
    below, at, above = around(THRESHOLDS.active_units)
    shares = {"below": below, "at": at, "above": above, "unknown": None, "dead": 0.0}
    layers = tuple(LayerHealth(name, active_units=share) for name, share in shares.items())
    assert pruned_layers(Quantities(layers=layers)) == {"below": below, "dead": 0.0}


@pytest.mark.parametrize("final", [1.0, 0.5])
def test_a_warm_up_ends_within_the_tolerance_of_its_final_weight(final):
    for present, expected in fires_below((1.0 - THRESHOLDS.count_tolerance) * final):
        q = Quantities(temperature=final, present_temperature=present, layers=(LAYER,))
        assert is_warming_up(q) == expected


@pytest.mark.parametrize("missing", [{"temperature": None}, {"present_temperature": None}, {"layers": ()}])
def test_a_warm_up_is_not_guessed(missing):
    q = Quantities(temperature=1.0, present_temperature=0.5, layers=(LAYER,))
    assert is_warming_up(q)
    assert not is_warming_up(dataclasses.replace(q, **missing))


UNLEARNED = {"elbo_p": 0.9, "kappa": None, "nll_rise": 1.0, "nll_rise_errors": 9.0, "kl_fall": 2.0}


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("nll_rise", fires_above(THRESHOLDS.material_nll_fall * NULL)),
        ("nll_rise_errors", fires_above(THRESHOLDS.errors)),
        ("kl_fall", fires_above(1.0)),  # by more than the NLL rose
        *((name, [(None, False)]) for name in ("nll_rise", "nll_rise_errors", "kl_fall")),
    ],
)
def test_forgetting_is_also_a_rise_of_the_training_nll_that_bought_a_smaller_kl(name, cases):
    for value, expected in cases:
        trends = dataclasses.replace(FORGETTING.trends, **{**UNLEARNED, name: value})
        assert forgot(dataclasses.replace(FORGETTING, trends=trends)) == expected


@pytest.mark.parametrize(("errors", "least"), [((0.0, 0.0), 0.04), ((0.03, 0.04), 0.1)])
def test_less_accurate_by_the_gap_and_by_two_errors_of_both(errors, least):
    fit, twin = (dataclasses.replace(LEARNED_NOTHING, accuracy=0.0, accuracy_error=error) for error in errors)
    for accuracy, expected in fires_above(least):
        q = Quantities(train=fit, twin=dataclasses.replace(twin, accuracy=accuracy))
        assert is_less_accurate(q, 0.04) == expected
    assert not is_less_accurate(Quantities(train=fit), 0.0)


@pytest.mark.parametrize(("is_over", "expected"), [(True, True), (False, False), (None, False)])
def test_what_has_ended_is_done(is_over, expected):
    assert is_done(Quantities(epoch=1, planned_epochs=9, is_over=is_over)) == expected
