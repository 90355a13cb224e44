"""Maps from the real line onto supports: their volume, their inverse, their edges, their shapes."""

import math

import keras
import numpy as np
import pytest
from distribution_libraries import array, double, float64, single
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from bdl.keras_internals import compiled
from bdl.svi.supports import (
    Above,
    Below,
    Between,
    CorrelationCholesky,
    CorrelationMatrix,
    Flat,
    LowerCholesky,
    Ordered,
    PositiveDefinite,
    Product,
    Real,
    Simplex,
    batch_rank,
    interval,
    log_prob,
    sample,
    shape_of,
    support_of,
)

pytestmark = pytest.mark.core

BELOW = np.tri(3, k=-1, dtype=bool)
UP_TO_DIAGONAL = np.tri(3, dtype=bool)
ALL_BUT_LAST = np.array([True, True, True, False])

# Support, shape of a value, and which entries of an event are free; the others follow from them.
SUPPORTS = {
    "real": (Real(), (2, 3), None),
    "positive": (Above(0.0), (3,), None),
    "above": (Above(np.array([-1.0, 2.0])), (2,), None),
    "below": (Below(4.0), (3,), None),
    "unit interval": (Between(), (3,), None),
    "interval": (Between(np.array([-1.0, 2.0]), 5.0), (2,), None),
    "partly infinite": (interval(np.array([-1.0, -np.inf, 0.5, -np.inf]), [1.0, np.inf, np.inf, 2.0]), (4,), None),
    "simplex": (Simplex(), (2, 4), ALL_BUT_LAST),
    "ordered": (Ordered(), (2, 3), np.ones(3, bool)),
    "lower Cholesky": (LowerCholesky(), (3, 3), UP_TO_DIAGONAL),
    "correlation Cholesky": (CorrelationCholesky(), (3, 3), BELOW),
    "positive definite": (PositiveDefinite(), (3, 3), UP_TO_DIAGONAL),
    "correlation": (CorrelationMatrix(), (2, 3, 3), BELOW),
    "product": (
        Product([(Real(), 1), (Simplex(), 3), (Above(1.0), 2)]),
        (6,),
        np.array([True, True, True, False, True, True]),
    ),
}
CASES = pytest.mark.parametrize(("support", "shape", "free"), SUPPORTS.values(), ids=SUPPORTS.keys())


def unconstrained(support, shape, draws=3, seed=0):
    return np.random.default_rng(seed).normal(size=(draws, support.flat_size(shape)))


def numerical_jacobian(function, u, step=1e-3):
    """By central differences of fourth order: errors of step^4 and of rounding / step, both near 1e-12."""
    moves = step * np.eye(len(u))
    near, far = function(u + moves) - function(u - moves), function(u + 2 * moves) - function(u - 2 * moves)
    return (8 * near - far) / (12 * step)


@CASES
def test_log_determinants_are_those_of_numerical_jacobians(support, shape, free):
    with float64():
        constrain = compiled(lambda u: support.constrain(u, shape))

        def free_entries(u):
            value = array(constrain(double(u)))
            rank = 0 if free is None else free.ndim
            flat = (
                value
                if free is None
                else value.reshape(*value.shape[: value.ndim - rank], free.size)[..., free.ravel()]
            )
            return flat.reshape(len(u), -1)

        u = unconstrained(support, shape)
        expected = [np.linalg.slogdet(numerical_jacobian(free_entries, row))[1] for row in u]
        log_det = compiled(lambda u: support.log_det(u, shape))(double(u))
        assert keras.backend.standardize_dtype(log_det.dtype) == "float64"
        np.testing.assert_allclose(array(log_det), expected, rtol=0, atol=1e-9)


@CASES
def test_the_inverse_gives_the_unconstrained_numbers_back(support, shape, free):
    with float64():
        u = 2.0 * unconstrained(support, shape)
        value = compiled(lambda u: support.constrain(u, shape))(double(u))
        assert tuple(value.shape) == (3, *shape)
        back = compiled(lambda value: support.unconstrain(value, shape))(value)
        np.testing.assert_allclose(array(back), u, rtol=0, atol=1e-9)


