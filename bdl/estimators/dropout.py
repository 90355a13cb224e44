"""The noise of every kind of dropout, as a function of a key: for our layers, and for Keras layers in a conversion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import layers, ops

from bdl import random
from bdl.estimators.weights import draws_whole_functions
from bdl.random import Tensor

_SPATIAL = (layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D)
_ALPHA_PRIME = -1.7580993408473766  # minus the limit of SELU at minus infinity: scale times alpha


def apply_dropout(
    layer: Any,
    inputs: Tensor,
    key: Tensor,
    strength: Tensor | float = 1.0,
    shared_axes: Sequence[int] = (),
    kind: type | None = None,
) -> Tensor:
    """Evaluates a dropout layer of Keras with noise of ours, whether in training or not.

    Within `whole_functions()` all examples of the batch share one draw.

    Args:
        layer: A Dropout, SpatialDropout1D to 3D, GaussianDropout, GaussianNoise or AlphaDropout layer; or any object
            with the attributes of one (`rate` or `stddev`, `noise_shape`, `data_format`), given its `kind`.
        inputs: What it is called on.
        key: Key of the draw, from `bdl.random`.
        strength: Scalar: 1, or 0 for no noise.
        shared_axes: Axes along which one draw serves all: 0 for the batch, 1 for the time of a sequence.
        kind: The Keras class whose noise is meant; None takes the layer's own.

    Returns:
        A tensor of the inputs' shape and dtype.

    Raises:
        ValueError: if the layer is none of these.

    Sources: Srivastava et al. 2014, section 10 (Gaussian dropout); Tompson et al. 2015 (spatial); Klambauer et al.
    2017, "Self-normalizing neural networks" (alpha).

    Example:
    >>> dropped = apply_dropout(layers.Dropout(0.5), np.ones((1, 8), "float32"), random.draw_key(0))
    >>> sorted({float(value) for value in np.asarray(dropped)[0]})
    [0.0, 2.0]
    """
    kind = type(layer) if kind is None else kind
    shape, has_examples = _noise_shape(layer, kind, inputs, shared_axes)
    key = random.of_examples(key) if has_examples else key
    x = ops.cast(inputs, "float32")
    if issubclass(kind, layers.GaussianNoise):
        noisy = x + strength * layer.stddev * random.normal(shape, key)
    elif issubclass(kind, layers.GaussianDropout):
        deviation = math.sqrt(layer.rate / (1.0 - layer.rate))
        noisy = x * (1.0 + strength * deviation * random.normal(shape, key))
    elif issubclass(kind, layers.AlphaDropout):
        noisy = x + strength * (_alpha_dropout(x, layer.rate, random.uniform(shape, key)) - x)
    elif issubclass(kind, (layers.Dropout, *_SPATIAL)):
        noisy = x * bernoulli_mask(shape, layer.rate, key, strength)
    else:
        raise ValueError(f"`layer` must be a dropout layer of Keras, not {layer!r}.")
    return ops.cast(noisy, inputs.dtype)


def bernoulli_mask(shape: Sequence[Any], rate: float, key: Tensor, strength: Tensor | float = 1.0) -> Tensor:
    """A float32 mask of mean one: `1 / (1 - rate)` where a value is kept, 0 where it is dropped, ones without strength.

    Args:
        shape: Of the mask.
        rate: Share that is dropped.
        key: Key of the draw, from `bdl.random`.
        strength: Scalar: 1, or 0 for no noise.

    Example:
    >>> sorted({float(value) for value in np.asarray(bernoulli_mask((50,), 0.75, random.draw_key(0)))})
    [0.0, 4.0]
    """
    kept = ops.cast(random.uniform(shape, key) >= rate, "float32")
    return 1.0 + strength * (kept / (1.0 - rate) - 1.0)


def _alpha_dropout(x: Tensor, rate: float, uniform: Tensor) -> Tensor:
    """Dropped values become SELU's limit, and an affine map keeps mean 0 and variance 1."""
    scale = 1.0 / math.sqrt((1.0 - rate) * (1.0 + rate * _ALPHA_PRIME**2))
    kept = ops.cast(uniform >= rate, "float32")
    return scale * (x * kept + _ALPHA_PRIME * (1.0 - kept)) - scale * _ALPHA_PRIME * rate


def _noise_shape(layer: Any, kind: type, inputs: Tensor, shared_axes: Sequence[int]) -> tuple[tuple[Any, ...], bool]:
    """Shape of the noise of a layer, which broadcasts over the inputs, and whether it is each example's own."""
    shape = list(ops.shape(inputs))
    shared = {0, *shared_axes} if draws_whole_functions() else set(shared_axes)
    if issubclass(kind, _SPATIAL):
        channels = 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else len(shape) - 1
        shared |= {axis for axis in range(len(shape)) if axis not in (0, channels)}
    elif getattr(layer, "noise_shape", None) is not None:
        asked = layer.noise_shape
        shared |= {axis for axis, size in enumerate(asked) if size == 1}
        shape = [size if asked[axis] is None else asked[axis] for axis, size in enumerate(shape)]
    shape = [1 if axis in shared else size for axis, size in enumerate(shape)]
    return tuple(shape), 0 not in shared
