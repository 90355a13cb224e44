"""Each rule on hand-made quantities: it fires on its own case and not on its neighbours'."""

import dataclasses

import numpy as np
import pytest

from bdl.diagnostics import (
    REMEDIES,
    VERDICTS,
    Fit,
    LayerHealth,
    LocalLatents,
    Quantities,
    Trends,
    diagnose,
    judge,
    measure_trends,
)
from bdl.diagnostics.record import append

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
    ("no_signal", but(validation=NULL, train=NULL, twin=NULL, kl=1.0, function_signal=0.01)),
    ("no_signal", but(validation=NULL, train=GOOD, twin=NULL)),  # it learned the training data by heart
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
    empty = {"layers": (), "unread": (), "dropout_rates": (), "num_members": 1, "finite": True, "epoch": 0}
    for _, quantities in CASES:
        assert judge(dataclasses.replace(quantities, **{dropped: empty.get(dropped)})).verdict in VERDICTS


PRUNED = layer(active_units=0.2)


def test_pruned_units_are_named_before_underfitting():
    assert judge(but(validation=POOR, train=POOR)).verdict == "underfitting"
    assert judge(but(validation=POOR, train=POOR, layers=PRUNED)).verdict == "over_pruned"


def test_forgetting_is_named_before_pruned_units():
    assert judge(but(validation=POOR, train=POOR, layers=PRUNED, trends=FORGETTING)).verdict == "underfitting"


def test_scales_that_never_moved_are_named_before_what_follows_from_them():
    """The network pays for a posterior that is too wide by giving up its means, and units with them."""
    stuck = layer(stuck=1.0, active_units=0.2)
    assert judge(but(validation=POOR, train=POOR, layers=stuck, trends=FORGETTING)).verdict == "scales_not_learned"
    nothing = but(validation=NULL, train=NULL, kl=1.0, function_signal=0.01, layers=stuck)
    assert judge(nothing).verdict == "collapsed"  # it started at the prior, and is there


@pytest.mark.parametrize(("gain", "verdict"), [(0.85, "underfitting"), (0.93, "healthy")])
def test_forgetting_counts_with_a_twin_that_is_ahead_by_little(gain, verdict):
    worse = dataclasses.replace(GOOD, gain=gain, gain_error=0.03)
    assert judge(but(validation=worse, trends=FORGETTING)).verdict == verdict


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


@pytest.mark.parametrize(("above_best", "verdict"), [(0.8, "overfitting"), (0.1, "healthy"), (-0.2, "healthy")])
def test_what_is_measured_at_the_end_must_bear_the_record_out(above_best, verdict):
    best = GOOD.nll_gibbs - above_best
    rising = dataclasses.replace(FLAT, val_nll_rise=0.8, val_nll_rise_errors=9.0, val_nll_best=best, nll_change=-0.1)
    assert judge(but(trends=rising)).verdict == verdict


@pytest.mark.parametrize(
    ("gain", "errors", "verdict"), [(0.85, 9.0, "overfitting"), (0.85, 1.0, "healthy"), (0.95, 9.0, "healthy")]
)
def test_a_small_rise_is_overfitting_where_the_twin_at_its_best_epoch_is_ahead(gain, errors, verdict):
    rising = dataclasses.replace(FLAT, val_nll_rise=0.2, val_nll_rise_errors=errors, nll_change=-0.1)
    fit = dataclasses.replace(GOOD, gain=gain)
    assert judge(but(trends=rising, validation=fit)).verdict == verdict


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


def gain(value, error, **changes):
    fit = dataclasses.replace(NULL, gain=value, gain_error=error, accuracy=0.2)
    return but(validation=fit, train=fit, twin=None, **changes)


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.03, 0.005, "collapsed"),
        (0.045, 0.005, "inconclusive"),
        (0.055, 0.005, "inconclusive"),
        (0.07, 0.005, "variance_saturated"),
    ],
)
def test_a_gain_within_its_error_of_the_line_decides_nothing(value, error, verdict):
    q = gain(value, error, kl=1.0, function_signal=0.01, function_variance=0.95)
    finding = judge(q)
    assert finding.verdict == verdict
    if verdict == "inconclusive":
        assert "collapsed below it and variance_saturated above" in finding.evidence[0]


