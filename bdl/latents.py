"""What a layer tells of a latent variable of single examples: a Gaussian code, or an alignment over keys.

A layer with such a variable does two things in `call`. It adds the divergence of its posterior, one number for each
example, which the ELBO counts; and it reports the posterior, which only a diagnosis reads (Q19):

    add_local_kl(self, kl)                               # (batch,), in nats
    report_latent(self, GaussianCode(mean, scale))

The divergence is no loss of the layer: what goes to `add_loss` counts as it does in Keras, whatever its shape.

Both are kept for the thread that called the layer. Nothing is reported outside `collect_latents()`, nor of values that
are not there yet: a compiled function, a scan or a symbolic call may contain a report, and is neither slowed nor held
alive by it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import call_context, flatten_layers, is_concrete, outermost_scope
from bdl.random import Tensor
from bdl.uncounted import warn_if_uncounted

ACTIVE_VARIANCE = 0.01
"""Variance over inputs of a code unit's mean above which it is active (Burda et al. 2016), for a prior of scale 1."""


@dataclass(frozen=True, eq=False)
class GaussianCode:
    """The posterior `q(z | x) = N(mean, scale^2)` of a code, independent over its units.

    Args:
        mean: `(batch, ..., units)`. All axes but the first belong to one example's code.
        scale: Standard deviations, broadcastable to it.
    """

    mean: Tensor
    scale: Tensor

    def to_numpy(self) -> GaussianCode:
        """The same as arrays of one shape."""
        mean = _array(self.mean)
        return GaussianCode(mean, np.broadcast_to(_array(self.scale), mean.shape))


@dataclass(frozen=True, eq=False)
class Alignment:
    """The posterior `q(z | x)` of an alignment: which key a query attends to.

    Args:
        probabilities: `(batch, ..., keys)`, before any dropout; axes between are heads and queries.
        key_mask: True for keys that exist, broadcastable to `probabilities`; None for all.
        query_mask: True for queries that exist, broadcastable to `probabilities` without its last axis; None for all.
        prior_probabilities: Of the prior, broadcastable to `probabilities`; None where the layer adds its divergence.
    """

    probabilities: Tensor
    key_mask: Tensor | None = None
    query_mask: Tensor | None = None
    prior_probabilities: Tensor | None = None

    def to_numpy(self) -> Alignment:
        """The same as arrays of one shape."""
        probabilities = _array(self.probabilities)
        shape = probabilities.shape
        return Alignment(
            probabilities,
            None if self.key_mask is None else np.broadcast_to(_array(self.key_mask).astype(bool), shape),
            None if self.query_mask is None else np.broadcast_to(_array(self.query_mask).astype(bool), shape[:-1]),
            None if self.prior_probabilities is None else np.broadcast_to(_array(self.prior_probabilities), shape),
        )


Latent = GaussianCode | Alignment


@dataclass(frozen=True, eq=False)
class LatentReport:
    """The posterior of a latent variable in one call of a layer.

    Args:
        layer: The layer's name.
        latent: Its posterior, as arrays.
    """

    layer: str
    latent: Latent


_reports: ContextVar[list[LatentReport] | None] = ContextVar("latent_reports", default=None)


@contextlib.contextmanager
def collect_latents() -> Iterator[list[LatentReport]]:
    """Within this context every eager call of a layer with a local latent variable leaves its posterior in the list.

    Example:
    >>> class Code(keras.Layer):
    ...     def call(self, x):
    ...         report_latent(self, GaussianCode(mean=x, scale=keras.ops.ones_like(x)))
    ...         return x
    >>> with collect_latents() as reports:
    ...     _ = Code(name="code")(np.zeros((2, 3), "float32"))
    >>> [(report.layer, report.latent.mean.shape) for report in reports]
    [('code', (2, 3))]
    """
    reports: list[LatentReport] = []
    token = _reports.set(reports)
    try:
        yield reports
    finally:
        _reports.reset(token)


def report_latent(layer: keras.Layer, latent: Latent) -> None:
    """Reports the posterior of a layer's local latent variable to those who collect it; a layer calls it in its `call`.

    Args:
        layer: The layer.
        latent: Its posterior on this batch.
    """
    reports = _reports.get()
    if reports is None:
        return
    # A tracer or graph tensor has no value, and keeping one would leak it out of its function.
    if all(is_concrete(getattr(latent, field.name)) for field in dataclasses.fields(latent)):
        reports.append(LatentReport(layer.name, latent.to_numpy()))


@dataclass(frozen=True, eq=False)
class _LocalKL:
    """One divergence, and the evaluation of a network that it belongs to.

    Args:
        kl: As the layer added it.
        number: Counts up, over all layers and threads.
        scope: Number of the outermost `StatelessScope`; None if the evaluation was not stateless.
        context: Number of Keras' call context; None outside of any call.
        entry: The layer that was called from outside.
    """

    kl: Tensor
    number: int
    scope: int | None
    context: int | None
    entry: weakref.ref | None

    def continues(self, other: _LocalKL) -> bool:
        """Whether a layer that added the other one is still in the same evaluation."""
        if self.scope is not None or other.scope is not None:
            return self.scope == other.scope
        return self.context is not None and self.context == other.context

    def is_of_call(self, model: keras.Layer) -> bool:
        """Whether the model was called as a whole, by itself or within another one."""
        entry = None if self.entry is None else self.entry()
        return entry is not None and any(layer is model for layer in flatten_layers(entry))


