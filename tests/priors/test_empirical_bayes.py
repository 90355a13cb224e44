"""The fitted scales are the maximisers of the ELBO, told by numerical optimisation in float64."""

from typing import Any

import numpy as np
import pytest
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose
from scipy import optimize

from bdl.priors import EMPIRICAL_BAYES_GROUPS, EmpiricalBayes
from bdl.priors.empirical_bayes import ALTERNATIONS, fitted_variances

Array = np.ndarray[Any, Any]
PSEUDO_COUNTS = [0.0, 1.0, 7.5]


def spread(groups: str, shape: tuple[int, int], rho: Array) -> tuple[Array, Array, Array]:
    """Log variances of all weights, and those of rows and columns that have a hyperprior, from free numbers."""
    rows = shape[0]
    none = np.zeros(0)
    if groups == "layer":
        return np.full(shape, rho[0]), rho, none
    if groups == "row":
        return np.broadcast_to(rho[:, None], shape), rho, none
    if groups == "column":
        return np.broadcast_to(rho, shape), rho, none
    return rho[:rows, None] + rho[rows:], rho[:rows], rho[rows:]


def objective(moments: Array, groups: str, count: float, rho: Array) -> float:
    """The objective of `EmpiricalBayes` in nats, without the entropy, from logarithms of the variances."""
    log_variance, plain, relative = spread(groups, moments.shape, rho)
    divergence = 0.5 * np.sum(moments * np.exp(-log_variance) + log_variance - 1)
    hyperprior = np.sum(np.exp(-plain) / len(moments) + plain) + np.sum(np.exp(-relative) + relative)
    return float(divergence + 0.5 * count * hyperprior)


def optimum(moments: Array, groups: str, count: float) -> tuple[float, Array]:
    size = {"layer": 1, "row": moments.shape[0], "column": moments.shape[1], "row_column": sum(moments.shape)}[groups]
    found = optimize.minimize(
        lambda rho: objective(moments, groups, count, rho),
        np.full(size, 0.5 * np.log(np.mean(moments))),
        jac=lambda rho: gradient(moments, groups, count, rho),
        method="BFGS",
        options={"gtol": 1e-7, "maxiter": 5_000},
    )
    return found.fun, np.exp(spread(groups, moments.shape, found.x)[0])


def gradient(moments: Array, groups: str, count: float, rho: Array) -> Array:
    log_variance, plain, relative = spread(groups, moments.shape, rho)
    each = 0.5 * (1 - moments * np.exp(-log_variance))
    of_plain = 0.5 * count * (1 - np.exp(-plain) / len(moments))
    of_relative = 0.5 * count * (1 - np.exp(-relative))
    if groups == "layer":
        return each.sum() + of_plain
    if groups == "row":
        return each.sum(1) + of_plain
    if groups == "column":
        return each.sum(0) + of_plain
    return np.concatenate([each.sum(1) + of_plain, each.sum(0) + of_relative])


def value(moments: Array, groups: str, count: float, rows: Any, columns: Any) -> float:
    """The objective at a fit."""
    rows, columns = array(rows).astype("float64"), array(columns).astype("float64")
    rho = {
        "layer": rows[:1] * columns[:1],
        "row": rows * columns[0],
        "column": rows[0] * columns,
        "row_column": np.concatenate([rows, columns]),
    }[groups]
    return objective(moments, groups, count, np.log(rho))


def random_moments(shape: tuple[int, int], seed: int = 0) -> Array:
    generator = np.random.default_rng(seed)
    rows, columns = (np.exp(generator.normal(size=size)) for size in shape)
    return np.outer(rows, columns) * (generator.normal(size=shape) ** 2 + 0.1) / shape[0]


