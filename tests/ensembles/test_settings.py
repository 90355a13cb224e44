"""A description is equal where the value is, and differs where it differs."""

import keras
import numpy as np
import pytest
import scipy.sparse

from bdl.ensembles.settings import described, described_model, difference
from bdl.keras_internals import fresh_session

pytestmark = pytest.mark.core

PAIRS = {
    "numbers": (lambda: 3, lambda: 4),
    "arrays": (lambda: np.arange(6), lambda: np.arange(6) + 1),
    "shapes": (lambda: np.zeros((2, 3)), lambda: np.zeros((3, 2))),
    "types": (lambda: np.zeros(2, "float32"), lambda: np.zeros(2)),
    "long arrays": (lambda: np.arange(200_000), lambda: np.arange(200_000) + (np.arange(200_000) == 150_000)),
    "scalars": (lambda: np.array(1), lambda: np.array(2)),
    "texts": (lambda: np.array(["a", "b"], object), lambda: np.array(["a", "c"], object)),
    "tensors": (lambda: keras.ops.ones(2), lambda: keras.ops.zeros(2)),
    "sparse": (lambda: scipy.sparse.eye(3, format="csr"), lambda: scipy.sparse.eye(3, format="csr") * 2),
    "dicts": (lambda: {"a": [np.ones(2)]}, lambda: {"b": [np.ones(2)]}),
    "lists": (lambda: [1, 2], lambda: [[1], 2]),
    "strings": (lambda: ["a", "bc"], lambda: ["ab", "c"]),
    "callbacks": (
        lambda: [keras.callbacks.EarlyStopping("loss", patience=3)],
        lambda: [keras.callbacks.EarlyStopping("loss", patience=4)],
    ),
    "optimizers": (lambda: keras.optimizers.Adam(0.1), lambda: keras.optimizers.Adam(0.2)),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_values_are_told_apart(one, other):
    def told(make):
        with fresh_session(0):  # names of objects count on from call to call
            return described(make())

    assert told(one) == told(one)
    assert told(one) != told(other)


def compiled(units=2, rate=0.1, value=1.0):
    with fresh_session(0):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
        model.compile(keras.optimizers.SGD(rate), "mse")
        model.set_weights([np.full_like(weight, value) for weight in model.get_weights()])
        return described_model(model)


def test_models_are_told_apart_by_what_they_are_how_they_were_compiled_and_where_they_begin():
    assert difference(compiled(), compiled()) is None
    assert compiled(rate=0.2)["weights"] == compiled()["weights"]
    assert compiled(rate=0.2)["model"] != compiled()["model"]
    assert compiled(value=2.0)["model"] == compiled()["model"]
    assert compiled(value=2.0)["weights"] != compiled()["weights"]
    assert compiled(units=3)["model"] != compiled()["model"]


def test_a_difference_names_what_differs():
    assert difference({"a": 1, "b": 2}, {"a": 1, "c": 3}) == "b=2, not None, c=None, not 3"
