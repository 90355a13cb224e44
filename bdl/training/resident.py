"""Arrays that stay on the device during a fit: the compiled step picks its rows, and several steps are one call.

Keras hands the compiled step one batch after another, and `steps_per_execution` on TensorFlow runs a loop of compiled
steps. Here the loop and the choice of rows are inside what is compiled: a call takes the row numbers of its steps,
`(steps, batch)`, beside all the data. Each step in it is the model's own `train_step`, so that counters, averages,
seeds and metrics change as they do one call after another.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bdl.keras_internals import (
    build_metrics,
    flatten_layers,
    is_one_device,
    is_ragged,
    is_sparse,
    keeping_state,
    split_for_validation,
    training_batches,
)
from bdl.training.data import check_lengths, is_data_set
from bdl.training.failures import TRAINED_STATE
from bdl.training.resumption import Resumes
from bdl.training.steps import build_optimizer

MAX_BYTES = 2**32
"""Arrays of more bytes than this stay where they are, and come batch by batch."""


@dataclass(frozen=True, eq=False)
class Resident:
    """The data of a fit on the device.

    Args:
        batch: All rows, in the form in which `train_step` takes a batch.
        row_numbers: Row numbers of one call after another, `(steps, batch)`; None takes them from what Keras reads.
        is_whole: Whether each step takes all rows as they are.
    """

    batch: Any
    row_numbers: Iterator[np.ndarray] | None = None
    is_whole: bool = False

    @functools.cached_property
    def form(self) -> str:
        """Shapes and dtypes of the data, and how they are taken: what a compiled function is made for."""
        return repr((_mapped(lambda leaf: (leaf.dtype, leaf.shape), self.batch), self.is_whole))

    def calls(self, iterator: Iterator[Any], steps: int) -> list[np.ndarray]:
        """Row numbers of the steps that come next, in parts of one batch size.

        Args:
            iterator: Where Keras reads batches of row numbers.
            steps: How many steps at most.

        Raises:
            StopIteration: where nothing is left.
        """
        if self.row_numbers is not None:
            return [next(self.row_numbers)]
        batches = [np.asarray(keras.tree.flatten(each)[0]) for each in itertools.islice(iterator, steps)]
        if not batches:
            raise StopIteration
        return [np.stack(list(part)) for _, part in itertools.groupby(batches, len)]


class FitsOnDevice(Resumes):
    """Mixin of a Keras model that can be fitted to `Resident` data.

    On Torch, which compiles no step, each step is a call of its own.

    Attributes:
        prefers_xla: Whether calls of several steps are compiled by XLA where nothing is said, on TensorFlow on CPUs
            too, where Keras would not.
    """

    prefers_xla = False

    train_function: Any
    steps_per_execution: Any
    run_eagerly: bool
    jit_compile: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._device_calls = _DeviceCalls()

    def compile(self, optimizer: Any = "adam", loss: None = None, **kwargs: Any) -> None:
        """As `keras.Model.compile`, without a loss.

        Raises:
            ValueError: if `steps_per_execution` is an integer, but not a positive one.
        """
        steps = kwargs.pop("steps_per_execution", 1)
        if isinstance(steps, int) and steps < 1:
            raise ValueError(f"`steps_per_execution` must be a positive integer, not {steps!r}.")
        self._device_calls = _DeviceCalls(asked=steps, asked_jit=kwargs.get("jit_compile", "auto"))
        if steps != 1 and self.prefers_xla and kwargs.get("jit_compile", "auto") == "auto":
            kwargs["jit_compile"] = "auto" if kwargs.get("run_eagerly") else _can_use_xla(self)
        steps = 1 if keras.backend.backend() == "torch" else steps
        super().compile(optimizer, loss, steps_per_execution=steps, **kwargs)  # type: ignore[misc]

    def get_compile_config(self) -> dict[str, Any]:
        """As `keras.Model.get_compile_config`, with what was asked of `compile`, which backends answer differently."""
        config = super().get_compile_config()  # type: ignore[misc]
        asked = {"steps_per_execution": self._device_calls.asked, "jit_compile": self._device_calls.asked_jit}
        return {**config, **asked} if config else config

    def leave_xla(self) -> None:
        """Compiles without XLA on TensorFlow, for what XLA cannot take, unless `jit_compile=True` was asked for."""
        if keras.backend.backend() != "tensorflow":
            return
        self.supports_jit = False
        if self._device_calls.asked_jit == "auto":
            self.jit_compile = False

    def make_train_function(self, force: bool = False) -> Any:
        """As `keras.Model.make_train_function`, or for resident data within `fitting`."""
        calls = self._device_calls
        if force:
            calls.functions.clear()
        if calls.data is None:
            return super().make_train_function(force)
        if force or self.train_function is None:
            make = _on_jax if keras.backend.backend() == "jax" else _on_tensorflow
            self.train_function = keeping_state(make(self, calls), self, TRAINED_STATE)
        return None

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        **settings: Any,
    ) -> Any:
        """As `keras.Model.fit`; on the device where several steps are to be a call and the data can be there."""
        is_asked = self.steps_per_execution != 1 and self._device_calls.data is None
        found = _labelled(self, x, y, batch_size, settings) if is_asked else None
        others = (batch_size, epochs, verbose, callbacks)
        if found is None:
            return super().fit(x, y, *others, **settings)
        data, rows, settings = found
        build_optimizer(self)
        with self.fitting(data):
            return super().fit(rows, None, *others, **settings)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; a callback may call it within a fit on the device."""
        with self.fitting(None):
            return super().train_on_batch(*args, **kwargs)  # type: ignore[misc]

    @contextlib.contextmanager
    def fitting(self, data: Resident | None) -> Iterator[None]:
        """Within this context steps are taken on resident data, and read row numbers in place of batches.

        Args:
            data: The data; None for steps on batches, as Keras reads them.
        """
        calls = self._device_calls
        before, calls.data = calls.data, data
        self._exchange(before, data)
        try:
            yield
        finally:
            self._exchange(data, before)
            calls.data = before

    def _exchange(self, before: Resident | None, after: Resident | None) -> None:
        """Puts the train function for one kind of data in the place of that for the other, and keeps both."""
        functions = self._device_calls.functions
        functions[before is not None] = self.train_function
        self.train_function = functions.get(after is not None)

    def is_fit_for_device(self, arrays: Any) -> bool:
        """Whether a fit may hold the arrays on the device and take the steps there.

        It may not where Keras compiles no step or spreads it over several devices, with a `train_step` or
        `compute_metrics` of the user's, with arrays of other kinds than numbers in rows, or with very many of them.

        Args:
            arrays: Of the fit, in any structure; None where there is none.
        """
        backend = keras.backend.backend()
        is_compiled = not self.run_eagerly and (self.jit_compile if backend == "jax" else backend == "tensorflow")
        own = [getattr(type(self), name).__module__ for name in ("train_step", "compute_metrics")]
        leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
        return (
            bool(is_compiled)
            and isinstance(self.steps_per_execution, int)
            and is_one_device(self)
            and all(module.split(".")[0] in ("bdl", "keras") for module in own)
            and all(_is_table(leaf) for leaf in leaves)
            and sum(_num_bytes(leaf) for leaf in leaves) <= MAX_BYTES
        )


