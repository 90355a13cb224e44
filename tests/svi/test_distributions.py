"""Supports, densities and draws of the distributions of each library."""

import keras
import numpy as np
import pytest
from distribution_libraries import array, distributions, double, float64, single
from gradients import gradients
from keras import ops
from scipy import special, stats
from standard_errors import assert_moments

from bdl import random
from bdl.keras_internals import compiled
from bdl.svi.supports import (
    Above,
    Real,
    as_normal,
    batch_rank,
    inside,
    is_discrete,
    log_prob,
    sample,
    shape_of,
    support_of,
    unchecked,
)

pytestmark = pytest.mark.core

BACKEND = keras.backend.backend()


def of(library, name, *args, **kwargs):
    """A distribution by its name in this file; arguments as TFP takes them."""
    if name == "HalfCauchy" and BACKEND == "tensorflow":
        args = (args[0] * 0.0, *args)
    if name == "Weibull" and BACKEND != "tensorflow":
        args = args[::-1]
    if name == "LKJCholesky" and BACKEND == "tensorflow":
        name = "CholeskyLKJ"
    return getattr(library, name)(*args, **kwargs)


def lkj_cholesky(factor, concentration):
    """Of 2 x 2 matrices: the correlation is `2 Beta(c, c) - 1`."""
    return stats.beta(concentration, concentration, loc=-1.0, scale=2.0).logpdf(factor[..., 1, 0])


# Name, parameters, the kind of support, and SciPy's log density.
CONTINUOUS = {
    "Normal": ((0.3, 1.2), "Real", stats.norm(0.3, 1.2).logpdf),
    "StudentT": ((3.0, 0.5, 2.0), "Real", stats.t(3.0, 0.5, 2.0).logpdf),
    "Cauchy": ((0.5, 2.0), "Real", stats.cauchy(0.5, 2.0).logpdf),
    "Laplace": ((0.5, 2.0), "Real", stats.laplace(0.5, 2.0).logpdf),
    "Gumbel": ((0.5, 2.0), "Real", stats.gumbel_r(0.5, 2.0).logpdf),
    "HalfNormal": ((1.3,), "Above", stats.halfnorm(scale=1.3).logpdf),
    "HalfCauchy": ((1.3,), "Above", stats.halfcauchy(scale=1.3).logpdf),
    "LogNormal": ((0.3, 0.7), "Above", stats.lognorm(0.7, scale=np.exp(0.3)).logpdf),
    "Exponential": ((2.0,), "Above", stats.expon(scale=0.5).logpdf),
    "Gamma": ((2.0, 0.5), "Above", stats.gamma(2.0, scale=2.0).logpdf),
    "InverseGamma": ((2.0, 0.5), "Above", stats.invgamma(2.0, scale=0.5).logpdf),
    "Weibull": ((1.5, 2.0), "Above", stats.weibull_min(1.5, scale=2.0).logpdf),
    "Beta": ((2.0, 3.0), "Between", stats.beta(2.0, 3.0).logpdf),
    "Uniform": ((-1.0, 4.0), "Between", stats.uniform(-1.0, 5.0).logpdf),
    "Dirichlet": (([2.0, 1.0, 0.5],), "Simplex", lambda x: stats.dirichlet([2.0, 1.0, 0.5]).logpdf(x.T)),
    "LKJCholesky": ((2, 1.7), "CorrelationCholesky", lambda x: lkj_cholesky(x, 1.7)),
}


