"""Networks made anew from a Bayesian one: its deterministic twin, and the same network with another posterior."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.convert import to_deterministic, to_mc_dropout, to_variational
from bdl.convert.mc_dropout import DecorativeDropoutWarning, decorative_dropout
from bdl.convert.rewiring import ConvertedModel
from bdl.diagnostics.measure import ProbeData, network_of, sample_of, take_rows
from bdl.diagnostics.probe import draw, fit_of
from bdl.diagnostics.quantities import Fit
from bdl.diagnostics.weights import drawn_weights, weight_posteriors
from bdl.elbo import ELBO
from bdl.keras_internals import even_batch, even_rows, flatten_layers
from bdl.layers import InputFactors
from bdl.layers.variational import DEFAULT_POSTERIOR, DEFAULT_PRIOR
from bdl.likelihoods import Likelihood
from bdl.model import VariationalModel
from bdl.optimizers.drawn_network import DrawnNetwork
from bdl.posteriors import AnyPosterior
from bdl.priors import Moped, Prior
from bdl.recipes import instead_of_ensemble
from bdl.training.data import as_arrays

_HELD_OUT = 0.2  # of the training data, which choose the twin's epoch
_TWIN_ROWS = 50_000  # examples that a twin is trained on at most
_LEAST_PATIENCE = 5  # epochs
_LEAST_RATE = 1e-3  # Adam's default
_POINT_PRIORS = ("mean_prior", "kernel_prior")  # of weights that are point estimates: `TiedMean`'s and `Rank1`'s


def plain_network(model: keras.Model, keeps_weights: bool = False) -> keras.Model:
    """The plain network of a Bayesian model, with weights of its own: new ones, or copies of the posterior means.

    Raises:
        ValueError: if bdl cannot take the Bayesian layers out of it.
    """
    network = _source(model)
    if isinstance(network, ConvertedModel) and not keeps_weights:
        network = network.network  # rank-1 factors do not matter where the weights are made anew
    plain = to_deterministic(network)
    if weight_posteriors(plain):
        raise ValueError(
            f"`model` {network.name!r} holds Bayesian layers of another library, which bdl cannot take out. Build the "
            "plain network yourself, and pass it trained as twin=, or through bdl.convert.to_variational."
        )
    fresh = _cloned(plain)
    if keeps_weights:
        fresh.set_weights(plain.get_weights())
    else:
        _forget_factors(fresh, network)
    return fresh


def _source(model: Any) -> Any:
    """The network that a model is made anew from: where the optimizer has the posterior, the plain one."""
    network = network_of(model)
    return network.network if isinstance(network, DrawnNetwork) else network


def _forget_factors(fresh: keras.Model, network: keras.Model) -> None:
    """Input factors, which plain networks hold as settings and not as weights, begin at 1 like other new weights."""
    names = {layer.name for layer in flatten_layers(network) if isinstance(layer, InputFactors)}
    for layer in flatten_layers(fresh):
        if isinstance(layer, keras.layers.Rescaling) and layer.name in names:
            layer.scale = 1.0


def train_twin(
    model: keras.Model,
    x: Any,
    y: Any,
    likelihood: Likelihood,
    epochs: int,
    batch_size: int,
    seed: int,
    held_out: float = _HELD_OUT,
) -> Any:
    """Trains the twin of a model by maximum likelihood for the same budget, by the model's own optimizer.

    Adam at its default rate takes the place of one that holds the posterior, and of a lower rate: the twin shows what
    the network could learn. Trained to the end it would overfit, and so lose to any network in NLL: it goes back to its
    best epoch, by the NLL of a part of the training data that it is not trained on. Of very many examples it sees a
    sample.

    Args:
        model: The model.
        x: Training inputs.
        y: Training labels.
        likelihood: Of the labels.
        epochs: At most so many; it stops where its best epoch is long past.
        batch_size: Of the training.
        seed: Of initial weights, order and split; Keras' global seed is set to it.
        held_out: Share of the data that choose the epoch; 0 trains to the end.
    """
    keras.utils.set_random_seed(seed)
    optimizer = keras.optimizers.get("adam" if _is_of_optimizer(model) else own_optimizer(model))
    rate = ops.convert_to_numpy(optimizer.learning_rate)
    twin = compiled(plain_network(model), likelihood, None, "adam" if rate < _LEAST_RATE else optimizer)
    rows = np.random.default_rng(seed).permutation(sample_of(len(y), _TWIN_ROWS))
    num_held = int(held_out * len(rows))
    chosen, rest = (np.sort(even_rows(part)) for part in (rows[:num_held], rows[num_held:]))
    batch_size = even_batch(batch_size)
    if not len(chosen):
        twin.fit(_part(x, rest), _part(y, rest), batch_size=batch_size, epochs=epochs, verbose=0)
        return twin
    best = keras.callbacks.EarlyStopping(
        "val_nll", mode="min", patience=max(_LEAST_PATIENCE, epochs // 4), restore_best_weights=True
    )
    held = (_part(x, chosen), _part(y, chosen))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fit ended at T")  # of a network without any KL
        twin.fit(
            _part(x, rest),
            _part(y, rest),
            batch_size=batch_size,
            epochs=epochs,
            verbose=0,
            validation_data=held,
            callbacks=[best],
        )
    return twin


def _part(values: Any, rows: np.ndarray) -> Any:
    """Rows of arrays, or of plain lists of numbers."""
    return keras.tree.map_structure(lambda leaf: take_rows(leaf, rows), as_arrays(values, "x"))


def fit_of_twin(twin: keras.Model, data: ProbeData, likelihood: Likelihood) -> Fit:
    """How well a twin predicts a probe; `likelihood` reads its outputs unless it has its own."""
    own = getattr(twin, "likelihood", None)
    likelihood = own if isinstance(own, Likelihood) else likelihood
    return fit_of(draw(network_of(twin), data.x, data.labels, likelihood, 1), data.labels, likelihood, data.null)


def rebuilt(
    model: Any,
    likelihood: Likelihood,
    data: Any = None,
    prior: Any = None,
    posterior: Any = None,
    layers: Any = "all",
    estimator: str = "reparameterization",
    kl_weight: Any = None,
    keeps_weights: bool = False,
    optimizer: Any = "adam",
    **objective: Any,
) -> VariationalModel:
    """The same architecture with other posteriors, in a compiled `VariationalModel`.

    Args:
        model: A Bayesian Keras model.
        likelihood: Of its labels.
        data: Not used; remedies that train need it.
        prior: Of the weights; None keeps the model's own.
        posterior: Of the weights; None keeps the model's own.
        layers: Which layers get one.
        estimator: As `bdl.layers.Variational`'s.
        kl_weight: T or a schedule; None is the default warm-up.
        keeps_weights: Whether to begin at the model's posterior means instead of anew.
        optimizer: To compile with.
        **objective: What is to differ from `own_objective`.
    """
    own_prior, own_posterior = own_family(model)
    family = own_posterior if posterior is None else posterior
    if not family.admits(estimator):
        family = DEFAULT_POSTERIOR
    bayesian = to_variational(
        plain_network(model, keeps_weights),
        layers=layers,
        estimator=estimator,
        prior=own_prior if prior is None else prior,
        posterior=family,
    )
    return compiled(bayesian, likelihood, kl_weight, optimizer, **(own_objective(model) | objective))


def burnt_in(model: Any, likelihood: Likelihood, data: Any, epochs: int = 50, batch_size: int = 64) -> VariationalModel:
    """The same architecture with posteriors around the weights of its deterministic twin, trained first on `data`."""
    twin = train_twin(model, data[0], data[1], likelihood, epochs, batch_size, seed=0, held_out=0.0)
    bayesian = to_variational(twin.network, prior="moped")
    return compiled(bayesian, likelihood, kl_weight=1.0, **own_objective(model))


def without_factors(model: Any, likelihood: Likelihood, data: Any = None) -> VariationalModel:
    """The same architecture by the recipe of rank-1 factors around 1 and without factors of the inputs, compiled."""
    return instead_of_ensemble(plain_network(model), _copy(likelihood), input_prior=None)


def redropped(model: Any, likelihood: Likelihood, data: Any = None, rate: float = 0.1) -> VariationalModel:
    """The same architecture with dropout of this rate that stays on at prediction, compiled.

    Where its own dropout does not reach the outputs, the inputs of the last layer with a kernel are dropped besides.
    """
    plain = plain_network(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecorativeDropoutWarning)
        dropped = to_mc_dropout(plain, rate=rate)
        if decorative_dropout(dropped) is not None:
            dropped = to_mc_dropout(plain, rate=rate, before="last")
    return compiled(dropped, likelihood, kl_weight=1.0, **own_objective(model))


def restarted(
    model: Any,
    likelihood: Likelihood,
    data: Any = None,
    kl_weight: Any = None,
    free_bits: float | None = None,
    optimizer: Any = None,
) -> VariationalModel:
    """The same network, its layers as they are, with new weights and another objective; None keeps its free bits.

    Free bits are defined for the ELBO alone, which is what they are then given with. The optimizer is Adam at its
    default rate unless given; one that holds the posterior stays, with its settings.
    """
    changed: dict[str, Any] = {} if free_bits is None else {"free_bits": free_bits, "objective": "elbo"}
    if _is_of_optimizer(model):
        changed["optimizer_posterior"] = True
        optimizer = own_optimizer(model) if optimizer is None else optimizer
    settings = own_objective(model) | changed
    return compiled(_cloned(_source(model)), likelihood, kl_weight, optimizer or "adam", **settings)


def trained_anew(model: Any, likelihood: Likelihood, data: Any = None, optimizer: Any = None) -> keras.Model:
    """The same network and objective with new weights and an optimizer, as `restarted` chooses it."""
    if isinstance(model, VariationalModel):
        return restarted(model, likelihood, kl_weight=model.kl_weight, optimizer=optimizer)
    again = _cloned(model)
    if isinstance(model.loss, ELBO):
        return compiled(again, likelihood, model.loss.kl_weight, optimizer or "adam")
    again.compile(keras.optimizers.get(optimizer or "adam"), loss=model.loss)
    return again


def compiled(
    network: keras.Model, likelihood: Likelihood, kl_weight: Any, optimizer: Any = "adam", **objective: Any
) -> VariationalModel:
    """A `VariationalModel` of a network, with a likelihood of its own and this `own_objective`; compiled."""
    with warnings.catch_warnings():
        # Of dropout and codes, whose noise is not a posterior over weights.
        warnings.filterwarnings("ignore", message="`network` has no variational layer")
        result = VariationalModel(network, _copy(likelihood), kl_weight=kl_weight, **objective)
    result.compile(keras.optimizers.get(optimizer))
    return result


def own_objective(model: Any) -> dict[str, Any]:
    """What else than T a `VariationalModel` makes of the ELBO in training; nothing for another model."""
    if not isinstance(model, VariationalModel):
        return {}
    return {"free_bits": model.free_bits, "num_samples": model.num_samples, "objective": model.objective}


def _is_of_optimizer(model: Any) -> bool:
    """Whether the posterior is the optimizer's."""
    return bool(getattr(model, "optimizer_posterior", False))


