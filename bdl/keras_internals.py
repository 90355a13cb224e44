"""The few things that Keras offers no public way to do. Nothing else in bdl touches a private Keras name."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras.src.backend import compute_output_spec
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.trainers.data_adapters import get_data_adapter
from keras.src.trainers.data_adapters.array_slicing import convert_to_sliceable


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


def row_picker(arrays: Any) -> Callable[[np.ndarray], Any]:
    """What gives rows of arrays of any kind that Keras takes, by their numbers.

    Args:
        arrays: Arrays, tensors, pandas or scipy sparse matrices in any structure; None stays None.

    Returns:
        A function of row numbers. Its arrays are dense NumPy ones, floating point numbers in Keras' `floatx`; tensors
        only of text and where rows differ in length.

    Example:
    >>> row_picker({"a": np.array([[1], [2], [3]]), "b": None})(np.array([2, 0]))
    {'a': array([[3],
           [1]]), 'b': None}
    """
    tables = convert_to_sliceable(arrays, target_backend="numpy")

    def pick(rows: np.ndarray) -> Any:
        return keras.tree.map_structure(lambda table: None if table is None else _rows(table, rows), tables)

    return pick


def _rows(table: Any, rows: np.ndarray) -> Any:
    picked = table[rows]
    if is_ragged(picked) or is_text(picked):
        return picked
    return np.asarray(table.convert_to_numpy(picked))


def is_ragged(values: Any) -> bool:
    """Whether these are rows of different lengths, which TensorFlow alone has a tensor for."""
    return keras.backend.backend() == "tensorflow" and hasattr(values, "flat_values")


def cut_as(padded: Any, ragged: Any) -> Any:
    """A tensor without its padding: its rows as long as those of a ragged one."""
    return ragged.from_tensor(padded, lengths=ragged.nested_row_lengths())


def is_sparse(values: Any) -> bool:
    """Whether this is a sparse tensor of TensorFlow or JAX; Keras has none on Torch.

    Example:
    >>> is_sparse(keras.ops.ones((2, 2)))
    False
    """
    return hasattr(values, "dense_shape") or hasattr(values, "todense")


def is_text(values: Any) -> bool:
    """Whether a tensor holds strings, which TensorFlow alone has a tensor for.

    Example:
    >>> is_text(np.ones(2))
    False
    """
    return keras.backend.backend() == "tensorflow" and getattr(values, "dtype", None) == "string"


def output_spec(network: keras.Model, inputs: Any) -> Any:
    """Shapes and dtypes of a network's outputs for Keras tensors as inputs.

    Args:
        network: A built network.
        inputs: In the structure that it is called with; None for an optional input that is left out.

    Example:
    >>> output_spec(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), keras.KerasTensor((5, 2))).shape
    (5, 1)
    """
    if any(leaf is None for leaf in keras.tree.flatten(inputs)):
        # `Function.compute_output_spec` asks every input for its shape.
        return compute_output_spec(network, inputs)
    return network.compute_output_spec(inputs)


def py_dataset_batches(data: keras.utils.PyDataset) -> Iterator[Any]:
    """What a `PyDataset` gives in one epoch, read by its workers as in `fit`, and told of its beginning and end."""
    adapter = get_data_adapter(data)
    adapter.on_epoch_begin()
    try:
        yield from adapter.get_numpy_iterator()
    finally:
        adapter.on_epoch_end()


def view(layer: keras.Layer, **attributes: Any) -> Any:
    """A stand-in for a layer that has some attributes of its own and shares all others, its variables among them.

    It evaluates the layer differently for one call, while the layer itself stays as it is for everyone else: other
    threads, other calls, saving. Make it at each call, so that it is never older than the layer. (`copy.copy` of a
    Keras layer would save the layer to a file and load it again.) It has its class's `call`, whatever takes the place
    of that in the layer at the moment.

    Args:
        layer: Any Keras layer.
        **attributes: Attributes of the stand-in.

    Example:
    >>> layer = keras.layers.Dense(1, activation="relu", kernel_initializer="ones")
    >>> x = -np.ones((1, 2), "float32")
    >>> float(layer(x)[0, 0]), float(view(layer, activation=None)(x)[0, 0])
    (0.0, -2.0)
    """
    stand_in = object.__new__(type(layer))
    # Past `__setattr__`, with which Keras and Torch keep lists of what a layer holds: these lists are the layer's.
    vars(stand_in).update(vars(layer))
    vars(stand_in).pop("call", None)  # bound to the layer, it would evaluate that one
    vars(stand_in).update(attributes)
    return stand_in


def take_losses(layer: keras.Layer) -> list[Any]:
    """What a layer and those inside it gave to `add_loss` since they were last called from outside, taken off them.

    `Layer.losses` has the regularizers of weights as well; these stay where they are.

    Example:
    >>> layer = keras.layers.ActivityRegularization(l1=1.0)
    >>> _ = layer(np.ones((2, 3), "float32"))
    >>> [float(loss) for loss in take_losses(layer)], len(layer.losses)
    ([3.0], 0)
    """
    losses = [loss for inner in flatten_layers(layer) for loss in inner._get_own_losses()]
    layer._clear_losses()
    return losses


def outermost_scope() -> Any:
    """The outermost `keras.StatelessScope` that is in force in this thread, or None.

    Scopes that say `is_transparent` do not count.

    Example:
    >>> with keras.StatelessScope() as scope:
    ...     with keras.StatelessScope():
    ...         outermost_scope() is scope
    True
    """
    scope, found = get_stateless_scope(), None
    while scope is not None:
        found = found if getattr(scope, "is_transparent", False) else scope
        scope = scope.original_scope
    return found


def call_context() -> Any:
    """What Keras keeps of the outermost layer call of this thread: one object for all calls inside it; None outside.

    Its `entry_layer` is the layer that was called from outside. Inside `Layer.stateless_call` there is one for each
    layer that the network calls.
    """
    return get_global_attribute("current_call_ctx")


def own_buffers(variables: Sequence[keras.Variable]) -> None:
    """Gives each variable a buffer of its own, after a `fit` that ended with averages (`use_ema`).

    On JAX Keras lets a variable and its average share one then, and the next `fit`, which donates both, fails. Whether
    an optimizer averages cannot be read off one that wraps another, so that this is for any.

    Example:
    >>> own_buffers([keras.Variable([1.0, 2.0])])
    """
    if keras.backend.backend() == "jax":
        for variable in variables:
            variable.assign(keras.ops.copy(variable))


def keras_mask(tensor: Any) -> Any:
    """The mask that Keras attached to a layer's output, or None."""
    return get_keras_mask(tensor)


