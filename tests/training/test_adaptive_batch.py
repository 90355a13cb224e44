"""Updates of several micro-batches: the mean gradient, signal and noise, growth without a new compilation."""

import keras
import numpy as np
import pytest
from keras import ops
from standard_errors import assert_mean
from stories import Normal

import bdl
from bdl.svi import SVI, Global, Observed
from bdl.training import AdaptiveBatch
from bdl.training.micro_batches import MicroBatches

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 3)).astype("float32")
Y = RANDOM.normal(size=(64, 1)).astype("float32")


def level(data):
    mean = yield Global("mean", Normal(0.0, 10.0))
    yield Observed("y", Normal(mean, 1.0), data["y"])


def network(optimizer, **compiled):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse", **compiled)
    return model


def applied(optimizer, gradients):
    variable = keras.Variable(np.zeros(gradients.shape[1], "float32"))
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient.astype("float32"))], [variable])
    return ops.convert_to_numpy(variable)


def with_number(optimizer, number):
    """Adaptive batches that stay at a number of micro-batches."""
    callback = AdaptiveBatch(most=number, interval=10**6)

    class Sets(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.optimizer._number.assign(number)

    return [callback, Sets()]


@pytest.mark.core
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_update_is_that_of_one_large_batch(optimizer):
    small, large = (network(optimizer) for _ in range(2))
    small.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=with_number(optimizer, 4))
    large.fit(X, Y, batch_size=32, epochs=3, shuffle=False, verbose=0)
    for one, other in zip(small.get_weights(), large.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)
    assert int(ops.convert_to_numpy(small.optimizer.iterations)) == 6


@pytest.mark.core
def test_signal_and_noise_are_those_of_the_gradients():
    """Four numbers with the mean 1 and the standard deviation 3: the signal is 4, the noise 36."""
    optimizer = MicroBatches(keras.optimizers.SGD(0.1), interval=300, most=1)
    gradients = 1.0 + 3.0 * np.random.default_rng(1).normal(size=(301, 4))
    applied(optimizer, gradients)
    one, other = gradients[1:], gradients[:-1]
    products, squares = (one * other).sum(1), 0.5 * ((one - other) ** 2).sum(1)
    # Neighbouring pairs share a gradient: the errors are those of means over blocks of fifteen.
    for name, pairs, truth in (("signal", products, 4.0), ("noise", squares, 36.0)):
        mean = float(ops.convert_to_numpy(getattr(optimizer, f"_{name}")))
        assert mean == pytest.approx(pairs.mean(), rel=1e-4)
        assert_mean(pairs.reshape(20, 15).mean(1), truth, k=4)
    assert optimizer.noise_scale == pytest.approx(squares.mean() / products.mean(), rel=1e-4)


@pytest.mark.core
def test_the_number_doubles_where_noise_exceeds_signal_and_only_there():
    noise = np.random.default_rng(2).normal(size=(200, 3))
    for shift, expected in ((0.0, 8), (10.0, 1)):  # a squared norm of 0 or 300 beside a noise of 3
        optimizer = MicroBatches(keras.optimizers.Adam(1e-3), interval=10, most=8)
        applied(optimizer, shift + noise)
        assert optimizer.number == expected
    optimizer = MicroBatches(keras.optimizers.SGD(1e-3), interval=50, most=64)
    applied(optimizer, 0.5 + noise)  # 0.75 beside 3: equal at four
    assert optimizer.number in (4, 8)
    assert 2.0 < optimizer.noise_scale < 8.0


@pytest.mark.core
@pytest.mark.core
def test_variables_that_are_left_out_do_not_count():
    kept, left = (keras.Variable(np.zeros(3, "float32")) for _ in range(2))
    optimizers = [MicroBatches(keras.optimizers.SGD(0.0), interval=5, left_out=out) for out in ([], [left])]
    for gradient in 1.0 + RANDOM.normal(size=(8, 2, 3)).astype("float32"):
        optimizers[0].apply([ops.convert_to_tensor(gradient[0])], [kept])
        optimizers[1].apply([ops.convert_to_tensor(each) for each in gradient], [kept, left])
    assert optimizers[0].noise_scale == pytest.approx(optimizers[1].noise_scale, rel=1e-5)


