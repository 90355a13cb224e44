"""Tables of local parameters: rows are at their best Gaussians after a few visits, and no row is another's."""

import keras
import numpy as np
import pytest
from distribution_libraries import array, float64
from keras import ops
from scipy import optimize, special, stats
from stories import Categorical, Normal, groups

from bdl import random
from bdl.keras_internals import compiled, current_value
from bdl.svi import SVI, Amortized, Flow, Global, Local, Observed, PerRow
from bdl.svi.refining import rule
from bdl.svi.rows import as_tensors

N = 20
Y = np.random.default_rng(0).normal(0.0, 2.0, N).astype("float32")
ROWS = {"y": Y, "row": np.arange(N)}
PRECISION = 1 / 1.5**2 + 1 / 0.5**2
"""Of a row of `levels` and `groups`, given the mean."""


@keras.saving.register_keras_serializable(package="tests")
def levels(data):
    """A Gaussian value for each row, around a known mean."""
    code = yield Local("code", Normal(0.5, 1.5))
    yield Observed("y", Normal(code, 0.5), data["y"])


LEVELS = (0.5 / 1.5**2 + Y / 0.5**2) / PRECISION


class Counts:
    """Counts with a log density `count * level - normalizer`, of a batch of levels."""

    support, event_shape = None, ()

    def __init__(self, level, normalizer):
        self.level, self.normalizer, self.batch_shape = level, normalizer, tuple(level.shape)

    def log_prob(self, value):
        return value * self.level - self.normalizer

    def sample(self, num_samples, key):
        raise NotImplementedError


def quadrature(log_joint):
    """The ELBO of rows for Gaussians of one number, by 60 nodes, from log joint densities at points `(60, rows)`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return lambda mean, sd: weights @ log_joint(mean + sd * nodes[:, None]) / weights.sum() + np.log(sd)


def best_of(elbo, rows, start):
    """The best Gaussians of rows, `(2, rows)`: means and standard deviations."""
    found = [
        optimize.minimize(lambda at, row=row: -elbo(at[0], np.exp(at[1]))[row], [start[row], -0.5], tol=1e-10).x
        for row in range(rows)
    ]
    return np.transpose(found) * [[1.0], [0.0]] + np.exp(np.transpose(found)) * [[0.0], [1.0]]


def made(story, guide, **settings):
    return SVI(story, guide, seed=0, **settings)


def visited(model, data, times=1, temperature=1.0):
    """What the draws of the rows cost, `(draws, rows)`, in the last of so many training steps, which refine them."""
    model.checked_data(data, is_read=False)
    data = as_tensors(data, model.compute_dtype)
    if not model.sites:
        model.trace_on(data)
    tables = [guide.table for guide in model.guides if isinstance(guide, PerRow)]

    def step(values, key):
        with keras.StatelessScope(zip(tables, values, strict=True)) as scope:
            terms = model.estimator.terms(data, key, temperature)
            after = [scope.get_current_value(table) for table in tables]
        return after, terms.nll + temperature * sum(terms.local_kl.values())

    compiled_step = compiled(step)
    for number in range(times):
        values, costs = compiled_step([current_value(table) for table in tables], random.draw_key(number))
        for table, value in zip(tables, values, strict=True):
            table.assign(value)
    return array(costs)


def state(model, site="code", rows=None):
    """Mean and factor of each row."""
    guide = model.guide_of(site)
    found = guide.read(ops.convert_to_tensor(np.arange(guide.num_rows) if rows is None else rows, dtype="int32"))
    return array(found.mean), array(found.factor)


def fitted(model, data, steps_per_execution=None, **settings):
    """A fit, whose steps are compiled if a number of them in a call is given."""
    is_eager = steps_per_execution is None and keras.backend.backend() == "tensorflow"
    model.compile(keras.optimizers.Adam(1e-2), steps_per_execution=steps_per_execution or 1, run_eagerly=is_eager)
    return model.fit(data, **{"batch_size": 10, "epochs": 1, "verbose": 0, **settings})


@pytest.mark.core
def test_gaussian_rows_are_the_posterior_after_one_step():
    """So every draw's ELBO is the evidence."""
    model = made(levels, {"code": PerRow(N, steps=1)})
    costs = visited(model, ROWS)
    mean, sd = state(model)
    np.testing.assert_allclose(mean[:, 0], LEVELS, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sd[:, 0], PRECISION**-0.5, rtol=1e-5)
    evidence = stats.norm(0.5, np.sqrt(1.5**2 + 0.5**2)).logpdf(Y)
    np.testing.assert_allclose(-costs.mean(0), evidence, atol=2e-5)


