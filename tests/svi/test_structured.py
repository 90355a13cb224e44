"""The structured guide: a chain given other sites, its start, its fit of a state-space model, and its files."""

import keras
import numpy as np
import pytest
from gradients import gradients
from keras import ops
from scipy import stats
from stories import Normal

from bdl.svi import SVI, Amortized, Global, Local, MarkovChain, Observed, Structured
from bdl.svi.guides.chain import chained

RNG = np.random.default_rng(0)
LENGTH, PHI, Q, R = 12, 0.9, 0.5, 0.8


def tensor(values):
    return ops.convert_to_tensor(values, dtype="float32")


def array(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def moments(family, size):
    """Mean and Cholesky factor, by the draws of unit vectors."""
    draws = array(family.draw(tensor(np.concatenate([np.zeros((1, size)), np.eye(size)]))))
    return draws[0], (draws[1:] - draws[0]).T


def chain_covariance():
    """Of two numbers, and of two chains of three given these: the covariance, its Cholesky factor and a mean."""
    random = np.random.default_rng(1)
    root = np.tril(random.normal(size=(8, 8)))
    root[np.diag_indices(8)] = np.abs(root[np.diag_indices(8)]) + 0.5
    root[2:, 2:] = 0.0
    for first in (2, 5):
        unit = np.eye(3) - np.diag([0.8, -0.4], -1)
        root[first : first + 3, first : first + 3] = np.linalg.solve(unit, np.diag([1.0, 0.5, 2.0]))
    return root @ root.T, root, random.normal(size=8)


def bound(shape=(2, 3), axis=-1, **start):
    guide = Structured(chain="path", axis=axis)
    guide.bind({"path": 6, "a": 2}, shapes={"path": shape, "a": (2,)})
    if start:
        guide.start_at(**start)
    return guide


@pytest.mark.core
@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_a_recursion_is_solved_with_its_gradient(length):
    """With `w` the gradient of the sum of squares in y, that in the shifts is `v_t = w_t + slope_{t+1} v_{t+1}`."""
    slope, shift = RNG.normal(size=length), RNG.normal(size=(2, length))
    y = np.zeros((2, length))
    for step in range(length):
        y[:, step] = shift[:, step] + (slope[step] * y[:, step - 1] if step else 0.0)
    np.testing.assert_allclose(array(chained(tensor(slope), tensor(shift))), y, rtol=1e-4, atol=1e-5)
    expected, after = np.zeros_like(y), np.zeros(2)
    for step in reversed(range(length)):
        expected[:, step] = after = 2 * y[:, step] + (slope[step + 1] * after if step + 1 < length else 0.0)
    in_slope = np.concatenate([[0.0], (expected[:, 1:] * y[:, :-1]).sum(0)])
    found = gradients(lambda values: ops.sum(chained(*values) ** 2), [tensor(slope), tensor(shift)])
    np.testing.assert_allclose(array(found[1]), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(array(found[0]), in_slope, rtol=1e-3, atol=1e-4)


def test_a_random_walk_of_many_steps_is_a_sum():
    shift = RNG.normal(size=5000)
    found = array(chained(tensor(np.ones(5000)), tensor(shift)))
    np.testing.assert_allclose(found, np.cumsum(shift), atol=5000**0.5 * 1e-5)


@pytest.mark.core
@pytest.mark.parametrize(("shape", "axis"), [((2, 3), -1), ((3, 2), 0), ((6,), 0)])
def test_the_density_is_that_of_a_markov_chain_given_the_other_sites(shape, axis):
    guide = bound(shape, axis)
    for variable in guide.trainable_variables:
        variable.assign(RNG.normal(size=variable.shape))
    assert list(guide.sizes) == ["a", "path"]
    family = guide.distribution()
    place = np.stack(np.unravel_index(np.arange(6), shape), axis=1)
    gaps = np.abs(place[:, None] - place[None])
    is_neighbour = (gaps.sum(-1) == 1) & (gaps[..., axis] == 1)
    others = guide.others.distribution()
    precisions = []
    for first in RNG.normal(size=(2, 2)):
        units = np.concatenate([np.zeros((1, 6)), np.eye(6), RNG.normal(size=(1, 6))])
        noise = tensor(np.concatenate([np.tile(first, (8, 1)), units], axis=1))
        draws = array(family.draw(noise))
        np.testing.assert_allclose(draws[:, :2], np.tile(array(others.draw(tensor(first))), (8, 1)), rtol=1e-5)
        mean, root = draws[0, 2:], (draws[1:-1, 2:] - draws[0, 2:]).T
        expected = stats.multivariate_normal(mean, root @ root.T).logpdf(draws[-1, 2:])
        found = array(family.log_density(noise))[-1]
        assert found[2:].sum() == pytest.approx(expected, rel=2e-3, abs=2e-3)
        assert found[:2].sum() == pytest.approx(array(others.log_density(tensor(first))).sum(), rel=1e-4)
        precision = np.linalg.inv(root @ root.T)
        scale = np.sqrt(np.outer(np.diag(precision), np.diag(precision)))
        assert np.abs((precision / scale)[is_neighbour]).max() > 0.1
        np.testing.assert_allclose((precision / scale)[~is_neighbour & ~np.eye(6, dtype=bool)], 0.0, atol=1e-3)
        precisions.append(precision)
    assert not np.allclose(*precisions, rtol=0.01)  # it depends on the other sites


@pytest.mark.core
def test_it_begins_at_a_covariance_that_is_such_a_chain():
    covariance, root, origin = chain_covariance()
    mean, found = moments(bound(origin=origin, frame=root).distribution(), 8)
    np.testing.assert_allclose(mean, origin, atol=1e-6)
    np.testing.assert_allclose(found @ found.T, covariance, atol=1e-4)


@pytest.mark.core
def test_of_another_covariance_it_takes_neighbours_and_the_other_sites():
    """The nearest chain has the covariance of what it joins: of neighbours given the others, and of the others."""
    root = np.tril(RNG.normal(size=(8, 8))) + 3 * np.eye(8)
    _, found = moments(bound((6,), origin=np.zeros(8), frame=root).distribution(), 8)
    gap = found @ found.T - root @ root.T
    np.testing.assert_allclose(gap[:2], 0.0, atol=1e-4)
    for distance in (0, 1):
        np.testing.assert_allclose(np.diag(gap[2:, 2:], distance), 0.0, atol=1e-4)


def test_without_a_covariance_it_begins_narrow_and_independent():
    _, root = moments(bound().distribution(), 8)
    np.testing.assert_allclose(root, 0.1 * np.eye(8), atol=1e-6)


@pytest.mark.core
def test_its_gradient_has_no_noise_where_the_posterior_is_such_a_chain():
    covariance, root, origin = chain_covariance()
    guide = bound(origin=origin, frame=root)
    precision = tensor(np.linalg.inv(covariance))
    noise = tensor(RNG.normal(size=(1, 8)))
    variables = guide.trainable_variables

    def divergence(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            family = guide.distribution()
            gap = family.draw(noise) - tensor(origin)
            log_p = -0.5 * ops.sum(gap * ops.matmul(gap, precision))
            return ops.sum(family.log_density(noise)) - log_p

    found = gradients(divergence, [tensor(array(variable)) for variable in variables])
    for each in found:
        np.testing.assert_allclose(array(each), 0.0, atol=2e-4)


@keras.saving.register_keras_serializable(package="tests")
def state_space(data):
    """A path seen with noise around a level: all Gaussian."""
    level = yield Global("level", Normal(0.0, 2.0))
    path = yield Global("path", autoregression())
    yield Observed("y", Normal((level + path)[None], R), data["y"])


@keras.saving.register_keras_serializable(package="tests")
def path_alone(data):
    """The path around a level of zero."""
    path = yield Global("path", autoregression())
    yield Observed("y", Normal(path[None], R), data["y"])


def autoregression():
    return MarkovChain(Normal(0.0, Q / (1 - PHI**2) ** 0.5), lambda past, step: Normal(PHI * past, Q), LENGTH)


def exact(y, has_level):
    """Means and covariance of the level and the path, or of the path alone, by a dense solve."""
    lags = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
    prior = np.zeros((LENGTH + 1, LENGTH + 1))
    prior[0, 0] = 4.0
    prior[1:, 1:] = Q**2 / (1 - PHI**2) * PHI**lags
    seen = np.concatenate([np.ones((LENGTH, 1)), np.eye(LENGTH)], axis=1)
    if not has_level:
        prior, seen = prior[1:, 1:], seen[:, 1:]
    covariance = np.linalg.inv(np.linalg.inv(prior) + seen.T @ seen / R**2)
    return covariance @ seen.T @ y / R**2, covariance


@pytest.mark.core
@pytest.mark.parametrize(
    ("story", "start", "steps", "rate"), [(state_space, "laplace", 20, 1e-3), (path_alone, "prior", 600, 5e-2)]
)
def test_a_fit_finds_the_posterior_of_a_state_space_model(story, start, steps, rate, tmp_path):
    """It is in the family: means and standard deviations are to be within .02 and 2 %."""
    y = np.random.default_rng(3).normal(size=LENGTH).astype("float32") + 1.0
    model = SVI(story, Structured("path"), start=start, num_samples=2, seed=0)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)))
    model.fit({"y": y[None]}, batch_size="all", steps=steps, verbose=0)
    expected, covariance = exact(y.astype("float64"), story is state_space)
    sd = np.sqrt(np.diag(covariance))
    mean, root = moments(model.guide_of("path").distribution(), len(sd))
    np.testing.assert_allclose((mean - expected) / sd, 0.0, atol=0.02)
    np.testing.assert_allclose(np.sqrt((root**2).sum(1)) / sd, 1.0, atol=0.02)
    np.testing.assert_allclose(root @ root.T / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.04)
    if start == "laplace":
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for name, draws in model.posterior(num_samples=3, seed=0).items():
            np.testing.assert_array_equal(loaded.posterior(num_samples=3, seed=0)[name], draws)


