"""Posteriors: their variables, scales, draws and divergences."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_arrays
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from standard_errors import assert_covariance, assert_moments
from streams import train_on_stream

import bdl
from bdl import posteriors, random
from bdl.diagnostics.weights import layer_health, weight_posteriors
from bdl.estimators.weights import ESTIMATORS
from bdl.layers import Variational
from bdl.posteriors import (
    INITIAL_RELATIVE_FACTOR,
    INITIAL_RELATIVE_SCALE,
    FactorPosterior,
    LowRankNormal,
    MatrixNormal,
    MeanFieldNormal,
    Posterior,
    Rank1,
)
from bdl.priors import EmpiricalBayes, FanInNormal, Horseshoe, Laplace, Moped, Normal, Prior, ScaleMixture, TiedMean


def variables_of(posterior: Posterior, shape: tuple[int, ...], input_axes: tuple[int, ...] = ()) -> tuple[Any, Any]:
    layer = keras.layers.Layer()
    mean = layer.add_weight(name="kernel", shape=shape, initializer="random_normal")
    return mean, posterior.create(layer, "kernel", mean, input_axes)


@settings(max_examples=25, deadline=None)
@given(hypothesis_arrays.array_shapes(max_dims=4, max_side=5), st.floats(1e-4, 10.0), st.sampled_from([1.0, 30.0]))
def test_initial_scale_is_what_was_asked_for(shape: tuple[int, ...], initial_scale: float, speed: float):
    posterior = MeanFieldNormal(initial_scale, speed)
    _, variables = variables_of(posterior, shape)
    # The exponential of a large argument loses relative accuracy in float32: eps * |log scale| <= 2e-6 here.
    assert_allclose(array(posterior.scale(variables)), np.full(shape, initial_scale), rtol=5e-6)


@pytest.mark.parametrize("input_axes", [(0,), (0, 1), ()])
def test_default_scale_is_relative_to_the_fan_in(input_axes: tuple[int, ...]):
    shape = (4, 5, 3)
    posterior = MeanFieldNormal()
    _, variables = variables_of(posterior, shape, input_axes)
    fan_in = np.prod([shape[axis] for axis in input_axes])
    expected = INITIAL_RELATIVE_SCALE / np.sqrt(fan_in)
    assert_allclose(array(posterior.scale(variables)), np.full(shape, expected), rtol=5e-6)
    assert variables["rho"].path.endswith("kernel_rho")


def test_speed_multiplies_what_an_optimizer_moves():
    slow, fast = MeanFieldNormal(0.1, speed=1.0), MeanFieldNormal(0.1, speed=30.0)
    scales = []
    for posterior in (slow, fast):
        _, variables = variables_of(posterior, (1,))
        variables["rho"].assign_add(np.array([0.01]))
        scales.append(array(posterior.scale(variables))[0])
    expected = [0.1 * math.exp(0.01), 0.1 * math.exp(0.3)]
    assert_allclose(scales, expected, rtol=5e-6)


def test_divergence_is_finite_where_the_scale_underflows():
    posterior = MeanFieldNormal(0.1, speed=1.0)
    mean, variables = variables_of(posterior, (2, 3))
    variables["rho"].assign(np.full((2, 3), -1e4))
    assert_array_equal(array(posterior.scale(variables)), np.zeros((2, 3), "float32"))
    for prior in (Normal(), EmpiricalBayes()):
        assert array(posterior.kl(mean, variables, prior, (0,))) == pytest.approx(6e4, rel=1e-2)


@pytest.mark.core
def test_perturbations_have_the_scale_and_follow_the_key():
    posterior = MeanFieldNormal(0.3)
    _, variables = variables_of(posterior, (100, 200))
    variables["rho"].assign_add(np.linspace(0, 0.02, 200) * np.ones((100, 1)))
    key = random.draw_key(3)
    draw = array(posterior.perturbation(variables, key))
    assert_moments((draw / array(posterior.scale(variables))).ravel(), 0.0, 1.0)
    assert_array_equal(array(posterior.perturbation(variables, key)), draw)
    assert not np.allclose(array(posterior.perturbation(variables, random.draw_key(4))), draw)


@pytest.mark.core
@pytest.mark.parametrize("prior", [Normal(0.2, 0.5), FanInNormal(), EmpiricalBayes(), TiedMean()], ids=repr)
def test_mean_field_divergence_is_that_of_its_prior(prior: Any):
    posterior = MeanFieldNormal(0.3)
    mean, variables = variables_of(posterior, (4, 3), (0,))
    expected = array(prior.kl(ops.convert_to_tensor(mean), posterior.scale(variables), (0,)))
    observed = posterior.kl(mean, variables, prior, (0,))
    assert_allclose(array(observed), expected, rtol=1e-6)
    assert observed.shape == ()


KERNEL = np.array([[1.0, -2.0, 0.5]] * 4, "float32")


def rank1_variables(posterior: Rank1) -> dict[str, Any]:
    return posterior.create_factors(keras.layers.Layer(), "kernel", {"input": (4,), "output": (1, 3)})


def test_rank1_starts_with_factors_of_one():
    posterior = Rank1(initial_scale=0.2)
    variables = rank1_variables(posterior)
    for side, shape in (("input", (4,)), ("output", (1, 3))):
        zero, one = (array(posterior.factor(variables, side, np.full(shape, noise, "float32"))) for noise in (0.0, 1.0))
        assert_array_equal(zero, np.ones(shape))
        assert_allclose(one - zero, np.full(shape, 0.2), rtol=1e-5)


@pytest.mark.core
def test_rank1_divergence_is_that_of_both_factors():
    posterior = Rank1(Normal(1.0, 10.0), Normal(1.0, 0.5), initial_scale=0.2)
    variables = rank1_variables(posterior)
    variables["input_mean"].assign(np.array([0.5, 1.0, 1.5, 2.0]))
    sigma = 0.2
    expected = sum(np.log(10 / sigma) + (sigma**2 + (m - 1) ** 2) / 200 - 0.5 for m in (0.5, 1.0, 1.5, 2.0))
    expected += 3 * (np.log(0.5 / sigma) + sigma**2 / 0.5 - 0.5)
    assert_allclose(array(posterior.kl(KERNEL, variables, (0,))), expected, rtol=1e-5)


@pytest.mark.core
def test_rank1_weights_pay_the_penalty_of_their_prior():
    mean = KERNEL
    posterior = Rank1(kernel_prior=Normal(0.5, 2.0))
    variables = rank1_variables(posterior)
    without = array(Rank1().kl(mean, variables, (0,)))
    expected = 4 * np.sum((mean[0] - 0.5) ** 2) / 8
    assert_allclose(array(posterior.kl(mean, variables, (0,))) - without, expected, rtol=1e-5)


def test_rank1_factors_keep_what_their_priors_need():
    posterior = Rank1(Moped(Normal(scale=0.5)), ScaleMixture(learned=True))
    variables = rank1_variables(posterior)
    assert set(posterior.factor_prior_variables(variables, "input")) == {"centre"}
    assert set(posterior.factor_prior_variables(variables, "output")) == {"log_scales", "logits"}
    like = Rank1(Normal(1.0, 0.5), ScaleMixture())  # factors begin at 1, which is the centre
    assert_allclose(
        array(posterior.kl(KERNEL, variables, (0,))),
        array(like.kl(KERNEL, rank1_variables(like), (0,))),
        rtol=1e-5,
    )


@pytest.mark.parametrize("prior", [EmpiricalBayes(), Horseshoe(), TiedMean(), ScaleMixture(learned=True)], ids=repr)
def test_rank1_refuses_priors_that_are_none_of_point_estimates(prior: Prior):
    with pytest.raises(ValueError, match=r"`kernel_prior` is the prior of point estimates, which .* is not: "):
        Rank1(kernel_prior=prior)


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf, "small", True])
def test_numbers_must_be_positive_and_finite(value: Any):
    for build in (
        lambda: MeanFieldNormal(initial_scale=value),
        lambda: MeanFieldNormal(speed=value),
        lambda: Rank1(initial_scale=value),
        lambda: Rank1(speed=value),
        lambda: MatrixNormal(initial_scale=value),
        lambda: MatrixNormal(speed=value),
        lambda: LowRankNormal(initial_scale=value),
        lambda: LowRankNormal(speed=value),
        lambda: LowRankNormal(initial_factor_scale=value),
    ):
        with pytest.raises(ValueError, match=r"`(initial_scale|speed|initial_factor_scale)` must be .*a finite pos"):
            build()


@pytest.mark.parametrize("value", [0, -1, 1.0, "two", True, None])
def test_the_rank_must_be_a_positive_integer(value: Any):
    with pytest.raises(ValueError, match=f"`rank` must be a positive integer .*, not {value!r}"):
        LowRankNormal(rank=value)


def test_factors_need_priors():
    for argument in ("input_factor_prior", "output_factor_prior"):
        with pytest.raises(ValueError, match=f"`{argument}` must be a bdl.priors.Prior, not 1.0"):
            Rank1(**{argument: 1.0})


def test_get_takes_names_objects_and_configurations():
    assert posteriors.get("mean_field") == MeanFieldNormal()
    assert posteriors.get("rank1") == Rank1()
    assert posteriors.get("matrix_normal") == MatrixNormal()
    assert posteriors.get("low_rank") == LowRankNormal()
    rank1 = Rank1(Normal(1.0, 10.0), initial_scale=0.2)
    assert posteriors.get(rank1) is rank1
    assert posteriors.get(keras.saving.serialize_keras_object(rank1)) == rank1
    for bad in ("full", 0.1, Normal()):
        message = (
            r"`q` must be a bdl.posteriors.Posterior, a bdl.posteriors.FactorPosterior or one of the names \['low_"
        )
        with pytest.raises(ValueError, match=message):
            posteriors.get(bad, "q")


@pytest.mark.parametrize(
    "call",
    [
        lambda: Posterior().create(None, "kernel", None, ()),
        lambda: Posterior().scale({}),
        lambda: Posterior().perturbation({}, None),
        lambda: Posterior().kl(None, {}, Normal(), ()),
        lambda: FactorPosterior().create_factors(None, "kernel", {}),
        lambda: FactorPosterior().factor_mean({}, "input"),
        lambda: FactorPosterior().factor({}, "input", None),
        lambda: FactorPosterior().components({}),
    ],
)
def test_the_base_classes_name_what_a_posterior_must_have(call: Callable[[], Any]):
    with pytest.raises(NotImplementedError):
        call()


@pytest.mark.parametrize(
    ("name", "admitted"),
    [
        ("mean_field", ESTIMATORS),
        ("matrix_normal", ESTIMATORS),
        ("low_rank", ("reparameterization",)),
        ("rank1", ESTIMATORS),
    ],
)
def test_correlated_weights_admit_reparameterization_alone(name: str, admitted: tuple[str, ...]):
    assert tuple(filter(posteriors.get(name).admits, ESTIMATORS)) == admitted


@dataclass(frozen=True)
class Uniform(Posterior):
    """A posterior of a user, who knows no more than the base class: `mean + width * U(-1, 1)` on each weight."""

    width: float = 0.1

    def create(self, layer: Any, name: str, mean: Any, input_axes: Any) -> Any:
        return {}

    def perturbation(self, variables: Any, key: Any) -> Any:
        return self.width * (2.0 * random.uniform((4, 3), key) - 1.0)

    def kl(self, mean: Any, variables: Any, prior: Prior, input_axes: Any, prior_variables: Any = None) -> Any:
        """From `N(0, s^2)`: `-log(2 width) + log(2 pi s^2) / 2 + E w^2 / (2 s^2)`."""
        s = prior.parameters(mean, mean, input_axes)[1]
        square = mean**2 + self.width**2 / 3
        return ops.sum(square / (2 * s**2) + 0.5 * np.log(2 * np.pi * s**2) - np.log(2 * self.width))


@pytest.mark.core
def test_a_posterior_of_ones_own_is_drawn_charged_and_reported():
    layer = Variational(keras.layers.Dense(3), prior=Normal(scale=0.5), posterior=Uniform(), seed=0)
    network = keras.Sequential([keras.Input((4,)), layer])
    kernel = array(layer.layer.kernel)
    shift = array(network(np.eye(4, dtype="float32"))) - kernel  # rows of the drawn kernel
    assert 0 < np.abs(shift).max() <= 0.1
    expected = np.sum((kernel**2 + 0.01 / 3) / 0.5 + 0.5 * np.log(0.5 * np.pi) - np.log(0.2))
    assert_allclose(array(bdl.kl_divergence(network)), expected, rtol=1e-5)
    (health,) = layer_health(network, weight_posteriors(network))
    assert health.kl == pytest.approx(expected, rel=1e-5)
    assert (health.name, health.num_weights, health.prior_matched) == (layer.name, 0, None)


@pytest.mark.core
def test_initial_ratio_starts_the_scales_at_a_share_of_the_weights():
    values = np.array([[2.0, -0.5, 0.0], [1.0, 0.0, -1.0]])
    layer = keras.layers.Layer()
    mean = layer.add_weight(shape=(2, 3), initializer="zeros")
    mean.assign(values)
    posterior = MeanFieldNormal(initial_ratio=0.1)
    variables = posterior.create(layer, "kernel", mean, (0,))
    floor = 0.01 * np.sqrt(np.mean(values**2))
    assert_allclose(array(posterior.scale(variables)), 0.1 * np.maximum(np.abs(values), floor), rtol=1e-5)
    with pytest.raises(ValueError, match=r"`initial_scale`=0.1 and `initial_ratio`=0.2"):
        MeanFieldNormal(initial_scale=0.1, initial_ratio=0.2)
    with pytest.raises(ValueError, match="`initial_ratio`"):
        MeanFieldNormal(initial_ratio=0.0)


SHAPE, INPUT_AXES = (2, 3, 4), (0, 2)
PRIORS = [
    pytest.param(Normal(0.2, 0.5), id="normal"),
    pytest.param(FanInNormal(), id="fan_in"),
    pytest.param(TiedMean(), id="tied_mean"),
    pytest.param(Moped(Normal(scale=0.3)), id="moped"),
    *(pytest.param(EmpiricalBayes(groups), id=groups) for groups in ("layer", "row", "column", "row_column")),
]


def moved(posterior: Posterior, shape: tuple[int, ...] = SHAPE, input_axes: tuple[int, ...] = INPUT_AXES) -> Any:
    """A mean and a posterior's variables, away from their start."""
    mean, variables = variables_of(posterior, shape, input_axes)
    generator = np.random.default_rng(3)
    mean.assign(generator.normal(size=shape))
    for name, variable in variables.items():
        speed = posterior.speed if name.endswith("rho") else 1.0  # type: ignore[attr-defined]
        variable.assign(generator.normal(-0.7, 0.4, size=variable.shape) / speed)
    return mean, variables


