"""The engine of Monte Carlo prediction."""

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from scipy import special, stats

import bdl
from bdl.likelihoods import Categorical, Normal
from bdl.sampling import Kept, Sampler, add_probability, draw, label_entropy

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4)).astype("float32")


def test_label_entropy_in_nats():
    p = RNG.dirichlet(np.ones(4), size=5)
    found = keras.ops.convert_to_numpy(label_entropy(np.log(p).astype("float32")))
    np.testing.assert_allclose(found, stats.entropy(p, axis=-1), rtol=1e-5)
    with_impossible_class = np.log([[0.25, 0.75]]).astype("float32").repeat(2, axis=-1)
    with_impossible_class[:, 1:3] = -np.inf
    assert keras.ops.convert_to_numpy(label_entropy(with_impossible_class)) == pytest.approx(
        stats.entropy([0.25, 0.75]), rel=1e-6
    )


@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0])
def test_probabilities_add_up_by_their_logarithms(spread):
    log_p = -spread * RNG.exponential(size=(64, 5)).astype("float32")
    log_p[:, 0] = -np.inf  # never probable
    log_p[:40, 1] = -np.inf  # at first not
    log_p[7, 2] = np.nan
    scale, total = keras.ops.full((5,), -np.inf), keras.ops.zeros((5,))
    for sample in log_p:
        scale, total = add_probability(scale, total, keras.ops.convert_to_tensor(sample))
    found = keras.ops.convert_to_numpy(scale) + np.log(keras.ops.convert_to_numpy(total), dtype="float64")
    np.testing.assert_allclose(found, special.logsumexp(log_p.astype("float64"), axis=0), rtol=1e-6, atol=1e-6)


def test_functions_are_compiled_once_for_each_kind_of_call():
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    sampler = Sampler(network, Categorical())
    for _ in range(2):
        next(draw([sampler], X, 2, 3))
    assert len(sampler._compiled) == 1
    next(draw([sampler], X, 2, 3, consistent=True))
    assert len(sampler._compiled) == 2


def test_prediction_leaves_everything_but_the_seeds_as_it_was():
    network = keras.Sequential(
        [keras.Input((4,)), bdl.layers.DenseFlipout(3), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    )
    before = {variable.path: keras.ops.convert_to_numpy(variable) for variable in network.variables}
    next(draw([Sampler(network, Categorical())], X, 3, 3))
    changed = {
        variable.path.rsplit("/", 1)[-1]
        for variable in network.variables
        if np.any(before[variable.path] != keras.ops.convert_to_numpy(variable))
    }
    assert changed == {"seed_generator_state"}


def test_several_inputs_in_a_list_or_a_dict():
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    outputs = bdl.layers.DenseReparameterization(1)(keras.layers.Add()([first, second]))
    for inputs, x in (([first, second], [X, X]), ({"first": first, "second": second}, {"first": X, "second": X})):
        prediction = bdl.predict_distribution(keras.Model(inputs, outputs), x, Normal(scale=1.0), num_samples=2)
        assert prediction.mean.shape == (7,)


def test_a_subclassed_network_without_a_training_argument():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = bdl.layers.DenseFlipout(2)

        def call(self, x):
            return self.head(x)

    assert bdl.predict_distribution(Network(), X, Categorical(), num_samples=2).probabilities.shape == (7, 2)


def test_activations_are_found_through_wrappers_and_nested_models():
    inner = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3, activation="softmax")])
    for network in (
        inner,
        keras.Sequential([keras.Input((4,)), inner]),
        keras.Sequential([inner, keras.layers.Softmax()]),
    ):
        with pytest.raises(ValueError, match="ends in softmax"):
            Sampler(network, Categorical(from_logits=True))
    Sampler(inner, Categorical(from_logits=False))
    Sampler(inner, Normal())


# Noise depends on the seed and on an example's place, and on nothing else


