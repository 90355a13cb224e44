"""Many forward passes of one network, compiled: the engine under every Monte Carlo prediction.

A batch is evaluated `num_samples` times inside one compiled loop that carries the network's state (its seeds), so that
a prediction costs one call per batch and not one per sample.

Every batch starts from the same seeds, and an example's own noise follows its place in the data (`random.examples`): a
prediction depends on its seed, and neither on the batch size nor on what other threads do. It reads the weights once,
at its start, and writes nothing back but the seeds that it used up, before it begins, and what stateful layers carry
from one call to the next. Values go by variable: what is frozen may change between two predictions.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl import random
from bdl.estimators.weights import whole_functions
from bdl.keras_internals import current_value, dealt_out, flatten_layers, output_spec
from bdl.latents import without_local_kl
from bdl.layers.noise_layers import SEED_KEY
from bdl.likelihoods import Likelihood, Mixture
from bdl.likelihoods.heads import Heads, Likelihoods
from bdl.random import Tensor
from bdl.sampling.programs import shared_program
from bdl.sampling.running import SUMS, Kept, no_samples, with_sample
from bdl.training.batches import num_rows, symbolic
from bdl.training.checks import check_outputs

_claims = threading.Lock()
"""Two predictions without a seed, also of one model by two samplers, must not begin at the same seeds."""


@dataclass(frozen=True)
class _Order:
    """Places in `network.variables`, which do not depend on what is frozen, of the lists that Keras takes values in.

    Args:
        trainable: Of the trainable variables at present.
        others: Of all others.
        seeds: Of the seeds among them.
    """

    trainable: list[int]
    others: list[int]
    seeds: set[int]

    @classmethod
    def of(cls, network: keras.Model) -> _Order:
        places = {id(variable): place for place, variable in enumerate(network.variables)}
        trainable = [places[id(variable)] for variable in network.trainable_variables]
        others = [places[id(variable)] for variable in network.non_trainable_variables]
        seeds = {place for place, variable in enumerate(network.variables) if variable.path.endswith(SEED_KEY)}
        return cls(trainable, others, seeds)


class Sampler:
    """Evaluates one network many times; keeps its compiled functions.

    Args:
        network: A built Keras model.
        likelihood: What its outputs mean; of several outputs a dict or list.
        weights_lock: Held while the weights are read, so that a training step in another thread comes before or after.

    Raises:
        ValueError: if likelihoods and outputs do not fit.
    """

    def __init__(self, network: keras.Model, likelihood: Likelihoods, weights_lock: Any = None) -> None:
        self.network = network
        self._weights_lock = contextlib.nullcontext() if weights_lock is None else weights_lock
        self._lock = threading.RLock()
        self._given = likelihood
        self._heads = Heads(likelihood, network)
        self.heads: dict[str | None, Likelihood] = {}
        self._structure: Any = None
        self._compiled: dict[tuple[int, bool, Kept, bool], Callable[..., Any]] = {}

    def serves(self, likelihood: Likelihoods) -> bool:
        """Whether it would sample the same with this likelihood: the same object, or one with equal settings only."""
        one, other = ([*_paths(each)] for each in (self._given, likelihood))
        return len(one) == len(other) and all(
            a[0] == b[0] and _is_equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
        )

    def pack(self, values: dict[str | None, Any]) -> Any:
        """Values by output in the structure of the likelihoods, or where one serves all outputs in theirs."""
        return self._heads.pack(values, self._structure)

    def prepare(
        self, inputs: Any, num_samples: int, consistent: bool, seed: int | None, kept: Kept
    ) -> tuple[Callable[..., Any], list[Any], list[Any]]:
        """What a prediction begins with, for batches like these inputs.

        Returns:
            The compiled function, from values of the variables, inputs and the place of the first of them to new
            values and results; the variables' values now; and what each batch starts from: a value for each variable
            that is a seed, None for the others.
        """
        with self._lock:
            if not self.network.built:
                self.network(keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[:1], inputs))
            self._look(inputs)
            run = self._function(num_samples, consistent, kept, _is_numeric(inputs))
        with self._weights_lock:
            seeds = self.seeds(seed)
            return run, _values(self.network.variables), seeds

    def _look(self, inputs: Any) -> None:
        """Matches likelihoods with outputs, which are known once there are inputs, and looks at these."""
        if not self.heads:
            outputs = output_spec(self.network, symbolic(inputs))
            check_outputs(self.network, self._heads, inputs, outputs)
            self._match(outputs)

    def _match(self, outputs: Any) -> None:
        self.heads = self.heads or self._heads.by_name(outputs)
        self._structure = keras.tree.map_structure(lambda output: None, outputs)

    def _function(self, num_samples: int, consistent: bool, kept: Kept, is_numeric: bool) -> Callable[..., Any]:
        key = (num_samples, consistent, kept, is_numeric)
        if key not in self._compiled:
            loop = self._loop(num_samples, consistent, kept)
            self._compiled[key] = _compile(loop, self.network, is_numeric)
        return self._compiled[key]

    def evaluate(
        self, values: list[Any], x: Any, start: Any, consistent: bool
    ) -> tuple[dict[str | None, Tensor], list[Any]]:
        """One sample of a batch, in code that may be compiled.

        Args:
            values: A value for each variable of the network.
            x: The batch.
            start: Place of its first example in the data.
            consistent: Whether examples share their noise.

        Returns:
            Outputs by head, and what each variable holds afterwards.
        """
        accepts_training = "training" in inspect.signature(self.network.call).parameters
        kwargs = {"training": False} if accepts_training else {}
        order = _Order.of(self.network)
        size = num_rows(x)
        noise = whole_functions() if consistent else contextlib.nullcontext()
        with noise, random.examples(start, size), without_local_kl():
            parts = [[values[place] for place in places] for places in (order.trainable, order.others)]
            outputs, state = self.network.stateless_call(*parts, x, **kwargs)
        self._match(outputs)
        flat = self._heads.flat(outputs)
        after = list(values)
        for place, value in zip(order.others, state, strict=True):
            after[place] = value
        return {head: ops.cast(flat[head], "float32") for head in self.heads}, after

    def _loop(self, num_samples: int, consistent: bool, kept: Kept) -> Callable[..., Any]:
        def run(values: list[Any], x: Any, start: Any) -> tuple[list[Any], Any]:
            order = _Order.of(self.network)

            def step(number: Any, carry: Any) -> Any:
                state, results = carry
                # Seeds go on from sample to sample; all other state is at each as it was at the first.
                before = list(values)
                for place, value in zip(order.others, state, strict=True):
                    before[place] = value if place in order.seeds else before[place]
                outputs, after = self.evaluate(before, x, start, consistent)
                recorded = {
                    str(name): with_sample(head, results[str(name)], outputs[name], number)
                    for name, head in self.heads.items()
                }
                return [after[place] for place in order.others], recorded

            first = [ops.convert_to_tensor(values[place]) for place in order.others]
            state, results = ops.fori_loop(0, num_samples, step, (first, self._empty(x, num_samples, kept)))
            after = list(values)
            for place, value in zip(order.others, state, strict=True):
                after[place] = value
            return after, results

        return run

    def _empty(self, x: Any, num_samples: int, kept: Kept) -> dict[str, dict[str, Tensor]]:
        """What the loop fills."""
        spec = self._heads.flat(output_spec(self.network, symbolic(x)))
        return {
            str(name): no_samples(head, (num_rows(x), *spec[name].shape[1:]), num_samples, kept)
            for name, head in self.heads.items()
        }

    def to_arrays(self, results: Any, size: int, kept: Kept) -> dict[str | None, dict[str, np.ndarray]]:
        """One batch's results as NumPy arrays, without the padding; parameters come from the outputs."""
        arrays: dict[str | None, dict[str, np.ndarray]] = {}
        for name, head in self.heads.items():
            found = dict(results[str(name)])
            if kept.parameters and not head.is_classifier:
                found.update(head.parameters(found["outputs"]))
            if not kept.outputs:
                found.pop("outputs", None)
            arrays[name] = {
                key: ops.convert_to_numpy(value)[slice(size) if key in SUMS else (slice(None), slice(size))]
                for key, value in found.items()
            }
        return arrays

    def seeds(self, seed: int | None) -> list[Any]:
        """What each batch starts from: a value for each variable that is a seed, None for the others.

        Without a seed the layers' own are taken, and moved on at once.
        """
        found: list[Any] = []
        number = 0
        with _claims:
            for variable in self.network.variables:
                if not variable.path.endswith(SEED_KEY):
                    found.append(None)
                    continue
                number += 1
                if seed is not None:
                    words = [seed, number]
                else:
                    own, steps = (int(word) for word in ops.convert_to_numpy(_values([variable])[0]))
                    variable.assign(np.array([own, steps + 1], dtype=variable.dtype))
                    words = [own & 0xFFFFFFFF, steps & 0xFFFFFFFF, number, random.process_number()]
                word = int(np.random.SeedSequence(words).generate_state(1)[0]) & 0x7FFFFFFF
                found.append(ops.convert_to_tensor(np.array([word, 0]), dtype=variable.dtype))
        return found

    def keep_stateful(self, values: list[Any]) -> None:
        """Leaves what stateful layers carry from one call to the next, as `keras.Model.predict` does."""
        stateful = [layer for layer in flatten_layers(self.network) if getattr(layer, "stateful", False)]
        carried = {id(variable) for layer in stateful for variable in layer.non_trainable_variables}
        for variable, value in zip(self.network.variables, values, strict=True):
            if id(variable) in carried and not variable.path.endswith(SEED_KEY):
                variable.assign(value)


