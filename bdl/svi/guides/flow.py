"""The flow guide: a Gaussian bent by coupling layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.arguments import check_positive_integer
from bdl.random import Tensor
from bdl.svi.guides.coupling import Couplings
from bdl.svi.guides.framed import Framed
from bdl.svi.guides.full_rank import FullRank
from bdl.svi.guides.gaussian import WithoutClosedForms, log_normal, solved


@keras.saving.register_keras_serializable(package="bdl")
class Flow(FullRank):
    """A Gaussian that coupling layers bend, for globals and as a family of rows.

    `u = origin + frame (shift + T c(e))` with the layers c of `bdl.svi.guides.coupling` and a lower-triangular T, so
    that it begins as `FullRank` does, with the identity for c. It follows skewness, long tails and funnels, and needs
    more steps than `FullRank`.

    `kl_<site>` of one flow's sites add up to its divergence, but each is a share of it and no divergence of the site
    given those before it: a layer mixes the coordinates of all sites.

    Args:
        layers: Number of coupling layers.
        width: Units of the hidden layer of the network in each.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if `layers` or `width` is not a positive integer.

    Sources: Rezende and Mohamed 2015, "Variational inference with normalizing flows"; the gradient is the path gradient
    of Vaitl et al. 2022, "Gradients should stay on path", arXiv 2207.08219.

    Example:
    >>> guide = Flow(layers=4)
    >>> guide.bind({"scale": 1, "effects": 8})
    >>> tuple(guide.distribution().draw(np.zeros(9, "float32")).shape)
    (9,)
    """

    def __init__(self, layers: int = 8, width: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = check_positive_integer(layers, "layers")
        self.width = check_positive_integer(width, "width")

    def couplings(self, size: int) -> Couplings:
        """The layers, for numbers of this size."""
        return Couplings(size, self.layers, self.width)

    def make_scales(self) -> None:
        """Makes T and the weights of the layers."""
        super().make_scales()
        self.bend = self.add_weight(name="bend", shape=(self.couplings(self.size).num_weights,), initializer="zeros")

    def start_scales(self, scale: float) -> None:
        """Sets T to a multiple of the identity, and the layers to the identity."""
        super().start_scales(scale)
        self.bend.assign(np.zeros(self.bend.shape))

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Framed:  # type: ignore[override]
        """The distribution."""
        base = Bent(self.value(self.shift), self.inner(), self.couplings(self.size), self.value(self.bend), sticks=True)
        return Framed(base, self.value(self.origin), self.value(self.frame))

    def num_parameters(self, size: int) -> int:
        """Those of the Gaussian, and the weights of the layers."""
        return super().num_parameters(size) + self.couplings(size).num_weights

    def of_parameters(self, parameters: Tensor, size: int) -> Bent:  # type: ignore[override]
        """A distribution of parameters `(..., num_parameters(size))`."""
        number = super().num_parameters(size)
        gaussian = super().of_parameters(parameters[..., :number], size)
        return Bent(gaussian.mean, gaussian.factor, self.couplings(size), parameters[..., number:])

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "layers": self.layers, "width": self.width}


@dataclass(frozen=True, eq=False)
class Bent(WithoutClosedForms):
    """Draws `m + L c(e)` of a standard normal e, with coupling layers c.

    If its density sticks, the draw goes back through layers whose weights have no gradient.

    Args:
        mean: `(..., size)`.
        factor: Lower triangular, `(..., size, size)`.
        couplings: The layers.
        weights: Theirs, `(..., num_weights)`.
        sticks: Whether the gradient of a draw's log density comes through the draw alone.
    """

    mean: Tensor
    factor: Tensor
    couplings: Couplings
    weights: Tensor
    sticks: bool = False

    def draw(self, noise: Tensor) -> Tensor:
        """`m + L c(e)`."""
        return self._placed(self.couplings.forward(self.weights, noise)[0])

    def log_density(self, noise: Tensor) -> Tensor:
        """Shares of the coordinates, which add up to the log density of the draw."""
        if self.sticks:
            return self._on_path(noise)
        _, log_scale = self.couplings.forward(self.weights, noise)
        return log_normal(noise) - log_scale - ops.log(ops.diagonal(self.factor, axis1=-2, axis2=-1))

    def _placed(self, bent: Tensor) -> Tensor:
        return self.mean + ops.sum(self.factor * bent[..., None, :], axis=-1)

    def _on_path(self, noise: Tensor) -> Tensor:
        mean, factor, weights = (ops.stop_gradient(each) for each in (self.mean, self.factor, self.weights))
        back, log_scale = self.couplings.inverse(weights, solved(factor, self.draw(noise) - mean, lower=True))
        return log_normal(back) - log_scale - ops.log(ops.diagonal(factor, axis1=-2, axis2=-1))