def test_a_twin_that_gains_as_little_decides_in_its_place():
    """Counts of the zoo: G = .18 ± .075, the twin's .17: functions that vary as the prior's do so on either side."""
    fit = dataclasses.replace(POOR, gain=0.18, gain_error=0.075)
    q = but(validation=fit, train=fit, twin=dataclasses.replace(fit, gain=0.17), function_variance=0.95)
    assert judge(q).verdict == "variance_saturated"


def test_a_gain_that_does_not_matter_leaves_the_verdict():
    assert judge(gain(0.05, 0.02, temperature=1000.0)).verdict == "mis_scaled_kl"


# A real run of 25 epochs on digits: accuracy .853 at epoch 3, .183 at the end.
ACCURACY = [438, 808, 853, 816, 797, 746, 700, 627, 559, 476, 368, 345, 302, 263, 218, 213, 218, 222, 197, 190, 172]
ACCURACY += [171, 162, 178, 183]
NLL = [2138, 1878, 1801, 1796, 1818, 1854, 1888, 1919, 1958, 1989, 2037, 2052, 2093, 2119, 2165, 2164, 2171, 2160]
NLL += [2194, 2216, 2207, 2223, 2230, 2204, 2207]
KL = [72050, 62203, 53531, 45695, 38437, 31633, 25261, 19396, 14159, 9697, 6148, 3576, 1922, 1007, 576, 397, 326, 298]
KL += [284, 277, 270, 259, 252, 249, 246]
AT_THE_END = Fit(256, 2.302, nll_gibbs=2.219, nll_bma=2.186, gain=0.0503, gain_error=0.0057, accuracy=0.16)
FORGOTTEN = Quantities(
    epoch=25,
    planned_epochs=25,
    num_examples=1200,
    temperature=1.0,
    declared_temperature=1.0,
    kl=245.0,
    validation=AT_THE_END,
    function_signal=0.044,
    layers=LAYERS,
    has_noise=True,
)


def forgetting_epochs():
    rows = zip(ACCURACY, NLL, KL, strict=True)
    return [
        {"epoch": i, "accuracy": a / 1000, "nll": nll / 1000, "kl": kl, "elbo": -(nll / 1000 + kl / 1200)}
        for i, (a, nll, kl) in enumerate(rows, 1)
    ]


def test_forgetting_is_seen_when_the_elbo_stands_still_again():
    epochs = forgetting_epochs()
    trends = measure_trends(epochs, 1200)
    assert trends.elbo_p > 0.05
    finding = judge(dataclasses.replace(FORGOTTEN, trends=trends))
    assert finding.verdict == "underfitting"
    assert "the training NLL rose by" in finding.evidence[0]


def test_live_after_the_fact_and_from_the_model_agree_or_say_why(tmp_path):
    epochs = forgetting_epochs()
    path = tmp_path / "run.jsonl"
    append(path, {"event": "start", "format": 1, "run": "a", "num_examples": 1200, "planned_epochs": 25})
    for entry in epochs:
        append(path, {"event": "epoch", "run": "a", "epoch": entry["epoch"], "logs": entry})
    probe = {"event": "probe", "run": "a", "epoch": 25, "quantities": FORGOTTEN.to_dict(), "verdict": "healthy"}
    append(path, probe)
    assert diagnose(record=path).verdict == "underfitting"
    alone = judge(dataclasses.replace(FORGOTTEN, function_variance=0.97))  # of the model, without its record
    assert alone.verdict == "inconclusive"
    assert "collapsed below it and variance_saturated above" in alone.evidence[0]
    assert "record=" in alone.evidence[0]


