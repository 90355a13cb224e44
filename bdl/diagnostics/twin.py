"""Networks made anew from a Bayesian one: its deterministic twin, and the same network with another posterior."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from bdl.convert import to_deterministic, to_variational
from bdl.diagnostics.measure import ProbeData
from bdl.diagnostics.probe import draw, fit_of
from bdl.diagnostics.quantities import Fit
from bdl.likelihoods import Likelihood
from bdl.model import VariationalModel


def untrained_twin(model: keras.Model, seed: int = 0) -> keras.Model:
    """The plain network of a Bayesian model, with new initial weights.

    Raises:
        ValueError: if bdl cannot take the Bayesian layers out of it.
    """
    network = model.network if isinstance(model, VariationalModel) else model
    plain = to_deterministic(network)
    keras.utils.set_random_seed(seed)
    return keras.models.clone_model(plain)


def train_twin(
    model: keras.Model, x: Any, y: Any, likelihood: Likelihood, epochs: int, batch_size: int, seed: int
) -> Any:
    """Trains the twin of a model by maximum likelihood, with Adam at its default rate, for the same budget."""
    network = untrained_twin(model, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`network` has no variational layer")
        twin = VariationalModel(network, _copy(likelihood), num_examples=len(np.asarray(y)))
    twin.compile("adam")
    twin.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0)
    return twin


def fit_of_twin(twin: keras.Model, data: ProbeData, likelihood: Likelihood) -> Fit:
    """How well a twin predicts a probe; `likelihood` reads its outputs unless it has its own."""
    own = getattr(twin, "likelihood", None)
    likelihood = own if isinstance(own, Likelihood) else likelihood
    network = twin.network if isinstance(twin, VariationalModel) else twin
    return fit_of(draw(network, data.x, data.y, likelihood, 1), data.y, likelihood, data.nll_null)


def rebuilt(
    model: Any,
    likelihood: Likelihood,
    prior: Any = "empirical_bayes",
    posterior: Any = None,
    layers: Any = "all",
    kl_weight: Any = None,
    keeps_weights: bool = False,
    optimizer: Any = "adam",
) -> VariationalModel:
    """The same architecture with other posteriors, in a compiled `VariationalModel`.

    Args:
        model: A Bayesian Keras model.
        likelihood: Of its labels.
        prior: Of the weights.
        posterior: Of the weights.
        layers: Which layers get one.
        kl_weight: T or a schedule; None is the default warm-up.
        keeps_weights: Whether to begin at the model's posterior means instead of anew.
        optimizer: To compile with.
    """
    network = model.network if isinstance(model, VariationalModel) else model
    plain = to_deterministic(network)
    fresh = keras.models.clone_model(plain)
    if keeps_weights:
        fresh.set_weights(plain.get_weights())
    bayesian = to_variational(fresh, layers=layers, prior=prior, posterior=posterior)
    result = VariationalModel(bayesian, _copy(likelihood), kl_weight=kl_weight)
    result.compile(optimizer)
    return result


def _copy(likelihood: Likelihood) -> Likelihood:
    """A likelihood of the same settings with a scale of its own."""
    return type(likelihood).from_config(likelihood.get_config())
