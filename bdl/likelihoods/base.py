"""What every likelihood has: densities of events, summed over an example, and checks of its labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from bdl.likelihoods import constants
from bdl.likelihoods.endings import Ending
from bdl.likelihoods.frozen_mixture import FrozenDistribution
from bdl.random import Tensor

MIN_LIKELIHOOD_SCALE = 1e-4
"""Floor of a learned or predicted scale: a density may not grow without bound on repeated targets."""
LEARNED_SPEED = 10.0
"""A learned scale is `softplus(10 * raw)`: it moves as fast as the network does."""


class Likelihood(keras.layers.Layer):
    """Base of all likelihoods.

    Subclasses give `parameters`, `log_prob`, `mean` and `check_labels`, and where they are not classifiers
    `distribution` and `variance`.

    Attributes:
        is_classifier: Whether events are classes.
        has_class_axis: Whether the last axis of the outputs has an entry for each class.
        is_location_scale: Whether events are real numbers whose distribution has the parameters `loc` and `scale`, so
            that targets may be standardised.
    """

    is_classifier: ClassVar[bool] = False
    has_class_axis: ClassVar[bool] = False
    is_location_scale: ClassVar[bool] = False

    def __init__(self, **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"  # densities and their scales stay in full precision under any policy
        super().__init__(**kwargs)
        self.built = True  # a learned scale does not depend on the shape of the data

    def call(self, outputs: Tensor) -> Tensor:
        """The mean of the likelihood, so that it can end a Keras model."""
        return self.mean(outputs)

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """Parameters of the distribution of each event, named as in scipy.stats."""
        raise NotImplementedError(f"{type(self).__name__} does not define `parameters`.")

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Log density of each event, `(batch, ...)`, in nats.

        Compiled code cannot raise: a label outside the classes gives NaN, and a number that is no count -inf.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `log_prob`.")

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log probability of each class, in nats; of classifiers only.

        Args:
            outputs: Network outputs, `(batch, ..., classes)`, or one for each label of 0 or 1.

        Returns:
            `(batch, ..., classes)`; for labels of 0 or 1 the outputs' shape with one more axis, of label 0 and label 1.
            A probability of exactly 0 gives -inf.
        """
        p = ops.minimum(self.mean(outputs), 1.0)  # rounding may exceed 1
        return ops.log(p) if self.has_class_axis else ops.stack([ops.log1p(-p), ops.log(p)], axis=-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Mean of each event; for a classifier its class probabilities."""
        raise NotImplementedError(f"{type(self).__name__} does not define `mean`.")

    def variance(self, outputs: Tensor) -> Tensor:
        """Variance of each event, the shape of `mean` (not for classifiers)."""
        raise NotImplementedError(f"{type(self).__name__} does not define `variance`.")

    def distribution(self, parameters: dict[str, np.ndarray]) -> FrozenDistribution:
        """The frozen scipy.stats distribution with these parameters (not for classifiers)."""
        raise NotImplementedError(f"{type(self).__name__} does not define `distribution`.")

    def null_nll(self, y: np.ndarray) -> np.ndarray:
        """NLL of each example under the best constant outputs, `(n,)`, in nats: what ignoring the inputs can reach.

        A likelihood that does not say it has that of class frequencies, or of a Gaussian.

        Args:
            y: Labels `(n, ...)`; of classes their numbers, or distributions over them.
        """
        return constants.frequencies(y) if self.is_classifier else constants.gaussian(y)

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks labels against the shape of the network's outputs.

        Raises:
            ValueError: if shape, type or values do not fit; it names the first bad entry and the fix.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `check_labels`.")

    def nll(self, y: Tensor, outputs: Tensor, mask: Tensor | None = None, event_weight: Tensor | None = None) -> Tensor:
        """Negative log likelihood of each example.

        Args:
            y: Labels, `(batch, ...)`.
            outputs: Network outputs.
            mask: Boolean, `(batch, ...)`, False where an event does not count; broadcast over trailing event axes.
            event_weight: How often each event counts, `(batch, ...)`, broadcast likewise; 0 is as a mask of False.

        Returns:
            `(batch,)`, the sum over the events that count, in nats, float32. It is no mean: what an event adds does not
            depend on how many others have a label.

        Raises:
            ValueError: if labels or weights do not have the events' shape.
        """
        y = ops.convert_to_tensor(y)
        outputs = ops.cast(outputs, "float32")
        y = self._align(y, outputs)
        self.check_aligned(tuple(y.shape), tuple(outputs.shape))
        event_shape = self.event_shape(tuple(outputs.shape))
        weight = None if event_weight is None else align_weight(event_weight, event_shape)
        counted = self._counted(y, tuple(outputs.shape), mask, weight)
        if counted is not None:
            # Padding may hold any label; it must not reach the density, for 0 * nan is nan.
            some = ops.cast(self.some_label(tuple(y.shape), tuple(outputs.shape)), y.dtype)
            y = ops.where(expand_to_rank(counted, len(y.shape)), y, some)
        events = self.log_prob(y, outputs)
        if weight is not None:
            events = events * expand_to_rank(weight, len(events.shape))
        if counted is not None:
            # Chosen, not multiplied: 0 * inf is nan too.
            events = ops.where(expand_to_rank(counted, len(events.shape)), events, 0.0)
        return -ops.sum(ops.reshape(events, (ops.shape(events)[0], -1)), axis=-1)

    def has_label(self, y: Tensor, output_shape: tuple[int | None, ...]) -> Tensor | None:
        """False for events that the labels themselves declare void, `(batch, ...)`; None where there is no such label.

        Args:
            y: Labels in the events' shape.
            output_shape: Shape of the network's outputs.
        """
        return None

    def _counted(
        self, y: Tensor, output_shape: tuple[int | None, ...], mask: Tensor | None, weight: Tensor | None
    ) -> Tensor | None:
        """False where an event does not count: void, masked or of weight 0; None where all do."""
        wanted = [
            self.has_label(y, output_shape),
            None if mask is None else ops.cast(mask, "bool"),
            None if weight is None else weight != 0,
        ]
        given = [each for each in wanted if each is not None]
        if not given:
            return None
        rank = max(len(each.shape) for each in given)
        return functools.reduce(ops.logical_and, (expand_to_rank(each, rank) for each in given))

    def counted(self, y: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Which events have a label and are not masked, `(batch, ...)`; None where all do.

        Args:
            y: Labels, `(batch, ...)`.
            outputs: Network outputs.
            mask: As of `nll`.
        """
        return self._counted(self._align(y, outputs), tuple(outputs.shape), mask, None)

    def some_label(self, y_shape: tuple[int, ...], output_shape: tuple[int | None, ...]) -> Any:
        """A label, whichever, that stands for those that do not count; it broadcasts to labels of a shape."""
        return 0

    def following(self, ending: Ending) -> Likelihood:
        """This likelihood for an output that ends so: itself, or one that says what it expects.

        Raises:
            ValueError: if the outputs cannot be what the likelihood expects.
        """
        return self

    def is_in_doubt(self, ending: Ending) -> bool:
        """Whether values must tell if the outputs are what the likelihood expects; then `check_outputs` is called."""
        return False

    def check_outputs(self, outputs: np.ndarray) -> None:
        """Checks values of the outputs where they are in doubt.

        Raises:
            ValueError: if they are not what the likelihood expects.
        """

    def penalty(self) -> Tensor:
        """Scalar, total, in nats: what the prior of the likelihood's own weights charges; zero where there is none.

        It is the prior's log density at its mode minus that at the present value, so never below zero. The objective
        charges it with the weights' KL: once, divided by the number of examples, times the temperature.
        """
        return ops.zeros((), dtype="float32")

    def event_shape(self, output_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shape of the labels that belong to outputs of a shape, both with the batch."""
        return output_shape[:-1] if self.has_class_axis else output_shape

    def mean_shape(self, output_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shape of a classifier's probabilities for outputs of a shape, both with the batch."""
        return output_shape

    def check_aligned(self, y_shape: tuple[int | None, ...], output_shape: tuple[int | None, ...]) -> None:
        """Labels and outputs of different shapes would broadcast to a density of nothing in particular.

        Raises:
            ValueError: if labels of a shape do not belong to outputs of a shape.
        """
        expected = self.event_shape(output_shape)
        pairs = zip(y_shape[1:], expected[1:], strict=False)
        if len(y_shape) != len(expected) or any(None not in pair and pair[0] != pair[1] for pair in pairs):
            raise ValueError(
                f"`y` must have shape {expected} for {type(self).__name__} and outputs of shape {output_shape}, not "
                f"{y_shape}."
            )

    def _align(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Labels in the shape of the events: a missing or superfluous last axis of one is no mistake."""
        rank = len(self.event_shape(tuple(outputs.shape)))
        if len(y.shape) == rank - 1:
            return ops.expand_dims(y, -1)
        if len(y.shape) == rank + 1 and y.shape[-1] == 1:
            return ops.squeeze(y, -1)
        return y


def expand_to_rank(mask: Tensor, rank: int) -> Tensor:
    """A mask with axes of one at its end."""
    while len(mask.shape) < rank:
        mask = ops.expand_dims(mask, -1)
    return mask


def align_weight(weight: Tensor, event_shape: tuple[int | None, ...]) -> Tensor:
    """Weights of events, float32, of the events' first axes; a superfluous last axis of one is no mistake.

    Raises:
        ValueError: if their shape is another.
    """
    weight = ops.cast(weight, "float32")
    found = tuple(weight.shape)
    if len(found) == len(event_shape) + 1 and found[-1] == 1:
        weight, found = ops.squeeze(weight, -1), found[:-1]
    pairs = list(zip(found, event_shape, strict=False))
    if len(found) > len(event_shape) or any(None not in pair and pair[0] != pair[1] for pair in pairs):
        expected = tuple("batch" if axis == 0 else size for axis, size in enumerate(event_shape))
        raise ValueError(
            f"`sample_weight` must have one weight for each example, shape (batch,), or one for each event, shape "
            f"{expected} or its first axes, not shape {found}."
        )
    return weight


def density_of_labels(
    y: Tensor, is_label: Tensor, density: Callable[[Tensor], Tensor], otherwise: float | Tensor = float("nan")
) -> Tensor:
    """Log density of labels, and another value where there is none.

    What is no label is replaced before the density sees it, so that it spoils neither the gradients of other events
    nor that of a shared scale.
    """
    return ops.where(is_label, density(ops.where(is_label, y, ops.zeros_like(y))), otherwise)


def check_shape(y: np.ndarray, events: tuple[int | None, ...], name: str, wanted: str) -> None:
    """The labels must have the events' shape, but for a last axis of one."""
    shapes = [tuple(events)]
    if len(events) > 1 and events[-1] == 1:
        shapes.append(tuple(events[:-1]))
    shapes.append((*events, 1))
    for shape in shapes:
        if y.ndim == len(shape) and all(e is None or e == s for e, s in zip(shape[1:], y.shape[1:], strict=True)):
            return
    expected = tuple("batch" if axis == 0 else size for axis, size in enumerate(events))
    raise ValueError(f"`y` must have shape {expected} for {name}, {wanted}, not {y.shape}.")


def check_numbers(y: np.ndarray, wanted: str) -> None:
    """Names the first entry of labels that are strings, objects or complex numbers."""
    if y.dtype.kind not in "fiub":
        entry = f"; {_index((0,) * y.ndim)} is {y.ravel().tolist()[0]!r}" if y.size else ""
        raise ValueError(f"`y` must hold {wanted}, not {y.dtype}{entry}.")


def check_entries(y: np.ndarray, good: np.ndarray, wanted: str, fix: str = "") -> None:
    """Names the first entry of labels that is not good."""
    if not np.all(good):
        index = tuple(int(i) for i in np.argwhere(~good)[0])
        raise ValueError(f"`y` must hold {wanted}; {_index(index)} is {y[index]}.{fix}")


def _index(index: tuple[int, ...]) -> str:
    return f"y[{', '.join(map(str, index))}]" if index else "y"