def with_mask(tensor: Any, mask: Any) -> Any:
    """The tensor, with a mask on it as Keras attaches one to a layer's output."""
    set_keras_mask(tensor, mask)
    return tensor


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


def is_concrete(values: Any) -> bool:
    """Whether values are there to be read: not symbolic, not traced by a compiler, a scan or a gradient.

    Example:
    >>> is_concrete(np.ones(2)), is_concrete(keras.ops.ones(2)), is_concrete(keras.Input((2,)))
    (True, True, False)
    """
    if isinstance(values, keras.KerasTensor):
        return False
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return not tf.is_symbolic_tensor(values)
    if backend == "jax":
        import jax

        return not isinstance(values, jax.core.Tracer)
    if backend == "torch":
        import torch

        return not (torch.compiler.is_compiling() or (isinstance(values, torch.Tensor) and values.is_meta))
    return True


def is_tracing() -> bool:
    """Whether JAX differentiates, maps or compiles what is being run; on other backends False.

    Keras' own symbolic calls, which look for shapes only, do not count.

    Example:
    >>> is_tracing()
    False
    """
    if keras.backend.backend() != "jax":
        return False
    from jax._src.core import trace_state_clean

    return not (trace_state_clean() or in_symbolic_scope())


def standard_gamma(concentration: Any, generator: Any) -> Any:
    """Torch's differentiable gamma noise from a generator of one's own, which its public names do not take."""
    import torch

    return torch._standard_gamma(concentration, generator)


def stored_value(variable: keras.Variable) -> np.ndarray | None:
    """The value that a variable holds, whatever a `StatelessScope`, a trace or a replica would make of it.

    None where it holds none: while Keras trains on JAX it takes the values away, and `Variable.value` would give those
    of the initializer.

    Example:
    >>> variable = keras.Variable(1.0)
    >>> with keras.StatelessScope(state_mapping=[(variable, 2.0)]):
    ...     float(stored_value(variable))
    1.0
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            return np.asarray(variable._value.numpy())
    value = variable._value
    return None if value is None else keras.ops.convert_to_numpy(value)


def current_value(variable: keras.Variable) -> Any:
    """The value of a variable as a tensor, in a `StatelessScope` that of the scope.

    Raises:
        RuntimeError: if it has none, because Keras is training on JAX; `Variable.value` would give the initializer's.
    """
    scope = get_stateless_scope()
    in_scope = None if scope is None else scope.get_current_value(variable)
    if in_scope is not None:
        return in_scope
    if keras.backend.backend() == "jax":
        value = variable._value  # read once: a training in another thread may take it away at any moment
        if value is None:
            raise RuntimeError(f"Variable {variable.path} has no value while Keras trains on JAX.")
        return value
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(variable.value)  # Keras' own conversion would return the variable
    return keras.ops.convert_to_tensor(variable)


def rate_schedule(optimizer: Any) -> Any:
    """What an optimizer, or the one inside it, takes its learning rate from: a schedule, a variable or a function.

    Example:
    >>> schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    >>> rate_schedule(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule))) is schedule
    True
    """
    return getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None)


def training_batches(x: Any, y: Any, sample_weight: Any, class_weight: Any, batch_size: int) -> Iterator[Any]:
    """One pass over training data in their order, batch by batch, as `fit` unpacks them: NumPy arrays in tuples.

    Args:
        x: Whatever `keras.Model.fit` takes; what can be read once is used up.
        y: Labels, or None.
        sample_weight: As `fit` takes it, or None.
        class_weight: As `fit` takes it, or None.
        batch_size: For arrays only; data sets have their own.

    Example:
    >>> [len(batch[0]) for batch in training_batches(np.zeros((5, 2)), np.zeros(5), None, None, batch_size=4)]
    [4, 1]
    """
    adapter = get_data_adapter(x, y, sample_weight, batch_size=batch_size, class_weight=class_weight)
    adapter.on_epoch_begin()
    try:
        yield from adapter.get_numpy_iterator()
    finally:
        adapter.on_epoch_end()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A pure function, compiled by JAX, which would compile each operation by itself; as it is on other backends.

    Example:
    >>> float(compiled(lambda x: 2.0 * x)(1.5))
    3.0
    """
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    """Within this context Torch, which would otherwise keep what it needs for them, records no gradients."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.no_grad():
        yield


def num_replicas() -> int:
    """Replicas over which Keras sums the gradient of a loss: it expects each to return its share.

    Keras divides what goes through `compile(loss=...)` itself, but not the result of an overridden `compute_loss` or of
    a loss with its own `__call__`.
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync
