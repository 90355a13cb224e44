"""Likelihoods of labels: one of several classes, or 0 and 1."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from bdl.likelihoods import constants
from bdl.likelihoods.base import Likelihood, check_entries, check_numbers, check_shape, density_of_labels
from bdl.likelihoods.endings import Ending
from bdl.random import Tensor

_PROBABILITY_FLOOR = 1e-7
"""Of given probabilities in training, as Keras' own losses have it: log 0 has no finite gradient."""

_SUM_TOLERANCE = 2.0**-7
"""By which rows of probabilities may miss a sum of 1: machine epsilon of bfloat16, the coarsest of their types."""

_SIGMOIDS = ("sigmoid", "hard_sigmoid")

_register = keras.saving.register_keras_serializable(package="bdl")


class Classifier(Likelihood):
    """A discrete label whose outputs are logits or, of a network that squashes them itself, probabilities.

    `log_prob` is for training: of probabilities it takes one below 1e-7 as 1e-7, so that its gradient is finite.
    `log_probabilities`, on which predictions rest, has no floor.

    Attributes:
        from_logits: Whether outputs are taken for logits.
        follows_network: Whether that was left open, so that `following` decides it for a network.
    """

    is_classifier = True
    squashing: ClassVar[tuple[str, ...]] = ()
    """Activations whose outputs are this likelihood's probabilities."""
    foreign: ClassVar[dict[str, str]] = {}
    """Activations whose outputs are those of another likelihood, by name."""

    def __init__(self, from_logits: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if from_logits not in (None, True, False):
            raise ValueError(f"`from_logits` must be None (as the network ends), True or False, not {from_logits!r}.")
        self.from_logits = from_logits is not False
        self.follows_network = from_logits is None

    def following(self, ending: Ending) -> Classifier:
        """This likelihood for an output that ends so: where it was left open, the ending decides `from_logits`."""
        name, activation = type(self).__name__, ending.activation
        if not ending.is_seen:
            if self.follows_network and activation in self.squashing:
                raise ValueError(
                    f"`likelihood` must say what the outputs are, {name}(from_logits=False) for probabilities or "
                    f"{name}(from_logits=True) for logits, not be {name}(): the network's last layer ends in "
                    f"{activation}, but its `call` does not show whether that makes the outputs."
                )
            return self
        if activation in self.foreign and (self.from_logits or self.has_class_axis):
            raise ValueError(
                f"`likelihood` must be {self.foreign[activation]}() for a network that ends in {activation}, not "
                f"{name}. For {name}() let the network end in raw outputs, without the {activation}."
            )
        if activation not in self.squashing or not self.from_logits:
            return self
        if not self.follows_network:
            raise ValueError(
                f"`likelihood` must be {name}() or {name}(from_logits=False) for a network that ends in {activation}, "
                f"not {name}(from_logits=True). Or remove the {activation}, which is better conditioned."
            )
        return type(self).from_config({**self.get_config(), "from_logits": False})

    def is_in_doubt(self, ending: Ending) -> bool:
        """Probabilities, unless they are seen to be such; of classes logits as well, unless they are seen."""
        if self.from_logits:
            return self.has_class_axis and not ending.is_seen
        return not (ending.is_seen and ending.activation in self.squashing)

    def check_outputs(self, outputs: np.ndarray) -> None:
        """Checks that probabilities are such, and that logits of classes are not."""
        name = type(self).__name__
        total = outputs.sum(axis=-1, dtype=np.float64) if self.has_class_axis else np.ones(len(outputs))
        sums_to_one = np.abs(total - 1) <= _SUM_TOLERANCE
        is_share = (outputs >= 0) & (outputs <= 1 + _SUM_TOLERANCE)
        if self.from_logits and is_share.all() and sums_to_one.all() and outputs.shape[-1] > 1:
            raise ValueError(
                f"`likelihood` must be {name}(from_logits=False) for outputs that are probabilities, as their values "
                f"are for the first examples, not {name}(), which takes what cannot be seen for logits."
            )
        if not self.from_logits and not np.isnan(outputs).any() and not (is_share.all() and sums_to_one.all()):
            outside = outputs[~is_share]
            wrong = f"{outside[0]:.4g}" if len(outside) else f"a row that sums to {total[~sums_to_one][0]:.4g}"
            raise ValueError(
                f"`likelihood` must be {name}() for outputs that are logits, not {name}(from_logits=False): among "
                f"those of the first examples is {wrong}. Or end the network in {self.squashing[0]}."
            )

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """`p`, the outputs' shape: of each class, or of label 1."""
        return {"p": self.mean(outputs)}

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "from_logits": None if self.follows_network else self.from_logits}


