"""Members follow from their seeds alone, and what was trained is kept."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import random

import ensemble_members
import keras
import numpy as np
import pytest
from ensemble_members import X, Y

import bdl

pytestmark = pytest.mark.core

SETTINGS = {"epochs": 2, "batch_size": 24}


def process():
    """One worker, in a process that is started anew."""
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def assert_equal(members, others):
    for member, other in zip(members, others, strict=True):
        for weight, same in zip(member.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, same)


@pytest.fixture(scope="module")
def looped(tmp_path_factory):
    """A folder with two members that were trained in a loop, and these."""
    folder = tmp_path_factory.mktemp("looped")
    return folder, bdl.ensembles.fit(ensemble_members.variational, 2, folder, X, Y, **SETTINGS)


def test_a_worker_that_dies_loses_its_member_alone_and_processes_train_what_a_loop_does(looped, tmp_path, monkeypatch):
    monkeypatch.setenv("BDL_TEST_MARKER", str(tmp_path / "died"))
    folder, call = tmp_path / "members", (ensemble_members.whose_worker_dies_once, 2)
    with process() as executor, pytest.raises(RuntimeError, match=r"1 of 2 members .*\n.*member 1: BrokenProcessPool"):
        bdl.ensembles.fit(*call, folder, X, Y, executor=executor, **SETTINGS)
    assert [path.name for path in sorted(folder.glob("*.keras"))] == ["member-0.keras"]
    written = (folder / "member-0.keras").stat().st_mtime_ns
    members = bdl.ensembles.fit(*call, folder, X, Y, **SETTINGS)
    assert (folder / "member-0.keras").stat().st_mtime_ns == written
    assert_equal(members, looped[1])
    (whole,) = bdl.diagnostics.read_record(folder / "member-1.jsonl")
    assert ([each["epoch"] for each in whole.epochs], whole.is_complete) == ([1, 2], True)


def test_each_member_has_its_own_file_record_and_settings(looped):
    folder, members = looped
    assert sorted(path.name for path in folder.iterdir()) == [
        f"member-{number}.{suffix}" for number in range(2) for suffix in ("json", "jsonl", "keras")
    ]
    assert [json.loads((folder / f"member-{i}.json").read_text())["seed"] for i in range(2)] == [0, 1]
    assert all(len(bdl.diagnostics.read_record(folder / f"member-{i}.jsonl")[0].epochs) == 2 for i in range(2))
    prediction = bdl.predict_distribution(members, X, bdl.likelihoods.Categorical(), num_samples=2, seed=0)
    assert prediction.probabilities.shape == (48, 3)


def test_a_larger_ensemble_keeps_the_members_of_a_smaller_one(tmp_path):
    few = bdl.ensembles.fit(ensemble_members.with_its_own_data, 1, tmp_path / "own")
    written = (tmp_path / "own" / "member-0.keras").stat().st_mtime_ns
    more = bdl.ensembles.fit(ensemble_members.with_its_own_data, 2, tmp_path / "own")
    assert (tmp_path / "own" / "member-0.keras").stat().st_mtime_ns == written
    assert_equal(more[:1], few)
    # Data that `make` loads train what given data do.
    assert_equal(more, bdl.ensembles.fit(ensemble_members.plain, 2, tmp_path / "given", X, Y, **SETTINGS))


def draws():
    """The next numbers of each global generator, and the next name of a layer."""
    found = [random.random(), np.random.rand(), float(keras.random.uniform(())), keras.layers.Dense(1).name]  # noqa: NPY002
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        found.append(float(tf.random.uniform(())))
    if keras.backend.backend() == "torch":
        import torch

        found.append(float(torch.rand(())))
    return found


def test_a_loop_leaves_the_global_generators_as_they_were(tmp_path):
    keras.utils.set_random_seed(5)
    keras.utils.clear_session()
    keras.layers.Dense(1)
    expected = draws()
    keras.utils.set_random_seed(5)
    keras.utils.clear_session()
    keras.layers.Dense(1)
    bdl.ensembles.fit(ensemble_members.plain, 1, tmp_path, X, Y)
    assert draws() == expected


@pytest.mark.parametrize(
    ("make", "changed", "says"),
    [
        ("variational", {"epochs": 3}, r"member-0.keras .*: epochs=2, not 3\. "),
        ("variational", {"seed": 1}, r"seed=0, not 1, weights="),
        ("variational", {"x": X + 1}, r"x='ndarray\(48, 4\) \w+', not 'ndarray"),
        ("plain", {}, r": model='list \w+', not 'list \w+', weights="),
    ],
)
def test_members_of_other_settings_are_refused_and_stay(looped, make, changed, says):
    folder, _ = looped
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    call = {"x": X, "y": Y, **SETTINGS, **changed}
    with pytest.raises(ValueError, match=rf"`folder` must not hold members of other settings.*{says}"):
        bdl.ensembles.fit(getattr(ensemble_members, make), 4, folder, **call)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_of_unknown_settings_is_refused(tmp_path):
    (tmp_path / "member-0.keras").write_text("mine")
    with pytest.raises(ValueError, match=r"there is no member-0\.json"):
        bdl.ensembles.fit(ensemble_members.plain, 1, tmp_path, X, Y)
    assert (tmp_path / "member-0.keras").read_text() == "mine"


def test_all_others_are_trained_before_an_error_names_those_that_failed(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)1 of 3 .*member 1: ArithmeticError: one is too many") as failure:
        bdl.ensembles.fit(ensemble_members.that_fails_for_seed_1, 3, tmp_path, X, Y)
    assert isinstance(failure.value.__cause__, ArithmeticError)
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == ["member-0.keras", "member-2.keras"]


def test_equal_members_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="`make` must use the seed that it is given: members 0 and 1"):
        bdl.ensembles.fit(ensemble_members.that_ignores_its_seed, 2, tmp_path, X, Y)


def test_a_member_that_is_not_healthy_is_told(tmp_path):
    def make(seed):
        model = bdl.VariationalModel(ensemble_members.network(), bdl.likelihoods.Categorical(), kl_weight=20.0)
        model.compile("adam")
        return model

    with pytest.raises(bdl.diagnostics.HealthWarning, match=r"(?s)Not all.*member 0: mis_scaled_kl \(certain\)\. "):
        bdl.ensembles.fit(make, 1, tmp_path, X, Y, epochs=2)


class Waits:
    """An executor whose futures end one after the other."""

    def __init__(self):
        self.cancelled = []

    def submit(self, function, /, *args):
        future = concurrent.futures.Future()
        future.cancel = lambda: self.cancelled.append(args[1])
        future.result = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        return future


def test_an_interruption_cancels_what_has_not_begun(tmp_path):
    executor = Waits()
    with pytest.raises(KeyboardInterrupt):
        bdl.ensembles.fit(ensemble_members.plain, 3, tmp_path, X, Y, executor=executor)
    assert executor.cancelled == [0, 1, 2]


def test_threads_are_refused(tmp_path):
    says = "`executor` must train each member in a process"
    with concurrent.futures.ThreadPoolExecutor(2) as executor, pytest.raises(RuntimeError, match=says):
        bdl.ensembles.fit(ensemble_members.plain, 2, tmp_path, X, Y, executor=executor)


class OtherSettings(concurrent.futures.Executor):
    """In the place of workers in another process, which has other settings."""

    def submit(self, function, /, plan, number):
        settings = {**plan.settings, "floatx": "float64"}
        future = concurrent.futures.Future()
        try:
            function(dataclasses.replace(plan, process="another", settings=settings), number)
        except ValueError as error:
            future.set_exception(error)
        return future


def test_workers_with_other_settings_are_refused(tmp_path):
    says = r"`executor` must have workers with the caller's settings, but one has floatx='float32', not 'float64'\."
    with pytest.raises(RuntimeError, match=says):
        bdl.ensembles.fit(ensemble_members.plain, 1, tmp_path, X, Y, executor=OtherSettings())


def returns_nothing(seed):
    return None


def returns_uncompiled(seed):
    return ensemble_members.network()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"make": lambda seed: None, "executor": process()}, "`make` must be a function at the top level of a module"),
        ({"make": 3}, "`make` must be a function from a seed to a compiled Keras model, not 3"),
        ({"n": 0}, "`n` must be a positive integer, not 0"),
        ({"seed": -1}, "`seed` must be an integer from 0 to"),
        ({"seed": 2**32}, "`seed` must be an integer from 0 to"),
        ({"callbacks": []}, "`callbacks` must come from `make`"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, call, says):
    with pytest.raises(ValueError, match=says):
        bdl.ensembles.fit(**{"make": ensemble_members.plain, "n": 1, "folder": tmp_path, "x": X, "y": Y, **call})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("make", "what"), [(returns_nothing, "not None"), (returns_uncompiled, "not compiled")])
def test_what_make_returns_is_checked(tmp_path, make, what):
    with pytest.raises(RuntimeError, match=f"`make` must return a compiled keras.Model.*{what}"):
        bdl.ensembles.fit(make, 1, tmp_path, X, Y)
