"""Likelihoods: what a network's outputs say about the data.

A likelihood is a Keras layer, so that a learned scale is trained, saved and loaded with the model. It reads raw network
outputs in float32. The NLL of an example is the **sum** over its unmasked events (tokens, pixels, targets): a mean
over them would scale the likelihood by the sequence length and with it the temperature of the ELBO.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from bdl.priors import _check_positive
from bdl.random import Tensor

MIN_LIKELIHOOD_SCALE = 1e-4
"""Floor of a learned or predicted scale: a density may not grow without bound on repeated targets."""
_LEARNED_SPEED = 10.0  # a learned scale is softplus(10 * raw): it moves as fast as the network does
_PROBABILITY_FLOOR = 1e-7

_register = keras.saving.register_keras_serializable(package="bdl")


class Likelihood(keras.layers.Layer):
    """Base of all likelihoods.

    Subclasses give `parameters`, `log_prob` and `check_labels`, and `distribution` where they are not classifiers.
    """

    is_classifier: ClassVar[bool] = False
    has_class_axis: ClassVar[bool] = False

    def __init__(self, **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"  # densities and their scales stay in full precision under any policy
        super().__init__(**kwargs)
        self.built = True  # a learned scale does not depend on the shape of the data

    def call(self, outputs: Tensor) -> Tensor:
        """The mean of the likelihood, so that it can end a Keras model."""
        return self.mean(outputs)

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """Parameters of the distribution of each event, named as in scipy.stats."""
        raise NotImplementedError

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Log density of each event, `(batch, ...)`, in nats."""
        raise NotImplementedError

    def mean(self, outputs: Tensor) -> Tensor:
        """Mean of each event; for a classifier its class probabilities."""
        raise NotImplementedError

    def distribution(self, parameters: dict[str, np.ndarray]) -> Any:
        """The frozen scipy.stats distribution with these parameters (not for classifiers)."""
        raise NotImplementedError

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks labels against the shape of the network's outputs.

        Raises:
            ValueError: if shape, type or values do not fit; it names the first bad entry and the fix.
        """
        raise NotImplementedError

    def nll(self, y: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Negative log likelihood of each example.

        Args:
            y: Labels, `(batch, ...)`.
            outputs: Network outputs.
            mask: Boolean, `(batch, ...)`, False where an event does not count; broadcast over trailing event axes.

        Returns:
            `(batch,)`, the sum over unmasked events, in nats, float32.
        """
        y = ops.convert_to_tensor(y)
        outputs = ops.cast(outputs, "float32")
        y = self._align(y, outputs)
        self._check_aligned(y, outputs)
        if mask is not None:
            # Padding may hold any label; it must not reach the density, for 0 * nan is nan.
            y = ops.where(_expand_to_rank(ops.cast(mask, "bool"), len(y.shape)), y, ops.zeros_like(y))
        events = self.log_prob(y, outputs)
        if mask is not None:
            keep = ops.cast(_expand_to_rank(mask, len(events.shape)), events.dtype)
            events = events * keep
        return -ops.sum(ops.reshape(events, (ops.shape(events)[0], -1)), axis=-1)

    def event_shape(self, output_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shape of the labels that belong to outputs of a shape, both with the batch."""
        return output_shape[:-1] if self.has_class_axis else output_shape

    def _check_aligned(self, y: Tensor, outputs: Tensor) -> None:
        """Labels and outputs of different shapes would broadcast to a density of nothing in particular."""
        found, expected = tuple(y.shape), self.event_shape(tuple(outputs.shape))
        pairs = zip(found[1:], expected[1:], strict=False)
        if len(found) != len(expected) or any(None not in pair and pair[0] != pair[1] for pair in pairs):
            raise ValueError(
                f"`y` has shape {found}, but {type(self).__name__} needs {expected} for outputs of shape "
                f"{tuple(outputs.shape)}."
            )

    def _align(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Labels in the shape of the events: a missing or superfluous last axis of one is no mistake."""
        rank = len(self.event_shape(tuple(outputs.shape)))
        if len(y.shape) == rank - 1:
            return ops.expand_dims(y, -1)
        if len(y.shape) == rank + 1 and y.shape[-1] == 1:
            return ops.squeeze(y, -1)
        return y


class _Classifier(Likelihood):
    """A discrete label whose outputs are logits or, of a network that squashes them itself, probabilities."""

    is_classifier = True

    def __init__(self, from_logits: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """`p`, the outputs' shape: of each class, or of label 1."""
        return {"p": self.mean(outputs)}

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "from_logits": self.from_logits}


@_register
class Categorical(_Classifier):
    """One of several classes; the network's last axis holds their logits.

    Args:
        from_logits: True for raw outputs; False for a network that ends in softmax.
        **kwargs: `name` of the layer.

    Labels: integers `(batch, ...)`, outputs `(batch, ..., classes)`.

    Example:
    >>> likelihood = Categorical()
    >>> nll = likelihood.nll(np.array([0, 1]), np.zeros((2, 4), "float32"))
    >>> bool(np.allclose(nll, np.log(4)))
    True
    """

    has_class_axis = True

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """`(batch, ...)`, in nats."""
        labels = ops.cast(y, "int32")
        return -ops.sparse_categorical_crossentropy(labels, outputs, from_logits=self.from_logits)

    def mean(self, outputs: Tensor) -> Tensor:
        """Class probabilities."""
        outputs = ops.cast(outputs, "float32")
        return ops.softmax(outputs, axis=-1) if self.from_logits else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are class indices, one for each event."""
        classes = output_shape[-1]
        if y.ndim == len(output_shape) and y.shape[-1] == classes and classes != 1:
            raise ValueError(
                f"`y` looks one-hot (shape {y.shape}) but Categorical takes class indices. Use y.argmax(-1)."
            )
        _check_shape(
            y, self.event_shape(output_shape), "Categorical", f"one class index for each output of {classes} logits"
        )
        if classes == 1:
            raise ValueError(
                "`likelihood` is Categorical but the network has one output. Use Bernoulli() for two classes, or "
                "Normal() for a real target."
            )
        if y.dtype.kind == "f":
            _check_entries(y, y == np.floor(y), "an integer class index (Normal() is for real targets)")
        elif y.dtype.kind not in "iub":
            raise ValueError(f"`y` must hold integer class indices for Categorical, not {y.dtype}.")
        _check_entries(y, (y >= 0) & (y < classes), f"a class index from 0 to {classes - 1 if classes else '?'}")


@_register
class Bernoulli(_Classifier):
    """Two classes, or several independent labels; each output is the logit of label 1.

    Args:
        from_logits: True for raw outputs; False for a network that ends in a sigmoid.
        **kwargs: `name` of the layer.

    Labels: 0 or 1, `(batch,)` or the outputs' shape.

    Example:
    >>> nll = Bernoulli().nll(np.array([0, 1]), np.zeros((2, 1), "float32"))
    >>> bool(np.allclose(nll, np.log(2)))
    True
    """

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The outputs' shape, in nats."""
        y = ops.cast(y, "float32")
        if self.from_logits:
            return y * outputs - ops.softplus(outputs)
        p = ops.clip(outputs, _PROBABILITY_FLOOR, 1.0 - _PROBABILITY_FLOOR)
        return y * ops.log(p) + (1.0 - y) * ops.log1p(-p)

    def mean(self, outputs: Tensor) -> Tensor:
        """Probability of label 1."""
        outputs = ops.cast(outputs, "float32")
        return ops.sigmoid(outputs) if self.from_logits else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are 0 or 1, one for each output."""
        _check_shape(y, output_shape, "Bernoulli", "one label for each output")
        _check_entries(y, (y == 0) | (y == 1), "0 or 1 (Categorical() is for more classes)")


class _LocationScale(Likelihood):
    """A real target around the network's output, with a fixed, learned or predicted scale."""

    def __init__(self, scale: float | None = None, heteroscedastic: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if scale is not None:
            _check_positive("scale", scale, "None (learned) or ")
            if heteroscedastic:
                raise ValueError(
                    "`scale` and `heteroscedastic=True` exclude each other: the network predicts the scale."
                )
        self.scale = scale
        self.heteroscedastic = heteroscedastic
        if scale is None and not heteroscedastic:
            self.raw_scale = self.add_weight(
                name="raw_scale",
                shape=(),
                initializer=keras.initializers.Constant(math.log(math.expm1(1.0)) / _LEARNED_SPEED),
                dtype="float32",
            )

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """`loc` and `scale`, the shape of the targets."""
        outputs = ops.cast(outputs, "float32")
        if not self.heteroscedastic:
            return {"loc": outputs, "scale": ops.broadcast_to(self._shared_scale(), ops.shape(outputs))}
        location, raw = ops.split(outputs, 2, axis=-1)
        return {"loc": location, "scale": MIN_LIKELIHOOD_SCALE + ops.softplus(raw)}

    def mean(self, outputs: Tensor) -> Tensor:
        """The location. It reads no variable: metrics call it where, on JAX, variables have no value."""
        outputs = ops.cast(outputs, "float32")
        return ops.split(outputs, 2, axis=-1)[0] if self.heteroscedastic else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that there is one finite target for each location."""
        name = type(self).__name__
        if self.heteroscedastic and output_shape[-1] is not None and output_shape[-1] % 2:
            raise ValueError(
                f"`likelihood` {name}(heteroscedastic=True) reads mean and raw scale from the network's last axis, "
                f"which must be even, not {output_shape[-1]}."
            )
        _check_shape(y, self.event_shape(output_shape), name, "one target for each output")
        if y.dtype.kind not in "fiub":
            raise ValueError(f"`y` must hold numbers for {name}, not {y.dtype}.")

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "scale": self.scale, "heteroscedastic": self.heteroscedastic}

    def event_shape(self, output_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The outputs' shape, or half of their last axis where they hold mean and scale."""
        last = output_shape[-1]
        halved = last if last is None or not self.heteroscedastic else last // 2
        return (*output_shape[:-1], halved)

    def _shared_scale(self) -> Tensor:
        if self.scale is not None:
            return ops.convert_to_tensor(np.float32(self.scale))
        return MIN_LIKELIHOOD_SCALE + ops.softplus(_LEARNED_SPEED * ops.convert_to_tensor(self.raw_scale))

    def _align(self, y: Tensor, outputs: Tensor) -> Tensor:
        return ops.cast(super()._align(y, outputs), "float32")


@_register
class Normal(_LocationScale):
    """Gaussian targets around the network's output.

    Args:
        scale: Positive standard deviation, or None to learn one (by maximum likelihood).
        heteroscedastic: True to read mean and raw scale from the two halves of the network's last axis; the scale
            is `softplus(raw)`.
        **kwargs: `name` of the layer.

    Targets: `(batch,)` or the shape of the means. Standardise them: a learned scale starts at 1.

    Raises:
        ValueError: if `scale` is not positive, or is given together with `heteroscedastic`.

    Example:
    >>> nll = Normal(scale=1.0).nll(np.array([0.0]), np.zeros((1, 1), "float32"))
    >>> bool(np.allclose(nll, 0.5 * np.log(2 * np.pi)))
    True
    """

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The targets' shape, in nats."""
        values = self.parameters(outputs)
        z = (y - values["loc"]) / values["scale"]
        return -0.5 * ops.square(z) - ops.log(values["scale"]) - 0.5 * math.log(2 * math.pi)

    def distribution(self, parameters: dict[str, np.ndarray]) -> Any:
        """scipy.stats.norm."""
        from scipy import stats

        return stats.norm(**parameters)


@_register
class StudentT(_LocationScale):
    """Heavy-tailed targets around the network's output.

    Args:
        degrees_of_freedom: Number above 2, so that the variance exists.
        scale: Positive scale, or None to learn one.
        heteroscedastic: True to read location and raw scale from the two halves of the network's last axis.
        **kwargs: `name` of the layer.

    Targets: `(batch,)` or the shape of the locations.

    Raises:
        ValueError: if an argument is out of range.

    Example:
    >>> likelihood = StudentT(degrees_of_freedom=5.0, scale=1.0)
    >>> float(likelihood.nll(np.array([0.0]), np.zeros((1, 1), "float32"))[0])
    0.9686
    """

    def __init__(
        self,
        degrees_of_freedom: float = 4.0,
        scale: float | None = None,
        heteroscedastic: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(scale=scale, heteroscedastic=heteroscedastic, **kwargs)
        if not (degrees_of_freedom > 2 and math.isfinite(degrees_of_freedom)):
            raise ValueError(f"`degrees_of_freedom` must be a finite number above 2, not {degrees_of_freedom!r}.")
        self.degrees_of_freedom = degrees_of_freedom

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The targets' shape, in nats."""
        values = self.parameters(outputs)
        df = self.degrees_of_freedom
        z = (y - values["loc"]) / values["scale"]
        constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        return constant - ops.log(values["scale"]) - 0.5 * (df + 1) * ops.log1p(ops.square(z) / df)

    def distribution(self, parameters: dict[str, np.ndarray]) -> Any:
        """scipy.stats.t."""
        from scipy import stats

        return stats.t(self.degrees_of_freedom, **parameters)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "degrees_of_freedom": self.degrees_of_freedom}


@_register
class Poisson(Likelihood):
    """Counts; each output is the logarithm of a rate.

    Labels: non-negative integers, `(batch,)` or the outputs' shape.

    Example:
    >>> nll = Poisson().nll(np.array([0]), np.zeros((1, 1), "float32"))
    >>> float(nll[0])
    1.0
    """

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """`mu`, the rate."""
        return {"mu": self.mean(outputs)}

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The outputs' shape, in nats."""
        y = ops.cast(y, "float32")
        return y * outputs - ops.exp(outputs) - log_gamma(y + 1.0)

    def mean(self, outputs: Tensor) -> Tensor:
        """The rate."""
        return ops.exp(ops.cast(outputs, "float32"))

    def distribution(self, parameters: dict[str, np.ndarray]) -> Any:
        """scipy.stats.poisson."""
        from scipy import stats

        return stats.poisson(**parameters)

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are counts, one for each output."""
        _check_counts(y, output_shape, "Poisson")


@_register
class NegativeBinomial(Likelihood):
    """Overdispersed counts; each output is the logarithm of a mean.

    The variance is `mean + mean^2 / total_count`; Poisson is the limit of a large `total_count`.

    Args:
        total_count: Positive number (inverse dispersion), or None to learn one by maximum likelihood.
        **kwargs: `name` of the layer.

    Labels: non-negative integers, `(batch,)` or the outputs' shape.

    Raises:
        ValueError: if `total_count` is not positive.

    Example:
    >>> nll = NegativeBinomial(total_count=1.0).nll(np.array([0]), np.zeros((1, 1), "float32"))
    >>> bool(np.allclose(nll, np.log(2)))  # geometric with success probability one half
    True
    """

    def __init__(self, total_count: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if total_count is not None:
            _check_positive("total_count", total_count, "None (learned) or ")
        self.total_count = total_count
        if total_count is None:
            self.raw_total_count = self.add_weight(
                name="raw_total_count",
                shape=(),
                initializer=keras.initializers.Constant(math.log(math.expm1(1.0)) / _LEARNED_SPEED),
                dtype="float32",
            )

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """`n` (total count) and `p`, as in scipy.stats.nbinom."""
        mean = self.mean(outputs)
        count = self._count()
        return {"n": ops.broadcast_to(count, ops.shape(mean)), "p": count / (count + mean)}

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The outputs' shape, in nats."""
        y = ops.cast(y, "float32")
        count = self._count()
        log_total = ops.logaddexp(ops.log(count), outputs)
        normaliser = log_gamma(y + count) - log_gamma(count) - log_gamma(y + 1.0)
        return normaliser + count * (ops.log(count) - log_total) + y * (outputs - log_total)

    def mean(self, outputs: Tensor) -> Tensor:
        """The mean count."""
        return ops.exp(ops.cast(outputs, "float32"))

    def distribution(self, parameters: dict[str, np.ndarray]) -> Any:
        """scipy.stats.nbinom."""
        from scipy import stats

        return stats.nbinom(**parameters)

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are counts, one for each output."""
        _check_counts(y, output_shape, "NegativeBinomial")

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "total_count": self.total_count}

    def _count(self) -> Tensor:
        if self.total_count is not None:
            return ops.convert_to_tensor(np.float32(self.total_count))
        return MIN_LIKELIHOOD_SCALE + ops.softplus(_LEARNED_SPEED * ops.convert_to_tensor(self.raw_total_count))


def log_gamma(x: Tensor) -> Tensor:
    """Logarithm of the gamma function, which `keras.ops` lacks."""
    x = ops.convert_to_tensor(x)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.math.lgamma(x)
    if backend == "jax":
        import jax

        return jax.scipy.special.gammaln(x)
    import torch

    return torch.lgamma(x)


def _expand_to_rank(mask: Tensor, rank: int) -> Tensor:
    while len(mask.shape) < rank:
        mask = ops.expand_dims(mask, -1)
    return mask


def _check_shape(y: np.ndarray, events: tuple[int | None, ...], name: str, wanted: str) -> None:
    """The labels must have the events' shape, but for a last axis of one."""
    shapes = [tuple(events)]
    if len(events) > 1 and events[-1] == 1:
        shapes.append(tuple(events[:-1]))
    shapes.append((*events, 1))
    for shape in shapes:
        if y.ndim == len(shape) and all(e is None or e == s for e, s in zip(shape[1:], y.shape[1:], strict=True)):
            return
    expected = tuple("batch" if axis == 0 else size for axis, size in enumerate(events))
    raise ValueError(f"`y` has shape {y.shape}, but {name} needs {wanted}: shape {expected}.")


def _check_counts(y: np.ndarray, output_shape: tuple[int | None, ...], name: str) -> None:
    _check_shape(y, output_shape, name, "one count for each output")
    _check_entries(y, (y >= 0) & (y == np.floor(y)), f"a non-negative integer, for {name} models counts")


def _check_entries(y: np.ndarray, good: np.ndarray, wanted: str) -> None:
    if not np.all(good):
        index = tuple(int(i) for i in np.argwhere(~good)[0])
        raise ValueError(f"`y` must hold {wanted}; y[{', '.join(map(str, index))}] is {y[index]}.")
