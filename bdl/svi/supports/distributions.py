"""What is asked of a distribution, whichever library it is from.

TensorFlow Probability's are for TensorFlow, NumPyro's for JAX and `torch.distributions` for Torch; any other object
that has the attributes of `Distribution` will do on all backends. No library is imported here before a distribution
of it is there; `tfp.py` and `torch_like.py` alone know them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
from keras import ops

from bdl.svi.supports.base import Support, Tensor
from bdl.svi.supports.discrete import Discrete
from bdl.svi.supports.library import Library
from bdl.svi.supports.tfp import TFP
from bdl.svi.supports.torch_like import NumPyro, Torch

MOST_VALUES = 512
"""Values of a discrete variable up to which they are enumerated: each is an evaluation of the story."""


@runtime_checkable
class Distribution(Protocol):
    """A distribution of your own: what an object must have that is from none of the libraries.

    A discrete one has the attribute `values`, too: all values of one of its events, `(values, *event_shape)`, in the
    dtype of its samples; its support is None. One of counts without an upper end has `is_discrete = True` instead, and
    draws floats.

    Attributes:
        support: Where its density is not zero, a `bdl.svi.supports.Support`.
        batch_shape: Shape of what `log_prob` returns for one value.
        event_shape: Shape of one event; a value has the shape `(*batch_shape, *event_shape)`.
    """

    support: Support | None
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities, `(..., *batch_shape)`, in nats."""

    def sample(self, num_samples: int, key: Tensor) -> Tensor:
        """Draws, `(num_samples, *batch_shape, *event_shape)`, by a key of `bdl.random`."""


