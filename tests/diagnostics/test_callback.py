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


def test_data_that_were_given_and_not_measured_are_said_to_be(data):
    health = TrainingHealth(data, on_verdict="record", max_cost=1e-6)
    variational().fit(*data, epochs=1, verbose=0, callbacks=[health])
    report = diagnose(record=health)
    assert report.verdict == "inconclusive"
    assert "Data were given" in report.evidence[0]


@pytest.mark.core
@pytest.mark.parametrize("counts_on", [True, False])
def test_a_resumed_training_is_one_run(data, tmp_path, counts_on):
    path = tmp_path / "run.jsonl"
    model = variational()
    health = TrainingHealth(data, data, record=path, on_verdict="record", max_cost=1.0)
    model.fit(*data, epochs=4, verbose=0, callbacks=[health])
    start = health.quantities.layers[0].stuck
    again = {"initial_epoch": 4, "epochs": 8} if counts_on else {"epochs": 4}
    model.fit(*data, verbose=0, callbacks=[health], **again)
    (run,) = read_record(path)
    assert [entry["epoch"] for entry in run.epochs] == list(range(1, 9))
    assert [entry["epoch"] for entry in health.epochs] == list(range(1, 9))
    assert run.start["planned_epochs"] == 8
    assert run.is_complete
    report = diagnose(record=path)
    assert report.quantities.epoch == 8
    assert report.quantities.trends.window == 5
    assert health.quantities.layers[0].stuck <= start  # from where the first fit began


def test_another_process_goes_on_with_the_record(data, tmp_path):
    path, kept = tmp_path / "run.jsonl", tmp_path / "model.keras"
    model = variational()
    model.fit(*data, epochs=3, verbose=0, callbacks=[TrainingHealth(data, record=path, on_verdict="record")])
    model.save(kept)
    loaded = keras.saving.load_model(kept)
    health = TrainingHealth(data, record=path, on_verdict="record", max_cost=1.0)
    loaded.fit(*data, initial_epoch=3, epochs=6, verbose=0, callbacks=[health])
    (run,) = read_record(path)
    assert [entry["epoch"] for entry in run.epochs] == [1, 2, 3, 4, 5, 6]
    assert health.quantities.layers[0].stuck is None  # where the scales began is not known any more


def test_another_model_is_another_run(data, tmp_path):
    path = tmp_path / "run.jsonl"
    health = TrainingHealth(data, record=path, on_verdict="record")
    for _ in range(2):
        variational().fit(*data, epochs=2, verbose=0, callbacks=[health])
    assert [len(run.epochs) for run in read_record(path)] == [2, 2]


@pytest.mark.core
@pytest.mark.filterwarnings("ignore:num_examples=1, but fit was given 120")
def test_what_fit_measured_about_the_data_counts(data, tmp_path):
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseReparameterization(2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=1, kl_weight=1.0)
    model.compile("adam")
    health = TrainingHealth(data, on_verdict="record")
    model.fit(*data, epochs=1, verbose=0, callbacks=[health])
    assert health.finding.verdict == "mis_scaled_kl"
    assert health.quantities.temperature == 120.0
    model.save(tmp_path / "model.keras")
    for each in (model, keras.saving.load_model(tmp_path / "model.keras")):
        report = diagnose(each, *data, num_samples=2)
        assert report.verdict == "mis_scaled_kl"
        assert report.quantities.temperature == pytest.approx(120.0, rel=5e-3)
        assert "num_examples=1, and fit was given 120" in report.evidence[1]


class Counted:
    """An array that counts the rows that are read of it."""

    def __init__(self, values):
        self.values, self.shape, self.read = values, values.shape, 0

    def __len__(self):
        return len(self.values)

    def __getitem__(self, rows):
        found = self.values[rows]
        self.read += len(found)
        return found


def test_what_is_read_does_not_grow_with_the_data():
    from bdl.diagnostics.measure import take_probe

    x = Counted(np.zeros((300_000, 1), "float32"))
    y = Counted(np.arange(300_000) % 3)
    probe = take_probe((x, y), 256, CATEGORICAL, "data")
    assert len(probe.x) == len(probe.y) == len(probe.labels) == 256
    assert x.read == 256
    assert y.read <= 256 + 20_000
    assert probe.nll_null == pytest.approx(np.log(3), rel=1e-2)
