"""Any Keras model with its dropout left on at prediction, and nothing else in training mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers as keras_layers
from keras import ops

from bdl import random
from bdl.convert.masks import ELEMENTWISE, DropoutNoise, effective_rates, noisy_call, own_rates
from bdl.convert.rewiring import Calls, ConvertedModel, call_in_force, check_network, is_quantized
from bdl.convert.selection import Selector, select, walk
from bdl.keras_internals import flatten_layers, input_structure
from bdl.latents import without_local_kl
from bdl.layers import Variational
from bdl.layers.noise_layers import SavesSeed
from bdl.random import Tensor

DECORATIVE_SPREAD = 1e-3
"""Below this ratio of the outputs' spread over masks to their spread over inputs, dropout says nothing."""


class DecorativeDropoutWarning(UserWarning):
    """Warns that the spread of an MC-dropout model's predictions will say nothing about its uncertainty."""


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
        return [layer for layer in flatten_layers(self.network) if own_rates(layer)]

    def dropout_rates(self) -> list[float]:
        """Rates in force, one for each dropout: the model's own where it has one, and that of inserted dropout."""
        rates = [rate for layer in self.dropout_layers() for rate in effective_rates(layer, self.rate)]
        return [*rates, *([self.rate or 0.0] * len(self.before))]

    def replacements(self) -> Calls:
        """Each layer with dropout is evaluated with masks of ours; the inputs of chosen layers are dropped."""
        noise = DropoutNoise(random.draw_key(self.seed_generator), ops.convert_to_tensor(self.noise_strength))
        found: dict[keras.Layer, Callable[..., Any]] = {}
        for layer in flatten_layers(self.network):
            call = noisy_call(layer, noise, self.rate)
            if call is not None:
                found[layer] = call
        layers = walk(self.network) if self.before else []
        for number in self.before:
            layer = layers[number]
            call = found.get(layer) or call_in_force(layer)
            found[layer] = partial(_call_on_dropped_inputs, call, noise, self.rate or 0.0)
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
        ValueError: if the model is not built or holds a Lambda layer; if it is or holds an `MCDropoutModel`; if the
            rate is not in [0, 1); if `before` selects nothing, has no rate, or selects a layer that takes integers or
            is quantized.

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
    _check_not_converted(model)
    _check_rate(rate)
    if before is not None and rate is None:
        raise ValueError("`before` inserts dropout, so it needs a `rate` in [0, 1), such as rate=0.1.")
    numbers = [] if before is None else _numbers(model, before)
    converted = MCDropoutModel(model, rate, numbers, seed)
    complaint = decorative_dropout(converted)
    if complaint is not None:
        warnings.warn(complaint, DecorativeDropoutWarning, stacklevel=2)
    return converted


def _numbers(model: keras.Model, before: Selector) -> list[int]:
    """Numbers in `walk(model)` of the layers whose inputs are dropped, or of the posteriors around them."""
    chosen = select(model, before, _has_kernel, "before")
    integers = [layer.name for layer in chosen if isinstance(layer, keras_layers.Embedding)]
    if integers:
        raise ValueError(f"`before` selects embeddings {integers}, whose inputs are integers. Choose layers behind.")
    quantized = [layer.name for layer in chosen if is_quantized(layer)]
    if quantized:
        raise ValueError(
            f"`before` selects quantized layers {quantized}, whose inputs cannot be dropped. Choose others."
        )
    layers = walk(model)
    # An estimator may evaluate its layer several times for one input, which has to be dropped once, outside.
    posteriors = {layer.layer: layer for layer in layers if isinstance(layer, Variational)}
    order = {layer: number for number, layer in enumerate(layers)}
    return [order[posteriors.get(layer, layer)] for layer in chosen]


def _check_not_converted(model: keras.Model) -> None:
    found = [layer.name for layer in flatten_layers(model) if isinstance(layer, MCDropoutModel)]
    if found:
        raise ValueError(
            f"`model` must not be or hold an MC-dropout model, such as {found}: its dropout would have two rates and "
            "two seeds. Convert the plain model once; bdl.convert.to_deterministic gives it back."
        )


