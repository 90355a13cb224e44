"""What the compiled loss makes of the KL: measured by perturbing it, so that it also judges what others wrote.

With the network's outputs held fixed, the loss depends on the weights only by its KL terms. So each layer's posterior
is moved, once, by a known amount of divergence, and the loss says how often it counts that amount; the outputs are
moved likewise, and it says how it counts the NLL. With `loss = a * mean NLL + c * KL` the temperature is T = N c / a
(Q1, Q2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.diagnostics.probe import class_numbers
from bdl.diagnostics.weights import WeightPosterior, aside, total_divergence, weight_posteriors
from bdl.elbo import ELBO
from bdl.likelihoods import Bernoulli, Categorical, Likelihood, Normal
from bdl.likelihoods.heads import Heads
from bdl.protocols import HasTemperature

_PROBE_EXAMPLES = 64
_REPEATS = 8  # draws of the noise, for layers of other libraries that estimate their KL from one sample
_SCALE_FACTOR = 0.5  # by which scales are moved: log 2 nats a weight
_ROUNDING = float(np.finfo("float32").eps)  # of a loss and of a divergence that are sums over all layers


@dataclass(frozen=True)
class Accounting:
    """How the compiled loss counts.

    Args:
        temperature: N times the multiplier of the KL over that of the summed NLL; 0 if the KL is missing.
        counted: Multiplier of each layer's KL over the median layer's, by layer; 0 where it is missing.
        declared: The T that the user asked for; None where there was none to declare.
        errors: Standard error of each multiplier: of sampling, where layers estimate their KL from samples, and of
            rounding, where a layer's KL is a small part of the loss.
    """

    temperature: float
    counted: dict[str, float]
    declared: float | None
    errors: dict[str, float] = field(default_factory=dict)

    @classmethod
    def by_construction(cls, model: HasTemperature) -> Accounting:
        """That of a `VariationalModel`, whose ELBO counts each layer once and has no way not to."""
        return cls(model.final_temperature, {}, model.final_temperature)


def measure_accounting(
    model: keras.Model, x: Any, y: Any, likelihood: Likelihood, num_examples: int
) -> Accounting | None:
    """Measures T and the share of each layer from the loss that the model was compiled with.

    The model is left as it was, and other threads see nothing of it.

    Args:
        model: A compiled, built Keras model.
        x: A few inputs.
        y: Their labels.
        likelihood: What the outputs mean.
        num_examples: Number of training examples, N.

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
    posteriors = weight_posteriors(model)
    if not posteriors or (isinstance(model, HasTemperature) and model.temperature is None):
        return None
    x, y = _head(x), _head(y)
    with aside(model):
        part_of_final = _go_to_end_of_schedule(model)
        loss = _LossOfWeights(model, x, y)
        nll_share = _nll_multiplier(loss, likelihood, y)
        shares = {
            name: _kl_multiplier(loss, model, [part for part in posteriors if part.layer == name])
            for name in dict.fromkeys(part.layer for part in posteriors)
        }
    middle = float(np.median([share for share, _ in shares.values() if share > 0] or [0.0]))
    counted = {name: share / middle if middle else 0.0 for name, (share, _) in shares.items()}
    errors = {name: error / middle if middle else 0.0 for name, (_, error) in shares.items()}
    temperature = num_examples * middle / max(nll_share, 1e-12) / part_of_final
    return Accounting(temperature, counted, declared_temperature(model), errors)


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
    config: dict[str, Any] = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
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


def _nll_multiplier(loss: _LossOfWeights, likelihood: Likelihood, y: Any) -> float:
    """Change of the loss for a change of the mean NLL, from two sets of outputs."""
    outputs = loss.outputs
    other = np.roll(outputs, 1, axis=0) if np.ptp(outputs, axis=0).any() else outputs[..., ::-1]

    def mean_nll(values: np.ndarray) -> float:
        nll = likelihood.nll(
            ops.convert_to_tensor(class_numbers(y, likelihood, values.ndim)), ops.convert_to_tensor(values)
        )
        return float(np.mean(ops.convert_to_numpy(nll)))

    change = mean_nll(other) - mean_nll(outputs)
    if abs(change) < 1e-6:  # a network that ignores its inputs: move its outputs by hand
        other = outputs + np.random.default_rng(0).normal(size=outputs.shape).astype(outputs.dtype)
        if isinstance(likelihood, (Categorical, Bernoulli)) and not likelihood.from_logits:
            other = np.clip(outputs * np.linspace(0.5, 1.5, outputs.shape[-1]), 1e-3, 1.0)
            other = other / other.sum(axis=-1, keepdims=True) if likelihood.has_class_axis else other
        change = mean_nll(other) - mean_nll(outputs)
    return loss.change(other) / change


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


def present_temperature(model: Any) -> float | None:
    """T that a model's training has come to, None where it does not tell or has not begun.

    Of a schedule that goes on for ever it is the average.
    """
    if not isinstance(model, HasTemperature) or model.temperature is None:
        return None
    now = model.temperature
    with aside(model):
        return now / _go_to_end_of_schedule(model)


def _go_to_end_of_schedule(model: Any) -> float:
    """T there over the final one: 1, but for a schedule without an end, which averages to it."""
    if not isinstance(model, HasTemperature):
        return 1.0
    model.end_schedule()
    reached, final = model.temperature, model.final_temperature
    return 1.0 if reached is None or reached == final else reached / final  # a constant T may be 0


def _head(values: Any) -> Any:
    return keras.tree.map_structure(lambda leaf: np.asarray(leaf)[:_PROBE_EXAMPLES], values)


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
