"""What the compiled loss makes of the KL: measured by perturbing it, so that it also judges what others wrote.

With the network's outputs held fixed, the loss depends on the weights only by its KL terms. So each layer's posterior
is moved, once, by a known amount of divergence, and the loss says how often it counts that amount; the outputs are
moved likewise, and it says how it counts the NLL. With `loss = a * mean NLL + c * KL` the temperature is T = N c / a
(Q1, Q2). Where a grows with the batch, as in a sum, T is that of the batches of training, if their size is known; where
the loss is no multiple of the NLL at all (a focal loss, smoothed labels), there is no T.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.diagnostics.foreign import has_own_train_step
from bdl.diagnostics.probe import class_numbers
from bdl.diagnostics.reading import Readings, read_foreign
from bdl.diagnostics.weights import WeightPosterior, aside, total_divergence, weight_posteriors
from bdl.elbo import ELBO
from bdl.likelihoods import Bernoulli, Categorical, Likelihood, Normal
from bdl.likelihoods.heads import Heads
from bdl.protocols import HasTemperature

_PROBE_EXAMPLES = 64
_REPEATS = 8  # draws of the noise, for layers of other libraries that estimate their KL from one sample
_SCALE_FACTOR = 0.5  # by which scales are moved: log 2 nats per weight
_LINEARITY = 0.02  # relative difference of two changes of the loss for the same change of the NLL that is still none
_SAME_SIZE = 1.02  # times which two numbers of examples are one: a dropped last batch, for example
_ROUNDING = float(np.finfo("float32").eps)  # of a loss and of a divergence that are sums over all layers


@dataclass(frozen=True)
class Accounting:
    """How the compiled loss counts.

    Args:
        temperature: N times the multiplier of the KL over that of the summed NLL; 0 if the KL is missing, None where
            it cannot be read.
        counted: Multiplier of each layer's KL over the median layer's, by layer; 0 where it is missing.
        declared: The T that the user asked for; None where there was none to declare.
        errors: Standard error of each multiplier: of sampling, where layers estimate their KL from samples, and of
            rounding, where a layer's KL is a small part of the loss.
        unread: Sentences on what could not be read.
    """

    temperature: float | None
    counted: dict[str, float]
    declared: float | None
    errors: dict[str, float] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @classmethod
    def by_construction(cls, model: HasTemperature, num_examples: int | None = None) -> Accounting:
        """Returns the accounting of a `VariationalModel`, which counts each layer once by construction.

        Args:
            model: The model.
            num_examples: N, where it is known better than from the model, which divides the KL by its own number.
        """
        final = model.final_temperature
        return cls(final * size_ratio(model, num_examples), {}, final)


def measure_accounting(
    model: keras.Model,
    x: Any,
    y: Any,
    likelihood: Likelihood,
    num_examples: int,
    batch_size: float | None = None,
    readings: Readings | None = None,
) -> Accounting | None:
    """Measures T and the share of each layer from the loss that the model was compiled with.

    The model is left as it was, and other threads see nothing of it.

    Args:
        model: A compiled, built Keras model.
        x: A few inputs.
        y: Their labels.
        likelihood: What the outputs mean.
        num_examples: Number of training examples, N.
        batch_size: Examples in a batch of the training, on average; None if unknown.
        readings: Posteriors of layers of other libraries; None reads them.

    Returns:
        The accounting; None for a model without Gaussian weight posteriors, whose loss has no KL to measure, and for
        one whose schedule of T does not know its length yet.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> network.compile("adam", loss=bdl.ELBO(bdl.likelihoods.Categorical(), 100, model=network))
    >>> x, y = np.ones((8, 4), "float32"), np.arange(8) % 3
    >>> round(measure_accounting(network, x, y, bdl.likelihoods.Categorical(), 100).temperature, 3)
    1.0
    """
    readings = read_foreign(model, x) if readings is None else readings
    posteriors = weight_posteriors(model, readings.posteriors)
    if isinstance(model, HasTemperature):
        if not posteriors or model.temperature is None:
            return None
    elif has_own_train_step(model):
        unread = (*readings.unread, _OWN_STEP) if posteriors or readings.silent else readings.unread
        return Accounting(None, {}, None, unread=unread)
    if not posteriors:
        return _of_silent(readings)
    x, y = _head(x), _head(y)
    with aside(model):
        part_of_final = _go_to_end_of_schedule(model)
        loss = _LossOfWeights(model, x, y)
        nll_share = _nll_multiplier(loss, likelihood, y)
        if nll_share is not None and not isinstance(model, HasTemperature):  # whose ELBO is a mean
            nll_share = _at_batch_size(nll_share, model, x, y, likelihood, batch_size)
        shares = {
            name: _kl_multiplier(loss, model, [part for part in posteriors if part.layer == name])
            for name in dict.fromkeys(part.layer for part in posteriors)
        }
    middle = float(np.median([share for share, _ in shares.values() if share > 0] or [0.0]))
    counted = {name: share / middle if middle else 0.0 for name, (share, _) in shares.items()}
    errors = {name: error / middle if middle else 0.0 for name, (_, error) in shares.items()}
    declared, unread = declared_temperature(model), readings.unread
    if nll_share is None:
        sentence = _NO_NLL.format(likelihood=type(likelihood).__name__)
        return Accounting(None, counted, declared, errors, (*unread, sentence))
    if np.isnan(nll_share):
        return Accounting(None, counted, declared, errors, (*unread, _NO_BATCH_SIZE))
    temperature = num_examples * middle / max(nll_share, 1e-12) / part_of_final
    return Accounting(temperature, counted, declared, errors, (*unread, *_silent(readings)))


_OWN_STEP = (
    "The model trains by a `train_step` of its own, which may count the KL as it likes: T cannot be read from the "
    "compiled loss."
)
_NO_NLL = (
    "The compiled loss is no multiple of the NLL of {likelihood} (a focal loss, smoothed labels and the like are "
    "none): there is no temperature T to be read from it."
)
_NO_BATCH_SIZE = (
    "The compiled loss is a sum over the batch, so that T depends on the batch size of the training, which is not "
    "known: pass batch_size= to diagnose, or the record of the training. T cannot be read."
)


def _of_silent(readings: Readings) -> Accounting | None:
    """Of a model without any posterior that could be read."""
    unread = (*readings.unread, *_silent(readings))
    return Accounting(None, {}, None, unread=unread) if unread else None


def _silent(readings: Readings) -> tuple[str, ...]:
    if not readings.silent:
        return ()
    names = ", ".join(readings.silent)
    return (
        f"Layers that draw noise and look like posteriors add nothing to the loss: {names}. If they are, their KL is "
        "missing.",
    )


def declared_temperature(model: keras.Model) -> float | None:
    """The temperature at the end of training that a model's owner asked for, where bdl was asked."""
    if isinstance(model, HasTemperature):
        return model.final_temperature
    loss = getattr(model, "loss", None)
    return loss.kl_weight if isinstance(loss, ELBO) else None


