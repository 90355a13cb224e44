"""The weight posteriors of any Keras model, ours or another library's: means, scales, priors, divergences.

Layers of bdl are read by what they are. Those of other libraries are guessed from their variables' names (`foreign`),
and a guess counts where `reading` found it to agree with what the layer adds to the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import keras
import numpy as np
from keras import ops

from bdl.convert.mc_dropout import MCDropoutModel
from bdl.diagnostics.foreign import guessed, in_order, is_foreign
from bdl.diagnostics.quantities import LayerHealth
from bdl.diagnostics.weight_posterior import WeightPosterior, to_numpy
from bdl.elbo import kl_divergence
from bdl.estimators.linear import Scale
from bdl.estimators.weights import FactoredWeight, SampledWeight
from bdl.keras_internals import current_value, flatten_layers, take_losses
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


def weight_posteriors(
    model: keras.Layer, foreign: Mapping[int, tuple[WeightPosterior, ...]] | None = None
) -> list[WeightPosterior]:
    """Every Gaussian weight posterior of a built model, in the order of its layers.

    Args:
        model: The model.
        foreign: Posteriors of layers of other libraries by the layers' `id`, as `bdl.diagnostics.reading` found them;
            None guesses them from names.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3, name="hidden")])
    >>> [(posterior.layer, posterior.mean.shape) for posterior in weight_posteriors(network)]
    [('hidden', (4, 3))]
    """
    found: list[WeightPosterior] = []
    for layer in in_order(model):
        if isinstance(layer, Variational):
            for weight in layer.sampled_weights.values():
                is_factor = isinstance(weight, FactoredWeight) or isinstance(layer.layer, Scale)
                for part in weight.components():
                    found.extend(_of_component(layer.name, part, is_factor))
        elif foreign is not None:
            found.extend(foreign.get(id(layer), ()))
        elif is_foreign(layer):
            found.extend(guessed(layer))
    return [*found, *_of_optimizer(model)]


def layer_health(
    model: keras.Layer, posteriors: list[WeightPosterior], start: dict[str, np.ndarray] | None = None
) -> tuple[LayerHealth, ...]:
    """The KL of each layer that has one, and weight-space figures where its posteriors can be read.

    Args:
        model: A built model.
        posteriors: Its, from `weight_posteriors`.
        start: What they were made of before training, from `start_scales`.
    """
    return tuple(
        _health(name, kl, [part for part in posteriors if part.layer == name], start)
        for name, kl in _divergences(model, posteriors).items()
    )


def _divergences(model: keras.Layer, posteriors: list[WeightPosterior]) -> dict[str, float]:
    """KL of each layer: its own where it knows it, which the loss counts; otherwise that of Gaussians."""
    layers = in_order(model)
    found: dict[str, float] = {}
    for layer in layers:
        if isinstance(layer, HasKL) and layer.built:
            found[layer.name] = found.get(layer.name, 0.0) + float(to_numpy(layer.kl_divergence()))
    for name in dict.fromkeys(part.layer for part in posteriors):
        if name not in found:
            found[name] = float(sum(part.excess().sum() for part in posteriors if part.layer == name))
    return {name: found[name] for name in dict.fromkeys(layer.name for layer in layers) if name in found}


def start_scales(posteriors: list[WeightPosterior]) -> dict[str, np.ndarray]:
    """What scales are made of, by the variables' paths, to be compared with later ones."""
    return {variable.path: to_numpy(variable) for part in posteriors for variable in part.scale_variables}


def total_divergence(model: keras.Layer, posteriors: list[WeightPosterior]) -> float:
    """Divergence: of layers that know it their own, for a fitted prior moves along; of others that of Gaussians."""
    known = float(ops.convert_to_numpy(kl_divergence(model)))
    own = {layer.name for layer in flatten_layers(model) if isinstance(layer, HasKL)}
    return known + float(sum(part.excess().sum() for part in posteriors if part.layer not in own))


def has_fitted_means(model: keras.Layer) -> bool:
    """Whether posterior means are point estimates: whether a prior is centred on them (variational EM)."""
    return any(isinstance(weight.prior, TiedMean) for weight in drawn_weights(model))


