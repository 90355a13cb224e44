"""All quantities of a model on a probe set, for the callback and for `diagnose` alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.convert.rewiring import ConvertedModel
from bdl.diagnostics import probe
from bdl.diagnostics.accounting import Accounting, present_temperature, with_counts
from bdl.diagnostics.gradients import with_gradients
from bdl.diagnostics.local import local_latents
from bdl.diagnostics.noise import is_near_prior
from bdl.diagnostics.quantities import Fit, LayerHealth, Quantities, null_nll
from bdl.diagnostics.weights import (
    WeightPosterior,
    dropout_rates,
    has_fitted_means,
    layer_health,
    penalty_of_point_estimates,
    weight_posteriors,
)
from bdl.keras_internals import flatten_layers
from bdl.likelihoods import Likelihood
from bdl.protocols import HasTemperature

_IDENTICAL = 1e-6  # relative spread of repeated predictions below which they are the same


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Inputs and labels to measure on, and the null model of the whole set that they come from.

    Args:
        x: Inputs, a sample of at most the probe's size.
        y: Their labels as they were given, which is what a compiled loss takes.
        labels: Their labels as a likelihood takes them: class numbers where `y` is one-hot.
        nll_null: NLL_null of the whole set.
    """

    x: Any
    y: np.ndarray
    labels: np.ndarray
    nll_null: float


def take_probe(data: Any, size: int, likelihood: Likelihood, argument: str, model: Any = None) -> ProbeData:
    """A fixed random sample of `(x, y)` arrays.

    Args:
        data: The arrays.
        size: At most so many examples.
        likelihood: What the outputs mean.
        argument: Name of `data` in messages.
        model: What will be measured on it, or a list of such; its outputs tell class numbers from one-hot labels.

    Raises:
        ValueError: if `data` is no pair of arrays of one length.
    """
    if not isinstance(data, (tuple, list)) or len(data) < 2:
        raise ValueError(f"`{argument}` must be a pair (x, y) of arrays, not {type(data).__name__}.")
    x, y = data[0], np.asarray(data[1])
    lengths = {len(np.asarray(leaf)) for leaf in keras.tree.flatten(x)} | {len(y)}
    if len(lengths) != 1 or not len(y):
        raise ValueError(f"`{argument}` must hold as many inputs as labels, at least one, not {sorted(lengths)}.")
    rows = np.sort(np.random.default_rng(0).permutation(len(y))[:size])
    labels = probe.class_numbers(y, likelihood, _output_rank(model))
    return ProbeData(
        keras.tree.map_structure(lambda leaf: np.asarray(leaf)[rows], x),
        y[rows],
        labels[rows],
        null_nll(labels, likelihood.is_classifier),
    )


