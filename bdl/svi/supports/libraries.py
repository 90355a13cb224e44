"""What is asked of a distribution, whichever library it is from: this file alone knows which one that is.

TensorFlow Probability's are for TensorFlow, NumPyro's for JAX and `torch.distributions` for Torch; any other object
that has the attributes of `Distribution` will do on all backends. No library is imported here before a distribution
of it is there.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
from keras import ops

from bdl import random
from bdl.svi.supports.base import Support, Tensor
from bdl.svi.supports.intervals import Above, Real, interval
from bdl.svi.supports.vectors import CorrelationCholesky, LowerCholesky, Mapped, Ordered, Product, Simplex


@runtime_checkable
class Distribution(Protocol):
    """A distribution of your own: what an object must have that is from none of the libraries.

    Attributes:
        support: Where its density is not zero, a `bdl.svi.supports.Support`.
        batch_shape: Shape of what `log_prob` returns for one value.
        event_shape: Shape of one event; a value has the shape `(*batch_shape, *event_shape)`.
    """

    support: Support
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities, `(..., *batch_shape)`, in nats."""

    def sample(self, num_samples: int, key: Tensor) -> Tensor:
        """Draws, `(num_samples, *batch_shape, *event_shape)`, by a key of `bdl.random`."""


def support_of(distribution: Any) -> Support:
    """The support of a distribution, by what its library says of it.

    Where bdl has no map of its own onto a support (positive definite matrices, balls), it takes the library's.

    Args:
        distribution: Of TensorFlow Probability, NumPyro, `torch.distributions`, `Flat` or a `Distribution` of your own.

    Raises:
        ValueError: if it is none of these, is of another backend's library, is discrete, or its library has no map
            from the real line onto its support.

    Example:
    >>> from bdl.svi.supports import Flat, support_of
    >>> support_of(Flat("positive"))
    Above
    """
    library = _library_of(distribution)
    if library.is_discrete(distribution):
        raise ValueError(
            f"The distribution of a latent variable must be continuous, not {_name(distribution)}: a discrete one has "
            "no gradient. Sum it out in the story, as a mixture does, or give a continuous one in its place."
        )
    support = library.support(distribution)
    if support is None:
        raise ValueError(
            f"The distribution of a latent variable must have a map from the real line onto its support, not "
            f"{_name(distribution)}, for which its library has none. Write the variable as a function of others, or "
            "wrap the distribution in an object with `support`, `batch_shape`, `event_shape`, `log_prob` and `sample`."
        )
    return support


def shape_of(distribution: Any) -> tuple[int, ...]:
    """Shape of one value: the batch shape and the event shape.

    Args:
        distribution: As of `support_of`, or a discrete one.
    """
    _library_of(distribution)
    return (*distribution.batch_shape, *distribution.event_shape)


def batch_rank(distribution: Any) -> int:
    """How many axes of a value `log_prob` keeps.

    Args:
        distribution: As of `support_of`, or a discrete one.
    """
    _library_of(distribution)
    return len(distribution.batch_shape)


def log_prob(distribution: Any, value: Tensor) -> Tensor:
    """Log density or log probability of values, in nats.

    Args:
        distribution: As of `support_of`, or a discrete one.
        value: `(..., *batch_shape, *event_shape)`.

    Returns:
        `(..., *batch_shape)`, in the value's precision if the value is of floats.
    """
    return _library_of(distribution).log_prob(distribution, value)


def sample(distribution: Any, num_samples: int, key: Tensor) -> Tensor:
    """Draws values by the library's own generator, for simulation: gradients need not pass through them.

    Args:
        distribution: As of `support_of`, or a discrete one.
        num_samples: Number of draws.
        key: Key of `bdl.random`.

    Returns:
        `(num_samples, *batch_shape, *event_shape)`; the same key gives the same draws.
    """
    return _library_of(distribution).sample(distribution, num_samples, key)


def is_discrete(distribution: Any) -> bool:
    """Whether the values of a distribution are counts, classes or the like.

    Args:
        distribution: As of `support_of`, or a discrete one.
    """
    return _library_of(distribution).is_discrete(distribution)


