"""The bound on a mixture's divergence against quadrature, and the learning of its parts."""

from typing import Any

import keras
import numpy as np
import pytest
from gradients import gradients
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose

from bdl.priors import Normal, ScaleMixture

POINTS = np.linspace(-10, 10, 200_001)


def quadrature(mean: float, scale: float, weights: Any, scales: Any) -> float:
    """KL(N(mean, scale^2) || mixture) in float64, in nats."""
    w = mean + scale * POINTS
    density = np.exp(-0.5 * POINTS**2) / np.sqrt(2 * np.pi)
    parts = [np.log(p / s) - 0.5 * (w / s) ** 2 for p, s in zip(weights, scales, strict=True)]
    return float(-np.log(scale) - 0.5 - np.trapezoid(density * np.logaddexp.reduce(parts), POINTS))


def bound(prior: ScaleMixture, mean: float, scale: float, variables: Any = None) -> float:
    return float(array(prior.kl(np.full(1, mean, "float32"), np.full(1, scale, "float32"), variables=variables)))


@pytest.mark.core
@pytest.mark.parametrize("mean", [0.0, 0.0025, 0.1, 2.0])
@pytest.mark.parametrize("scale", [1e-4, 0.0025, 0.01, 0.1, 1.0])
def test_it_is_an_upper_bound_within_what_the_docstring_says(mean: float, scale: float):
    prior = ScaleMixture()
    excess = bound(prior, mean, scale) - quadrature(mean, scale, prior.weights, prior.scales)
    assert -1e-5 * (1 + (mean**2 + scale**2)) <= excess < 2.52


@pytest.mark.parametrize(("mean", "scale", "weight"), [(3.0, 0.01, 0.25), (0.0, 1e-4, 0.75)])
def test_it_is_exact_where_one_component_is_responsible(mean: float, scale: float, weight: float):
    prior = ScaleMixture((0.25, 0.75), (1.0, 1e-4))
    expected = quadrature(mean, scale, prior.weights, prior.scales)
    assert_allclose(bound(prior, mean, scale), expected, rtol=1e-4, atol=1e-3)
    of_it = Normal(scale=1.0 if weight == 0.25 else 1e-4).kl(np.full(1, mean, "float32"), np.full(1, scale, "float32"))
    assert_allclose(expected, float(array(of_it)) - np.log(weight), rtol=1e-4, atol=1e-3)


@pytest.mark.core
def test_one_component_is_a_normal():
    generator = np.random.default_rng(0)
    mean, scale = generator.normal(size=(4, 3)).astype("float32"), generator.uniform(0.1, 1, (4, 3)).astype("float32")
    for prior, sigma in ((ScaleMixture((1.0,), (0.3,)), 0.3), (ScaleMixture((1.0,), (1.0,), "fan_in"), 0.5)):
        expected = array(Normal(scale=sigma).kl(mean, scale))
        assert_allclose(array(prior.kl(mean, scale, (0,))), expected, rtol=1e-5)
        assert prior.parameters(mean, scale, (0,)) == pytest.approx((0.0, sigma))


def test_its_stand_in_has_its_variance():
    prior = ScaleMixture((0.2, 0.8), (3.0, 0.1))
    expected = np.sqrt(0.2 * 9 + 0.8 * 0.01)
    assert prior.parameters(np.zeros(2), np.ones(2), ()) == pytest.approx((0.0, expected))
    learned = ScaleMixture((0.2, 0.8), (3.0, 0.1), learned=True)
    variables = learned.create(keras.layers.Layer(), "kernel", keras.Variable(np.zeros(2, "float32")))
    assert float(array(learned.parameters(np.zeros(2), np.ones(2), (), variables)[1])) == pytest.approx(expected)


@pytest.mark.core
def test_gradients_are_finite_far_out_and_near_zero():
    values = [ops.convert_to_tensor(np.array(part, "float32")) for part in ([0, 100, 1e-8], [1e-12, 1e-3, 10])]
    for part in gradients(lambda parts: ScaleMixture().kl(*parts), values):
        assert np.all(np.isfinite(array(part)))


def test_a_learned_mixture_reaches_the_type_2_optimum():
    """Two groups of weights, far apart: each scale becomes its group's second moment, each weight its share."""
    generator = np.random.default_rng(1)
    mean = np.concatenate([generator.normal(0, 2.0, 300), generator.normal(0, 0.003, 700)]).astype("float32")
    scale = np.full(1000, 1e-3, "float32")
    prior = ScaleMixture((0.5, 0.5), (1.0, 0.01), learned=True)
    layer = keras.layers.Layer()
    variables = prior.create(layer, "kernel", keras.Variable(mean))
    assert {weight.path.rsplit("/", 1)[-1] for weight in layer.trainable_weights} == {
        "kernel_mixture_log_scales",
        "kernel_mixture_logits",
    }
    assert bound(prior, 0.3, 0.2, variables) == pytest.approx(bound(ScaleMixture((0.5, 0.5), (1.0, 0.01)), 0.3, 0.2))
    held = [variables["log_scales"], variables["logits"]]

    def divergence(values: list[Any]) -> Any:
        return prior.kl(mean, scale, variables=dict(zip(("log_scales", "logits"), values, strict=True))) / 1000.0

    optimizer = keras.optimizers.Adam(2e-3)
    optimizer.build(held)
    for _ in range(300):  # at a speed of 1 these steps could change a scale by a factor of e^0.6 only
        optimizer.apply(gradients(divergence, [ops.convert_to_tensor(array(part)) for part in held]), held)
    scales, logits = np.exp(10 * array(held[0])), 10 * array(held[1])
    moments = mean.astype("float64") ** 2 + 1e-6
    # EM in float64, from the same start.
    pi, sigma = np.array([0.5, 0.5]), np.array([1.0, 0.01])
    for _ in range(500):
        log_mass = np.log(pi / sigma) - moments[:, None] / (2 * sigma**2)
        share = np.exp(log_mass - np.logaddexp.reduce(log_mass, axis=1, keepdims=True))
        pi, sigma = share.mean(0), np.sqrt((share * moments[:, None]).sum(0) / share.sum(0))
    assert_allclose(scales, sigma, rtol=0.02)
    assert_allclose(np.exp(logits) / np.exp(logits).sum(), pi, atol=0.01)


def test_a_learned_mixture_needs_its_variables():
    with pytest.raises(ValueError, match="A learned mixture needs `variables`"):
        bound(ScaleMixture(learned=True), 0.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": (0.5, 0.6)}, "`weights` must sum to 1"),
        ({"weights": (1.0,)}, "`weights` must sum to 1, one for each of `scales`"),
        ({"weights": (1.5, -0.5)}, "`weights` must be for each component a finite positive"),
        ({"scales": (1.0, 0.0)}, "`scales` must be for each component a finite positive"),
        ({"scales": 1.0}, "`scales` must hold a number for each component"),
        ({"scales": ()}, "`scales` must hold a number for each component"),
        ({"relative_to": "fan_out"}, "`relative_to` must be None or 'fan_in'"),
        ({"learned": 1}, "`learned` must be True or False"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ScaleMixture(**settings)