@CASES
def test_float32_stays_float32_and_follows_float64(support, shape, free):
    u = unconstrained(support, shape)
    both = compiled(lambda u: (support.constrain(u, shape), support.log_det(u, shape)))
    value, log_det = both(single(u))
    assert {keras.backend.standardize_dtype(each.dtype) for each in (value, log_det)} == {"float32"}
    with float64():
        exact = [array(each) for each in both(double(u))]
    np.testing.assert_allclose(array(value), exact[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(array(log_det), exact[1], rtol=1e-5, atol=1e-5)


@CASES
def test_gradients_are_finite_in_float32_at_zero_and_far_out(support, shape, free):
    def total(values):
        return ops.sum(support.constrain(values[0], shape)) + ops.sum(support.log_det(values[0], shape))

    u = single(np.outer([0.0, 30.0, -30.0], np.ones(support.flat_size(shape))))
    assert np.all(np.isfinite(array(compiled(lambda u: gradients(total, [u])[0])(u))))
    assert np.all(np.isfinite(array(support.log_det(u, shape))))


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends know all sizes")
@CASES
def test_the_number_of_rows_may_be_unknown(support, shape, free):
    import tensorflow as tf

    u = single(unconstrained(support, shape))
    size = u.shape[-1]

    @tf.function(input_signature=[tf.TensorSpec((None, size), "float32")], autograph=False)
    def both_ways(u):
        value = support.constrain(u, shape)
        return value, support.unconstrain(value, shape), support.log_det(u, shape)

    value, back, log_det = (array(each) for each in both_ways(u))
    np.testing.assert_allclose(value, array(support.constrain(u, shape)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(back, array(u), atol=1e-4)
    np.testing.assert_allclose(log_det, array(support.log_det(u, shape)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, None), (2.0, None), (-1e4, None), (None, 0.0), (None, 3.0), (0.0, 1.0), (-1.0, 0.0), (2.0, 3.0), (1e4, 1e5)],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_never_rounded_onto_a_bound(low, high, dtype):
    with float64():
        u = ops.cast(double([[-1e3, -200.0, -40.0, 40.0, 80.0, 1e3]]), dtype)
        value = array(interval(low, high).constrain(u, (6,)))
    assert low is None or np.all(value > np.asarray(low, dtype))
    assert high is None or np.all(value < np.asarray(high, dtype))


def test_a_simplex_has_no_zero_and_a_triangle_no_zero_on_its_diagonal():
    pieces = array(Simplex().constrain(single([[200.0, 0.0, -200.0]]), (4,)))
    assert np.all(pieces > 0)
    np.testing.assert_allclose(pieces.sum(), 1.0, rtol=1e-6)
    triangle = array(LowerCholesky().constrain(single([[0.0, -200.0, -200.0]]), (2, 2)))
    assert np.all(np.diagonal(triangle[0]) > 0)


def test_an_upper_bound_of_zero_keeps_its_digits():
    """1 - 1e-20 is no float32; 1e-20 below a bound of zero is one, and comes back."""
    support = Between(-1.0, 0.0)
    value = support.constrain(single([[46.0]]), (1,))
    np.testing.assert_allclose(array(value), -np.exp(-46.0), rtol=1e-5)
    np.testing.assert_allclose(array(support.unconstrain(value, (1,))), 46.0, rtol=1e-5)


def test_zeros_are_the_middle():
    np.testing.assert_allclose(array(Simplex().constrain(single(np.zeros((1, 4))), (5,))), 0.2, rtol=1e-6)
    np.testing.assert_allclose(array(Between(2.0, 4.0).constrain(single([[0.0]]), (1,))), 3.0, rtol=1e-6)
    zeros = single(np.zeros((1, 3)))
    np.testing.assert_allclose(array(CorrelationMatrix().constrain(zeros, (3, 3)))[0], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(
        array(LowerCholesky().constrain(single(np.zeros((1, 6))), (3, 3)))[0], np.eye(3), atol=1e-6
    )


def test_matrices_are_what_they_should_be():
    u = double(unconstrained(CorrelationMatrix(), (4, 4)))
    factor, matrix = (array(support.constrain(u, (4, 4))) for support in (CorrelationCholesky(), CorrelationMatrix()))
    np.testing.assert_allclose(np.linalg.norm(factor, axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(matrix, factor @ np.swapaxes(factor, -1, -2), atol=1e-6)
    assert np.all(np.linalg.eigvalsh(matrix) > 0)
    assert np.all(np.triu(factor, 1) == 0)


@pytest.mark.parametrize("known", [True, False])
def test_gradients_reach_bounds_that_depend_on_other_variables(known):
    """Of `low + (high - low) s` by low `1 - s`, by high `s`; of the log determinant -1 and 1 over the width."""
    bounds = [single(1.0), single(3.0)]
    s = 1.0 / (1.0 + math.exp(-0.5))

    def value(bounds):
        support = Between(*bounds) if known else interval(*bounds)
        return ops.sum(support.constrain(single([[0.5]]), (1,)))

    def log_det(bounds):
        support = Between(*bounds) if known else interval(*bounds)
        return ops.sum(support.log_det(single([[0.5]]), (1,)))

    np.testing.assert_allclose([array(each) for each in gradients(value, bounds)], [1 - s, s], rtol=1e-5)
    np.testing.assert_allclose([array(each) for each in gradients(log_det, bounds)], [-0.5, 0.5], rtol=1e-5)


def test_gradients_are_finite_where_bounds_are_infinite_and_not_known_before():
    def total(values):
        support = interval(values[0] + single([-np.inf, 0.0, -np.inf, 0.0]), values[1])
        return ops.sum(support.constrain(values[2], (4,))) + ops.sum(support.log_det(values[2], (4,)))

    high = single([np.inf, np.inf, 1.0, 1.0])
    low, _, u = (array(each) for each in gradients(total, [single(0.0), high, single(np.full((1, 4), 100.0))]))
    assert np.isfinite(low)
    assert np.all(np.isfinite(u[0, [0, 2, 3]]))  # exp(100) is beyond float32


def test_an_interval_is_known_by_its_bounds():
    assert [repr(interval(low, high)) for low, high in ((None, np.inf), (-np.inf, 1.0), (0, None), (0, 1))] == [
        "Real",
        "Below",
        "Above",
        "Between",
    ]
    with pytest.raises(ValueError, match=r"`low` must be less than `high`, not 2\.0"):
        interval(2.0, 2.0)


def test_a_mixture_has_the_hull_of_its_components():
    low, high = single([[0.0, 2.0], [1.0, 3.0]]), single([[4.0, 5.0], [2.0, 7.0]])
    u = single([[-100.0, -100.0], [100.0, 100.0]])
    value = array(interval(low, high).over_mixture(-1).constrain(u, (2,)))
    np.testing.assert_allclose(value, [[0.0, 1.0], [5.0, 7.0]], atol=1e-5)
    np.testing.assert_allclose(array(Above(low).over_mixture(-1).constrain(u, (2,)))[0], [0.0, 1.0], atol=1e-5)
    np.testing.assert_allclose(array(Below(high).over_mixture(-1).constrain(u, (2,)))[1], [5.0, 7.0], atol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(["real", "positive", "unit interval", "simplex", "ordered", "lower Cholesky", "correlation"]),
    leading=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    batch=st.lists(st.integers(0, 3), max_size=2).map(tuple),
    size=st.integers(1, 4),
)
def test_any_shape_is_taken_apart_and_put_together(name, leading, batch, size):
    support = SUPPORTS[name][0]
    event = (size,) * support.event_rank
    shape = (*batch, *event)
    assert support.flat_size(shape) == math.prod(batch) * support.flat_size(event)

    def both_ways(u):
        value, log_det = support.constrain(u, shape), support.log_det(u, shape)
        # Axes before the event may as well stand before the flat one, as rows do.
        apart = ops.reshape(u, (*leading, *batch, support.flat_size(event)))
        return (
            value,
            log_det,
            support.unconstrain(value, shape),
            support.constrain(apart, event),
            support.log_det(apart, event),
        )

    u = np.random.default_rng(0).normal(size=(*leading, support.flat_size(shape)))
    value, log_det, back, value_apart, log_det_apart = (array(each) for each in compiled(both_ways)(single(u)))
    assert (value.shape, log_det.shape) == ((*leading, *shape), leading)
    np.testing.assert_allclose(back, u, atol=1e-3)
    np.testing.assert_allclose(value_apart, value, rtol=1e-6)
    summed = log_det_apart.sum(axis=tuple(range(len(leading), len(leading) + len(batch))))
    np.testing.assert_allclose(summed, log_det, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("support", "shape", "message"),
    [
        (Simplex(), (), "`shape` must have at least 1 axes"),
        (LowerCholesky(), (3,), "`shape` must have at least 2 axes"),
        (CorrelationMatrix(), (2, 3), "`shape` must end with two equal sizes"),
        (Product([(Real(), 1), (Above(), 1)]), (3,), "`shape` must end with 2"),
    ],
)
def test_a_shape_that_a_support_cannot_have_is_refused(support, shape, message):
    with pytest.raises(ValueError, match=message):
        support.flat_size(shape)


@pytest.mark.parametrize(
    ("support", "shape", "rank"),
    [
        ("real", (), 0),
        ("positive", (3, 2), 2),
        (("interval", -1.0, 4.0), (3,), 1),
        ("simplex", (3, 4), 1),
        ("ordered", (4,), 0),
    ],
)
def test_flat_is_a_density_of_one_on_its_support(support, shape, rank):
    flat = Flat(support, shape)
    assert (shape_of(flat), batch_rank(flat)) == (shape, rank)
    u = single(np.random.default_rng(0).normal(size=(5, support_of(flat).flat_size(shape))))
    log_density = array(log_prob(flat, support_of(flat).constrain(u, shape)))
    assert log_density.shape == (5, *shape[:rank])
    assert np.all(log_density == 0)


def test_flat_refuses_what_it_is_not():
    with pytest.raises(ValueError, match=r"`support` must be one of .*, not 'circle'"):
        Flat("circle")
    with pytest.raises(ValueError, match="must have at least 1 axes"):
        Flat("simplex")
    with pytest.raises(ValueError, match="must be proper, not Flat"):
        sample(Flat(), 3, None)
