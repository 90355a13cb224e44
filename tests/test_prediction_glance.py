"""A prediction shows its first events in a few lines, however many it holds."""

import re

import numpy as np
import pytest

from bdl.likelihoods import Bernoulli, Categorical, Mixture, Normal, Poisson, StudentT
from bdl.prediction import ClassificationPrediction, RegressionPrediction

RNG = np.random.default_rng(0)


def classes(*shape, likelihood=None):
    likelihood = Categorical() if likelihood is None else likelihood
    p = RNG.dirichlet(np.ones(4), size=shape) if likelihood.has_class_axis else RNG.uniform(size=shape)
    total = RNG.uniform(0.5, 1.0, size=shape)
    return ClassificationPrediction(likelihood, p, total, total / 2, num_samples=8)


def targets(*shape, likelihood=None):
    parameters = {"loc": RNG.normal(size=(8, *shape)), "scale": RNG.uniform(0.5, 1.0, size=(8, *shape))}
    return RegressionPrediction(Normal() if likelihood is None else likelihood, parameters)


def rows(prediction):
    """Cells of the rows that it prints, by the events' names."""
    parted = [re.split("  +", line) for line in repr(prediction).splitlines() if line.startswith("event ")]
    return {name: cells for name, *cells in parted}


def test_classes_are_shown_with_their_uncertainty():
    prediction = classes(40, likelihood=Categorical())
    first, *_, last = repr(prediction).splitlines()
    assert first == "ClassificationPrediction: 40 events of Categorical with 4 classes, 8 samples"
    assert last == "and 35 more events"
    assert list(rows(prediction)) == [f"event {i}" for i in range(5)]
    for i, cells in enumerate(rows(prediction).values()):
        parts = (prediction.total_uncertainty, prediction.aleatoric, prediction.epistemic)
        expected = [prediction.probabilities[i].max(), *(part[i] for part in parts)]
        assert cells == [str(prediction.probabilities[i].argmax()), *(f"{value:.4g}" for value in expected)]


def test_a_label_is_0_or_1_and_its_probability_is_that_of_what_is_said():
    prediction = classes(3, likelihood=Bernoulli())
    for i, cells in enumerate(rows(prediction).values()):
        p = prediction.probabilities[i]
        assert cells[:2] == [str(int(p > 0.5)), f"{max(p, 1 - p):.4g}"]


@pytest.mark.parametrize("likelihood", [Normal(), StudentT(5.0)])
def test_targets_are_shown_with_mean_and_standard_deviations(likelihood):
    prediction = targets(7, likelihood=likelihood)
    for i, cells in enumerate(rows(prediction).values()):
        parts = (prediction.std, np.sqrt(prediction.aleatoric), np.sqrt(prediction.epistemic))
        assert cells == [f"{value[i]:.4g}" for value in (prediction.mean, *parts)]


def test_counts_are_shown_too():
    prediction = RegressionPrediction(Poisson(), {"mu": np.full((8, 2), 4.0)})
    assert rows(prediction) == {f"event {i}": ["4", "2", "2", "0"] for i in range(2)}


@pytest.mark.parametrize("make", [classes, targets])
@pytest.mark.parametrize(
    ("shape", "first"), [((40,), "event 0"), ((2, 3), "event (0, 0)"), ((1,), "event 0"), ((0,), None)]
)
def test_a_few_lines_and_a_table_for_any_shape(make, shape, first):
    prediction = make(*shape)
    assert 2 <= len(repr(prediction).splitlines()) <= 8
    assert max(map(len, repr(prediction).splitlines())) <= 100
    assert next(iter(rows(prediction)), None) == first
    html = prediction._repr_html_()
    assert html.count("<tr>") == 1 + len(rows(prediction))
    for name, cells in rows(prediction).items():
        shown = re.search(rf'<th scope="row">{re.escape(name)}</th>(.*?)</tr>', html)
        assert shown
        assert [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?>(.*?)</td>", shown[1])] == cells


def test_mixtures_are_shown():
    likelihood = Mixture(Normal(scale=1.0))
    parameters = {
        "loc": RNG.normal(size=(8, 6, 9, 1)),
        "scale": np.ones((8, 6, 9, 1)),
        "log_weight": np.full((8, 6, 9, 1), -np.log(9)),
    }
    prediction = RegressionPrediction(likelihood, parameters)
    assert [cells[0] for cells in rows(prediction).values()] == [f"{m:.4g}" for m in prediction.mean.ravel()[:5]]


def test_only_what_is_shown_is_computed(monkeypatch):
    """A prediction of a million targets is printed at once."""
    sizes = []
    distribution = Normal.distribution

    def counted(self, parameters):
        sizes.append(parameters["loc"].size)
        return distribution(self, parameters)

    monkeypatch.setattr(Normal, "distribution", counted)
    prediction = targets(10_000, 2)
    assert len(rows(prediction)) == 5
    assert max(sizes) <= 8 * 6
