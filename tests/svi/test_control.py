"""Control variates and sticking: no gradient changes on average, and the noise falls by what is quadratic."""

import functools

import keras
import numpy as np
import pytest
from distribution_libraries import array, single
from gradients import gradients, repeated
from keras import ops
from standard_errors import assert_within_standard_errors
from stories import Normal

from bdl import random
from bdl.protocols import LearnsNoise
from bdl.svi import SVI, Amortized, Delta, Flow, Global, Local, LowRank, Observed
from bdl.training import AdaptiveBatch

NUM_DRAWS, SIZE = 1000, 2
DATA = {"count": np.array([2.0, 0.0, 5.0], "float32")}
SHIFT, RHO, BELOW = [0.3, -0.2], [-0.5, 0.1], 0.4
LEVEL, SLOPE = [0.4, -1.0], [[0.8, 0.3], [-0.5, 1.5]]


class Poisson(Normal):
    """Counts, less a constant."""

    def __init__(self, log_rate):
        super().__init__(log_rate, 1.0)

    def log_prob(self, count):
        return count * self.loc - ops.exp(self.loc)


@keras.saving.register_keras_serializable(package="tests")
def gaussian(data):
    """Two numbers, whose sum is seen: the cost is quadratic."""
    level = yield Global("level", Normal(ops.zeros(SIZE), 1.0))
    yield Observed("count", Normal(level[0] + level[1], 0.7), data["count"])


def poisson(data):
    """Counts with a log-normal rate, of two numbers that are correlated given them."""
    level = yield Global("level", Normal(ops.zeros(SIZE), 1.0))
    yield Observed("count", Poisson(level[0] + 0.5 * level[1]), data["count"])


def network(data):
    """A network of one hidden layer, whose weights are the latent numbers."""
    weights = yield Global("level", Normal(ops.zeros(12), 1.0))
    hidden = ops.tanh(data["count"][:, None] * weights[:4] + weights[4:8])
    yield Observed("count", Normal(ops.sum(hidden * weights[8:], axis=-1), 0.5), data["count"])


def rows(data):
    """Two numbers in each row."""
    code = yield Local("code", Normal(ops.zeros(SIZE), 1.0))
    yield Observed("count", Poisson(ops.sum(code, axis=-1)), data["count"])


class Gradients:
    """Gradients of a model's cost in the variables of its guide, for many keys, by one compiled function."""

    def __init__(self, told, guide, **settings):
        size = 12 if told is network else SIZE
        start = "prior" if told is rows else {"level": np.zeros(size)}
        model = SVI(told, guide, start=start, seed=0, **settings)
        model.trace_on(DATA)
        self.guide = model.guides[0]
        self.control = model.controls[0] if model.controls else None
        variables = model.trainable_variables
        data = {name: ops.convert_to_tensor(each) for name, each in DATA.items()}

        def cost(values, key):
            with keras.StatelessScope(zip(variables, values, strict=True)):
                terms = model.estimator.terms(data, key, 1.0)
            total = terms.nll + sum(terms.local_kl.values(), ops.zeros(()))
            return ops.mean(ops.sum(total, axis=-1)) + sum(terms.global_kl.values())

        def step(state):
            number, *values = state
            key = random.fold_in(random.draw_key(0), number)
            return gradients(lambda inner: cost(inner, key), values), [number + 1, *values]

        self.variables = variables
        self.loop = repeated(step, NUM_DRAWS)

    def draws(self, first=0):
        """By name of the variable, `(draws, numbers)`."""
        values = [single(array(variable)) for variable in self.variables]
        found = self.loop([ops.convert_to_tensor(first, dtype="int32"), *values])
        return {
            variable.path.split("/")[-1]: each.reshape(NUM_DRAWS, -1).astype("float64")
            for variable, each in zip(self.variables, found, strict=True)
        }

    def own(self, **keys):
        """Those of the guide, side by side."""
        found = self.draws(**keys)
        return np.concatenate([found[name] for name in ("shift", "rho", "below", "factors") if name in found], axis=1)

    def set(self, level, slope):
        self.control.level.assign(level)
        self.control.slope.assign(slope)


@functools.cache
def case(told, family, num_samples, sticking=None):
    """Gradients of a model with a control variate, away from the optimum."""
    found = Gradients(told, family, num_samples=num_samples, sticking=sticking, control_variate="quadratic")
    if told is network:
        found.guide.shift.assign(np.random.default_rng(1).normal(size=found.guide.size))
    else:
        found.guide.shift.assign(SHIFT)
        found.guide.rho.assign(RHO)
        if family == "full_rank":
            found.guide.below.assign([[0.0, 0.0], [BELOW, 0.0]])
    return found


