"""The weight posteriors of any Keras model, ours or another library's: means, scales, priors, divergences.

Layers of bdl are read by what they are. Layers of other libraries are read by their variables: a pair of one shape of
which one holds an untransformed scale (`*_rho`, `*untransformed_scale`, `*_sigma`, `*_logvar`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.convert.mc_dropout import MCDropoutModel
from bdl.diagnostics.quantities import LayerHealth
from bdl.elbo import kl_divergence
from bdl.estimators.linear import Scale
from bdl.estimators.weights import FactoredWeight, SampledWeight
from bdl.keras_internals import current_value, direct_layers, flatten_layers, take_losses
from bdl.latents import without_local_kl
from bdl.layers.variational import Variational
from bdl.posteriors import Component, LowRankNormal, MatrixNormal, MeanFieldNormal
from bdl.priors import TiedMean
from bdl.protocols import HasKL
from bdl.uncounted import counted

MATCHED_DIVERGENCE = 0.01
"""Nats from where its prior alone would hold it below which a weight matches it: its scale is within 10 % of that."""
STUCK_CHANGE = 0.05
"""Relative change of a scale below which it counts as still at its start."""


@dataclass(frozen=True, eq=False)
class WeightPosterior:
    """Gaussian posterior and prior of one tensor, weight by weight, and the variables behind it.

    Args:
        layer: Path of the layer.
        mean_variable: Holds the means.
        scale_variables: Hold what the scales are made of.
        read_scale: The standard deviation of each weight, from the values of those variables.
        write_scale: Values of those variables that make the weights independent with given standard deviations.
        prior_mean: Prior means, broadcastable; those of `Prior.parameters`, where the prior is not Gaussian.
        prior_scale: Prior standard deviations, broadcastable; likewise.
        rest: Mean and standard deviation at which the prior alone would hold each weight (`Prior.resting_place`).
        is_factor: Whether it multiplies entries of the layer's inputs or outputs one by one.
    """

    layer: str
    mean_variable: keras.Variable
    scale_variables: tuple[keras.Variable, ...]
    read_scale: Callable[..., np.ndarray]
    write_scale: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    prior_mean: Any
    prior_scale: Any
    rest: tuple[Any, Any]
    is_factor: bool = False

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """All variables of the posterior, the means first."""
        return (self.mean_variable, *self.scale_variables)

    @property
    def mean(self) -> np.ndarray:
        """Posterior means."""
        return _numpy(self.mean_variable)

    @property
    def scale(self) -> np.ndarray:
        """Posterior standard deviations."""
        return self.read_scale(*(_numpy(variable) for variable in self.scale_variables))

    def excess(self) -> np.ndarray:
        """How far each weight by itself is from where its prior alone would hold it, in nats (Q9).

        That is the divergence of one Gaussian from the other. Where the prior is Gaussian their sum over independent
        weights is the KL; of other priors, and of correlated weights, only the layer knows it.
        """
        rest_mean, rest_scale = self.rest
        ratio, shift = self.scale / rest_scale, (self.mean - rest_mean) / rest_scale
        return 0.5 * (ratio**2 + shift**2 - 1.0) - np.log(ratio)

    def assign(self, mean: Any, scale: Any) -> None:
        """Sets the posterior to independent Gaussians."""
        shape = tuple(self.mean_variable.shape)
        scale = np.broadcast_to(np.asarray(scale, "float32"), shape)
        self.mean_variable.assign(np.broadcast_to(np.asarray(mean, "float32"), shape))
        for variable, value in zip(self.scale_variables, self.write_scale(scale), strict=True):
            variable.assign(value)


def weight_posteriors(model: keras.Layer) -> list[WeightPosterior]:
    """Every Gaussian weight posterior of a built model, in the order of its layers.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3, name="hidden")])
    >>> [(posterior.layer, posterior.mean.shape) for posterior in weight_posteriors(network)]
    [('hidden', (4, 3))]
    """
    found: list[WeightPosterior] = []
    for layer in _in_order(model):
        if isinstance(layer, Variational):
            for weight in layer.sampled_weights.values():
                is_factor = isinstance(weight, FactoredWeight) or isinstance(layer.layer, Scale)
                for part in weight.components():
                    found.extend(_of_component(layer.name, part, is_factor))
        elif layer.built and not hasattr(layer, "noise_strength"):  # bdl's dropout has noise, but no scales of weights
            found.extend(_of_variables(layer))
    return found


def layer_health(
    model: keras.Layer, posteriors: list[WeightPosterior], start: dict[str, np.ndarray] | None = None
) -> tuple[LayerHealth, ...]:
    """The KL of each layer that has one, and weight-space figures where its posteriors can be read.

    Args:
        model: A built model.
        posteriors: Its, from `weight_posteriors`.
        start: Scales before training, from `start_scales`.
    """
    return tuple(
        _health(name, kl, [part for part in posteriors if part.layer == name], start)
        for name, kl in _divergences(model, posteriors).items()
    )


def _divergences(model: keras.Layer, posteriors: list[WeightPosterior]) -> dict[str, float]:
    """KL of each layer: its own where it knows it, which the loss counts; otherwise that of Gaussians."""
    layers = _in_order(model)
    found: dict[str, float] = {}
    for layer in layers:
        if isinstance(layer, HasKL) and layer.built:
            found[layer.name] = found.get(layer.name, 0.0) + float(_numpy(layer.kl_divergence()))
    for name in dict.fromkeys(part.layer for part in posteriors):
        if name not in found:
            found[name] = float(sum(part.excess().sum() for part in posteriors if part.layer == name))
    return {name: found[name] for name in dict.fromkeys(layer.name for layer in layers) if name in found}


def start_scales(posteriors: list[WeightPosterior]) -> dict[str, np.ndarray]:
    """Scales by the path of their first variable, to be compared with later ones."""
    return {posterior.scale_variables[0].path: posterior.scale for posterior in posteriors}


def total_divergence(model: keras.Layer, posteriors: list[WeightPosterior]) -> float:
    """Divergence: of layers that know it their own, for a fitted prior moves along; of others that of Gaussians."""
    known = float(ops.convert_to_numpy(kl_divergence(model)))
    own = {layer.name for layer in flatten_layers(model) if isinstance(layer, HasKL)}
    return known + float(sum(part.excess().sum() for part in posteriors if part.layer not in own))


def has_fitted_means(model: keras.Layer) -> bool:
    """Whether posterior means are point estimates: whether a prior is centred on them (variational EM)."""
    return any(isinstance(weight.prior, TiedMean) for weight in drawn_weights(model))


def penalty_of_point_estimates(model: keras.Layer) -> float:
    """The part of the KL that is no divergence: what point estimates pay for their own prior, in nats."""
    total = 0.0
    for weight in drawn_weights(model):
        if weight.point_prior is not None:
            mean = ops.cast(ops.convert_to_tensor(weight.mean), "float32")
            total += float(_numpy(weight.point_prior.penalty(mean, weight.input_axes, weight.prior_variables)))
    return total


def drawn_weights(model: keras.Layer) -> Iterator[SampledWeight | FactoredWeight]:
    """The weights with a posterior in layers of bdl, at any depth."""
    for layer in flatten_layers(model):
        yield from layer.sampled_weights.values() if isinstance(layer, Variational) else ()


@contextmanager
def aside(model: keras.Layer) -> Iterator[None]:
    """Within this context what happens to a model's variables is seen by this thread alone, and forgotten after it.

    Weights may be assigned, seeds move on, and metrics be updated, while another thread predicts with the same model.
    Contexts nest: an inner one begins with what the outer one sees. A layer has to be built before, and functions that
    were compiled before (`fit`, `predict`) do not look here.

    Example:
    >>> layer = keras.layers.Dense(1)
    >>> layer.build((None, 1))
    >>> with aside(layer):
    ...     _ = layer.bias.assign([5.0])
    ...     float(layer(np.zeros((1, 1), "float32"))[0, 0])
    5.0
    >>> float(layer(np.zeros((1, 1), "float32"))[0, 0])
    0.0
    """
    # Every variable, for a Keras scope looks neither into the one around it nor, for a regularizer, outside.
    values = [(variable, current_value(variable)) for variable in model.variables]
    with keras.StatelessScope(values, collect_losses=True), without_local_kl(), counted():
        try:
            yield
        finally:
            take_losses(model)  # Keras tells them by the identity of tensors, which another tensor may have later


@contextmanager
def at_prior(model: keras.Layer, posteriors: list[WeightPosterior]) -> Iterator[None]:
    """Within this context every posterior equals its prior, as it stood when the posteriors were read."""
    with aside(model):
        for posterior in posteriors:
            posterior.assign(posterior.prior_mean, posterior.prior_scale)
        yield


@contextmanager
def without_weakest(model: keras.Layer, posteriors: list[WeightPosterior], share: float) -> Iterator[None]:
    """Within this context the means with the lowest `|mean| / scale`, a share of all of them, are zero (Q11)."""
    signal = np.concatenate([(np.abs(part.mean) / part.scale).ravel() for part in posteriors])
    limit = np.quantile(signal, share)
    with aside(model):
        for part in posteriors:
            mean = part.mean
            part.mean_variable.assign(np.where(np.abs(mean) / part.scale < limit, 0.0, mean).astype(mean.dtype))
        yield


def dropout_rates(model: keras.Layer) -> tuple[float, ...]:
    """Rates of the dropout that stays on at prediction, in bdl's dropout layers and in models of `to_mc_dropout`."""
    rates: list[float] = []
    for layer in flatten_layers(model):
        if isinstance(layer, MCDropoutModel):
            rates.extend(layer.dropout_rates())
        elif hasattr(layer, "noise_strength") and isinstance(getattr(layer, "rate", None), (int, float)):
            rates.append(float(layer.rate))
    return tuple(rates)


