"""Gradients of the importance weighted bound: those of quadrature and of the usual estimator, with less noise."""

import keras
import numpy as np
import pytest
from distribution_libraries import array, single
from gradients import gradients
from keras import ops
from scipy import special
from standard_errors import assert_mean
from stories import Normal

from bdl import random
from bdl.elbo import mixture_nll
from bdl.keras_internals import compiled
from bdl.svi import SVI, Amortized, Guide, Local, Observed
from bdl.svi.doubly import handing_on
from bdl.svi.estimators import Estimator
from bdl.svi.guides.gaussian import Gaussian
from bdl.svi.story import Site

Y = 1.5
NUM_ROWS = 4000
T = 0.7


class Given(Guide):
    """A Gaussian for each row, of tensors that a test differentiates in: each row is a draw of the gradient."""

    is_local = True
    gaussian = None

    def distribution(self, data=None, given=None):
        return self.gaussian


def gradients_by_row(mean, factor, num_samples, temperature, seed):
    """Gradients of each row's bound in mean and factor of its guide and in a slope of the story, `(rows, numbers)`."""
    size, is_diagonal = len(mean), np.ndim(factor) == 1
    guide = Given()
    guide.sizes = {"code": size}
    slopes = [None]

    def story(data):
        code = yield Local("code", Normal(ops.zeros((size,)), 1.0))
        yield Observed("y", Normal(slopes[0] * ops.sum(code, axis=-1), 0.5), data)

    sites = {"code": Site("code", "local", (size,), size)}
    estimator = Estimator(story, sites, [guide], {}, num_samples, "multi_sample")

    def total(values):
        guide.gaussian, slopes[0] = Gaussian(values[0], values[1], is_diagonal), values[2]
        terms = estimator.terms(ops.full((NUM_ROWS,), Y), random.draw_key(seed), temperature)
        return -ops.sum(mixture_nll(terms.nll + temperature * terms.local_kl["code"]))

    tiled = [single(np.broadcast_to(each, (NUM_ROWS, *np.shape(each)))) for each in (mean, factor, 1.0)]
    return [array(each).reshape(NUM_ROWS, -1) for each in compiled(lambda values: gradients(total, values))(tiled)]


def usual(monkeypatch):
    monkeypatch.setattr(Estimator, "_is_doubly_reparameterized", property(lambda self: False))


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(150)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def bound(mean, scale):
    """Of one row with one mirrored pair at temperature T, by quadrature over its noise."""
    each = []
    for noise in (NODES, -NODES):
        code = mean + scale * noise
        divergence = -0.5 * noise**2 - np.log(scale) + 0.5 * code**2
        each.append(-0.5 * ((Y - code) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi)) - T * divergence)
    return WEIGHTS @ (special.logsumexp(each, axis=0) - np.log(2))


@pytest.mark.core
@pytest.mark.parametrize("is_doubly", [True, False])
def test_the_gradient_is_that_of_quadrature_for_a_mirrored_pair(is_doubly, monkeypatch):
    if not is_doubly:
        usual(monkeypatch)
    mean, scale, step = 1.0, 0.6, 1e-4
    in_mean, in_scale, _ = gradients_by_row(np.array([mean]), np.array([scale]), 2, T, seed=0)
    assert_mean(in_mean[:, 0], (bound(mean + step, scale) - bound(mean - step, scale)) / (2 * step), k=4)
    assert_mean(in_scale[:, 0], (bound(mean, scale + step) - bound(mean, scale - step)) / (2 * step), k=4)


FACTOR = np.array([[0.8, 0.0], [-0.6, 0.45]])


@pytest.mark.core
@pytest.mark.parametrize(("num_samples", "factor", "temperature"), [(3, FACTOR, 1.0), (4, np.full(2, 0.5), 0.5)])
def test_gradients_are_those_of_the_usual_estimator(num_samples, factor, temperature, monkeypatch):
    settings = np.array([0.7, 0.6]), factor, num_samples, temperature
    doubly = gradients_by_row(*settings, seed=0)
    usual(monkeypatch)
    plain = gradients_by_row(*settings, seed=1)
    for ours, theirs in zip(doubly, plain, strict=True):
        error = np.sqrt((ours.var(0, ddof=1) + theirs.var(0, ddof=1)) / NUM_ROWS)
        # Above the diagonal a factor has nothing to say.
        kept = np.tril(np.ones((2, 2), bool)).ravel() if ours.shape[1] == 4 else np.ones(ours.shape[1], bool)
        assert np.all(np.abs(ours.mean(0) - theirs.mean(0))[kept] <= 4 * error[kept])
    np.testing.assert_allclose(doubly[2].var() / plain[2].var(), 1.0, atol=0.5)  # the story's own gradient is the usual


@pytest.mark.core
def test_gradients_near_the_best_guide_have_less_variance(monkeypatch):
    """Of a posterior of one code, shifted by .05 and 1.1 times too wide."""
    settings = np.array([1.25]), np.array([1.1 / np.sqrt(5.0)]), 4, 1.0
    doubly = gradients_by_row(*settings, seed=0)
    usual(monkeypatch)
    plain = gradients_by_row(*settings, seed=0)
    for ours, theirs in zip(doubly[:2], plain[:2], strict=True):
        assert ours.var() < theirs.var() / 20


@pytest.mark.core
def test_a_step_of_training_has_such_gradients_at_its_temperature_and_the_same_terms(monkeypatch):
    def story(data):
        code = yield Local("code", Normal(0.0, 1.0))
        yield Observed("y", Normal(code, 0.5), data["y"])

    guide = {"code": Amortized(keras.layers.Identity(), ["y"])}
    model = SVI(story, guide, num_examples=5, objective="multi_sample", num_samples=4, kl_weight=T, seed=0)
    data = {"y": np.full(5, Y, "float32")}
    model.trace_on(data)
    found, kept = [], Estimator._doubly_reparameterized

    def noted(self, draws, terms, temperature):
        found.append((float(array(temperature)), array(terms.nll)))
        return kept(self, draws, terms, temperature)

    monkeypatch.setattr(Estimator, "_doubly_reparameterized", noted)
    model(data)
    assert found == []
    [terms] = model(data, training=True)
    assert found[0][0] == pytest.approx(T)
    np.testing.assert_array_equal(array(terms["nll"]), found[0][1])


@pytest.mark.core
def test_networks_with_a_state_keep_the_usual_gradient():
    """Two evaluations of them may differ."""
    for layer, expected in ((keras.layers.Dropout(0.5, seed=0), False), (keras.layers.Dense(1), True)):
        estimator = Estimator(None, {}, (), {"decoder": layer}, 2, "multi_sample")
        assert estimator._is_doubly_reparameterized == expected


@pytest.mark.core
def test_a_draw_hands_its_gradient_on_to_itself_and_its_partner():
    own, partners = single([[2.0], [3.0], [5.0]]), single([[0.1], [0.2], [0.0]])
    weights = single([1.0, 10.0, 100.0])[:, None, None]

    def total(draws):
        return ops.sum(weights * handing_on(draws[0], own, partners))

    found = array(gradients(total, [ops.ones((3, 1, 1))])[0]).ravel()
    # The first gets 2 of its own 1 and, as the second's partner, .2 of the second's 10.
    np.testing.assert_allclose(found, [2 * 1 + 0.2 * 10, 3 * 10 + 0.1 * 1, 5 * 100], rtol=1e-6)