@pytest.fixture(scope="module")
def library():
    return distributions()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_libraries_give_the_densities_of_scipy(library, name):
    """So all three give the same log joint: to 1e-10 in float64, and to 1e-5 in float32."""
    parameters, kind, log_density = CONTINUOUS[name]
    u = np.random.default_rng(0).normal(size=(5, 3))
    with float64():
        to_tensor = lambda value: value if isinstance(value, int) else double(value)  # noqa: E731
        exact = of(library, name, *map(to_tensor, parameters))
        support, shape = support_of(exact), shape_of(exact)
        assert repr(support) == kind
        u = u[:, : support.flat_size(shape)]
        value = support.constrain(double(u), shape)
        expected = log_density(array(value))
        np.testing.assert_allclose(array(log_prob(exact, value)), expected, rtol=0, atol=1e-10)
    rounded = of(library, name, *(value if isinstance(value, int) else single(value) for value in parameters))
    found = array(log_prob(rounded, support_of(rounded).constrain(single(u), shape)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_there_is_a_value_inside_of_each_support(library, name):
    parameters, _, _ = CONTINUOUS[name]
    distribution = of(library, name, *(value if isinstance(value, int) else single(value) for value in parameters))
    values = single(np.full((3, *shape_of(distribution)), np.nan))
    assert np.isfinite(array(log_prob(distribution, inside(distribution, values)))).all()


@pytest.mark.parametrize("name", ["LKJCholesky", "Dirichlet", "Beta", "HalfCauchy", "Gumbel"])
def test_densities_of_the_unconstrained_numbers_integrate_to_one(library, name):
    """The change of variables counts what the library's density is a density of. The trapezoidal rule is exact here
    but for what lies outside of the grid and for terms that vanish exponentially with its step."""
    parameters = {"LKJCholesky": (3, 1.7), "Dirichlet": ([2.0, 1.5, 1.0],)}.get(name, CONTINUOUS[name][0])
    with float64():
        exact = of(library, name, *(value if isinstance(value, int) else double(value) for value in parameters))
        support, shape = support_of(exact), shape_of(exact)
        size = support.flat_size(shape)
        reach, points = {1: (60.0, 2001), 2: (40.0, 401), 3: (9.0, 61)}[size]
        axis = np.linspace(-reach, reach, points)
        u = double(np.stack(np.meshgrid(*[axis] * size), axis=-1).reshape(-1, size))
        log_density = log_prob(exact, support.constrain(u, shape)) + support.log_det(u, shape)
        total = np.exp(array(log_density)).sum() * (axis[1] - axis[0]) ** size
    np.testing.assert_allclose(total, 1.0, rtol=2e-6)


def several(library):
    """Distributions made of others, by name: the kind of support, the shape and how many axes log_prob keeps."""
    two = single([1.0, 2.0])
    if BACKEND == "tensorflow":
        import tensorflow_probability as tfp

        components = library.Categorical(logits=[0.0, 0.0])
        one = library.Sample(library.Normal(0.0, 1.0), 1)
        return {
            "Independent": (library.Independent(library.Gamma(two, 1.0), 1), "Above", (2,), 0),
            "Sample": (library.Sample(library.Beta(two, 1.0), 3), "Between", (2, 3), 1),
            "Sample of intervals": (library.Sample(library.Uniform(-two, two), 3), "Mapped", (2, 3), 1),
            "BatchReshape": (library.BatchReshape(library.Gamma(two, 1.0), (1, 2)), "Above", (1, 2), 2),
            "mixture": (library.MixtureSameFamily(components, library.Gamma(two, 1.0)), "Above", (), 0),
            "Mixture": (
                library.Mixture(components, [library.Gamma(1.0, 1.0), library.HalfNormal(1.0)]),
                "Above",
                (),
                0,
            ),
            "mixture of intervals": (
                library.MixtureSameFamily(components, library.Uniform(-two, two)),
                "Between",
                (),
                0,
            ),
            "LogitNormal": (library.LogitNormal(0.0, 1.0), "Between", (), 0),
            "shifted": (tfp.bijectors.Shift(3.0)(library.HalfNormal(1.0)), "Above", (), 0),
            "negated": (tfp.bijectors.Scale(-2.0)(library.HalfNormal(1.0)), "Below", (), 0),
            "truncated": (library.TruncatedNormal(0.0, 1.0, 0.5, np.inf), "Above", (), 0),
            "truncated twice": (library.TruncatedCauchy(0.0, 1.0, 0.5, two), "Between", (2,), 1),
            "MultivariateNormal": (library.MultivariateNormalTriL(two, np.eye(2, dtype="float32")), "Real", (2,), 0),
            "ordered": (tfp.bijectors.Ascending()(library.Sample(library.Normal(0.0, 1.0), 3)), "Ordered", (3,), 0),
            "Blockwise": (library.Blockwise([one, library.Sample(library.Gamma(1.0, 1.0), 2)]), "Product", (3,), 0),
            "Wishart": (library.WishartTriL(4.0, np.eye(2, dtype="float32")), "PositiveDefinite", (2, 2), 0),
            "Cholesky of Wishart": (
                library.WishartTriL(4.0, np.eye(2, dtype="float32"), input_output_cholesky=True),
                "LowerCholesky",
                (2, 2),
                0,
            ),
            "LKJ": (library.LKJ(3, 1.5), "CorrelationMatrix", (3, 3), 0),
            "Pareto": (library.Pareto(2.0, 1.5), "Above", (), 0),
            "GeneralizedPareto": (library.GeneralizedPareto(0.0, 1.0, -0.5), "Between", (), 0),
        }
    components = library.Categorical(single([0.5, 0.5]))
    affine = library.transforms.AffineTransform(3.0, 2.0)
    found = {
        "Independent": (library.Independent(library.Gamma(two, 1.0), 1), "Above", (2,), 0),
        "mixture": (library.MixtureSameFamily(components, library.Gamma(two, 1.0)), "Above", (), 0),
        "shifted": (library.TransformedDistribution(library.HalfNormal(1.0), affine), "Mapped", (), 0),
        "affine": (library.TransformedDistribution(library.Normal(0.0, 1.0), affine), "Real", (), 0),
        "MultivariateNormal": (library.MultivariateNormal(two, single(np.eye(2))), "Real", (2,), 0),
        "Pareto": (library.Pareto(single(2.0), single(1.5)), "Above", (), 0),
        "Wishart": (library.Wishart(single(4.0), single(np.eye(2))), "PositiveDefinite", (2, 2), 0),
    }
    if BACKEND == "torch":
        intervals = library.MixtureSameFamily(components, library.Uniform(-two, two))
        return {**found, "mixture of intervals": (intervals, "Between", (), 0)}
    ordered = library.transforms.OrderedTransform()
    return {
        **found,
        "expanded": (library.Gamma(1.0, 1.0).expand([3]).to_event(1), "Above", (3,), 0),
        "truncated": (library.TruncatedNormal(0.0, 1.0, low=0.5), "Above", (), 0),
        "truncated twice": (library.TruncatedCauchy(0.0, 1.0, low=0.5, high=two), "Between", (2,), 1),
        "LKJ": (library.LKJ(3, 1.5), "CorrelationMatrix", (3, 3), 0),
        "Cholesky of Wishart": (library.WishartCholesky(4.0, np.eye(2)), "LowerCholesky", (2, 2), 0),
        "ordered": (
            library.TransformedDistribution(library.Normal(0.0, 1.0).expand([3]).to_event(1), ordered),
            "Ordered",
            (3,),
            0,
        ),
        "sum of zero": (library.ZeroSumNormal(1.0, (3,)), "Mapped", (3,), 0),
    }


@pytest.mark.filterwarnings("ignore:Singular sample detected")  # Torch's Wishart says so of samples that are not
def test_distributions_made_of_others_have_the_supports_that_their_draws_have(library):
    with unchecked():  # Torch takes a mixture's values to be in the support of each component
        for name, (distribution, kind, shape, rank) in several(library).items():
            support = support_of(distribution)
            assert (name, repr(support), shape_of(distribution), batch_rank(distribution)) == (name, kind, shape, rank)
            draws = sample(distribution, 50, random.draw_key(1))
            assert (name, tuple(draws.shape)) == (name, (50, *shape))
            u = compiled(lambda draws: support.unconstrain(draws, shape))(draws)  # noqa: B023
            back, density = compiled(lambda u: _value_and_density(distribution, support, u, shape))(u)  # noqa: B023
            np.testing.assert_allclose(array(back), array(draws), rtol=1e-4, atol=1e-5, err_msg=name)
            assert (name, density.shape) == (name, (50, *shape[:rank]))
            assert np.all(np.isfinite(array(density))), name


def _value_and_density(distribution, support, u, shape):
    value = support.constrain(u, shape)
    return value, log_prob(distribution, value)


DISCRETE = {"Poisson": (2.0,), "Bernoulli": (0.3,), "Categorical": ([0.2, 0.8],), "Geometric": (0.4,)}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_distributions_are_known_and_refused_as_latent(library, name):
    given = "probs" if name != "Poisson" else "rate"
    distribution = of(library, name, **{given: single(DISCRETE[name][0])})
    assert is_discrete(distribution)
    with pytest.raises(ValueError, match=r"must be continuous, not .*: a discrete one has no gradient"):
        support_of(distribution)
    with pytest.raises(ValueError, match="must be continuous"):
        support_of(library.Independent(of(library, name, **{given: single([DISCRETE[name][0]])}), 1))


def test_counts_have_the_probabilities_of_scipy(library):
    counts = np.array([0, 3, 7])
    found = log_prob(library.Poisson(single(2.5)), ops.convert_to_tensor(counts))
    np.testing.assert_allclose(array(found), stats.poisson(2.5).logpmf(counts), rtol=1e-5)
    found = log_prob(library.Binomial(single(9.0), logits=single(0.5)), single(counts))
    np.testing.assert_allclose(array(found), stats.binom(9, special.expit(0.5)).logpmf(counts), rtol=1e-5)


def test_a_bound_that_depends_on_a_variable_gets_its_gradient(library):
    """Uniform on (a, b) of `a + (b - a) s`: log density and log determinant cancel, the value moves by 1 - s and s."""
    u = single([[0.5]])
    s = special.expit(0.5)

    def value(bounds):
        with unchecked():
            uniform = library.Uniform(*bounds)
            return ops.sum(support_of(uniform).constrain(u, ()))

    def log_joint(bounds):
        with unchecked():
            uniform = library.Uniform(*bounds)
            support = support_of(uniform)
            return ops.sum(log_prob(uniform, support.constrain(u, ())) + support.log_det(u, ()))

    bounds = [single(1.0), single(3.0)]
    np.testing.assert_allclose([array(each) for each in gradients(value, bounds)], [1 - s, s], rtol=1e-5)
    np.testing.assert_allclose([array(each) for each in gradients(log_joint, bounds)], [0.0, 0.0], atol=1e-6)


def seen_by_a_compiler(function):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import torch

    return torch.func.vmap(function)


def test_supports_are_the_same_where_a_compiler_sees_no_numbers(library):
    """On TensorFlow under XLA, on JAX jitted, on Torch under `vmap`."""

    def log_joint(low, u):
        with unchecked():
            total = 0.0
            for distribution in (
                library.Uniform(low, low + 2.0),
                library.Pareto(1.0 + low * 0.0, 2.0),
                library.Normal(low, 1.0),
            ):
                if BACKEND != "tensorflow" and isinstance(distribution, library.Pareto):
                    distribution = library.Pareto(low + 1.0, low * 0.0 + 1.5)
                elif isinstance(distribution, library.Pareto):
                    distribution = library.Pareto(low * 0.0 + 1.5, low + 1.0)
                support = support_of(distribution)
                value = support.constrain(u, ())
                total = total + log_prob(distribution, value) + support.log_det(u, ())
        return total

    low, u = single(np.linspace(0.5, 2.0, 4)), single(np.linspace(-2.0, 2.0, 4)[:, None])
    x = array(low) + 1.0 + np.exp(array(u)[:, 0])
    s = special.expit(array(u)[:, 0])
    expected = (
        np.log(s * (1 - s))
        + stats.pareto(1.5, scale=array(low) + 1.0).logpdf(x)
        + array(u)[:, 0]
        + stats.norm(array(low), 1.0).logpdf(array(u)[:, 0])
    )
    np.testing.assert_allclose(array(seen_by_a_compiler(log_joint)(low, u)), expected, rtol=1e-4)


def test_gaussians_on_the_real_line_are_recognised(library):
    location, scale = single([0.3, -1.0]), single([0.5, 2.0])
    for distribution in (
        library.Normal(location, scale),
        library.LogNormal(location, scale),
        library.Independent(library.Normal(location, scale), 1),
        library.Independent(library.LogNormal(location, scale), 1),
    ):
        mean, deviation = as_normal(distribution)
        support, shape = support_of(distribution), shape_of(distribution)
        u = single(np.random.default_rng(0).normal(size=(4, 2)))
        found = log_prob(distribution, support.constrain(u, shape))
        density = array(found).reshape(4, -1).sum(axis=1) + array(support.log_det(u, shape))
        expected = stats.norm(array(mean), array(deviation)).logpdf(array(u)).sum(axis=1)
        np.testing.assert_allclose(density, expected, rtol=1e-5)
    for distribution in (library.HalfNormal(scale), library.Cauchy(location, scale)):
        assert as_normal(distribution) is None


def test_repeated_gaussians_are_recognised(library):
    if BACKEND == "tensorflow":
        repeated = [library.Sample(library.Normal(single([0.3, 1.0]), 2.0), 3)]
    elif BACKEND == "jax":
        repeated = [library.Normal(single([[0.3], [1.0]]), 2.0).expand([2, 3])]
    else:
        repeated = [library.Normal(single([[0.3], [1.0]]), 2.0).expand((2, 3))]
    for distribution in repeated:
        mean, deviation = (np.broadcast_to(array(each), (2, 3)) for each in as_normal(distribution))
        np.testing.assert_allclose(mean, [[0.3] * 3, [1.0] * 3], rtol=1e-6)
        np.testing.assert_allclose(deviation, 2.0)


def test_draws_follow_their_key_and_the_distribution(library):
    distribution = library.Gamma(single([2.0, 4.0]), single(2.0))
    draws, again, others = (array(sample(distribution, 4_000, random.draw_key(seed))) for seed in (3, 3, 4))
    np.testing.assert_array_equal(draws, again)
    assert np.all(draws != others)
    assert_moments(draws, [1.0, 2.0], [0.5, 1.0])


@pytest.mark.skipif(BACKEND != "torch", reason="Torch has one generator for all")
def test_draws_leave_the_generator_of_torch_as_it_was(library):
    import torch

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    sample(library.Normal(0.0, 1.0), 5, random.draw_key(0))
    np.testing.assert_array_equal(array(torch.rand(3)), array(expected))


@pytest.mark.skipif(BACKEND != "torch", reason="only Torch checks unless told not to")
def test_checks_are_off_inside_and_as_before_outside(library):
    with unchecked(), unchecked():
        library.Exponential(-1.0)
    with pytest.raises(ValueError, match="rate"):
        library.Exponential(-1.0)


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others promote dtypes themselves")
def test_numbers_in_a_distribution_of_tfp_keep_all_digits_for_a_value_of_float64(library):
    value = double(0.7)
    normal = library.Normal(0.1, 0.3)
    np.testing.assert_allclose(array(log_prob(normal, value)), stats.norm(0.1, 0.3).logpdf(0.7), rtol=1e-14)
    mixture = library.MixtureSameFamily(library.Categorical(logits=[0.0, 0.0]), library.Gamma([1.1, 1.1], 0.7))
    expected = stats.gamma(1.1, scale=1 / 0.7).logpdf(0.7)
    np.testing.assert_allclose(array(log_prob(mixture, value)), expected, rtol=1e-14)
    repeated = library.Independent(library.Sample(library.LogNormal(0.1, 1), 2), 0)
    expected = 2 * stats.lognorm(1.0, scale=np.exp(0.1)).logpdf(0.7)
    np.testing.assert_allclose(array(log_prob(repeated, double([0.7, 0.7]))), expected, rtol=1e-14)
    assert log_prob(normal, single(0.7)).dtype == "float32"


class Triangle:
    """The density `2 x` on (0, 1), of nobody's library."""

    def __init__(self):
        self.support, self.batch_shape, self.event_shape = support_of_unit_interval(), (), ()

    def log_prob(self, value):
        return ops.log(2.0 * value)

    def sample(self, num_samples, key):
        return ops.sqrt(random.uniform((num_samples,), key))


def support_of_unit_interval():
    from bdl.svi.supports import Between

    return Between(0.0, 1.0)


def test_a_distribution_of_your_own_will_do():
    triangle = Triangle()
    assert (repr(support_of(triangle)), shape_of(triangle), is_discrete(triangle)) == ("Between", (), False)
    assert as_normal(triangle) is None
    np.testing.assert_allclose(array(log_prob(triangle, single([0.5, 1.0]))), [0.0, np.log(2.0)], atol=1e-6)
    draws = array(sample(triangle, 4_000, random.draw_key(0)))
    assert_moments(draws, 2 / 3, 1 / 18)


def test_what_is_no_distribution_is_named():
    with pytest.raises(
        ValueError, match=r"A distribution must be one of .*, of `Flat`, or an object with .*, not 3\.0"
    ):
        support_of(3.0)


def test_a_distribution_without_a_map_is_named(library):
    if BACKEND == "tensorflow":
        distribution = library.PowerSpherical([1.0, 0.0], 1.0)
    elif BACKEND == "jax":
        distribution = library.ProjectedNormal(single([1.0, 0.0]))
    else:
        from torch.distributions import constraints

        class Circle(library.Distribution):
            support = constraints.Constraint()

        distribution = Circle(validate_args=False)
    name = type(distribution).__name__
    with pytest.raises(ValueError, match=f"must have a map from the real line onto its support, not .*{name}"):
        support_of(distribution)


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others have no joint distributions")
@pytest.mark.parametrize("function", [support_of, shape_of])
def test_a_joint_distribution_is_refused(library, function):
    joint = library.JointDistributionSequential([library.Normal(0.0, 1.0), library.Normal(0.0, 1.0)])
    with pytest.raises(ValueError, match=r"must have one tensor as its value, not .*JointDistributionSequential"):
        function(joint)


@pytest.mark.skipif(BACKEND == "torch", reason="Torch's are for this backend")
def test_a_distribution_of_another_backend_is_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=f"on the backend {BACKEND}, not torch's Normal of torch"):
        support_of(torch.distributions.Normal(0.0, 1.0))


def test_supports_print_their_names():
    assert repr((Real(), Above(2.0))) == "(Real, Above)"


@pytest.mark.skipif(BACKEND != "torch", reason="other libraries have no such switch")
def test_the_last_of_several_threads_puts_the_checks_back(library):
    first, second = unchecked(), unchecked()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    library.Exponential(-1.0)
    second.__exit__(None, None, None)
    with pytest.raises(ValueError, match="Expected parameter rate"):
        library.Exponential(-1.0)
