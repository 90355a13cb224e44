"""The categorical family: independent entries, each with one of finitely many values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.arguments import is_positive_integer
from bdl.keras_internals import cumsum
from bdl.random import Tensor
from bdl.svi.guides.discrete import DiscreteFamily
from bdl.svi.guides.gaussian import WithoutClosedForms


@dataclass(frozen=True, eq=False)
class Categorical(WithoutClosedForms):
    """Independent entries, drawn by the inverse of their distribution function at `Phi(noise)`.

    Args:
        log_probs: Logarithms of the probabilities of each entry's values, `(..., size, values)`.

    Example:
    >>> family = Categorical(np.log([[0.2, 0.5, 0.3]]))
    >>> np.asarray(family.draw(np.array([[-1.0], [0.0], [1.0]])))[:, 0]
    array([0., 1., 2.])
    """

    log_probs: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """The places of the values, `(..., size)`."""
        uniform = 0.5 * ops.erfc(noise * -(0.5**0.5))
        below = cumsum(ops.exp(self.log_probs[..., :-1])) < uniform[..., None]
        return ops.stop_gradient(ops.sum(ops.cast(below, noise.dtype), axis=-1))

    def log_density(self, noise: Tensor) -> Tensor:
        """Log probability of each entry's value."""
        number = self.log_probs.shape[-1]
        chosen = ops.cast(self.draw(noise), "int32")[..., None] == ops.arange(number, dtype="int32")
        return ops.sum(ops.where(chosen, self.log_probs, ops.zeros_like(self.log_probs)), axis=-1)


@keras.saving.register_keras_serializable(package="bdl")
class Categories(DiscreteFamily):
    """Independent entries of finitely many values each, for discrete local sites: switches, classes, small counts.

    It is a family of `Amortized`, and `"categories"` is its name with two values. All values are equally probable where
    a fit begins. Its gradient is the score function's (`bdl.svi.score`).

    Each value must be possible: where the prior or the likelihood gives one of them the probability zero, its draw
    costs infinitely many nats, and the fit has no finite loss. Tell the story in what is free to vary, or let the guide
    off and the site be summed out, where it has few values.

    Args:
        num_values: Values K of an entry, at least 2: all of the distribution's, in its order, which are 0, ..., K - 1
            of a Bernoulli, Categorical or Binomial (total + 1) one.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if `num_values` is not an integer of at least 2.

    Source: Mnih and Gregor 2014, "Neural variational inference and learning in belief networks", arXiv 1402.0030.

    Example:
    >>> family = Categories(3)
    >>> float(np.exp(family.of_parameters(np.zeros(6, "float32"), 2).log_density(np.zeros(2, "float32"))[0]))
    0.3333
    """

    def __init__(self, num_values: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not is_positive_integer(num_values) or int(num_values) < 2:
            raise ValueError(f"`num_values` must be an integer of at least 2, values of an entry, not {num_values!r}.")
        self.num_values = int(num_values)

    def misfit(self, num_values: int) -> str | None:
        """Why it is not for a site whose entries have so many values."""
        if num_values in (0, self.num_values):
            return None
        return f"has {num_values} values in each entry, and the guide {self.num_values}. Pass Categories({num_values})"

    def num_parameters(self, size: int) -> int:
        """A logit for each entry and value."""
        return size * self.num_values

    def of_parameters(self, parameters: Tensor, size: int) -> Categorical:
        """The distribution of logits `(..., size K)`."""
        shape = (*ops.shape(parameters)[:-1], size, self.num_values)
        return Categorical(ops.log_softmax(ops.reshape(parameters, shape), axis=-1))

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "num_values": self.num_values}
