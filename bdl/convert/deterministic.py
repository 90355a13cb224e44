"""Back to a plain Keras model: posterior means in place of posteriors."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import keras
import numpy as np
from keras import layers as keras_layers
from keras import ops

from bdl.convert.rewiring import ConvertedModel
from bdl.estimators.weights import FactoredWeight
from bdl.keras_internals import flatten_layers
from bdl.layers import InputFactors, NormalLatent, TemperatureScaling, Variational
from bdl.model import VariationalModel


def to_deterministic(model: keras.Model) -> keras.Model:
    """The plain Keras model of a Bayesian one: posterior means as weights, dropout off at prediction.

    It needs no bdl to be loaded or exported: `export` writes it as SavedModel, ONNX or OpenVINO wherever Keras does (a
    conversion's network is your own: call it once on data first, for Keras exports to ONNX only what was called).
    Its predictions are those of `bdl.mean_weights(model)`; they are not the predictive mean, and say nothing about
    what the model does not know.

    Args:
        model: A `bdl.VariationalModel`, a conversion (`to_variational`, `to_mc_dropout`), or a built Functional or
            Sequential Keras model with bdl's layers in it.

    Returns:
        For a conversion, the network that was converted, whose weights are shared with it. Otherwise a new model with
        copies of the weights.

    Raises:
        ValueError: if the model is a subclassed one with bdl's layers inside, is not built, or holds factors that
            cannot be multiplied into their kernel.

    Example:
    >>> import bdl
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> plain = to_deterministic(network)
    >>> type(plain.layers[0]).__name__
    'Dense'
    """
    if isinstance(model, VariationalModel):
        return to_deterministic(model.network)
    if isinstance(model, ConvertedModel):
        _check_no_factors(model)
        return to_deterministic(model.network)
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"`model` must be a built keras.Model, not {model!r}. Build it, or call it once.")
    if not any(_is_ours(layer) for layer in flatten_layers(model)):
        return model
    clone = _clone(model)
    _call_once(clone)
    return clone


def _clone(model: keras.Model) -> keras.Model:
    clone = _plain_model(model)
    _copy_weights(model, clone)
    left = [layer.name for layer in flatten_layers(clone) if _is_ours(layer)]
    if left:
        raise ValueError(f"`model` holds bdl's layers inside others, where they cannot be taken out: {left}.")
    return clone


def _call_once(model: keras.Model) -> None:
    """On symbols, for nothing but that Keras exports to ONNX only what was called."""
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    model(keras.tree.map_structure(lambda each: keras.KerasTensor(each.shape, each.dtype), inputs))


def _plain_model(model: keras.Model) -> keras.Model:
    """The model from its configuration, with a plain layer for each of ours; its weights are new."""
    config = _graph(model)
    if config is None:
        raise ValueError(
            f"`model` {model.name!r} is a {type(model).__name__}: bdl's layers can be taken out of Functional and "
            "Sequential models only. Build the plain model yourself and convert it with to_variational, which "
            "remembers it."
        )
    for entry in config["layers"]:
        if entry["class_name"] == "InputLayer":
            continue
        layer = model.get_layer(entry["config"]["name"])
        plain = _plain(layer)
        entry.update(keras.saving.serialize_keras_object(plain))
        # A call is recorded with all of its arguments, also those that the plain layer does not know.
        accepted = inspect.signature(type(plain).call).parameters
        for node in entry.get("inbound_nodes", []):
            node["kwargs"] = {name: value for name, value in node["kwargs"].items() if name in accepted}
    return type(model).from_config(config)


def _copy_weights(model: keras.Model, clone: keras.Model) -> None:
    if isinstance(model, ConvertedModel):
        clone.set_weights(_mean_values(model.network.weights, getattr(model, "posteriors", [])))
        return
    for layer in model.layers:
        plain = clone.get_layer(layer.name)
        if isinstance(layer, keras.Model):
            _copy_weights(layer, plain)
        else:
            plain.set_weights(_plain_weights(layer))


def _graph(model: keras.Model) -> dict[str, Any] | None:
    """Configuration of a Functional or Sequential model; None of a subclassed one."""
    try:
        config = copy.deepcopy(model.get_config())
    except NotImplementedError:
        return None
    return config if "layers" in config else None


def _plain(layer: keras.Layer) -> keras.Layer:
    """An unbuilt plain layer with the name and settings of the given one."""
    if isinstance(layer, ConvertedModel):
        return type(layer.network).from_config({**layer.network.get_config(), "name": layer.name})
    if isinstance(layer, InputFactors):
        factors, centre = (ops.convert_to_numpy(part) for part in (layer.layer.kernel, layer.centre))
        return keras_layers.Rescaling(factors.tolist(), ((1.0 - factors) * centre).tolist(), name=layer.name)
    if isinstance(layer, keras.Model):
        return _plain_model(layer)
    if isinstance(layer, (keras_layers.Bidirectional, keras_layers.TimeDistributed)):
        inner = layer.forward_layer if isinstance(layer, keras_layers.Bidirectional) else layer.layer
        config = {**layer.get_config(), "layer": keras.saving.serialize_keras_object(_plain(inner))}
        config.pop("backward_layer", None)
        return type(layer).from_config(config)
    if not _is_ours(layer):
        return type(layer).from_config(layer.get_config())
    if isinstance(layer, keras_layers.Wrapper):
        config = {**layer.layer.get_config(), "name": layer.name}
        return type(layer.layer).from_config(config)
    if isinstance(layer, TemperatureScaling):
        return keras_layers.Rescaling(1 / float(ops.convert_to_numpy(layer.temperature)), name=layer.name)
    if isinstance(layer, NormalLatent):
        return keras_layers.Dense(layer.units, name=layer.name)
    if hasattr(layer, "rate"):
        return keras_layers.Dropout(layer.rate, name=layer.name)
    return keras_layers.Identity(name=layer.name)


def _plain_weights(layer: keras.Layer) -> list[np.ndarray]:
    """Weights for the plain layer: posterior means, rank-1 factors multiplied in."""
    if isinstance(layer, keras_layers.Bidirectional):
        return _plain_weights(layer.forward_layer) + _plain_weights(layer.backward_layer)
    if isinstance(layer, keras_layers.TimeDistributed):
        return _plain_weights(layer.layer)
    if not _is_ours(layer):
        return layer.get_weights()
    if isinstance(layer, NormalLatent):
        return layer.mean_head.get_weights()
    if not isinstance(layer, keras_layers.Wrapper) or isinstance(layer, InputFactors):
        return []  # without weights, or with their means in the settings
    return _mean_values(layer.layer.weights, [layer] if isinstance(layer, Variational) else [])


def _mean_values(variables: list[keras.Variable], posteriors: list[Variational]) -> list[np.ndarray]:
    """Values of the variables, with the rank-1 factors of the posteriors multiplied in."""
    values = {id(variable): ops.convert_to_numpy(variable) for variable in variables}
    for posterior in posteriors:
        for weight in posterior.sampled_weights.values():
            if isinstance(weight, FactoredWeight):
                values[id(weight.mean)] = _with_factors(posterior, weight, values[id(weight.mean)])
    return list(values.values())


_HOLD_FACTORS = (
    keras_layers.Dense,
    keras_layers.Embedding,
    keras_layers.Conv1D,
    keras_layers.Conv2D,
    keras_layers.Conv3D,
)


def _with_factors(layer: Variational, weight: FactoredWeight, kernel: np.ndarray) -> np.ndarray:
    if not isinstance(layer.layer, _HOLD_FACTORS):
        raise ValueError(
            f"Layer {layer.name} is a {type(layer.layer).__name__} with rank-1 factors, which do not fit into its "
            "kernel. Predict within bdl.mean_weights(model) instead."
        )
    inputs, outputs = (
        ops.convert_to_numpy(weight.posterior.factor_mean(weight.variables, side)).ravel()
        for side in ("input", "output")
    )
    return kernel * inputs[:, None] * outputs


def _check_no_factors(model: ConvertedModel) -> None:
    for posterior in getattr(model, "posteriors", []):
        if not all(weight.posterior.samples_weights for weight in posterior.sampled_weights.values()):
            raise ValueError(
                f"Layer {posterior.layer.name} has rank-1 factors, and its network's weights are only part of its "
                "mean. Predict within bdl.mean_weights(model) instead."
            )


def _is_ours(layer: keras.Layer) -> bool:
    return any(base.__module__.startswith("bdl.layers") for base in type(layer).__mro__)
