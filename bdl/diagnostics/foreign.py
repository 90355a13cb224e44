"""Gaussian posteriors in layers of other libraries, as the names of their variables suggest them.

A name is a suggestion and no more: `kernel_logsigma` may hold a scale or its logarithm, and the prior is anywhere. What
is guessed here is compared with what the layer adds to the loss in `bdl.diagnostics.reading`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bdl.diagnostics.weight_posterior import WeightPosterior, to_numpy
from bdl.keras_internals import direct_layers, flatten_layers
from bdl.protocols import HasKL

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Transform:
    """How a variable holds scales.

    Args:
        name: Of the function.
        scale: Scales of the variable's values.
        inverse: The variable's values of scales.
    """

    name: str
    scale: Function
    inverse: Function


SOFTPLUS = Transform("softplus", lambda raw: np.logaddexp(raw, 0.0), lambda scale: scale + np.log(-np.expm1(-scale)))
EXP = Transform("exp", np.exp, np.log)
EXP_HALF = Transform("exp(x / 2)", lambda raw: np.exp(0.5 * raw), lambda scale: 2.0 * np.log(scale))
IDENTITY = Transform("the variable itself", np.abs, lambda scale: scale)
TRANSFORMS = (SOFTPLUS, EXP, EXP_HALF, IDENTITY)

# Endings of the names of scale variables, the longer first, and what they suggest.
_ENDINGS = (
    ("untransformed_scale", SOFTPLUS),
    ("rho", SOFTPLUS),
    ("log_sigma", EXP),
    ("logsigma", EXP),
    ("log_scale", EXP),
    ("log_std", EXP),
    ("logstd", EXP),
    ("log_stddev", EXP),
    ("logvar", EXP_HALF),
    ("log_var", EXP_HALF),
    ("sigma", IDENTITY),
    ("stddev", IDENTITY),
    ("std", IDENTITY),
)
_PRIOR_SCALES = ("prior_scale", "prior_sigma", "prior_std", "prior_stddev")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two variables of one shape that may be means and what scales are made of.

    Args:
        layer: Name of the layer.
        mean: The first variable.
        raw: The second.
        suggested: What its name suggests.
    """

    layer: str
    mean: keras.Variable
    raw: keras.Variable
    suggested: Transform

    def read_as(self, transform: Transform, prior_scale: float) -> WeightPosterior:
        """The posterior, if the variable holds scales so, under the prior `N(0, prior_scale^2)`."""
        return WeightPosterior(
            layer=self.layer,
            mean_variable=self.mean,
            scale_variables=(self.raw,),
            read_scale=transform.scale,
            write_scale=lambda scale: (transform.inverse(scale),),
            prior_mean=0.0,
            prior_scale=prior_scale,
            rest=(0.0, prior_scale),
        )


def in_order(layer: keras.Layer) -> list[keras.Layer]:
    """The layer and every layer inside it, each once, in the order in which they are held, at any depth."""
    found = {id(layer): layer}
    for inner in direct_layers(layer):
        for each in in_order(inner):
            found.setdefault(id(each), each)
    return list(found.values())


def is_foreign(layer: keras.Layer) -> bool:
    """Whether a layer is neither Keras' nor one that bdl knows by its KL or its noise."""
    is_known = isinstance(layer, HasKL) or hasattr(layer, "noise_strength")
    return layer.built and not is_known and not type(layer).__module__.startswith(("keras.", "bdl."))


def pairs_of(layer: keras.Layer) -> list[Pair]:
    """Pairs of variables that a layer holds itself and whose names suggest a posterior."""
    inner = {id(weight) for part in flatten_layers(layer) if part is not layer for weight in part.weights}
    own = [weight for weight in layer.weights if id(weight) not in inner]
    means = [variable for variable in own if _suggested(variable) is None]
    found = []
    for raw in own:
        transform, stem = _suggested(raw), _stem(raw.name)
        same = [mean for mean in means if tuple(mean.shape) == tuple(raw.shape)]
        named = [mean for mean in same if _stem(mean.name) == stem or mean.name == stem]
        if transform is not None and (named or same):
            found.append(Pair(layer.name, (named or same)[0], raw, transform))
    return found


def guessed(layer: keras.Layer) -> list[WeightPosterior]:
    """What the names alone suggest; the prior by the layer's own attribute, or `N(0, 1)`."""
    given = next((getattr(layer, name) for name in _PRIOR_SCALES if hasattr(layer, name)), 1.0)
    prior_scale = float(np.mean(to_numpy(given)))
    return [pair.read_as(pair.suggested, prior_scale) for pair in pairs_of(layer)]


def draws_noise(layer: keras.Layer) -> bool:
    """Whether a layer holds a seed generator, and so may draw its weights."""
    return any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())


def has_own_train_step(model: Any) -> bool:
    """Whether a model's training step is its author's: what it makes of a loss cannot be seen from outside."""
    return type(model).train_step is not keras.Model.train_step


def _suggested(variable: keras.Variable) -> Transform | None:
    name = variable.name.lower()
    return next((transform for ending, transform in _ENDINGS if name.endswith(ending)), None)


def _stem(name: str) -> str:
    """A variable's name without the word for mean or scale: `kernel_rho` and `kernel_mu` are both `kernel`."""
    stem = name.lower()
    ending = next((ending for ending, _ in _ENDINGS if stem.endswith(f"_{ending}")), None)
    stem = stem.rsplit("_", 1)[0] if ending is None else stem.removesuffix(f"_{ending}")
    return stem.removesuffix("_posterior")
