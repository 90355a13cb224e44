"""The four estimators against closed forms: moments, covariances across positions and examples, gradients."""

from typing import Any

import keras
import numpy as np
import pytest
from gradients import draw, draw_gradients
from keras import layers, ops
from layer_contract import array, reset_noise
from numpy.testing import assert_allclose, assert_array_equal
from standard_errors import assert_covariance, assert_mean, assert_moments, assert_within_standard_errors

from bdl.estimators.weights import ESTIMATORS, whole_functions
from bdl.layers import Variational
from bdl.posteriors import LowRankNormal, MatrixNormal, MeanFieldNormal, Rank1

pytestmark = pytest.mark.core

COPIES = 64  # output features with equal parameters: as many independent draws of one output
DRAWS = 100 if keras.backend.backend() == "torch" else 400  # Torch has no compiled loop; the bounds widen by themselves


def with_equal_features(layer: keras.Layer, x: np.ndarray, estimator: str, **arguments: Any) -> Variational:
    """A layer all of whose output features have the same random means and scales."""
    layer = Variational(layer, estimator=estimator, prior="normal", seed=1, **arguments)
    layer.build(x.shape)
    generator = np.random.default_rng(5)
    for weight in layer.trainable_weights:
        values = generator.uniform(0.3, 1.0, size=(*weight.shape[:-1], 1)) * np.ones(weight.shape)
        weight.assign(values / layer_speed(layer) if "rho" in weight.path else values)
    return layer


def layer_speed(layer: Variational) -> float:
    return next(iter(layer.sampled_weights.values())).posterior.speed


def scale_of(layer: Variational, name: str = "kernel") -> np.ndarray:
    weight = layer.sampled_weights[name]
    return array(weight.posterior.scale(weight.variables))


def pooled(samples: np.ndarray) -> np.ndarray:
    """Equal output features, on the last axis, as independent draws on the first."""
    return np.moveaxis(samples, -1, 1).reshape(-1, *samples.shape[1:-1])


def inputs(*shape: int) -> np.ndarray:
    return np.random.default_rng(6).uniform(0.5, 1.5, size=shape).astype("float32")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("posterior", "bias"),
    [("mean_field", "point"), ("mean_field", "sampled"), ("matrix_normal", "sampled")],
)
def test_dense_outputs_have_the_moments_of_the_weights(posterior: str, bias: str, estimator: str, training: bool):
    x = inputs(2, 3)
    weights = ("kernel", "bias") if bias == "sampled" else ("kernel",)
    layer = with_equal_features(layers.Dense(COPIES), x, estimator, weights=weights, posterior=posterior)
    variance = x**2 @ scale_of(layer)[:, 0] ** 2
    if bias == "sampled":
        variance = variance + scale_of(layer, "bias")[0] ** 2
    assert_moments(pooled(draw(layer, x, DRAWS, training)), array(layer.layer(x))[:, 0], variance)