def truth(told, family):
    """Gradient of the cost in mean, rho and what is below the diagonal, from its closed form by differences."""

    def cost(numbers):
        scale = np.diag(np.log1p(np.exp(numbers[2:4])))
        if family == "full_rank":
            scale = scale + np.tril(numbers[4:].reshape(2, 2), -1)
        mean, covariance = numbers[:2], scale @ scale.T
        kl = 0.5 * (np.trace(covariance) + mean @ mean - SIZE - np.linalg.slogdet(covariance)[1])
        way = np.array([1.0, 1.0] if told is gaussian else [1.0, 0.5])
        variance, counts = way @ covariance @ way, DATA["count"].astype("float64")
        if told is gaussian:
            return kl + 0.5 * np.sum((counts - way @ mean) ** 2 + variance) / 0.7**2
        return kl + len(counts) * np.exp(way @ mean + 0.5 * variance) - counts.sum() * (way @ mean)

    numbers = np.array(SHIFT + RHO + ([0.0, 0.0, BELOW, 0.0] if family == "full_rank" else []))
    steps = 1e-5 * np.eye(len(numbers))
    return np.array([(cost(numbers + step) - cost(numbers - step)) / 2e-5 for step in steps])


def assert_right(found, expected):
    """Means of draws within 4 standard errors, with room for the rounding of numbers that have no noise."""
    error = found.std(0, ddof=1) / np.sqrt(len(found)) + 1e-5 * (1.0 + np.abs(expected))
    assert_within_standard_errors(found.mean(0), expected, error, k=4)


CASES = [
    (gaussian, "mean_field", 1, None),
    pytest.param(poisson, "mean_field", 2, None, marks=pytest.mark.core),
    (poisson, "mean_field", 2, True),
    (poisson, "full_rank", 1, None),
]


@pytest.mark.parametrize(("told", "family", "num_samples", "sticking"), CASES)
def test_gradients_are_right_on_average_whatever_the_coefficients_are(told, family, num_samples, sticking):
    found = case(told, family, num_samples, sticking)
    for level, slope in ((np.zeros(SIZE), np.zeros((SIZE, SIZE))), (LEVEL, SLOPE)):
        found.set(level, slope)
        assert_right(found.own(), truth(told, family))


def test_gradients_in_a_network_are_right_on_average():
    found = case(network, "mean_field", 2)
    size = found.guide.size
    found.set(np.zeros(size), np.zeros((size, size)))
    plain = found.own()
    rng = np.random.default_rng(0)
    found.set(rng.normal(size=size), rng.normal(size=(size, size)))
    assert_right(found.own() - plain, np.zeros(2 * size))


@pytest.mark.core
def test_a_quadratic_cost_has_no_noise_at_the_right_coefficients():
    found = case(gaussian, "mean_field", 1)
    scale = np.log1p(np.exp(RHO))
    hessian = len(DATA["count"]) / 0.7**2 + np.eye(SIZE)
    found.set(scale * (hessian @ SHIFT - DATA["count"].sum() / 0.7**2), scale[:, None] * hessian * scale)
    quiet = found.draws()
    found.set(np.zeros(SIZE), np.zeros((SIZE, SIZE)))
    noise = found.own().std(0)
    assert np.all(quiet["shift"].std(0) < 1e-5 * noise[:2])
    assert np.all(quiet["rho"].std(0) < 1e-5 * noise[2:])
    # There the coefficients have come to rest, without noise.
    np.testing.assert_allclose(quiet["level"], 0.0, atol=1e-4)
    np.testing.assert_allclose(quiet["slope"], 0.0, atol=1e-4)


@pytest.mark.parametrize(
    ("told", "family", "num_samples", "factor"), [(poisson, "mean_field", 2, 3.0), (poisson, "full_rank", 1, 3.0)]
)
def test_least_squares_take_noise_off(told, family, num_samples, factor):
    """The coefficients to which their own gradients lead, on other draws than those that are judged."""
    found = case(told, family, num_samples)
    size = found.guide.size
    level, slope = np.zeros(size), np.zeros((size, size))
    found.set(level, slope)
    plain = found.own().var(0).sum()
    for _ in range(3):  # by whole steps: the noise has the covariance I
        step = found.draws(first=NUM_DRAWS)
        level, slope = level - step["level"].mean(0), slope - step["slope"].mean(0).reshape(size, size)
        found.set(level, slope)
    assert plain > factor * found.own().var(0).sum()


@pytest.mark.core
def test_a_fit_learns_the_coefficients_and_a_file_keeps_them(tmp_path):
    settings = {"num_samples": 2, "control_variate": "quadratic", "sticking": True, "num_chains": 2}
    model = SVI(gaussian, "mean_field", seed=0, **settings)
    model.compile(keras.optimizers.Adam(0.03))
    model.fit(DATA, batch_size="all", steps=600, verbose=0)
    scale = array(model.guide_of("level", 0).distribution().factor)
    hessian = len(DATA["count"]) / 0.7**2 + np.eye(SIZE)
    expected = scale[:, None] * hessian * scale - np.eye(SIZE)  # of a density that sticks
    for control in model.controls:
        np.testing.assert_allclose(array(control.slope), expected, atol=0.05)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"gaussian": gaussian})
    assert (again.control_variate, again.sticking) == ("quadratic", True)
    for one, other in zip(again.controls, model.controls, strict=True):
        np.testing.assert_array_equal(array(one.slope), array(other.slope))


