"""Any Keras model with its dropout left on at prediction, and nothing else in training mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers as keras_layers
from keras import ops

from bdl import random
from bdl.convert.rewiring import ConvertedModel, Replacement, check_network, original_call
from bdl.convert.selection import Selector, select, walk
from bdl.estimators.dropout import apply_dropout, bernoulli_mask
from bdl.estimators.weights import draws_whole_functions
from bdl.keras_internals import flatten_layers, input_structure
from bdl.layers.noise_layers import SavesSeed
from bdl.random import Tensor

_ELEMENTWISE = (
    keras_layers.Dropout,  # SpatialDropout1D-3D derive from it
    keras_layers.SpatialDropout1D,
    keras_layers.SpatialDropout2D,
    keras_layers.SpatialDropout3D,
    keras_layers.GaussianDropout,
    keras_layers.GaussianNoise,
    keras_layers.AlphaDropout,
)
_ATTENTION = (keras_layers.Attention, keras_layers.AdditiveAttention)  # MultiHeadAttention holds a Dropout layer
DECORATIVE_SPREAD = 1e-3
"""Below this ratio of the outputs' spread over masks to their spread over inputs, dropout says nothing."""


class DecorativeDropoutWarning(UserWarning):
    """The spread of an MC-dropout model's predictions will say nothing about what it does not know."""


class _Noise:
    """Keys of one call of the network, one for each time that noise is asked for.

    Args:
        key: Key of the call.
        strength: Scalar: 1, or 0 for no noise.
    """

    def __init__(self, key: Tensor, strength: Tensor) -> None:
        self._key = key
        self._count = 0
        self.strength = strength

    def next_key(self) -> Tensor:
        self._count += 1
        return random.fold_in(self._key, self._count)

    def dropout(self, layer: keras.Layer, inputs: Tensor) -> Tensor:
        return apply_dropout(layer, inputs, self.next_key(), self.strength)

    def drop(self, inputs: Tensor, rate: float) -> Tensor:
        shape = tuple(ops.shape(inputs))
        shape = (1, *shape[1:]) if draws_whole_functions() else shape
        mask = bernoulli_mask(shape, rate, self.next_key(), self.strength)
        return inputs * ops.cast(mask, inputs.dtype)


