"""SVI: a story is fitted as any Keras model is, at the temperature it says, and comes back from its file."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats
from standard_errors import assert_within_standard_errors
from stories import Normal, groups, level, level_posterior, spread

from bdl.elbo import LinearWarmup
from bdl.layers import NormalLatent
from bdl.svi import SVI, Amortized, Global, Local, Observed
from bdl.svi.rows import EndlessRows

RNG = np.random.default_rng(0)
Y = RNG.normal(2.0, 1.0, size=40).astype("float32")
DATA = {"y": Y}
PARTS = {"elbo", "kl", "loss", "nll", "temperature"}


def array(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def made(story=level, rate=0.05, eager=False, **settings):
    """Without a compiler where a few steps take less time than it does, as on TensorFlow."""
    model = SVI(story, **{"seed": 0, **settings})
    model.compile(keras.optimizers.Adam(rate), run_eagerly=eager and keras.backend.backend() == "tensorflow")
    return model


def fitted(story=level, data=DATA, steps=60, **settings):
    model = made(story, **settings)
    model.history_of_fit = model.fit(data, batch_size="all", steps=steps, verbose=0).history
    return model


def with_codes(**settings):
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(4, activation="tanh")])
    return made(groups, guide={"code": Amortized(network, ["y"])}, **settings)


@pytest.mark.core
@pytest.mark.parametrize("guide", ["mean_field", "full_rank"])
def test_a_conjugate_posterior_is_found(guide):
    """In a mirrored pair the noise of the mean's gradient cancels. With the scale s and r = s / sd, that of log s is
    1 - r^2 e^2, of slope 2 and, for two pairs, of variance 1: the mean of n iterates has the error 1 / (2 sqrt(n))."""
    model = fitted(guide=guide, start={"mean": 0.0}, num_samples=4, steps=300)
    mean, sd, _ = level_posterior(Y.astype("float64"))
    family = model.guide_of("mean").distribution()
    assert array(family.mean)[0] == pytest.approx(mean, abs=0.05 * sd)
    ratio = array(family.draw(ops.ones(1)) - family.mean)[0] / sd
    assert_within_standard_errors(np.log(ratio), 0.0, 1 / (2 * np.sqrt(150)))


@pytest.mark.core
def test_a_story_that_was_traced_before_begins_where_it_was_told():
    model = made(start="laplace", rate=0.0, eager=True)
    model.trace_on(DATA)
    model.fit(DATA, batch_size="all", verbose=0)
    mean = level_posterior(Y)[0]
    assert array(model.guide_of("mean").distribution().mean)[0] == pytest.approx(mean, rel=1e-4)
    with pytest.raises(ValueError, match="not 'laplace', unless `x` is arrays"):
        stream = made(start="laplace", num_examples=40)
        stream.trace_on(DATA)
        stream.fit(iter([DATA]), verbose=0)


@pytest.mark.core
def test_the_mode_is_found_by_a_point():
    model = fitted(guide="delta", start="map", steps=50)
    assert model.posterior(num_samples=2)["mean"] == pytest.approx(level_posterior(Y)[0], abs=1e-3)


@pytest.mark.core
def test_logs_hold_the_parts_of_each_site_and_they_add_up():
    model = with_codes(num_samples=3)
    logs = model.fit(DATA, batch_size=10, epochs=2, validation_data=DATA, verbose=0).history
    own = PARTS | {"kl_mean", "kl_code"}
    assert set(logs) == own | {f"val_{name}" for name in own}
    for prefix in ("", "val_"):
        last = {name: logs[prefix + name][-1] for name in own}
        assert last["kl"] == pytest.approx(last["kl_mean"] + last["kl_code"], rel=1e-4)
        assert last["loss"] == pytest.approx(last["nll"] + last["kl"] / len(Y), rel=1e-4)
        assert last["elbo"] == pytest.approx(-last["loss"], rel=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_temperature_is_the_one_asked_for(temperature):
    """Measured on the compiled loss: move sites that touch no data, at the same noise, and the KL alone moves."""

    def story(data):
        yield Global("idle", Normal(0.0, 1.0))
        idle = yield Local("rows", Normal(0.0, 1.0))
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("y", Normal(mean + 0.0 * idle, 1.0), data["y"])

    guide = {"rows": Amortized(keras.layers.Identity(), ["y"])}
    model = SVI(story, guide, kl_weight=temperature, seed=0, averaging=False)
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(DATA, batch_size="all", verbose=0)
    shift = model.guide_of("idle").coordinates("idle")[0]
    state = array(model.seed_generator.state)

    def loss(global_mean, local_mean):
        """With the first draw's reflection the noise of log q - log p is even: only squares of the means stay."""
        model.seed_generator.state.assign(state)
        values = array(model.guide_of("idle").shift)
        values[shift] = global_mean
        model.guide_of("idle").shift.assign(values)
        model.guide_of("rows").head.bias.assign([local_mean, 0.0])
        return float(model.train_on_batch(DATA, return_dict=True)["loss"])

    model.guide_of("idle").origin.assign(np.zeros(2))
    base = loss(0.0, 0.0)
    # KL(N(m, s^2) || N(0, 1)) grows by m^2 / 2: of the global site over N, of the local one for each row.
    assert len(Y) * (loss(4.0, 0.0) - base) / 8.0 == pytest.approx(temperature, rel=1e-3)
    assert (loss(0.0, 2.0) - base) / 2.0 == pytest.approx(temperature, rel=1e-3)