@pytest.mark.parametrize(
    ("gain", "error", "found"),
    [
        (0.0, 0.01, ("no_signal", "probable")),
        (0.0, 0.1, ("no_signal", "possible")),
        (0.1, 0.1, ("collapsed", "probable")),
        (0.1, 0.01, ("collapsed", "certain")),
    ],
)
def test_signal_or_collapse_is_as_sure_as_the_twin(gain, error, found):
    twin = dataclasses.replace(NULL, gain=gain, gain_error=error)
    finding = judge(but(validation=NULL, train=NULL, kl=1.0, function_signal=0.01, twin=twin))
    assert (finding.verdict, finding.confidence) == found


def test_a_network_that_overfits_has_not_forgotten():
    epochs = forgetting_epochs()
    for entry, nll in zip(epochs, np.linspace(2.0, 0.1, 25), strict=True):
        entry["nll"] = nll
    assert judge(dataclasses.replace(FORGOTTEN, trends=measure_trends(epochs, 1200))).verdict != "underfitting"


def test_a_collapse_without_a_twin_is_not_certain():
    alone = judge(but(validation=NULL, train=NULL, kl=1.0, function_signal=0.01, twin=None))
    assert (alone.verdict, alone.confidence) == ("collapsed", "probable")
    assert "Data without a signal end like this" in alone.evidence[-1]


SHORTER = dataclasses.replace(GOOD, accuracy=0.86, gain=0.9)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"validation": SHORTER}, "underfitting"),  # .11 behind, with a gain that is as good
        ({"validation": SHORTER, "trends": None}, "underfitting"),
        ({"validation": dataclasses.replace(SHORTER, accuracy_error=0.06)}, "healthy"),
        ({"validation": dataclasses.replace(SHORTER, accuracy=0.9)}, "healthy"),
        ({"validation": SHORTER, "twin": dataclasses.replace(GOOD, accuracy_error=0.06)}, "healthy"),
        ({"validation": SHORTER, "twin": None}, "healthy"),
        ({"validation": SHORTER, "layers": layer(stuck=0.9)}, "scales_not_learned"),  # which says more
    ],
)
def test_accuracy_alone_is_evidence_beyond_its_error(changes, verdict):
    assert judge(but(**changes)).verdict == verdict


STILL_FALLING = dataclasses.replace(RISING, val_nll_change=-0.3, val_nll_p=1e-6)


@pytest.mark.parametrize(
    ("trends", "verdict", "confidence"),
    [
        (STILL_FALLING, "still_training", "probable"),
        (dataclasses.replace(STILL_FALLING, val_nll_change=-0.01), "healthy", "probable"),
        (dataclasses.replace(STILL_FALLING, val_nll_p=0.6), "healthy", "probable"),
        (RISING, "still_training", "possible"),  # no validation curve: nothing says whether it is of use
    ],
)
def test_without_a_twin_the_validation_nll_says_whether_a_fall_is_news(trends, verdict, confidence):
    finding = judge(but(trends=trends, twin=None))
    assert (finding.verdict, finding.confidence) == (verdict, confidence)


@pytest.mark.parametrize(
    ("error", "val_change", "verdict"),
    [
        (0.01, None, "still_training"),
        (0.06, None, "healthy"),  # the twin is within two errors
        (0.06, -0.3, "still_training"),  # but the validation NLL falls, too
        (0.01, -0.01, "healthy"),  # it stands: more training is no help
        (0.01, 0.3, "healthy"),
    ],
)
def test_with_a_twin_a_fall_is_news_where_there_is_more_to_reach(error, val_change, verdict):
    fit = dataclasses.replace(GOOD, gain=GOOD.gain - 0.1, gain_error=error)
    trends = RISING if val_change is None else dataclasses.replace(RISING, val_nll_change=val_change, val_nll_p=1e-6)
    assert judge(but(validation=fit, trends=trends)).verdict == verdict