def test_what_is_no_number_is_no_pair():
    optimizer = MicroBatches(keras.optimizers.SGD(0.1), interval=10, most=64)
    applied(optimizer, np.tile([[np.inf], [1.0]], (20, 1)))
    assert optimizer.number == 1
    assert np.isnan(optimizer.noise_scale)


@pytest.mark.core
@pytest.mark.parametrize("steps", [1, 10])
def test_a_story_is_fitted_with_growing_batches_and_nothing_is_compiled_anew(steps):
    runs = []

    def counted(data):
        runs.append(1)
        return (yield from level(data))

    data = {"y": (3.0 + np.random.default_rng(3).normal(size=400)).astype("float32")}
    model = SVI(counted, averaging=False, seed=0)
    optimizer = keras.optimizers.Adam(0.05)
    model.compile(optimizer, steps_per_execution=steps)
    callback = AdaptiveBatch(interval=20)
    seen = []
    told = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(len(runs)))
    history = model.fit(data, batch_size=10, epochs=20, verbose=0, callbacks=[callback, told])
    numbers = history.history["micro_batches"]
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[-1] == callback.micro_batches <= 32
    assert model.optimizer is optimizer
    if keras.backend.backend() != "torch":
        assert seen[-1] == seen[0]
    posterior = model.posterior(num_samples=2000, seed=0)["mean"]
    exact = data["y"].sum() / (400 + 1e-2)
    assert abs(posterior.mean() - exact) < 4 * 0.05  # four posterior standard deviations
    before = callback.micro_batches
    model.fit(data, batch_size=10, epochs=1, verbose=0, callbacks=[callback])
    assert callback.micro_batches >= before


@pytest.mark.core
def test_a_network_is_fitted_and_a_file_of_the_fit_goes_on(tmp_path):
    path = tmp_path / "model.keras"
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((3,)), bdl.layers.DenseReparameterization(1)])
    model = bdl.VariationalModel(inner, bdl.likelihoods.Normal(), kl_weight=1.0)
    model.compile(keras.optimizers.Adam(1e-2))
    saved = keras.callbacks.ModelCheckpoint(path)
    callback = AdaptiveBatch(interval=10)
    model.fit(X, Y, batch_size=4, epochs=12, verbose=0, callbacks=[callback, saved])
    assert callback.micro_batches > 1
    loaded = keras.models.load_model(path)
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))
    loaded.fit(X, Y, batch_size=4, epochs=1, verbose=0, callbacks=[AdaptiveBatch()])


def test_a_fit_that_was_cut_off_goes_on():
    class Stops(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    model, callback = network("adam"), AdaptiveBatch(interval=5)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[callback, Stops()])
    assert isinstance(model.optimizer, MicroBatches)
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=[AdaptiveBatch()])
    assert isinstance(model.optimizer, keras.optimizers.Adam)


def test_averages_of_the_optimizer_are_put_in_place():
    model = network(bdl.training.averaging.AveragingAdam(1e-2))
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[AdaptiveBatch(interval=5)])
    for average, weight in zip(model.optimizer._model_variables_moving_average, model.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(average), ops.convert_to_numpy(weight))


def test_what_does_not_go_together_is_refused():
    for argument, value in (("most", 0), ("interval", 1.5), ("threshold", 0.0)):
        with pytest.raises(ValueError, match=f"`{argument}` must be a positive"):
            AdaptiveBatch(**{argument: value})
    falling = keras.optimizers.schedules.CosineDecay(0.1, 10)
    for optimizer, message in (
        (keras.optimizers.Adam(falling), "learning rate must be constant"),
        (keras.optimizers.Adam(gradient_accumulation_steps=2), "gradient_accumulation_steps"),
    ):
        with pytest.raises(ValueError, match=message):
            network(optimizer).fit(X, Y, verbose=0, callbacks=[AdaptiveBatch()])
    model = SVI(level, seed=0)
    model.compile(bdl.optimizers.NaturalGradient(0.1))
    with pytest.raises(ValueError, match="mean of several gradients"):
        model.fit({"y": Y[:, 0]}, verbose=0, callbacks=[AdaptiveBatch()])