def is_rank1(model: keras.Layer) -> bool | None:
    """Whether every weight that is drawn has rank-1 factors; None without any."""
    drawn = [isinstance(weight, FactoredWeight) for weight in drawn_weights(model)]
    return all(drawn) if drawn else None


def penalty_of_point_estimates(model: keras.Layer) -> float:
    """The part of the KL that is no divergence: what point estimates pay for their own prior, in nats."""
    total = 0.0
    for weight in drawn_weights(model):
        if weight.point_prior is not None:
            mean = ops.cast(ops.convert_to_tensor(weight.mean), "float32")
            total += float(to_numpy(weight.point_prior.penalty(mean, weight.input_axes, weight.prior_variables)))
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
    variables = {id(variable): variable for variable in model.variables}
    if getattr(model, "posterior_optimizer", None) is not None:
        variables.update((id(variable), variable) for variable in model.drawn_network().variables)
    values = [(variable, current_value(variable)) for variable in variables.values()]
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
        return to_numpy(family.scale(dict(zip(variables, values, strict=True))))

    def write_scale(scale: np.ndarray) -> tuple[np.ndarray, ...]:
        return _independent(np.log(scale) / speed, shapes)

    yield WeightPosterior(
        layer=name,
        mean_variable=part.mean,
        scale_variables=tuple(variables.values()),
        read_scale=read_scale,
        write_scale=write_scale,
        prior_mean=to_numpy(prior_mean),
        prior_scale=to_numpy(prior_scale),
        rest=(to_numpy(rest_mean), to_numpy(rest_scale)),
        is_factor=is_factor,
    )


def _of_optimizer(model: keras.Layer) -> Iterator[WeightPosterior]:
    """Posteriors that the optimizer of a model holds (`bdl.optimizers.IVON`), by the layers of the means."""
    optimizer = getattr(model, "posterior_optimizer", None)
    if optimizer is None:
        return
    owners: dict[int, str] = {}
    for layer in in_order(model):
        owners.update((id(weight), layer.name) for weight in layer.weights)  # the innermost comes last
    size, decay, prior = float(to_numpy(optimizer.sample_size)), float(to_numpy(optimizer.decay)), optimizer.prior_scale

    def read_scale(hessian: np.ndarray) -> np.ndarray:
        return 1.0 / np.sqrt(size * (hessian + decay))

    def write_scale(scale: np.ndarray) -> tuple[np.ndarray, ...]:
        return (1.0 / (size * scale**2) - decay,)

    for mean, hessian in zip(optimizer.means, optimizer.hessians, strict=True):
        if id(mean) in owners:
            rest = (0.0, prior)
            yield WeightPosterior(owners[id(mean)], mean, (hessian,), read_scale, write_scale, 0.0, prior, rest)


def _independent(rho: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    """Values of a family's variables for independent weights of these stored log scales."""
    if "row_rho" in shapes:  # the nearest sum of a row's and a column's; exact for every prior of bdl
        sides = [
            rho.mean(axis=tuple(i for i, size in enumerate(shape) if size == 1), keepdims=True)
            for shape in shapes.values()
        ]
        return tuple(side - 0.5 * rho.mean() for side in sides)
    return tuple(np.zeros(shape, "float32") if key == "factor" else rho for key, shape in shapes.items())


def _health(name: str, kl: float, parts: list[WeightPosterior], start: dict[str, np.ndarray] | None) -> LayerHealth:
    if not parts:
        return LayerHealth(name, kl=kl)
    scale = np.concatenate([part.scale.ravel() for part in parts])
    excess = np.concatenate([part.excess().ravel() for part in parts])
    ratio = np.concatenate([(part.scale / part.prior_scale).ravel() for part in parts])
    signal = np.concatenate([(np.abs(part.mean) / part.scale).ravel() for part in parts])
    stuck = None
    paths = [[variable.path for variable in part.scale_variables] for part in parts]
    if start is not None and all(path in start for each in paths for path in each):
        scales = [part.read_scale(*(start[path] for path in each)) for part, each in zip(parts, paths, strict=True)]
        first = np.concatenate([values.ravel() for values in scales])
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