class _DeviceCalls:
    """What a model keeps of its fits on the device: the data of the present one, and train functions.

    Attributes:
        asked: `steps_per_execution`, as given to `compile`.
        asked_jit: `jit_compile`, as given to it.
        data: None while there is no such fit.
        functions: By whether they are for resident data, those that are not in use at the moment.
    """

    def __init__(self, asked: Any = 1, asked_jit: Any = "auto") -> None:
        self.asked = asked
        self.asked_jit = asked_jit
        self.data: Resident | None = None
        self.functions: dict[bool, Any] = {}


def _can_use_xla(model: Any) -> bool | str:
    """On TensorFlow whether XLA can compile a model's step, as far as its layers tell; elsewhere Keras decides."""
    if keras.backend.backend() != "tensorflow":
        return "auto"
    return is_one_device(model) and all(layer.supports_jit for layer in flatten_layers(model))


def _labelled(model: Any, x: Any, y: Any, batch_size: int | None, settings: dict[str, Any]) -> Any:
    """The data of a fit to inputs and labels on the device, and what Keras' `fit` is to be called with then.

    The row numbers are shuffled and cut as the arrays would be.

    Args:
        model: The model that is fitted, built.
        x: Inputs.
        y: Labels, or None.
        batch_size: As of `fit`.
        settings: Other arguments of `fit`.

    Returns:
        `Resident` data, the row numbers and the other arguments; None where the fit cannot be one on the device.
    """
    weights, classes = settings.get("sample_weight"), settings.get("class_weight")
    if is_data_set(x) or not model.is_fit_for_device((x, y, weights)):
        return None
    settings = {**settings, "sample_weight": None, "class_weight": None}
    if settings.get("validation_split") and settings.get("validation_data") is None:
        (x, y, weights), validation = split_for_validation((x, y, weights), settings["validation_split"])
        settings = {**settings, "validation_data": validation, "validation_split": 0.0}
    size = check_lengths({"x": x})
    whole = next(training_batches(x, y, weights, classes, size))
    order = {"batch_size": batch_size, "shuffle": settings.get("shuffle", True)}
    build_metrics(model, x, y, weights, class_weight=classes, **order)
    return Resident(on_device(whole)), np.arange(size, dtype="int32"), settings