@pytest.mark.core
def test_a_schedule_of_the_temperature_is_followed():
    model = made(kl_weight=LinearWarmup(steps=10))
    logs = model.fit(DATA, batch_size="all", steps=20, epochs=4, verbose=0).history
    np.testing.assert_allclose(logs["temperature"], [0.2, 0.7, 1.0, 1.0], rtol=1e-5)


@pytest.mark.core
def test_the_same_seed_gives_the_same_fit():
    def results(seed):
        keras.utils.set_random_seed(3)  # of the network's first weights
        model = with_codes(seed=seed, eager=True)
        model.fit(DATA, batch_size=10, epochs=2, verbose=0)
        return [array(weight) for weight in model.guide_of("mean").weights], model.posterior(num_samples=3, seed=1)[
            "mean"
        ]

    (first, draws), (again, same), (other, _) = results(1), results(1), results(2)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(draws, same)
    assert any(np.abs(one - two).max() > 0 for one, two in zip(first, other, strict=True))


@pytest.mark.core
def test_save_and_load_gives_the_same_model(tmp_path):
    model = with_codes(eager=True)
    model.fit(DATA, batch_size=10, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, two in (
        (model.posterior(num_samples=4, seed=1), loaded.posterior(num_samples=4, seed=1)),
        (model.posterior(DATA, 4, seed=1), loaded.posterior(DATA, 4, seed=1)),
        (model.predict(DATA, 4, seed=1), loaded.predict(DATA, 4, seed=1)),
    ):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-6)
    more = [each.fit(DATA, batch_size="all", steps=5, verbose=0).history["loss"] for each in (model, loaded)]
    assert more[0] == pytest.approx(more[1], rel=1e-5)


def test_a_story_that_is_not_registered_is_given_when_its_file_is_loaded(tmp_path):
    def private(data):
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("y", Normal(mean, 1.0), data["y"])

    model = fitted(private, steps=2, eager=True)
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="`story` 'private' must be a registered function, or be given"):
        keras.models.load_model(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"private": private})
    np.testing.assert_array_equal(
        loaded.posterior(num_samples=2, seed=0)["mean"], model.posterior(num_samples=2, seed=0)["mean"]
    )


def test_a_checkpoint_of_another_story_is_refused(tmp_path):
    fitted(steps=2, eager=True).save_weights(tmp_path / "level.weights.h5")
    with pytest.raises(ValueError, match=r"must be of a story with the sites mean .* scale .*, not mean"):
        fitted(spread, steps=2, eager=True).load_weights(tmp_path / "level.weights.h5")
    with pytest.raises(ValueError, match="`story` must have the sites that this model was fitted to"):
        model = fitted(steps=2, eager=True)
        model.story = spread
        model.fit(DATA, batch_size="all", verbose=0)


