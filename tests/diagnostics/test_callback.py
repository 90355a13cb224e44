"""The callback on real, short trainings: what it records, and that it never harms one."""

import json
import warnings

import keras
import numpy as np
import pytest

import bdl
from bdl.diagnostics import HealthWarning, TrainingHealth, diagnose, read_record

CATEGORICAL = bdl.likelihoods.Categorical()


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 4)).astype("float32")
    return x, (x[:, 0] + 0.5 * x[:, 1] > 0).astype(int)


def variational(kl_weight=1.0, layer=bdl.layers.DenseReparameterization, **options):
    network = keras.Sequential([keras.Input((4,)), layer(8, activation="relu", **options), layer(2, **options)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=kl_weight)
    model.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    return model


@pytest.mark.core
def test_a_training_with_it_ends_where_one_without_it_does(data):
    def trained(callbacks):
        keras.utils.set_random_seed(0)
        model = variational()
        model.fit(*data, epochs=4, verbose=0, shuffle=False, callbacks=callbacks)
        return model.get_weights()

    health = TrainingHealth(data, data, on_verdict="record", max_cost=1.0)
    for a, b in zip(trained([]), trained([health]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert health.quantities.validation is not None


@pytest.mark.core
def test_record_holds_epochs_probes_and_the_end(data, tmp_path):
    path = tmp_path / "run.jsonl"
    model = variational()
    health = TrainingHealth(data, data, record=path, on_verdict="record", max_cost=1.0)
    model.fit(*data, epochs=6, verbose=0, callbacks=[health])
    (run,) = read_record(path)
    assert run.is_complete
    assert [entry["epoch"] for entry in run.epochs] == [1, 2, 3, 4, 5, 6]
    assert all({"nll", "kl", "elbo", "temperature"} <= entry.keys() for entry in run.epochs)
    last = run.probes[-1]
    assert last.temperature == 1.0
    assert {layer.name for layer in last.layers} == {layer.name for layer in model.network.layers}
    kl = float(keras.ops.convert_to_numpy(bdl.kl_divergence(model)))
    assert last.kl == pytest.approx(kl, rel=1e-5)


def test_wrong_weights_of_the_kl_are_named_before_the_first_epoch(data):
    health = TrainingHealth(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HealthWarning)
        variational(kl_weight=10.0).fit(*data, epochs=1, verbose=0, callbacks=[health])
    assert any("T = 10" in str(warning.message) for warning in caught)
    assert health.verdicts[0][:2] == (0, "mis_scaled_kl")


def test_it_stops_a_hopeless_training_when_asked(data):
    health = TrainingHealth(data, on_verdict="stop")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = variational(kl_weight=10.0).fit(*data, epochs=5, verbose=0, callbacks=[health])
    assert len(history.epoch) < 5


@pytest.mark.core
def test_nan_in_the_middle_is_divergence(data):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                weight = self.model.trainable_weights[0]
                weight.assign(keras.ops.convert_to_numpy(weight) * np.nan)

    health = TrainingHealth(data, data, on_verdict="record")
    model = variational()
    model.fit(*data, epochs=4, verbose=0, callbacks=[Poison(), health])
    assert health.finding.verdict == "diverged"
    report = diagnose(model, *data, record=health)
    assert report.verdict == "diverged"
    json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(name))


def test_an_error_inside_it_is_a_warning(data):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", loss="huber")
    with warnings.catch_warnings(record=True) as caught:  # not pytest.warns, which passes the backends' own on
        warnings.simplefilter("always", HealthWarning)
        history = model.fit(*data, epochs=2, verbose=0, callbacks=[TrainingHealth(data)])
    (message,) = [str(warning.message) for warning in caught if warning.category is HealthWarning]
    assert "stopped watching" in message
    assert "likelihood" in message
    assert len(history.epoch) == 2


def test_without_data_it_records_and_stays_silent(data):
    health = TrainingHealth()
    with warnings.catch_warnings():
        warnings.simplefilter("error", HealthWarning)
        variational().fit(*data, epochs=2, verbose=0, callbacks=[health])
    assert len(health.epochs) == 2
    assert diagnose(record=health).verdict == "inconclusive"


def test_a_missing_metric_is_no_error(data):
    health = TrainingHealth(data, on_verdict="record", max_cost=1.0)
    model = variational()
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(*data, epochs=6, verbose=0, callbacks=[health])
    assert health.finding is not None


@pytest.mark.parametrize(
    ("argument", "value"), [("on_verdict", "shout"), ("num_samples", 1), ("probe_size", 0), ("max_cost", 0.0)]
)
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        TrainingHealth(**{argument: value})
