"""Programs that XLA compiles on TensorFlow: one for all networks whose graphs are equal.

TensorFlow keeps what XLA compiled for as long as the process lives, also when the function is gone: megabytes for each
network that predicts. A sampler's function is pure, the values of the variables are arguments of it. So members of an
ensemble, folds of a cross-validation and models that a service loads again have one graph, and need one program.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_PROGRAMS = 128
"""Graphs that are kept, the last ones used. What XLA compiled for others stays in TensorFlow, and is compiled again."""

_LABELS = frozenset({"_gradient_op_type", "_user_specified_name"})
"""Attributes of nodes and arguments that are names for people and for gradients: a prediction takes none."""


def shared_program(function: Callable[..., Any]) -> Callable[..., Any]:
    """A pure function of tensors, compiled by XLA once for all such functions with equal graphs.

    A function that reads a resource, as a variable or a table, is compiled for itself. None has a gradient.

    Args:
        function: From tensors in dicts, lists and tuples, and None, to such tensors. It is traced for each signature.

    Example:
    >>> import tensorflow as tf
    >>> one, other = (shared_program(lambda x: 2.0 * x + 1.0) for _ in range(2))
    >>> float(one(tf.constant(1.0))), float(other(tf.constant(2.0)))
    (3.0, 5.0)
    """
    import tensorflow as tf

    traced = tf.function(function, autograph=False)

    @functools.cache
    def program_of(concrete: Any) -> Callable[..., Any]:
        is_pure = not any(tensor.dtype in (tf.resource, tf.variant) for tensor in concrete.captured_inputs)
        return _program(_Trace(_identity(concrete), concrete)) if is_pure else _compiled(concrete)

    def run(*args: Any) -> Any:  # as a graph that calls the program it would leave almost a MiB behind
        return program_of(traced.get_concrete_function(*args))(*args)

    return run


def forget() -> None:
    """Compiles anew from here on, for functions that are made later.

    For what TensorFlow looks at when it compiles, as `tf.config.experimental.enable_op_determinism`.
    """
    _program.cache_clear()


@dataclass(frozen=True)
class _Trace:
    """A traced function, equal to others that compute the same in the same way.

    Args:
        identity: Of what it computes.
        concrete: TensorFlow's `ConcreteFunction`.
    """

    identity: str
    concrete: Any = field(compare=False)


@functools.lru_cache(maxsize=_PROGRAMS)
def _program(trace: _Trace) -> Callable[..., Any]:
    return _compiled(trace.concrete)


def _compiled(concrete: Any) -> Callable[..., Any]:
    import tensorflow as tf

    return tf.function(lambda *args: concrete(*args), jit_compile=True, autograph=False)


def _identity(concrete: Any) -> str:
    """Equal for two traced functions if one may take the other's place, with its arguments and its results."""
    import tensorflow as tf

    graph = concrete.graph.as_graph_def()
    functions = _Functions(graph.library.function)
    places = _places([], graph.node)
    arguments = [places[tensor.op.name] for tensor in concrete.inputs]
    constants = [(tensor.dtype.name, tensor.shape, tensor.numpy().tobytes()) for tensor in concrete.captured_inputs]
    results = tf.nest.map_structure(lambda x: (places[x.op.name], x.value_index), concrete.structured_outputs)
    controls = sorted(places[operation.name] for operation in concrete.graph.control_outputs)
    signature = concrete.structured_input_signature
    nodes = functions.of_nodes(graph.node, places)
    return _digest(signature, arguments, constants, results, controls, nodes)


class _Functions:
    """What the functions that a graph calls compute, whatever they are called.

    Args:
        definitions: The graph's library.
    """

    def __init__(self, definitions: Iterable[Any]) -> None:
        self._definitions = {definition.signature.name: definition for definition in definitions}
        self._found: dict[str, str] = {}

    def of_nodes(self, nodes: Sequence[Any], places: dict[str, int]) -> str:
        """What nodes compute, with their places instead of their names, which count the traces of a process."""
        inputs = ([_input(name, places) for name in node.input] for node in nodes)
        kinds = ((self._operation(node.op), node.device, self._attributes(node.attr)) for node in nodes)
        return _digest(*zip(kinds, inputs, strict=True))

    def _operation(self, name: str) -> str:
        return self._of(name) if name in self._definitions else name

    def _of(self, name: str) -> str:
        if name not in self._found:
            function = self._definitions[name]
            arguments = [argument.name for argument in function.signature.input_arg]
            places = _places(arguments, function.node_def)
            results = [_input(function.ret[result.name], places) for result in function.signature.output_arg]
            controls = sorted(places[node] for node in function.control_ret.values())
            of_arguments = sorted((place, self._attributes(each.attr)) for place, each in function.arg_attr.items())
            types = [argument.type for argument in function.signature.input_arg]
            attributes = self._attributes(function.attr)
            nodes = self.of_nodes(function.node_def, places)
            self._found[name] = _digest(types, of_arguments, results, controls, attributes, nodes)
        return self._found[name]

    def _attributes(self, attributes: Any) -> list[tuple[str, Any]]:
        return [(key, self._value(attributes[key])) for key in sorted(attributes) if key not in _LABELS]

    def _value(self, value: Any) -> Any:
        called = [value.func] if value.HasField("func") else value.list.func
        if called:
            return [(self._of(each.name), self._attributes(each.attr)) for each in called]
        return value.SerializeToString(deterministic=True)


def _places(arguments: Sequence[str], nodes: Iterable[Any]) -> dict[str, int]:
    return {name: place for place, name in enumerate([*arguments, *(node.name for node in nodes)])}


def _input(name: str, places: dict[str, int]) -> tuple[bool, int, list[str]]:
    """`^node`, which only comes before; `node`; `node:1`; or in a function `node:output:1`."""
    node, *output = name.removeprefix("^").split(":")
    return name.startswith("^"), places[node], output


def _digest(*parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(repr(part).encode())
        found.update(b"\0")
    return found.hexdigest()