@pytest.mark.core
def test_a_fit_without_anything_else_to_train_visits_each_row():
    model = made(levels, {"code": PerRow(N, steps=1)})
    history = fitted(model, ROWS, 1, batch_size=5)
    np.testing.assert_allclose(state(model)[0][:, 0], LEVELS, rtol=1e-5, atol=1e-5)
    evidence = stats.norm(0.5, np.sqrt(1.5**2 + 0.5**2)).logpdf(Y).mean()
    np.testing.assert_allclose(history.history["elbo"], evidence, rtol=1e-5)
    np.testing.assert_allclose(model.evaluate(ROWS, verbose=0, return_dict=True)["elbo"], evidence, rtol=1e-5)
    draws = model.posterior({name: each[:3] for name, each in ROWS.items()}, num_samples=4000, seed=0)["code"]
    error = PRECISION**-0.5 / np.sqrt(4000)
    assert np.all(np.abs(draws.mean(0) - LEVELS[:3]) < 5 * error)


@pytest.mark.core
def test_several_steps_in_a_call_are_those_of_one_a_call():
    found = []
    for number in (1, 4):
        model = made(groups, {"code": PerRow(N)})
        fitted(model, ROWS, number, batch_size=5, epochs=3)
        found.append([*state(model), array(model.guide_of("mean").shift)])
    for one, several in zip(*found, strict=True):
        np.testing.assert_allclose(one, several, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_globals_and_rows_come_to_the_best_product_of_gaussians():
    model = made(groups, {"code": PerRow(N)})
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 150)))
    model.fit(ROWS, batch_size="all", steps=150, verbose=0)
    precision = 1 / 4 + N / (1.5**2 + 0.5**2)
    mean = Y.sum() / (1.5**2 + 0.5**2) / precision  # of a Gaussian posterior the best product has the means
    found = array(model.guide_of("mean").distribution().mean)[0]  # mirrored draws leave its gradient no noise
    assert abs(found - mean) < 0.01
    rows, scale = state(model)
    np.testing.assert_allclose(rows[:, 0], (mean / 1.5**2 + Y / 0.5**2) / PRECISION, atol=0.01)
    np.testing.assert_allclose(scale[:, 0], PRECISION**-0.5, rtol=1e-4)


@pytest.mark.core
def test_counts_far_from_the_start_come_to_their_best_gaussians_in_a_few_visits():
    counts = np.array([1.0, 30.0, 1000.0, 100_000.0], "float32")

    def story(data):
        level = yield Local("code", Normal(0.0, 3.0))
        yield Observed("y", Counts(level, ops.exp(level)), data["y"])

    def elbo(mean, sd):  # in closed form
        return counts * mean - np.exp(mean + sd**2 / 2) - (mean**2 + sd**2) / 18 + np.log(sd)

    best = best_of(elbo, 4, np.log(counts))
    model = made(story, {"code": PerRow(4)})
    visited(model, {"y": counts, "row": np.arange(4)}, times=10)
    mean, sd = (each[:, 0].astype("float64") for each in state(model))
    loss = elbo(*best) - elbo(mean, sd)
    assert np.all(loss < [0.03, 2e-4, 2e-4, 2e-4])  # the first is as wide as .9, where the rule has an error
    assert np.all(np.abs(mean - best[0]) < 0.15 * sd)


def test_binomial_rows_against_quadrature():
    total, hits = np.array([1.0, 5.0, 20.0, 60.0]), np.array([1.0, 5.0, 3.0, 55.0])

    def log_joint(logit):
        return hits * logit - total * np.logaddexp(0.0, logit) - 0.5 * ((logit - 1.0) / 1.5) ** 2

    def story(data):
        logit = yield Local("code", Normal(1.0, 1.5))
        softplus = ops.relu(logit) + ops.log1p(ops.exp(-ops.abs(logit)))  # in NumPyro's form, whose gradient at 0 is 0
        yield Observed("hits", Counts(logit, data["total"] * softplus), data["hits"])

    data = {"total": total.astype("float32"), "hits": hits.astype("float32"), "row": np.arange(4)}
    model = made(story, {"code": PerRow(4)})
    visited(model, data, times=4)
    elbo = quadrature(log_joint)
    found = elbo(*(each[:, 0].astype("float64") for each in state(model)))
    assert np.all(elbo(*best_of(elbo, 4, np.zeros(4))) - found < 1e-4)


MIXING = np.array([[1.0, 0.9], [0.4, -1.0], [0.3, 2.0]], "float32")


def vectors(data):
    code = yield Local("code", Normal(ops.zeros((2,)), 1.0))
    yield Observed("y", Normal(ops.sum(code[:, None, :] * ops.convert_to_tensor(MIXING), axis=-1), 0.7), data["y"])


@pytest.mark.core
@pytest.mark.parametrize("family", ["full_rank", "mean_field"])
def test_rows_of_two_numbers_against_the_closed_form(family):
    """All of the posterior at once, or its means and the precisions of each number given the other."""
    y = np.random.default_rng(1).normal(0.0, 1.5, (N, 3)).astype("float32")
    precision = np.eye(2) + MIXING.T @ MIXING / 0.7**2
    mean = y @ MIXING / 0.7**2 @ np.linalg.inv(precision)
    model = made(vectors, {"code": PerRow(N, family=family)})
    visited(model, {"y": y, "row": np.arange(N)}, times=1 if family == "full_rank" else 12)
    found, factor = state(model)
    np.testing.assert_allclose(found, mean, rtol=1e-3, atol=1e-4)
    if family == "full_rank":
        covariance = factor @ np.swapaxes(factor, 1, 2)
        np.testing.assert_allclose(covariance, np.broadcast_to(np.linalg.inv(precision), (N, 2, 2)), atol=1e-5)
        assert not np.triu(factor, 1).any()
    else:
        np.testing.assert_allclose(factor, np.broadcast_to(np.diag(precision) ** -0.5, (N, 2)), rtol=1e-4)


def test_a_row_with_two_modes_keeps_a_density():
    """Between the modes the log posterior curves upwards, and a Gaussian by its curvature would have none."""

    def story(data):
        code = yield Local("code", Normal(ops.zeros((2,)), 1.0))
        yield Observed("y", Normal(code[:, 0] * code[:, 1], 0.2), data["y"])

    data = {"y": np.array([0.0, 1.0, -2.0], "float32"), "row": np.arange(3)}
    model = made(story, {"code": PerRow(3, family="full_rank")})
    costs = [visited(model, data).mean() for _ in range(6)]
    factor = state(model)[1]
    assert np.all(np.diagonal(factor, axis1=1, axis2=2) > 0)
    assert np.isfinite(costs).all()
    assert costs[-1] < costs[0]


@pytest.mark.core
def test_a_temperature_weighs_the_likelihood_of_a_row_against_its_prior():
    model = made(levels, {"code": PerRow(N, steps=1)})
    visited(model, ROWS, temperature=0.25)
    precision = 1 / 1.5**2 + 4 / 0.5**2
    np.testing.assert_allclose(state(model)[0][:, 0], (0.5 / 1.5**2 + 4 * Y / 0.5**2) / precision, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state(model)[1][:, 0], precision**-0.5, rtol=1e-4)


@pytest.mark.core
def test_indicators_are_summed_out_of_a_rows_density():
    y = np.array([-2.0, 0.3, 4.0], "float32")

    def story(data):
        code = yield Local("code", Normal(0.0, 1.0))
        which = yield Local("which", Categorical(np.log(np.array([0.7, 0.3], "float32"))))
        yield Observed("y", Normal(code + 2.0 * ops.cast(which, "float32"), 1.0), data["y"])

    def log_joint(code):
        parts = [np.log(share) + stats.norm(code + shift, 1.0).logpdf(y) for share, shift in ((0.7, 0.0), (0.3, 2.0))]
        return special.logsumexp(parts, axis=0) - 0.5 * code**2

    model = made(story, {"code": PerRow(3)})
    visited(model, {"y": y, "row": np.arange(3)}, times=3)
    elbo = quadrature(log_joint)
    found = elbo(*(each[:, 0].astype("float64") for each in state(model)))
    assert np.all(elbo(*best_of(elbo, 3, np.zeros(3))) - found < 1e-3)


