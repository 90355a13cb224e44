"""What bdl asks of a library of distributions."""

from __future__ import annotations

from typing import Any

from keras import ops

from bdl.svi.supports.base import Support, Tensor


class Library:
    """What differs between libraries; this one is for distributions of the user's own.

    Attributes:
        backend: The Keras backend that it computes with; None for any.
    """

    backend: str | None = None

    def support(self, distribution: Any) -> Support | None:
        """The support of a continuous distribution; None where no map onto it is known."""
        return distribution.support

    def log_prob(self, distribution: Any, value: Tensor) -> Tensor:
        """Log density of values."""
        return distribution.log_prob(ops.convert_to_tensor(value))

    def sample(self, distribution: Any, num_samples: int, key: Tensor) -> Tensor:
        """Draws by a key of `bdl.random`."""
        return distribution.sample(num_samples, key)

    def is_discrete(self, distribution: Any) -> bool:
        """Whether its values are counts, classes or the like."""
        return bool(getattr(distribution, "is_discrete", False)) or self.values(distribution) is not None

    def values(self, distribution: Any) -> Tensor | None:
        """All values of one entry of a discrete distribution, `(values, *event)`; None where there is no end of them.

        An entry is what the distribution draws independently: a number, or a vector such as a one-hot one.
        """
        values = getattr(distribution, "values", None)
        return None if values is None else ops.convert_to_tensor(values)

    def as_drawn(self, distribution: Any, counts: Tensor) -> Tensor:
        """Counts, which are floats, in the dtype of the distribution's own draws."""
        return counts

    def is_joint(self, distribution: Any) -> bool:
        """Whether a value is a structure of several tensors."""
        return False

    def as_normal(self, distribution: Any) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the unconstrained numbers, if they are independent Gaussians."""
        return None
