"""Signal and noises of a step's gradient: closed forms, the law 1 / b, the step's own gradients, and what is said."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from numpy.testing import assert_allclose
from standard_errors import assert_mean, assert_within_standard_errors
from stories import Normal

import bdl
from bdl.diagnostics import GradientNoise, Quantities, TrainingHealth, diagnose, gradient_noise, judge
from bdl.diagnostics.gradient_analysis import analysis_of_variance
from bdl.diagnostics.gradient_noise import noise_where_known
from bdl.diagnostics.gradient_watch import GradientWatch
from bdl.diagnostics.pacing import Budget
from bdl.svi import SVI, Global, Local, Observed

ROWS = 300
SCALE, SLOPE = np.log(2.0), 0.5  # softplus and its derivative at zero


def levels(size, rows=ROWS):
    """A model of many means, each with a Gaussian prior, fitted to nothing: its guide is `N(0, log(2)^2)`."""

    def story(data):
        level = yield Global("level", Normal(np.zeros(size, "float32"), 1.0))
        yield Observed("y", Normal(level, 1.0), data["y"])

    data = {"y": np.random.default_rng(0).normal(0.3, 1.0, size=(rows, size)).astype("float32")}
    model = SVI(story, num_examples=rows, seed=0)
    model.compile(keras.optimizers.SGD(0.0))
    model.trace_on(data)
    for variable in (model.guides[0].origin, model.guides[0].shift, model.guides[0].rho):
        variable.assign(np.zeros(size))
    return model, data


def of_levels(y, batch_size):
    """Its signal and noises: of `z - mean(y)` and of `(z - mean(y)) e scale'`, with z = scale e, and the divergence."""
    center = y.astype("float64").mean(axis=0)
    divergence = (SCALE - 1 / SCALE) * SLOPE / len(y)
    signal = np.sum(center**2) + np.sum((SCALE * SLOPE + divergence) ** 2 + 0 * center)
    rows = np.sum(y.astype("float64").var(axis=0, ddof=1)) * (1 / batch_size - 1 / len(y))
    draw = np.sum(SCALE**2 + (center**2 + 2 * SCALE**2) * SLOPE**2)
    return signal, (1 + SLOPE**2) * rows, draw


@pytest.mark.core
def test_noises_of_a_story_are_those_of_the_closed_form():
    model, data = levels(20)
    found = gradient_noise(model, data, batch_size=10, num_draws=40)
    expected = of_levels(data["y"], 10)
    errors = (found.signal_error, found.data_error, found.draw_error)
    assert_within_standard_errors((found.signal, found.data, found.draw), expected, errors, k=4)
    assert (found.batch_size, found.num_examples, found.num_gradients) == (10, ROWS, 80)


def test_noise_of_the_data_falls_as_one_over_the_batch_size_and_that_of_the_draw_does_not():
    """To 2 %: of 2,000 numbers and 96 draws each noise has a standard error of about .5 %."""
    model, data = levels(2000, rows=1500)
    small, large = (gradient_noise(model, data, batch_size=size, num_draws=96) for size in (5, 20))
    # Of batches of different rows; they are a part of all of them.
    assert_allclose(small.data / (1 / 5 - 1 / 1500), large.data / (1 / 20 - 1 / 1500), rtol=0.02)
    assert_allclose(small.draw, large.draw, rtol=0.02)
    for found, size in ((small, 5), (large, 20)):
        assert_allclose((found.data, found.draw), of_levels(data["y"], size)[1:], rtol=0.02)


def test_coefficients_of_a_control_variate_are_neither_signal_nor_noise():
    """As long as they are zero they change no gradient of the guide."""
    model, data = levels(3)
    controlled = SVI(model.story, num_examples=ROWS, seed=0, control_variate="quadratic")
    for each in (model, controlled):
        each.compile("adam")  # whose moments are those of all trained variables
        each.trace_on(data)
        for variable in (each.guides[0].origin, each.guides[0].shift, each.guides[0].rho):
            variable.assign(np.zeros(3))
        each.fit(data, batch_size="all", steps=1, verbose=0)
        for variable, value in zip(each.guides[0].trainable_variables, (0.1, 0.2), strict=True):
            variable.assign(np.full(3, value))
    for variable in controlled.controls[0].weights:
        variable.assign(np.zeros(variable.shape))
    plain, other = (gradient_noise(each, data, batch_size=10) for each in (model, controlled))
    assert_allclose((plain.signal, plain.data, plain.draw), (other.signal, other.data, other.draw), rtol=1e-5)


def test_whole_data_leave_the_noise_of_the_draw_alone():
    model, data = levels(20)
    found = gradient_noise(model, data, batch_size=ROWS)
    assert_allclose(found.data, 0.0, atol=1e-9)
    assert found.draw_share == pytest.approx(1.0)


def test_what_is_drawn_for_each_row_is_noise_of_the_data():
    """At one value of the global site, whose guide is a point, all that is drawn are the rows' own values."""

    def story(data):
        level = yield Global("level", Normal(0.0, 1.0))
        value = yield Local("value", Normal(level, 1.0))
        yield Observed("y", Normal(value, 0.3), data["y"])

    data = {"y": np.full(200, 1.0, "float32")}  # rows are all alike
    network = keras.Sequential([keras.Input((1,)), layers.Dense(2)])
    guide = {"level": "delta", "value": bdl.svi.Amortized(network, inputs="y")}
    model = SVI(story, guide, seed=0, num_examples=200)
    model.compile(keras.optimizers.SGD(0.0))
    model.trace_on(data)
    found = gradient_noise(model, data, batch_size=8, num_draws=40, num_batches=4)
    assert_within_standard_errors(found.draw, 0.0, found.draw_error, k=4)
    assert found.data > 4 * found.data_error