def image_network():
    """One layer after another, so that each has to draw the same whatever the batch."""
    layers = [
        bdl.layers.InputFactors(),
        bdl.layers.Conv2DFlipout(4, 3, activation="relu"),
        bdl.layers.MCSpatialDropout2D(0.2),
        bdl.layers.Conv2DRank1(4, 2),
        keras.layers.Flatten(),
        bdl.layers.DenseLocalReparameterization(8),
        bdl.layers.MCDropout(0.2),
        bdl.layers.DenseReparameterization(8),
        bdl.layers.MCGaussianDropout(0.2),
        bdl.layers.ConcreteDropout(keras.layers.Dense(8)),
        bdl.layers.VariationalGaussianDropout(),
        bdl.layers.DenseFlipout(8),
        bdl.layers.MCAlphaDropout(0.2),
        bdl.layers.DenseRank1(3),
    ]
    return keras.Sequential([keras.Input((5, 5, 2)), *layers]), np.random.default_rng(1).normal(size=(22, 5, 5, 2))


def token_network():
    layers = [
        bdl.layers.EmbeddingRank1(20, 4),
        bdl.layers.LSTMReparameterization(4, return_sequences=True),
        keras.layers.TimeDistributed(bdl.layers.DenseFlipout(4)),
        keras.layers.Flatten(),
        bdl.layers.DenseFlipout(3),
    ]
    return keras.Sequential([keras.Input((6,), dtype="int32"), *layers]), np.arange(22 * 6).reshape(22, 6) % 20


def attention_network(estimator):
    inputs = [keras.Input((3, 4)), keras.Input((5, 4))]
    context = bdl.layers.LatentAttention(estimator=estimator)(inputs)
    outputs = bdl.layers.DenseFlipout(3)(keras.layers.Flatten()(context))
    rng = np.random.default_rng(2)
    return keras.Model(inputs, outputs), [rng.normal(size=(22, 3, 4)), rng.normal(size=(22, 5, 4))]


def dropout_network():
    """A plain network converted twice: posteriors, and every kind of dropout on."""
    inputs = keras.Input((5, 4))
    hidden = keras.layers.LSTM(4, dropout=0.2, recurrent_dropout=0.2, return_sequences=True)(inputs)
    hidden = keras.layers.Attention(dropout=0.2)([hidden, hidden])
    hidden = keras.layers.Flatten()(keras.layers.SpatialDropout1D(0.2)(hidden))
    plain = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dropout(0.2)(hidden)))
    sampled = bdl.convert.to_variational(plain, layers="last", estimator="flipout")
    return bdl.convert.to_mc_dropout(sampled), np.random.default_rng(3).normal(size=(22, 5, 4))


@pytest.mark.parametrize(
    ("build", "sizes"),
    [
        (image_network, (1, 8, 32)),
        (token_network, (8, 32)),  # recurrent layers take long to compile for each size
        (dropout_network, (8, 32)),
        (lambda: attention_network("gumbel"), (1, 8, 32)),
        (lambda: attention_network("dirichlet"), (1, 8, 32)),
    ],
    ids=["images", "tokens", "dropout", "gumbel", "dirichlet"],
)
def test_a_prediction_depends_on_its_seed_and_not_on_the_batch_size(build, sizes):
    network, x = build()

    def outputs(batch_size, seed=1):
        found = bdl.predict_distribution(network, x, Normal(scale=1.0), 3, batch_size, seed=seed, keep_outputs=True)
        return found.outputs

    expected = outputs(22)
    noise = np.abs(outputs(22, seed=2) - expected).max()
    assert noise > 1e-3
    for batch_size in sizes:  # to rounding: products of other sizes are summed in another order
        assert np.abs(outputs(batch_size) - expected).max() < 1e-3 * noise
    rows = keras.tree.map_structure(lambda leaf: leaf[8:16], x)
    other_place = bdl.predict_distribution(network, rows, Normal(scale=1.0), 3, seed=1, keep_outputs=True).outputs
    assert np.abs(other_place - expected[:, 8:16]).max() > 0.1 * noise


def test_what_is_frozen_changes_no_prediction_also_of_functions_that_were_compiled_before():
    """Keras takes values by their place among the trainable or the other variables; two of these have equal shapes."""
    layers = [keras.layers.Dense(4, bias_initializer="ones"), keras.layers.Dense(4), bdl.layers.DenseFlipout(2)]
    network = keras.Sequential([keras.Input((4,)), *layers])
    sampler = Sampler(network, Normal(scale=1.0))

    def outputs():
        ((found,),) = draw([sampler], X, 2, 7, seed=1, kept=Kept(outputs=True))
        return found[None]["outputs"]

    expected = outputs()
    for frozen in ([0], [1], [0, 2], [0, 1, 2]):
        for number, layer in enumerate(layers):
            layer.trainable = number not in frozen
        np.testing.assert_allclose(outputs(), expected, rtol=1e-5, atol=1e-6)


