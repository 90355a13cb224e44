"""Files and checkpoints: of which story and how many rows they are, and what a loaded model still knows of its data."""

import keras
import numpy as np
import pytest
from keras import ops
from stories import Normal, groups, level

from bdl.keras_internals import is_concrete
from bdl.svi import SVI, Amortized, Flat, Flow, Global, Local, LowRank, Observed
from bdl.svi.files import described, invented

Y = np.random.default_rng(0).normal(2.0, 1.0, size=12).astype("float32")
DATA = {"y": Y}


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def made(story=level, **settings):
    model = SVI(story, seed=0, **settings)
    model.compile(keras.optimizers.Adam(0.05), run_eagerly=keras.backend.backend() == "tensorflow")
    return model


def again(model, path, **custom_objects):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras", custom_objects=custom_objects)


@pytest.mark.core
def test_an_invented_batch_looks_like_the_data():
    data = {"x": ops.ones((2, 3)), "rest": [ops.zeros((2,), "int32"), ops.zeros((2,), "bool")]}
    batch = invented(described(data))
    assert described(batch) == described(data)
    assert ops.convert_to_numpy(batch["x"]).std() > 0
    assert described(np.zeros(3, "float32")) == {"shape": [3], "dtype": "float32"}


def test_a_checkpoint_of_another_number_of_rows_is_refused_within_a_fit(tmp_path):
    """Its N would take the place of the one that was counted, and T would be 2."""
    settings = {"batch_size": "all", "steps": 4, "epochs": 2, "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        made().fit(DATA, callbacks=[keras.callbacks.BackupAndRestore(tmp_path), Interrupt()], **settings)
    with pytest.raises(
        ValueError, match=r"must be of a fit to N = 6 rows, not 12\. Take a checkpoint of the same data"
    ):
        made().fit({"y": Y[:6]}, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)], **settings)