def test_where_the_kl_cannot_be_read_the_nll_alone_says_that_training_goes_on():
    trends = dataclasses.replace(STILL_FALLING, elbo_change=None, elbo_p=None)
    unread = {"kl": None, "temperature": None, "layers": (), "trends": trends, "unread": ("no KL.",)}
    finding = judge(but(**unread, twin=None))
    assert finding.verdict == "still_training"
    assert "ELBO" not in finding.evidence[0]
    assert judge(but(**unread)).verdict == "healthy"  # it has reached its twin


def test_a_few_epochs_that_still_fall_are_not_healthy():
    trends = measure_trends([{"nll": nll} for nll in (1.9, 1.5, 1.25)], 1000)
    finding = judge(but(trends=trends, twin=None))
    assert (finding.verdict, finding.confidence) == ("still_training", "possible")
    assert "Only 3 epochs" in finding.evidence[0]
    assert judge(but(trends=measure_trends([{"nll": 0.2}, {"nll": 0.19}], 1000), twin=None)).verdict == "healthy"


def test_what_was_hardly_trained_is_not_near_deterministic():
    """One epoch at a rate of 1e-4: R is above what an optimum pays, for there has been none."""
    finding = judge(but(kl=9000.0, trends=None, twin=None))
    assert (finding.verdict, finding.confidence) == ("still_training", "possible")
    assert judge(but(kl=9000.0)).verdict == "near_deterministic"  # at rest, a trend says


def test_a_collapse_on_its_way_is_no_training_that_goes_on():
    """Functions vary as the prior's; what is left of R goes, and nothing is learned by that."""
    q = but(validation=NULL, train=NULL, kl=9000.0, function_signal=0.01, function_variance=1.0, twin=GOOD)
    rising = dataclasses.replace(RISING, nll_change=0.0, nll_p=0.9)
    assert judge(dataclasses.replace(q, trends=rising)).verdict == "collapsed"


def test_a_network_that_learned_and_forgot_is_not_still_training():
    """N(0, 1) on 2,048 units, in numbers: after 100 epochs KL / N is at 1,500 and falling, and the accuracy is lost."""
    lost = dataclasses.replace(NULL, gain=-9.0, nll_gibbs=29.0, nll_bma=23.0, accuracy=0.46)
    trends = dataclasses.replace(FORGETTING, elbo_change=4166.0, nll_change=26.0, accuracy_drop=0.48, kappa=1.006)
    finding = judge(but(validation=lost, train=lost, kl=1.5e6, trends=trends, twin=None, nll_prior=5000.0))
    assert finding.verdict == "underfitting"


@pytest.mark.parametrize(
    ("present", "is_over", "verdict"),
    [(0.26, True, "near_deterministic"), (0.26, False, "healthy"), (0.9, True, "healthy"), (1.0, True, "healthy")],
)
def test_a_training_that_stopped_in_its_warm_up(present, is_over, verdict):
    finding = judge(but(present_temperature=present, is_over=is_over, epoch=25))
    assert finding.verdict == verdict
    assert any("0.26" in sentence for sentence in finding.evidence) == (present == 0.26)


def test_what_fit_measured_counts():
    finding = judge(but(num_examples=1797, temperature=1797.0, told_examples=1))
    assert (finding.verdict, finding.confidence) == ("mis_scaled_kl", "certain")
    assert "num_examples=1, and fit was given 1797" in finding.evidence[1]


def test_what_could_not_be_read_is_said_and_makes_health_no_more_than_possible():
    finding = judge(but(unread=("The KL of 'a' cannot be read.",), temperature=None, declared_temperature=None))
    assert (finding.verdict, finding.confidence) == ("healthy", "possible")
    assert "The KL of 'a' cannot be read." in finding.evidence


@pytest.mark.parametrize(("has_data", "said"), [(True, "Data were given"), (None, "No data were given")])
def test_why_nothing_was_measured(has_data, said):
    assert said in judge(Quantities(epoch=3, kl=1.0, has_data=has_data)).evidence[0]