@pytest.mark.core
def test_it_comes_back_from_its_configuration():
    guide = bound((3, 2), 0)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(guide))
    assert again.get_config() == guide.get_config()
    assert again.sizes == guide.sizes
    assert again.shapes == guide.shapes
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in guide.weights]


@pytest.mark.core
def test_as_a_family_it_is_a_chain_for_each_row():
    guide = Structured()
    assert guide.num_parameters(3) == 9
    assert guide.num_noise(3) == 3
    family = guide.of_parameters(tensor(np.zeros((2, 9))), 3)
    noise = tensor(RNG.normal(size=(2, 3)))
    np.testing.assert_allclose(array(family.draw(noise)), array(noise), rtol=1e-5)  # standard normal
    family = guide.of_parameters(tensor(RNG.normal(size=(2, 9))), 3)
    draws = array(family.draw(tensor(np.concatenate([np.zeros((1, 2, 3)), np.eye(3)[:, None].repeat(2, 1)]))))
    density = array(family.log_density(noise)).sum(-1)
    for row, u in enumerate(array(family.draw(noise))):
        root = (draws[1:, row] - draws[0, row]).T
        assert np.linalg.inv(root @ root.T)[0, 2] == pytest.approx(0.0, abs=1e-4)
        expected = stats.multivariate_normal(draws[0, row], root @ root.T).logpdf(u)
        assert density[row] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="`axis` of Structured must be -1 where"):
        Structured(axis=0).of_parameters(tensor(np.zeros((2, 9))), 3)


