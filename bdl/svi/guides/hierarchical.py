"""The hierarchical guide: each site's prior, given the draw of the sites before it, times a Gaussian of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.random import Tensor
from bdl.svi.guides.base import START_SCALE, LocationScaleGuide
from bdl.svi.guides.gaussian import Gaussian, WithoutClosedForms, log_normal


@dataclass(frozen=True, eq=False)
class Conditional(WithoutClosedForms):
    """Independent Gaussians, given a draw of other sites on which their means and scales depend.

    Args:
        mean: `(..., size)`.
        scale: Standard deviations.
        held_mean: The same numbers as `mean`, with the gradient in the other sites' draw alone.
        held_scale: The same of `scale`.
    """

    mean: Tensor
    scale: Tensor
    held_mean: Tensor
    held_scale: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """`mean + scale e`."""
        return self.mean + self.scale * noise

    def log_density(self, noise: Tensor) -> Tensor:
        """Log density of that draw by coordinate; its gradient comes through the draws alone."""
        draw = self.draw(noise)
        # The noise as read off the draw: in numbers it is `noise`, without the rounding of a division by a small scale.
        gap = (draw - self.held_mean) / self.held_scale
        read = ops.stop_gradient(noise) + gap - ops.stop_gradient(gap)
        return log_normal(read) - ops.log(self.held_scale)


@keras.saving.register_keras_serializable(package="bdl")
class Hierarchical(LocationScaleGuide):
    """The prior's own structure, for globals: each site is guided by its prior given the sites before it in the story.

    Where the prior of a site, given the draw of the sites before it, is a Gaussian on the real line of mean `m` and
    standard deviation `s`, the guide is that prior times a Gaussian of its own, `N(b, c^2)`, which stands for what the
    data say of the site:

        mean = w m + (1 - w) b,     1 / scale^2 = 1 / s^2 + 1 / c^2,     w = c^2 / (s^2 + c^2)

    A group whose prior is narrow follows it, and one whose data say more follows these, in each draw: that is the
    posterior itself of a Gaussian hierarchy given its scales, funnels included. Where the prior is no such Gaussian,
    the guide is `N(b, c^2)`. Give it the sites of the groups, and what they depend on, such as a mean and a scale, a
    `"full_rank"` guide: `{("mu", "tau"): "full_rank", "theta": Hierarchical()}`. The story runs once more in each step,
    up to the last of its sites. A mean that the groups' values are added to, and that their prior does not read, is
    guided as if it did not depend on them: write it into the prior.

    Args:
        **kwargs: Of `keras.Layer`.

    Source: Ambrogioni et al. 2021, "Automatic structured variational inference", arXiv 2002.00643, section 3. There
    the weights of means and scales are constants; here they follow from the scales, as in a conjugate update.

    Example:
    >>> guide = Hierarchical()
    >>> guide.bind({"theta": 8})
    >>> [variable.name for variable in guide.trainable_variables], guide.follows_prior
    (['shift', 'rho'], True)
    """

    follows_prior = True

    def make_scales(self) -> None:
        """Makes `rho`."""
        self.rho = self.add_weight(name="rho", shape=(self.size,), initializer="zeros")

    def start_scales(self, scale: float) -> None:
        """Sets all scales to one number."""
        self.rho.assign(ops.full((self.size,), float(np.log(scale)), dtype=self.rho.dtype))

    def start_at(self, origin: np.ndarray, frame: np.ndarray | None) -> None:
        """Moves it to a start: without a frame the data are taken for vague, so that it begins near the prior."""
        super().start_at(origin, frame)
        if frame is None:
            self.start_scales(1.0 / START_SCALE)

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Gaussian:
        """Its own Gaussian `N(b, c^2)`, without the prior: `c = frame exp(rho)`, and `b = origin + c shift`."""
        scale = self.value(self.frame) * ops.exp(self.value(self.rho))
        return Gaussian(self.value(self.origin) + scale * self.value(self.shift), scale, is_diagonal=True)

    def conditional(self, site: str, prior: tuple[Tensor, Tensor] | None) -> Conditional:
        """The distribution of a site given a draw of the sites before it.

        Args:
            site: Its name.
            prior: Means and standard deviations of its prior on the real line, `(size,)`; None if it is no Gaussian.
        """
        start, stop = self.coordinates(site)
        own = self.distribution()
        parts: list[Tensor] = []
        for mean, scale in (
            (own.mean, own.factor),
            (ops.stop_gradient(own.mean), ops.stop_gradient(own.factor)),
        ):
            parts += product(mean[start:stop], scale[start:stop], prior)
        return Conditional(*parts)


def product(mean: Tensor, scale: Tensor, prior: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the product of two Gaussian densities, or of the first alone.

    Example:
    >>> [round(float(each), 4) for each in product(np.array(3.0), np.array(1.0), (np.array(1.0), np.array(1.0)))]
    [2.0, 0.7071]
    """
    if prior is None:
        return mean, scale
    loc, width = prior
    ratio = scale / width
    weight = ops.sigmoid(2.0 * ops.log(ratio))  # c^2 / (s^2 + c^2), whichever of them is small
    return weight * loc + (1.0 - weight) * mean, width * ops.sqrt(weight)