class Counter(keras.layers.Layer):
    """Adds to its inputs how often it was called before, as a stateful recurrent layer remembers."""

    stateful = True

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        before = 1.0 * self.count
        self.count.assign_add(1.0)
        return x + before


def test_stateful_layers_go_on_from_batch_to_batch_and_not_from_sample_to_sample():
    network = keras.Sequential([keras.Input((4,)), Counter()])

    def means():
        prediction = bdl.predict_distribution(network, np.zeros((6, 4)), Normal(scale=1.0), 3, batch_size=2)
        return prediction.mean[:, 0].tolist()

    assert means() == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    assert means() == [3.0, 3.0, 4.0, 4.0, 5.0, 5.0]


def mixed_network():
    layers = [
        bdl.layers.DenseFlipout(8, activation="relu"),
        bdl.layers.DenseLocalReparameterization(8, activation="relu"),
        bdl.layers.DenseRank1(8, activation="relu"),
        bdl.layers.MCDropout(0.2),
    ]
    return keras.Sequential([keras.Input((4,)), *layers, bdl.layers.DenseReparameterization(3)])


def in_threads(act, number=16):
    """What sixteen threads return that start together."""
    barrier = threading.Barrier(number)

    def run(index):
        barrier.wait()
        return act(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


@pytest.mark.parametrize("is_warm", [False, True])
def test_sixteen_threads_predict_exactly_what_one_does(is_warm):
    network = mixed_network()
    model = bdl.VariationalModel(network, Categorical())

    def predict(_):
        return model.predict_distribution(X, num_samples=4, seed=1).probabilities

    if is_warm:
        expected = predict(0)
        found = in_threads(predict)
    else:
        found = in_threads(predict)
        expected = bdl.predict_distribution(network, X, Categorical(), num_samples=4, seed=1).probabilities
    for each in found:
        np.testing.assert_array_equal(each, expected)


def test_without_a_seed_every_prediction_has_noise_of_its_own():
    network = mixed_network()
    found = in_threads(lambda _: bdl.predict_distribution(network, X, Categorical(), num_samples=2).probabilities)
    again = bdl.predict_distribution(network, X, Categorical(), num_samples=2).probabilities
    assert len({each.tobytes() for each in (*found, again)}) == 17


def test_predicting_beside_a_training_is_right_or_says_why_it_is_not():
    """Steps of SGD with rate 1 on a bias whose gradient is known: after k of them it is one of a few numbers."""
    inputs = keras.Input((4,))
    network = keras.Model(inputs, keras.layers.Concatenate()([bdl.layers.DenseFlipout(1)(inputs) * 0.0] * 2))
    biases = [keras.layers.Dense(1, kernel_initializer="zeros", name=f"copy_{copy}") for copy in range(2)]
    outputs = keras.layers.Add()([network.outputs[0], keras.layers.Concatenate()([bias(inputs) for bias in biases])])
    model = bdl.VariationalModel(keras.Model(inputs, outputs), Normal(scale=1.0), kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.01))
    zeros, targets = np.zeros((64, 4), "float32"), np.ones((64, 2), "float32")
    model.predict_distribution(zeros[:1], num_samples=1)
    problems, means, done = [], [], threading.Event()

    def serve():
        while not done.is_set():
            try:
                means.append(model.predict_distribution(zeros[:1], num_samples=1).mean[0])
            except RuntimeError as error:
                problems.append(str(error))

    server = threading.Thread(target=serve)
    server.start()
    model.fit(zeros, targets, batch_size=1, epochs=5, verbose=0)
    done.set()
    server.join()
    assert means or problems
    assert all("cannot be read while `fit` runs on JAX" in problem for problem in problems)
    assert all(first == second for first, second in means)  # never the weights of two different steps
