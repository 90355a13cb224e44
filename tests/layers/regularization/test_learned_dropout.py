"""Learned dropout: divergences against closed forms and quadrature, gradients, and what the data say about the rate."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from gradients import weight_gradients
from keras import layers, ops
from layer_contract import array
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats
from standard_errors import assert_moments
from streams import train_on_stream

import bdl
from bdl.estimators.weights import whole_functions
from bdl.layers.regularization.learned_dropout import ConcreteDropout, VariationalGaussianDropout


@pytest.mark.core
def test_concrete_divergence_is_the_formula():
    layer = ConcreteDropout(layers.Dense(3), length_scale=0.5, initial_rate=0.2)
    layer.build((None, 4))
    kernel = array(layer.layer.kernel).astype("float64")
    entropy = -0.2 * np.log(0.2) - 0.8 * np.log(0.8)
    expected = 0.25 / (2 * 0.8) * np.sum(kernel**2) - 4 * entropy
    assert_allclose(float(array(layer.kl_divergence())), expected, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("rate", [1e-4, 0.5, 0.999])
def test_concrete_gradients_are_finite(rate: float):
    layer = ConcreteDropout(layers.Dense(3), initial_rate=rate, seed=0)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    layer.build(x.shape)
    found = weight_gradients(layer, x, lambda y: ops.sum(ops.square(y)))
    assert any(path.endswith("rate_rho") for path in found)
    assert all(np.all(np.isfinite(gradient)) for gradient in found.values())


@pytest.mark.core
def test_concrete_masks_have_mean_one_and_nearly_the_variance_of_dropout():
    layer = ConcreteDropout(layers.Dense(1, use_bias=False, kernel_initializer="ones"), initial_rate=0.3, seed=0)
    masks = array(layer(np.ones((200_000, 1), "float32"))).astype("float64")
    # The relaxation rounds the corners of the mask: its variance is a little below the Bernoulli's.
    assert abs(masks.mean() - 1) < 0.01
    assert 0.85 < masks.var() / (0.3 / 0.7) < 1.0


@pytest.mark.core
def test_concrete_dropout_of_channels_and_of_functions():
    layer = ConcreteDropout(layers.Conv1D(4, 1, use_bias=False, kernel_initializer="ones"), spatial=True, seed=0)
    x = np.ones((6, 5, 3), "float32")
    outputs = array(layer(x))
    assert_allclose(outputs, outputs[:, :1].repeat(5, axis=1), rtol=1e-6)
    with whole_functions():
        outputs = array(layer(x))
    assert_allclose(outputs, outputs[:1].repeat(6, axis=0), rtol=1e-6)


LAYERS = [
    lambda: ConcreteDropout(layers.Dense(3), initial_rate=0.3, seed=1, name="learned"),
    lambda: VariationalGaussianDropout(0.3, seed=1, name="learned"),
    lambda: VariationalGaussianDropout(0.3, per_feature=False, seed=1, name="learned"),
]


@pytest.mark.core
@pytest.mark.parametrize("make", LAYERS)
def test_saving_noise_off_and_mixed_precision(make: Any, tmp_path: Any):
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    model = keras.Sequential([keras.Input((5,)), make()])
    assert np.any(array(model(x)) != array(model(x)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_array_equal(array(loaded(x)), array(model(x)))
    assert_allclose(array(bdl.kl_divergence(loaded)), array(bdl.kl_divergence(model)), rtol=1e-6)
    layer = model.layers[0]
    expected = array(layer.layer(x)) if isinstance(layer, ConcreteDropout) else x
    with bdl.mean_weights(model):
        assert_allclose(array(model(x)), expected, rtol=1e-6)
    config = {**layer.get_config(), "dtype": "mixed_bfloat16"}
    config.get("layer", {}).get("config", {}).update(dtype="mixed_bfloat16")
    half = type(layer).from_config(config)
    assert keras.backend.standardize_dtype(half(x).dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(half.kl_divergence().dtype) == "float32"


@pytest.mark.core
def test_gaussian_noise_has_the_variance_alpha():
    layer = VariationalGaussianDropout(0.25, seed=0)
    draws = array(layer(np.full((100_000, 1), 2.0, "float32"))).astype("float64")
    assert_moments(draws, np.full(1, 2.0), np.full(1, 1.0))


def exact_divergence(alpha: float) -> float:
    """From the log-uniform prior, up to a constant: -log(alpha) / 2 + E log |1 + sqrt(alpha) e|, e standard normal."""

    def integrand(w: float) -> float:
        return stats.norm.pdf(w, 1.0, np.sqrt(alpha)) * np.log(abs(w))

    deviation = np.sqrt(alpha)
    pieces = [-8 * deviation + 1, 0.0, 1 + 8 * deviation]
    found = sum(integrate.quad(integrand, *ends, limit=400)[0] for ends in itertools.pairwise(pieces))
    return found - 0.5 * np.log(alpha)


@pytest.mark.core
def test_divergence_from_the_log_uniform_prior_agrees_with_quadrature():
    """The published fit is said to be good to 0.009; its constant is fixed by alpha to infinity."""
    at_infinity = exact_divergence(1e8)
    for alpha in (0.05, 0.1, 0.3, 1.0, 5.0, 30.0):
        layer = VariationalGaussianDropout(alpha, max_alpha=100.0, per_feature=False)
        layer.build((None, 4))
        found = float(array(layer.kl_divergence())) / 4
        assert abs(found - (exact_divergence(alpha) - at_infinity)) < 0.01


@pytest.mark.core
def test_alpha_is_capped():
    layer = VariationalGaussianDropout(0.5)
    layer.build((None, 2))
    layer.alpha_rho.assign(np.array([5.0, -0.1]))
    assert_allclose(array(layer.alpha), [1.0, np.exp(-1.0)], rtol=1e-5)


def test_more_data_less_dropout():
    """Rates that concrete dropout learns from 50 and from 2,000 examples of one noisy function."""
    rates = {}
    for number in (50, 2000):
        generator = np.random.default_rng(0)
        x = generator.uniform(-2, 2, size=(number, 4)).astype("float32")
        y = np.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.3 * generator.normal(size=(number, 1)).astype("float32")
        keras.utils.set_random_seed(0)
        network = keras.Sequential(
            [keras.Input((4,))]
            + [
                ConcreteDropout(layers.Dense(units, activation), seed=units)
                for units, activation in ((64, "relu"), (63, "relu"), (1, None))
            ]
        )
        model = bdl.VariationalModel(network, bdl.likelihoods.Normal(), num_examples=number, kl_weight=1.0)
        rows = (generator.permutation(number)[:100] for _ in itertools.count())
        train_on_stream(model, keras.optimizers.Adam(3e-3), ((x[each], y[each]) for each in rows), num_steps=2000)
        rates[number] = np.array([float(array(layer.rate)) for layer in network.layers])
    assert np.all(rates[2000] < rates[50])
    assert rates[2000].mean() < 0.5 * rates[50].mean()
    assert np.all((rates[50] > 0) & (rates[50] < 0.9))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConcreteDropout(layers.LSTM(3)), "`layer`"),
        (lambda: ConcreteDropout(layers.Dense(3), initial_rate=0.0), "`initial_rate`"),
        (lambda: ConcreteDropout(layers.Dense(3), initial_rate=1.0), "`initial_rate`"),
        (lambda: ConcreteDropout(layers.Dense(3), relaxation=0.0), "`relaxation`"),
        (lambda: ConcreteDropout(layers.Dense(3)).kl_divergence(), "no weights yet"),
        (lambda: VariationalGaussianDropout(2.0), "`initial_alpha` must be at most"),
        (lambda: VariationalGaussianDropout(-1.0), "`initial_alpha`"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