def test_growing_batches_leave_the_coefficients_out():
    model = SVI(gaussian, "mean_field", control_variate="quadratic", seed=0)
    model.compile(keras.optimizers.Adam(0.03))
    adaptive = AdaptiveBatch(most=4, interval=5)
    model.fit(DATA, batch_size="all", steps=12, verbose=0, callbacks=[adaptive])
    assert isinstance(model.controls[0], LearnsNoise)
    assert np.isfinite(adaptive.noise_scale)
    assert np.all(array(model.controls[0].slope) != 0.0)


def test_a_mean_field_guide_that_sticks_has_less_noise_near_the_optimum():
    """What is left there is of correlations alone, which two numbers share."""
    noise = {}
    for sticking in (False, True):
        found = case(gaussian, "mean_field", 1, sticking or None)
        found.set(np.zeros(SIZE), np.zeros((SIZE, SIZE)))
        precision = len(DATA["count"]) / 0.7**2 + 1.0
        found.guide.rho.assign(np.full(SIZE, np.log(np.expm1(precision**-0.5))))
        covariance = np.linalg.inv(precision * np.ones((SIZE, SIZE)) + np.eye(SIZE) - np.ones((SIZE, SIZE)))
        found.guide.shift.assign(covariance @ np.full(SIZE, DATA["count"].sum() / 0.7**2))
        noise[sticking] = found.own().var(0).sum()
        found.guide.shift.assign(SHIFT)
        found.guide.rho.assign(RHO)
    assert noise[False] > 1.5 * noise[True]


def test_other_guides_may_stick_or_not():
    model = SVI(gaussian, LowRank(rank=1), sticking=False, seed=0)
    model.trace_on(DATA)
    draws = model.estimator.draws(DATA, random.draw_key(0), 2)
    assert not draws.families[0][0].base.sticks
    model.sticking = None
    assert model.estimator.draws(DATA, random.draw_key(0), 2).families[0][0].base.sticks


def recognition(family):
    return {"code": Amortized(keras.layers.Identity(), lambda data: data["count"][:, None], family=family)}


def test_recognition_networks_that_stick_are_right_on_average():
    found = {}
    for sticking in (False, True):
        gradients_of = Gradients(rows, recognition("full_rank"), num_samples=2, sticking=sticking)
        rng = np.random.default_rng(0)
        for variable in gradients_of.guide.trainable_variables:
            variable.assign(0.1 * rng.normal(size=variable.shape))
        found[sticking] = np.concatenate(list(gradients_of.draws().values()), axis=1)
    gap = found[True] - found[False]
    assert np.any(gap.std(0) > 0)
    assert_right(gap, np.zeros(gap.shape[1]))


def test_flows_of_rows_have_the_same_density_if_they_stick():
    model = SVI(rows, recognition(Flow(layers=2, width=2)), seed=0)
    model.trace_on(DATA)
    rng = np.random.default_rng(0)
    for variable in model.guides[0].trainable_variables:
        variable.assign(0.3 * rng.normal(size=variable.shape))
    densities = []
    for model.sticking in (False, True):
        draws = model.estimator.draws(DATA, random.draw_key(0), 2)
        assert draws.families[0][0].sticks == model.sticking
        densities.append(array(draws.log_density()))
    np.testing.assert_allclose(*densities, rtol=1e-5)


def test_what_has_no_control_variate_says_so():
    with pytest.raises(ValueError, match="`control_variate` must be 'quadratic' or None, not 'cubic'"):
        SVI(gaussian, control_variate="cubic")
    with pytest.raises(ValueError, match="`control_variate` must be None with num_samples='cubature'"):
        SVI(gaussian, control_variate="quadratic", num_samples="cubature")
    with pytest.raises(ValueError, match=r"`control_variate` must be None where no global site .* \['Delta'\]"):
        SVI(gaussian, Delta(), control_variate="quadratic").trace_on(DATA)
    with pytest.raises(ValueError, match=r"`control_variate` must be None where no global site .* \['Amortized'\]"):
        guide = {"code": Amortized(keras.layers.Dense(3), ["count"])}
        SVI(rows, guide, control_variate="quadratic").trace_on(DATA)
    with pytest.raises(ValueError, match=r"`sticking` must be True, False, or None .* not 'yes'"):
        SVI(gaussian, sticking="yes")
