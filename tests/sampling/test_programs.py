"""One program of XLA for all networks whose graphs are equal."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

import bdl
from bdl.sampling import programs

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow alone keeps programs")

X = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")
CATEGORICAL = bdl.likelihoods.Categorical()


def network(seed=0, activation="relu", width=8, layer=bdl.layers.DenseFlipout):
    keras.utils.set_random_seed(seed)
    layers = [layer(width, activation=activation), keras.layers.Dropout(0.3), bdl.layers.DenseReparameterization(3)]
    return keras.Sequential([keras.Input((4,)), *layers])


def predicted(model, **settings):
    return bdl.predict_distribution(model, X, CATEGORICAL, **{"num_samples": 3, "seed": 0, **settings}).probabilities


def compiled_by(call):
    before = programs._program.cache_info().misses
    call()
    return programs._program.cache_info().misses - before


@pytest.fixture(autouse=True)
def no_programs():
    programs.forget()


def test_one_program_serves_members_and_each_gives_its_own_numbers(monkeypatch):
    members = [network(seed) for seed in range(3)]
    found = []
    assert compiled_by(lambda: found.extend(predicted(member) for member in members)) == 1

    import tensorflow as tf

    apart = []

    def own_program(function):
        apart.append(tf.function(function, jit_compile=True, autograph=False))
        return apart[-1]

    monkeypatch.setattr("bdl.sampling.sampler.shared_program", own_program)
    for member, shared in zip(members, found, strict=True):
        alone = keras.models.clone_model(member)  # whose sampler is new
        alone.set_weights(member.get_weights())
        np.testing.assert_array_equal(shared, predicted(alone))
    assert len(apart) == 3
    assert not np.array_equal(found[0], found[1])


def test_threads_get_the_numbers_of_their_networks():
    members = [network(seed) for seed in range(2)]
    expected = [predicted(member) for member in members]
    programs.forget()
    fresh = [keras.models.clone_model(member) for member in members]
    for copy, member in zip(fresh, members, strict=True):
        copy.set_weights(member.get_weights())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predicted, 4 * fresh))
    for number, probabilities in enumerate(found):
        np.testing.assert_array_equal(probabilities, expected[number % 2])


def test_a_copy_from_a_file_and_one_with_other_names_have_the_same_program(tmp_path):
    model = network()
    model.save(tmp_path / "model.keras")
    predicted(model)
    assert compiled_by(lambda: predicted(keras.saving.load_model(tmp_path / "model.keras"))) == 0
    renamed = keras.Sequential([keras.Input((4,), name="other"), *network().layers], name="another")
    assert compiled_by(lambda: predicted(renamed)) == 0


@pytest.mark.parametrize(
    "settings", [{"activation": "tanh"}, {"width": 7}, {"layer": bdl.layers.DenseReparameterization}], ids=str
)
def test_another_network_has_another_program(settings):
    predicted(network())
    other = network(**settings)
    assert compiled_by(lambda: predicted(other)) == 1


@pytest.mark.parametrize("settings", [{"num_samples": 4}, {"batch_size": 5}, {"consistent": True}], ids=str)
def test_another_call_has_another_program(settings):
    model = network()
    predicted(model)
    assert compiled_by(lambda: predicted(model, **settings)) == 1


def test_a_constant_in_the_graph_tells_networks_apart():
    """These two have equal layers, without weights."""

    def scaled(factor):
        inputs = keras.Input((4,))
        return keras.Model(inputs, keras.layers.Activation("linear")(inputs * factor))

    for factor in (1.0, 2.0):
        logits = factor * X.astype("float64")
        expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(predicted(scaled(factor)), expected, rtol=1e-5)


def test_statistics_that_a_layer_was_adapted_to_tell_networks_apart():
    """Keras holds them as tensors, which graphs refer to and do not contain."""

    def normalized(mean):
        layer = keras.layers.Normalization()
        layer.adapt(np.linspace(mean - 1.0, mean + 1.0, 12, dtype="float32").reshape(3, 4))
        return keras.Sequential([keras.Input((4,)), layer])

    found = []
    assert compiled_by(lambda: found.extend(predicted(normalized(mean)) for mean in (0.0, 0.0, 3.0))) == 2
    np.testing.assert_array_equal(found[0], found[1])
    layer = normalized(3.0).layers[0]
    logits = (X - np.asarray(layer.mean)) / np.sqrt(np.asarray(layer.variance))
    np.testing.assert_allclose(found[2], np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-5)


def test_functions_inside_of_loops_and_branches_tell_graphs_apart():
    import tensorflow as tf

    def summed(step):
        return lambda x: tf.while_loop(lambda i, s: i < 3, lambda i, s: (i + 1, step(s)), (0, x))[1]

    steps = [lambda s: s + 1.0, lambda s: s + 1.0, lambda s: s * 2.0]
    functions = [programs.shared_program(summed(step)) for step in steps]
    found = []
    assert compiled_by(lambda: found.extend(float(function(tf.constant(1.0))) for function in functions)) == 2
    assert found == [4.0, 4.0, 8.0]


def test_the_order_and_the_structure_of_arguments_and_results_count():
    import tensorflow as tf

    functions = [
        lambda x: x["a"] - x["b"],
        lambda x: x["b"] - x["a"],
        lambda x: {"c": x["a"] - x["b"]},
        lambda x: [x["a"], x["b"]],
        lambda x: [x["b"], x["a"]],
    ]
    x = {"a": tf.constant(3.0), "b": tf.constant(1.0)}
    found = [programs.shared_program(function)(x) for function in functions]
    assert tf.nest.map_structure(float, found) == [2.0, -2.0, {"c": 2.0}, [3.0, 1.0], [1.0, 3.0]]


def test_a_function_that_reads_a_variable_keeps_its_own_program():
    import tensorflow as tf

    def times(variable):
        return programs.shared_program(lambda x: x * variable)

    variables = [tf.Variable(1.0), tf.Variable(2.0)]
    functions = [times(variable) for variable in variables]
    assert [float(function(tf.constant(3.0))) for function in functions] == [3.0, 6.0]
    variables[0].assign(5.0)
    assert float(functions[0](tf.constant(3.0))) == 15.0

    kept = [weakref.ref(variable) for variable in variables]
    del variables, functions
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_the_program_lets_go_of_the_network():
    model = network()
    predicted(model)
    kept = weakref.ref(model), weakref.ref(model.variables[0])
    del model
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
    assert programs._program.cache_info().currsize == 1
