"""What layers tell of local latent variables: reports reach a collector, divergences the objective."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import ops

from bdl.latents import take_local_kl, without_local_kl
from bdl.layers import Alignment, GaussianCode, Variational, add_local_kl, collect_latents, report_latent

pytestmark = pytest.mark.core

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


class Code(keras.layers.Layer):
    """A code of one unit for each feature."""

    def call(self, x):
        report_latent(self, GaussianCode(x, 0.5))
        return x


class Attention(keras.layers.Layer):
    def call(self, x):
        report_latent(self, Alignment(ops.softmax(x), key_mask=np.array([True, True, True, False])))
        return x


def test_reports_carry_the_layers_names_and_arrays_of_one_shape():
    inputs = keras.Input((4,))
    network = keras.Model(inputs, Attention(name="align")(Code(name="code")(inputs)))
    with collect_latents() as reports:
        network(X)
    assert [report.layer for report in reports] == ["code", "align"]
    code, alignment = (report.latent for report in reports)
    np.testing.assert_array_equal(code.mean, X)
    np.testing.assert_array_equal(code.scale, np.full_like(X, 0.5))
    assert alignment.key_mask.shape == alignment.probabilities.shape == X.shape
    assert alignment.query_mask is None
    assert all(isinstance(values, np.ndarray) for values in (code.mean, alignment.probabilities))


def test_a_layer_called_twice_reports_twice():
    inputs, layer = keras.Input((4,)), Code(name="code")
    with collect_latents() as reports:
        keras.Model(inputs, layer(layer(inputs)))(X)
    assert [report.layer for report in reports] == ["code", "code"]


def test_without_a_collector_nothing_is_kept_and_an_inner_collector_has_its_own_list():
    layer = Code()
    layer(X)
    with collect_latents() as outer:
        with collect_latents() as inner:
            layer(X)
        assert (len(outer), len(inner)) == (0, 1)
        layer(X)
    layer(X)
    assert (len(outer), len(inner)) == (1, 1)


def test_symbolic_calls_and_compiled_functions_leave_nothing():
    with collect_latents() as reports:
        network = keras.Sequential([keras.Input((4,)), Code(), Attention(), keras.layers.Dense(1)])
        network.compile("sgd", "mse")
        network.fit(X, X[:, :1], verbose=0)
        network.predict(X, verbose=0)
    # Torch runs without a compiler here, op by op.
    assert reports == [] or keras.backend.backend() == "torch"
    assert all(isinstance(report.latent, (GaussianCode, Alignment)) for report in reports)


def test_training_is_the_same_with_and_without_a_collector():
    def trained(collects):
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), Code(), keras.layers.Dense(1)])
        network.compile("sgd", "mse")
        if collects:
            with collect_latents():
                network.fit(X, X[:, :1], verbose=0)
        else:
            network.fit(X, X[:, :1], verbose=0)
        return ops.convert_to_numpy(network.layers[0].kernel)

    np.testing.assert_array_equal(trained(True), trained(False))


def test_half_precision_is_reported():
    with collect_latents() as reports:
        Code(dtype="bfloat16")(X)
    np.testing.assert_allclose(reports[0].latent.mean.astype("float64"), X, rtol=0.01)


# Divergences


class Charged(keras.layers.Layer):
    """Adds the divergence `price` for each example."""

    def __init__(self, price, **kwargs):
        super().__init__(**kwargs)
        self.price = price

    def call(self, x):
        add_local_kl(self, self.price * ops.ones_like(x[:, 0]))
        return x


def taken(model):
    kl = take_local_kl(model)
    return None if kl is None else ops.convert_to_numpy(kl).tolist()


def charged_network():
    """Two layers, one of them shared: 1 + 10 + 10 nats for each example, and nothing of it a loss to Keras."""
    inputs, shared = keras.Input((4,)), Charged(10.0)
    return keras.Model(inputs, shared(Charged(1.0)(shared(inputs))))


def test_divergences_of_an_evaluation_are_added_up_and_taken_once():
    network = charged_network()
    network(X)
    assert network.losses == []
    assert taken(network) == [21.0] * 6
    assert taken(network) is None


def test_a_new_evaluation_forgets_the_one_before():
    network = charged_network()
    network(X)
    network(X[:2])
    assert taken(network) == [21.0] * 2


def test_a_stateless_evaluation_is_one_also_where_keras_has_no_call_of_the_network():
    network = charged_network()
    for size in (6, 3):
        network.stateless_call(network.trainable_variables, network.non_trainable_variables, X[:size])
    assert taken(network) == [21.0] * 3
    with keras.StatelessScope():
        network(X)
        network(X[:2])
        assert taken(network) == [21.0] * 2


def test_divergences_of_another_thread_stay_there():
    network = charged_network()
    network(X)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: taken(network)).result() is None
        pool.submit(network, X[:1]).result()
    assert taken(network) == [21.0] * 6


def test_evaluations_that_are_no_part_of_an_objective_leave_nothing():
    network = charged_network()
    network(X)
    with without_local_kl():
        network(X[:1])
    assert taken(network) == [21.0] * 6


@pytest.mark.parametrize("shape", [(), (6, 2), (6, 1)])
def test_a_divergence_that_is_not_one_number_for_each_example_is_refused(shape):
    with pytest.raises(ValueError, match=r"`kl` of layer code must be one number for each example.*Sum over the other"):
        add_local_kl(keras.layers.Layer(name="code"), ops.ones(shape))


def test_divergences_of_layers_inside_a_posterior_are_of_the_same_evaluation():
    network = keras.Sequential([keras.Input((4,)), Charged(1.0), *(inside_a_posterior(price) for price in (2.0, 4.0))])
    network(X)
    assert taken(network) == [7.0] * 6
    network.stateless_call(network.trainable_variables, network.non_trainable_variables, X)
    assert taken(network) == [7.0] * 6


class ChargedDense(keras.layers.Dense):
    """A Dense layer that adds a divergence."""

    def call(self, x, training=None):
        add_local_kl(self, self.price * ops.ones_like(x[:, 0]))
        return super().call(x)


def inside_a_posterior(price):
    layer = ChargedDense(4)
    layer.price = price
    return Variational(layer)


class TwoParts(keras.Model):
    """Called by its parts in a step of the user's."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Charged(1.0), Charged(2.0)

    def call(self, x):
        return self.decoder(self.encoder(x))


def test_a_model_that_is_called_in_parts_has_the_divergences_of_all():
    model = TwoParts()
    model(X)
    model.decoder(model.encoder(X[:3]))  # the call of the whole before it is forgotten
    assert taken(model) == [3.0] * 3
    model.encoder(X)
    model(X[:2])
    assert taken(model) == [3.0] * 2


def test_a_call_that_keras_does_not_know_of_is_an_evaluation_by_itself():
    layer = Charged(1.0)
    for _ in range(3):
        layer.call(ops.convert_to_tensor(X))
    assert taken(layer) == [1.0] * 6
