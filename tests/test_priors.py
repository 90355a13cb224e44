"""Divergences from every prior, and the optimality of the empirical-Bayes scales."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_arrays
from layer_contract import array
from numpy.testing import assert_allclose

from bdl import priors
from bdl.priors import (
    EMPIRICAL_BAYES_GROUPS,
    EmpiricalBayes,
    FanInNormal,
    Horseshoe,
    Laplace,
    Normal,
    Prior,
    ScaleMixture,
    TiedMean,
    WidthNormal,
    normal_kl,
)

Array = np.ndarray[Any, Any]
BAD_SCALES = [0, -1.0, math.nan, math.inf, "one", None, True]


@st.composite
def posteriors(draw: Callable[[Any], Any], min_dims: int = 0) -> tuple[Array, Array]:
    """Means and scales of any shape."""
    shape = draw(hypothesis_arrays.array_shapes(min_dims=min_dims, max_dims=4, max_side=5))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    means = generator.normal(size=shape) * draw(st.sampled_from([0.0, 0.1, 1.0, 30.0]))
    scales = np.exp(generator.normal(size=shape)) * draw(st.sampled_from([0.01, 1.0, 10.0]))
    return means.astype("float32"), scales.astype("float32")


def closed_form(mean: Array, scale: Array, prior_mean: Any, prior_scale: Any) -> float:
    """The divergence written in float64, from the definition of both densities' logarithms."""
    mean, scale = mean.astype("float64"), scale.astype("float64")
    expected_log_q = -0.5 * np.log(2 * np.pi * np.e * scale**2)
    expected_square = scale**2 + (mean - prior_mean) ** 2
    expected_log_p = -0.5 * np.log(2 * np.pi * np.square(prior_scale)) - expected_square / (2 * np.square(prior_scale))
    return float(np.sum(expected_log_q - expected_log_p))


@settings(max_examples=50, deadline=None)
@given(posteriors(), st.floats(-3, 3), st.floats(0.01, 10))
def test_normal_divergence_is_the_closed_form_and_not_negative(
    posterior: tuple[Array, Array], prior_mean: float, prior_scale: float
):
    observed = array(Normal(prior_mean, prior_scale).kl(*posterior))
    expected = closed_form(*posterior, prior_mean, prior_scale)
    size = posterior[0].size
    largest = np.max(((posterior[0] - prior_mean) ** 2 + posterior[1] ** 2) / prior_scale**2) + 20
    assert_allclose(observed, expected, atol=1e-6 * size * largest)  # float32 rounding of terms this large
    assert expected >= 0


@given(hypothesis_arrays.array_shapes(min_dims=0, max_dims=4, max_side=5), st.floats(-3, 3), st.floats(0.01, 10))
@settings(max_examples=50, deadline=None)
def test_divergence_is_zero_at_equality_for_any_shape(shape: tuple[int, ...], mean: float, scale: float):
    mean, scale = float(np.float32(mean)), float(np.float32(scale))
    means, scales = np.full(shape, mean, "float32"), np.full(shape, scale, "float32")
    assert array(Normal(mean, scale).kl(means, scales)) == 0
    assert array(TiedMean(scale).kl(means, scales)) == 0


@settings(max_examples=50, deadline=None)
@given(posteriors(min_dims=2), st.sampled_from(EMPIRICAL_BAYES_GROUPS))
def test_divergence_from_a_fitted_prior_is_not_negative(posterior: tuple[Array, Array], groups: str):
    rounding = 1e-5 * posterior[0].size
    assert array(EmpiricalBayes(groups, pseudo_count=0.0).kl(*posterior, input_axes=(0,))) >= -rounding


