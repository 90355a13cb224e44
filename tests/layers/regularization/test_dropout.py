"""Dropout layers that stay on: their masks, Keras' contract, and the equivalence with an ELBO."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from layer_contract import array
from numpy.testing import assert_allclose, assert_array_equal

import bdl
from bdl.layers.regularization.dropout import (
    MCAlphaDropout,
    MCDropout,
    MCGaussianDropout,
    MCGaussianNoise,
    MCSpatialDropout1D,
    MCSpatialDropout2D,
    MCSpatialDropout3D,
    dropout_kl,
)

CASES = [
    (MCDropout, {"rate": 0.4}, (3, 8)),
    (MCDropout, {"rate": 0.4, "noise_shape": (None, 1, 8)}, (3, 4, 8)),
    (MCSpatialDropout1D, {"rate": 0.4}, (3, 4, 8)),
    (MCSpatialDropout2D, {"rate": 0.4}, (3, 4, 2, 8)),
    (MCSpatialDropout3D, {"rate": 0.4}, (3, 2, 2, 2, 8)),
    (MCGaussianDropout, {"rate": 0.4}, (3, 8)),
    (MCAlphaDropout, {"rate": 0.4}, (3, 8)),
    (MCGaussianNoise, {"stddev": 0.4}, (3, 8)),
]
every_case = pytest.mark.parametrize(
    ("kind", "arguments", "shape"), CASES, ids=lambda part: getattr(part, "__name__", "")
)


def ones(shape: tuple[int, ...]) -> Any:
    return np.ones(shape, "float32")


@pytest.mark.core
@every_case
def test_noise_is_on_at_prediction_and_off_within_mean_weights(kind: Any, arguments: dict[str, Any], shape: Any):
    layer = kind(**arguments, seed=1)
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    one, other = array(model(ones(shape), training=False)), array(model(ones(shape), training=False))
    assert one.shape == shape
    assert np.any(one != other)
    with bdl.mean_weights(model):
        assert_array_equal(array(model(ones(shape))), ones(shape))


@pytest.mark.core
@every_case
def test_saved_and_configured_layers_draw_the_same(kind: Any, arguments: dict[str, Any], shape: Any, tmp_path: Any):
    layer = kind(**arguments, seed=1, name="noise")
    again = kind.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert_array_equal(array(layer(ones(shape))), array(again(ones(shape))))
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    model(ones(shape))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_array_equal(array(loaded(ones(shape))), array(model(ones(shape))))


@pytest.mark.core
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@every_case
def test_mixed_precision(kind: Any, arguments: dict[str, Any], shape: Any, policy: str):
    found = kind(**arguments, dtype=policy)(ones(shape))
    assert keras.backend.standardize_dtype(found.dtype) == policy.removeprefix("mixed_")


@pytest.mark.core
def test_shared_axes_hold_a_mask_fixed():
    x = ones((5, 6, 32))
    over_time = array(MCDropout(0.5, shared_axes=(1,), seed=0)(x))
    assert_array_equal(over_time, over_time[:, :1].repeat(6, axis=1))
    assert np.any(over_time[0] != over_time[1])
    function = array(MCDropout(0.5, shared_axes=(0, 1), seed=0)(x))
    assert_array_equal(function, np.broadcast_to(function[:1, :1], x.shape))


@pytest.mark.core
def test_consistent_prediction_draws_one_function_for_all():
    model = keras.Sequential([keras.Input((4,)), MCDropout(0.5, seed=0), layers.Dense(2)])
    x = np.repeat(np.ones((1, 4), "float32"), 7, axis=0)
    prediction = bdl.predict_distribution(
        model, x, bdl.likelihoods.Categorical(), num_samples=4, batch_size=3, consistent=True, keep_outputs=True
    )
    assert_allclose(prediction.outputs, prediction.outputs[:, :1].repeat(7, axis=1), rtol=1e-5)


@pytest.mark.parametrize("rate", [1.0, -0.1, "half", True])
def test_bad_rates_are_refused(rate: Any):
    with pytest.raises(ValueError, match=r"`rate` must be a number in \[0, 1\)"):
        MCDropout(rate)


def test_bad_axes_and_deviations_are_refused():
    with pytest.raises(ValueError, match="`shared_axes`"):
        MCDropout(0.5, shared_axes=(3,))(ones((2, 3)))
    with pytest.raises(ValueError, match="`stddev`"):
        MCGaussianNoise(-1.0)


@pytest.mark.core
def test_the_dropout_objective_is_an_elbo():
    """Gal and Ghahramani: NLL plus an L2 term of weight l^2 / (2 N (1 - p)) is the ELBO with dropout's KL."""
    rate, length_scale, num_examples = 0.3, 0.7, 50
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(50, 6)).astype("float32"), generator.integers(0, 3, 50)

    class WithKL(layers.Dense):
        def kl_divergence(self) -> Any:
            return dropout_kl(self.kernel, rate, length_scale, 6)

    weight = length_scale**2 / (2 * num_examples * (1 - rate))
    networks = [
        keras.Sequential([keras.Input((6,)), MCDropout(rate, seed=3), dense])
        for dense in (layers.Dense(3, kernel_regularizer=keras.regularizers.L2(weight)), WithKL(3))
    ]
    networks[1].set_weights(networks[0].get_weights())
    networks[0].compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    objective = networks[0].evaluate(x, y, batch_size=50, verbose=0)
    model = bdl.VariationalModel(networks[1], bdl.likelihoods.Categorical(), num_examples=num_examples)
    model.compile()
    logs = model.evaluate(x, y, batch_size=50, verbose=0, return_dict=True)
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)  # a constant of the fixed rate
    assert_allclose(-logs["elbo"], objective - 6 * entropy / num_examples, rtol=1e-5)


@pytest.mark.core
def test_kl_is_finite_at_the_ends_of_the_rate():
    for rate in (0.0, 1e-8, 1 - 1e-6):
        assert np.isfinite(float(array(dropout_kl(ops.ones((3, 2)), rate, 1.0, 3))))
