"""A training that is killed and started again ends as one that was not, bit for bit, and is one run in its record."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from stories import level

import bdl
from bdl.convert.files import convert_file
from bdl.diagnostics import TrainingHealth, read_record
from bdl.diagnostics.journal import interrupted_run
from bdl.diagnostics.record import append
from bdl.keras_internals import is_concrete
from bdl.svi import SVI

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
X = RNG.normal(size=(45, 4)).astype("float32")
Y = np.arange(45) % 3
EPOCHS = 5


def made(eager=False, kl_weight=None):
    """Noise of every kind: variational, of Keras' layers with a seed and without, and of statistics of batches."""
    keras.utils.set_random_seed(3)
    hidden = [
        bdl.layers.DenseFlipout(8, activation="relu"),
        keras.layers.Dropout(0.3),
        keras.layers.GaussianNoise(0.1, seed=5),
        keras.layers.BatchNormalization(),
    ]
    network = keras.Sequential([keras.Input((4,)), *hidden, bdl.layers.DenseReparameterization(3)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=kl_weight)
    model.compile("adam", run_eagerly=eager)
    return model


def train(model, *callbacks, epochs=EPOCHS, **settings):
    settings = {"batch_size": 8, "verbose": 0, **settings}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **settings)


def state(model):
    return [keras.ops.convert_to_numpy(each.value) for each in (*model.variables, *model.optimizer.variables)]


def assert_same(model, expected):
    for found, wanted in zip(state(model), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


class At(keras.callbacks.Callback):
    """Does something at the beginning of a batch."""

    def __init__(self, epoch, batch, action):
        super().__init__()
        self.place, self.action, self.epoch = (epoch, batch), action, None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            self.action()


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole():
    model = made()
    train(model, validation_split=0.2)
    return state(model)


@pytest.mark.parametrize(("save_freq", "batch"), [("epoch", 3), (4, 3)])
def test_an_interrupted_fit_ends_as_one_that_was_not(tmp_path, whole, save_freq, batch):
    """Whatever the global generators of NumPy, Python and Torch did meanwhile. A backup every 4 of an epoch's 5 batches
    is within an epoch: the fit goes on with its next batch."""

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=save_freq)

    with pytest.raises(KeyboardInterrupt):
        train(made(), backup(), At(2, batch, interrupt), validation_split=0.2)
    model = made()
    keras.utils.set_random_seed(99)
    train(model, backup(), validation_split=0.2)
    assert_same(model, whole)


class Reads(keras.layers.Layer):
    """Keeps the first column of each batch that it sees."""

    def __init__(self):
        super().__init__()
        self.kept = Kept()

    def call(self, inputs):
        if is_concrete(inputs):
            self.kept.rows.append(keras.ops.convert_to_numpy(inputs)[:, 0])
        return inputs


class Kept:
    def __init__(self):
        self.rows = []


@pytest.mark.parametrize("left", ['{"epoch": 1, "batch": 0}', ""])
def test_a_kill_between_or_within_the_two_files_of_a_backup_costs_nothing(tmp_path, whole, left):
    """Keras writes the weights, and then the number of the epoch."""

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(KeyboardInterrupt):
        train(made(), backup(), At(2, 0, interrupt), validation_split=0.2)
    (tmp_path / "backup" / "training_metadata.json").write_text(left)
    model = made()
    train(model, backup(), validation_split=0.2)
    assert_same(model, whole)