def own_optimizer(model: Any) -> Any:
    """Settings of a model's own optimizer; Adam's defaults for a model without one."""
    optimizer = getattr(model, "optimizer", None)
    return "adam" if optimizer is None else keras.optimizers.serialize(optimizer)


def own_family(model: Any) -> tuple[Prior, AnyPosterior]:
    """Prior and posterior of a model's first weight that is drawn; the defaults where none is.

    A rank-1 posterior has priors of its own: the default takes the place of one for its weights. Of a prior centred on
    trained weights only the spread is kept: a network made anew has none to be centred on. The prior of input factors,
    which are around 1, is none for weights.
    """
    network = network_of(model)
    factors = {id(layer.kernel) for layer in flatten_layers(network) if isinstance(layer, InputFactors)}
    for weight in drawn_weights(network):
        if id(weight.mean) in factors:
            continue
        prior = DEFAULT_PRIOR if weight.prior is None else weight.prior
        return _uncentred(prior), _uncentred(weight.posterior)
    return DEFAULT_PRIOR, DEFAULT_POSTERIOR


def _uncentred(settings: Any) -> Any:
    """A prior, or a posterior that holds priors, without any centre on trained weights."""
    if isinstance(settings, Moped):
        return settings.spread
    held = {name: _uncentred(getattr(settings, name)) for name in _POINT_PRIORS if hasattr(settings, name)}
    return dataclasses.replace(settings, **held) if held else settings


def drawn_families(model: Any) -> list[AnyPosterior]:
    """Posteriors of all weights that a model of bdl's layers draws."""
    return [weight.posterior for weight in drawn_weights(network_of(model))]


def _cloned(network: keras.Model) -> keras.Model:
    """The same network with new weights.

    Raises:
        ValueError: if it is subclassed and says nothing about its configuration.
    """
    try:
        return keras.models.clone_model(network)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"`model` {network.name!r} cannot be made anew: {type(network).__name__} is neither Functional nor "
            "Sequential. Build it again yourself, with the change in code that the remedy names."
        ) from error


def _copy(likelihood: Likelihood) -> Likelihood:
    """A likelihood of the same settings with a scale of its own."""
    return type(likelihood).from_config(likelihood.get_config())
