"""Stories of TensorFlow Probability's distributions: counts, precision, under XLA and with open shapes."""

import keras
import numpy as np
import pytest
from stories import level_posterior

from bdl.svi import SVI, Amortized, Global, Local, Observed

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow Probability is for TensorFlow"),
]
RNG = np.random.default_rng(0)


def tfd():
    import tensorflow_probability

    return tensorflow_probability.distributions


def level(data):
    mean = yield Global("mean", tfd().Normal(np.float64(0.5), np.float64(3.0)))
    yield Observed("y", tfd().Normal(mean, np.float64(1.0)), data["y"])


def methylation(data):
    mean = yield Global("mean", tfd().Normal(0.0, 3.0))
    spread = yield Global("spread", tfd().LogNormal(0.0, 1.0))
    logit = yield Local("logit", tfd().Normal(mean, spread))
    yield Observed("methylated", tfd().Binomial(data["coverage"], logits=logit[:, None]), data["methylated"])


def test_double_precision_is_kept_throughout():
    y = RNG.normal(size=20)
    model = SVI(level, "full_rank", start="laplace", num_samples=2, dtype="float64", seed=0)
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit({"y": y}, batch_size="all", steps=20, verbose=0)
    assert {weight.dtype for weight in model.guide_of("mean").weights} == {"float64"}
    assert model.posterior(num_samples=2)["mean"].dtype == np.float64
    mean, sd, evidence = level_posterior(y)
    model.guide_of("mean").start_at(np.array([mean]), np.array([[sd]]))
    np.testing.assert_allclose(model.log_weights({"y": y}, num_samples=10), evidence, rtol=1e-12)


def test_counts_of_rows_are_fitted_validated_predicted_and_saved(tmp_path):
    logits = RNG.normal(1.0, 1.5, size=(600, 1))
    coverage = RNG.integers(1, 30, size=(600, 2)).astype("float32")
    methylated = RNG.binomial(coverage.astype(int), 1 / (1 + np.exp(-logits))).astype("float32")
    data = {"coverage": coverage, "methylated": methylated}
    network = keras.Sequential([keras.layers.Rescaling(1 / 30), keras.layers.Dense(16, activation="tanh")])
    model = SVI(methylation, {"logit": Amortized(network, ["coverage", "methylated"])}, seed=0)
    model.compile(keras.optimizers.Adam(0.03))
    logs = model.fit(data, batch_size=100, epochs=15, validation_data=data, verbose=0).history
    assert logs["val_elbo"][-1] > logs["val_elbo"][0] + 1.0
    draws = model.posterior(num_samples=200, seed=0)
    assert abs(draws["mean"].mean() - 1.0) < 0.3
    assert abs(draws["spread"].mean() - 1.5) < 0.4
    rows = {name: each[:7] for name, each in data.items()}
    assert model.predict(rows, num_samples=3)["methylated"].shape == (3, 7, 2)
    assert model.posterior(rows, 3)["logit"].shape == (3, 7)
    with pytest.raises(ValueError, match="`inputs` must be keys of the data, \\['coverage'\\], not \\['methylated'\\]"):
        model.predict({"coverage": coverage[:7]}, num_samples=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"methylation": methylation})
    np.testing.assert_array_equal(
        loaded.posterior(num_samples=3, seed=1)["spread"], model.posterior(num_samples=3, seed=1)["spread"]
    )
