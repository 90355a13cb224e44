"""What a layer knows of a latent variable of single examples: a Gaussian code, or an alignment over keys.

A layer with such a variable does two things in `call`: it adds the divergence, one number for each example, which the
ELBO counts, and it reports the posterior, which only a diagnosis reads (Q19):

    self.add_loss(kl)                                    # (batch,), in nats
    report_latent(self, GaussianCode(mean, scale))

Nothing is kept outside `collect_latents()`, nor of values that are not there yet: a compiled function, a scan or a
symbolic call may contain the report, and is neither slowed nor held alive by it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import is_concrete
from bdl.random import Tensor


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
    """One call of one layer.

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
    """Tells whoever collects the posterior of a layer's local latent variable; a layer calls it in its `call`.

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


def _array(values: Any) -> np.ndarray:
    return ops.convert_to_numpy(values) if ops.is_tensor(values) else np.asarray(values)
