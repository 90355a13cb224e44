"""Any Keras model with posteriors over the weights of some of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from keras import layers as keras_layers

from bdl import posteriors, priors
from bdl.convert.mc_dropout import MCDropoutModel
from bdl.convert.rewiring import Calls, ConvertedModel, call_in_force, calls_replaced, check_network, is_quantized
from bdl.convert.selection import Selector, select, walk
from bdl.estimators.linear import is_linear, weight_name
from bdl.keras_internals import flatten_layers
from bdl.layers import Variational
from bdl.layers.variational import DEFAULT_POSTERIOR, DEFAULT_PRIOR
from bdl.posteriors import AnyPosterior, MeanFieldNormal
from bdl.priors import Moped, Prior

_SAMPLED = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings")
MOPED_POSTERIOR = MeanFieldNormal(initial_ratio=0.1)
"""The scales that a posterior around trained weights starts from: a tenth of each weight (Krishnan et al. 2020)."""


@dataclass(frozen=True)
class ConvertedLayer:
    """What became of one layer of a network.

    Attributes:
        name: The layer's name.
        kind: Its class.
        estimator: How its weights are sampled; None if it was left as it is.
        weights: The weights with a posterior.
    """

    name: str
    kind: str
    estimator: str | None
    weights: tuple[str, ...]

    def __str__(self) -> str:
        what = "as it was" if self.estimator is None else f"{self.estimator} of {', '.join(self.weights)}"
        return f"{self.name} ({self.kind}): {what}"


@keras.saving.register_keras_serializable(package="bdl")
class VariationalNetwork(ConvertedModel):
    """A network some of whose layers sample their weights; made by `to_variational`.

    Args:
        network: A built Keras model; its weights are the posterior means.
        posteriors: A `Variational` layer around each converted layer, by the layer's number in `walk(network)`.
        **kwargs: `name` and other arguments of `keras.Model`.

    Attributes:
        posteriors: Those `Variational` layers, in the order of the network.
        report: A `ConvertedLayer` for each layer with weights of its own, converted or not.
    """

    def __init__(self, network: keras.Model, posteriors: dict[int, Variational], **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self._numbers = tuple(posteriors)
        self.posteriors = list(posteriors.values())
        self.network = network
        self.built = True

    @property
    def report(self) -> list[ConvertedLayer]:
        """What became of each layer that has weights of its own."""
        by_layer = {id(posterior.layer): posterior for posterior in self.posteriors}
        lines = []
        for layer in walk(self.network):
            posterior = by_layer.get(id(layer))
            if posterior is not None:
                names = tuple(posterior.sampled_weights)
                lines.append(ConvertedLayer(layer.name, type(layer).__name__, _estimator_of(posterior), names))
            elif _own_weights(layer):
                lines.append(ConvertedLayer(layer.name, type(layer).__name__, None, ()))
        return lines

    def replacements(self) -> Calls:
        """Each converted layer is evaluated by its `Variational` layer."""
        return {
            posterior.layer: partial(_sampled_call, posterior, call_in_force(posterior.layer))
            for posterior in self.posteriors
        }

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs; the wrapped layers are in the network."""
        configs = []
        for number, posterior in zip(self._numbers, self.posteriors, strict=True):
            config = posterior.get_config()
            settings = {key: config[key] for key in ("name", "estimator", "weights", "seed")}
            configs.append({**settings, "number": number})
        base = {key: value for key, value in super().get_config().items() if key in ("name", "trainable", "dtype")}
        return {**base, "network": keras.saving.serialize_keras_object(self.network), "posteriors": configs}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> VariationalNetwork:
        """Creates it from its configuration."""
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        found = walk(network)
        made = {}
        for settings in config["posteriors"]:
            number = settings["number"]
            weights = {
                name: tuple(keras.saving.deserialize_keras_object(part) for part in family)
                for name, family in settings["weights"].items()
            }
            made[number] = _posterior(found[number], settings["estimator"], weights, settings["seed"], settings["name"])
        return cls(network, made, name=config["name"])


