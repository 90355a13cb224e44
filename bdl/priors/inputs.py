"""The prior of input factors: broad where an input is empty in training, narrow where it carries something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.priors.base import Prior, Variables, check_positive, register
from bdl.random import Tensor

_SMALLEST_VARIANCE = 1e-30
"""Stands for the mean variance where no input varies, so that all count as empty."""


@register
@dataclass(frozen=True)
class InputNormal(Prior):
    """`N(1, s^2)` on the factor of each input, with an `s` that follows what the input is in training.

    With `v` the variance of an entry of the input over the training examples, and the mean taken over all entries,

        s = min(typical * mean(v) / v, widest)

    An entry that is empty, or nearly so, gets the broad prior, by which a network notices inputs that use it. An entry
    that varies as much as others do gets a narrow one, which costs next to nothing. Under a prior of 3 its factor would
    have to tighten to about .1, at log(30) = 3.4 nats, and a photograph has thousands of such entries. The unit and
    the zero point of the inputs do not matter, but all entries should have the same unit: standardise a table.

    It is the prior of `bdl.layers.InputFactors` alone, which shows it the inputs. Mean and variance are those of all
    examples that training has shown, added up batch by batch, and are saved with the layer; before the first, every
    entry counts as empty, and a frozen layer adds none. They look at inputs and not at labels.

    Args:
        typical: Positive standard deviation for an entry of the mean variance.
        widest: Positive standard deviation for an empty entry, the largest of all.

    Raises:
        ValueError: if an argument is not positive and finite, or another layer is to have this prior.

    Sources: an experiment, research/photographs.py. Updating of mean and variance: Chan, Golub & LeVeque 1983,
    "Algorithms for computing the sample variance".

    Example:
    >>> layer = bdl.layers.InputFactors(prior=InputNormal(typical=0.1, widest=3.0))
    >>> x = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 3.0]])  # variances 0, 1/4, 1
    >>> _ = layer(x, training=True)
    >>> (weight,) = layer.sampled_weights.values()
    >>> _, scale = weight.prior.parameters(weight.mean, weight.mean, (), weight.prior_variables)
    >>> np.round(scale, 3).tolist()  # the mean variance is 5/12
    [3.0, 0.167, 0.042]
    """

    typical: float = 0.1
    widest: float = 3.0

    def __post_init__(self) -> None:
        check_positive("typical", self.typical)
        check_positive("widest", self.widest)

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable) -> Variables:
        """Adds `{name}_input_count`, `{name}_input_mean` and `{name}_input_variance`, of the examples seen so far."""
        if not getattr(layer, "observes_inputs", False):
            raise ValueError(
                f"`prior` of layer {layer.name!r} must be one that needs no statistics of the inputs, such as "
                f"bdl.priors.Normal(1.0, 3.0), not {self!r}: only bdl.layers.InputFactors gathers them."
            )
        shapes: dict[str, Any] = {"count": (), "mean": mean.shape, "variance": mean.shape}
        return {
            statistic: layer.add_weight(
                name=f"{name}_input_{statistic}",
                shape=shape,
                initializer="zeros",
                trainable=False,
                dtype="float32",
                autocast=False,
                aggregation="mean",  # replicas see as many examples each
            )
            for statistic, shape in shapes.items()
        }

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """One, and the scale of each entry; `widest` without `variables`."""
        if not variables:
            return 1.0, self.widest
        variance = ops.convert_to_tensor(variables["variance"])
        relative = variance / ops.maximum(ops.mean(variance), _SMALLEST_VARIANCE)
        return 1.0, 1.0 / ops.maximum(relative / self.typical, 1.0 / self.widest)

    def observe(self, inputs: Tensor, variables: Variables) -> None:
        """Adds a batch to the statistics.

        Args:
            inputs: Of shape `(batch, ...)`.
            variables: From `create`.
        """
        inputs = ops.cast(ops.stop_gradient(inputs), "float32")
        count, mean, variance = (ops.convert_to_tensor(variables[name]) for name in ("count", "mean", "variance"))
        batch = ops.cast(ops.shape(inputs)[0], "float32")
        share = batch / ops.maximum(count + batch, 1.0)
        shift = ops.mean(inputs, axis=0) - mean
        within = ops.var(inputs, axis=0) - variance
        variables["count"].assign(count + batch)
        variables["mean"].assign(mean + share * shift)
        variables["variance"].assign(variance + share * (within + (1.0 - share) * ops.square(shift)))