def test_weights_of_other_rows_are_where_a_further_fit_begins_unless_n_was_given(tmp_path):
    model = made()
    model.fit(DATA, batch_size="all", verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    given = made(num_examples=6)
    given.trace_on(DATA)
    with pytest.raises(ValueError, match="must be of a fit to N = 6 rows, not 12"):
        given.load_weights(tmp_path / "model.weights.h5")
    other = made()
    other.fit({"y": Y[:6]}, batch_size="all", verbose=0)
    other.load_weights(tmp_path / "model.weights.h5")
    assert other.num_examples == 12
    logs = other.fit({"y": Y[:6]}, batch_size="all", verbose=0).history
    assert other.num_examples == 6
    assert logs["loss"][0] == pytest.approx(logs["nll"][0] + logs["kl"][0] / 6, rel=1e-5)  # T = 1


def test_n_of_a_stream_may_be_set_anew():
    model = made(num_examples=12)
    stream = (({"y": Y[:6]},) for _ in range(8))
    model.trace_on({"y": Y[:6]})
    model.fit(stream, steps_per_epoch=2, verbose=0)
    model.num_examples = 6
    logs = model.fit(stream, steps_per_epoch=2, verbose=0).history
    assert logs["loss"][0] == pytest.approx(logs["nll"][0] + logs["kl"][0] / 6, rel=1e-5)
    with pytest.raises(ValueError, match="`num_examples` must be"):
        model.num_examples = 0


def bounded(of):
    """A story with a bound of a global that `of(data, first, code)` gives."""

    def story(data):
        first = yield Global("first", Normal(0.0, 1.0))
        code = yield Local("code", Normal(first, 1.0))
        last = yield Global("last", Flat(("interval", 0.0, of(data, first, code))))
        yield Observed("y", Normal(last + 0.0 * code, 1.0), data["y"])

    return story


@pytest.mark.core
@pytest.mark.parametrize(
    "of",
    [
        lambda data, *_: ops.max(data["y"]),
        lambda data, *_: ops.cast(data["n"][0], "float32") + 1.0,
        lambda _data, _first, code: ops.exp(ops.max(code)),
    ],
    ids=["floats", "counts", "local site"],
)
def test_a_bound_of_a_global_that_differs_from_batch_to_batch_is_refused(of):
    data = {"y": Y, "n": np.full(12, 3)}
    with_guide = SVI(bounded(of), guide_of_codes(), seed=0)
    with pytest.raises(ValueError, match=r"support of the global sites \['last'\] must not depend on data or local"):
        with_guide.trace_on(data)


@pytest.mark.core
def test_a_bound_may_depend_on_other_globals():
    model = SVI(bounded(lambda _data, first, _code: ops.exp(first)), guide_of_codes(), seed=0)
    model.trace_on(DATA)
    draws = model.posterior(num_samples=5, seed=0)
    assert np.all(draws["last"] < np.exp(draws["first"]))
    of_rows = model.posterior(DATA, num_samples=5, seed=0)
    for name in draws:
        np.testing.assert_allclose(draws[name], of_rows[name], rtol=1e-5)


def guide_of_codes():
    from bdl.svi import Amortized

    return {"code": Amortized(keras.layers.Dense(2), ["y"])}


def test_a_story_that_fails_on_invented_numbers_asks_for_data(tmp_path):
    def picky(data, network):  # with a network results are not compiled, and a story may look at numbers
        if is_concrete(data["y"]) and ops.convert_to_numpy(data["y"]).max() < 1.0:
            raise RuntimeError("too small")
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("y", Normal(mean + network(data["y"][:, None])[:, 0], 1.0), data["y"])

    model = SVI(picky, networks={"network": keras.layers.Dense(1)}, seed=0)
    model.trace_on(DATA)
    for each in (model, again(model, tmp_path, picky=picky)):
        assert each.posterior(DATA, num_samples=3)["mean"].shape == (3,)
        with pytest.raises(ValueError, match=r"RuntimeError: too small\)\. Call posterior\(data\)"):
            each.posterior(num_samples=3)


def test_what_comes_after_the_last_global_is_not_run_for_the_globals(tmp_path):
    def story(data):
        mean = yield Global("mean", Normal(0.0, 1.0))
        if is_concrete(data["y"]) and ops.convert_to_numpy(data["y"]).max() < 1.0:
            raise RuntimeError("too small")
        yield Observed("y", Normal(mean, 1.0), data["y"])

    model = SVI(story, seed=0)
    model.trace_on(DATA)
    loaded = again(model, tmp_path, story=story)
    np.testing.assert_array_equal(
        loaded.posterior(num_samples=3, seed=0)["mean"], model.posterior(num_samples=3, seed=0)["mean"]
    )


def test_what_predict_needs_beyond_observed_values_is_named():
    def story(data):
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("y", Normal(mean, 1.0), data["y"] - 1.0)

    model = made(story)
    model.trace_on(DATA)
    with pytest.raises(ValueError, match=r"`x` must have the keys \['y'\], too: the story computes with them"):
        model.predict({"x": Y}, num_samples=2)


@pytest.mark.core
@pytest.mark.parametrize("family", [LowRank(1), Flow(layers=2, width=3)])
def test_guides_that_are_no_plain_gaussians_are_fitted_and_saved_as_all_are(family, tmp_path):
    kind = type(family)
    own = kind.from_config(family.get_config())
    guide = {"code": Amortized(keras.layers.Dense(3), ["y"], family=family), "mean": own}
    model = made(groups, guide=guide)
    logs = model.fit(DATA, batch_size="all", steps=2, verbose=0).history
    assert np.isfinite([logs[name] for name in ("kl_mean", "kl_code", "elbo")]).all()
    assert np.isfinite(model.log_weights(DATA, num_samples=5, seed=0)).all()
    loaded = again(model, tmp_path)
    assert isinstance(loaded.guide_of("mean"), kind)
    before, after = (each.posterior(DATA, num_samples=3, seed=0) for each in (model, loaded))
    assert before["code"].shape == (3, 12)
    for name in ("mean", "code"):
        np.testing.assert_array_equal(after[name], before[name])
