"""Natural gradients: one step to a conjugate posterior, back-off, batches, networks, files."""

import keras
import numpy as np
import pytest
from keras import ops
from standard_errors import assert_within_standard_errors
from stories import Normal, level, level_posterior

import bdl
from bdl.optimizers import NaturalGradient, RobbinsMonro
from bdl.optimizers.natural_gradient import full_step, natural_step
from bdl.protocols import GaussianVariables
from bdl.svi import SVI, Global, Observed

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype("float32")
Y = (X @ [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=40)).astype("float32")
SCALE = 0.3


@keras.saving.register_keras_serializable(package="test_natural_gradient")
def regression(data):
    weights = yield Global("weights", Normal(np.zeros(3, "float32"), np.full(3, 2.0, "float32")))
    yield Observed("y", Normal(ops.sum(data["x"] * weights, axis=-1), SCALE), data["y"])


def exact(x=X, y=Y):
    precision = np.eye(3) / 4 + x.T.astype("float64") @ x / SCALE**2
    return np.linalg.solve(precision, x.T @ y / SCALE**2), precision


def moments(model, site="weights"):
    found = model.guide_of(site).distribution()
    mean, factor = ops.convert_to_numpy(found.mean), ops.convert_to_numpy(found.factor)
    return mean, np.diag(factor**2) if found.is_diagonal else factor @ factor.T


def fitted(guide, rate, steps=1, batch="all", **settings):
    model = SVI(regression, guide, seed=0, **{"num_samples": "cubature", **settings})
    model.compile(NaturalGradient(rate))
    model.fit({"x": X, "y": Y}, batch_size=batch, steps=steps, verbose=0)
    return model


@pytest.mark.core
def test_one_step_of_the_whole_data_reaches_the_posterior_of_a_linear_regression():
    mean, precision = exact()
    found, covariance = moments(fitted("full_rank", 1.0))
    np.testing.assert_allclose(found, mean, rtol=1e-4)
    np.testing.assert_allclose(covariance @ precision, np.eye(3), atol=2e-4)


def test_it_does_so_from_a_laplace_start_of_several_chains():
    model = SVI(regression, "full_rank", seed=0, num_samples="cubature", num_chains=2)
    model.compile(NaturalGradient(1.0))
    model.fit({"x": X, "y": Y}, batch_size="all", steps=1, verbose=0)
    mean, precision = exact()
    for chain in range(2):
        found = model.guide_of("weights", chain).distribution()
        np.testing.assert_allclose(ops.convert_to_numpy(found.mean), mean, rtol=2e-3, atol=1e-3)
        factor = ops.convert_to_numpy(found.factor)
        np.testing.assert_allclose(factor @ factor.T @ precision, np.eye(3), atol=2e-3)


@pytest.mark.core
def test_one_step_of_a_mean_field_guide_has_the_precisions_of_the_posterior():
    mean, precision = exact()
    _, covariance = moments(fitted("mean_field", 1.0))
    np.testing.assert_allclose(np.diag(covariance), 1 / np.diag(precision), rtol=1e-4)
    found, covariance = moments(fitted("mean_field", 1.0, steps=20, averaging=False))  # Jacobi's method for the means
    np.testing.assert_allclose(found, mean, rtol=1e-4)
    np.testing.assert_allclose(np.diag(covariance), 1 / np.diag(precision), rtol=1e-4)


def test_the_mean_of_a_normal_is_exact_after_one_step():
    y = np.random.default_rng(1).normal(1.0, 1.0, 30).astype("float32")
    model = SVI(level, "mean_field", seed=0, num_samples="cubature")
    model.compile(NaturalGradient(1.0))
    model.fit({"y": y}, batch_size="all", steps=1, verbose=0)
    mean, scale, _ = level_posterior(y)
    found, covariance = moments(model, "mean")
    np.testing.assert_allclose([found[0], covariance[0, 0]], [mean, scale**2], rtol=1e-5)


def test_a_step_of_part_of_the_rate_is_between_in_the_precision():
    model = fitted("full_rank", 0.25, averaging=False)
    _, precision = exact()
    _, covariance = moments(model)
    begin = np.eye(3) / 0.1**2
    np.testing.assert_allclose(np.linalg.inv(covariance), 0.75 * begin + 0.25 * precision, rtol=1e-4, atol=1e-2)


def test_batches_with_a_falling_rate_come_to_rest_at_the_posterior():
    """With the rate 1 / (t + 1) natural parameters are means over the steps, whose batches are rows without order."""
    errors = []
    for seed in range(2):
        model = SVI(regression, "full_rank", seed=seed, num_samples="cubature", averaging=False)
        model.compile(NaturalGradient(RobbinsMonro(forgetting=1.0)), steps_per_execution=50)
        model.fit({"x": X, "y": Y}, batch_size=10, steps=400, verbose=0)
        mean, precision = exact()
        found, _ = moments(model)
        errors.append(np.linalg.cholesky(precision).T @ (found - mean))
    # 400 batches are 100 whole passes: what is left is second order in the batches' deviation.
    assert np.abs(errors).max() < 0.05
    assert_within_standard_errors(np.mean(errors), 0.0, np.std(errors, ddof=1) / np.sqrt(np.size(errors)))