def test_an_earlier_fit_does_not_move_the_epoch_of_a_backup(tmp_path):
    """The steps of the model alone do not say how far a fit is."""

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    expected = made(kl_weight=1.0)
    train(expected, epochs=1)
    train(expected, epochs=3)
    before = made(kl_weight=1.0)
    train(before, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train(before, backup(), At(2, 0, interrupt), epochs=3)
    model = made(kl_weight=1.0)
    train(model, backup(), epochs=3)
    assert_same(model, state(expected))


def test_another_callback_stops_a_resumed_epoch(tmp_path):
    """Where the epoch would have ended, and before."""

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=1, delete_checkpoint=False)

    with pytest.raises(KeyboardInterrupt):
        train(made(kl_weight=1.0), backup(), At(1, 2, interrupt))
    model = made(kl_weight=1.0)
    stop = At(1, 1, lambda: setattr(model, "stop_training", True))
    train(model, backup(), stop)
    assert model.progress.step < 2 * -(-len(X) // 8)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
def test_epochs_that_are_parts_of_a_pass_say_that_they_are_not_resumed_exactly(tmp_path):
    def fit(*callbacks):
        train(made(kl_weight=1.0), keras.callbacks.BackupAndRestore(tmp_path), *callbacks, epochs=2, steps_per_epoch=2)

    with pytest.raises(KeyboardInterrupt):
        fit(At(1, 1, interrupt))
    with pytest.warns(UserWarning, match="`steps_per_epoch` must be left out, or be all batches of the arrays"):
        fit()


def orders(seed, **settings):
    """Rows of two epochs in the order in which they are trained, and the sizes of the batches."""
    reads = Reads()
    model = bdl.VariationalModel(
        keras.Sequential([keras.Input((1,)), reads, bdl.layers.DenseFlipout(1, seed=seed)]),
        bdl.likelihoods.Normal(),
        kl_weight=1.0,
    )
    model.compile("sgd", run_eagerly=True)
    rows = np.arange(10, dtype="float32")[:, None]
    reads.kept.rows.clear()
    model.fit(rows, 0 * rows, batch_size=4, epochs=2, verbose=0, **settings)
    batches = reads.kept.rows[-6:]
    return [np.concatenate(batches[:3]), np.concatenate(batches[3:])], [len(each) for each in batches]


def test_the_order_has_each_row_once_and_follows_the_seeds_and_the_steps():
    (first, second), sizes = orders(0)
    assert sizes == [4, 4, 2] * 2
    for order in (first, second):
        np.testing.assert_array_equal(np.sort(order), np.arange(10))
    assert list(first) != list(second)
    np.testing.assert_array_equal(orders(0)[0], [first, second])
    assert list(orders(1)[0][0]) != list(first)


def test_rows_stay_where_they_are_told_to():
    np.testing.assert_array_equal(orders(0, shuffle=False)[0], [np.arange(10)] * 2)
    within = orders(0, shuffle="batch")[0][0]
    np.testing.assert_array_equal(np.sort(within[:4]), np.arange(4))
    assert list(within) != list(range(10))


def test_a_step_leaves_the_global_generator_of_torch_as_it_was():
    if keras.backend.backend() != "torch":
        pytest.skip("Keras' dropout draws from a global generator on Torch alone.")
    import torch

    model = made()
    train(model, epochs=1)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model.train_on_batch(X, Y)
    assert torch.equal(torch.get_rng_state(), before)


class Batches(keras.utils.PyDataset):
    num_batches = 5

    def __getitem__(self, index):
        return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
def test_data_of_other_kinds_say_what_a_backup_within_an_epoch_repeats(tmp_path):
    def fit(*callbacks):
        model = made(eager=keras.backend.backend() == "tensorflow")
        backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=4)
        model.fit(Batches(), epochs=2, shuffle=False, verbose=0, callbacks=[backup, *callbacks])

    with pytest.raises(KeyboardInterrupt):
        fit(At(1, 4, interrupt))
    with pytest.warns(UserWarning, match="`save_freq` of BackupAndRestore must be 'epoch'.* 3 of its 5 batches twice"):
        fit()


@pytest.mark.parametrize("save_freq", ["epoch", 4])
def test_an_interrupted_fit_of_a_story_ends_as_one_that_was_not(tmp_path, save_freq):
    """The orders follow the seed that was saved, where the model was given none."""

    def fit(seed, *callbacks):
        keras.utils.set_random_seed(seed)
        model = SVI(level)
        model.compile("adam", run_eagerly=keras.backend.backend() == "tensorflow")
        model.fit({"y": X[:40, 0]}, batch_size=7, steps=18, epochs=3, callbacks=list(callbacks), verbose=0)
        return model

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, save_freq=save_freq)

    expected = state(fit(3))
    with pytest.raises(KeyboardInterrupt):
        fit(3, backup(), At(1, 5, interrupt))
    assert_same(fit(8, backup()), expected)


KILLED = """
import os, sys
import test_resume as t

health = t.TrainingHealth((t.X, t.Y), record=sys.argv[2], on_verdict="record", max_cost=1.0)
backup = t.keras.callbacks.BackupAndRestore(sys.argv[1])
kill = [t.At(2, 3, lambda: os.kill(os.getpid(), 9))] if sys.argv[3] == "kill" else []
model = t.made()
t.train(model, health, backup, *kill, validation_split=0.2)
t.np.savez(sys.argv[1] + ".npz", *t.state(model))
"""


def test_a_training_that_was_killed_is_one_run(tmp_path, whole):
    backup, record = tmp_path / "backup", tmp_path / "run.jsonl"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(bdl.__file__).parents[1])])

    def run(word):
        command = [sys.executable, "-c", KILLED, str(backup), str(record), word]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)

    assert run("kill").returncode == -signal.SIGKILL
    (cut,) = read_record(record)
    assert [each["epoch"] for each in cut.epochs] == [1, 2]
    done = run("go on")
    assert done.returncode == 0, done.stderr
    with np.load(f"{backup}.npz") as found:
        for name, wanted in zip(found.files, whole, strict=True):
            np.testing.assert_array_equal(found[name], wanted)
    (record,) = read_record(record)
    assert [each["epoch"] for each in record.epochs] == [1, 2, 3, 4, 5]
    verdicts = [each for each, _, _ in record.verdicts]
    assert verdicts == sorted(verdicts)
    assert record.is_complete