def likelihood_of(model: Any, likelihood: Likelihood | None = None) -> Likelihood:
    """The likelihood that a model was trained with: its own, or what its compiled loss is the NLL of.

    Args:
        model: A Keras model, or a list of them.
        likelihood: Taken as it is unless None.

    Raises:
        ValueError: if it cannot be told.
    """
    model = model[0] if isinstance(model, (list, tuple)) else model
    found = (
        likelihood or getattr(model, "likelihood", None) or getattr(getattr(model, "loss", None), "likelihood", None)
    )
    if isinstance(found, (Mapping, list, tuple)):
        raise ValueError(
            "`model` must have one output to be diagnosed, not a likelihood for each of several. Diagnose the outputs "
            "apart: a keras.Model of one of them, with `likelihood=` its own."
        )
    if isinstance(found, Likelihood):
        following: Likelihood = Heads(found, model).likelihood  # type: ignore[assignment]
        return following
    loss = getattr(model, "loss", None)
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", None))
    config: dict[str, Any] = getattr(loss, "get_config", dict)()  # of tf_keras, too
    from_logits = bool(config.get("from_logits", False))
    if name in ("sparse_categorical_crossentropy", "categorical_crossentropy"):
        return Categorical(from_logits=from_logits, ignore_class=config.get("ignore_class"))
    if name == "binary_crossentropy":
        return Bernoulli(from_logits=from_logits)
    if name in ("mse", "mean_squared_error"):
        return Normal(scale=0.5**0.5)  # the Gaussian whose NLL is the squared error plus a constant
    raise ValueError(
        f"`likelihood` is needed: it cannot be told from the loss {name!r}. Pass likelihood=, such as "
        "bdl.likelihoods.Categorical() for logits."
    )