@pytest.mark.parametrize("count", PSEUDO_COUNTS)
@pytest.mark.parametrize("groups", EMPIRICAL_BAYES_GROUPS)
@pytest.mark.parametrize("shape", [(6, 4), (3, 8)])
def test_the_fit_is_the_numerical_optimum(groups: str, count: float, shape: tuple[int, int]):
    moments = random_moments(shape)
    least, variances = optimum(moments, groups, count)
    fit = fitted_variances(moments.astype("float32"), groups, count)
    excess = value(moments, groups, count, *fit) - least
    # The bound of the class's docstring; means alone are exact up to float32's rounding.
    assert -1e-4 <= excess < (1e-2 if groups == "row_column" else 1e-4)
    converged = fitted_variances(moments.astype("float32"), groups, count, alternations=50)
    assert value(moments, groups, count, *converged) - least < 1e-4
    assert_allclose(np.outer(*map(array, converged)), variances, rtol=1e-3)


def sparse_moments(shape: tuple[int, int], share: float = 0.05) -> Array:
    generator = np.random.default_rng(1)
    used = generator.random(shape) < share
    return used * generator.normal(size=shape) ** 2 * 20 / shape[0] + 1e-4 / shape[0]


def blocks(shape: tuple[int, int]) -> Array:
    moments = np.full(shape, 1e-4 / shape[0])
    moments[: shape[0] // 3, : shape[1] // 2] = 1 / shape[0]
    moments[shape[0] // 3 :, shape[1] // 2 :] = 0.1 / shape[0]
    return moments


HARD = {
    "sparse": sparse_moments((30, 20)),
    "two rows": np.concatenate([np.full((20, 8), 1e-10), random_moments((2, 8))]),
    "huge ratios": np.outer(np.logspace(-4, 4, 12), np.logspace(3, -3, 9)) * random_moments((12, 9)),
    "blocks": blocks((12, 8)),
}


@pytest.mark.parametrize("count", PSEUDO_COUNTS)
@pytest.mark.parametrize("case", list(HARD))
def test_alternations_converge_to_the_numerical_optimum_from_hard_starts(case: str, count: float):
    """Also where the default number of them does not arrive."""
    moments = HARD[case]
    least, _ = optimum(moments, "row_column", count)
    values = [
        value(moments, "row_column", count, *fitted_variances(moments.astype("float32"), "row_column", count, number))
        for number in (1, ALTERNATIONS, 10, 400)
    ]
    assert values[0] > values[1] - 1e-3 > values[2] - 2e-3  # each alternation descends
    assert abs(values[-1] - least) < 1e-5 * moments.size + 1e-3


SIZED = {
    "at random": (random_moments((64, 256)), 1e-4),
    "log-normal": (np.exp(2 * np.random.default_rng(0).normal(size=(256, 10))) / 256, 1e-4),
    "half of the rows unused": (np.concatenate([np.full((32, 100), 1 / 64), random_moments((32, 100))]), 1e-4),
    "sparse": (sparse_moments((512, 10)), 0.1),
    "sparse and wide": (sparse_moments((64, 512)), 0.1),
}


@pytest.mark.parametrize("count", [0.0, 1.0])
@pytest.mark.parametrize("case", list(SIZED))
def test_the_default_alternations_are_as_near_as_the_docstring_says(case: str, count: float):
    moments, per_weight = SIZED[case]
    fits = [fitted_variances(moments.astype("float32"), "row_column", count, number) for number in (ALTERNATIONS, 200)]
    near, converged = (value(moments, "row_column", count, *fit) for fit in fits)
    assert -1e-3 <= near - converged < per_weight * moments.size


@pytest.mark.core
@pytest.mark.parametrize("count", [0.0, 1.0])
@pytest.mark.parametrize("groups", EMPIRICAL_BAYES_GROUPS)
def test_the_gradient_is_that_at_fixed_prior_scales_and_of_the_fitted_objective(groups: str, count: float):
    """Envelope theorem: numerically differentiated, the optimum over the scales has the gradient of a fixed prior."""
    generator = np.random.default_rng(2)
    mean, scale = generator.normal(size=(5, 3)).astype("float32"), generator.uniform(0.1, 1, (5, 3)).astype("float32")
    prior = EmpiricalBayes(groups, count)
    tensors = [ops.convert_to_tensor(mean), ops.convert_to_tensor(scale)]
    found = [array(part) for part in gradients(lambda values: prior.kl(*values, (0,)), tensors)]
    fixed = array(prior.parameters(*tensors, (0,))[1])
    assert_allclose(found[0], mean / fixed**2, rtol=1e-4)
    assert_allclose(found[1], scale / fixed**2 - 1 / scale, rtol=1e-4, atol=1e-4)
    moments = mean.astype("float64") ** 2 + scale.astype("float64") ** 2
    step = np.zeros_like(moments)
    step[1, 2] = 1e-3
    slope = (optimum(moments + step, groups, count)[0] - optimum(moments - step, groups, count)[0]) / 2e-3
    assert_allclose(found[0][1, 2] / (2 * mean[1, 2]), slope, rtol=5e-3)


def test_row_column_variances_are_balanced():
    moments = random_moments((6, 4))
    variance = np.outer(*map(array, fitted_variances(moments.astype("float32"), "row_column", 0.0, 50)))
    for axis in (0, 1):
        assert_allclose((moments / variance).mean(axis=axis), 1.0, rtol=1e-5)
    assert np.linalg.matrix_rank(variance, tol=1e-5) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.sampled_from(["layer", "row", "column"]), st.integers(1, 50))
def test_pseudo_count_acts_as_that_many_weights_of_one_over_fan_in(rows: int, columns: int, groups: str, count: int):
    generator = np.random.default_rng(rows * 10 + columns)
    mean, scale = generator.normal(size=(rows, columns)), generator.uniform(0.1, 1.0, size=(rows, columns))
    axis = {"layer": None, "row": 1, "column": 0}[groups]
    group = np.sum(mean**2 + scale**2, axis=axis, keepdims=True)
    size = mean.size // group.size
    expected = np.sqrt((group + count / rows) / (size + count))
    found = array(EmpiricalBayes(groups, count).parameters(mean, scale, (0,))[1])
    assert_allclose(found, np.broadcast_to(expected, mean.shape), rtol=1e-5)


def test_a_direction_at_its_prior_goes_to_the_hyperpriors_scale():
    """An input that the data never see: its posterior is its prior, whose variance renews itself until 1 / fan_in."""
    moments = random_moments((4, 3)).astype("float32")
    for _ in range(60):
        rows, columns = map(array, fitted_variances(moments, "row_column", 2.0, 10))
        moments[0] = rows[0] * columns
    assert_allclose(rows[0], 1 / 4, rtol=1e-3)


@pytest.mark.parametrize("groups", EMPIRICAL_BAYES_GROUPS)
@pytest.mark.parametrize(("shape", "input_axes"), [((2,), ()), ((2, 1), (0,)), ((1, 2), (0,))])
def test_a_vector_has_one_scale(groups: str, shape: tuple[int, ...], input_axes: tuple[int, ...]):
    mean, scale = np.reshape([1.0, 2.0], shape), np.reshape([0.5, 0.1], shape)
    expected = np.full(shape, np.sqrt(np.mean(mean**2 + scale**2)))
    prior = EmpiricalBayes(groups, pseudo_count=0.0)
    assert_allclose(array(prior.parameters(mean, scale, input_axes)[1]), expected, rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("groups", EMPIRICAL_BAYES_GROUPS)
@pytest.mark.parametrize("count", [0.0, 1.0])
def test_it_is_finite_where_all_weights_vanish(groups: str, count: float):
    mean, scale = np.zeros((3, 2), "float32"), np.full((3, 2), 1e-8, "float32")
    prior = EmpiricalBayes(groups, count)
    assert np.isfinite(array(prior.kl(mean, scale, (0,))))
    assert np.all(np.isfinite(array(prior.parameters(mean, scale, (0,))[1])))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"`groups` must be one of .*'row_column'.*, not 'rows'"):
        EmpiricalBayes("rows")
    for count in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="`pseudo_count` must be a finite number of weights >= 0"):
            EmpiricalBayes(pseudo_count=count)