@keras.saving.register_keras_serializable(package="tests")
def paths(data):
    """A path for each row."""
    path = yield Local("path", autoregression())
    yield Observed("y", Normal(path, R), data["y"])


@pytest.mark.core
def test_rows_with_a_chain_each_have_the_posterior_of_their_path(tmp_path):
    """It is in the family, with means linear in the row: to be within .1 standard deviations and 10 %."""
    y = np.random.default_rng(4).normal(size=(400, LENGTH)).astype("float32")
    keras.utils.set_random_seed(0)
    guide = {"path": Amortized(keras.layers.Identity(), ["y"], family="structured")}
    model = SVI(paths, guide, num_samples=2, seed=0)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-2, 500)))
    model.fit({"y": y}, batch_size="all", steps=500, verbose=0)
    family = model.guide_of("path").distribution({"y": tensor(y)})
    noise = np.concatenate([np.zeros((1, 400, LENGTH)), np.eye(LENGTH)[:, None].repeat(400, 1)])
    draws = array(family.draw(tensor(noise)))
    for row in range(0, 400, 80):
        expected, covariance = exact(y[row].astype("float64"), has_level=False)
        sd, root = np.sqrt(np.diag(covariance)), (draws[1:, row] - draws[0, row]).T
        np.testing.assert_allclose((draws[0, row] - expected) / sd, 0.0, atol=0.1)
        own = np.sqrt((root**2).sum(1))
        np.testing.assert_allclose(own / sd, 1.0, atol=0.1)
        np.testing.assert_allclose(root @ root.T / np.outer(own, own), covariance / np.outer(sd, sd), atol=0.1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(loaded.guides[0].weights, model.guides[0].weights, strict=True):
        np.testing.assert_array_equal(array(one), array(other))
    assert loaded.posterior({"y": y[:2]}, num_samples=3)["path"].shape == (3, 2, LENGTH)


@pytest.mark.core
def test_a_network_gives_each_step_its_mean_its_standard_deviation_and_its_correlation_with_the_step_before():
    """The features of a step and a global's draw make its parameters, by one dense layer for all steps and rows."""
    y, given = RNG.normal(size=(2, 4)).astype("float32"), tensor([0.5])
    guide = Amortized(keras.layers.Identity(), "y", ["level"], family="structured", by_step=True)
    guide.bind({"path": 4}, {"y": tensor(y)}, given_size=1)
    kernel, bias = RNG.normal(size=(2, 3)), RNG.normal(size=3)
    assert [tuple(each.shape) for each in guide.trainable_variables] == [(2, 3), (3,)]
    for variable, value in zip(guide.trainable_variables, (kernel, bias), strict=True):
        variable.assign(value)
    family = guide.distribution({"y": tensor(y)}, given)
    draws = array(family.draw(tensor(np.concatenate([np.zeros((1, 2, 4)), np.eye(4)[:, None].repeat(2, 1)]))))
    mean, before_softplus, bend = (kernel[0] * y[..., None] + kernel[1] * 0.5 + bias).transpose(2, 0, 1)
    np.testing.assert_allclose(draws[0], mean, rtol=1e-4, atol=1e-5)
    sd, correlation = np.log1p(np.exp(before_softplus + np.log(np.e - 1))), np.tanh(bend)
    for row in range(2):
        root = (draws[1:, row] - draws[0, row]).T
        np.testing.assert_allclose(np.sqrt((root**2).sum(1)), sd[row], rtol=1e-4)
        found = root @ root.T / np.outer(sd[row], sd[row])
        np.testing.assert_allclose(np.diag(found, -1), correlation[row, 1:], rtol=1e-3, atol=1e-4)
        assert found[3, 0] == pytest.approx(correlation[row, 1:].prod(), rel=1e-3, abs=1e-4)


@pytest.mark.core
def test_a_long_chain_stays_finite_whatever_its_parameters():
    parameters = np.full((1, 3 * 3000), 4.0)
    family = Structured().of_parameters(tensor(parameters), 3000)
    noise = tensor(RNG.normal(size=(1, 3000)))
    assert np.abs(array(family.draw(noise)) - 4.0).max() < 5 * np.log1p(np.exp(4.0 + np.log(np.e - 1)))
    assert np.isfinite(array(family.log_density(noise))).all()


def test_what_has_no_parameters_by_step_is_refused():
    data, identity = {"y": tensor(np.ones((2, 4)))}, keras.layers.Identity()
    with pytest.raises(ValueError, match=r"`family` of .* must be 'mean_field' or 'structured'.* not 'full_rank'"):
        Amortized(identity, "y", family="full_rank", by_step=True).bind({"path": 4}, data)
    with pytest.raises(ValueError, match="`by_step` of Amortized must be False for sites of the shapes"):
        Amortized(identity, "y", by_step=True).bind({"path": 4, "other": 4}, data)
    with pytest.raises(ValueError, match=r"`inputs` of .* must have the 5 steps .*, not the shape \(2, 4\)"):
        Amortized(identity, "y", by_step=True).bind({"path": 5}, data)
    with pytest.raises(ValueError, match=r"What `network` returns of .* must have the 4 steps"):
        Amortized(keras.layers.GlobalAveragePooling1D(), "y", by_step=True).bind({"path": 4}, data)


@pytest.mark.parametrize(
    ("guide", "sizes", "shapes", "message"),
    [
        (Structured(), {"a": 1, "b": 3}, None, "`chain` of Structured must name .* one of \\['a', 'b'\\], not be None"),
        (Structured("c"), {"a": 1, "b": 3}, None, "must be one of its sites, \\['a', 'b'\\], not 'c'"),
        (Structured(axis=1), {"a": 3}, {"a": (3,)}, "`axis` of Structured must be one of the shape \\(3,\\)"),
        (Structured(), {"a": 4}, {"a": (2, 3)}, "a number on the real line for each entry, not 4"),
    ],
)
def test_sites_that_are_no_chain_are_refused(guide, sizes, shapes, message):
    with pytest.raises(ValueError, match=message):
        guide.bind(sizes, shapes=shapes)
