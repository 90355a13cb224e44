"""Other calls are in force in one thread alone, and are gone afterwards, whatever happens."""

import functools
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from networks import outputs
from numpy.testing import assert_array_equal

import bdl
from bdl.convert import to_mc_dropout, to_variational
from bdl.convert.rewiring import call_in_force, calls_replaced

NUM_THREADS = 16
X = np.random.default_rng(0).normal(size=(2, 2, 3)).astype("float32")


def constant(value: float) -> Callable[..., Any]:
    return lambda inputs, **kwargs: ops.full((1,), value)


def value(layer: Any) -> float:
    return float(ops.convert_to_numpy(layer(np.zeros((1, 1), "float32"))).ravel()[0])


@pytest.mark.core
def test_a_layer_is_as_it_was_after_an_error_too():
    layer = layers.Dense(2)
    x = np.ones((1, 3), "float32")
    expected = ops.convert_to_numpy(layer(x))
    with pytest.raises(RuntimeError), calls_replaced({layer: lambda inputs: inputs}):
        assert layer(x).shape == (1, 3)
        raise RuntimeError
    assert "call" not in vars(layer)
    assert_array_equal(ops.convert_to_numpy(layer(x)), expected)


@pytest.mark.core
def test_the_innermost_call_is_in_force_and_can_ask_for_the_one_around():
    layer = layers.Identity()
    with calls_replaced({layer: constant(1.0)}):
        around = call_in_force(layer)
        with calls_replaced({layer: lambda inputs: 10.0 + around(inputs)}):
            assert value(layer) == 11.0
            with calls_replaced({layer: around}):
                assert value(layer) == 1.0
            assert value(layer) == 11.0
        assert value(layer) == 1.0
    assert value(layer) == 0.0
    assert call_in_force(layer) == layer.call


@pytest.mark.core
def test_a_call_that_the_instance_had_already_comes_back():
    layer = layers.Identity()
    own = layer.call = constant(2.0)
    with calls_replaced({layer: constant(1.0)}):
        assert value(layer) == 1.0
        assert call_in_force(layer)(None) is not None
    assert vars(layer)["call"] is own
    assert value(layer) == 2.0


@pytest.mark.core
def test_other_threads_see_the_layer_itself_or_their_own_replacement():
    """Every thread holds its context until all have looked, so that all of them are open at the same time."""
    layer = layers.Dense(1, kernel_initializer="zeros")
    value(layer)
    signature = inspect.signature(layer.call)
    barrier = threading.Barrier(NUM_THREADS)

    def look(number: int) -> tuple[float, Any]:
        replaced = {layer: constant(float(number))} if number % 2 else {}
        with calls_replaced(replaced):
            barrier.wait(30)
            seen = value(layer), inspect.signature(layer.call)
            barrier.wait(30)
        return seen

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(look, range(NUM_THREADS)))
    assert found == [(float(number if number % 2 else 0), signature) for number in range(NUM_THREADS)]
    assert "call" not in vars(layer)


def quantizations() -> list[Any]:
    plain = keras.Sequential([keras.Input((4,)), layers.Dropout(0.3), layers.Dense(3)])
    variational = to_variational(plain)
    return [variational, to_mc_dropout(plain), bdl.VariationalModel(variational, bdl.likelihoods.Categorical())]


@pytest.mark.parametrize("number", range(3))
def test_quantize_is_refused_before_anything_is_changed(number: int):
    model = quantizations()[number]
    before = [variable.dtype for variable in model.variables]
    with pytest.raises(ValueError, match="must not be quantized"):
        model.quantize("int8")
    assert [variable.dtype for variable in model.variables] == before


def test_layers_quantized_behind_the_conversion_are_named_and_cannot_be_converted():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="head")])
    x = np.ones((2, 4), "float32")
    converted = to_variational(model)
    model.layers[-1].quantize("int8")
    with pytest.raises(ValueError, match=r"\['head'\] must not be quantized"):
        converted(x)
    with pytest.raises(ValueError, match=r"head .*is quantized"):
        to_variational(model)
    with pytest.raises(ValueError, match=r"quantized layers \['head'\]"):
        to_mc_dropout(model, rate=0.1, before="last")


def network() -> Any:
    """A layer of each kind that a conversion evaluates by a view or a call of its own, and a shared one."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(X.shape[1:])
    shared = layers.Dense(2, activation="tanh")
    x = layers.Dropout(0.3)(shared(inputs))
    x = layers.Attention(dropout=0.3)([x, x])
    x = layers.SimpleRNN(2, dropout=0.3, unroll=True)(x)
    return keras.Model(inputs, layers.Dense(2)(x))


def both(model: Any) -> Any:
    return to_mc_dropout(to_variational(model, seed=0), rate=0.2, before="last", seed=0)


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    """Results of sixteen threads that start together."""
    barrier = threading.Barrier(NUM_THREADS)

    def start(number: int) -> Any:
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(start, range(NUM_THREADS)))


@pytest.mark.core
@pytest.mark.parametrize("convert", [to_mc_dropout, both])
def test_threads_predict_what_one_thread_does_and_the_original_stays_itself(convert: Any):
    model = network()
    plain = outputs(model, X, training=False)

    def probabilities(converted: Any) -> np.ndarray:
        likelihood = bdl.likelihoods.Categorical()
        return bdl.predict_distribution(converted, X, likelihood, num_samples=2, seed=1).probabilities

    expected = probabilities(convert(model))
    converted = convert(model)

    def work(number: int) -> np.ndarray:
        return probabilities(converted) if number % 2 else outputs(model, X, training=False)

    for _ in ("cold", "warm"):
        for number, found in enumerate(in_threads(work)):
            assert_array_equal(found, expected if number % 2 else plain)
    assert not [layer.name for layer in model.layers if "call" in vars(layer)]


@pytest.mark.core
def test_direct_calls_and_traces_of_threads_give_what_one_thread_does():
    """Each thread has a state of its own; four of them compile a function of their own at the same time."""
    model, x = network(), ops.convert_to_tensor(X)

    def calls() -> list[Callable[[], np.ndarray]]:
        """The original, and a conversion of its own that was never called, eagerly and compiled."""
        converted = both(model)
        trainable = [variable.value for variable in converted.trainable_variables]
        state = [ops.copy(variable.value) for variable in converted.non_trainable_variables]

        def call() -> Any:
            return converted.stateless_call(trainable, state, x)[0]

        plain = functools.partial(outputs, model, X, training=False)
        return [plain, lambda: ops.convert_to_numpy(call()), lambda: ops.convert_to_numpy(_compiled(call)())]

    expected = [each() for each in calls()]
    work = calls()
    kinds = [0, 1, 1, 2] * (NUM_THREADS // 4)
    for kind, found in zip(kinds, in_threads(lambda number: work[kinds[number]]()), strict=True):
        assert_array_equal(found, expected[kind])


def _compiled(function: Callable[[], Any]) -> Callable[[], Any]:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function