def to_variational(
    model: keras.Model,
    layers: Selector = "all",
    estimator: str = "reparameterization",
    prior: Prior | str | dict[str, Any] = DEFAULT_PRIOR,
    posterior: AnyPosterior | str | dict[str, Any] | Callable[[keras.Layer], AnyPosterior] | None = None,
    seed: int | None = None,
) -> VariationalNetwork:
    """Gives a model posteriors over the weights of some of its layers.

    The model is neither copied nor changed: its weights are the posterior means, shared with the result, so training
    the result moves them. Any Functional, Sequential or subclassed model will do, with nested models, shared layers,
    several inputs and outputs. A shared layer has one posterior, and its divergence counts once. Two conversions of one
    model share their means; for independent ones, convert `keras.models.clone_model(model)` with weights of its own.
    Leave a model's dropout on besides with `to_mc_dropout(to_variational(model))`, in this order.

    Args:
        model: A built Keras model, trained or not.
        layers: Which layers get a posterior: `"all"` with kernels or embeddings, `"last"` of them, a name, a pattern
            such as `"block5_*"`, a layer class, a predicate of a layer, or a list of these.
        estimator: As `Variational`'s. Layers that are not linear in their kernel (recurrent ones, embeddings) use
            reparameterization whatever is asked for; the result's `report` says so.
        prior: As `Variational`'s. `"moped"` centres the prior on the present weights, for a trained model.
        posterior: As `Variational`'s, or a function from a layer to its posterior. Default: `MeanFieldNormal()`; with
            `prior="moped"` its scales start at a tenth of each weight.
        seed: Integer that makes the layers' noise reproducible, or None.

    Returns:
        A `VariationalNetwork`, called like the model; train it in a `bdl.VariationalModel`.

    Raises:
        ValueError: if the model is not built or holds a Lambda layer; if `layers` selects nothing, or layers that have
            a posterior already or belong to an `MCDropoutModel`; if layers cannot be converted (all are named, each
            with the reason).

    Source of `"moped"`: Krishnan et al. 2020, "Specifying weight priors in Bayesian deep neural networks".

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> network = to_variational(model, layers="last", prior="moped", seed=0)
    >>> print(*network.report, sep="; ")  # doctest: +ELLIPSIS
    dense... (Dense): as it was; dense... (Dense): reparameterization of kernel
    """
    check_network(model)
    chosen = select(model, layers, can_be_variational, "layers")
    _check_not_converted(model, chosen)
    prior = priors.get(prior, "prior")
    default = MOPED_POSTERIOR if isinstance(prior, Moped) else DEFAULT_POSTERIOR
    chosen_posterior = default if posterior is None else posterior
    numbers = {id(layer): number for number, layer in enumerate(walk(model))}
    made: dict[int, Variational] = {}
    problems = []
    for position, layer in enumerate(chosen):
        of_layer = posteriors.get(
            chosen_posterior(layer) if callable(chosen_posterior) else chosen_posterior, "posterior"
        )
        weights = {name: (prior, of_layer) for name in _sampled_names(layer)}
        layer_seed = None if seed is None else seed * 10_007 + position
        try:
            if is_quantized(layer):
                raise ValueError("it is quantized")
            if not weights:
                raise ValueError(f"it has no weights named {_SAMPLED}")
            kind = estimator if _admits(layer, estimator, of_layer) else "reparameterization"
            made[numbers[id(layer)]] = _posterior(layer, kind, weights, layer_seed, f"{layer.name}_posterior")
        except ValueError as error:
            problems.append(f"{layer.name} ({type(layer).__name__}): {error}")
    if problems:
        raise ValueError(
            f"`layers`: {len(problems)} of the {len(chosen)} selected layers of {model.name!r} cannot be converted. "
            f"Select others, or change them. {' | '.join(problems)}"
        )
    return VariationalNetwork(model, made)


def _check_not_converted(model: keras.Model, chosen: list[keras.Layer]) -> None:
    """Refuses layers that another conversion in the model evaluates already."""
    found = flatten_layers(model)
    holders = [layer for layer in found if isinstance(layer, Variational)]
    twice = [
        f"{layer.name} has {holder.name}"
        for layer in chosen
        for holder in holders
        if layer is not holder and (layer in flatten_layers(holder) or holder in flatten_layers(layer))
    ]
    if twice:
        raise ValueError(
            f"`layers` must not select layers that have a posterior already, whose divergence would count twice. In "
            f"{model.name!r}: {', '.join(twice)}. Select others, or convert the plain model once; "
            "bdl.convert.to_deterministic gives it back."
        )
    dropped = [
        layer.name
        for layer in found
        if isinstance(layer, MCDropoutModel) and any(each in flatten_layers(layer) for each in chosen)
    ]
    if dropped:
        raise ValueError(
            f"`layers` must not select layers of an MC-dropout model, such as {dropped}: its dropout would take "
            "the place of posteriors. Convert in the other order: to_mc_dropout(to_variational(model))."
        )


def can_be_variational(layer: keras.Layer) -> bool:
    """Whether a layer holds weights that get a posterior by default, and none yet."""
    has_posteriors = any(isinstance(inner, Variational) for inner in flatten_layers(layer))
    return not has_posteriors and bool(_sampled_names(layer))


def _sampled_names(layer: keras.Layer) -> tuple[str, ...]:
    """Ends of the paths of the weights to be sampled; a unit's are those of the layers inside it."""
    weights = _own_weights(layer) if not _is_unit(layer) else layer.weights
    names = [weight_name(weight) for weight in weights]
    return tuple(
        name if names.count(name) == 1 else "/".join(weight.path.split("/")[-2:])
        for weight, name in zip(weights, names, strict=True)
        if name in _SAMPLED
    )


def _own_weights(layer: keras.Layer) -> list[keras.Variable]:
    """Weights of a layer that belong to no layer inside it; a unit's own are all."""
    if _is_unit(layer):
        return list(layer.weights)
    inner = {id(weight) for below in walk(layer) for weight in below.weights}
    return [weight for weight in layer.weights if id(weight) not in inner]


def _is_unit(layer: keras.Layer) -> bool:
    return isinstance(layer, (keras_layers.RNN, keras_layers.TimeDistributed))


def _admits(layer: keras.Layer, estimator: str, posterior: AnyPosterior) -> bool:
    separable = (keras_layers.SeparableConv1D, keras_layers.SeparableConv2D)
    return (
        estimator == "reparameterization"
        or not posterior.samples_weights
        or is_linear(layer)
        or isinstance(layer, separable)
    )


def _estimator_of(posterior: Variational) -> str:
    samples_weights = all(weight.posterior.samples_weights for weight in posterior.sampled_weights.values())
    return posterior.estimator if samples_weights else "rank-1 factors"


def _posterior(layer: keras.Layer, estimator: str, weights: Any, seed: int | None, name: str) -> Variational:
    """A built `Variational` layer around a built layer."""
    if not layer.built:
        raise ValueError("it is not built; call the model once on an example")
    # The layer itself counts its activity.
    posterior = Variational(
        layer, estimator=estimator, weights=weights, seed=seed, name=name, activity_regularizer=None
    )
    posterior.build_from_config(layer.get_build_config() or {"input_shape": None})
    return posterior


def _sampled_call(posterior: Variational, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The layer's call by its posterior, within which the layer is evaluated as it is outside of this conversion."""
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    with calls_replaced({posterior.layer: inner}):
        return posterior(*args, **kwargs)