def as_normal(distribution: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of the unconstrained numbers, where they are independent Gaussians.

    That is so for normal distributions and, because positive values are `exp(u)`, for log-normal ones.

    Args:
        distribution: As of `support_of`, or a discrete one.

    Returns:
        Two tensors of the shape of a value; None for any other distribution.
    """
    return _library_of(distribution).as_normal(distribution)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Within this context distributions do not check their arguments and values.

    Torch's do so by reading numbers, which a compiler and `torch.func` cannot, and which a GPU waits for. Those of the
    other libraries do not, unless they are told to.
    """
    if keras.backend.backend() != "torch":
        yield
        return
    from torch.distributions import Distribution, Exponential

    try:
        Exponential(-1.0)
    except ValueError:
        checks = True
    else:
        checks = False
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checks)


class _Library:
    """What differs between libraries; this one is for distributions of the user's own."""

    backend: str | None = None

    def support(self, distribution: Any) -> Support | None:
        return distribution.support

    def log_prob(self, distribution: Any, value: Tensor) -> Tensor:
        return distribution.log_prob(ops.convert_to_tensor(value))

    def sample(self, distribution: Any, num_samples: int, key: Tensor) -> Tensor:
        return distribution.sample(num_samples, key)

    def is_discrete(self, distribution: Any) -> bool:
        return False

    def as_normal(self, distribution: Any) -> tuple[Tensor, Tensor] | None:
        return None


class _TFP(_Library):
    """TensorFlow Probability: a distribution says its support by a bijector from the real line."""

    backend = "tensorflow"

    def support(self, distribution: Any) -> Support | None:
        import tensorflow_probability as tfp

        tfd = tfp.distributions
        if isinstance(distribution, tfd.MixtureSameFamily):
            components = distribution.components_distribution
            return _over_mixture(self.support(components), components)
        if isinstance(distribution, tfd.Mixture):
            return self._of_first(distribution.components)
        if isinstance(distribution, tfd.Blockwise):
            parts = [(self.support(part), math.prod(shape_of(part))) for part in distribution.distributions]
            return None if any(support is None for support, _ in parts) else Product(parts)
        if isinstance(distribution, (tfd.Dirichlet, tfd.RelaxedOneHotCategorical)):
            return Simplex()  # TFP 0.25 cannot make their bijector with NumPy 2.4
        if isinstance(distribution, (tfd.Independent, tfd.Sample, tfd.BatchReshape, tfd.BatchBroadcast, tfd.Masked)):
            inner = self.support(distribution.distribution)
            if inner is None or inner.is_the_same_everywhere or isinstance(distribution, tfd.Independent):
                return inner
        try:
            bijector = distribution.experimental_default_event_space_bijector()
        except TypeError:  # as of Dirichlet, which others are made with
            return None
        if isinstance(distribution, tfd.TransformedDistribution) and isinstance(bijector, tfp.bijectors.Chain):
            is_own = bijector.bijectors[0] is distribution.bijector
            if is_own and isinstance(self.support(distribution.distribution), Real):
                return _of_bijector(distribution.bijector)
        return None if bijector is None else _of_bijector(bijector)

    def log_prob(self, distribution: Any, value: Tensor) -> Tensor:
        return distribution.log_prob(ops.cast(value, distribution.dtype))

    def sample(self, distribution: Any, num_samples: int, key: Tensor) -> Tensor:
        return distribution.sample(num_samples, seed=ops.cast(key, "int32"))

    def is_discrete(self, distribution: Any) -> bool:
        # A class that TFP gives no public name marks them: the dtype of a Poisson distribution is a float.
        names = {cls.__name__ for cls in type(distribution).__mro__}
        return "DiscreteDistributionMixin" in names or any(self.is_discrete(part) for part in _parts(distribution))

    def as_normal(self, distribution: Any) -> tuple[Tensor, Tensor] | None:
        import tensorflow_probability as tfp

        tfd = tfp.distributions
        wrapped = distribution
        while isinstance(wrapped, (tfd.Independent, tfd.Sample)):
            wrapped = wrapped.distribution
        if isinstance(wrapped, tfd.LogNormal) and wrapped is distribution:
            distribution = distribution.distribution
        elif not isinstance(wrapped, (tfd.Normal, tfd.MultivariateNormalDiag)):
            return None
        shape = shape_of(distribution)
        return ops.broadcast_to(distribution.mean(), shape), ops.broadcast_to(distribution.stddev(), shape)

    def _of_first(self, components: Any) -> Support | None:
        supports = [self.support(component) for component in components]
        return supports[0]


