"""Stories of the libraries' distributions: one log joint for all, counts, precision, under XLA and with open shapes."""

import contextlib

import keras
import numpy as np
import pytest
from distribution_libraries import array, distributions, float64
from keras import ops
from scipy import special, stats
from stories import level_posterior

from bdl.svi import SVI, Amortized, Global, Local, Observed

of_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TFP is for TensorFlow")
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


def several(data):
    """A story of a Student, a log-normal, a beta and a binomial distribution, in the words that all libraries share."""
    library, one = distributions(), ops.ones((), data["y"].dtype)
    mean = yield Global("mean", library.StudentT(4 * one, 0.5 * one, 2 * one))
    spread = yield Global("spread", library.LogNormal(0 * one, one))
    share = yield Global("share", library.Beta(2 * one, 3 * one))
    code = yield Local("code", library.Normal(mean, spread))
    yield Observed("y", library.Normal(code, 0.5 * one), data["y"])
    yield Observed("n", library.Binomial(data["total"], logits=code + special.logit(0.3) + share), data["n"])


@pytest.mark.core
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_all_libraries_give_the_same_log_joint_density(dtype, tolerance):
    y, n, total = RNG.normal(size=5), np.array([0.0, 1.0, 4.0, 9.0, 3.0]), np.array([2.0, 3.0, 4.0, 20.0, 10.0])
    mean, log_spread, logit_share, code = 0.3, -0.4, 0.7, RNG.normal(size=5)
    spread, share = np.exp(log_spread), special.expit(logit_share)
    chance = special.expit(code + special.logit(0.3) + share)
    expected = (
        stats.t(4, 0.5, 2).logpdf(mean)
        + stats.lognorm(1.0).logpdf(spread)
        + log_spread
        + stats.beta(2, 3).logpdf(share)
        + np.log(share * (1 - share))
        + stats.norm(mean, spread).logpdf(code).sum()
        + stats.norm(code, 0.5).logpdf(y).sum()
        + stats.binom(total.astype(int), chance).logpmf(n).sum()
    )
    with float64() if dtype == "float64" else contextlib.nullcontext():
        data = {
            name: ops.convert_to_tensor(each.astype(dtype)) for name, each in (("y", y), ("n", n), ("total", total))
        }
        model = SVI(several, {"code": Amortized(keras.layers.Identity(dtype=dtype), ["y"])}, dtype=dtype, seed=0)
        model.trace_on(data)
        real = {"mean": [mean], "spread": [log_spread], "share": [logit_share], "code": code[:, None]}
        found = model.estimator.log_joint(
            data, {name: ops.convert_to_tensor(np.asarray(each, dtype)) for name, each in real.items()}
        )
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        np.testing.assert_allclose(array(found), expected, rtol=tolerance)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="other backends always have 64 bits")
def test_double_precision_is_refused_where_jax_has_none():
    with pytest.raises(ValueError, match="`dtype` must be 'float32' while jax has no 64 bits, not 'float64'"):
        SVI(level, dtype="float64")


@pytest.mark.tensorflow
@of_tensorflow
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


def methylation_evidence(coverage, methylated):
    """By the trapezoidal rule over both globals and, on a grid of its standard normal z, each row's logit."""
    z = np.linspace(-6, 6, 121)
    total, ones = coverage.sum(1), methylated.sum(1)
    log_choose = np.sum(
        special.gammaln(coverage + 1) - special.gammaln(methylated + 1) - special.gammaln(coverage - methylated + 1)
    )
    means, spreads = np.linspace(0.2, 1.8, 17), np.linspace(0.9, 2.3, 15)
    joint = np.empty((17, 15))
    for index in np.ndindex(17, 15):
        mean, spread = means[index[0]], spreads[index[1]]
        logit = mean + spread * z
        rows = special.logsumexp(
            ones[:, None] * logit - total[:, None] * np.logaddexp(0, logit) + stats.norm.logpdf(z), axis=1
        )
        prior = stats.norm(0, 3).logpdf(mean) + stats.lognorm(1.0).logpdf(spread)
        joint[index] = np.sum(rows + np.log(z[1] - z[0])) + prior
    return special.logsumexp(joint) + np.log((means[1] - means[0]) * (spreads[1] - spreads[0])) + log_choose


@pytest.mark.tensorflow
@of_tensorflow
def test_counts_of_rows_are_fitted_validated_predicted_and_saved(tmp_path):
    logits = RNG.normal(1.0, 1.5, size=(300, 1))
    coverage = RNG.integers(1, 30, size=(300, 2)).astype("float32")
    methylated = RNG.binomial(coverage.astype(int), special.expit(logits)).astype("float32")
    data = {"coverage": coverage, "methylated": methylated}
    network = keras.Sequential([keras.layers.Rescaling(1 / 30), keras.layers.Dense(16, activation="tanh")])
    model = SVI(methylation, {"logit": Amortized(network, ["coverage", "methylated"])}, seed=0)
    model.compile(keras.optimizers.Adam(0.03))
    logs = model.fit(data, batch_size=100, epochs=20, validation_data=data, verbose=0).history
    # The bound is below the log evidence, and training took away half of what was missing.
    evidence = methylation_evidence(coverage, methylated)
    log_weights = model.log_weights(data, num_samples=100, seed=0)
    bound, error = log_weights.mean(), log_weights.std(ddof=1) / 10
    assert bound - 5 * error < evidence
    assert evidence - bound < (evidence - 300 * logs["val_elbo"][0]) / 2
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
