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
from bdl.diagnostics.accounting import Accounting, present_temperature, told_examples, with_counts
from bdl.diagnostics.gradients import with_gradients
from bdl.diagnostics.local import local_latents
from bdl.diagnostics.noise import is_near_prior
from bdl.diagnostics.quantities import Fit, LayerHealth, Quantities
from bdl.diagnostics.reading import Readings, read_foreign
from bdl.diagnostics.weights import (
    WeightPosterior,
    dropout_rates,
    has_fitted_means,
    is_rank1,
    layer_health,
    penalty_of_point_estimates,
    weight_posteriors,
)
from bdl.keras_internals import flatten_layers
from bdl.likelihoods import Likelihood
from bdl.optimizers.drawn_network import DrawnNetwork
from bdl.protocols import HasTemperature
from bdl.training.data import as_arrays

_NULL_ROWS = 20_000  # labels that the null model is fitted to
_IDENTICAL = 1e-6  # relative spread of repeated predictions below which they are the same


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Inputs and labels to measure on, and the null model of the set that they come from.

    Args:
        x: Inputs, a sample of at most the probe's size.
        y: Their labels as they were given, which is what a compiled loss takes.
        labels: Their labels as a likelihood takes them: class numbers where `y` is one-hot.
        null: NLL of each under the likelihood's best constant of the set, in nats.
    """

    x: Any
    y: np.ndarray
    labels: np.ndarray
    null: np.ndarray

    @property
    def nll_null(self) -> float:
        """Its mean, nats per example (Q3)."""
        return float(self.null.mean())


def take_probe(data: Any, size: int, likelihood: Likelihood, argument: str, model: Any = None) -> ProbeData:
    """A fixed random sample of `(x, y)` arrays; of long ones no more than some rows are read.

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
    x, y = as_arrays(data[0], argument), as_arrays(data[1], argument)
    lengths = {len(leaf) for leaf in keras.tree.flatten(x)} | {len(y)}
    if len(lengths) != 1 or not len(y):
        raise ValueError(f"`{argument}` must hold as many inputs as labels, at least one, not {sorted(lengths)}.")
    # The null model is fitted to more examples than are measured, among which these are.
    known = sample_of(len(y), max(_NULL_ROWS, size))
    of_known = np.sort(np.random.default_rng(0).permutation(len(known))[:size])
    rows = known[of_known]
    labels = probe.class_numbers(take_rows(y, known), likelihood, _output_rank(model))
    return ProbeData(
        keras.tree.map_structure(lambda leaf: take_rows(leaf, rows), x),
        take_rows(y, rows),
        labels[of_known],
        likelihood.null_nll(labels)[of_known],
    )


def sample_of(num_rows: int, size: int) -> np.ndarray:
    """Places of a fixed random sample of at most so many rows, in order; the cost depends on the sample alone.

    Example:
    >>> sample_of(3, 5).tolist(), len(sample_of(10**9, 5))
    ([0, 1, 2], 5)
    """
    if num_rows <= size:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(0).choice(num_rows, size, replace=False, shuffle=False))


