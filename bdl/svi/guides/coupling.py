"""Coupling layers: invertible maps of several numbers that bend a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from keras import ops

from bdl.keras_internals import arcsinh, matmul, tanh
from bdl.random import Tensor

LARGEST_LOG_SCALE, LARGEST_LOG_TAIL, LARGEST_SKEWNESS = 2.0, 0.5, 1.0
"""Bounds of what one layer does; several do more."""

_NUMBERS = 4  # of a coordinate in a layer: shift, log scale, log tail, skewness


@dataclass(frozen=True)
class Couplings:
    """Coupling layers, whose weights are given.

    A layer keeps some numbers as they are. A network of one hidden layer turns them into shift a, log scale log b, tail
    t and skewness s of each of the others, `y = a + b g(x)` with the sinh-arcsinh map

        g(x) = (sinh(t arcsinh(x) + s) - sinh(s)) / (t cosh(s)),

    which has g(0) = 0 and g'(0) = 1. A tail t above 1 makes tails longer, below 1 shorter; s makes one longer than the
    other. Layer k changes the numbers whose index has a 1 in a bit of its binary form, layer k + 1 those that have a 0
    there, the next two take the next bit: any two numbers meet in `2 log2(size)` layers. One number alone is changed by
    each layer, in a way that nothing else determines. Zero weights make the identity.

    Args:
        size: Numbers.
        layers: Number of layers.
        width: Units of the hidden layer of each.

    Sources: Dinh, Sohl-Dickstein, Bengio 2017, "Density estimation using Real NVP", arXiv 1605.08803, section 3.2;
    Jones and Pewsey 2009, "Sinh-arcsinh distributions".

    Example:
    >>> couplings = Couplings(size=3, layers=2, width=4)
    >>> x = keras.ops.convert_to_tensor([0.5, -2.0, 3.0])
    >>> y, log_scale = couplings.forward(keras.ops.zeros(couplings.num_weights), x)
    >>> np.asarray(y).round(4), np.asarray(log_scale).round(4)
    (array([ 0.5, -2. ,  3. ], dtype=float32), array([0., 0., 0.], dtype=float32))
    """

    size: int
    layers: int
    width: int

    @property
    def num_weights(self) -> int:
        """Weights of all layers together."""
        return self.layers * sum(math.prod(shape) for shape in self._shapes())

    def forward(self, weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map.

        Args:
            weights: `(..., num_weights)`.
            x: `(..., size)`.

        Returns:
            y, and the logarithm of the derivative of each coordinate: `(..., size)` both.
        """
        total = ops.zeros_like(x)
        for layer, own in enumerate(self._split(weights)):
            x, log_scale = _bent(self._numbers(layer, own, x), x)
            total = total + log_scale
        return x, total

    def inverse(self, weights: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The way back, with the logarithms of `forward`.

        Args:
            weights: `(..., num_weights)`.
            y: `(..., size)`.
        """
        total = ops.zeros_like(y)
        for layer, own in reversed(list(enumerate(self._split(weights)))):
            y, log_scale = _unbent(self._numbers(layer, own, y), y)
            total = total + log_scale
        return y, total

    def _numbers(self, layer: int, weights: list[Tensor], values: Tensor) -> list[Tensor]:
        """Shift, log scale, log tail and skewness of each number, which are zero where it is kept."""
        is_moved = ops.convert_to_tensor(self._is_moved(layer), dtype=values.dtype)
        kept = (1.0 - is_moved) * values
        inner = tanh(_times(kept, weights[0]) + weights[1])
        # One step of Adam moves all weights alike: it must not bend the more, the wider and the more the layers are.
        numbers = (_times(inner, weights[2]) / self.width + weights[3]) / math.sqrt(self.layers)
        return [is_moved * numbers[..., place * self.size : (place + 1) * self.size] for place in range(_NUMBERS)]

    def _is_moved(self, layer: int) -> np.ndarray:
        """Which numbers a layer moves, as ones."""
        places = np.arange(self.size)
        bit = layer // 2 % max(1, (self.size - 1).bit_length())
        return ((places >> bit) % 2 == layer % 2) | (self.size == 1)

    def _shapes(self) -> list[tuple[int, ...]]:
        """Of the weights of a layer: the hidden layer's kernel and bias, and the next one's."""
        out = _NUMBERS * self.size
        return [(self.size, self.width), (self.width,), (self.width, out), (out,)]

    def _split(self, weights: Tensor) -> Iterator[list[Tensor]]:
        """Weights of each layer; the hidden ones are given as differences to where they begin."""
        lead, end = ops.shape(weights)[:-1], 0
        first = _uniform(self.num_weights)
        for layer in range(self.layers):
            num_kept = max(1, self.size - int(self._is_moved(layer).sum()))
            own = []
            for number, shape in enumerate(self._shapes()):
                begin, end = end, end + math.prod(shape)
                values = weights[..., begin:end]
                if number < 2:
                    spread = math.sqrt(3.0 / num_kept) if number == 0 else 1.0
                    values = values + ops.convert_to_tensor(spread * first[begin:end], dtype=weights.dtype)
                own.append(ops.reshape(values, (*lead, *shape)))
            yield own


def _times(values: Tensor, kernel: Tensor) -> Tensor:
    return matmul(values[..., None, :], kernel)[..., 0, :]


def _bent(numbers: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    shift, log_scale, log_tail, skewness = _bounded(numbers)
    tail, turned = ops.exp(log_tail), arcsinh(x)
    inner = tail * turned + skewness
    bent = (ops.sinh(inner) - ops.sinh(skewness)) / (tail * ops.cosh(skewness))
    return shift + ops.exp(log_scale) * bent, _log_derivative(log_scale, skewness, inner, turned)


def _unbent(numbers: list[Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    shift, log_scale, log_tail, skewness = _bounded(numbers)
    tail, bent = ops.exp(log_tail), (y - shift) * ops.exp(-log_scale)
    inner = arcsinh(bent * tail * ops.cosh(skewness) + ops.sinh(skewness))
    turned = (inner - skewness) / tail
    return ops.sinh(turned), _log_derivative(log_scale, skewness, inner, turned)


def _log_derivative(log_scale: Tensor, skewness: Tensor, inner: Tensor, turned: Tensor) -> Tensor:
    """With `cosh(arcsinh(x)) = sqrt(1 + x^2)`."""
    return log_scale + _log_cosh(inner) - _log_cosh(skewness) - _log_cosh(turned)


def _log_cosh(x: Tensor) -> Tensor:
    return ops.log(ops.cosh(x))


def _bounded(numbers: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shift, *rest = numbers
    bounds = (LARGEST_LOG_SCALE, LARGEST_LOG_TAIL, LARGEST_SKEWNESS)
    log_scale, log_tail, skewness = (bound * tanh(each / bound) for bound, each in zip(bounds, rest, strict=True))
    return shift, log_scale, log_tail, skewness


def _uniform(number: int) -> np.ndarray:
    """Numbers from -1 to 1, the same ones in any version of NumPy: it keeps the raw stream of a bit generator."""
    return np.random.PCG64(0).random_raw(number) * 2.0**-63 - 1.0