def dense_covariance(posterior: Posterior, variables: Any) -> np.ndarray:
    """Of all weights, flattened, from the variables alone."""
    values = {name: array(variable).astype("float64") for name, variable in variables.items()}
    if isinstance(posterior, MatrixNormal):
        rows, columns = np.exp(posterior.speed * values["row_rho"]), np.exp(posterior.speed * values["column_rho"])
        return np.diag(np.square(rows * columns).ravel())
    assert isinstance(posterior, LowRankNormal)
    V = values["factor"].reshape(-1, posterior.rank)
    return np.diag(np.exp(2 * posterior.speed * values["rho"]).ravel()) + V @ V.T


def dense_kl(mean: np.ndarray, covariance: np.ndarray, prior_mean: np.ndarray, prior_scale: np.ndarray) -> float:
    """KL(N(mean, covariance) || N(prior_mean, diag(prior_scale^2))), from the textbook."""
    precision = np.diag(1 / prior_scale**2)
    quadratic = np.trace(precision @ covariance) + (mean - prior_mean) @ precision @ (mean - prior_mean)
    log_ratio = 2 * np.sum(np.log(prior_scale)) - np.linalg.slogdet(covariance)[1]
    return 0.5 * (quadratic - len(mean) + log_ratio)


@pytest.mark.core
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", [LowRankNormal(1), LowRankNormal(3), MatrixNormal()], ids=repr)
def test_divergence_equals_that_of_the_full_covariance(posterior: Any, prior: Prior):
    mean, variables = moved(posterior)
    covariance = dense_covariance(posterior, variables)
    # An empirical-Bayes scale is a function of the second moments: the marginals'.
    marginal = np.sqrt(np.diag(covariance)).reshape(SHAPE).astype("float32")
    held = prior.create(keras.layers.Layer(), "kernel", keras.Variable(np.full(SHAPE, 0.4, "float32")))
    parameters = prior.parameters(ops.convert_to_tensor(mean), ops.convert_to_tensor(marginal), INPUT_AXES, held)
    of_prior = [(np.zeros(SHAPE) + array(ops.convert_to_tensor(value))).ravel() for value in parameters]
    observed = posterior.kl(mean, variables, prior, INPUT_AXES, held)
    assert_allclose(array(observed), dense_kl(array(mean).ravel(), covariance, *of_prior), rtol=1e-5)
    assert observed.shape == ()
    assert_allclose(array(posterior.scale(variables)), marginal, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("prior", [*PRIORS, Laplace(), ScaleMixture(learned=True), Horseshoe()], ids=str)
def test_without_directions_a_low_rank_divergence_is_the_mean_field_one(prior: Prior):
    mean, variables = moved(LowRankNormal())
    variables["factor"].assign(np.zeros((*SHAPE, 2)))
    held = prior.create(keras.layers.Layer(), "kernel", mean)
    expected = MeanFieldNormal().kl(mean, variables, prior, INPUT_AXES, held)
    assert_allclose(array(LowRankNormal().kl(mean, variables, prior, INPUT_AXES, held)), array(expected), rtol=1e-6)


def test_with_outer_product_scales_a_mean_field_divergence_is_the_matrix_normal_one():
    posterior = MatrixNormal()
    mean, variables = moved(posterior)
    _, independent = variables_of(MeanFieldNormal(), SHAPE, INPUT_AXES)
    independent["rho"].assign(array(variables["row_rho"]) + array(variables["column_rho"]))
    assert_allclose(array(posterior.scale(variables)), array(MeanFieldNormal().scale(independent)), rtol=1e-5)
    for prior in (Normal(), EmpiricalBayes()):
        expected = MeanFieldNormal().kl(mean, independent, prior, INPUT_AXES)
        assert_allclose(array(posterior.kl(mean, variables, prior, INPUT_AXES)), array(expected), rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("posterior", [LowRankNormal(1), LowRankNormal(3), MatrixNormal()], ids=repr)
def test_perturbations_have_the_covariance_of_the_posterior(posterior: Any):
    _, variables = moved(posterior, (2, 3), (0,))
    key = random.draw_key(5)
    if keras.backend.backend() == "torch":
        number = 1_000
        keys = [random.fold_in(key, index) for index in range(number)]
        draws = np.stack([array(posterior.perturbation(variables, each)) for each in keys])
    else:
        number = 4_000
        keys = ops.transpose(random.fold_in(key, ops.arange(number)))
        draws = array(ops.vectorized_map(lambda each: posterior.perturbation(variables, each), keys))
    draws = draws.reshape(number, -1)
    assert_moments(draws, 0.0, np.diag(dense_covariance(posterior, variables)))
    if isinstance(posterior, LowRankNormal):  # independent weights have products of mean zero, tested there as well
        assert not np.allclose(np.corrcoef(draws.T), np.eye(6), atol=0.2)
    assert_covariance(draws, np.zeros(6), dense_covariance(posterior, variables))
    assert_array_equal(*(array(posterior.perturbation(variables, keys[0])) for _ in range(2)))


@pytest.mark.core
@pytest.mark.parametrize("factor", [0.0, 1.0, 1e4], ids="V={}".format)
def test_low_rank_gradients_are_finite(factor: float):
    """At V = 0; where d is far below V and the columns are parallel; and where d underflows."""
    posterior = LowRankNormal(3)
    mean, variables = moved(posterior)
    names = list(variables)
    for log_scale in (-1.0, -20.0, -1e3):
        values = {"rho": np.full(SHAPE, log_scale / posterior.speed), "factor": np.full((*SHAPE, 3), factor)}
        tensors = [ops.convert_to_tensor(values[name].astype("float32")) for name in names]

        def loss(tensors: list[Any]) -> Any:
            parts = dict(zip(names, tensors, strict=True))
            draw = posterior.perturbation(parts, random.draw_key(0))
            return posterior.kl(mean, parts, Normal(), INPUT_AXES) + ops.sum(ops.square(draw))

        assert np.isfinite(array(loss(tensors)))
        assert all(np.all(np.isfinite(array(gradient))) for gradient in gradients(loss, tensors))


@pytest.mark.core
def test_low_rank_gradients_equal_the_closed_form():
    """For the prior N(0, I): dKL/dV = (I - S^-1) V, and dKL/d(log d_i) = d_i^2 (1 - (S^-1)_ii)."""
    posterior = LowRankNormal(2)
    mean, variables = moved(posterior)
    precision = np.linalg.inv(dense_covariance(posterior, variables))
    V = array(variables["factor"]).astype("float64").reshape(-1, 2)
    squares = np.exp(2 * posterior.speed * array(variables["rho"]).astype("float64")).ravel()

    def loss(tensors: list[Any]) -> Any:
        return posterior.kl(mean, dict(zip(("factor", "rho"), tensors, strict=True)), Normal(), INPUT_AXES)

    of_factor, of_rho = gradients(loss, [ops.convert_to_tensor(array(variables[name])) for name in ("factor", "rho")])
    assert_allclose(array(of_factor).reshape(-1, 2), V - precision @ V, rtol=1e-4, atol=1e-5)
    expected = posterior.speed * squares * (1 - np.diag(precision))
    assert_allclose(array(of_rho).ravel(), expected, rtol=1e-4, atol=1e-5)


def test_low_rank_starts_near_mean_field_but_not_at_zero():
    shape = (40, 50)
    for posterior, stddev in (
        (LowRankNormal(), INITIAL_RELATIVE_FACTOR * INITIAL_RELATIVE_SCALE / np.sqrt(40)),
        (LowRankNormal(initial_scale=0.3), INITIAL_RELATIVE_FACTOR * 0.3),
        (LowRankNormal(initial_scale=0.3, initial_factor_scale=0.2), 0.2),
    ):
        keras.utils.set_random_seed(1)
        _, variables = variables_of(posterior, shape, (0,))
        assert variables["factor"].path.endswith("kernel_factor")
        factor = array(variables["factor"])
        assert_moments(factor.ravel(), 0.0, stddev**2)
        keras.utils.set_random_seed(1)
        assert_array_equal(array(variables_of(posterior, shape, (0,))[1]["factor"]), factor)


@pytest.mark.parametrize(
    ("shape", "input_axes", "rows", "columns"),
    [
        ((4, 5), (0,), (4, 1), (1, 5)),
        ((3, 3, 2, 5), (0, 1, 2), (3, 3, 2, 1), (1, 1, 1, 5)),
        ((2, 5, 3), (0, 2), (2, 1, 3), (1, 5, 1)),
        ((5,), (), (1,), (5,)),
    ],
)
def test_matrix_normal_has_a_scale_for_each_input_and_output(
    shape: tuple[int, ...], input_axes: tuple[int, ...], rows: tuple[int, ...], columns: tuple[int, ...]
):
    for initial_scale in (None, 0.3):
        posterior = MatrixNormal(initial_scale)
        _, variables = variables_of(posterior, shape, input_axes)
        assert {name: variable.shape for name, variable in variables.items()} == {
            "row_rho": rows,
            "column_rho": columns,
        }
        expected = initial_scale or INITIAL_RELATIVE_SCALE / np.sqrt(np.prod([shape[axis] for axis in input_axes]))
        assert_allclose(array(posterior.scale(variables)), np.full(shape, expected), rtol=5e-6)


def test_low_rank_weights_are_refused_by_estimators_of_independent_ones():
    dense = keras.layers.Dense(2)
    for estimator in ("flipout", "local_reparameterization"):
        with pytest.raises(
            ValueError,
            match=f"`estimator`='{estimator}' needs weights that are independent .* 'kernel' .*LowRankNormal",
        ):
            Variational(dense, estimator, posterior="low_rank")
    with pytest.raises(
        ValueError, match=r"'bias' has the posterior LowRankNormal.* Use estimator='reparameterization'"
    ):
        bdl.layers.DenseFlipout(2, bias_prior="normal", bias_posterior="low_rank")
    with pytest.raises(ValueError, match=r"`estimator`='local_reparameterization'"):
        bdl.layers.Conv1DLocalReparameterization(2, 2, kernel_posterior=LowRankNormal())


FITTED = [
    pytest.param("reparameterization", LowRankNormal(), id="low_rank"),
    pytest.param("reparameterization", MatrixNormal(), id="matrix_normal"),
    pytest.param("flipout", MatrixNormal(), id="matrix_normal flipout"),
    pytest.param("local_reparameterization", MatrixNormal(), id="matrix_normal local"),
]


@pytest.mark.core
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize(("estimator", "posterior"), FITTED)
def test_a_model_is_fitted_saved_and_loaded(estimator: str, posterior: Posterior, policy: str, tmp_path: Any):
    x = np.random.default_rng(0).normal(size=(16, 5, 3)).astype("float32")
    family = {"estimator": estimator, "posterior": posterior, "weights": ("kernel", "bias"), "seed": 1}
    network = keras.Sequential(
        [
            keras.Input((5, 3)),
            Variational(keras.layers.Conv1D(4, 2, activation="relu", dtype=policy), **family),
            keras.layers.Flatten(),
            Variational(keras.layers.Dense(2, dtype=policy), **family),
        ]
    )
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), kl_weight=1.0)
    eager = policy == "mixed_float16" and keras.backend.backend() == "tensorflow"  # two steps: less than a compiler
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=eager)
    before = [array(weight) for weight in network.trainable_weights]
    history = model.fit(x, np.zeros((16, 2)), batch_size=8, epochs=1, verbose=0).history
    assert np.all(np.isfinite(list(history.values())))
    for weight, value in zip(network.trainable_weights, before, strict=True):
        assert weight.dtype == "float32"
        assert np.all(np.isfinite(array(weight)))
        assert not np.array_equal(array(weight), value), weight.path
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    for weight, same in zip(network.weights, loaded.weights, strict=True):
        assert_array_equal(array(weight), array(same))
    assert {weight.posterior for weight in loaded.layers[0].sampled_weights.values()} == {posterior}
    assert_allclose(array(loaded(x)), array(network(x)), rtol=1e-6)
    assert_allclose(array(bdl.kl_divergence(loaded)), array(bdl.kl_divergence(network)), rtol=1e-6)