def take_rows(values: Any, rows: np.ndarray) -> np.ndarray:
    """Rows of an array of any kind, which alone are copied from a device or a file."""
    if ops.is_tensor(values):
        return ops.convert_to_numpy(ops.take(values, rows, axis=0))
    if hasattr(values, "iloc"):  # of pandas
        return np.asarray(values.iloc[rows])
    return np.asarray(values[rows]) if hasattr(values, "shape") else np.asarray(values)[rows]


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
    readings: Readings | None = None,
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
        readings: Posteriors of layers of other libraries; None reads them.
    """
    members = list(model) if isinstance(model, (list, tuple)) else [model]
    networks = [network_of(member) for member in members]
    judged = validation or train
    if readings is None:
        readings = Readings() if judged is None else read_foreign(networks[0], judged.x)
    posteriors = weight_posteriors(networks[0], readings.posteriors)
    layers = layer_health(networks[0], posteriors, start)
    kl = _divergence(networks[0], layers)
    fits: dict[str, Fit] = {}
    functions: dict[str, Any] = {}
    is_one = is_thorough and len(networks) == 1
    for name, data in (("train", train), ("validation", validation)):
        if data is None:
            continue
        wanted = tuple(layer.name for layer in layers if layer.num_weights) if is_thorough and data is judged else ()
        draws = probe.draw(networks, data.x, data.labels, likelihood, num_samples, wanted)
        mean = probe.mean_nll(networks[0], data.x, data.labels, likelihood) if is_one else None
        fits[name] = probe.fit_of(draws, data.labels, likelihood, data.null, mean)
        if data is judged:
            layers = _with_activity(layers, draws)
            functions = _of_functions(draws, data, likelihood)
            if is_one and posteriors:
                functions |= _beside_the_prior(networks[0], posteriors, draws, data, likelihood)
    local = None if judged is None else local_latents(networks[0], judged.x)
    if is_one and train is not None and layers:
        layers = with_gradients(layers, posteriors, networks[0], train.x, train.labels, likelihood, num_examples)
        layers = _with_noise_costs(layers, networks[0], train, fits["train"], likelihood, num_samples)
    finite = all(np.all(np.isfinite(value)) for value in _weights(networks)) and all(
        np.isfinite(fit.nll_gibbs) for fit in fits.values()
    )
    return Quantities(
        num_examples=num_examples,
        finite=bool(finite),
        temperature=accounting.temperature if accounting else None,
        declared_temperature=accounting.declared if accounting else None,
        present_temperature=present_temperature(members[0], num_examples),
        told_examples=told_examples(getattr(members[0], "num_examples", None), num_examples),
        unread=_unread(accounting, readings, functions.get("has_noise"), layers, local, networks),
        kl=kl,
        penalty=penalty_of_point_estimates(networks[0]),
        has_fitted_means=has_fitted_means(networks[0]),
        is_rank1=is_rank1(networks[0]),
        is_of_optimizer=isinstance(networks[0], DrawnNetwork) or None,
        train=fits.get("train"),
        validation=fits.get("validation"),
        layers=with_counts(layers, accounting),
        local=local,
        dropout_rates=dropout_rates(networks[0]),
        num_members=len(members),
        **functions,
    )


def _divergence(network: Any, layers: tuple[LayerHealth, ...]) -> float | None:
    """KL of all weights; None without any posterior, where a zero would be no measurement."""
    if isinstance(network, DrawnNetwork):  # which has weights of the likelihood besides
        return float(ops.convert_to_numpy(network.posterior_optimizer.kl_divergence()))
    return sum(layer.kl or 0.0 for layer in layers) if layers else None


def _with_activity(layers: tuple[LayerHealth, ...], draws: probe.Draws) -> tuple[LayerHealth, ...]:
    """How many units of each layer depend on the input; not of the last, which are the outputs that Q13 judges."""
    active = {name: probe.active_units(values) for name, values in list(draws.hidden.items())[:-1]}
    return tuple(dataclasses.replace(layer, active_units=active.get(layer.name)) for layer in layers)


def _of_functions(draws: probe.Draws, data: ProbeData, likelihood: Likelihood) -> dict[str, Any]:
    """Whether the drawn functions differ, and how much they say about the labels."""
    spread = float(draws.means.std(axis=0).max()) if len(draws.means) > 1 else None
    size = max(float(np.abs(draws.means).max()), 1e-12)
    return {
        "has_noise": None if spread is None else spread > _IDENTICAL * size,
        "function_signal": probe.function_signal(draws, data.labels, likelihood),
    }


def _beside_the_prior(
    network: Any, posteriors: list[WeightPosterior], draws: probe.Draws, data: ProbeData, likelihood: Likelihood
) -> dict[str, Any]:
    """The drawn functions compared with those of the prior, and what pruned weights do to the accuracy."""
    prior = probe.prior_draws(network, posteriors, data.x, data.labels, likelihood, len(draws.nll))
    variance = probe.function_variance(prior)
    return {
        "nll_prior": _finite(float(np.mean(prior.nll))),
        "function_variance": probe.function_variance(draws) / variance if variance > 0 else None,
        "pruned_accuracy": probe.pruned_accuracy(network, posteriors, data.x, data.labels, likelihood),
    }


def _unread(
    accounting: Accounting | None, readings: Readings, has_noise: bool | None, layers: Any, local: Any, networks: Any
) -> tuple[str, ...]:
    """What could not be read, and noise of which nothing could."""
    unread = readings.unread if accounting is None else accounting.unread
    is_known = layers or local is not None or len(networks) > 1 or dropout_rates(networks[0])
    if has_noise and not is_known and not unread:
        return (f"Predictions of {networks[0].name!r} vary, by noise whose KL cannot be read: T is not known.",)
    return unread


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
    if getattr(model, "posterior_optimizer", None) is not None:
        return model.drawn_network()
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
