"""The quadratic control variate: no gradient changes on average, and the noise falls by what is quadratic."""

import keras
import numpy as np
import pytest
from distribution_libraries import array, single
from gradients import gradients
from keras import ops
from standard_errors import assert_within_standard_errors
from stories import Normal

from bdl import random
from bdl.keras_internals import compiled
from bdl.svi import SVI, Amortized, Flow, FullRank, Global, MeanField, Observed

NUM_STEPS, SIZE = 500, 2
DATA = {"count": np.array([2.0, 0.0, 5.0], "float32")}
SHIFT, RHO, SLOPE, CURVATURE = [0.3, -0.2], [-0.5, 0.1], [0.4, -1.0], [0.8, 1.5]


class LogRate(Normal):
    """Counts of Poisson variables, less a constant."""

    def __init__(self, log_rate):
        super().__init__(log_rate, 1.0)

    def log_prob(self, count):
        return count * self.loc - ops.exp(self.loc)


@keras.saving.register_keras_serializable(package="tests")
def gaussian(data):
    """The objective is quadratic in each number."""
    level = yield Global("level", Normal(ops.zeros(SIZE), 1.0))
    yield Observed("count", Normal(level[0], 0.7), data["count"])


@keras.saving.register_keras_serializable(package="tests")
def poisson(data):
    """Counts with a log-normal rate, of two numbers that are correlated given them."""
    level = yield Global("level", Normal(ops.zeros(SIZE), 1.0))
    yield Observed("count", LogRate(level[0] + 0.5 * level[1]), data["count"])


def gradients_of_draws(told, family, control_variate, mirrored, slope=SLOPE, curvature=CURVATURE):
    """Gradients of the loss in mean and scales, `(keys, numbers)`, and those of the coefficients if there are any."""
    guide = {"mean_field": MeanField, "full_rank": FullRank}[family](control_variate=control_variate)
    model = SVI(told, guide, num_samples=2 if mirrored else 1, seed=0)
    model.trace_on(DATA)
    guide = model.guide_of("level")
    guide.shift.assign(SHIFT)
    guide.rho.assign(RHO)
    if family == "full_rank":
        guide.below.assign([[0.0, 0.0], [0.4, 0.0]])
    if control_variate:
        guide.slope.assign(slope)
        guide.curvature.assign(curvature)
    variables = guide.trainable_variables
    data = {name: ops.convert_to_tensor(each) for name, each in DATA.items()}

    def total(values, key):
        with keras.StatelessScope(zip(variables, values, strict=True)):
            terms = model.estimator.terms(data, key, 1.0)
        return ops.mean(ops.sum(terms.nll, axis=-1)) + sum(terms.global_kl.values())

    one = compiled(lambda values, key: gradients(lambda inner: total(inner, key), values))
    values = [single(array(variable)) for variable in variables]
    found = [[array(each).ravel() for each in one(values, random.draw_key(seed))] for seed in range(NUM_STEPS)]
    names = [variable.name for variable in variables]
    columns = {name: np.stack([each[place] for each in found]) for place, name in enumerate(names)}
    learned = {name: columns.pop(name) for name in ("slope", "curvature") if name in columns}
    return np.concatenate(list(columns.values()), axis=1), learned


def truth(told, family):
    """Gradient of the loss in mean, rho and what is below the diagonal, in closed form but for the last difference."""

    def loss(numbers):
        scale = np.diag(np.log1p(np.exp(numbers[2:4])))
        if family == "full_rank":
            scale = scale + np.tril(numbers[4:].reshape(2, 2), -1)
        mean, covariance = numbers[:2], scale @ scale.T
        kl = 0.5 * (np.trace(covariance) + mean @ mean - SIZE - np.linalg.slogdet(covariance)[1])
        counts = DATA["count"].astype("float64")
        if told is gaussian:
            return kl + 0.5 * np.sum((counts - mean[0]) ** 2 + covariance[0, 0]) / 0.7**2
        way = np.array([1.0, 0.5])
        rate = np.exp(way @ mean + 0.5 * way @ covariance @ way)
        return kl + len(counts) * rate - counts.sum() * (way @ mean)

    numbers = np.array(SHIFT + RHO + ([0.0, 0.0, 0.4, 0.0] if family == "full_rank" else []))
    steps = 1e-5 * np.eye(len(numbers))
    return np.array([(loss(numbers + step) - loss(numbers - step)) / 2e-5 for step in steps])


@pytest.mark.parametrize("told", [gaussian, pytest.param(poisson, marks=pytest.mark.core)])
@pytest.mark.parametrize("family", ["mean_field", "full_rank"])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("control_variate", [None, "quadratic"])
def test_gradients_are_right_on_average(told, family, mirrored, control_variate):
    """Whatever the coefficients are."""
    found, _ = gradients_of_draws(told, family, control_variate, mirrored)
    error = found.std(0) / np.sqrt(NUM_STEPS) + 1e-5  # of float32, where there is no noise at all
    assert_within_standard_errors(found.mean(0), truth(told, family), error, k=4)


FACTORS = {  # by story, family, and whether draws are mirrored: times that the sum of variances is less, at least
    (gaussian, "mean_field", False): 1,
    (gaussian, "mean_field", True): 1,
    (gaussian, "full_rank", True): 1,
    (poisson, "mean_field", False): 1,
    (poisson, "mean_field", True): 1,
    (poisson, "full_rank", True): 1,
}


@pytest.mark.parametrize(("told", "family", "mirrored"), list(FACTORS))
def test_the_coefficients_go_where_the_noise_is_less(told, family, mirrored):
    plain, _ = gradients_of_draws(told, family, None, mirrored)
    _, learned = gradients_of_draws(told, family, "quadratic", mirrored)
    goal = {"slope": SLOPE - learned["slope"].mean(0), "curvature": CURVATURE - learned["curvature"].mean(0)}
    less, _ = gradients_of_draws(told, family, "quadratic", mirrored, **goal)
    print(told.__name__, family, mirrored, plain.var(0).sum() / less.var(0).sum(), goal)
    assert plain.var(0).sum() > FACTORS[told, family, mirrored] * less.var(0).sum()


def test_a_fit_learns_the_coefficients_and_a_file_keeps_them(tmp_path):
    model = SVI(gaussian, MeanField(control_variate="quadratic"), num_samples=8, seed=0)
    model.compile(keras.optimizers.Adam(0.05))
    model.fit(DATA, batch_size="all", steps=1000, verbose=0)
    guide = model.guide_of("level")
    print(array(guide.curvature))
    # In units of the posterior its curvature is 1.
    np.testing.assert_allclose(array(guide.curvature), 1.0, atol=0.05)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").guide_of("level")
    assert again.control_variate == "quadratic"
    np.testing.assert_array_equal(array(again.curvature), array(guide.curvature))


def test_what_has_no_control_variate_says_so():
    with pytest.raises(ValueError, match="`control_variate` must be 'quadratic' or None, not 'cubic'"):
        MeanField(control_variate="cubic")
    with pytest.raises(ValueError, match="`control_variate` must be None of a flow"):
        Flow(control_variate="quadratic")
    with pytest.raises(ValueError, match="`family` must have no control variate"):
        Amortized(keras.layers.Dense(3), ["count"], family=MeanField(control_variate="quadratic"))
