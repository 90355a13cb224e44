"""What Keras' `sample_weight` and `loss_weights` mean for a likelihood.

A weight w says that something counts as if it had been observed w times. A whole example's weight multiplies all that
the example adds to the objective. A weight within an example, of one event or one of several outputs, is an exponent of
its likelihood, `p(y_e | x)^w_e`; so is a loss weight, which is one for all examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from keras import ops

from bdl.likelihoods.base import expand_to_rank
from bdl.random import Tensor


@dataclass(frozen=True)
class Weights:
    """How much examples count, and what is in them.

    Args:
        of_examples: `(batch,)`, or None for 1.
        within: By output, `(batch, ...)` or a scalar: what its events count within their example. Others count 1.
    """

    of_examples: Tensor | None = None
    within: dict[str | None, Tensor] = field(default_factory=dict)

    def masking(self, mask: Tensor | None) -> Tensor | None:
        """A mask of events without those of examples of weight 0."""
        if self.of_examples is None:
            return mask
        wanted = self.of_examples != 0
        if mask is None:
            return wanted
        mask = ops.cast(mask, "bool")
        return ops.logical_and(mask, expand_to_rank(wanted, len(mask.shape)))


def weights_of(
    sample_weight: Any, names: Sequence[str | None], loss_weights: Mapping[str | None, Any] | None = None
) -> Weights:
    """The weights of a batch.

    With weights for each output, an example's own is their mean over the outputs; what one has beyond it counts within
    the example.

    Args:
        sample_weight: `(batch,)` or `(batch, 1)`, for all outputs; a mapping from outputs to such or to weights of
            events; weights of events where there is one output; or None.
        names: Of the outputs.
        loss_weights: Non-negative numbers by output, for all of them or none.

    Raises:
        ValueError: if weights of events are for several outputs, or a loss weight is out of range.

    Example:
    >>> weights = weights_of({"kind": np.array([1.0, 0.0]), "size": np.array([3.0, 1.0])}, ["kind", "size"])
    >>> [float(weight) for weight in weights.of_examples], [float(weight) for weight in weights.within["size"]]
    ([2.0, 0.5], [1.5, 2.0])
    """
    of_outputs = {name: check_loss_weight(weight, name) for name, weight in (loss_weights or {}).items()}
    of_examples, within = _of_samples(sample_weight, names)
    for name, weight in of_outputs.items():
        within[name] = weight * within[name] if name in within else ops.convert_to_tensor(np.float32(weight))
    return Weights(of_examples, within)


def check_loss_weight(weight: Any, name: str | None) -> float:
    """Returns the weight of an output in the loss.

    Raises:
        ValueError: if it is no finite number of at least 0.
    """
    is_number = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
    if not is_number or not (weight >= 0 and math.isfinite(weight)):
        where = "" if name is None else f" for output {name!r}"
        raise ValueError(f"`loss_weights` must be finite numbers of at least 0, not {weight!r}{where}.")
    return float(weight)


def as_array(values: Any) -> np.ndarray:
    """A tensor, or what NumPy can read, as an array."""
    return ops.convert_to_numpy(values) if ops.is_tensor(values) else np.asarray(values)


def _of_samples(sample_weight: Any, names: Sequence[str | None]) -> tuple[Any, dict[str | None, Any]]:
    """Weights of examples, and by output those within."""
    if sample_weight is None:
        return None, {}
    if not isinstance(sample_weight, Mapping):
        weight = _as_tensor(sample_weight)
        if _is_of_examples(weight):
            return _squeezed(weight), {}
        if len(names) > 1:
            raise ValueError(
                f"`sample_weight` must be a dict by the outputs {list(names)} where it weighs single events, not one "
                f"array of shape {tuple(weight.shape)}."
            )
        return None, {names[0]: weight}
    given = {name: _as_tensor(weight) for name, weight in sample_weight.items() if weight is not None}
    examples = {name: _squeezed(weight) for name, weight in given.items() if _is_of_examples(weight)}
    if not examples:
        return None, given
    if len(names) == 1:
        return examples[names[0]], {}
    mean = (sum(examples.values()) + float(len(names) - len(examples))) / len(names)
    within = {}
    for name in names:
        weight = examples.get(name, given.get(name, ops.ones_like(mean)))
        within[name] = ops.divide_no_nan(weight, expand_to_rank(mean, len(weight.shape)))
    return mean, within


def _as_tensor(weight: Any) -> Tensor:
    return ops.cast(weight if ops.is_tensor(weight) else np.asarray(weight), "float32")


def _is_of_examples(weight: Tensor) -> bool:
    return len(weight.shape) == 1 or (len(weight.shape) == 2 and weight.shape[-1] == 1)


def _squeezed(weight: Tensor) -> Tensor:
    return ops.squeeze(weight, -1) if len(weight.shape) == 2 else weight