def test_flipout_decorrelates_examples_and_reparameterization_does_not():
    x = np.repeat(inputs(1, 3), 2, axis=0)
    for estimator, shared in (("reparameterization", 1.0), ("flipout", 0.0), ("local_reparameterization", 0.0)):
        layer = with_equal_features(layers.Dense(COPIES), x, estimator)
        variance = float(x[0] ** 2 @ scale_of(layer)[:, 0] ** 2)
        expected = variance * np.array([[1, shared], [shared, 1]])
        assert_covariance(pooled(draw(layer, x, DRAWS)), array(layer.layer(x))[:, 0], expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mean_gradients_equal_the_closed_form(estimator: str):
    """Of L = sum of y^2 / 2: E dL/dmean = x^T x mean + ..., E dL/dscale = sum of x^2 over the batch times scale."""
    x = inputs(4, 3)
    layer = with_equal_features(layers.Dense(COPIES), x, estimator)
    found = draw_gradients(layer, x, lambda y: ops.sum(ops.square(y)) / 2, DRAWS)
    by_name = {path.rsplit("/", 1)[-1]: pooled(value) for path, value in found.items()}
    y, scale = array(layer.layer(x))[:, 0], scale_of(layer)[:, 0]
    assert_mean(by_name["kernel"], x.T @ y)
    assert_mean(by_name["bias"], y.sum())
    slope = layer_speed(layer) * scale  # of the scale exp(speed * rho)
    assert_mean(by_name["kernel_rho"], (x**2).sum(axis=0) * scale * slope)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_shared_scales_have_the_sum_of_their_weights_gradients(estimator: str):
    """As above, E dL/dscale = sum of x^2 over the batch times scale, summed over what a number is the scale of."""
    x = inputs(4, 3)
    layer = with_equal_features(layers.Dense(COPIES), x, estimator, posterior="matrix_normal")
    found = draw_gradients(layer, x, lambda y: ops.sum(ops.square(y)) / 2, DRAWS)
    by_name = {path.rsplit("/", 1)[-1]: value for path, value in found.items()}
    expected = layer_speed(layer) * (x**2).sum(axis=0) * scale_of(layer)[:, 0] ** 2
    assert_mean(by_name["kernel_row_rho"][..., 0], COPIES * expected)
    assert_mean(pooled(by_name["kernel_column_rho"])[:, 0], expected.sum())


@pytest.mark.parametrize("training", [True, False])
def test_correlated_weights_give_correlated_outputs(training: bool):
    """vec(y) = J vec(W) has the covariance J (diag(d^2) + V V^T) J^T; in training the second example sees -W."""
    x = inputs(2, 3)
    layer = Variational(
        layers.Dense(2), posterior=LowRankNormal(2, initial_scale=0.4, initial_factor_scale=0.5), seed=1
    )
    layer.build(x.shape)
    V = array(layer.sampled_weights["kernel"].variables["factor"]).reshape(6, 2)
    J = np.kron(x * np.array([[1], [-1 if training else 1]]), np.eye(2))
    expected = J @ (0.4**2 * np.eye(6) + V @ V.T) @ J.T
    samples = draw(layer, x, 10 * DRAWS, training).reshape(-1, 4)
    assert_covariance(samples, array(layer.layer(x)).ravel(), expected)


MIRRORED = [
    pytest.param(lambda: layers.Dense(COPIES), (1, 3), -1, id="Dense"),
    pytest.param(lambda: layers.EinsumDense("abc,cd->abd", (None, COPIES)), (1, 2, 3), -1, id="EinsumDense"),
    pytest.param(lambda: layers.Conv1D(COPIES, 2), (1, 4, 2), 1, id="Conv1D is not mirrored"),
]


@pytest.mark.parametrize("size", [6, 3, 1])
@pytest.mark.parametrize(("make", "shape", "second"), MIRRORED)
def test_training_mirrors_the_noise_of_every_second_example(make: Any, shape: tuple[int, ...], second: int, size: int):
    x = np.repeat(inputs(*shape), size, axis=0)
    layer = with_equal_features(make(), x, "reparameterization")
    mean = array(layer.layer(x))
    reset_noise(layer, 7)
    shifts = array(layer(x, training=True)) - mean
    reset_noise(layer, 7)
    one_draw = array(layer(x, training=False)) - mean
    signs = np.resize([1, second], size).reshape(-1, *(1 for _ in shape[1:]))
    assert_allclose(shifts, one_draw * signs, rtol=1e-4, atol=1e-5)
    assert np.abs(shifts).min() > 0


def test_gradient_variances_at_batch_64_are_ordered():
    """Of L = sum of y^2 / (2 B), with the scale s in each weight, the trace of the gradient's covariance is closed.

    Reparameterization: s^2 |x^T x / B|^2, and mirrored s^2 |sum of +- x_b x_b^T|^2 / B^2; flipout and local
    reparameterization: s^2 sum |x_b|^4 / B^2.
    """
    x = inputs(64, 3)
    mirrored = (x * np.resize([1, -1], 64)[:, None]).T @ x
    each = np.sum(np.sum(x**2, axis=1) ** 2)
    norms = {"reparameterization": np.sum((x.T @ x) ** 2), "mirrored": np.sum(mirrored**2)}
    traces = {}
    for name in ("mirrored", *ESTIMATORS):
        estimator = "reparameterization" if name == "mirrored" else name
        layer = with_equal_features(layers.Dense(COPIES), x, estimator)
        rho = next(weight for weight in layer.trainable_weights if "rho" in weight.path)
        rho.assign(np.full(rho.shape, 0.5 / layer_speed(layer)))
        training = name != "reparameterization"  # outside training its noise is not mirrored
        found = draw_gradients(layer, x, lambda y: ops.sum(ops.square(y)) / (2 * len(x)), DRAWS, training)
        kernel = pooled(next(value for path, value in found.items() if path.endswith("/kernel")))
        squares = np.square(kernel - x.T @ array(layer.layer(x))[:, 0] / len(x)).sum(axis=1)
        s = scale_of(layer)[0, 0]
        assert_mean(squares, s**2 * norms.get(name, each) / len(x) ** 2)
        traces[name] = squares.mean()
    assert traces["reparameterization"] > 10 * traces["flipout"]
    assert traces["reparameterization"] > 10 * traces["local_reparameterization"]
    assert traces["reparameterization"] > 10 * traces["mirrored"]


def test_gradient_variances_of_a_network_in_training_are_ordered():
    """With several layers mirroring cancels less than flipout does: what is even in the noise stays."""
    x = np.random.default_rng(8).uniform(size=(64, 8)).astype("float32")
    traces, errors = {}, {}
    for estimator in ESTIMATORS:
        keras.utils.set_random_seed(0)
        posterior = MeanFieldNormal(initial_scale=0.3)
        network = keras.Sequential([keras.Input((8,))])
        for units in (16, 16, 1):
            dense = layers.Dense(units, activation="tanh" if units > 1 else None)
            network.add(Variational(dense, estimator, prior="normal", posterior=posterior, seed=units))
        found = draw_gradients(network, x, lambda y: ops.mean(ops.square(y - 1.0)), 4 * DRAWS)
        kernels = np.concatenate(
            [value.reshape(len(value), -1) for path, value in found.items() if path.endswith("kernel")], axis=1
        )
        squares = np.square(kernels - kernels.mean(axis=0)).sum(axis=1)
        traces[estimator], errors[estimator] = squares.mean(), squares.std() / np.sqrt(len(squares))
    for better in ("flipout", "local_reparameterization"):
        difference = traces["reparameterization"] - traces[better]
        assert difference > 4 * np.hypot(errors["reparameterization"], errors[better])


POSITIONAL = [
    pytest.param(lambda: layers.Dense(COPIES), (1, 3, 2), id="Dense on a sequence"),
    pytest.param(lambda: layers.Conv1D(COPIES, 2), (1, 4, 2), id="Conv1D"),
    pytest.param(lambda: layers.Conv2D(COPIES, 2), (1, 3, 2, 2), id="Conv2D"),
    pytest.param(lambda: layers.EinsumDense("...b,bc->...c", COPIES, bias_axes="c"), (1, 3, 2), id="EinsumDense"),
]


def covariance_across_positions(layer: Variational, x: np.ndarray) -> np.ndarray:
    """Of one output feature: J diag(scale^2) J^T, with the Jacobian J from unit kernels."""
    kernel, bias = layer.layer.get_weights()
    columns = []
    for place in np.ndindex(kernel.shape[:-1]):
        unit = np.zeros_like(kernel)
        unit[place] = 1.0
        layer.layer.set_weights([unit, 0 * bias])
        columns.append(array(layer.layer(x))[0, ..., 0].ravel() * scale_of(layer)[(*place, 0)])
    layer.layer.set_weights([kernel, bias])
    J = np.stack(columns, axis=1)
    return J @ J.T


@pytest.mark.parametrize(
    ("estimator", "training", "posterior"),
    [
        ("reparameterization", True, "mean_field"),
        ("flipout", True, "mean_field"),
        ("flipout", True, "matrix_normal"),
        ("flipout", False, "mean_field"),
        ("local_reparameterization", False, "mean_field"),
    ],
)
@pytest.mark.parametrize(("make", "shape"), POSITIONAL)
def test_one_weight_draw_serves_all_positions(
    make: Any, shape: tuple[int, ...], estimator: str, training: bool, posterior: str
):
    x = inputs(*shape)
    layer = with_equal_features(make(), x, estimator, posterior=posterior)
    expected = covariance_across_positions(layer, x)
    assert not np.allclose(expected, np.diag(np.diag(expected)))
    mean = array(layer.layer(x))[0, ..., 0].ravel()
    samples = pooled(draw(layer, x, DRAWS, training)[:, 0]).reshape(DRAWS * COPIES, -1)
    assert_covariance(samples, mean, expected)


@pytest.mark.parametrize(("make", "shape"), POSITIONAL)
def test_local_reparameterization_trains_with_the_right_marginals_only(make: Any, shape: tuple[int, ...]):
    x = inputs(*shape)
    layer = with_equal_features(make(), x, "local_reparameterization")
    variances = np.diag(covariance_across_positions(layer, x))
    mean = array(layer.layer(x))[0, ..., 0].ravel()
    samples = pooled(draw(layer, x, DRAWS, training=True)[:, 0]).reshape(DRAWS * COPIES, -1)
    assert_covariance(samples, mean, np.diag(variances))


def test_einsum_dense_with_several_kernel_axes_in_the_output():
    x = inputs(2, 2, 3)
    layer = Variational(layers.EinsumDense("abc,cde->abde", (None, 2, 3)), estimator="flipout", seed=1)
    layer.build(x.shape)
    variance = np.einsum("abc,cde->abde", x**2, scale_of(layer) ** 2)
    assert_moments(draw(layer, x, 5 * DRAWS), array(layer.layer(x)), variance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_separable_convolution_samples_both_of_its_kernels(estimator: str, training: bool):
    """Given the depthwise kernel, D outputs are linear in P: E = D P, Var = E[D]^2 V[P] + V[D] (E[P]^2 + V[P])."""
    x = inputs(1, 2, 3)  # one position: D is a vector of two numbers a channel, independent across channels
    names = ("depthwise_kernel", "pointwise_kernel")
    layer = with_equal_features(layers.SeparableConv1D(COPIES, 2), x, estimator, weights=names)
    depthwise, pointwise, bias = layer.layer.get_weights()
    mean_d = np.einsum("tc,tc->c", x[0], depthwise[..., 0])
    variance_d = np.einsum("tc,tc->c", x[0] ** 2, scale_of(layer, names[0])[..., 0] ** 2)
    mean_p, variance_p = pointwise[0, :, 0], scale_of(layer, names[1])[0, :, 0] ** 2
    mean = mean_d @ mean_p + bias[0]
    variance = mean_d**2 @ variance_p + variance_d @ (mean_p**2 + variance_p)
    # Features share the depthwise draw: only draws are independent, so each draw's mean over features is one sample.
    deviations = draw(layer, x, 5 * DRAWS, training)[:, 0, 0] - mean
    assert_mean(deviations.mean(axis=1), 0.0)
    assert_mean(np.square(deviations).mean(axis=1), variance)


@pytest.mark.parametrize(
    ("make", "example"),
    [
        pytest.param(lambda: layers.Dense(3), (2,), id="Dense"),
        pytest.param(lambda: layers.Conv1D(3, 2), (2, 2), id="Conv1D"),
        pytest.param(lambda: layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d"), (1, 2), id="EinsumDense"),
    ],
)
def test_rank1_factors_have_their_moments_and_differ_by_example(make: Any, example: tuple[int, ...]):
    """y = s (sum of r_i z_i) + b with z_i the output of input i alone: mean and variance in closed form."""
    batch = 64
    x = np.repeat(inputs(1, *example), batch, axis=0)
    layer = Variational(make(), posterior=Rank1(), seed=1)
    layer.build(x.shape)
    generator = np.random.default_rng(7)
    for weight in layer.trainable_weights:
        values = generator.uniform(0.3, 1.0, size=weight.shape)
        weight.assign(values / layer_speed(layer) if "rho" in weight.path else values)
    factors = layer.sampled_weights["kernel"].variables
    means = {side: array(factors[f"{side}_mean"]).ravel() for side in ("input", "output")}
    scales = {side: np.exp(layer_speed(layer) * array(factors[f"{side}_rho"]).ravel()) for side in ("input", "output")}
    bias = array(layer.layer.bias)
    z = np.stack([array(layer.layer(x[:1] * unit))[0].reshape(-1, 3)[0] - bias for unit in np.eye(2, dtype="float32")])
    inner_mean, inner_variance = means["input"] @ z, scales["input"] ** 2 @ z**2
    mean = means["output"] * inner_mean + bias
    variance = (means["output"] ** 2 + scales["output"] ** 2) * inner_variance + (scales["output"] * inner_mean) ** 2
    # Examples have factors of their own, so all are independent.
    samples = draw(layer, x, DRAWS).reshape(DRAWS * batch, -1, 3)[:, 0]
    assert_moments(samples, mean, variance)
    two = samples.reshape(DRAWS, batch // 2, 2, 3)
    products = np.prod(two - mean, axis=2).reshape(-1, 3)
    assert_mean(products, 0.0)


@pytest.mark.parametrize(
    "posterior", [MeanFieldNormal(), MatrixNormal(), Rank1()], ids=["mean_field", "matrix", "rank1"]
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_whole_functions_are_one_function_for_the_batch(estimator: str, posterior: Any):
    x = np.repeat(inputs(1, 3), 3, axis=0)
    layer = Variational(layers.Dense(4), estimator=estimator, posterior=posterior)
    layer(x)
    with whole_functions():
        reset_noise(layer, 3)
        batch = array(layer(x))
        reset_noise(layer, 3)
        single = array(layer(x[:1]))
        another = array(layer(x[:1]))
    assert_allclose(batch, np.repeat(single, 3, axis=0), rtol=1e-6)
    assert not np.allclose(single, another)
    if estimator == "flipout" or isinstance(posterior, Rank1):
        outside = array(layer(x))
        assert not np.allclose(outside[0], outside[1])


@pytest.mark.parametrize(
    "posterior", [MeanFieldNormal(), MatrixNormal(), Rank1()], ids=["mean_field", "matrix", "rank1"]
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_seeds_give_equal_samples_and_calls_differ(estimator: str, posterior: Any):
    x = inputs(2, 3)
    made = [Variational(layers.Dense(4), estimator, posterior=posterior, seed=seed) for seed in (1, 1, 2)]
    for layer in made:
        layer.build(x.shape)
        layer.layer.set_weights(made[0].layer.get_weights())
    first, same, other = (array(layer(x)) for layer in made)
    assert_array_equal(first, same)
    assert not np.allclose(first, other)
    assert not np.allclose(first, array(made[0](x)))


def test_standard_errors_can_fail():
    samples = np.random.default_rng(0).normal(size=10_000)
    assert_mean(samples, 0.0)
    with pytest.raises(AssertionError, match="standard errors away"):
        assert_mean(samples, 0.1)
    with pytest.raises(AssertionError, match="comparison by equality"):
        assert_within_standard_errors(1.0, 1.0, 0.0)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "rank1"])
def test_sparse_inputs_give_what_dense_ones_do(estimator: str):
    """But for mirrored noise, which needs a batch that can be cut into halves: one whole draw takes its place."""
    backend = keras.backend.backend()
    if backend == "torch":
        pytest.skip("Keras has no sparse tensors on Torch")
    x = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], "float32")
    if backend == "tensorflow":
        import tensorflow as tf

        sparse = tf.sparse.from_dense(x)
    else:
        from jax.experimental.sparse import BCOO

        sparse = BCOO.fromdense(x)
    arguments = {"posterior": Rank1()} if estimator == "rank1" else {"estimator": estimator}
    layer = Variational(layers.Dense(4), seed=0, **arguments)
    layer.build(x.shape)
    reset_noise(layer, 0)
    expected = array(layer(x, training=estimator != "reparameterization"))
    reset_noise(layer, 0)
    assert_allclose(array(layer(sparse, training=True)), expected, rtol=1e-5, atol=1e-6)
