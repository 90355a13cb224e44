"""Distributions of `torch.distributions`, and of NumPyro, which are made after them: each has a constraint."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from bdl import random
from bdl.svi.supports.base import Support, Tensor
from bdl.svi.supports.intervals import Real, interval
from bdl.svi.supports.library import Library
from bdl.svi.supports.matrices import CorrelationCholesky, CorrelationMatrix, LowerCholesky, PositiveDefinite
from bdl.svi.supports.vectors import Mapped, Ordered, Simplex

_OF_EVENTS: dict[str, Support] = {
    "simplex": Simplex(),
    "ordered_vector": Ordered(),
    "lower_cholesky": LowerCholesky(),
    "corr_cholesky": CorrelationCholesky(),
    "positive_definite": PositiveDefinite(),
    "corr_matrix": CorrelationMatrix(),
}
"""Supports by the names of constraints, some of which only one of the libraries has."""


class _TorchLike(Library):
    """What the two have in common.

    Attributes:
        module: Where the library's distributions and constraints are.
    """

    module: str

    def support(self, distribution: Any) -> Support | None:
        """By the distribution's constraint."""
        library = importlib.import_module(self.module)
        transformed = library.TransformedDistribution
        if isinstance(distribution, transformed) and type(distribution).support is transformed.support:
            # Its constraint is what the last transform makes of all that it takes, whatever comes in.
            base = self.support(distribution.base_dist)
            if not isinstance(base, Real):
                first = library.biject_to(distribution.base_dist.support)
                return _of_transform(library.transforms.ComposeTransform([first, *distribution.transforms]))
        return _of_constraint(library, distribution.support)

    def is_discrete(self, distribution: Any) -> bool:
        """By the distribution's constraint."""
        return bool(distribution.support.is_discrete)

    def values(self, distribution: Any) -> Tensor | None:
        """As the library enumerates them."""
        inner = self._unwrapped(distribution)
        if not self.is_discrete(inner) or not inner.has_enumerate_support:
            return None
        try:
            values = inner.enumerate_support(expand=False)
        except NotImplementedError:  # counts out of totals that differ
            return None
        return ops.reshape(values, (-1, *inner.event_shape))

    def _unwrapped(self, distribution: Any) -> Any:
        """The distribution inside one that is expanded, or whose axes are joined."""
        library = importlib.import_module(self.module)
        names = ("Independent", "ExpandedDistribution")
        wrappers = tuple(getattr(library, name) for name in names if hasattr(library, name))
        while isinstance(distribution, wrappers):
            distribution = distribution.base_dist
        return distribution

    def as_normal(self, distribution: Any) -> tuple[Tensor, Tensor] | None:
        """Normal and log-normal distributions, alone, expanded or with their axes joined."""
        library = importlib.import_module(self.module)
        inner = self._unwrapped(distribution)
        if not isinstance(inner, (library.Normal, library.LogNormal)):
            return None
        shape = (*distribution.batch_shape, *distribution.event_shape)
        return ops.broadcast_to(inner.loc, shape), ops.broadcast_to(inner.scale, shape)


class Torch(_TorchLike):
    """`torch.distributions`."""

    backend = "torch"
    module = "torch.distributions"

    def sample(self, distribution: Any, num_samples: int, key: Tensor) -> Tensor:
        """By Torch's generator, which is left as it was."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(random.torch_seed(key))
            return distribution.sample((num_samples,))


class NumPyro(_TorchLike):
    """`numpyro.distributions`."""

    backend = "jax"
    module = "numpyro.distributions"

    def as_drawn(self, distribution: Any, counts: Tensor) -> Tensor:
        """NumPyro draws whole numbers."""
        return ops.cast(counts, "int32")

    def sample(self, distribution: Any, num_samples: int, key: Tensor) -> Tensor:
        """By JAX's generator."""
        import jax

        return distribution.sample(jax.random.wrap_key_data(ops.cast(key, "uint32")), (num_samples,))


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Within this context distributions do not check their arguments and values.

    Torch's do so by reading numbers, which a compiler and `torch.func` cannot, and which a GPU waits for. Those of the
    other libraries do not, unless they are told to. Torch has one switch for the process: distributions that other
    threads make meanwhile are not checked either. The last of several threads to leave puts it back as the first one
    found it.
    """
    if keras.backend.backend() != "torch":
        yield
        return
    from torch.distributions import Distribution

    global _unchecked, _were_checked
    with _switch:
        if _unchecked == 0:
            _were_checked = _are_checked()
            Distribution.set_default_validate_args(False)
        _unchecked += 1
    try:
        yield
    finally:
        with _switch:
            _unchecked -= 1
            if _unchecked == 0:
                Distribution.set_default_validate_args(_were_checked)


_switch = threading.Lock()
_unchecked, _were_checked = 0, True


def _are_checked() -> bool:
    """Whether Torch's distributions check their arguments, which only a wrong one tells."""
    from torch.distributions import Exponential

    try:
        Exponential(-1.0)
    except ValueError:
        return True
    return False


def _of_constraint(library: Any, constraint: Any) -> Support | None:
    """The support of a constraint; the library's own map where bdl has none."""
    if hasattr(constraint, "base_constraint"):  # of axes that belong together, and of a mixture's components
        inner = _of_constraint(library, constraint.base_constraint)
        is_mixture = not hasattr(constraint, "reinterpreted_batch_ndims")
        return inner.over_mixture(-1 - constraint.event_dim) if inner is not None and is_mixture else inner
    constraints = library.constraints
    if constraint is constraints.real:
        return Real()
    if hasattr(constraint, "lower_bound") or hasattr(constraint, "upper_bound"):
        return interval(getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None))
    for name, support in _OF_EVENTS.items():
        if isinstance(constraint, type(getattr(constraints, name, None))):
            return support
    try:
        return _of_transform(library.biject_to(constraint))
    except NotImplementedError:
        return None


def _of_transform(transform: Any) -> Support:
    """The support onto which a transform maps."""
    return Mapped(
        transform.codomain.event_dim,
        lambda event: tuple(transform.inverse_shape(event)),
        transform,
        transform.inv,
        transform.log_abs_det_jacobian,
    )
