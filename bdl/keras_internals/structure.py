"""What a network is made of, and what it takes and gives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import keras
from keras.src.backend import compute_output_spec
from keras.src.models.functional import Functional


def flatten_layers(layer: keras.Layer) -> list[keras.Layer]:
    """The layer and every layer inside it, at any depth, each once.

    `Model.layers` lists direct children only, and a plain `Layer` has no public list at all.

    Example:
    >>> len(flatten_layers(keras.Sequential([keras.Sequential([keras.layers.Dense(1)])])))
    3
    """
    unique: dict[int, keras.Layer] = {}
    for inner in layer._flatten_layers():
        unique.setdefault(id(inner), inner)
    return list(unique.values())


def direct_layers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a layer holds itself, in its own order.

    Example:
    >>> [inner.name for inner in direct_layers(keras.layers.TimeDistributed(keras.layers.Dense(1, name="inner")))]
    ['inner']
    """
    return list(layer._flatten_layers(include_self=False, recursive=False))


def input_structure(model: keras.Model) -> Any:
    """Symbolic inputs of a Functional or Sequential model in the structure that it is called with; None of others."""
    functional = getattr(model, "_functional", None) or model
    return getattr(functional, "_inputs_struct", None)


def input_signature_of(model: keras.Model) -> list[Any]:
    """What `keras.Model.export` takes as `input_signature`, with a batch of any size where the model admits it.

    Keras reads it off a model's graph, or off the shapes that it was built with: those of the model itself, and not of
    a network that it holds. A model that is called with the inputs of its network says so by `is_called_like_network`.

    Raises:
        ValueError: if nothing tells what the inputs are.

    Example:
    >>> input_signature_of(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]))[0].shape
    (None, 4)
    """
    if getattr(model, "is_called_like_network", False):
        return input_signature_of(model.network)
    structure = input_structure(model)
    if structure is None:
        shapes = getattr(model, "_build_shapes_dict", None)
        if not shapes:
            raise ValueError(
                f"`input_signature` must be given for the {type(model).__name__} {model.name!r}, not be None: nothing "
                "tells its inputs. Call the model once on an example before, or pass for instance "
                'input_signature=[keras.InputSpec(shape=(None, 4), dtype="float32")].'
            )
        structure = symbolic_inputs(next(iter(shapes.values())))
        return [keras.tree.map_structure(lambda leaf: _spec((None, *leaf.shape[1:]), leaf), structure)]
    return [keras.tree.map_structure(lambda leaf: _spec(leaf.shape, leaf), structure)]


def _spec(shape: Sequence[int | None], leaf: Any) -> keras.InputSpec:
    return keras.InputSpec(shape=tuple(shape), dtype=leaf.dtype, name=leaf.name)


def output_structure(model: Any) -> Any:
    """Symbolic outputs of a Functional or built Sequential model in the structure that it returns; None of others.

    Example:
    >>> inputs = keras.Input((2,))
    >>> sorted(output_structure(keras.Model(inputs, {"a": inputs, "b": inputs + 1.0})))
    ['a', 'b']
    """
    functional = getattr(model, "_functional", None) or model
    return getattr(functional, "_outputs_struct", None)


def producer(tensor: Any) -> tuple[Any, int, list[Any]]:
    """The operation that made a symbolic tensor, which of its outputs the tensor is, and what it was made from.

    Example:
    >>> inputs = keras.Input((2,))
    >>> layer = keras.layers.Dense(1)
    >>> operation, index, sources = producer(layer(inputs))
    >>> operation is layer, index, sources[0] is inputs
    (True, 0, True)
    """
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        return None, 0, []
    operation, node, index = history
    return operation, index, list(operation._inbound_nodes[node].input_tensors)


def output_spec(network: keras.Model, inputs: Any) -> Any:
    """Shapes and dtypes of a network's outputs for Keras tensors as inputs.

    If the inputs have the shapes that the network declares, the outputs are those it declares, for a batch of any size.
    Otherwise it is traced.

    Args:
        network: A built network.
        inputs: In the structure that it is called with; None for an optional input that is left out.

    Example:
    >>> output_spec(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), keras.KerasTensor((5, 2))).shape
    (None, 1)
    """
    if getattr(network, "is_called_like_network", False):
        return output_spec(network.network, inputs)
    leaves = keras.tree.flatten(inputs)
    if _has_call_besides_its_graph(network) or any(leaf is None for leaf in leaves):
        # `Functional.compute_output_spec` does not look at `call`, and asks every input for its shape.
        return compute_output_spec(network, inputs)
    structure = input_structure(network)
    declared = [] if structure is None else keras.tree.flatten(structure)
    if [(None, *leaf.shape[1:]) for leaf in leaves] == [tensor.shape for tensor in declared]:
        inputs = keras.tree.pack_sequence_as(inputs, declared)
    return network.compute_output_spec(inputs)


def _has_call_besides_its_graph(network: keras.Model) -> bool:
    is_graph = isinstance(network, (Functional, keras.Sequential))
    return is_graph and type(network).call not in (Functional.call, keras.Sequential.call)


def symbolic_inputs(shape: Any) -> Any:
    """Keras tensors of a shape, or of a list or dict of shapes, to build a network of any class with.

    Example:
    >>> [tensor.shape for tensor in symbolic_inputs([(None, 2), (None, 3)])]
    [(None, 2), (None, 3)]
    """
    if isinstance(shape, dict):
        return {name: symbolic_inputs(part) for name, part in shape.items()}
    if len(shape) and isinstance(shape[0], (tuple, list)):
        return [symbolic_inputs(part) for part in shape]
    return keras.KerasTensor(tuple(shape), "float32")


def set_signature(layer_class: type, signature: Any) -> None:
    """Gives a class whose `__init__` takes `**kwargs` the signature that its users should see."""
    layer_class.__signature__ = signature  # type: ignore[attr-defined]


def adopt_signatures(wrapper: keras.Layer, layer: keras.Layer) -> None:
    """Lets Keras build and call a wrapper as it would the layer inside: with its inputs, masks and shapes by name.

    Keras reads these names from signatures: `query_mask` is filled in where `call` has an argument of that name, and
    `build` gets `query_shape` and `value_shape` where it has those. The wrapper's `call` also takes `training`.

    Args:
        wrapper: A layer whose `call` and `build` take any arguments.
        layer: The layer that it hands them to.
    """
    call = inspect.signature(layer.call)
    if "training" not in call.parameters:
        training = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None)
        named = [parameter for parameter in call.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        rest = [parameter for parameter in call.parameters.values() if parameter.kind is parameter.VAR_KEYWORD]
        call = call.replace(parameters=[*named, training, *rest])
    wrapper._call_signature = call
    wrapper.call_signature_parameters = list(call.parameters)
    wrapper._call_has_training_arg = True
    wrapper._call_has_mask_arg = "mask" in call.parameters
    wrapper._call_has_context_arg = {name: name in call.parameters for name in wrapper._call_context_args}

    build, build_signature = wrapper.build, inspect.signature(layer.build)

    @functools.wraps(build)
    def build_and_record(*args: Any, **kwargs: Any) -> None:
        build(*args, **kwargs)
        # By the names of the layer inside; saving and `summary` read them.
        wrapper._build_shapes_dict = dict(build_signature.bind(*args, **kwargs).arguments)

    build_and_record.__signature__ = build_signature  # type: ignore[attr-defined]
    wrapper.build = build_and_record
