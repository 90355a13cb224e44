"""What every prior offers, and the small pieces that several of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor
from bdl.serialization import Serializable

register = keras.saving.register_keras_serializable(package="bdl.priors")  # `Normal` is a likelihood as well

Variables = dict[str, Any]
"""Variables of one prior or posterior, by name."""


def normal_kl(
    mean: Tensor,
    scale: Tensor,
    prior_mean: Tensor | float,
    prior_scale: Tensor | float,
    log_scale: Tensor | None = None,
) -> Tensor:
    """Divergence between two Gaussians, element by element.

    Args:
        mean: Posterior means.
        scale: Positive posterior scales.
        prior_mean: Prior means; broadcasts.
        prior_scale: Positive prior scales; broadcasts.
        log_scale: Logarithm of `scale`, where it is known.

    Returns:
        `KL(N(mean, scale^2) || N(prior_mean, prior_scale^2))`, elementwise, in nats.

    Example:
    >>> float(normal_kl(1.0, 1.0, 0.0, 1.0))
    0.5
    """
    ratio = scale / prior_scale
    shift = (mean - prior_mean) / prior_scale
    # Keras would take the logarithm of a plain number in its `floatx`, which may be float16.
    log_prior_scale = math.log(prior_scale) if isinstance(prior_scale, (int, float)) else ops.log(prior_scale)
    log_ratio = ops.log(ratio) if log_scale is None else log_scale - log_prior_scale
    return 0.5 * (ops.square(ratio) + ops.square(shift) - 1.0) - log_ratio


class Prior(Serializable):
    """Base of all priors: what `kernel_prior` and its kin accept.

    A prior holds settings only. What it has to remember or learn lives in the layer, as variables that `create` adds
    and that the other methods get back. A prior of your own needs only `parameters` where it is Gaussian.
    """

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable) -> Variables:
        """Adds the variables that the prior keeps in the layer; most keep none.

        Args:
            layer: The layer that owns them.
            name: Name of the weight, used as a prefix.
            mean: The wrapped layer's weight, with its present value.

        Returns:
            The variables by name, to be handed back to the other methods.
        """
        return {}

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """Mean and scale of the Gaussian prior of each weight.

        Args:
            mean: Posterior means, the shape of the weight.
            scale: Posterior scales, the same shape.
            input_axes: Axes of the weight that are summed over in the layer (fan-in); empty for a bias.
            variables: The prior's own, from `create`.

        Returns:
            The prior's mean and scale, each broadcastable to the weight. A prior that is not Gaussian returns a
            Gaussian in its place, and says which.
        """
        raise NotImplementedError

    def resting_place(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """Mean and scale at which the prior alone would hold each weight: where its divergence has its least.

        A prior with latent scales is taken with those that the weights have given it. Whoever asks how many weights the
        data did not move compares with this.

        Args:
            mean: Posterior means, the shape of the weight.
            scale: Posterior scales, the same shape.
            input_axes: Axes of the weight that are summed over in the layer (fan-in); empty for a bias.
            variables: The prior's own, from `create`.

        Returns:
            Mean and scale, each broadcastable to the weight: of a Gaussian prior its own.

        Example:
        >>> bdl.priors.Normal(scale=0.5).resting_place(np.zeros((2, 3)), np.ones((2, 3)), (0,))
        (0.0, 0.5)
        """
        return self.parameters(mean, scale, input_axes, variables)

    def kl(
        self,
        mean: Tensor,
        scale: Tensor,
        input_axes: Sequence[int] = (),
        log_scale: Tensor | None = None,
        variables: Variables | None = None,
    ) -> Tensor:
        """Divergence of the posterior `N(mean, scale^2)` from this prior.

        Args:
            mean: Posterior means, the shape of the weight.
            scale: Posterior scales, the same shape.
            input_axes: Axes of the weight that are summed over in the layer (fan-in); empty for a bias.
            log_scale: Logarithm of `scale`, where it is known: it saves a pass, and stays finite where the scale
                underflows.
            variables: The prior's own, from `create`.

        Returns:
            Scalar, total over the weights, in nats.

        Example:
        >>> float(bdl.priors.Normal().kl(np.ones((2, 3), "float32"), np.ones((2, 3), "float32")))
        3.0
        """
        prior_mean, prior_scale = self.parameters(mean, scale, input_axes, variables)
        return ops.sum(normal_kl(mean, scale, prior_mean, prior_scale, log_scale))

    @property
    def why_no_penalty(self) -> str | None:
        """Why the prior cannot be that of a point estimate, to end a sentence; None where it can."""
        return None if type(self).penalty is not Prior.penalty else "its density at a point is not known"

    def penalty(self, mean: Tensor, input_axes: Sequence[int] = (), variables: Variables | None = None) -> Tensor:
        """What point-estimated weights pay: the log density at its mode minus that at the weights.

        Minimising it with the negative log-likelihood, both divided by the number of examples, gives the weights of
        maximum posterior density (MAP).

        Args:
            mean: The weights.
            input_axes: Axes of the weight that are summed over in the layer (fan-in); empty for a bias.
            variables: The prior's own, from `create`.

        Returns:
            Scalar >= 0, total over the weights, in nats.

        Raises:
            ValueError: if the prior cannot be that of a point estimate.

        Example:
        >>> float(bdl.priors.Normal().penalty(np.ones((2, 3), "float32")))  # weight decay
        3.0
        """
        raise ValueError(f"{self!r} cannot be the prior of a point estimate: {self.why_no_penalty}.")


def log_scale_of(scale: Tensor, log_scale: Tensor | None) -> Tensor:
    """The logarithm of a scale, taken only where it is not known."""
    return ops.log(scale) if log_scale is None else ops.convert_to_tensor(log_scale)


def fan_in(shape: Sequence[int], input_axes: Sequence[int]) -> int:
    """Number of weights summed into one output; 1 for a bias.

    Example:
    >>> fan_in((3, 3, 16, 32), input_axes=(0, 1, 2))
    144
    """
    return math.prod(shape[axis] for axis in input_axes)


def width(scale: float | str, shape: Sequence[int], input_axes: Sequence[int]) -> float:
    """A scale that is a number, or `"fan_in"` for `1 / sqrt(fan_in)`.

    Example:
    >>> width("fan_in", (100, 2), input_axes=(0,))
    0.1
    """
    return 1.0 / math.sqrt(fan_in(shape, input_axes)) if isinstance(scale, str) else scale


def as_matrix(weight: Tensor, input_axes: Sequence[int]) -> Tensor:
    """A weight as a matrix with a row for each input and a column for each output.

    Example:
    >>> as_matrix(np.ones((3, 4, 5)), input_axes=(0, 2)).shape == (15, 4)
    True
    """
    order = _matrix_order(len(weight.shape), input_axes)
    return ops.reshape(ops.transpose(weight, order), (fan_in(weight.shape, input_axes), -1))


def from_matrix(matrix: Tensor, shape: Sequence[int], input_axes: Sequence[int]) -> Tensor:
    """Inverse of `as_matrix`, for a weight of that shape."""
    order = _matrix_order(len(shape), input_axes)
    weight = ops.reshape(matrix, [shape[axis] for axis in order])
    return ops.transpose(weight, [order.index(axis) for axis in range(len(order))])


def check_positive(argument: str, value: Any, otherwise: str = "") -> None:
    """Refuses what is not a finite positive number.

    Args:
        argument: Name of the argument, for the message.
        value: What was given.
        otherwise: What else is admitted, for the message, such as `"None or "`.

    Raises:
        ValueError: if it is not.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and value > 0 and math.isfinite(value)):
        raise ValueError(
            f"`{argument}` must be {otherwise}a finite positive number (a standard deviation), not {value!r}."
        )


def check_width(argument: str, value: Any) -> None:
    """Refuses what is neither a finite positive number nor `"fan_in"`, as `width` takes them."""
    if value != "fan_in":
        check_positive(argument, value, '"fan_in" or ')


def check_penalty(argument: str, prior: Any) -> None:
    """Refuses what is no prior of point estimates; None passes.

    Raises:
        ValueError: if it is no prior, or has no `penalty`.
    """
    if prior is None:
        return
    if not isinstance(prior, Prior):
        raise ValueError(f"`{argument}` must be None or a bdl.priors.Prior, not {prior!r}.")
    if prior.why_no_penalty is not None:
        raise ValueError(
            f"`{argument}` is the prior of point estimates, which {prior!r} is not: {prior.why_no_penalty}."
        )


def _matrix_order(rank: int, input_axes: Sequence[int]) -> list[int]:
    """Axes of a weight in the order in which it becomes a matrix: inputs first."""
    return [*input_axes, *(axis for axis in range(rank) if axis not in input_axes)]
