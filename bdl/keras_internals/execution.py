"""Calls of layers: what they leave behind, the values of variables in them, and what runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.trainers.epoch_iterator import EpochIterator

from bdl.keras_internals.structure import flatten_layers


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

        is_tensor = isinstance(values, torch.Tensor)
        if is_tensor and (values.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(values)):
            return False
        return not torch.compiler.is_compiling()
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


def rows_of(variable: keras.Variable, rows: Any) -> Any:
    """Some rows of a variable as a tensor; the others are not read.

    Args:
        variable: With the rows on its first axis.
        rows: Their numbers, `(n,)`, all of which there must be.

    Example:
    >>> rows_of(keras.Variable([1.0, 2.0, 3.0]), keras.ops.convert_to_tensor([2, 0])).shape[0]
    2
    """
    if keras.backend.backend() == "tensorflow" and get_stateless_scope() is None:
        import tensorflow as tf

        return tf.gather(variable.value, rows)  # of the resource: a tensor of it would be all rows
    if keras.backend.backend() == "jax":
        return current_value(variable).at[rows].get(mode="promise_in_bounds")
    return keras.ops.take(current_value(variable), rows, axis=0)


def assign_rows(variable: keras.Variable, rows: Any, values: Any) -> None:
    """Writes some rows of a variable in place, or on JAX so that a compiled step, which may, does.

    Args:
        variable: With the rows on its first axis.
        rows: Their numbers, `(n,)`, all of which there must be.
        values: `(n, ...)`.

    Example:
    >>> variable = keras.Variable([1.0, 2.0, 3.0])
    >>> assign_rows(variable, keras.ops.convert_to_tensor([2]), keras.ops.convert_to_tensor([9.0]))
    >>> keras.ops.convert_to_numpy(variable).tolist()
    [1.0, 2.0, 9.0]
    """
    backend, is_stateless = keras.backend.backend(), get_stateless_scope() is not None
    if backend == "jax":
        variable.assign(current_value(variable).at[rows].set(values, mode="promise_in_bounds"))
    elif is_stateless:
        variable.assign(keras.ops.scatter_update(current_value(variable), rows[:, None], values))
    elif backend == "tensorflow":
        import tensorflow as tf

        variable.value.scatter_update(tf.IndexedSlices(values, rows))
    else:
        import torch

        with torch.no_grad():
            variable.value[rows] = values


def innermost(optimizer: Any) -> Any:
    """The optimizer inside a `LossScaleOptimizer`, or another that wraps one; any other itself.

    Example:
    >>> adam = keras.optimizers.Adam()
    >>> innermost(keras.optimizers.LossScaleOptimizer(adam)) is adam, innermost(adam) is adam
    (True, True)
    """
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def rate_schedule(optimizer: Any) -> Any:
    """What an optimizer, or the one inside it, takes its learning rate from: a schedule, a variable or a function.

    Example:
    >>> schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    >>> rate_schedule(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule))) is schedule
    True
    """
    return getattr(innermost(optimizer), "_learning_rate", None)


def second_moments(optimizer: Any) -> list[Any] | None:
    """Variables in which an optimizer, or the one inside it, keeps mean squares of gradients, one for each variable.

    None where it keeps none, as SGD.

    Example:
    >>> optimizer = keras.optimizers.Adam()
    >>> optimizer.build([keras.Variable([1.0, 2.0])])
    >>> [tuple(variable.shape) for variable in second_moments(optimizer)], second_moments(keras.optimizers.SGD())
    ([(2,)], None)
    """
    return getattr(innermost(optimizer), "_velocities", None)


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


def is_recorded(x: Any) -> bool:
    """Whether a `tf.GradientTape` records what is done with a tensor of TensorFlow, so that a gradient is to come.

    TensorFlow has no public way to ask.
    """
    from tensorflow.python.eager.record import should_record_backprop

    return bool(should_record_backprop([x]))


def build_metrics(model: keras.Model, *data: Any, **settings: Any) -> None:
    """Makes the variables of the metrics that a model was compiled with, as Keras' `fit` on JAX and Torch does.

    It looks at a first batch only where they are not made yet, as `fit` does then: the orders of the rows that are
    drawn later are the same.

    Args:
        model: A built model.
        *data: Inputs, labels and sample weights.
        **settings: `batch_size` and `shuffle`, as of `fit`.
    """
    metrics = getattr(model, "_compile_metrics", None)
    if metrics is not None and not metrics.built:
        model._symbolic_build(iterator=EpochIterator(*data, **settings))