@pytest.mark.core
def test_a_row_of_which_all_is_missing_has_its_prior():
    def story(data):
        code = yield Local("code", Normal(0.5, 1.5))
        yield Observed("y", Normal(code, 0.5), data["y"], mask=data["seen"])

    model = made(story, {"code": PerRow(N)})
    visited(model, {**ROWS, "seen": np.arange(N) > 0})
    mean, sd = state(model)
    np.testing.assert_allclose([mean[0, 0], sd[0, 0]], [0.5, 1.5], rtol=1e-5)
    np.testing.assert_allclose(mean[1:, 0], LEVELS[1:], rtol=1e-5, atol=1e-5)


def test_two_tables_come_to_the_means_of_the_joint_posterior():
    def story(data):
        one = yield Local("one", Normal(0.0, 1.0))
        two = yield Local("two", Normal(one, 1.0))
        yield Observed("y", Normal(two, 0.5), data["y"])

    model = made(story, {"one": PerRow(N), "two": PerRow(N)})
    visited(model, ROWS, times=6)
    two = Y / 0.25 / (1 / 2 + 1 / 0.25)
    np.testing.assert_allclose(state(model, "two")[0][:, 0], two, atol=1e-4)
    np.testing.assert_allclose(state(model, "one")[0][:, 0], two / 2, atol=1e-4)
    np.testing.assert_allclose(state(model, "one")[1][:, 0], 2**-0.5, rtol=1e-4)
    np.testing.assert_allclose(state(model, "two")[1][:, 0], 5**-0.5, rtol=1e-4)


@pytest.mark.core
def test_the_rule_is_exact_for_cubics_and_the_kurtosis_of_three_numbers():
    for size in (1, 2, 3, 5):
        points, weights = rule(size)
        assert np.isclose(weights.sum(), 1.0)
        np.testing.assert_allclose(weights @ points, 0.0, atol=1e-12)
        np.testing.assert_allclose((points * weights[:, None]).T @ points, np.eye(size), atol=1e-12)
        assert weights @ points[:, 0] ** 4 == pytest.approx(max(3, size))


@pytest.mark.core
def test_rows_that_the_table_does_not_have_are_refused_in_arrays():
    model = made(levels, {"code": PerRow(N)})
    fitted(model, ROWS)
    wrong = {"y": Y[:2], "row": np.array([3, N])}
    message = r"must hold row numbers from 0 to 19, of PerRow\(num_rows=20\), not 20, which row 1 has.*Amortized"
    calls = [model.fit, model.evaluate, model.posterior, model.predict, model.bounds, model.log_likelihood]
    for call in calls:
        with pytest.raises(ValueError, match=r"`(x|data)\['row'\]` " + message):
            call(wrong)
    with pytest.raises(ValueError, match=r"`validation_data\['row'\]` " + message):
        model.fit(ROWS, validation_data=wrong)
    with pytest.raises(ValueError, match="not -1, which row 0 has"):
        model.posterior({"y": Y[:1], "row": np.array([-1])})


@pytest.mark.core
def test_rows_that_the_table_does_not_have_are_nan_in_a_stream():
    model = made(levels, {"code": PerRow(N - 1)}, num_examples=N)
    model.trace_on(as_tensors(ROWS, "float32"))
    model.checked_data = lambda data, is_read: data
    is_nan = np.isnan(visited(model, ROWS))
    assert is_nan[:, -1].all()
    assert not is_nan[:, :-1].any()
    np.testing.assert_allclose(state(model)[0][:, 0], LEVELS[:-1], rtol=1e-5, atol=1e-5)
    assert np.isnan(array(model.guide_of("code").table)[-1]).all()


@pytest.mark.core
def test_rows_that_were_not_fitted_have_no_posterior():
    model = made(levels, {"code": PerRow(N)})
    some = {name: each[:5] for name, each in ROWS.items()}
    history = fitted(model, some, validation_data=ROWS)
    assert np.isnan(history.history["val_loss"]).all()
    for call in (model.evaluate, model.posterior, model.predict):
        with pytest.raises(ValueError, match="hold rows that PerRow was fitted to, not 15 others, such as number 5"):
            call(ROWS)
    assert np.isfinite(model.evaluate(some, verbose=0)).all()


@pytest.mark.core
def test_a_frozen_table_stays_as_it_is():
    model = made(groups, {"code": PerRow(N)})
    fitted(model, ROWS)
    before = state(model)[0]
    model.guide_of("code").trainable = False
    with pytest.raises(ValueError, match="Call compile again"):
        model.fit(ROWS, verbose=0)
    fitted(model, ROWS)
    np.testing.assert_array_equal(state(model)[0], before)
    model.guide_of("code").trainable = True
    model.guide_of("mean").trainable = False
    globals_ = array(model.guide_of("mean").shift)
    fitted(model, ROWS)
    np.testing.assert_array_equal(array(model.guide_of("mean").shift), globals_)
    assert np.abs(state(model)[0] - before).max() > 0


