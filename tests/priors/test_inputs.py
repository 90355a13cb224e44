"""InputNormal: broad where an input is empty in training, narrow where it varies as others do."""

import keras
import numpy as np
import pytest
from layer_contract import array
from numpy.testing import assert_allclose

import bdl
from bdl.layers import InputFactors
from bdl.layers.input_factors import DEFAULT_INPUT_PRIOR
from bdl.priors import InputNormal, Normal

pytestmark = pytest.mark.core


def observed(x: np.ndarray, *sizes: int, prior: InputNormal = DEFAULT_INPUT_PRIOR, **arguments):
    """Scales of the prior after inputs in batches of these sizes, and the layer."""
    layer = InputFactors(prior=prior, seed=0, **arguments)
    for batch in np.split(x, np.cumsum(sizes)[:-1]) if sizes else [x]:
        layer(batch, training=True)
    return prior_scales(layer), layer


def prior_scales(layer: InputFactors) -> np.ndarray:
    (weight,) = layer.sampled_weights.values()
    _, scale = weight.prior.parameters(weight.mean, weight.mean, (), weight.prior_variables)
    return np.broadcast_to(array(scale), weight.mean.shape)


def inputs(n: int = 60) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(n, 5)) * [0.0, 0.2, 1.0, 2.0, 3.0]).astype("float32")


def test_scales_follow_the_rule():
    x = inputs()
    variance = x.var(axis=0)
    expected = np.minimum(0.2 * variance.mean() / np.maximum(variance, 1e-12), 5.0)
    scales, _ = observed(x, prior=InputNormal(typical=0.2, widest=5.0))
    assert_allclose(scales, expected, rtol=1e-4)
    assert scales[0] == 5.0
    assert scales[-1] < 0.2


def test_batches_add_up_whatever_their_sizes():
    x = inputs() + 10.0
    whole, layer = observed(x)
    parts, other = observed(x, 1, 32, 27)
    assert_allclose(parts, whole, rtol=1e-3)
    assert_allclose(array(other.centre), x.mean(axis=0), rtol=1e-5)
    assert_allclose(array(layer.centre), x.mean(axis=0), rtol=1e-5)


def test_neither_unit_nor_zero_point_matter():
    x = inputs()
    scales, _ = observed(x)
    assert_allclose(observed(100.0 * x - 30.0)[0], scales, rtol=1e-3)


def test_entries_of_equal_variance_are_typical():
    x = np.random.default_rng(1).normal(size=(50, 4))
    scales, _ = observed(((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32"))
    assert_allclose(scales, 0.1, rtol=1e-4)


@pytest.mark.parametrize("x", [np.zeros((3, 4)), np.full((3, 4), 7.0)])
def test_constant_inputs_count_as_empty_and_pass_unchanged(x):
    scales, layer = observed(x.astype("float32"))
    assert_allclose(scales, 3.0)
    assert_allclose(array(layer(x.astype("float32"))), x, rtol=1e-6)
    assert np.isfinite(array(layer.kl_divergence()))


def test_only_training_is_observed_and_not_where_the_layer_is_frozen():
    x = inputs()
    scales, layer = observed(x)
    layer(np.ones((7, 5), "float32"))
    layer(np.ones((7, 5), "float32"), training=False)
    layer.trainable = False
    layer(np.ones((7, 5), "float32"), training=True)
    assert_allclose(prior_scales(layer), scales)
    assert_allclose(InputNormal().parameters(np.ones(3), np.ones(3), ()), (1.0, 3.0))


def test_noise_is_on_the_difference_to_the_mean():
    """Of the posterior's scale at the start, .1, where inputs are two above their mean."""
    _, layer = observed(np.array([[1.0], [3.0]], "float32"))
    y = array(layer(np.full((20_000, 1), 4.0, "float32")))
    assert_allclose(y.mean(), 4.0, atol=4.5 * 0.2 / np.sqrt(20_000))
    assert_allclose(y.std(), 0.2, rtol=4.5 / np.sqrt(2 * 20_000))


def test_fit_observes_each_training_example_as_often_as_any_other(tmp_path):
    x = inputs()
    network = keras.Sequential([keras.Input((5,)), InputFactors(seed=0), keras.layers.Dense(2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical())
    model.compile("adam")
    model.fit(x, np.zeros(60, int), epochs=2, batch_size=16, verbose=0)
    scales = prior_scales(network.layers[0])
    assert_allclose(scales, observed(x)[0], rtol=1e-3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_allclose(prior_scales(loaded.network.layers[0]), scales)
    assert_allclose(loaded.predict(x, num_samples=3), model.predict(x, num_samples=3), rtol=1e-5)


def test_statistics_are_exact_in_half_precision():
    x = np.repeat([[0.0, 1.0], [0.0, 3.0]], 500, axis=0).astype("float32")
    scales, layer = observed(x, *[100] * 10, dtype="mixed_float16")
    assert_allclose(array(layer.centre), [0.0, 2.0])
    assert_allclose(scales, [3.0, 0.05], rtol=1e-6)
    assert "float16" in keras.backend.standardize_dtype(layer(x).dtype)


def test_the_plain_model_has_the_layers_mean():
    network = keras.Sequential([keras.Input((5,)), InputFactors(seed=0), keras.layers.Dense(2)])
    x = inputs() + 4.0
    network.layers[0](x, training=True)
    network.layers[0].layer.kernel.assign(np.linspace(0.5, 1.5, 5))
    plain = bdl.convert.to_deterministic(network)
    with bdl.mean_weights(network):
        assert_allclose(array(plain(x)), array(network(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("typical", 0.0), ("widest", -1.0), ("widest", float("inf"))])
def test_widths_are_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        InputNormal(**{name: value})


@pytest.mark.parametrize("make", [bdl.layers.DenseReparameterization, bdl.layers.DenseRank1])
def test_a_layer_that_gathers_no_statistics_is_refused(make):
    argument = "input_factor_prior" if make is bdl.layers.DenseRank1 else "kernel_prior"
    layer = make(2, **{argument: InputNormal()})
    with pytest.raises(ValueError, match=r"`prior` of layer .* must be one that needs no statistics"):
        layer.build((None, 3))


def test_a_prior_of_one_scale_keeps_no_statistics():
    """So that its models have the weights that they ever had."""
    layer = InputFactors(prior=Normal(1.0, 3.0))
    layer(inputs(), training=True)
    assert len(layer.weights) == 3  # factors, their scales, strength of the noise
    assert_allclose(array(layer.centre), 0.0)