class _LossOfWeights:
    """The compiled loss as a function of the weights' KL and of the outputs, each apart.

    Layers of other libraries may estimate their KL from one sample of the weights: then the loss is taken under several
    draws of the noise, the same ones for every state of the weights, so that differences are nearly free of it.
    """

    def __init__(self, model: keras.Model, x: Any, y: Any) -> None:
        self._model, self._x, self._y = model, ops.convert_to_tensor(x), ops.convert_to_tensor(y)
        with aside(model):
            self.outputs = ops.convert_to_numpy(model(self._x, training=True))
        with aside(model):
            first = [self._once(), self._once()]
        self._num_draws = 1 if first[0] == first[1] else _REPEATS
        self.own = self.values()

    def values(self) -> np.ndarray:
        """The loss for the weights as they are, under each draw of the noise."""
        with aside(self._model):  # every time from the same seeds
            return np.array([self._once() for _ in range(self._num_draws)])

    def change(self, outputs: np.ndarray) -> float:
        """The loss of other outputs minus that of the network's own, under one and the same draw of the KL."""
        return self._value(outputs) - self._value(self.outputs)

    def _once(self) -> float:
        self._model(self._x, training=True)  # refreshes what layers report by add_loss
        return self._value(self.outputs)

    def _value(self, outputs: np.ndarray) -> float:
        before = [(variable, variable.value) for variable in self._model.non_trainable_variables]
        loss = self._model.compute_loss(self._x, self._y, ops.convert_to_tensor(outputs), training=True)
        for variable, value in before:  # the count of steps, on which T may depend
            variable.assign(value)
        return float(ops.convert_to_numpy(loss))


def _nll_multiplier(loss: _LossOfWeights, likelihood: Likelihood, y: Any) -> float | None:
    """Change of the loss for a change of the mean NLL, from several sets of outputs; None if it is not one number."""

    def mean_nll(values: np.ndarray) -> float:
        nll = likelihood.nll(
            ops.convert_to_tensor(class_numbers(y, likelihood, values.ndim)), ops.convert_to_tensor(values)
        )
        return float(np.mean(ops.convert_to_numpy(nll)))

    before = mean_nll(loss.outputs)
    others = _other_outputs(loss.outputs, likelihood)
    nll = np.array([mean_nll(other) - before for other in others])
    changes = np.array([loss.change(other) for other in others])
    multiplier = float(nll @ changes / max(float(nll @ nll), 1e-12))
    size = max(float(np.abs(loss.own).max()), float(np.abs(changes).max()))
    allowed = _LINEARITY * np.abs(changes).max() + 8.0 * _ROUNDING * size
    return multiplier if np.all(np.abs(changes - multiplier * nll) <= allowed) else None


def _other_outputs(outputs: np.ndarray, likelihood: Likelihood) -> list[np.ndarray]:
    """Outputs of other examples, weaker ones, and some that were moved by hand, in case all are alike."""
    random = np.random.default_rng(0)
    rolled = np.roll(outputs, 1, axis=0)
    if isinstance(likelihood, (Categorical, Bernoulli)) and not likelihood.from_logits:
        classes = outputs.shape[-1] if likelihood.has_class_axis else 2
        moved = np.clip(outputs * np.exp(random.normal(size=outputs.shape)), 1e-3, 1.0 - 1e-3)
        moved = moved / moved.sum(axis=-1, keepdims=True) if likelihood.has_class_axis else moved
        found = [rolled, 0.5 * outputs + 0.5 / classes, moved]
    else:
        noise = random.normal(size=outputs.shape)
        found = [rolled, 0.5 * outputs, outputs + noise * max(float(outputs.std()), 0.5)]
    return [each.astype(outputs.dtype) for each in found]