_Kept = weakref.WeakKeyDictionary[keras.Layer, list[_LocalKL]]

_numbers = itertools.count()
_evaluations: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

# Of each thread its own, so that a prediction beside a training step does not disturb it.
_local_kls: ContextVar[_Kept | None] = ContextVar("local_kls", default=None)
_is_kl_of_draw: ContextVar[bool] = ContextVar("is_kl_of_draw", default=False)


def add_local_kl(layer: keras.Layer, kl: Tensor) -> None:
    """Adds the divergence of a latent variable of single examples to the ELBO; a layer calls it in its `call`.

    `bdl.VariationalModel` and `bdl.ELBO` count it once per example: never divided by the number of examples, scaled by
    the example's sample weight. A layer that is called several times in one evaluation adds as often.

    Args:
        layer: The layer.
        kl: `KL(q(z | x) || p(z))` of each example, `(batch,)`, in nats; or `log q(z | x) - log p(z)` of its draw.

    Raises:
        ValueError: if it is not one number for each example.

    Example:
    >>> class Code(keras.Layer):
    ...     def call(self, mean):
    ...         add_local_kl(self, 0.5 * keras.ops.sum(mean**2, axis=-1))  # of N(mean, 1) from N(0, 1)
    ...         return mean
    >>> code = Code()
    >>> _ = code(np.ones((2, 3), "float32"))
    >>> [float(kl) for kl in take_local_kl(code)]
    [1.5, 1.5]
    """
    kl = ops.convert_to_tensor(kl)
    if len(kl.shape) != 1:
        raise ValueError(
            f"`kl` of layer {layer.name} must be one number for each example, of shape (batch,), not "
            f"{tuple(kl.shape)}. Sum over the other axes."
        )
    warn_if_uncounted(layer)
    keep_local_kl(layer, kl)


def keep_local_kl(layer: keras.Layer, kl: Tensor) -> None:
    """`add_local_kl` for any shape: a model that evaluates a network several times keeps `(draws, batch)`."""
    scope, context = outermost_scope(), call_context()
    entry = None if context is None else weakref.ref(context.entry_layer)
    new = _LocalKL(kl, next(_numbers), _number_of(scope), _number_of(context), entry)
    kept = _local_kls.get()
    if kept is None:
        kept = weakref.WeakKeyDictionary()
        _local_kls.set(kept)
    before = kept.get(layer, [])
    kept[layer] = [*before, new] if before and new.continues(before[-1]) else [new]


def take_local_kl(model: keras.Layer) -> Tensor | None:
    """Takes what the layers of a model added in its last evaluation in this thread.

    A model may be evaluated in parts, such as an encoder and then a decoder: then each layer's last addition counts.

    Args:
        model: A Keras model or layer.

    Returns:
        Sum over its layers and their calls, `(batch,)`, in nats; None if there are none.
    """
    kept = _local_kls.get()
    if not kept:
        return None
    found = [term for layer in flatten_layers(model) for term in kept.pop(layer, ())]
    if not found:
        return None
    last = max(found, key=lambda term: term.number)
    if last.is_of_call(model):
        terms = [term.kl for term in found if (term.scope, term.context) == (last.scope, last.context)]
    else:  # called in parts, or by `stateless_call`, which calls what is inside
        terms = [term.kl for term in found if term.scope == last.scope and not term.is_of_call(model)]
    return sum(terms[1:], terms[0])


@contextlib.contextmanager
def kl_of_draws() -> Iterator[None]:
    """Within this context layers add `log q(z | x) - log p(z)` of their draw, where they know it.

    An objective that averages over draws inside the logarithm needs it; a mean over draws has less noise with the
    divergence in closed form.
    """
    token = _is_kl_of_draw.set(True)
    try:
        yield
    finally:
        _is_kl_of_draw.reset(token)


def is_kl_of_draw() -> bool:
    """Whether a layer should add the divergence of its draw, and not that of its posterior.

    Example:
    >>> with kl_of_draws():
    ...     is_kl_of_draw()
    True
    """
    return _is_kl_of_draw.get()


@contextlib.contextmanager
def without_local_kl() -> Iterator[None]:
    """Within this context what layers add is for nobody: of evaluations that are no part of an objective."""
    token = _local_kls.set(weakref.WeakKeyDictionary())
    try:
        yield
    finally:
        _local_kls.reset(token)


def _number_of(evaluation: Any) -> int | None:
    """A number for a scope or a call context, which no later one will have."""
    return None if evaluation is None else _evaluations.setdefault(evaluation, next(_numbers))


def _array(values: Any) -> np.ndarray:
    return ops.convert_to_numpy(values) if ops.is_tensor(values) else np.asarray(values)