def measure(
    model: Any,
    likelihood: Likelihood,
    num_examples: int,
    train: ProbeData | None = None,
    validation: ProbeData | None = None,
    accounting: Accounting | None = None,
    start: dict[str, np.ndarray] | None = None,
    num_samples: int = 8,
    is_thorough: bool = False,
) -> Quantities:
    """Measures a model; it is left as it was, and other threads see nothing of it.

    Args:
        model: A Keras model, or a list of them: an ensemble.
        likelihood: What the outputs mean.
        num_examples: Training examples, N.
        train: Probe of the training data.
        validation: Probe of other data.
        accounting: What the compiled loss makes of the KL.
        start: Scales before training.
        num_samples: Whole functions to draw.
        is_thorough: Whether to measure what costs more: the prior's functions, gradients, unit activity.
    """
    members = list(model) if isinstance(model, (list, tuple)) else [model]
    networks = [network_of(member) for member in members]
    posteriors = [weight_posteriors(network) for network in networks]
    layers = layer_health(networks[0], posteriors[0], start)
    kl = sum(layer.kl or 0.0 for layer in layers) if layers else None  # without any posterior a zero is no measurement
    local = None
    fits: dict[str, Fit] = {}
    quantities: dict[str, Any] = {}
    judged = validation or train
    for name, data in (("train", train), ("validation", validation)):
        if data is None:
            continue
        wanted = tuple(layer.name for layer in layers if layer.num_weights) if is_thorough and data is judged else ()
        draws = probe.draw(networks, data.x, data.labels, likelihood, num_samples, wanted)
        mean = (
            probe.mean_nll(networks[0], data.x, data.labels, likelihood) if is_thorough and len(networks) == 1 else None
        )
        fits[name] = probe.fit_of(draws, data.labels, likelihood, data.nll_null, mean)
        if data is judged:
            spread = float(draws.means.std(axis=0).max()) if len(draws.means) > 1 else None
            size = max(float(np.abs(draws.means).max()), 1e-12)
            quantities["has_noise"] = None if spread is None else spread > _IDENTICAL * size
            quantities["function_signal"] = probe.function_signal(draws, data.labels, likelihood)
            if draws.hidden:
                active = {layer: probe.active_units(values) for layer, values in draws.hidden.items()}
                last = list(active)[-1]
                active.pop(last)  # its units are the outputs, which Q13 judges
                layers = tuple(dataclasses.replace(layer, active_units=active.get(layer.name)) for layer in layers)
            local = local_latents(networks[0], data.x)
            if is_thorough and posteriors[0] and len(networks) == 1:
                prior = probe.prior_draws(networks[0], posteriors[0], data.x, data.labels, likelihood, num_samples)
                quantities["nll_prior"] = _finite(float(np.mean(prior.nll)))
                variance = probe.function_variance(prior)
                quantities["function_variance"] = probe.function_variance(draws) / variance if variance > 0 else None
                quantities["pruned_accuracy"] = probe.pruned_accuracy(
                    networks[0], posteriors[0], data.x, data.labels, likelihood
                )
    if is_thorough and train is not None and len(networks) == 1 and layers:
        layers = with_gradients(layers, posteriors[0], networks[0], train.x, train.labels, likelihood, num_examples)
        layers = _with_noise_costs(layers, networks[0], train, fits["train"], likelihood, num_samples)
    finite = all(np.all(np.isfinite(value)) for value in _weights(networks)) and all(
        np.isfinite(fit.nll_gibbs) for fit in fits.values()
    )
    return Quantities(
        num_examples=num_examples,
        finite=bool(finite),
        temperature=accounting.temperature if accounting else None,
        declared_temperature=accounting.declared if accounting else None,
        present_temperature=present_temperature(members[0]),
        kl=kl,
        penalty=penalty_of_point_estimates(networks[0]),
        has_fitted_means=has_fitted_means(networks[0]),
        train=fits.get("train"),
        validation=fits.get("validation"),
        layers=with_counts(layers, accounting),
        local=local,
        dropout_rates=dropout_rates(networks[0]),
        num_members=len(members),
        **quantities,
    )


def _with_noise_costs(
    layers: tuple[LayerHealth, ...],
    network: Any,
    data: ProbeData,
    fit: Fit,
    likelihood: Likelihood,
    num_samples: int,
) -> tuple[LayerHealth, ...]:
    """What the noise costs of those layers whose scales the data have hardly narrowed (Q21)."""
    ours = {layer.name for layer in flatten_layers(network) if hasattr(layer, "noise_strength")}
    costs = {
        layer.name: probe.noise_cost(
            network, layer.name, fit.nll_gibbs, data.x, data.labels, likelihood, max(2, num_samples // 4)
        )
        for layer in layers
        if layer.name in ours and is_near_prior(layer)
    }
    return tuple(dataclasses.replace(layer, noise_cost=costs.get(layer.name)) for layer in layers)


def posteriors_of(model: Any) -> list[WeightPosterior]:
    """Weight posteriors of a model or of an ensemble's first member."""
    return weight_posteriors(network_of(model[0] if isinstance(model, (list, tuple)) else model))


def network_of(model: keras.Model) -> keras.Model:
    """The network inside a model that trains one on the ELBO; any other model is its own."""
    return model.network if isinstance(model, HasTemperature) else model


def _output_rank(model: Any) -> int | None:
    """Number of axes of a model's outputs, where it is known before the first call."""
    first = model[0] if isinstance(model, (list, tuple)) else model
    network = None if first is None else network_of(first)
    shape = getattr(network.network if isinstance(network, ConvertedModel) else network, "output_shape", None)
    return len(shape) if isinstance(shape, tuple) else None


def _weights(networks: list[Any]) -> list[np.ndarray]:
    return [ops.convert_to_numpy(weight) for network in networks for weight in network.trainable_weights]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