@keras.saving.register_keras_serializable(package="bdl")
class MCDropoutModel(SavesSeed, ConvertedModel):
    """A network whose dropout stays on at prediction; made by `to_mc_dropout`.

    Args:
        network: A built Keras model; its weights are shared, not copied.
        rate: Rate of every dropout layer and of the inserted dropout; None leaves the layers' own.
        before: Numbers in `walk(network)` of the layers whose inputs are dropped too.
        seed: Integer seed of the masks, or None for a random one.
        **kwargs: `name` and other arguments of `keras.Model`.
    """

    def __init__(
        self,
        network: keras.Model,
        rate: float | None = None,
        before: Sequence[int] = (),
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.rate = rate
        self.before = tuple(before)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.noise_strength = self.add_weight(
            name="noise_strength", shape=(), initializer="ones", trainable=False, dtype="float32", autocast=False
        )
        self.network = network
        self.built = True

    def dropout_layers(self) -> list[keras.Layer]:
        """The network's layers whose dropout is on, rates of zero included."""
        return [layer for layer in flatten_layers(self.network) if _rates(layer)]

    def dropout_rates(self) -> list[float]:
        """Rates in force, one for each dropout: the model's own where it has one, and that of inserted dropout."""
        rates = [rate for layer in self.dropout_layers() for rate in _effective_rates(layer, self.rate)]
        return [*rates, *([self.rate or 0.0] * len(self.before))]

    def replacements(self) -> list[Replacement]:
        """Each layer with dropout is evaluated with masks of ours; the inputs of chosen layers are dropped."""
        noise = _Noise(random.draw_key(self.seed_generator), ops.convert_to_tensor(self.noise_strength))
        found: list[Replacement] = []
        for layer in flatten_layers(self.network):
            found.extend(_rate_replacements(layer, self.rate))
            found.extend(_noise_replacements(layer, noise))
        calls = {id(each.owner): each.value for each in found if each.name == "call"}
        layers = walk(self.network) if self.before else []
        for number in self.before:
            layer = layers[number]
            call = calls.get(id(layer), original_call(layer))
            found.append(Replacement(layer, "call", partial(_call_on_dropped_inputs, call, noise, self.rate or 0.0)))
        return found

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "rate": self.rate,
            "before": list(self.before),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MCDropoutModel:
        """Creates it from its configuration."""
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        return cls(**{**config, "network": network})


def to_mc_dropout(
    model: keras.Model, rate: float | None = None, before: Selector | None = None, seed: int | None = None
) -> MCDropoutModel:
    """Leaves a model's dropout on at prediction, so that repeated predictions are samples.

    On stay Dropout, SpatialDropout1D to 3D, GaussianDropout, GaussianNoise, AlphaDropout, the `dropout` of attention
    and multi-head attention, and `dropout` and `recurrent_dropout` of recurrent layers (one mask for a whole sequence).
    Everything else stays as it is at prediction; batch normalization in particular keeps its moving statistics. The
    model is neither copied nor changed.

    Args:
        model: A built Keras model, trained or not.
        rate: Rate in [0, 1) for all of its dropout and for dropout that is inserted; None leaves each layer its own.
            Recurrent layers and attention keep a rate of zero.
        before: Layers whose inputs are dropped besides: `"all"` with kernels, `"last"` of them, a name, a pattern, a
            layer class, a predicate, or a list of these. Needs a rate.
        seed: Integer that makes the masks reproducible, or None.

    Returns:
        An `MCDropoutModel`, called like the model; give it to `bdl.predict_distribution`. `bdl.mean_weights` turns its
        noise off.

    Raises:
        ValueError: if the model is not built or holds a Lambda layer; if the rate is not in [0, 1); if `before` selects
            nothing, has no rate, or selects a layer that takes integers.

    Warns:
        DecorativeDropoutWarning: if the noise would be decorative: no dropout or rates of zero only, no weights
            behind any of it, or outputs that hardly depend on it.

    Source: Gal and Ghahramani 2016, "Dropout as a Bayesian approximation".

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> network = to_mc_dropout(model, rate=0.1, before="last", seed=0)
    >>> network(np.ones((2, 4), "float32")).shape == (2, 3)
    True
    """
    check_network(model)
    _check_rate(rate)
    numbers: list[int] = []
    if before is not None:
        if rate is None:
            raise ValueError("`before` inserts dropout, so it needs a `rate` in [0, 1), such as rate=0.1.")
        chosen = select(model, before, _has_kernel, "before")
        integers = [layer.name for layer in chosen if isinstance(layer, keras_layers.Embedding)]
        if integers:
            raise ValueError(
                f"`before` selects embeddings {integers}, whose inputs are integers. Choose layers behind."
            )
        order = {id(layer): number for number, layer in enumerate(walk(model))}
        numbers = [order[id(layer)] for layer in chosen]
    converted = MCDropoutModel(model, rate, numbers, seed)
    complaint = decorative_dropout(converted)
    if complaint is not None:
        warnings.warn(complaint, DecorativeDropoutWarning, stacklevel=2)
    return converted


def decorative_dropout(model: MCDropoutModel) -> str | None:
    """Why the noise of an MC-dropout model would say nothing, or None if it does.

    The outputs' spread over eight masks is compared with their spread over sixteen inputs, standard normal ones (zeros
    and ones where the model takes integers), so no data are needed.

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> print(decorative_dropout(MCDropoutModel(model)))  # doctest: +ELLIPSIS
    `model` has no dropout...
    """
    rates = model.dropout_rates()
    cure = "Pass rate=0.1, say, and before='all' or 'last' to insert dropout."
    if not rates:
        return f"`model` has no dropout: all predictions will be equal. {cure}"
    if not any(rates):
        return f"All dropout rates of `model` are zero: all predictions will be equal. {cure}"
    spread = _relative_spread(model)
    if spread is not None and spread < DECORATIVE_SPREAD:
        return (
            f"The dropout of `model` hardly reaches its outputs: they vary {spread:.1g} times as much over masks as "
            "over inputs, so the uncertainty will be decorative. Raise the rate, or insert dropout before layers that "
            "matter."
        )
    if not model.before and _nothing_follows(model):
        return (
            "The dropout of `model` is its last step: no weights follow, so its outputs are blanked at random and the "
            f"spread says nothing about the weights. {cure}"
        )
    return None


def _noise_replacements(layer: keras.Layer, noise: _Noise) -> Iterator[Replacement]:
    if isinstance(layer, _ELEMENTWISE):
        yield Replacement(layer, "call", partial(_dropped, noise, layer))
    elif isinstance(layer, keras_layers.RNN) and any(_rates(cell) for cell in flatten_layers(layer)):
        # The layer as a whole, since it hands its own `training` to its cell, and to fused kernels on a GPU.
        yield Replacement(layer, "call", partial(_call_in_training, original_call(layer)))
        for cell in filter(_is_dropout_cell, flatten_layers(layer)):
            yield from _mask_replacements(cell, noise)
    elif isinstance(layer, _ATTENTION) and layer.dropout > 0:
        yield Replacement(layer, "call", partial(_mixed_call, original_call(layer), noise.strength))


def _mask_replacements(cell: Any, noise: _Noise) -> Iterator[Replacement]:
    """Masks of ours for a recurrent cell, drawn once a sequence as the cell's own are."""
    kept: dict[str, Any] = {}

    def mask(which: str, step: Tensor) -> Any:
        rate = getattr(cell, which)
        if rate and which not in kept:
            count = getattr(cell, "dropout_mask_count", None)
            drawn = [noise.drop(ops.ones_like(step), rate) for _ in range(count or 1)]
            kept[which] = drawn if count else drawn[0]
        return kept.get(which)

    yield Replacement(cell, "get_dropout_mask", partial(mask, "dropout"))
    yield Replacement(cell, "get_recurrent_dropout_mask", partial(mask, "recurrent_dropout"))
    yield Replacement(cell, "reset_dropout_mask", lambda: kept.pop("dropout", None))
    yield Replacement(cell, "reset_recurrent_dropout_mask", lambda: kept.pop("recurrent_dropout", None))


def _dropped(noise: _Noise, layer: keras.Layer, inputs: Tensor, training: Any = None) -> Tensor:
    return noise.dropout(layer, inputs)


def _call_on_dropped_inputs(
    call: Callable[..., Any], noise: _Noise, rate: float, inputs: Tensor, *args: Any, **kwargs: Any
) -> Any:
    return call(noise.drop(inputs, rate), *args, **kwargs)


def _call_in_training(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return call(*args, **{**kwargs, "training": True})


def _mixed_call(call: Callable[..., Any], strength: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The layer's own noise, at the given strength; attention offers no way to hand it a mask."""
    noisy, quiet = (call(*args, **{**kwargs, "training": training}) for training in (True, False))
    return keras.tree.map_structure(
        lambda one, other: other + ops.cast(strength, other.dtype) * (one - other), noisy, quiet
    )


def _rates(layer: keras.Layer) -> list[float]:
    """Dropout rates (for GaussianNoise the standard deviation) of a layer that has any, zeros included."""
    if isinstance(layer, keras_layers.GaussianNoise):
        return [layer.stddev]
    if isinstance(layer, _ELEMENTWISE):
        return [layer.rate]
    if isinstance(layer, _ATTENTION):
        return [layer.dropout] if layer.dropout else []
    if _is_dropout_cell(layer):
        return [rate for rate in (layer.dropout, layer.recurrent_dropout) if rate]
    return []


def _is_dropout_cell(layer: Any) -> bool:
    return hasattr(layer, "get_dropout_mask") and hasattr(layer, "recurrent_dropout")


def _rate_replacements(layer: Any, rate: float | None) -> Iterator[Replacement]:
    if rate is None or not _rates(layer) or isinstance(layer, keras_layers.GaussianNoise):
        return
    names = ["rate"] if isinstance(layer, _ELEMENTWISE) else ["dropout", "recurrent_dropout"]
    for name in names:
        if name == "rate" or getattr(layer, name, False):
            yield Replacement(layer, name, rate)


def _effective_rates(layer: keras.Layer, rate: float | None) -> list[float]:
    return [own if rate is None or isinstance(layer, keras_layers.GaussianNoise) else rate for own in _rates(layer)]


def _has_kernel(layer: keras.Layer) -> bool:
    return any(hasattr(layer, name) for name in ("kernel", "depthwise_kernel", "_kernel")) or isinstance(
        layer, keras_layers.RNN
    )


def _nothing_follows(model: MCDropoutModel) -> bool:
    """Whether no layer with weights stands behind any dropout, in the order of the model."""
    layers = [layer for layer in flatten_layers(model.network) if not isinstance(layer, keras.Model)]
    first = next((number for number, layer in enumerate(layers) if _rates(layer)), None)
    if first is None:
        return False
    inside = isinstance(layers[first], _ELEMENTWISE)
    return inside and not any(layer.weights for layer in layers[first + 1 :])


def _relative_spread(model: MCDropoutModel) -> float | None:
    """Spread of the outputs over masks, relative to their spread over inputs; None where no inputs can be made up."""
    examples = _made_up_inputs(model.network)
    if examples is None:
        return None
    draws = [
        np.concatenate([ops.convert_to_numpy(leaf).reshape(16, -1) for leaf in keras.tree.flatten(model(examples))], 1)
        for _ in range(8)
    ]
    outputs = np.stack(draws).astype("float64")
    over_masks = outputs.std(axis=0).mean()
    over_inputs = outputs.mean(axis=0).std(axis=0).mean()
    return None if not np.isfinite(over_masks) else float(over_masks / max(over_inputs, 1e-12))


def _made_up_inputs(network: Any) -> Any:
    structure = input_structure(network)
    if structure is None:
        return None
    generator = np.random.default_rng(0)

    def example(spec: Any) -> np.ndarray:
        shape = (16, *(4 if size is None else size for size in spec.shape[1:]))
        is_float = keras.backend.is_float_dtype(spec.dtype)
        return (generator.normal(size=shape) if is_float else generator.integers(0, 2, size=shape)).astype(spec.dtype)

    return keras.tree.map_structure(example, structure)


def _check_rate(rate: Any) -> None:
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f"`rate` must be a number in [0, 1) (the share that is dropped) or None, not {rate!r}.")