def _in_order(layer: keras.Layer) -> list[keras.Layer]:
    """The layer and every layer inside it, each once, in the order in which they are held, at any depth."""
    found = {id(layer): layer}
    for inner in direct_layers(layer):
        for each in _in_order(inner):
            found.setdefault(id(each), each)
    return list(found.values())


def _of_component(name: str, part: Component, is_factor: bool) -> Iterator[WeightPosterior]:
    """A component as a Gaussian, where its family is one of bdl's, whose variables can be written."""
    family, variables = part.posterior, part.variables
    if not isinstance(family, (MeanFieldNormal, MatrixNormal, LowRankNormal)):
        return
    speed = family.speed
    mean = ops.cast(ops.convert_to_tensor(part.mean), "float32")
    held = (mean, family.scale(variables), part.input_axes, part.prior_variables)
    prior_mean, prior_scale = part.prior.parameters(*held)
    rest_mean, rest_scale = part.prior.resting_place(*held)
    shapes = {key: tuple(variable.shape) for key, variable in variables.items()}

    def read_scale(*values: np.ndarray) -> np.ndarray:
        return _numpy(family.scale(dict(zip(variables, values, strict=True))))

    def write_scale(scale: np.ndarray) -> tuple[np.ndarray, ...]:
        return _independent(np.log(scale) / speed, shapes)

    yield WeightPosterior(
        layer=name,
        mean_variable=part.mean,
        scale_variables=tuple(variables.values()),
        read_scale=read_scale,
        write_scale=write_scale,
        prior_mean=_numpy(prior_mean),
        prior_scale=_numpy(prior_scale),
        rest=(_numpy(rest_mean), _numpy(rest_scale)),
        is_factor=is_factor,
    )


