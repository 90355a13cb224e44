"""The path of a Markov chain as one variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from bdl.random import fold_in
from bdl.svi.supports.base import Support, Tensor
from bdl.svi.supports.distributions import log_prob, sample, shape_of, support_of

Transition = Callable[[Tensor, Tensor], Any]
"""From the states before and the numbers of the steps to the distribution of the states."""


class MarkovChain:
    """A distribution of paths: of the first state, and of each further state given the one before it.

    One call of `transition` serves all steps of a path together, so that nothing is unrolled and a density has a
    gradient under XLA on every backend. Time is the axis behind the batch of the first state and before its event: a
    path of numbers is `(T,)`, k paths are `(k, T)`, and a path of vectors `(T, size)`.

    Args:
        first: Distribution of the first state, of any library that stories take.
        transition: A function `(previous, step)` to the distribution of the states. `previous` is
            `(..., *batch, T - 1, *event)`; the distribution has its shape, by parameters that broadcast against it.
            `step` holds the numbers of the states, integers `(T - 1,)` from 1, for what depends on time:
            `ops.take(drift, step)`. It may be called on one step, with an axis of time of size 1.
        num_steps: Number of states T, the first among them.

    Raises:
        ValueError: if `num_steps` is less than 2, the support of `first` depends on other variables, or what
            `transition` returns has not the shape of the states.

    Example:
    >>> import tensorflow_probability as tfp
    >>> tfd = tfp.distributions
    >>> walk = bdl.svi.MarkovChain(tfd.Normal(0.0, 1.0), lambda previous, step: tfd.Normal(previous, 0.1), 5)
    >>> walk.event_shape, round(float(walk.log_prob(np.zeros(5, "float32")) - walk.log_prob(np.ones(5, "float32"))), 3)
    ((5,), 0.5)
    """

    def __init__(self, first: Any, transition: Transition, num_steps: int) -> None:
        if num_steps < 2:
            raise ValueError(f"`num_steps` must be 2 or more, not {num_steps!r}.")
        self.support: Support = support_of(first)
        if not self.support.is_the_same_everywhere:
            raise ValueError("`first` must have a support that does not depend on other variables.")
        self.first, self.transition, self.num_steps = first, transition, num_steps
        shape_of(first)
        self.batch_shape = tuple(first.batch_shape)
        self._rank = len(first.event_shape)
        self.event_shape = (num_steps, *first.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities of paths, `(..., *batch, T, *event)` to `(..., *batch)`, in nats."""
        value = ops.convert_to_tensor(value)
        axis = len(value.shape) - 1 - self._rank
        before = (slice(None),) * axis
        states, previous = value[(*before, slice(1, None))], value[(*before, slice(None, -1))]
        further = log_prob(self._next(previous, ops.arange(1, self.num_steps, dtype="int32")), states)
        return log_prob(self.first, value[(*before, 0)]) + ops.sum(further, axis=-1)

    def sample(self, num_samples: int, key: Tensor) -> Tensor:
        """Draws paths, `(num_samples, *batch, T, *event)`, step by step."""
        axis = -1 - self._rank
        first = ops.expand_dims(sample(self.first, num_samples, fold_in(key, 0)), axis)

        def move(state: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
            state = sample(self._next(state, step[None]), 1, fold_in(key, step))[0]
            return state, state

        rest = ops.scan(move, first, ops.arange(1, self.num_steps, dtype="int32"))[1]
        whole = ops.concatenate([first[None], rest], axis=0)
        return ops.moveaxis(ops.squeeze(whole, axis), 0, axis)

    def _next(self, previous: Tensor, step: Tensor) -> Any:
        distribution = self.transition(previous, step)
        found, expected = tuple(shape_of(distribution)), tuple(previous.shape)
        if len(found) != len(expected) or any(
            one is not None and other is not None and one != other for one, other in zip(found, expected, strict=True)
        ):
            raise ValueError(
                f"`transition` must return a distribution of the shape of the states before, {expected}, not {found}. "
                "Add zeros of that shape to a parameter that does not depend on them."
            )
        return distribution

    def __repr__(self) -> str:
        return f"MarkovChain({self.first!r}, num_steps={self.num_steps})"
