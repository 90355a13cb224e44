"""How each kind of Keras layer with dropout is evaluated with masks of ours, whether in training or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import layers as keras_layers
from keras import ops

from bdl import random
from bdl.estimators.dropout import apply_dropout, bernoulli_mask
from bdl.estimators.weights import draws_whole_functions
from bdl.keras_internals import view
from bdl.random import Tensor

ELEMENTWISE = (
    keras_layers.Dropout,  # SpatialDropout1D-3D derive from it
    keras_layers.SpatialDropout1D,
    keras_layers.SpatialDropout2D,
    keras_layers.SpatialDropout3D,
    keras_layers.GaussianDropout,
    keras_layers.GaussianNoise,
    keras_layers.AlphaDropout,
)
_ATTENTION = (keras_layers.Attention, keras_layers.AdditiveAttention)  # MultiHeadAttention holds a Dropout layer


class DropoutNoise:
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
        """A key that no earlier noise of this call has."""
        self._count += 1
        return random.fold_in(self._key, self._count)

    def dropout(self, layer: keras.Layer, inputs: Tensor) -> Tensor:
        """The noise of an elementwise layer on its inputs."""
        return apply_dropout(layer, inputs, self.next_key(), self.strength)

    def drop(self, inputs: Tensor, rate: float) -> Tensor:
        """Inputs some of which are zero; all examples share one mask where whole functions are asked for."""
        batch, *features = ops.shape(inputs)
        key = self.next_key()
        batch, key = (1, key) if draws_whole_functions() else (batch, random.of_examples(key))
        mask = bernoulli_mask((batch, *features), rate, key, self.strength)
        return inputs * ops.cast(mask, inputs.dtype)


def noisy_call(layer: Any, noise: DropoutNoise, rate: float | None) -> Callable[..., Any] | None:
    """How a layer is evaluated with its dropout on, at the given rate or its own; None for one without dropout."""
    if not own_rates(layer):
        return None
    if isinstance(layer, ELEMENTWISE):
        own = isinstance(layer, keras_layers.GaussianNoise) or rate is None
        return partial(_dropped, noise, layer if own else view(layer, rate=rate))
    if isinstance(layer, keras_layers.RNN):
        return partial(_call_recurrent, noise, layer, rate)
    return partial(_call_attention, noise, layer, layer.dropout if rate is None else rate)


def own_rates(layer: Any) -> list[float]:
    """Dropout rates (for GaussianNoise the standard deviation) of a layer that has any, zeros included."""
    if isinstance(layer, keras_layers.GaussianNoise):
        return [layer.stddev]
    if isinstance(layer, ELEMENTWISE):
        return [layer.rate]
    if isinstance(layer, keras_layers.RNN):
        return _cell_rates(layer.cell)
    # A layer derived from attention whose call is its own may do anything with its weights.
    if isinstance(layer, _ATTENTION) and type(layer).call is keras_layers.Attention.call and layer.dropout:
        return [layer.dropout]
    return []


def effective_rates(layer: keras.Layer, rate: float | None) -> list[float]:
    """Rates at which a layer drops where a model has a rate of its own, or None."""
    return [own if rate is None or isinstance(layer, keras_layers.GaussianNoise) else rate for own in own_rates(layer)]


def _dropped(noise: DropoutNoise, layer: keras.Layer, inputs: Tensor, training: Any = None) -> Tensor:
    return noise.dropout(layer, inputs)


def _call_recurrent(noise: DropoutNoise, layer: Any, rate: float | None, *args: Any, **kwargs: Any) -> Any:
    """A recurrent layer whose cells get masks of ours; as a whole, since its fused kernels ask the cell for them."""
    return view(layer, cell=_noisy_cell(noise, layer.cell, rate)).call(*args, **{**kwargs, "training": True})


def _noisy_cell(noise: DropoutNoise, cell: Any, rate: float | None) -> Any:
    """A view of a cell for one sequence, in which each mask is drawn once, as the cell's own are."""
    if isinstance(cell, keras_layers.StackedRNNCells):
        return view(cell, cells=[_noisy_cell(noise, inner, rate) for inner in cell.cells])
    if not _is_dropout_cell(cell):
        return cell
    rates = {name: getattr(cell, name) for name in ("dropout", "recurrent_dropout")}
    rates = {name: own if rate is None or not own else rate for name, own in rates.items()}
    kept: dict[str, Any] = {}

    def mask(which: str, step: Tensor) -> Any:
        if rates[which] and which not in kept:
            count = getattr(cell, "dropout_mask_count", None)
            drawn = [noise.drop(ops.ones_like(step), rates[which]) for _ in range(count or 1)]
            kept[which] = drawn if count else drawn[0]
        return kept.get(which)

    masks = {
        "get_dropout_mask": partial(mask, "dropout"),
        "get_recurrent_dropout_mask": partial(mask, "recurrent_dropout"),
    }
    return view(cell, **rates, **masks)


def _call_attention(
    noise: DropoutNoise,
    layer: Any,
    rate: float,
    inputs: list[Tensor],
    mask: Any = None,
    training: Any = None,
    return_attention_scores: bool = False,
    use_causal_mask: bool = False,
) -> Any:
    """Attention with a mask of ours on its weights. Keras calls them scores, and returns them as they are dropped."""
    _, weights = view(layer).call(
        inputs, mask=mask, training=False, return_attention_scores=True, use_causal_mask=use_causal_mask
    )
    weights = noise.drop(weights, rate)
    outputs = ops.matmul(weights, inputs[1])
    if mask and mask[0] is not None:
        outputs = ops.where(ops.expand_dims(mask[0], axis=-1), outputs, 0)
    return (outputs, weights) if return_attention_scores else outputs


def _cell_rates(cell: Any) -> list[float]:
    if isinstance(cell, keras_layers.StackedRNNCells):
        return [rate for inner in cell.cells for rate in _cell_rates(inner)]
    return [rate for rate in (cell.dropout, cell.recurrent_dropout) if rate] if _is_dropout_cell(cell) else []


def _is_dropout_cell(layer: Any) -> bool:
    return hasattr(layer, "get_dropout_mask") and hasattr(layer, "recurrent_dropout")