def test_on_correlated_inputs_a_low_rank_posterior_comes_closer_to_the_evidence():
    """Bayesian linear regression y = X w + noise, in closed form: log p(y) - ELBO = KL(q || posterior) >= 0."""
    generator = np.random.default_rng(2)
    n, d, noise, prior_scale = 40, 3, 0.5, 1.0
    X = (generator.normal(size=(n, 1)) + 0.3 * generator.normal(size=(n, d))).astype("float32")
    y = X @ generator.normal(size=d) + noise * generator.normal(size=n)
    evidence = stats.multivariate_normal.logpdf(y, cov=prior_scale**2 * X @ X.T + noise**2 * np.eye(n))

    def fitted_elbo(posterior: Posterior) -> float:
        keras.utils.set_random_seed(0)
        dense = keras.layers.Dense(1, use_bias=False)
        layer = Variational(dense, prior=Normal(scale=prior_scale), posterior=posterior, seed=1)
        model = bdl.VariationalModel(
            keras.Sequential([keras.Input((d,)), layer]),
            bdl.likelihoods.Normal(scale=noise),
            num_examples=n,
            kl_weight=1.0,
        )
        rate = keras.optimizers.schedules.CosineDecay(3e-2, 1_500)
        train_on_stream(model, keras.optimizers.Adam(rate), itertools.repeat((X, y)), num_steps=1_500)
        weight = layer.sampled_weights["kernel"]
        mean = array(weight.mean)[:, 0].astype("float64")
        if isinstance(posterior, LowRankNormal):
            covariance = dense_covariance(posterior, weight.variables)
        else:
            covariance = np.diag(np.square(array(weight.posterior.scale(weight.variables)).ravel()))
        squares = np.sum((y - X @ mean) ** 2) + np.trace(X @ covariance @ X.T)
        expected = -0.5 * n * np.log(2 * np.pi * noise**2) - squares / (2 * noise**2)
        return expected - dense_kl(mean, covariance, np.zeros(d), np.full(d, prior_scale))

    mean_field, low_rank = fitted_elbo(MeanFieldNormal(speed=3.0)), fitted_elbo(LowRankNormal(2, speed=3.0))
    precision = np.eye(d) / prior_scale**2 + X.T @ X / noise**2
    best_gap = 0.5 * (np.sum(np.log(np.diag(precision))) - np.linalg.slogdet(precision)[1])  # of mean-field: 1.9 nats
    assert mean_field <= evidence - best_gap
    # Three weights with two directions can equal the posterior; the rest is what noisy steps leave.
    assert evidence - 0.1 * best_gap < low_rank <= evidence