@_register
class Categorical(Classifier):
    """One of several classes; the network's last axis holds their logits, or their probabilities.

    Args:
        from_logits: True for raw outputs, False for a network that ends in softmax. None follows what the network
            visibly ends in, and takes what cannot be seen for raw outputs.
        ignore_class: Label of events that do not count, such as 255 or -1 in segmentation maps, as in Keras' losses;
            None if all do. Of labels with an axis of classes, rows of zeros and those of this class do not count.
        **kwargs: `name` of the layer.

    Labels: integers `(batch, ...)`; or with the outputs' shape `(batch, ..., classes)` one-hot, or soft (rows that sum
    to 1), whose log probability is the expected one, `sum_c y_c log p_c`. Outputs: `(batch, ..., classes)`.

    The NLL of an example is the sum over the events that count. Keras' loss is a mean over those of a batch instead,
    which weights an event by how many others have a label in its batch, and has no fixed scale against the KL.

    Raises:
        ValueError: if an argument is of the wrong kind.

    Example:
    >>> likelihood = Categorical(ignore_class=255)
    >>> nll = likelihood.nll(np.array([[0, 1], [3, 255]]), np.zeros((2, 2, 4), "float32"))
    >>> bool(np.allclose(nll, [2 * np.log(4), np.log(4)]))
    True
    """

    has_class_axis = True
    squashing = ("softmax",)
    foreign = dict.fromkeys(_SIGMOIDS, "Bernoulli")

    def __init__(self, from_logits: bool | None = None, ignore_class: int | None = None, **kwargs: Any) -> None:
        super().__init__(from_logits=from_logits, **kwargs)
        if ignore_class is not None and (isinstance(ignore_class, bool) or not hasattr(ignore_class, "__index__")):
            raise ValueError(f"`ignore_class` must be None or an integer, such as 255 or -1, not {ignore_class!r}.")
        self.ignore_class = None if ignore_class is None else int(ignore_class)

    def takes_class_axis(self, y_shape: tuple[int | None, ...], output_shape: tuple[int | None, ...]) -> bool:
        """Whether labels have an axis of classes: as many axes as the outputs, and the last of the same size."""
        return len(y_shape) == len(output_shape) and y_shape[-1] == output_shape[-1] and y_shape[-1] != 1

    def some_label(self, y_shape: tuple[int, ...], output_shape: tuple[int | None, ...]) -> Any:
        """The first class, one-hot where labels have an axis of classes."""
        return np.eye(1, y_shape[-1])[0] if self.takes_class_axis(y_shape, output_shape) else 0

    def has_label(self, y: Tensor, output_shape: tuple[int | None, ...]) -> Tensor | None:
        """False where the label is `ignore_class`."""
        if self.ignore_class is None:
            return None
        y = ops.cast(y, "float32")
        if not self.takes_class_axis(tuple(y.shape), output_shape):
            return y != self.ignore_class
        has_class = ops.max(y, axis=-1) > 0
        if not 0 <= self.ignore_class < y.shape[-1]:
            return has_class
        return ops.logical_and(has_class, y[..., self.ignore_class] != 1)

    def check_aligned(self, y_shape: tuple[int | None, ...], output_shape: tuple[int | None, ...]) -> None:
        """Compares the shapes as any likelihood does; labels may have an axis of classes besides."""
        has_class_axis = self.takes_class_axis(y_shape, output_shape)
        super().check_aligned(y_shape[:-1] if has_class_axis else y_shape, output_shape)

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """`(batch, ...)`, in nats; NaN where the label is neither a class index nor a distribution over classes."""
        y = ops.cast(self._align(ops.convert_to_tensor(y), outputs), "float32")
        if self.takes_class_axis(tuple(y.shape), tuple(outputs.shape)):
            return self._expected_log_prob(y, outputs)
        is_class = (y >= 0) & (y < outputs.shape[-1]) & (y == ops.floor(y))

        def density(labels: Tensor) -> Tensor:
            return -ops.sparse_categorical_crossentropy(ops.cast(labels, "int32"), outputs, self.from_logits)

        return density_of_labels(y, is_class, density)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log probability of each class, the outputs' shape, in nats."""
        if not self.from_logits:
            return super().log_probabilities(outputs)
        return ops.log_softmax(ops.cast(outputs, "float32"), axis=-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Class probabilities."""
        outputs = ops.cast(outputs, "float32")
        return ops.softmax(outputs, axis=-1) if self.from_logits else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are class indices, or distributions over classes, one for each event."""
        classes = output_shape[-1]
        if classes == 1:
            raise ValueError(
                "`likelihood` must fit a network of one output, not be Categorical. Use Bernoulli() for two classes, "
                "or Normal() for a real target."
            )
        if self.takes_class_axis(y.shape, output_shape):
            self._check_distributions(y, output_shape)
            return
        wanted = f"one class index for each output of {classes} logits, or one-hot labels of the outputs' shape"
        check_shape(y, self.event_shape(output_shape), "Categorical", wanted)
        check_numbers(y, "integer class indices for Categorical")
        is_void = np.zeros(y.shape, bool) if self.ignore_class is None else y == self.ignore_class
        if y.dtype.kind == "f":
            check_entries(y, is_void | (y == np.floor(y)), "an integer class index (Normal() is for real targets)")
        is_class = (y >= 0) & (y < (classes or np.inf))
        wanted = f"a class index from 0 to {classes - 1 if classes else '?'}"
        wanted += "" if self.ignore_class is None else f", or {self.ignore_class} (`ignore_class`)"
        check_entries(
            y,
            is_void | is_class,
            wanted,
            " Where an event has no label, use Categorical(ignore_class=...), a `sample_weight` of 0 or a Keras mask.",
        )

    def null_nll(self, y: np.ndarray) -> np.ndarray:
        """`-log` of the frequency of each label; the same frequencies at every place."""
        return constants.frequencies(y, self.ignore_class)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "ignore_class": self.ignore_class}

    def _expected_log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """`sum_c y_c log p_c`, NaN where a row is no distribution."""
        if self.from_logits:
            log_p = ops.log_softmax(outputs, axis=-1)
        else:
            log_p = ops.log(ops.clip(outputs, _PROBABILITY_FLOOR, 1.0 - _PROBABILITY_FLOOR))
        total = ops.sum(y, axis=-1)
        is_distribution = (ops.abs(total - 1.0) <= _SUM_TOLERANCE) & (ops.min(y, axis=-1) >= 0)
        # Chosen before and after, so that neither 0 * -inf nor a row that is no label reaches a gradient.
        has_part = ops.logical_and(y > 0, ops.expand_dims(is_distribution, -1))
        expected = ops.sum(ops.where(has_part, y * ops.where(has_part, log_p, 0.0), 0.0), axis=-1)
        return ops.where(is_distribution, expected, float("nan"))

    def _check_distributions(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """One-hot or soft labels: no entry is negative, and each row sums to 1 unless it does not count."""
        self.check_aligned(y.shape, output_shape)
        check_numbers(y, "distributions over classes for Categorical")
        check_entries(y, y >= 0, "no negative number in labels with an axis of classes")
        total = y.sum(axis=-1, dtype=np.float64)
        has_label = self.has_label(y, output_shape)
        is_void = False if has_label is None else ~ops.convert_to_numpy(has_label)
        good = is_void | (np.abs(total - 1) <= _SUM_TOLERANCE)
        if not np.all(good):
            index = tuple(int(i) for i in np.argwhere(~good)[0])
            raise ValueError(
                f"`y` must hold one-hot or soft labels for Categorical, as its shape {y.shape} says, with rows that "
                f"sum to 1; row {', '.join(map(str, index))} sums to {total[index]:.6g}. Use Bernoulli() for "
                "independent labels, and Categorical(ignore_class=-1) where rows of zeros have no label."
            )


@_register
class Bernoulli(Classifier):
    """Two classes, or several independent labels; each output is the logit of label 1, or its probability.

    Args:
        from_logits: True for raw outputs, False for a network that ends in a sigmoid. None follows what the network
            visibly ends in, and takes what cannot be seen for raw outputs.
        **kwargs: `name` of the layer.

    Labels: 0 or 1, `(batch,)` or the outputs' shape.

    Example:
    >>> nll = Bernoulli().nll(np.array([0, 1]), np.zeros((2, 1), "float32"))
    >>> bool(np.allclose(nll, np.log(2)))
    True
    """

    squashing = _SIGMOIDS
    foreign: ClassVar[dict[str, str]] = {"softmax": "Categorical"}

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The outputs' shape, in nats; NaN where the label is neither 0 nor 1."""
        y = ops.cast(y, "float32")

        def density(labels: Tensor) -> Tensor:
            if self.from_logits:
                return -ops.softplus(ops.where(labels == 1, -outputs, outputs))
            p = ops.clip(outputs, _PROBABILITY_FLOOR, 1.0 - _PROBABILITY_FLOOR)
            return ops.where(labels == 1, ops.log(p), ops.log1p(-p))

        return density_of_labels(y, (y == 0) | (y == 1), density)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log probabilities of label 0 and label 1, the outputs' shape with one more axis of two, in nats."""
        if not self.from_logits:
            return super().log_probabilities(outputs)
        outputs = ops.cast(outputs, "float32")
        return -ops.softplus(ops.stack([outputs, -outputs], axis=-1))

    def mean(self, outputs: Tensor) -> Tensor:
        """Probability of label 1."""
        outputs = ops.cast(outputs, "float32")
        return ops.sigmoid(outputs) if self.from_logits else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are 0 or 1, one for each output."""
        check_shape(y, output_shape, "Bernoulli", "one label for each output")
        check_numbers(y, "0 or 1 for Bernoulli")
        check_entries(y, (y == 0) | (y == 1), "0 or 1 (Categorical() is for more classes)")

    def null_nll(self, y: np.ndarray) -> np.ndarray:
        """Takes the frequency of label 1 for the constant, of each output its own."""
        return constants.bernoulli(y)