def support_of(distribution: Any, takes_discrete: bool = False) -> Support:
    """The support of a distribution, by what its library says of it.

    Where bdl has no map of its own onto a support (positive definite matrices, balls), it takes the library's.

    Args:
        distribution: Of TensorFlow Probability, NumPyro, `torch.distributions`, `Flat` or a `Distribution` of your own.
        takes_discrete: Whether it may be discrete; its support is then `Discrete`.

    Raises:
        ValueError: if it is none of these, is of another backend's library, is discrete and may not, or its library has
            no map from the real line onto its support.

    Example:
    >>> from bdl.svi.supports import Flat, support_of
    >>> support_of(Flat("positive"))
    Above
    """
    library = _library_of(distribution)
    if library.is_discrete(distribution):
        if takes_discrete:
            return Discrete(library.values(distribution), lambda counts: library.as_drawn(distribution, counts))
        raise ValueError(
            f"The distribution of a latent variable must be continuous, not {_name(distribution)}: a discrete one has "
            "no gradient. Only a Local site may be discrete: of few values it is summed out, of others guided. Sum it "
            "out in the story, as a mixture does, or give a continuous one in its place."
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


def sample_of_shape(distribution: Any, shape: tuple[Any, ...], key: Tensor) -> Tensor:
    """A draw of a whole site, of a distribution that may be of one row or of one entry of an axis alone.

    Args:
        distribution: Of the site.
        shape: Of the draw; the distribution's own broadcasts to it, and entries that share it are drawn independently.
        key: Of the draw.
    """
    own = shape_of(distribution)
    padded = (1,) * (len(shape) - len(own)) + own
    copies = [1 if one == all_ else all_ for one, all_ in zip(padded, shape, strict=True)]
    draws = sample(distribution, int(np.prod(copies)), key)
    draws = ops.reshape(draws, (*copies, *padded))
    rank = len(shape)
    order = [axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair]
    return ops.reshape(ops.transpose(draws, order), shape)


def inside(distribution: Any, like: Tensor) -> Tensor:
    """Values in the support, away from its edges: 0, 1 where it is positive, the middle of what is bounded.

    Args:
        distribution: As of `support_of`, or a discrete one; where no map onto its support is known the values are 0.
        like: Values whose shape and dtype they have, rows on the first axis.
    """
    library = _library_of(distribution)
    support = None if library.is_discrete(distribution) else library.support(distribution)
    if support is None or "float" not in keras.backend.standardize_dtype(like.dtype):
        return ops.zeros_like(like)
    shape = tuple(like.shape[1:])
    return support.constrain(ops.zeros((ops.shape(like)[0], support.flat_size(shape)), dtype=like.dtype), shape)


def is_discrete(distribution: Any) -> bool:
    """Whether the values of a distribution are counts, classes or the like.

    Args:
        distribution: As of `support_of`, or a discrete one.
    """
    return _library_of(distribution).is_discrete(distribution)


def values_of(distribution: Any, shape: Sequence[int]) -> Tensor | None:
    """All values that a discrete distribution can take.

    Args:
        distribution: As of `support_of`, or a discrete one.
        shape: Shape of a value; all of it, or the trailing part without leading axes such as rows.

    Returns:
        `(values, *shape)` in the dtype of the distribution's own draws, the last entry changing fastest; None where
        there is no end of them, or their number is not known before a compiled function runs.

    Example:
    >>> class Coin:
    ...     support, values, batch_shape, event_shape = None, [0, 1], (), ()
    ...     def log_prob(self, value): return np.log(0.5) + 0.0 * value
    ...     def sample(self, num_samples, key): return np.zeros(num_samples, "int32")
    >>> np.asarray(values_of(Coin(), (2,))).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    values = _library_of(distribution).values(distribution)
    if values is None:
        return None
    number, event = int(values.shape[0]), tuple(values.shape[1:])
    entries = math.prod(shape) // math.prod(event)
    if number**entries > MOST_VALUES:
        return None
    places = np.indices((number,) * entries).reshape(entries, -1).T
    return ops.reshape(ops.take(values, ops.convert_to_tensor(places, dtype="int32"), axis=0), (-1, *shape))


def as_normal(distribution: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of the unconstrained numbers, where they are independent Gaussians.

    That is so for normal distributions and, because positive values are `exp(u)`, for log-normal ones.

    Args:
        distribution: As of `support_of`, or a discrete one.

    Returns:
        Two tensors of the shape of a value; None for any other distribution.
    """
    return _library_of(distribution).as_normal(distribution)


_PARAMETERS = {
    "dirichlet": ("Dirichlet", ("concentration",)),
    "gamma": ("Gamma", ("concentration", "rate")),
    "beta": ("Beta", ("concentration1", "concentration0")),
}
"""Class and parameters of exponential families, whose names all libraries share."""


def exponential_parameters(distribution: Any, family: str) -> tuple[Tensor, ...] | None:
    """The parameters of an exponential family, of a distribution alone, repeated or with its axes joined.

    Args:
        distribution: As of `support_of`, or one of your own of that name, with these attributes.
        family: `"dirichlet"` (concentration), `"gamma"` (concentration, rate) or `"beta"` (concentration1,
            concentration0).

    Returns:
        Tensors that broadcast to a value; None of another distribution.
    """
    name, parameters = _PARAMETERS[family]
    while type(distribution).__name__ in ("Independent", "Sample", "ExpandedDistribution"):
        distribution = distribution.distribution if hasattr(distribution, "distribution") else distribution.base_dist
    if all(cls.__name__ != name for cls in type(distribution).__mro__):
        return None
    return tuple(getattr(distribution, each) for each in parameters)


_LIBRARIES: dict[str, Library] = {"tensorflow_probability": TFP(), "torch": Torch(), "numpyro": NumPyro()}
"""By the name of the package that a distribution's class is from."""

_FOR = {"tensorflow": "tensorflow_probability.distributions", "jax": "numpyro.distributions"}


def _library_of(distribution: Any) -> Library:
    """What knows the library of a distribution."""
    packages = [cls.__module__.partition(".")[0] for cls in type(distribution).__mro__]
    package = next((name for name in packages if name in _LIBRARIES), None)
    expected = _FOR.get(keras.backend.backend(), "torch.distributions")
    if package is None:
        if isinstance(distribution, Distribution):
            return Library()
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
    if library.is_joint(distribution):
        raise ValueError(
            f"A distribution must have one tensor as its value, not {_name(distribution)}. Give each of its variables "
            "a site of its own, or join them along one axis with tfp.distributions.Blockwise."
        )
    return library


def _name(distribution: Any) -> str:
    return f"{type(distribution).__module__.partition('.')[0]}'s {type(distribution).__name__}"