class _TorchLike(_Library):
    """`torch.distributions`, and NumPyro's, which are made after them: a distribution has a constraint."""

    module: str

    def support(self, distribution: Any) -> Support | None:
        library = importlib.import_module(self.module)
        whole = library.TransformedDistribution
        if isinstance(distribution, whole) and type(distribution).support is whole.support:
            # Its constraint is what its last transform gives from all that this one takes, whatever comes in.
            base = self.support(distribution.base_dist)
            if not isinstance(base, Real):
                first = library.biject_to(distribution.base_dist.support)
                return _of_transform(library.transforms.ComposeTransform([first, *distribution.transforms]))
        return self._of_constraint(library, distribution.support)

    def _of_constraint(self, library: Any, constraint: Any) -> Support | None:
        constraints = library.constraints
        if hasattr(constraint, "base_constraint"):  # of Independent, and of a mixture
            inner = self._of_constraint(library, constraint.base_constraint)
            is_mixture = not hasattr(constraint, "reinterpreted_batch_ndims")
            return inner.over_mixture(-1 - constraint.event_dim) if inner is not None and is_mixture else inner
        if constraint is constraints.real:
            return Real()
        if hasattr(constraint, "lower_bound") or hasattr(constraint, "upper_bound"):
            return interval(getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None))
        for name, support in _EVENTS.items():
            if isinstance(constraint, type(getattr(constraints, name, None))):
                return support
        try:
            return _of_transform(library.biject_to(constraint))
        except NotImplementedError:
            return None

    def is_discrete(self, distribution: Any) -> bool:
        return bool(distribution.support.is_discrete)

    def as_normal(self, distribution: Any) -> tuple[Tensor, Tensor] | None:
        library = importlib.import_module(self.module)
        wrapped = distribution
        wrappers = tuple(
            getattr(library, name) for name in ("Independent", "ExpandedDistribution") if hasattr(library, name)
        )
        while isinstance(wrapped, wrappers):
            wrapped = wrapped.base_dist
        if not isinstance(wrapped, (library.Normal, library.LogNormal)):
            return None
        shape = shape_of(distribution)
        return ops.broadcast_to(wrapped.loc, shape), ops.broadcast_to(wrapped.scale, shape)


class _Torch(_TorchLike):
    backend = "torch"
    module = "torch.distributions"

    def sample(self, distribution: Any, num_samples: int, key: Tensor) -> Tensor:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.torch_seed(key))
            return distribution.sample((num_samples,))


class _NumPyro(_TorchLike):
    backend = "jax"
    module = "numpyro.distributions"

    def sample(self, distribution: Any, num_samples: int, key: Tensor) -> Tensor:
        import jax

        return distribution.sample(jax.random.wrap_key_data(ops.cast(key, "uint32")), (num_samples,))


_EVENTS: dict[str, Support] = {
    "simplex": Simplex(),
    "ordered_vector": Ordered(),
    "lower_cholesky": LowerCholesky(),
    "corr_cholesky": CorrelationCholesky(),
}
"""Supports by the names of constraints."""

_LIBRARIES: dict[str, _Library] = {"tensorflow_probability": _TFP(), "torch": _Torch(), "numpyro": _NumPyro()}
"""By the name of the package that a distribution's class is from."""

_FOR = {"tensorflow": "tensorflow_probability.distributions", "jax": "numpyro.distributions"}


