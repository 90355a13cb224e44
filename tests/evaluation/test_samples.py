"""Samples as forecasts: of counts whose draws are all equal, of several outputs, and of labels."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import bdl
from bdl.calibration import negative_log_likelihood, sample_crps
from bdl.evaluation.samples import SampleForecast

QUICK = {"num_resamples": 20}


def counts(seed=0, num_samples=12, n=300):
    """Rare counts, drawn from the distribution that the samples are drawn from."""
    random = np.random.default_rng(seed)
    rate = random.gamma(0.3, 1.0, size=n)
    return random.poisson(rate), random.poisson(rate, size=(num_samples, n))


def test_counts_whose_draws_are_all_equal_are_scored_by_their_draws():
    y, samples = counts()
    without_spread = int(np.sum(np.ptp(samples, axis=0) == 0))
    assert without_spread > 50
    model = bdl.evaluate(y, {"samples": samples}, **QUICK).models["model"]
    pairs = np.abs(samples[:, None] - samples[None]).sum(axis=(0, 1)) / (12 * 11)
    crps = np.mean(np.abs(samples - y).mean(axis=0) - 0.5 * pairs)
    assert_allclose(model.scores["crps"].value, crps)
    assert_allclose(model.scores["rmse"].value, np.sqrt(np.mean((y - samples.mean(axis=0)) ** 2)))
    assert_allclose(model.scores["sharpness"].value, np.sqrt(np.mean(samples.var(axis=0, ddof=1))))
    # The smallest draw of which at least 5 % are not above, and at least 95 %: of twelve the first and the last.
    inside = (samples.min(axis=0) <= y) & (y <= samples.max(axis=0))
    assert_allclose(model.scores["coverage_90%"].value, inside.mean())
    assert_allclose(model.scores["width_90%"].value, np.ptp(samples, axis=0).mean())
    assert set(model.left_out) == {"nll", "qce", "ence"}
    assert f"{without_spread} of 300" in model.left_out["ence"]


def test_what_cannot_be_had_is_left_out_with_a_word(tmp_path):
    y, samples = counts()
    evaluation = bdl.evaluate(y, {"draws": {"samples": samples}}, **QUICK)
    text = "Left out: NLL [nats], as samples have no density"
    assert text in str(evaluation)
    evaluation.save_html(tmp_path / "page.html")
    assert text in (tmp_path / "page.html").read_text()
    assert evaluation.to_dict()["models"]["draws"]["left_out"]["nll"] == "samples have no density"
    real = bdl.evaluate(y + 0.5, {"mean": samples.mean(axis=0), "scale": 1.0}, **QUICK)
    assert "Left out" not in str(real)


def test_intervals_of_counts_end_at_counts_and_their_ranks_are_flat():
    y, samples = counts(1, num_samples=30, n=20_000)
    forecast = SampleForecast(samples)
    for coverage in (0.5, 0.8, 0.9):
        ends = forecast.interval(coverage)
        levels = (0.5 - coverage / 2, 0.5 + coverage / 2)
        for end, level in zip(ends, levels, strict=True):
            assert np.array_equal(end, end.astype(int))
            assert ((samples <= end).mean(axis=0) >= level - 1e-12).all()
            assert ((samples < end).mean(axis=0) < level + 1e-12).all()
    shares = bdl.calibration.pit_histogram(*forecast.transform(y), num_bins=10)
    # A bin's share is a mean of numbers from 0 to 1 with mean 0.1: its standard error is at most that of a binomial.
    assert np.abs(shares - 0.1).max() < 4 * np.sqrt(0.1 * 0.9 / len(y))


def test_a_target_off_a_forecast_without_spread_is_the_most_surprising():
    samples = np.array([[0, 1, 0, 5], [0, 2, 0, 5], [0, 3, 0, 5]])
    model = bdl.evaluate([0, 9, 1, 5], {"samples": samples}, num_resamples=0).models["model"]
    assert [surprise.index for surprise in model.surprises] == [2, 1, 0, 3]
    assert model.surprises[0].confidence == 0


def test_the_smallest_example_of_counts(tmp_path):
    evaluation = bdl.evaluate([0, 1, 0], {"samples": [[0, 1, 0], [0, 2, 1]]})
    assert_allclose(evaluation["crps"], sample_crps([0, 1, 0], [[0, 1, 0], [0, 2, 1]], fair=True))
    evaluation.save_html(tmp_path / "page.html")
    assert "no spread" not in (tmp_path / "page.html").read_text().split("most surprising")[0]


def test_real_draws_that_are_equal_have_no_spread_left_by_rounding():
    samples = np.full((3, 2), 0.1)
    assert np.array_equal(SampleForecast(samples).std, [0, 0])
    assert bdl.evaluate([0.1, 0.1], {"samples": samples}, num_resamples=0)["rmse"] == 0


# Samples of several outputs


@pytest.mark.parametrize("form", ["normal", "samples"])
def test_transposed_outputs_are_refused(form):
    random = np.random.default_rng(0)
    y = random.normal(size=(100, 2)) * [1, 10]
    mean, samples = y + 0.1, y + 0.1 * random.normal(size=(5, 100, 2))
    right = {"mean": mean, "scale": 0.1} if form == "normal" else {"samples": samples}
    wrong = {"mean": mean.T, "scale": 0.1} if form == "normal" else {"samples": samples.transpose(0, 2, 1)}
    assert bdl.evaluate(y, right, **QUICK)["rmse"] < 0.2
    with pytest.raises(ValueError, match=r"the same targets, not shapes \(100, 2\) and \(2, 100\)\. Transpose one"):
        bdl.evaluate(y, wrong, **QUICK)
    with pytest.raises(ValueError, match=r"not shapes \(100, 2\) and \(200,\)\. Predict on exactly"):
        bdl.evaluate(y, {"mean": mean.ravel(), "scale": 0.1}, **QUICK)


def test_an_axis_of_size_one_is_no_difference():
    y = np.random.default_rng(0).normal(size=50)
    expected = bdl.evaluate(y, {"mean": y + 1, "scale": 1.0}, **QUICK)["nll"]
    assert bdl.evaluate(y[:, None], {"mean": y + 1, "scale": 1.0}, **QUICK)["nll"] == expected
    assert bdl.evaluate(y, {"mean": y[:, None] + 1, "scale": 1.0}, **QUICK)["nll"] == expected


# Samples of labels


@pytest.mark.parametrize("shape", ["as labels", "a column", "labels a column", "multilabel"])
def test_samples_of_a_sigmoid_are_probabilities_where_labels_are_0_and_1(shape):
    random = np.random.default_rng(0)
    size = (90, 3) if shape == "multilabel" else (90,)
    samples = random.beta(0.5, 0.5, size=(8, *size))
    y = (random.uniform(size=size) < samples.mean(axis=0)).astype(int)
    said = samples[..., None] if shape == "a column" else samples
    labels = y[:, None] if shape == "labels a column" else y
    evaluation = bdl.evaluate(labels, {"samples": said}, **QUICK)
    assert evaluation.kind == "classification"
    p = samples.mean(axis=0)
    assert_allclose(evaluation["nll"], -np.mean(np.log(np.where(y == 1, p, 1 - p))))
    aleatoric = stats.entropy(np.stack([samples, 1 - samples]), axis=0).mean()
    assert_allclose(evaluation["aleatoric"], aleatoric)
    assert_allclose(evaluation["aleatoric"] + evaluation["epistemic"], stats.entropy(np.stack([p, 1 - p])).mean())


def test_labels_that_do_not_count_do_not_make_it_a_regression():
    random = np.random.default_rng(1)
    samples, y = random.uniform(size=(4, 60)), random.integers(0, 2, 60)
    void = np.arange(60) % 5 == 0
    expected = negative_log_likelihood(y[~void], samples.mean(axis=0)[~void])
    y[void] = 255
    assert_allclose(bdl.evaluate(y, {"samples": samples}, ignore_class=255, **QUICK)["nll"], expected)
    assert_allclose(bdl.evaluate(y, {"samples": samples}, mask=~void, **QUICK)["nll"], expected)


def test_what_the_labels_do_not_tell_is_asked_or_stays_a_regression():
    random = np.random.default_rng(2)
    samples, y = random.uniform(size=(4, 60)), random.integers(0, 2, 60)
    expected = bdl.evaluate(y, {"samples": samples}, **QUICK)["nll"]
    assert bdl.evaluate(2 * y - 1, {"samples": samples}, **QUICK)["nll"] == expected
    masked = np.ma.array(np.append(y, -100), mask=np.arange(61) == 60)
    longer = np.concatenate([samples, samples[:, :1]], axis=1)
    assert_allclose(bdl.evaluate(masked, {"samples": longer}, **QUICK)["nll"], expected)
    assert bdl.evaluate(random.uniform(size=60), {"samples": samples}, **QUICK).kind == "regression"
    assert bdl.evaluate(y, {"samples": 3 * samples}, **QUICK).kind == "regression"
    draws = (random.uniform(size=(4, 60)) < 0.5).astype(int)  # of labels, and so of counts
    assert_allclose(bdl.evaluate(y, {"samples": draws}, **QUICK)["crps"], sample_crps(y, draws, fair=True))


# Infinite figures


def impossible_counts():
    """Poisson forecasts, one of which says that its count cannot be."""
    y = np.random.default_rng(0).poisson(1.0, size=30)
    y[0], rates = 1, np.ones((1, 30))
    rates[0, 0] = 0.0
    return y, bdl.prediction.RegressionPrediction(bdl.likelihoods.Poisson(), {"mu": rates})


def distant_targets():
    """A Normal 1e200 standard deviations off."""
    return [1e200, 0.0, 1.0], {"mean": [0.0, 0.0, 0.0], "scale": 1.0}


@pytest.mark.parametrize("forecasts", [impossible_counts, distant_targets])
def test_an_infinite_score_is_valid_json(tmp_path, forecasts):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    evaluation = bdl.evaluate(*forecasts(), num_resamples=50)
    assert evaluation["nll"] == np.inf
    assert evaluation.models["model"].scores["nll"].low == np.inf  # one impossible event has proved it
    evaluation.save_json(tmp_path / "scores.json")
    read = json.loads((tmp_path / "scores.json").read_text(), parse_constant=refuse)
    scores = read["models"]["model"]["scores"]
    assert float(scores["nll"]["value"]) == np.inf
    assert scores["sharpness"]["low"] is None
    json.dumps(evaluation.to_dict(), allow_nan=False)


def test_an_infinite_score_stands_on_the_page(tmp_path):
    bdl.evaluate(*impossible_counts(), num_resamples=50).save_html(tmp_path / "page.html")
    assert "inf (inf\u00a0to\u00a0inf)" in (tmp_path / "page.html").read_text()
