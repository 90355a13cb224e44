"""Monte Carlo prediction and the split of its uncertainty, for any Keras model.

For each input the network is evaluated `num_samples` times. Class probabilities are averaged (never logits, and in
log space, so that a log probability is right however small it is):

    total = H[mean p],   aleatoric = mean H[p],   epistemic = total - aleatoric = mutual information   [nats]

and for a real target with components `p(y | x, w_s)` of mean `m_s` and variance `v_s`

    total = var,   aleatoric = mean v_s,   epistemic = var of m_s   (law of total variance).

Sources: Depeweg et al. 2018, "Decomposition of uncertainty in Bayesian deep learning", eq. 2-5; Kendall & Gal 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from bdl.likelihoods import Categorical, Likelihood, Mixture
from bdl.likelihoods.base import check_entries, check_numbers
from bdl.likelihoods.frozen_mixture import FrozenDistribution, mixture_quantile
from bdl.likelihoods.heads import Likelihoods
from bdl.sampling import Sampler, draw, label_entropy


@dataclass(frozen=True, eq=False)
class ClassificationPrediction:
    """Predictive distribution over classes.

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


@dataclass(frozen=True, eq=False)
class RegressionPrediction:
    """Predictive distribution of a real target or a count: an equal mixture of the samples' distributions.

    Args:
        likelihood: The likelihood of the components.
        parameters: The components' parameters by name, each `(num_samples, n, ...)`; a single target has no axis.
        outputs: Raw network outputs `(num_samples, n, ...)` if they were asked for, else None.
    """

    likelihood: Likelihood
    parameters: dict[str, np.ndarray]
    outputs: np.ndarray | None = None

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

    @property
    def variance(self) -> np.ndarray:
        """Predictive variance, `(n, ...)`, the sum of both."""
        return self.aleatoric + self.epistemic

    @property
    def total_uncertainty(self) -> np.ndarray:
        """The predictive variance."""
        return self.variance

    @property
    def std(self) -> np.ndarray:
        """Predictive standard deviation, `(n, ...)`."""
        return np.sqrt(self.variance)

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

    def _quantile(self, level: float) -> np.ndarray:
        components = self.components
        return mixture_quantile(
            lambda y: components.cdf(y).mean(axis=0), components.ppf(level), level, axis=0, is_count=self.is_count
        )


Prediction = ClassificationPrediction | RegressionPrediction


def predict_distribution(
    model: keras.Model | Sequence[keras.Model],
    x: Any,
    likelihood: Likelihoods,
    num_samples: int = 64,
    batch_size: int = 32,
    consistent: bool = False,
    seed: int | None = None,
    keep_outputs: bool = False,
) -> Any:
    """Predicts with uncertainty from any Keras model: variational, MC dropout, or a list of models (an ensemble).

    Args:
        model: A built Keras model, or a list of them that share the samples equally (each gets at least one).
        x: Inputs, as `model.predict` takes them. Arrays: NumPy, tensors, pandas, scipy sparse matrices, plain lists of
            numbers, on TensorFlow text; in a list or dict for several inputs, None for an optional one that is left
            out. Or a data set, whose labels are ignored: `tf.data.Dataset`, `PyDataset`, Torch `DataLoader`, generator.
        likelihood: What the outputs mean. `Categorical()` follows a network that visibly ends in softmax;
            `Categorical(from_logits=False)` says that outputs are probabilities. For several outputs a dict by their
            names, or a list in their order; one alone serves them all.
        num_samples: Positive number of Monte Carlo samples.
        batch_size: Positive number of inputs evaluated at a time; a data set comes in batches of its own.
            Classification keeps running sums, so that memory does not grow with `num_samples`.
        consistent: True to draw whole functions: sample s uses the same weights for all inputs, so that samples may
            be compared across inputs (`keep_outputs`). False draws afresh for each batch.
        seed: Integer to make the prediction repeatable; None goes on with the layers' own seeds.
        keep_outputs: True to keep the raw network outputs as well, `(num_samples, n, ...)`.

    Returns:
        `ClassificationPrediction` or `RegressionPrediction`; of several outputs a dict or list of them, as `likelihood`
        is, or as the outputs are where one likelihood serves all.

    Raises:
        ValueError: if an argument is out of range, an input is not finite, inputs differ in length, a data set never
            ends, or outputs and likelihood do not fit.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> prediction = predict_distribution(network, np.ones((5, 4)), bdl.likelihoods.Categorical(), num_samples=8)
    >>> prediction.probabilities.shape, prediction.epistemic.shape
    ((5, 3), (5,))
    """
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    if not models:
        raise ValueError("`model` must be a Keras model or a list of at least one, not an empty list.")
    samplers = [_sampler(member, likelihood) for member in models]
    return predict_with(samplers, x, num_samples, batch_size, consistent, seed, keep_outputs)