@pytest.mark.core
def test_a_network_learns_its_weight_posterior():
    """A linear layer with the posterior in closed form; noise of draws and batches leaves standard errors."""
    from bdl.likelihoods import Normal as NormalLikelihood

    layer = bdl.layers.DenseReparameterization(
        1, use_bias=False, kernel_prior=bdl.priors.Normal(scale=2.0), kernel_posterior=bdl.posteriors.MeanFieldNormal()
    )
    model = bdl.VariationalModel(
        keras.Sequential([keras.Input((3,)), layer]), NormalLikelihood(scale=SCALE), kl_weight=1.0, num_samples=4
    )
    model.compile(NaturalGradient(RobbinsMonro(forgetting=0.7, delay=20.0)))
    model.fit(X, Y, batch_size=40, epochs=200, verbose=0)
    mean, precision = exact()
    found = ops.convert_to_numpy(layer.kernel)[:, 0]
    # The rate ends at r = 0.023. A step's mean of 4 draws has 1/4 of the posterior's variance, and the average over
    # about 2 / r steps r / 8 of it.
    assert_within_standard_errors(found, mean, np.sqrt(0.023 / 8 / np.diag(precision)))
    [variables] = layer.natural_variables()
    scale = ops.convert_to_numpy(variables.scale(ops.convert_to_tensor(variables.rho)))[:, 0]
    # Squares of 4 draws in each of about 2 / r steps: the variance of a standard deviation is r / 16 of its square.
    assert_within_standard_errors(scale * np.sqrt(np.diag(precision)), 1.0, np.sqrt(0.023 / 16))


@pytest.mark.core
def test_a_step_out_of_the_domain_backs_off():
    mean, rho, below = (keras.Variable(np.zeros(shape, "float32")) for shape in ((2,), (2,), (2, 2)))
    block = GaussianVariables(mean, rho, below)
    values = [ops.convert_to_tensor(each) for each in block.variables]
    start = np.log(2.0)  # softplus(0)
    slope = np.array([[-100.0, 0.0], [3.0, 0.5]], "float32")
    gradients = [np.zeros(2, "float32"), np.diag(slope) * 0.5, np.tril(slope, -1)]
    _, new_rho, new_below = full_step(block, values, [ops.convert_to_tensor(g, "float32") for g in gradients], 1.0)
    factor = ops.convert_to_numpy(block.scale(new_rho)) * np.eye(2) + ops.convert_to_numpy(new_below)
    stretch = np.linalg.eigvalsh(factor @ factor.T) / start**2
    assert stretch.max() == pytest.approx(16.0, rel=1e-4)
    np.testing.assert_allclose(natural_step(np.ones(2), np.array([100.0, -2.0]), 1.0), [1 / 16, 3.0])


def test_variables_of_no_posterior_have_the_ordinary_optimizer():
    @keras.saving.register_keras_serializable(package="test_natural_gradient")
    def with_network(data, network):
        bias = yield Global("bias", Normal(0.0, 1.0))
        yield Observed("y", Normal(network(data["x"])[:, 0] + bias, SCALE), data["y"])

    model = SVI(with_network, seed=0, networks={"network": keras.layers.Dense(1, use_bias=False)})
    model.compile(NaturalGradient(0.1, keras.optimizers.SGD(0.0)))
    kernel = model.networks["network"]
    data = {"x": X, "y": Y}
    model.fit(data, batch_size="all", steps=1, verbose=0)
    before = ops.convert_to_numpy(kernel.kernel)
    model.fit(data, batch_size="all", steps=3, verbose=0)
    np.testing.assert_array_equal(ops.convert_to_numpy(kernel.kernel), before)
    model.optimizer.optimizer.learning_rate = 0.1
    model.fit(data, batch_size="all", steps=3, verbose=0)
    assert np.all(ops.convert_to_numpy(kernel.kernel) != before)


def test_a_saved_model_goes_on_where_it_was(tmp_path):
    data = {"x": X, "y": Y}
    model = fitted("full_rank", RobbinsMonro(), steps=3, averaging=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.num_examples == 40
    assert int(loaded.optimizer.iterations) == 3
    for each in (model, loaded):
        each.fit(data, batch_size="all", steps=2, verbose=0)
    for ours, theirs in zip(moments(model), moments(loaded), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_it_refuses_what_it_cannot_know():
    with pytest.raises(ValueError, match="`optimizer` must be a Keras optimizer"):
        NaturalGradient(optimizer=3)
    with pytest.raises(ValueError, match="must know the model"):
        NaturalGradient().build([keras.Variable(1.0)])
    with pytest.raises(ValueError, match="`forgetting` must be"):
        RobbinsMonro(forgetting=0.5)
    with pytest.raises(ValueError, match="`delay` must be"):
        RobbinsMonro(delay=0.0)
    with pytest.raises(ValueError, match="'cubature' with objective='elbo'"):
        SVI(regression, num_samples="cubature", objective="multi_sample")