@pytest.mark.core
def test_a_file_keeps_the_table(tmp_path):
    model = made(groups, {"code": PerRow(N, index="row", family="full_rank", steps=3)})
    fitted(model, ROWS)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    guide = loaded.guide_of("code")
    assert (guide.num_rows, guide.index, guide.family, guide.steps) == (N, "row", "full_rank", 3)
    np.testing.assert_array_equal(array(guide.table), array(model.guide_of("code").table))
    ours, theirs = (each.posterior(ROWS, num_samples=3, seed=0)["code"] for each in (model, loaded))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    loaded.fit(ROWS, batch_size=5, verbose=0)


@pytest.mark.core
@pytest.mark.parametrize("objective", ["elbo", "multi_sample"])
def test_beside_other_guides_and_networks(objective):
    """Networks with weights and a state of their own are trained as usual, and refining leaves no trace in them."""

    def story(data, decoder):
        mean = yield Global("mean", Normal(0.0, 2.0))
        code = yield Local("code", Normal(mean, 1.5))
        other = yield Local("other", Normal(0.0, 1.0))
        yield Observed("y", Normal(decoder(code[:, None])[:, 0] + other, 0.5), data["y"])

    decoder = keras.Sequential(
        [keras.layers.Dense(3, "tanh"), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    )
    guide = {"mean": Flow(1, 2), "code": PerRow(N), "other": Amortized(keras.layers.Dense(3, "tanh"), ["y"])}
    model = made(story, guide, networks={"decoder": decoder}, objective=objective, num_samples=2)
    history = fitted(model, ROWS)
    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(array(model.guide_of("code").table)[:-1]).all()
    assert len(model.guide_of("code").trainable_variables) == 0
    shapes = [tuple(each.shape) for each in model.non_trainable_variables]
    assert sum(shape[:1] == (N + 1,) for shape in shapes) == 1  # no average of the table
    assert np.isfinite(model.bounds(ROWS, num_samples=3, num_globals=2, seed=0).elbo)


def test_rows_in_double_precision():
    class Wide(Normal):
        def __init__(self, loc, scale):
            self.loc, self.scale = (ops.convert_to_tensor(each, dtype="float64") for each in (loc, scale))
            self.batch_shape = tuple((self.loc + self.scale).shape)

        def sample(self, num_samples, key):
            return self.loc + ops.zeros((num_samples, *self.batch_shape), dtype="float64")

    def story(data):
        code = yield Local("code", Wide(0.5, 1.5))
        yield Observed("y", Wide(code, 0.5), data["y"])

    with float64():
        model = made(story, {"code": PerRow(N, family="full_rank", steps=1)}, dtype="float64")
        visited(model, ROWS)
        mean, factor = state(model)
    assert mean.dtype == np.float64
    np.testing.assert_allclose(factor[:, 0, 0], PRECISION**-0.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rows": 0}, "`num_rows` must be a positive integer, not 0"),
        ({"num_rows": 3, "steps": 0}, "`steps` must be a positive integer, not 0"),
        ({"num_rows": 3, "index": None}, "`index` must be a key of the data, not None"),
        ({"num_rows": 3, "family": "flow"}, "`family` must be one of .*, not 'flow'"),
    ],
)
def test_arguments_that_make_no_table_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PerRow(**settings)


def test_data_without_row_numbers_are_refused():
    for rows, message in (
        (None, "`x` must be a dict with the key 'row' for PerRow.*not \\['y'\\]"),
        (np.arange(N, dtype="float32"), "must be one integer for each row, not float32 of the shape \\(20,\\)"),
        (np.zeros((N, 1), "int32"), "must be one integer for each row, not int32 of the shape \\(20, 1\\)"),
    ):
        model = made(levels, {"code": PerRow(N)})
        model.compile("adam")
        with pytest.raises(ValueError, match=message):
            model.fit({"y": Y} if rows is None else {"y": Y, "row": rows})


def test_rows_of_many_numbers_are_refused():
    with pytest.raises(ValueError, match=r"at most 32 numbers on the real line together, not 33.*Amortized"):
        PerRow(3).bind({"code": 33})