def network_model(layer=bdl.layers.DenseReparameterization, optimizer=None, **kwargs):
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 3)).astype("float32")
    y = (x @ [1.0, -1.0, 0.5] + random.normal(size=80)).astype("float32")[:, None]
    network = keras.Sequential([keras.Input((3,)), layer(1)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), num_examples=80, **kwargs)
    model.compile(optimizer or keras.optimizers.SGD(1.0))
    return model, x, y


@pytest.mark.core
def test_the_gradient_is_that_of_the_training_step():
    """Signal and the sum of the noises against steps of SGD, whose changes are the gradients."""
    model, x, y = network_model(kl_weight=0.3, num_samples=2)
    found = gradient_noise(model, x, y, batch_size=8, num_draws=60)
    before = [keras.ops.convert_to_numpy(each) for each in model.trainable_variables]
    random, gradients = np.random.default_rng(1), []
    for _ in range(150):
        rows = random.choice(80, 8, replace=False)
        model.train_on_batch(x[rows], y[rows])
        after = [keras.ops.convert_to_numpy(each) for each in model.trainable_variables]
        gradients.append(np.concatenate([(a - b).ravel() for a, b in zip(before, after, strict=True)]))
        for variable, value in zip(model.trainable_variables, before, strict=True):
            variable.assign(value)
    gradients = np.array(gradients, "float64")
    mean = gradients.mean(axis=0)
    squares = np.sum((gradients - mean) ** 2, axis=1) * 150 / 149
    error = np.hypot(squares.std() / np.sqrt(150), np.hypot(found.data_error, found.draw_error))
    assert_within_standard_errors(found.data + found.draw, squares.mean(), error, k=4)
    signal = mean @ mean - squares.mean() / 150
    projected = gradients @ mean
    error = np.hypot(2 * projected.std() / np.sqrt(150), found.signal_error)
    assert_within_standard_errors(found.signal, signal, error, k=4)


@pytest.mark.core
def test_measuring_changes_nothing_and_is_the_same_again():
    model, x, y = network_model(bdl.layers.DenseFlipout, keras.optimizers.Adam(), kl_weight=1.0)
    model.fit(x, y, epochs=1, verbose=0)
    before = [keras.ops.convert_to_numpy(each) for each in model.variables]
    first, again = (gradient_noise(model, x, y, batch_size=8, num_draws=4) for _ in range(2))
    assert first == again
    assert first != gradient_noise(model, x, y, batch_size=8, num_draws=4, seed=1)
    for variable, value in zip(model.variables, before, strict=True):
        assert_allclose(keras.ops.convert_to_numpy(variable), value, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [bdl.layers.DenseLocalReparameterization, layers.Dense])