class Ends(keras.callbacks.Callback):
    """Does something at the end of an epoch, between the callbacks before and after it."""

    def __init__(self, epoch, action):
        super().__init__()
        self.place, self.action = epoch, action

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.place:
            self.action()


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("first", ["record", "backup"])
def test_a_kill_between_record_and_backup_leaves_one_run(tmp_path, first, epoch):
    """A record that is behind the backup lacks an epoch; one before it has the epoch that is trained again."""
    path = tmp_path / "run.jsonl"

    def fit(*kills):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.3), keras.layers.Dense(3)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
        health = TrainingHealth(record=path, on_verdict="record")
        around = [health, *kills, keras.callbacks.BackupAndRestore(tmp_path / "backup")]
        train(model, *(around if first == "record" else reversed(around)), epochs=4)
        return health

    with pytest.raises(KeyboardInterrupt):
        fit(Ends(epoch, interrupt))
    health = fit()
    (run,) = read_record(path)
    known = [each for each in (1, 2, 3, 4) if first == "record" or each != epoch + 1]
    assert [each["epoch"] for each in run.epochs] == known
    assert [each["epoch"] for each in health.epochs] == known
    assert run.is_complete


@pytest.mark.parametrize("other", [{"seeds": "t"}, {"optimizer": "sgd"}, {"num_examples": 30}, {"steps": 4}])
@pytest.mark.parametrize("step", [0, 6])
def test_another_training_does_not_go_on_with_the_record_of_a_killed_one(tmp_path, other, step):
    start = {"num_examples": 45, "steps": 6, "seeds": "s", "optimizer": "adam"}
    append(tmp_path / "record", {"event": "start", "format": 1, "run": "a", **start})
    append(tmp_path / "record", {"event": "epoch", "epoch": 1, "logs": {"step": 6}, "run": "a"})
    assert interrupted_run(tmp_path / "record", step, start).run == "a"
    assert interrupted_run(tmp_path / "record", step, {**start, **other}) is None


def test_a_record_cut_at_any_byte_is_read_and_goes_on(tmp_path):
    whole = tmp_path / "whole.jsonl"
    append(whole, {"event": "start", "format": 1, "run": "a", "num_examples": 45, "steps": 6, "seeds": "s"})
    for epoch in (1, 2):
        append(whole, {"event": "epoch", "epoch": epoch, "logs": {"step": 6 * epoch, "loss": 0.5}, "run": "a"})
    content = whole.read_bytes()
    lines = [len(b"".join(content.splitlines(keepends=True)[:number])) - 1 for number in (1, 2, 3)]
    path = tmp_path / "cut.jsonl"
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        num_epochs = sum(size >= end for end in lines[1:])
        if size < lines[0]:
            with pytest.raises(ValueError, match="`record`"):
                read_record(path)
            assert interrupted_run(path, 6 * num_epochs, {"seeds": "s"}) is None
        else:
            assert len(read_record(path)[0].epochs) == num_epochs
            assert interrupted_run(path, 6 * num_epochs, {"seeds": "s"}).run == "a"
        append(path, {"event": "start", "format": 1, "run": "a", "resumed_after": num_epochs})
        append(path, {"event": "epoch", "epoch": num_epochs + 1, "logs": {}, "run": "a"})
        (run,) = read_record(path)
        assert [each["epoch"] for each in run.epochs] == list(range(1, num_epochs + 2))
        assert not run.is_cut


class TornError(Exception):
    """What interrupts a write."""


def torn(*args, **kwargs):
    raise TornError


def torn_after(write):
    def run(*args, **kwargs):
        write(*args, **kwargs)
        raise TornError

    return run


def save(model, path):
    model.save(path / "model.keras")


def save_weights(model, path):
    model.save_weights(path / "model.weights.h5")


def export(model, path):
    bdl.export_distribution(model.network, model.likelihood, path / "served", num_samples=2, verbose=False)


def convert(model, path):
    source = path.parent / "source.keras"
    model.network.save(source)
    convert_file(source, path / "plain.keras", lambda loaded: loaded)


@pytest.mark.parametrize("write", [save, save_weights, export, convert])
def test_a_torn_file_never_replaces_a_good_one(tmp_path, monkeypatch, write):
    """Whatever Keras has written when it is interrupted."""
    if write is export and keras.backend.backend() == "torch":
        pytest.skip("Torch exports to no format that holds the noise.")
    model = made()
    folder = tmp_path / "files"
    folder.mkdir()
    write(model, folder)

    def content():
        return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    before = content()
    last_layer = model.network.layers[-1]
    with monkeypatch.context() as patched:
        # In the middle: earlier layers are in the file.
        patched.setattr(type(last_layer), "save_own_variables", torn)
        patched.setattr(keras.Model, "export", torn_after(keras.Model.export))
        with pytest.raises(TornError):
            write(model, folder)
    assert content() == before
    write(model, folder)
    assert set(content()) == set(before)
