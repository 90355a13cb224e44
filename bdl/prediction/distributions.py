"""What was predicted: distributions over classes, and of real targets and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import ArrayLike

from bdl.likelihoods import Categorical, Likelihood, Mixture
from bdl.likelihoods.base import check_entries, check_numbers
from bdl.likelihoods.frozen_mixture import FrozenDistribution, mixture_quantile
from bdl.prediction.glances import NUM_SHOWN, glance, glance_at_targets
from bdl.prediction.variances import SplitVariance
from bdl.report import Paragraph, Shown, Table


@dataclass(frozen=True, eq=False, repr=False)
class ClassificationPrediction(Shown):
    """Predictive distribution over classes; it shows its first events.

    Args:
        likelihood: The likelihood of the labels.
        probabilities: Mean probabilities, `(n, ..., classes)`; for Bernoulli, of label 1, the outputs' shape.
        total_uncertainty: Entropy of the mean probabilities, `(n, ...)`, in nats.
        aleatoric: Mean entropy of the samples, `(n, ...)`, in nats: noise in the data.
        num_samples: Number of samples behind it.
        outputs: Raw network outputs `(num_samples, n, ...)` if they were asked for, else None.
        log_probabilities: Logarithms of the mean probabilities, `(n, ..., classes)`, in nats, exact also where a
            probability is too small for float32; for Bernoulli the outputs' shape with one more axis, of label 0 and
            label 1. None takes them from `probabilities`.

    Example:
    >>> p, total, noise = np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([0.325, 0.693]), np.array([0.2, 0.693])
    >>> ClassificationPrediction(bdl.likelihoods.Categorical(), p, total, noise, num_samples=64)
    ClassificationPrediction: 2 events of Categorical with 2 classes, 64 samples
             class  probability  total [nats]  aleatoric [nats]  epistemic [nats]
    event 0  0      0.9          0.325         0.2               0.125
    event 1  0      0.5          0.693         0.693             0
    """

    likelihood: Likelihood
    probabilities: np.ndarray
    total_uncertainty: np.ndarray
    aleatoric: np.ndarray
    num_samples: int
    outputs: np.ndarray | None = None
    log_probabilities: np.ndarray | None = None

    @property
    def epistemic(self) -> np.ndarray:
        """Mutual information of label and weights, `(n, ...)`, in nats: what more data could remove."""
        return np.maximum(self.total_uncertainty - self.aleatoric, 0.0)

    @property
    def mean(self) -> np.ndarray:
        """The mean probabilities."""
        return self.probabilities

    def glance(self) -> list[Paragraph | Table]:
        """What it is, and the predicted class of the first events with its uncertainty."""
        p = self.probabilities
        if self.likelihood.has_class_axis:
            p = p.reshape(-1, p.shape[-1])[:NUM_SHOWN]
        else:
            p = np.stack([1 - p.ravel()[:NUM_SHOWN], p.ravel()[:NUM_SHOWN]], axis=-1)
        said = p.argmax(axis=-1)
        uncertainty = {"total": self.total_uncertainty, "aleatoric": self.aleatoric, "epistemic": self.epistemic}
        columns = {"class": said, "probability": np.take_along_axis(p, said[:, None], axis=-1)}
        columns |= {f"{name} [nats]": values for name, values in uncertainty.items()}
        shape = self.total_uncertainty.shape
        what = f"{math.prod(shape):,} events of {type(self.likelihood).__name__} with {p.shape[-1]} classes"
        return glance(self, what, shape, columns)

    def joined(self, others: Sequence[ClassificationPrediction]) -> ClassificationPrediction:
        """This prediction and those for the inputs after it as one."""
        parts = [self, *others]
        return ClassificationPrediction(
            self.likelihood,
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.total_uncertainty for part in parts]),
            np.concatenate([part.aleatoric for part in parts]),
            self.num_samples,
            None if self.outputs is None else np.concatenate([part.outputs for part in parts], axis=1),
            None if self.log_probabilities is None else np.concatenate([part.log_probabilities for part in parts]),
        )

    def log_prob(self, y: ArrayLike) -> np.ndarray:
        """Log predictive probability of labels.

        Args:
            y: Labels, `(n, ...)`; NaN, or the likelihood's `ignore_class`, for an event that does not count. Of
                `Categorical` also one-hot or soft labels, `(n, ..., classes)`.

        Returns:
            `(n, ...)`, in nats; -inf where the probability is 0, NaN where there is no label. Of soft labels
            `sum_c y_c log p_c`.

        Raises:
            ValueError: if a label is no class, or there is not one for each event.
        """
        log_p = _log(self.probabilities, self.likelihood) if self.log_probabilities is None else self.log_probabilities
        classes = log_p.shape[-1]
        log_p = log_p.reshape(*self.total_uncertainty.shape, classes)
        kind = self.likelihood.component if isinstance(self.likelihood, Mixture) else self.likelihood
        if isinstance(kind, Categorical) and kind.takes_class_axis(np.shape(y), log_p.shape):
            return _expected(kind, np.asarray(y), log_p)
        labels = _events(y, log_p.shape[:-1])
        numbers = labels.astype(np.float64)
        void = kind.ignore_class if isinstance(kind, Categorical) else None
        is_missing = np.isnan(numbers) | (numbers == (np.nan if void is None else void))
        is_class = (numbers >= 0) & (numbers < classes) & (numbers == np.floor(numbers))
        missing = "NaN" if void is None else f"NaN or {void} (`ignore_class`)"
        wanted = f"a class index from 0 to {classes - 1}, or {missing} for an event that does not count"
        check_entries(labels, is_class | is_missing, wanted)
        index = np.where(is_missing, 0, numbers).astype(int)
        chosen = np.take_along_axis(log_p, index[..., None], axis=-1)[..., 0]
        return np.where(is_missing, np.nan, chosen).astype(log_p.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class RegressionPrediction(SplitVariance, Shown):
    """Predictive distribution of a real target or a count: an equal mixture of the samples' distributions.

    It shows its first events.

    Args:
        likelihood: The likelihood of the components.
        parameters: The components' parameters by name, each `(num_samples, n, ...)`; a single target has no axis.
        outputs: Raw network outputs `(num_samples, n, ...)` if they were asked for, else None.

    Example:
    >>> parameters = {"loc": np.array([[1.0, 5.0], [3.0, 5.0]]), "scale": np.ones((2, 2))}
    >>> RegressionPrediction(bdl.likelihoods.Normal(), parameters)
    RegressionPrediction: 2 examples of Normal, 2 samples
             mean  std    aleatoric std  epistemic std
    event 0  2     1.414  1              1
    event 1  5     1      1              0
    """

    likelihood: Likelihood
    parameters: dict[str, np.ndarray]
    outputs: np.ndarray | None = None

    def glance(self) -> list[Paragraph | Table]:
        """What it is, and mean and standard deviations of the first events."""
        few = self._first(-(-NUM_SHOWN // max(self._first(1).mean.size, 1)))
        return glance_at_targets(self, few, next(iter(self.parameters.values())).shape[1])

    @property
    def num_samples(self) -> int:
        """Number of components."""
        return len(next(iter(self.parameters.values())))

    @property
    def components(self) -> FrozenDistribution:
        """The components as one frozen scipy.stats distribution of batch shape `(num_samples, n, ...)`."""
        return self.likelihood.distribution({name: value.astype(np.float64) for name, value in self.parameters.items()})

    @property
    def mean(self) -> np.ndarray:
        """Predictive mean, `(n, ...)`."""
        return self.components.mean().mean(axis=0)

    @property
    def aleatoric(self) -> np.ndarray:
        """Mean variance of the components, `(n, ...)`: noise in the data."""
        return self.components.var().mean(axis=0)

    @property
    def epistemic(self) -> np.ndarray:
        """Variance of the components' means, `(n, ...)`: what more data could remove."""
        return self.components.mean().var(axis=0)

    def log_prob(self, y: ArrayLike) -> np.ndarray:
        """Log density (of counts: log probability) of targets under the mixture.

        Args:
            y: Targets, `(n, ...)`.

        Returns:
            `(n, ...)`, in nats; NaN where the target is NaN, and -inf for a number that is no count.

        Raises:
            ValueError: if there is not one number for each event.
        """
        components = self.components
        y = _events(y, components.mean().shape[1:]).astype(np.float64)
        log_densities = components.logpmf(y) if self.is_count else components.logpdf(y)
        with np.errstate(invalid="ignore"):  # of a missing target
            return np.logaddexp.reduce(log_densities, axis=0) - np.log(self.num_samples)

    def cdf(self, y: ArrayLike) -> np.ndarray:
        """Predictive probability of a target of at most `y`.

        Args:
            y: Targets, `(n, ...)`.

        Returns:
            `(n, ...)`, from 0 to 1.

        Raises:
            ValueError: if there is not one number for each event.
        """
        components = self.components
        y = _events(y, components.mean().shape[1:]).astype(np.float64)
        return components.cdf(y).mean(axis=0)

    def sample(self, seed: int = 0) -> np.ndarray:
        """One target from each component, noise included: draws from the predictive distribution.

        Args:
            seed: Decides the draws.

        Returns:
            `(num_samples, n, ...)`.
        """
        components = self.components
        return components.rvs(size=components.mean().shape, random_state=np.random.default_rng(seed))

    def quantile(self, q: float | Sequence[float]) -> np.ndarray:
        """Quantiles of the mixture.

        Args:
            q: A level in (0, 1), or several.

        Returns:
            `(n, ...)`, or `(levels, n, ...)` for several levels. Of counts: the smallest count whose cumulative
            probability reaches the level.

        Raises:
            ValueError: if a level lies outside (0, 1).
        """
        levels = np.asarray(q, dtype=np.float64)
        if not np.all((levels > 0) & (levels < 1)):
            raise ValueError(f"`q` must hold levels between 0 and 1, both excluded, not {q!r}.")
        found = np.stack([self._quantile(float(level)) for level in levels.ravel()])
        return found[0] if levels.ndim == 0 else found

    def joined(self, others: Sequence[RegressionPrediction]) -> RegressionPrediction:
        """This prediction and those for the inputs after it as one."""
        parts = [self, *others]
        names = self.parameters
        return RegressionPrediction(
            self.likelihood,
            {name: np.concatenate([part.parameters[name] for part in parts], axis=1) for name in names},
            None if self.outputs is None else np.concatenate([part.outputs for part in parts], axis=1),
        )

    def rescaled(self, scale: ArrayLike, shift: ArrayLike = 0.0) -> RegressionPrediction:
        """The distribution of `shift + scale * y`: of targets in their own unit, where standardised ones were learned.

        Args:
            scale: Positive number, or one for each target: the standard deviation that targets were divided by.
            shift: Number, or one for each target: the mean that was taken off them.

        Returns:
            A prediction whose moments, densities and quantiles are in the targets' own unit; `outputs` stay raw.

        Raises:
            ValueError: if the likelihood is not one of a location and a scale, or `scale` is not positive.

        Example:
        >>> parameters = {"loc": np.zeros((1, 2)), "scale": np.ones((1, 2))}
        >>> prediction = RegressionPrediction(bdl.likelihoods.Normal(), parameters).rescaled(scale=3.0, shift=10.0)
        >>> prediction.mean.tolist(), prediction.std.tolist()
        ([10.0, 10.0], [3.0, 3.0])
        """
        if self.parameters.keys() != {"loc", "scale"}:
            raise ValueError(
                f"`likelihood` must have a location and a scale (Normal, StudentT) to be rescaled, not be "
                f"{type(self.likelihood).__name__}."
            )
        factor, offset = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
        if not np.all((factor > 0) & np.isfinite(factor)):
            raise ValueError(f"`scale` must be positive and finite, not {scale!r}.")
        location, width = (self.parameters[name].astype(np.float64) for name in ("loc", "scale"))
        return RegressionPrediction(
            self.likelihood, {"loc": offset + factor * location, "scale": factor * width}, self.outputs
        )

    @property
    def is_count(self) -> bool:
        """Whether the targets are whole numbers."""
        return hasattr(self.components.dist, "pmf")

    def _first(self, examples: int) -> RegressionPrediction:
        return RegressionPrediction(self.likelihood, {name: v[:, :examples] for name, v in self.parameters.items()})

    def _quantile(self, level: float) -> np.ndarray:
        components = self.components
        return mixture_quantile(
            lambda y: components.cdf(y).mean(axis=0),
            self.log_prob,
            components.ppf(level),
            level,
            axis=0,
            is_count=self.is_count,
        )


def _expected(likelihood: Categorical, y: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """`sum_c y_c log p_c` of labels with an axis of classes, NaN where there is none."""
    likelihood.check_labels(y, log_p.shape)
    has_label = likelihood.has_label(y, log_p.shape)
    expected = np.sum(y * np.where(y > 0, log_p, 0.0), axis=-1)
    return expected if has_label is None else np.where(keras.ops.convert_to_numpy(has_label), expected, np.nan)


def _log(p: np.ndarray, likelihood: Likelihood) -> np.ndarray:
    """Log probabilities of classes, or of label 0 and label 1."""
    with np.errstate(divide="ignore"):  # log 0 is -inf
        return np.log(p) if likelihood.has_class_axis else np.stack([np.log1p(-p), np.log(p)], axis=-1)


def _events(y: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Labels or targets in the events' shape; a missing or superfluous last axis of one is no mistake."""
    array = np.asarray(y)
    check_numbers(array, "numbers")
    if array.shape not in (shape, (*shape, 1)) and (*array.shape, 1) != shape:
        raise ValueError(f"`y` must have shape {shape}, one entry for each event, not {array.shape}.")
    return array.reshape(shape)