@pytest.mark.parametrize("input_axes", [(0,), (1,), (0, 1), (0, 2)])
@pytest.mark.parametrize("groups", ["layer", "row", "column"])
def test_empirical_bayes_scale_is_the_exact_minimiser(groups: str, input_axes: tuple[int, ...]):
    """Each group's scale times any factor c raises the group's divergence by n (log c + (1/c^2 - 1) / 2)."""
    generator = np.random.default_rng(0)
    mean, scale = generator.normal(size=(4, 3, 5)), generator.uniform(0.1, 1.0, size=(4, 3, 5))
    prior = EmpiricalBayes(groups, pseudo_count=0.0)
    prior_mean, prior_scale = prior.parameters(mean, scale, input_axes)
    prior_scale = array(prior_scale).astype("float64")
    output_axes = tuple(axis for axis in range(3) if axis not in input_axes)
    expected_shape = {
        "layer": (1, 1, 1),
        "row": tuple(size if axis in input_axes else 1 for axis, size in enumerate(mean.shape)),
        "column": tuple(size if axis in output_axes else 1 for axis, size in enumerate(mean.shape)),
    }[groups]
    groups_scale = prior_scale[tuple(slice(size) for size in expected_shape)]
    assert_allclose(prior_scale, np.broadcast_to(groups_scale, mean.shape), rtol=1e-6)
    prior_scale = groups_scale
    assert prior_mean == 0.0
    least = closed_form(mean, scale, 0.0, prior_scale)
    assert_allclose(array(prior.kl(mean.astype("float32"), scale.astype("float32"), input_axes)), least, rtol=1e-5)
    weights_a_group = mean.size / prior_scale.size
    for group in np.ndindex(prior_scale.shape):
        for factor in (0.8, 0.99, 1.01, 1.3):
            moved = prior_scale.copy()
            moved[group] *= factor
            increase = weights_a_group * (np.log(factor) + (factor**-2 - 1) / 2)
            assert increase > 0
            assert_allclose(closed_form(mean, scale, 0.0, moved) - least, increase, rtol=1e-3, atol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("shape", [(8, 3), (2, 2, 4, 5), (7,)])
def test_fan_in_priors(shape: tuple[int, ...]):
    mean, scale = np.full(shape, 0.3, "float32"), np.full(shape, 0.2, "float32")
    input_axes = tuple(range(len(shape) - 1))
    width = 1 / np.sqrt(np.prod(shape[:-1]))
    assert_allclose(array(FanInNormal(2.0).kl(mean, scale, input_axes)), closed_form(mean, scale, 0, 2 * width), 1e-5)
    assert_allclose(array(TiedMean().kl(mean, scale, input_axes)), closed_form(mean, scale, mean, width), 1e-5)


@pytest.mark.core
@pytest.mark.parametrize(
    ("shape", "spread"),
    [
        ((8, 3), 0.05 * np.sqrt(8)),
        ((8, 32), 0.05 * np.sqrt(32)),  # the wider side decides
        ((2, 2, 4, 5), 0.05 * np.sqrt(16)),
        ((7,), 0.05 * np.sqrt(7)),
        ((500, 3), 1.0),  # not beyond the largest spread
    ],
)
def test_the_spread_grows_with_the_wider_side(shape: tuple[int, ...], spread: float):
    mean, scale = np.full(shape, 0.3, "float32"), np.full(shape, 0.2, "float32")
    input_axes = tuple(range(len(shape) - 1))
    expected = closed_form(mean, scale, mean, spread / np.sqrt(np.prod(shape[:-1])))
    assert_allclose(array(TiedMean(WidthNormal()).kl(mean, scale, input_axes)), expected, rtol=1e-5)


def test_normal_kl_broadcasts_and_is_elementwise():
    observed = array(normal_kl(np.zeros((2, 1), "float32"), np.ones((1, 3), "float32"), 1.0, np.ones(3, "float32")))
    assert_allclose(observed, np.full((2, 3), 0.5))


@pytest.mark.parametrize("scale", BAD_SCALES)
@pytest.mark.parametrize("prior", [Normal, FanInNormal, WidthNormal, TiedMean])
def test_scales_must_be_positive_and_finite(prior: type[Prior], scale: Any):
    with pytest.raises(ValueError, match=r"`scale` must be .*a finite positive number"):
        prior(scale=scale)


def test_the_largest_spread_must_be_positive():
    with pytest.raises(ValueError, match=r"`max_spread` must be .*a finite positive number"):
        WidthNormal(max_spread=0.0)


def test_get_takes_names_objects_and_configurations():
    for name, expected in (("normal", Normal()), ("fan_in_normal", FanInNormal()), ("tied_mean", TiedMean())):
        assert priors.get(name) == expected
    assert priors.get("width_normal") == WidthNormal()
    assert priors.get("empirical_bayes") == EmpiricalBayes()
    assert priors.get(Normal(1.0)) == Normal(1.0)
    assert (priors.get("laplace"), priors.get("horseshoe")) == (Laplace(), Horseshoe())
    assert priors.get("scale_mixture") == ScaleMixture()
    for bad in ("gauss", 1.0, None, Normal):
        with pytest.raises(ValueError, match=r"`my_prior` must be a bdl.priors.Prior or one of the names \['empirical"):
            priors.get(bad, "my_prior")


def test_priors_are_immutable_and_compare_by_value():
    assert Normal(0.0, 2.0) == Normal(scale=2.0) != Normal()
    assert len({Normal(), Normal(), Normal(1.0)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Normal().scale = 2.0


def test_a_prior_of_a_users_own_needs_only_its_parameters():
    class Wide(Prior):
        def parameters(self, mean: Any, scale: Any, input_axes: Any, variables: Any = None) -> tuple[Any, Any]:
            return 0.0, 3.0

    mean, scale = np.ones((2, 2), "float32"), np.ones((2, 2), "float32")
    assert_allclose(array(Wide().kl(mean, scale)), closed_form(mean, scale, 0.0, 3.0), rtol=1e-6)
    with pytest.raises(NotImplementedError):
        Prior().parameters(mean, scale, ())
    with pytest.raises(
        ValueError, match="cannot be the prior of a point estimate: its density at a point is not known"
    ):
        Wide().penalty(mean)
