"""Small layers with a latent alignment, and a call of them as a function of their inputs and weights."""

import warnings
from typing import Any

import keras
import numpy as np
from gradients import gradients
from keras import ops

import bdl
from bdl.latents import take_local_kl
from bdl.layers import LatentAttention
from bdl.layers.latent_attention.alignment_estimators import VARIATIONAL

BATCH, QUERIES, KEYS, DIM, TARGET, CLASSES = 3, 4, 5, 6, 2, 4
_RNG = np.random.default_rng(0)
QUERY = _RNG.normal(size=(BATCH, QUERIES, DIM)).astype("float32")
VALUE = _RNG.normal(size=(BATCH, KEYS, DIM)).astype("float32")
TARGETS = _RNG.normal(size=(BATCH, QUERIES, TARGET)).astype("float32")
LABELS = _RNG.integers(CLASSES, size=(BATCH, QUERIES))
QUERY_MASK = np.arange(QUERIES) < np.array([[4], [3], [1]])
VALUE_MASK = np.arange(KEYS) < np.array([[5], [2], [3]])


def array(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def latent(estimator: str, decoder: Any = "dense", **arguments: Any) -> LatentAttention:
    """A layer with an inference network, where its estimator has one, and with a decoder unless that is None."""
    if estimator in VARIATIONAL:
        arguments = {"inference_network": "dense", **arguments}
    decoder = keras.layers.Dense(CLASSES, name="decoder") if decoder == "dense" else decoder
    return LatentAttention(estimator=estimator, decoder=decoder, **{"seed": 0, "score_mode": "scaled_dot", **arguments})


def built(estimator: str, decoder: Any = "dense", dim: int = DIM, **arguments: Any) -> LatentAttention:
    """The same, built with weights that depend on nothing but their shapes."""
    layer = latent(estimator, decoder, **arguments)
    shapes = [(None, None, dim), (None, None, dim)]
    layer.build(shapes, (None, None, TARGET)) if layer.is_variational else layer.build(shapes)
    for number, weight in enumerate(layer.trainable_weights):
        weight.assign(np.random.default_rng(number).normal(size=weight.shape))
    return layer


def network(layer: LatentAttention, **arguments: Any) -> keras.Model:
    """A model of queries, values and, where there is an inference network, features of the target."""
    inputs = [keras.Input((QUERIES, DIM)), keras.Input((KEYS, DIM))]
    if not layer.is_variational:
        return keras.Model(inputs, layer(inputs, **arguments))
    target = keras.Input((QUERIES, TARGET))
    return keras.Model([*inputs, target], layer(inputs, target=target, **arguments))


def quiet_model(network: keras.Model, likelihood: bdl.likelihoods.Likelihood, **arguments: Any) -> bdl.VariationalModel:
    """A model without the warning that nothing in it is variational, which is true of marginal and soft alignments."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`network` has no variational layer")
        return bdl.VariationalModel(network, likelihood, **arguments)


def data_of(model: keras.Model) -> list[np.ndarray]:
    return [QUERY, VALUE, TARGETS][: len(model.inputs)]


def called(layer: LatentAttention, inputs: list[Any], training: bool, **arguments: Any) -> tuple[Any, Any]:
    """Outputs and local KL `(batch,)` of a call that leaves the layer as it was, seeds included.

    Args:
        layer: A built layer.
        inputs: Query, value and target.
        training: Whether q is at work.
        **arguments: Of the call.
    """
    weights, state = (
        [variable.value for variable in part] for part in (layer.trainable_variables, layer.non_trainable_variables)
    )
    return compiled(lambda *values: _called(layer, *values, training, arguments))(weights, state, inputs)


def all_gradients(layer: LatentAttention, inputs: list[Any], loss: Any, **arguments: Any) -> list[np.ndarray]:
    """Gradients of `loss(outputs, kl)` in training, of the inputs and then of the trainable weights."""
    state = [variable.value for variable in layer.non_trainable_variables]
    weights = [ops.convert_to_tensor(array(variable)) for variable in layer.trainable_variables]

    def of_values(values: list[Any]) -> Any:
        return loss(*_called(layer, values[3:], state, values[:3], True, arguments))

    values = [*(ops.convert_to_tensor(value) for value in inputs), *weights]
    return [array(value) for value in compiled(lambda values: gradients(of_values, values))(values)]


def compiled(function: Any) -> Any:
    """JAX is slow unless it compiles as a whole; the others are not."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def _called(layer: Any, weights: Any, state: Any, inputs: Any, training: bool, arguments: Any) -> tuple[Any, Any]:
    query, value, target = (ops.convert_to_tensor(each) for each in inputs)
    if layer.is_variational:
        arguments = {**arguments, "target": target}
    outputs, _ = layer.stateless_call(weights, state, [query, value], training=training, **arguments)
    kl = take_local_kl(layer)
    return outputs, ops.zeros((query.shape[0],)) if kl is None else kl