def _independent(rho: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    """Values of a family's variables for independent weights of these stored log scales."""
    if "row_rho" in shapes:  # the nearest sum of a row's and a column's; exact for every prior of bdl
        sides = [
            rho.mean(axis=tuple(i for i, size in enumerate(shape) if size == 1), keepdims=True)
            for shape in shapes.values()
        ]
        return tuple(side - 0.5 * rho.mean() for side in sides)
    return tuple(np.zeros(shape, "float32") if key == "factor" else rho for key, shape in shapes.items())


def _softplus(raw: np.ndarray) -> np.ndarray:
    return np.logaddexp(raw, 0.0)


def _inverse_softplus(scale: np.ndarray) -> np.ndarray:
    return scale + np.log(-np.expm1(-scale))


# Endings of the names of third-party scale variables, how to read them, and how to write them.
_FOREIGN_SCALES: tuple[tuple[str, Any, Any], ...] = (
    ("rho", _softplus, _inverse_softplus),
    ("untransformed_scale", _softplus, _inverse_softplus),
    ("log_sigma", np.exp, np.log),
    ("log_scale", np.exp, np.log),
    ("logvar", lambda raw: np.exp(0.5 * raw), lambda scale: 2.0 * np.log(scale)),
    ("log_var", lambda raw: np.exp(0.5 * raw), lambda scale: 2.0 * np.log(scale)),
    ("sigma", np.abs, lambda scale: scale),
)
_FOREIGN_PRIOR_SCALES = ("prior_scale", "prior_sigma", "prior_std", "prior_stddev")


def _of_variables(layer: keras.Layer) -> Iterator[WeightPosterior]:
    """Posteriors of a layer of another library, by the names of the variables that it holds itself."""
    inner = {id(weight) for part in flatten_layers(layer) if part is not layer for weight in part.weights}
    own = [weight for weight in layer.weights if id(weight) not in inner]
    means = [variable for variable in own if not _foreign_scale(variable)]
    given = next((getattr(layer, name) for name in _FOREIGN_PRIOR_SCALES if hasattr(layer, name)), 1.0)
    prior_scale = float(np.mean(_numpy(given)))
    for variable in own:
        reading = _foreign_scale(variable)
        stem = _stem(variable.name)
        same = [mean for mean in means if tuple(mean.shape) == tuple(variable.shape)]
        named = [mean for mean in same if _stem(mean.name) == stem or mean.name == stem]
        if reading is None or not (named or same):
            continue
        mean = (named or same)[0]
        read, write = reading
        yield WeightPosterior(
            layer=layer.name,
            mean_variable=mean,
            scale_variables=(variable,),
            read_scale=read,
            write_scale=_as_only_variable(write),
            prior_mean=0.0,
            prior_scale=prior_scale,
            rest=(0.0, prior_scale),
        )


def _as_only_variable(write: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    def write_scale(scale: np.ndarray) -> tuple[np.ndarray, ...]:
        return (write(scale),)

    return write_scale


def _foreign_scale(variable: keras.Variable) -> tuple[Any, Any] | None:
    name = variable.name.lower()
    return next(((read, write) for ending, read, write in _FOREIGN_SCALES if name.endswith(ending)), None)


def _stem(name: str) -> str:
    """A variable's name without the word for mean or scale: `kernel_rho` and `kernel_mu` are both `kernel`."""
    return name.lower().rsplit("_", 1)[0].removesuffix("_untransformed").removesuffix("_posterior")


def _health(name: str, kl: float, parts: list[WeightPosterior], start: dict[str, np.ndarray] | None) -> LayerHealth:
    if not parts:
        return LayerHealth(name, kl=kl)
    scale = np.concatenate([part.scale.ravel() for part in parts])
    excess = np.concatenate([part.excess().ravel() for part in parts])
    ratio = np.concatenate([(part.scale / part.prior_scale).ravel() for part in parts])
    signal = np.concatenate([(np.abs(part.mean) / part.scale).ravel() for part in parts])
    stuck = None
    if start is not None and all(part.scale_variables[0].path in start for part in parts):
        first = np.concatenate([start[part.scale_variables[0].path].ravel() for part in parts])
        stuck = float(np.mean(np.abs(scale / first - 1.0) < STUCK_CHANGE))
    return LayerHealth(
        name=name,
        num_weights=scale.size,
        kl=kl,
        prior_matched=float(np.mean(excess < MATCHED_DIVERGENCE)),
        contraction=float(np.median(1.0 - ratio**2)),
        signal_to_noise=float(np.median(signal)),
        stuck=stuck,
        draws_factors=all(part.is_factor for part in parts),
    )


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, (float, int, np.ndarray)):
        return np.asarray(value)
    return ops.convert_to_numpy(ops.convert_to_tensor(value))