def _at_batch_size(
    multiplier: float, model: Any, x: Any, y: Any, likelihood: Likelihood, batch_size: float | None
) -> float:
    """The multiplier in a batch of training; NaN where it depends on its size, and this is not known."""
    size = len(np.asarray(y))
    if size < 2:
        return multiplier
    half = size // 2
    smaller = _nll_multiplier(_LossOfWeights(model, _head(x, half), _head(y, half)), likelihood, _head(y, half))
    if smaller is None or abs(smaller - multiplier) <= _LINEARITY * abs(multiplier):
        return multiplier
    is_sum = abs(smaller * size / half - multiplier) <= _LINEARITY * abs(multiplier)
    return multiplier * batch_size / size if is_sum and batch_size is not None else float("nan")


def _kl_multiplier(loss: _LossOfWeights, model: keras.Model, posteriors: list[WeightPosterior]) -> tuple[float, float]:
    """Change of the loss for a change of one layer's divergence, and its error: of noise draws and of rounding."""
    before = total_divergence(model, posteriors)
    with aside(model):
        for part in posteriors:
            part.assign(part.mean, _SCALE_FACTOR * part.scale)
        change = total_divergence(model, posteriors) - before
        multipliers = (loss.values() - loss.own) / change
    multiplier = float(multipliers.mean())
    sampling = float(multipliers.std(ddof=1) / np.sqrt(len(multipliers))) if len(multipliers) > 1 else 0.0
    rounding = _ROUNDING * (float(np.abs(loss.own).max()) + abs(multiplier * before)) / abs(change)
    error = float(np.hypot(sampling, rounding))
    return (multiplier, error) if multiplier > 1e-12 else (0.0, error)


def present_temperature(model: Any, num_examples: int | None = None) -> float | None:
    """T that a model's training has come to, None where it does not tell or has not begun.

    Of a schedule that goes on for ever it is the average.

    Args:
        model: The model.
        num_examples: N, where it is known better than from the model.
    """
    if not isinstance(model, HasTemperature) or model.temperature is None:
        return None
    now = model.temperature * size_ratio(model, num_examples)
    with aside(model):
        return now / _go_to_end_of_schedule(model)


def size_of(model: Any, given: int | None = None) -> int | None:
    """N: as given, else what `fit` measured, else what the model was told."""
    return given or getattr(model, "measured_examples", None) or getattr(model, "num_examples", None)


def size_ratio(model: Any, num_examples: int | None) -> float:
    """N over the number by which a model's objective divides its KL, which T grows by; 1 where one is not known."""
    own = getattr(model, "num_examples", None)
    return num_examples / own if num_examples and own else 1.0


def told_examples(own: int | None, num_examples: int | None) -> int | None:
    """What a model believes N to be, where it is so wrong that T is; else None."""
    is_wrong = bool(own and num_examples) and not 1 / _SAME_SIZE < num_examples / own < _SAME_SIZE  # type: ignore[operator]
    return own if is_wrong else None


def _go_to_end_of_schedule(model: Any) -> float:
    """T there over the final one: 1, but for a schedule without an end, which averages to it."""
    if not isinstance(model, HasTemperature):
        return 1.0
    model.end_schedule()
    reached, final = model.temperature, model.final_temperature
    return 1.0 if reached is None or reached == final else reached / final  # a constant T may be 0


def _head(values: Any, size: int = _PROBE_EXAMPLES) -> Any:
    return keras.tree.map_structure(lambda leaf: np.asarray(leaf)[:size], values)


def with_counts(layers: Any, accounting: Accounting | None) -> Any:
    """Layers with how often the loss counts each."""
    if accounting is None:
        return layers
    return tuple(
        dataclasses.replace(
            layer,
            counted=accounting.counted.get(layer.name),
            counted_error=accounting.errors.get(layer.name),
        )
        for layer in layers
    )