@pytest.mark.core
def test_an_interrupted_fit_resumes_to_the_same_result(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    def run(*callbacks):
        keras.utils.set_random_seed(3)
        model = with_codes()
        model.fit(DATA, batch_size=7, steps=36, epochs=6, callbacks=list(callbacks), verbose=0)
        return [array(weight) for weight in model.guide_of("mean").weights + model.guide_of("code").weights]

    whole = run()
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(backup, Stop())
    for expected, found in zip(whole, run(keras.callbacks.BackupAndRestore(tmp_path)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_a_fit_ends_with_the_mean_of_its_second_half():
    class Iterates(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            values.append(array(self.model.guide_of("mean").shift)[0])

    values = []
    model = made()
    model.fit(DATA, batch_size="all", steps=9, callbacks=[Iterates()], verbose=0)
    assert array(model.guide_of("mean").shift)[0] == pytest.approx(np.mean(values[4:]), rel=1e-5)
    values.clear()
    plain = made(averaging=False)
    plain.fit(DATA, batch_size="all", steps=9, verbose=0, callbacks=[Iterates()])
    assert plain.average is None
    assert array(plain.guide_of("mean").shift)[0] != pytest.approx(np.mean(values[4:]), rel=1e-3)


@pytest.mark.core
def test_sample_weights_count_rows_as_often_as_they_say():
    weights = np.repeat([2.0, 0.0], 20).astype("float32")
    model = made(start="laplace", rate=0.0, eager=True)
    model.fit(DATA, batch_size="all", sample_weight=weights, verbose=0)
    twice = made(start={"mean": 0.0}, rate=0.0, eager=True)
    twice.trace_on(DATA)
    twice.guide_of("mean").set_weights(model.guide_of("mean").get_weights())
    for each in (model, twice):
        each.seed_generator.state.assign(array(made().seed_generator.state))
    one = model.fit(DATA, batch_size="all", sample_weight=weights, verbose=0).history
    two = twice.fit({"y": np.concatenate([Y[:20], Y[:20]])}, batch_size="all", verbose=0).history
    for name in one:
        assert one[name] == pytest.approx(two[name], rel=1e-5)


def test_data_sets_are_read_as_arrays_are():
    import tensorflow as tf

    class Batches(keras.utils.PyDataset):
        num_batches = 4

        def __getitem__(self, index):
            return {"y": Y[10 * index : 10 * index + 10]}

    # A point at rest has no noise: two passes cost what the whole data cost.
    expected = -stats.norm(1.7, 1.0).logpdf(Y).mean()
    dataset = tf.data.Dataset.from_tensor_slices(DATA).batch(10, drop_remainder=True)
    for data, settings in (
        (dataset, {"epochs": 2}),
        (dataset, {"steps": 8}),
        (Batches(), {"epochs": 2}),
        (Batches(), {"steps": 8}),
        (
            (({"y": Y[begin : begin + 10]},) for begin in (0, 10, 20, 30, 0, 10, 20, 30)),
            {"steps": 8, "num_examples": 40},
        ),
        (DATA, {"batch_size": 10, "epochs": 2}),
        (DATA, {"batch_size": "all", "steps": 1}),
    ):
        settings = dict(settings)
        model = made(
            guide="delta", start={"mean": 1.7}, rate=0.0, eager=True, num_examples=settings.pop("num_examples", None)
        )
        model.trace_on({"y": Y[:10]})
        logs = model.fit(data, verbose=0, **settings).history
        assert model.num_examples == 40
        assert logs["nll"][-1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.core
def test_a_story_may_read_one_array_or_a_list_of_them():
    def one(data):
        mean = yield Global("mean", Normal(0.0, 3.0))
        yield Observed("y", Normal(mean, 1.0), data)

    def several(data):
        mean = yield Global("mean", Normal(0.0, 3.0))
        yield Observed("y", Normal(mean * data[0], 1.0), data[1])

    for story, data in ((one, Y), (several, [np.ones_like(Y), Y])):
        model = made(story, guide="delta", start={"mean": 1.7}, rate=0.0, eager=True)
        logs = model.fit(data, batch_size=10, validation_data=data, verbose=0).history
        expected = -stats.norm(1.7, 1.0).logpdf(Y).mean()
        assert logs["nll"] == pytest.approx([expected], rel=1e-5)
        assert logs["val_nll"] == pytest.approx([expected], rel=1e-5)
        assert model.predict(data, num_samples=2)["y"].shape == (2, 40)


@pytest.mark.core
def test_evaluation_is_what_the_logs_say():
    weights = np.repeat([2.0, 0.0], 20).astype("float32")
    model = made(guide="delta", start={"mean": 1.7}, rate=0.0, eager=True)
    for each in (None, weights):
        logs = model.fit(DATA, batch_size="all", sample_weight=each, verbose=0).history
        found = model.evaluate(DATA, batch_size=7, sample_weight=each, return_dict=True, verbose=0)
        assert found.keys() == logs.keys()
        for name, value in found.items():
            assert value == pytest.approx(logs[name][0], rel=1e-5)


@pytest.mark.core
def test_globals_may_be_frozen_in_a_further_fit():
    model = with_codes(eager=True)
    model.fit(DATA, batch_size=10, verbose=0)
    before = {name: [array(weight) for weight in model.guide_of(name).trainable_weights] for name in ("mean", "code")}
    model.guide_of("mean").trainable = False
    for train in (lambda: model.fit(DATA, batch_size=10, verbose=0), lambda: model.train_on_batch(DATA)):
        with pytest.raises(ValueError, match=r"must stay as it was compiled, 6 variables, .*Call compile again"):
            train()
    model.compile(keras.optimizers.Adam(0.05), run_eagerly=keras.backend.backend() == "tensorflow")
    logs = model.fit({"y": Y[:20] + 1.0}, batch_size=10, verbose=0).history
    assert model.num_examples == 20
    assert logs["loss"][0] == pytest.approx(logs["nll"][0] + logs["kl"][0] / 20, rel=1e-5)  # T = 1
    model.guide_of("mean").trainable = True
    for name, is_frozen in (("mean", True), ("code", False)):
        after = [array(weight) for weight in model.guide_of(name).trainable_weights]
        changes = [np.abs(one - two).max() for one, two in zip(before[name], after, strict=True)]
        assert (max(changes) < 1e-6) == is_frozen


def test_a_network_of_the_story_is_trained_and_saved(tmp_path):
    def decoded(data, decoder):
        code = yield Local("code", Normal(np.zeros(2), 1.0))
        yield Observed("x", Normal(decoder(code), 0.3), data["x"])

    data = {"x": RNG.normal(size=(64, 5)).astype("float32")}
    encoder = keras.layers.Dense(8, activation="tanh")
    model = SVI(decoded, {"code": Amortized(encoder, "x")}, networks={"decoder": keras.layers.Dense(5)}, seed=0)
    model.compile(keras.optimizers.Adam(0.02), run_eagerly=True)
    losses = model.fit(data, batch_size=16, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 1.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"decoded": decoded})
    np.testing.assert_allclose(loaded.networks["decoder"].kernel, model.networks["decoder"].kernel)


@pytest.mark.core
@pytest.mark.parametrize("compiling", [{"run_eagerly": True}, {}])
def test_batches_come_in_the_order_of_the_seed(compiling):
    """The step is counted while the first batch is read, compiled or not. Each batch has a likelihood of its own."""
    model = made(guide="delta", start={"mean": 1.7}, rate=0.0)
    model.compile(keras.optimizers.SGD(0.0), **compiling)
    logs = model.fit(DATA, batch_size=10, steps=6, epochs=6, verbose=0).history
    batches = EndlessRows(DATA, 10, seed=0)
    expected = [-stats.norm(1.7, 1.0).logpdf(batches[number]["y"]).mean() for number in range(6)]
    assert logs["nll"] == pytest.approx(expected, rel=1e-5)


def test_what_fit_cannot_do_is_refused():
    with pytest.raises(ValueError, match="`y` must be None"):
        made().fit(DATA, Y)
    with pytest.raises(ValueError, match="`steps` must be a positive multiple of epochs=3, not 10"):
        made().fit(DATA, steps=10, epochs=3)
    with pytest.raises(ValueError, match="`batch_size` must be a number for list_iterator, not 'all'"):
        made().fit(iter([DATA]), batch_size="all")
    with pytest.raises(
        ValueError, match=r"`num_examples` is unknown: list_iterator .* Pass SVI\(..., num_examples=N\)"
    ):
        made().fit(iter([DATA]))
    with pytest.raises(ValueError, match="`x\\['y'\\]` must be finite; x\\['y'\\]\\[3\\] is nan"):
        made().fit({"y": np.array([0.0, 1.0, 2.0, np.nan])})
    with pytest.raises(ValueError, match=r"`validation_split` must be left out, not 0\.2\. Pass validation_data=rows"):
        made().fit(DATA, validation_split=0.2)
    with pytest.raises(ValueError, match="`loss` must be None"):
        made().compile(loss="mse")
    with pytest.raises(ValueError, match="must be fitted before posterior"):
        made().posterior()
    with pytest.raises(ValueError, match=r"`start` must be 'prior' or a dict of values, not 'laplace', .*local sites"):
        with_codes(start="laplace").fit(DATA, verbose=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": 3}, "`guide` must be"),
        ({"start": "middle"}, "`start` must be one of"),
        ({"objective": "iwae"}, "`objective` must be one of"),
        ({"num_samples": 0}, "`num_samples` must be a positive integer"),
        ({"dtype": "float16"}, "`dtype` must be 'float32' or 'float64'"),
        ({"networks": {"decoder": "dense"}}, "`networks` must be Keras layers"),
        ({"num_examples": 0}, "`num_examples` must be"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SVI(level, **settings)


@pytest.mark.core
@pytest.mark.core
def test_networks_with_latent_variables_of_rows_are_refused():
    """Nobody would count their KL."""
    coded = keras.Sequential([keras.Input((1,)), NormalLatent(2, name="code")])
    for settings in ({"networks": {"decoder": coded}}, {"guide": {"code": Amortized(coded, ["y"])}}):
        with pytest.raises(ValueError, match=r"must have no latent variables of single rows, as \['code'\] have"):
            SVI(groups, **settings)


def test_a_shape_that_changes_between_fits_is_refused():
    def story(data):
        means = yield Global("means", Normal(np.zeros(data["x"].shape[1]), 1.0))
        yield Observed("x", Normal(means, 1.0), data["x"])

    model = fitted(story, {"x": np.zeros((5, 2), "float32")}, steps=2, eager=True)
    with pytest.raises(
        ValueError, match="Site 'means' must have one shape on all batches, not \\(2,\\) and then \\(3,\\)"
    ):
        model.fit({"x": np.zeros((5, 3), "float32")}, batch_size="all", verbose=0)