def _is_numeric(inputs: Any) -> bool:
    """Whether XLA can take these inputs: no text, and no rows of different lengths."""
    return all(leaf is None or isinstance(leaf, np.ndarray) for leaf in keras.tree.flatten(inputs))


def _values(variables: list[keras.Variable]) -> list[Any]:
    """Values of variables as they are now, which training does not change afterwards.

    Raises:
        RuntimeError: if they are not there to be read, because JAX is training the model in another thread.
    """
    try:
        values = [current_value(variable) for variable in variables]
        # Torch's tensors are the variables' own memory, and JAX hands that of a training step on to its result.
        return values if keras.backend.backend() == "tensorflow" else [ops.copy(value) for value in values]
    except RuntimeError as error:
        raise RuntimeError(
            "The model's weights cannot be read while `fit` runs on JAX: a training step takes their memory. Predict "
            "after fit or in an epoch's callback, call model.jax_state_sync() first in a batch's callback, or predict "
            "with a copy of the model."
        ) from error


def _paths(likelihood: Any) -> Iterator[tuple[Any, Any]]:
    """Likelihoods with their kind of place: nothing, a name or a number."""
    if isinstance(likelihood, Likelihood) or likelihood is None:
        yield None, likelihood
    else:
        pairs = likelihood.items() if isinstance(likelihood, Mapping) else enumerate(likelihood)
        yield from ((key, head) for key, head in pairs if head is not None)


def _is_equal(one: Likelihood, other: Likelihood) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and not one.variables and not other.variables and _settings(one) == _settings(other)


def _settings(likelihood: Likelihood) -> dict[str, Any]:
    """Its plain public attributes; `get_config` would import TensorFlow on every backend, to describe a dtype."""
    settings: dict[str, Any] = {
        name: value
        for name, value in vars(likelihood).items()
        if not name.startswith("_") and name not in ("name", "built") and isinstance(value, (bool, int, float, str))
    }
    if isinstance(likelihood, Mixture):
        settings["component"] = (type(likelihood.component), _settings(likelihood.component))
    return settings


def _compile(function: Callable[..., Any], network: keras.Model, is_numeric: bool) -> Callable[..., Any]:
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        compiled = jax.jit(function)
        return lambda values, x, start: compiled(values, dealt_out(x), start)
    if backend == "tensorflow":
        import tensorflow as tf

        supported = all(layer.supports_jit for layer in flatten_layers(network))
        return shared_program(function) if supported and is_numeric else tf.function(function, autograph=False)
    return function