def decorative_dropout(model: MCDropoutModel) -> str | None:
    """Why the noise of an MC-dropout model would say nothing, or None if it does.

    The outputs' spread over eight masks is compared with their spread over sixteen inputs (or as many as the model
    declares), standard normal ones (zeros and ones where the model takes integers), so no data are needed. A model that
    does not take such inputs is not judged by its outputs. Nothing of the model changes.

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> print(decorative_dropout(MCDropoutModel(model)))  # doctest: +ELLIPSIS
    `model` has no dropout...
    """
    rates = model.dropout_rates()
    cure = (
        "Pass rate=0.1, say, and before='all' or 'last' to insert dropout (in `bdl convert`: --rate 0.1 --layers last)."
    )
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


def _call_on_dropped_inputs(
    call: Callable[..., Any], noise: DropoutNoise, rate: float, inputs: Tensor, *args: Any, **kwargs: Any
) -> Any:
    return call(noise.drop(inputs, rate), *args, **kwargs)


def _has_kernel(layer: keras.Layer) -> bool:
    if isinstance(layer, keras_layers.Wrapper):
        return False  # the kernel that it shows is that of a layer inside, which is asked itself
    return any(hasattr(layer, name) for name in ("kernel", "depthwise_kernel", "_kernel")) or isinstance(
        layer, keras_layers.RNN
    )


def _nothing_follows(model: MCDropoutModel) -> bool:
    """Whether no layer with weights stands behind any dropout, in the order of the model."""
    network = model.network
    while isinstance(network, ConvertedModel):  # whose posteriors come before its network
        network = network.network
    layers = [layer for layer in flatten_layers(network) if not isinstance(layer, keras.Model)]
    first = next((number for number, layer in enumerate(layers) if own_rates(layer)), None)
    if first is None:
        return False
    inside = isinstance(layers[first], ELEMENTWISE)
    return inside and not any(layer.weights for layer in layers[first + 1 :])


def _relative_spread(model: MCDropoutModel) -> float | None:
    """Spread of the outputs over masks, relative to their spread over inputs; None where no inputs can be made up.

    What the calls change, seeds and states of recurrent layers, stays in a scope that ends with them.
    """
    examples = _made_up_inputs(model.network)
    if examples is None:
        return None
    try:
        with keras.StatelessScope(collect_losses=True), without_local_kl():
            draws = [_flat_outputs(model, examples) for _ in range(8)]
    except Exception:  # Inputs may have to be what no one could make up. That is no reason against a conversion.
        return None
    outputs = np.stack(draws).astype("float64")
    over_masks = outputs.std(axis=0).mean()
    over_inputs = outputs.mean(axis=0).std(axis=0).mean()
    return None if not np.isfinite(over_masks) else float(over_masks / max(over_inputs, 1e-12))


def _flat_outputs(model: MCDropoutModel, examples: Any) -> np.ndarray:
    """All outputs of each example in one row."""
    leaves = [ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(model(examples))]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _made_up_inputs(network: Any) -> Any:
    """As many examples as the network declares, or 16; None of text, and for a network whose inputs cannot be seen."""
    structure = input_structure(network)
    if structure is None or any(spec.dtype == "string" for spec in keras.tree.flatten(structure)):
        return None
    generator = np.random.default_rng(0)

    def example(spec: Any) -> np.ndarray:
        shape = (spec.shape[0] or 16, *(4 if size is None else size for size in spec.shape[1:]))
        is_float = keras.backend.is_float_dtype(spec.dtype)
        return (generator.normal(size=shape) if is_float else generator.integers(0, 2, size=shape)).astype(spec.dtype)

    return keras.tree.map_structure(example, structure)


def _check_rate(rate: Any) -> None:
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f"`rate` must be a number in [0, 1) (the share that is dropped) or None, not {rate!r}.")