def test_layers_that_draw_for_each_row_have_no_noise_of_the_draw(layer):
    """Local reparameterization, and Keras' dropout in a plain network, which has another seed in each batch."""
    if layer is layers.Dense:
        _, x, y = network_model()
        model = keras.Sequential([keras.Input((3,)), layers.Dense(8), layers.Dropout(0.5, seed=0), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
    else:
        model, x, y = network_model(layer, kl_weight=1.0)
    found = gradient_noise(model, x, y, batch_size=8, num_draws=50)
    assert_within_standard_errors(found.draw, 0.0, found.draw_error, k=4)
    assert found.data > 5 * found.data_error


def test_norms_are_weighted_as_the_optimizer_steps():
    """A factor of the loss drops out of the share, and enters squared norms as it does the optimizer's root of v."""
    model, x, y = network_model(optimizer=keras.optimizers.Adam(1e-6), kl_weight=1.0)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    before = gradient_noise(model, x, y, batch_size=8)
    for moment in bdl.keras_internals.second_moments(model.optimizer):
        moment.assign(16.0 * keras.ops.convert_to_tensor(moment))
    after = gradient_noise(model, x, y, batch_size=8)
    assert_allclose([after.signal, after.data, after.draw], np.array([before.signal, before.data, before.draw]) / 4)
    assert_allclose(after.draw_share, before.draw_share)


def test_estimates_are_unbiased_and_their_errors_are_right():
    random, found = np.random.default_rng(0), []
    for _ in range(400):
        draws = 0.6 + 0.5 * random.normal(size=(12, 1, 4))
        gradients = draws + 0.8 * random.normal(size=(12, 3, 4))
        means = gradients.mean(axis=1)
        within = ((gradients - means[:, None]) ** 2).sum(axis=(1, 2))
        found.append(analysis_of_variance(means, within, 3, batch_size=1, num_examples=1000))
    for name, expected in (("signal", 4 * 0.36), ("data", 4 * 0.64), ("draw", 4 * 0.25)):
        values, errors = (np.array([getattr(each, key) for each in found]) for key in (name, f"{name}_error"))
        assert_mean(values, expected)
        # Twelve draws give a variance that is known to some 10 %, and the jackknife's is up to 10 % too large.
        assert 0.9 < np.sqrt(np.mean(errors**2)) / values.std() < 1.25


@pytest.mark.parametrize(
    ("noise", "sentence"),
    [
        (
            GradientNoise(32, 0.1, 0.07, 0.93, draw_share_error=0.03, num_examples=999),
            "Larger batches would not help: 93 % (± 3 %) of the gradient's noise in batches of 32 is the draw's.",
        ),
        (
            GradientNoise(32, 0.1, 0.9, 0.1, draw_share_error=0.05, num_examples=999),
            "Larger batches would help: 90 % (± 5 %) of the gradient's noise in batches of 32 is the data's, and "
            "batches of 96 would halve it all.",
        ),
        (
            GradientNoise(32, 0.1, 0.9, 0.1, draw_share_error=0.05, num_examples=90),
            "Larger batches would help: 90 % (± 5 %) of the gradient's noise in batches of 32 is the data's, and "
            "a step on all 90 rows would have next to none of it.",
        ),
        (
            GradientNoise(32, 9.0, 0.9, 0.1, 0.5, 0.1, 0.1, draw_share_error=0.05, num_examples=90),
            "The gradient's noise in batches of 32 is 0.11 of its signal (squared norms): neither larger batches nor "
            "more draws would help much.",
        ),
    ],
)
def test_the_verdict_says_which_noise_there_is(noise, sentence):
    assert sentence in judge(Quantities(temperature=1000.0, gradient_noise=noise)).evidence


def test_nothing_is_said_of_what_is_not_clear():
    noise = GradientNoise(32, 0.1, 0.45, 0.55, draw_share_error=0.05, num_examples=999)
    assert "not clear" in str(noise)
    assert not any("batches" in said for said in judge(Quantities(temperature=1e3, gradient_noise=noise)).evidence)


def test_other_batch_sizes_follow_from_the_law():
    noise = GradientNoise(32, 0.1, 0.8, 0.2, 0.01, 0.08, 0.02, 0.01)
    other = noise.at(128)
    assert_allclose([other.data, other.data_error, other.draw, other.draw_share], [0.2, 0.02, 0.2, 0.5])
    moved = dataclasses.replace(noise, data=0.79, draw=0.21).at(128)
    assert_allclose(moved.draw_share - 0.5, other.draw_share_error, rtol=0.05)


def test_callback_and_diagnosis_measure_and_record_it(tmp_path):
    model, x, y = network_model(bdl.layers.DenseFlipout, keras.optimizers.Adam(0.01), kl_weight=1.0)
    record = tmp_path / "run.jsonl"
    health = TrainingHealth(data=(x, y), record=record, on_verdict="record", max_cost=1.0)
    model.fit(x, y, batch_size=20, epochs=4, verbose=0, callbacks=[health])
    recorded = bdl.diagnostics.read_record(record)[0].probes[-1].gradient_noise
    assert recorded == health.quantities.gradient_noise
    assert (recorded.batch_size, recorded.num_examples) == (20, 80)
    report = diagnose(model, x, y, record=record, num_samples=4)
    assert report.quantities.gradient_noise.batch_size == 20
    assert "Gradient: noise of the draw" in str(report.page())


def test_a_story_is_measured_by_diagnose():
    model, data = levels(3)
    found = diagnose(model, data).quantities.gradient_noise
    assert found.batch_size == ROWS  # which the story was traced on
    assert found == gradient_noise(model, data, batch_size=ROWS)


def test_a_short_training_does_not_pay_for_it():
    budget = Budget(0.04)
    budget.expect("gradient", 2.0)
    epochs = [{"seconds": 1.0}, {"seconds": 1.1}]
    assert not budget.pays_now("gradient", epochs, planned=20, is_urgent=False, part=0.5)
    assert budget.pays_now("gradient", epochs, planned=2000, is_urgent=False, part=1.0)
    assert budget.pays_now("gradient", epochs, planned=20_000, is_urgent=False, part=0.5)


def test_the_callback_expects_to_compile_as_long_as_the_training_did():
    model, x, y = network_model(kl_weight=1.0)
    watch = GradientWatch((x, y), num_examples=80, steps=4)
    for compiling, is_paid in ((200.0, False), (1.0, True)):
        epochs = [{"epoch": 1, "seconds": compiling}, {"epoch": 2, "seconds": compiling + 0.1}]
        watch.look(model, Budget(0.04), epochs, planned=20_000, is_over=False)
        assert (watch.noise is not None) == is_paid
    first = watch.noise
    watch.look(model, Budget(0.04), [*epochs, {"epoch": 3, "seconds": 1.2}], planned=20_000, is_over=False)
    assert watch.noise is first  # not due again before a quarter of the epochs


def test_an_error_within_is_a_warning_and_the_rest_is_still_watched():
    class Broken(layers.Layer):
        def call(self, x, training=None):
            if training and keras.ops.shape(x)[0] == 20 and broken:
                raise RuntimeError("of the layer")
            return x

    broken = []
    network = keras.Sequential([keras.Input((3,)), Broken(), bdl.layers.DenseFlipout(1)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), kl_weight=1.0)
    model.compile("adam")
    x, y = np.zeros((80, 3), "float32"), np.zeros((80, 1), "float32")
    model.fit(x, y, batch_size=20, epochs=1, verbose=0)
    broken.append(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert noise_where_known(model, x, y, batch_size=20) is None
    assert any("was not measured (RuntimeError" in str(each.message) for each in caught)
    said = []
    watch = GradientWatch((x, y), num_examples=80, steps=4, warn=said.append)
    watch.look(model, Budget(1.0), [{"epoch": 1, "seconds": 1.0}, {"epoch": 2, "seconds": 1.1}], 9, is_over=False)
    assert watch.noise is None
    assert "of the layer" in said[0]


def own_step():
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    inputs = keras.Input((3,))
    model = Own(inputs, layers.Dense(1)(inputs))
    model.compile("sgd", loss="mse")
    return model


def strange():
    class Strange(layers.Layer):
        def __init__(self):
            super().__init__(name="strange")
            self.seed_generator = keras.random.SeedGenerator(0)

        def call(self, x):
            return x + keras.random.normal((3,), seed=self.seed_generator)

    model = keras.Sequential([keras.Input((3,)), Strange(), layers.Dense(1)])
    model.compile("sgd", loss="mse")
    return model


def of_optimizer():
    network = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), 80, optimizer_posterior=True)
    model.compile(bdl.optimizers.IVON(0.1))
    return model


def new():
    network = keras.Sequential([keras.Input((3,)), bdl.layers.DenseFlipout(1)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0))
    model.compile("adam")
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (own_step, "train_step of its own"),
        (strange, "'strange' draws for each row, or once for a batch"),
        (of_optimizer, "posterior is its optimizer's"),
        (new, "does not know its N or its T"),
        (lambda: keras.Sequential([keras.Input((3,)), layers.Dense(1)]), "not a compiled"),
    ],
)
def test_a_model_whose_gradient_is_not_known_is_refused(model, why):
    with pytest.raises(ValueError, match=why):
        gradient_noise(model(), np.zeros((4, 3)), np.zeros((4, 1)))


def test_wrong_arguments_are_refused():
    model, x, y = network_model(kl_weight=1.0)
    for arguments, message in (
        ({"batch_size": 0}, "`batch_size` must be a positive integer, not 0"),
        ({"num_draws": 1}, "`num_draws` must be an integer of at least 2, not 1"),
        ({"num_batches": 1.5}, "`num_batches` must be an integer of at least 2, not 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            gradient_noise(model, x, y, **arguments)
    with pytest.raises(ValueError, match="must be arrays"):
        gradient_noise(model, iter([x]))