def _library_of(distribution: Any) -> _Library:
    """What knows the library of a distribution."""
    packages = [cls.__module__.partition(".")[0] for cls in type(distribution).__mro__]
    package = next((name for name in packages if name in _LIBRARIES), None)
    expected = _FOR.get(keras.backend.backend(), "torch.distributions")
    if package is None:
        if isinstance(distribution, Distribution):
            return _Library()
        raise ValueError(
            f"A distribution must be one of {expected}, of `Flat`, or an object with `support`, `batch_shape`, "
            f"`event_shape`, `log_prob` and `sample`, not {distribution!r}."
        )
    library = _LIBRARIES[package]
    if library.backend != keras.backend.backend():
        raise ValueError(
            f"A distribution must be one of {expected} on the backend {keras.backend.backend()}, not "
            f"{_name(distribution)} of {package}, which computes with another."
        )
    return library


def _name(distribution: Any) -> str:
    return f"{type(distribution).__module__.partition('.')[0]}'s {type(distribution).__name__}"


def _over_mixture(support: Support | None, components: Any) -> Support | None:
    return None if support is None else support.over_mixture(-1 - len(components.event_shape))


def _parts(distribution: Any) -> list[Any]:
    """The distributions that one of TFP is made of and whose values it has."""
    for name in ("components_distribution", "distribution"):
        if hasattr(distribution, name):
            return [getattr(distribution, name)]
    for name in ("components", "distributions"):
        if hasattr(distribution, name):
            return list(getattr(distribution, name))
    return []


def _of_bijector(bijector: Any) -> Support | None:
    """The support that one of TFP's bijectors maps the real line onto; TFP's own map where bdl has none."""
    import tensorflow_probability as tfp

    tfb = tfp.bijectors
    chain = [link for link in _links(bijector) if not isinstance(link, tfb.Identity)]
    if not chain:
        return Real()
    if len(chain) == 1:
        only = chain[0]
        if isinstance(only, tfb.Sigmoid):  # its bounds may be infinite, where it has no number
            return interval(0.0 if only.low is None else only.low, 1.0 if only.high is None else only.high)
        for kinds, support in (
            ((tfb.Exp, tfb.Softplus), Above(0.0)),
            ((tfb.SoftmaxCentered, tfb.IteratedSigmoidCentered), Simplex()),
            (tfb.Ascending, Ordered()),
            (tfb.CorrelationCholesky, CorrelationCholesky()),
        ):
            if isinstance(only, kinds):
                return support
    if isinstance(chain[-1], tfb.FillTriangular) and all(
        isinstance(link, tfb.TransformDiagonal) for link in chain[:-1]
    ):
        return LowerCholesky()
    ranks = bijector.forward_min_event_ndims, bijector.inverse_min_event_ndims
    if ranks == (0, 0):
        # A map of single numbers is monotone, so its bounds are where it takes the two ends of the line.
        ends = [bijector.forward(end) for end in (-np.inf, np.inf)]
        return interval(ops.minimum(*ends), ops.maximum(*ends))
    if not all(isinstance(rank, (int, np.integer)) for rank in ranks):  # a joint distribution
        return None
    return Mapped(
        ranks[1],
        lambda event: tuple(bijector.inverse_event_shape(event)),
        bijector.forward,
        bijector.inverse,
        lambda u, value: bijector.forward_log_det_jacobian(u, event_ndims=ranks[0]),
    )


def _links(bijector: Any) -> list[Any]:
    """The bijectors of a chain of chains, the first one last."""
    import tensorflow_probability as tfp

    if not isinstance(bijector, tfp.bijectors.Chain):
        return [bijector]
    return [link for part in bijector.bijectors for link in _links(part)]


def _of_transform(transform: Any) -> Support:
    """The support onto which a transform of Torch or NumPyro maps."""
    return Mapped(
        transform.codomain.event_dim,
        lambda event: tuple(transform.inverse_shape(event)),
        transform,
        transform.inv,
        transform.log_abs_det_jacobian,
    )
