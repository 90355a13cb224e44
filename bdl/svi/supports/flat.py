"""Improper priors."""

from __future__ import annotations

from typing import Any

from keras import ops

from bdl.svi.supports.base import Support, Tensor, sum_last
from bdl.svi.supports.intervals import Above, Between, Real, interval
from bdl.svi.supports.vectors import Ordered, Simplex

_SUPPORTS: dict[str, Support] = {
    "real": Real(),
    "positive": Above(0.0),
    "unit_interval": Between(0.0, 1.0),
    "simplex": Simplex(),
    "ordered": Ordered(),
}


class Flat:
    """An improper prior: a density of 1, log density 0, everywhere on a support.

    It is flat in the values as the story sees them, such as `sigma` and not `log(sigma)`. The posterior is proper only
    if the data make it so, and the ELBO is the evidence bound up to a constant. Nothing can be drawn from it, so
    `sample_prior` refuses a story with such a site.

    Args:
        support: `"real"`, `"positive"`, `"unit_interval"`, `("interval", low, high)`, `"simplex"` or `"ordered"`.
        shape: Shape of a value; of a simplex and of an ordered vector with the vector's axis last.

    Raises:
        ValueError: if `support` is none of these, an interval is empty, or a vector's axis is missing.

    Example:
    >>> from bdl.svi.supports import Flat
    >>> scales = Flat("positive", (3,))
    >>> np.asarray(scales.log_prob(np.ones((10, 3)))).shape
    (10, 3)
    """

    def __init__(self, support: str | tuple[str, Any, Any] = "real", shape: tuple[int, ...] = ()) -> None:
        self.support = _support(support)
        shape = tuple(shape)
        self.support.flat_size(shape)
        batch = len(shape) - self.support.event_rank
        self.batch_shape, self.event_shape = shape[:batch], shape[batch:]

    def log_prob(self, value: Tensor) -> Tensor:
        """Zeros: `(..., *batch_shape, *event_shape)` to `(..., *batch_shape)`."""
        return sum_last(ops.zeros_like(value), len(self.event_shape))

    def sample(self, num_samples: int, key: Tensor) -> Tensor:
        """Refuses.

        Raises:
            ValueError: always: an improper prior has no draws.
        """
        raise ValueError(
            "A prior to draw from must be proper, not Flat, which has an infinite mass. Give the site a distribution, "
            "such as a wide normal one."
        )

    def __repr__(self) -> str:
        return f"Flat({self.support!r}, shape={(*self.batch_shape, *self.event_shape)})"


def _support(support: Any) -> Support:
    if isinstance(support, str) and support in _SUPPORTS:
        return _SUPPORTS[support]
    if isinstance(support, (tuple, list)) and len(support) == 3 and support[0] == "interval":
        return interval(support[1], support[2])
    raise ValueError(f"`support` must be one of {list(_SUPPORTS)} or ('interval', low, high), not {support!r}.")