def on_device(arrays: Any) -> Any:
    """Arrays as tensors, in their structure; on TensorFlow lists become tuples, as in Keras' own data sets.

    Example:
    >>> on_device((np.zeros(2, "float32"), None))[0].shape[0]
    2
    """
    is_tensorflow = keras.backend.backend() == "tensorflow"
    return _mapped(keras.ops.convert_to_tensor, keras.tree.lists_to_tuples(arrays) if is_tensorflow else arrays)


def _is_table(leaf: Any) -> bool:
    """Whether this holds numbers in rows of one length."""
    if is_ragged(leaf) or is_sparse(leaf) or hasattr(leaf, "tocoo"):
        return False
    dtype = getattr(leaf, "dtype", None)
    kind = np.asarray(leaf).dtype.kind if dtype is None or isinstance(leaf, np.ndarray) else "f"
    return kind in "biuf" and dtype != "string"


def _num_bytes(leaf: Any) -> int:
    return int(np.prod(leaf.shape)) * np.dtype(keras.backend.standardize_dtype(leaf.dtype)).itemsize


def _padded(rows: np.ndarray, steps: int) -> np.ndarray:
    """Row numbers of so many steps, of which the last do not count: one compiled function for all numbers of steps."""
    rows = rows.astype("int32", copy=False)
    return rows if len(rows) == steps else np.pad(rows, [(0, steps - len(rows)), (0, 0)])


def _on_tensorflow(model: Any, calls: _DeviceCalls) -> Callable[[Any], Any]:
    """The train function that Keras calls with an iterator."""
    import tensorflow as tf

    functions: dict[tuple[str, int], Any] = {}

    def steps(is_whole: bool, batch: Any, rows: Any, number: Any) -> Any:
        def one(step: Any) -> Any:
            picked = rows[step]
            model.train_step(batch if is_whole else _mapped(lambda leaf: tf.gather(leaf, picked), batch))
            return (step + 1,)

        if rows.shape[0] == 1:
            one(0)
        else:
            tf.while_loop(lambda step: step < number, one, [tf.constant(0)], parallel_iterations=1)
        return model.get_metrics_result()

    def function(iterator: Any) -> Any:
        data: Any = calls.data
        logs = None
        for part in data.calls(iterator, model.steps_per_execution):
            arguments = data.batch, tf.constant(_padded(part, model.steps_per_execution)), tf.constant(len(part))
            form = data.form, part.shape[1]
            if form not in functions:
                # Of each form one function, whose sizes are known, and its concrete one: to find that again among the
                # traces takes longer than a small step. A partial, for TensorFlow counts the traces of a code object,
                # and warns at the fifth.
                taken = functools.partial(steps, data.is_whole)
                compiled = tf.function(taken, jit_compile=bool(model.jit_compile), autograph=False)
                functions[form] = compiled.get_concrete_function(*arguments)
            with _told_of_xla():
                logs = functions[form](*arguments)
        return logs

    return function


@contextlib.contextmanager
def _told_of_xla() -> Iterator[None]:
    """Says what to do where XLA cannot compile a step."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        if "XLA_" not in str(error):
            raise
        raise ValueError(
            "`jit_compile` must be False, not True or 'auto', for XLA cannot compile this training step "
            f"({error.message}). Call compile(jit_compile=False)."
        ) from error


def _on_jax(model: Any, calls: _DeviceCalls) -> Callable[[Any, Any], Any]:
    """The train function that Keras calls with the state of the model and an iterator."""
    import jax

    def steps(state: Any, batch: Any, rows: Any, number: Any, is_whole: bool) -> Any:
        def one(step: Any, state: Any) -> Any:
            picked = rows[step]
            part = batch if is_whole else _mapped(lambda leaf: leaf.at[picked].get(mode="promise_in_bounds"), batch)
            _, state = model.train_step(state, part)
            return _as_lists(state)

        state = _as_lists(state)
        state = one(0, state) if rows.shape[0] == 1 else jax.lax.fori_loop(0, number, one, state)
        with keras.StatelessScope(state_mapping=list(zip(model.metrics_variables, state[3], strict=True))):
            logs = model.get_metrics_result()
        return logs, state

    compiled = jax.jit(steps, donate_argnums=0, static_argnums=4)

    def function(state: Any, iterator: Any) -> Any:
        data: Any = calls.data
        logs = None
        for part in data.calls(iterator, model.steps_per_execution):
            rows = _padded(part, model.steps_per_execution)
            logs, state = compiled(state, data.batch, rows, len(part), data.is_whole)
        return logs, state

    return function


def _as_lists(state: Any) -> tuple[list[Any], ...]:
    return tuple(list(part) for part in state)


def _mapped(function: Callable[[Any], Any], structure: Any) -> Any:
    return keras.tree.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)
