"""IVON: the published update, draws of the weights, files, and what the model refuses."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops

import bdl
from bdl.model.drawing import ivon_of

ROWS = 48


def data(rows=ROWS):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 4)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32") + (x[:, 1] > 0.5).astype("int32")


def plain(*middle):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, "tanh"), *middle, keras.layers.Dense(3)])


def model_of(network=None, likelihood=None, compiled=None, **settings):
    optimizer = bdl.optimizers.IVON(0.1, seed=3, **settings)
    likelihood = likelihood or bdl.likelihoods.Categorical()
    model = bdl.VariationalModel(network or plain(), likelihood, optimizer_posterior=True)
    model.compile(optimizer, **(compiled or {}))
    return model


def published_step(state, gradient, noise, size, decay, rate, initial, beta_1, beta_2, radius):
    """Algorithm 1 of Shen et al. 2024 in float64, with the sampled gradient and noise given.

    The noise is what was added to the mean: `theta - m`.
    """
    mean, hessian, momentum, step = state
    momentum = beta_1 * momentum + (1 - beta_1) * gradient
    sampled = gradient * noise * size * (hessian + decay)  # g (theta - m) / sigma^2
    hessian = (
        beta_2 * hessian
        + (1 - beta_2) * sampled
        + 0.5 * (1 - beta_2) ** 2 * (hessian - sampled) ** 2 / (hessian + decay)
    )
    update = (momentum / (1 - beta_1 ** (step + 1)) + decay * mean) / (hessian + decay)
    mean = mean - rate * (initial + decay) * np.clip(update, -radius, radius)
    # Kept in float32 between steps, as weights are: 100 roundings of a mean are more than 1e-6.
    return *(np.float32(each).astype("float64") for each in (mean, hessian, momentum)), step + 1


@pytest.mark.core
@pytest.mark.parametrize("radius", [np.inf, 0.05])
def test_a_hundred_steps_are_the_published_ones(radius):
    random = np.random.default_rng(1)
    variable = keras.Variable(random.normal(size=7).astype("float32"))
    optimizer = bdl.optimizers.IVON(
        0.05, prior_scale=0.7, beta_1=0.8, beta_2=0.99, initial_hessian=0.5, clip_radius=radius, seed=2
    )
    optimizer.build([variable])
    optimizer.read_model(SimpleNamespace(num_examples=200, temperature=2.0))
    size = 100.0
    decay = 1.0 / (size * 0.7**2)
    curvature, target = random.uniform(0.1, 2.0, 7), random.normal(size=7)
    state = (np.asarray(ops.convert_to_numpy(variable), "float64"), np.full(7, 0.5), np.zeros(7), 0)
    for _ in range(100):
        with optimizer.step() as (noise, _):
            drawn = ops.convert_to_numpy(noise[0])
            gradient = (curvature * (state[0] + drawn - target) + 0.3 * random.normal(size=7)).astype("float32")
            optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        state = published_step(
            state, gradient.astype("float64"), drawn.astype("float64"), size, decay, 0.05, 0.5, 0.8, 0.99, radius
        )
    np.testing.assert_allclose(ops.convert_to_numpy(variable), state[0], atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(optimizer.hessians[0]), state[1], rtol=1e-5)


@pytest.mark.core
def test_a_weight_that_a_likelihood_stores_divided_by_ten_is_trained_as_what_it_stands_for():
    """The same steps, prior and scale as of the number itself, with gradients as the chain rule has them."""
    likelihood = bdl.likelihoods.Normal()
    likelihood.build((None, 1))
    (stored,) = likelihood.trainable_variables
    number = keras.Variable(10.0 * ops.convert_to_numpy(stored))
    found = []
    for variable, speed, told in ((stored, 10.0, likelihood), (number, 1.0, None)):
        optimizer = bdl.optimizers.IVON(0.1, prior_scale=0.7, beta_2=0.9, initial_hessian=0.5, clip_radius=0.3, seed=2)
        optimizer.read_model(SimpleNamespace(num_examples=50, temperature=1.0, likelihood=told))
        optimizer.build([variable])
        for _ in range(20):
            with optimizer.step() as (noise, kl):
                drawn = speed * (ops.convert_to_numpy(variable) + ops.convert_to_numpy(noise[0]))
                optimizer.apply([ops.convert_to_tensor(np.float32(speed * 2.0 * (drawn - 0.3)))], [variable])
        scale = ops.convert_to_numpy(optimizer.scales()[0])
        found.append(
            [speed * float(ops.convert_to_numpy(variable)), speed * float(scale), float(ops.convert_to_numpy(kl))]
        )
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_a_learned_noise_scale_is_found():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(1000, 2)).astype("float32"), (0.2 * random.normal(size=1000)).astype("float32")
    model = model_of(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), bdl.likelihoods.Normal())
    model.optimizer.learning_rate = bdl.schedules.DecayOverFit(0.1)
    model.fit(x, y, batch_size=100, epochs=60, verbose=0)
    found = model.predict_distribution(x, num_samples=2).aleatoric.mean() ** 0.5
    # The posterior's own standard deviation of log(scale) is 1 / sqrt(2 N) = .022; the weights' draws widen the
    # residuals by their variance.
    assert abs(np.log(found / 0.2)) < 4 * 0.022 + 0.002


@pytest.mark.core
def test_the_hessian_of_a_quadratic_is_found():
    curvature, beta_2 = 2.0, 0.95
    variable = keras.Variable(np.zeros(400, "float32"))
    optimizer = bdl.optimizers.IVON(0.1, prior_scale=10.0, beta_2=beta_2, initial_hessian=1.0, seed=0)
    optimizer.build([variable])
    optimizer.read_model(SimpleNamespace(num_examples=100, temperature=1.0))
    for _ in range(120):
        with optimizer.step() as (noise, _):
            optimizer.apply([curvature * (ops.convert_to_tensor(variable) + noise[0])], [variable])
    found = ops.convert_to_numpy(optimizer.hessians[0]).mean() / curvature
    # h' is H e^2 at the mode, of variance 2 H^2, so that the term of second order raises h by (1 - beta_2) H. The
    # memory of the start is .95^120 = .002, the standard error sqrt(2 (1 - beta_2) / 2 / 400) = .011.
    assert abs(found - (1.0 + (1.0 - beta_2))) < 4 * 0.011 + 0.002


@pytest.mark.core
def test_logs_hold_the_kl_of_the_posterior_and_the_elbo():
    x, y = data()
    model = model_of()
    logs = model.fit(x, y, batch_size=ROWS, epochs=1, verbose=0).history
    # The step's KL is that before its update: the start's.
    start = plain()
    assert logs["loss"][0] == pytest.approx(logs["nll"][0] + logs["kl"][0] / ROWS, rel=1e-5)
    assert logs["elbo"][0] == pytest.approx(-logs["loss"][0], rel=1e-5)
    optimizer = model.posterior_optimizer
    total = 0.0
    for mean, scale in zip(optimizer.means, optimizer.scales(), strict=True):
        m, s = (np.asarray(ops.convert_to_numpy(each), "float64") for each in (mean, scale))
        total += 0.5 * np.sum(s**2 + m**2 - 1.0 - np.log(s**2))
    assert len(optimizer.means) == len(start.trainable_variables)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["kl"] == pytest.approx(total, rel=1e-5)


@pytest.mark.core
def test_a_training_step_takes_the_gradient_at_the_drawn_weights_and_leaves_the_kl_to_the_optimizer():
    x = np.ones((8, 1), "float32")
    y = np.zeros((8, 1), "float32")
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model = model_of(network, bdl.likelihoods.Normal(scale=1.0), beta_1=0.0, beta_2=0.5, initial_hessian=0.25)
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    other = bdl.optimizers.IVON(0.1, seed=3, initial_hessian=0.25)
    other.build([keras.Variable([[1.0]])])
    other.read_model(SimpleNamespace(num_examples=8, temperature=1.0))
    with other.step() as (noise, _):
        drawn = float(ops.convert_to_numpy(noise[0])[0, 0])
    gradient = 1.0 + drawn  # of half the squared error
    state = published_step((1.0, 0.25, 0.0, 0), gradient, drawn, 8.0, 0.125, 0.1, 0.25, 0.0, 0.5, np.inf)
    assert float(ops.convert_to_numpy(network.layers[0].kernel)[0, 0]) == pytest.approx(state[0], abs=1e-6)
    assert float(ops.convert_to_numpy(model.posterior_optimizer.hessians[0])[0, 0]) == pytest.approx(state[1], rel=1e-5)


@pytest.mark.core
def test_predictions_and_files():
    x, y = data()
    model = model_of(plain(keras.layers.BatchNormalization()))
    model.fit(x, y, epochs=2, verbose=0, validation_data=(x, y))
    whole = model.predict_distribution(x, num_samples=8, seed=5)
    parts = model.predict_distribution(x, num_samples=8, seed=5, batch_size=7)
    np.testing.assert_allclose(whole.probabilities, parts.probabilities, atol=1e-6)
    assert np.all(whole.epistemic > 0)
    with bdl.mean_weights(model):
        still = model.predict_distribution(x, num_samples=2)
    assert np.allclose(still.epistemic, 0.0, atol=1e-6)


@pytest.mark.core
def test_a_file_holds_the_posterior_and_the_training_goes_on(tmp_path):
    x, y = data()
    model = model_of()
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), rtol=1e-5, atol=1e-6)
    one, other = (each.predict_distribution(x, num_samples=4, seed=1).probabilities for each in (model, loaded))
    np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(ValueError, match="no posterior yet"):
        keras.saving.load_model(tmp_path / "model.keras", compile=False).predict(x)


def test_predictive_moments_are_those_of_the_posterior():
    x, y = data()
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model = model_of(network, bdl.likelihoods.Normal(scale=1.0))
    model.fit(x, y.astype("float32"), epochs=3, verbose=0)
    kernel, bias = (ops.convert_to_numpy(each) for each in model.posterior_optimizer.scales())
    draws = model.predict_distribution(x, num_samples=2000, seed=0, keep_outputs=True).outputs[..., 0]
    variance = x**2 @ kernel[:, 0] ** 2 + bias[0] ** 2
    mean = ops.convert_to_numpy(network(x))[:, 0]
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(variance / 2000))
    assert np.all(np.abs(draws.var(0) / variance - 1.0) < 5 * np.sqrt(2 / 2000))


def test_several_steps_in_a_call_are_single_steps():
    x, y = data()
    keras.utils.set_random_seed(1)
    first, weights = plain(), None
    weights = first.get_weights()
    found = []
    for steps in (1, 3):
        network = plain()
        network.set_weights(weights)
        model = model_of(network, compiled={"steps_per_execution": steps})
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        found.append(model)
    for one, other in zip(found[0].optimizer.variables, found[1].optimizer.variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), rtol=1e-4, atol=1e-5)


def test_micro_batches_share_a_draw():
    x, y = data()
    weights, found = plain().get_weights(), []
    for size, collected in ((ROWS, None), (ROWS // 2, 2)):
        network = plain()
        network.set_weights(weights)
        model = model_of(network, gradient_accumulation_steps=collected)
        model.fit(x, y, batch_size=size, epochs=3, shuffle=False, verbose=0)
        found.append(network.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_temperature_scales_the_posterior():
    x, y = data()
    found = {}
    for temperature in (1.0, 0.25):
        model = bdl.VariationalModel(
            plain(), bdl.likelihoods.Categorical(), kl_weight=temperature, optimizer_posterior=True
        )
        model.compile(bdl.optimizers.IVON(0.1))
        logs = model.fit(x, y, batch_size=ROWS, verbose=0).history
        found[temperature] = float(ops.convert_to_numpy(model.posterior_optimizer.sample_size))
        assert logs["loss"][0] == pytest.approx(logs["nll"][0] + temperature * logs["kl"][0] / ROWS, rel=1e-5)
    assert found == {1.0: ROWS, 0.25: 4 * ROWS}


def test_frozen_layers_stay_and_their_weights_are_no_part_of_the_posterior():
    x, y = data()
    network = plain()
    network.layers[0].trainable = False
    before = network.layers[0].get_weights()
    model = model_of(network)
    model.fit(x, y, verbose=0)
    for one, other in zip(before, network.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(model.posterior_optimizer.means) == 2


def test_schedules_clipping_and_averages():
    x, y = data()
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    optimizer = bdl.optimizers.IVON(schedule, clipnorm=1.0, use_ema=True, ema_momentum=0.5)
    model = bdl.VariationalModel(plain(), bdl.likelihoods.Categorical(), optimizer_posterior=True)
    model.compile(optimizer)
    logs = model.fit(x, y, epochs=3, verbose=0).history
    assert np.all(np.isfinite(logs["loss"]))
    copy = bdl.optimizers.IVON.from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()
    assert ivon_of(keras.optimizers.LossScaleOptimizer(copy)) is copy


@pytest.mark.core
def test_a_plain_model_is_refused_and_so_is_a_model_of_variational_layers():
    x, y = data()
    network = plain()
    network.compile(bdl.optimizers.IVON(0.1), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="no weights were drawn"):
        network.fit(x, y, verbose=0)
    variational = keras.Sequential([keras.Input((4,)), bdl.layers.DenseReparameterization(3)])
    model = bdl.VariationalModel(variational, bdl.likelihoods.Categorical())
    with pytest.raises(ValueError, match="optimizer_posterior=True"):
        model.compile(bdl.optimizers.IVON(0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_weight": 0.0}, "`kl_weight` must be a positive number"),
        ({"kl_weight": bdl.elbo.LinearWarmup()}, "`kl_weight` must be a positive number"),
        ({"num_samples": 2}, "`num_samples` must be 1"),
        ({"network": keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])}, "must be plain"),
        (
            {"likelihood": bdl.likelihoods.Normal(scale_prior=bdl.priors.Normal(0.0, 1.0))},
            "`likelihood` must have no `scale_prior`",
        ),
    ],
)
def test_what_does_not_go_with_it(settings, message):
    given = {"network": plain(), "likelihood": bdl.likelihoods.Categorical(), **settings}
    with pytest.raises(ValueError, match=message):
        bdl.VariationalModel(**given, optimizer_posterior=True)


def test_it_needs_the_optimizer_and_a_fit():
    model = bdl.VariationalModel(plain(), bdl.likelihoods.Categorical(), optimizer_posterior=True)
    with pytest.raises(ValueError, match=r"must be a bdl\.optimizers\.IVON"):
        model.compile("adam")
    model.compile(bdl.optimizers.IVON(0.1))
    with pytest.raises(ValueError, match="no posterior yet"):
        model.predict(data()[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior_scale": 0.0}, "`prior_scale` must be a positive number"),
        ({"beta_1": 1.0}, "`beta_1` must be a number from 0"),
        ({"beta_2": 0.0}, "`beta_2` must be a number between 0"),
        ({"initial_hessian": np.inf}, "`initial_hessian` must be a positive number"),
        ({"clip_radius": -1.0}, "`clip_radius` must be a positive number"),
        ({"weight_decay": 1e-4}, "`weight_decay` must be None"),
    ],
)
def test_arguments_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        bdl.optimizers.IVON(0.1, **settings)