def _sampler(model: keras.Model, likelihood: Likelihoods) -> Sampler:
    """The model's own sampler, whose compiled functions are kept as long as the model and as the likelihood fits."""
    kept = vars(model).get("_bdl_sampler")
    if kept is None or not kept.serves(likelihood):
        kept = Sampler(model, likelihood)
        object.__setattr__(model, "_bdl_sampler", kept)  # not through Keras, which would track and save it
    return kept


def mean_of_prediction(prediction: Any) -> Any:
    """The predictive mean: class probabilities or the mean of targets; of several outputs in their structure."""
    return keras.tree.map_structure(lambda part: None if part is None else part.mean, prediction)


def predict_with(
    samplers: Sequence[Sampler],
    x: Any,
    num_samples: int,
    batch_size: int | None,
    consistent: bool = False,
    seed: int | None = None,
    keep_outputs: bool = False,
    steps: int | None = None,
) -> Any:
    """`predict_distribution` with samplers that keep their compiled functions between calls.

    Args:
        samplers: Of the networks.
        x: As of `predict_distribution`, as are the others.
        num_samples: Of all networks together.
        batch_size: None for that of `steps`, or Keras' 32.
        consistent: Whether to draw whole functions.
        seed: Of the first network.
        keep_outputs: Whether to keep the raw outputs.
        steps: Number of batches of the data; None takes all.
    """
    arguments: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size, "steps": steps}
    for argument, value in arguments.items():
        is_left_out = value is None and argument != "num_samples"
        if not is_left_out and (not hasattr(value, "__index__") or isinstance(value, bool) or int(value) < 1):
            raise ValueError(f"`{argument}` must be an integer of at least 1, not {value!r}.")
    share = -(-int(num_samples) // len(samplers))
    draws = draw(samplers, x, share, batch_size, consistent, seed, keep_outputs, steps)
    heads = samplers[0].heads
    predictions = {
        name: _prediction(head, [draw[name] for draw in draws], share * len(samplers)) for name, head in heads.items()
    }
    return samplers[0].pack(predictions)


def _prediction(likelihood: Likelihood, draws: list[dict[str, np.ndarray]], num_samples: int) -> Prediction:
    """Joins the draws of the members of an ensemble."""
    outputs = np.concatenate([draw["outputs"] for draw in draws]) if "outputs" in draws[0] else None
    if likelihood.is_classifier:
        log_sums = [draw["p_scale"] + np.log(draw["p_sum"], dtype=np.float64) for draw in draws]
        with np.errstate(invalid="ignore"):  # of outputs that are NaN
            log_p = (np.logaddexp.reduce(log_sums) - np.log(num_samples)).astype(np.float32)
        p = np.exp(log_p if likelihood.has_class_axis else log_p[..., 1])
        total = entropy(likelihood, log_p)
        aleatoric = (np.sum([draw["entropy_sum"] for draw in draws], axis=0) / num_samples).reshape(total.shape)
        return ClassificationPrediction(likelihood, p, total, aleatoric, num_samples, outputs, log_p)
    names = [name for name in draws[0] if name != "outputs"]
    joined = {name: np.concatenate([draw[name] for draw in draws]) for name in names}
    is_single_target = all(value.ndim == 3 and value.shape[-1] == 1 for value in joined.values())
    parameters = {name: value[..., 0] if is_single_target else value for name, value in joined.items()}
    return RegressionPrediction(likelihood, parameters, outputs)


def entropy(likelihood: Likelihood, log_p: np.ndarray) -> np.ndarray:
    """Entropy of log probabilities over their last axis, in nats; a single label has no axis."""
    values = keras.ops.convert_to_numpy(label_entropy(log_p))
    is_single_label = not likelihood.has_class_axis and values.ndim == 2 and values.shape[-1] == 1
    return values[..., 0] if is_single_label else values


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
