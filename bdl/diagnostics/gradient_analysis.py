"""`GradientNoise`: the signal of a gradient and its two noises, from gradients of several batches under several draws.

A step's gradient has noise from two sources: which rows are in its batch, and what is drawn once for all of them. With
draws j, and batches k of fresh rows for each of them,

    g_jk = G + a_j + e_jk

`G` is the mean, the signal. `a_j` is the noise of the draw, which more rows do not quieten. `e_jk` is the noise of the
data: of the rows, of what is drawn for each of them alone, and of what a draw does to one row and not to another. Its
variance falls as 1 / batch size. This is the one-way analysis of variance with random effects. The variance within
draws is that of `e`. The variance between the means of m batches, less 1 / m of it, is that of `a`. Products of the
means of different draws have the expectation `|G|^2`. All three are unbiased, so that an estimate may be below zero.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

_CLEAR = 2.0  # standard errors by which a share must be off one half to be spoken of


@dataclass(frozen=True)
class GradientNoise:
    """Signal and noises of the gradient of a training step: squared norms, all in the same units.

    Norms weigh each number by `1 / sqrt(v)`, v its mean square in the optimizer, as the optimizer's steps do; by 1
    where it keeps none (SGD). The gradient is that of the loss per row, in nats.

    Args:
        batch_size: Rows in a batch, which `data` is of.
        signal: Squared norm of the mean gradient.
        data: Noise of the data: variance by the choice of rows and by what is drawn for each row alone. It falls as
            1 / `batch_size`.
        draw: Noise of the draw: variance by what is drawn once for a whole batch, such as weights or global latent
            values. More rows do not quieten it.
        signal_error: Standard error of `signal`.
        data_error: Standard error of `data`.
        draw_error: Standard error of `draw`.
        draw_share_error: Standard error of `draw_share`.
        num_examples: Rows of the data that batches were picked from.
        num_gradients: Gradients that were measured.

    Estimates are unbiased, and may be below zero where what they estimate is small.

    Example:
    >>> noise = GradientNoise(32, signal=0.5, data=0.2, draw=0.8, draw_share_error=0.05, num_examples=1000)
    >>> noise.draw_share, noise.at(64).data
    (0.8, 0.1)
    >>> print(noise)
    Larger batches would not help: 80 % (± 5 %) of the gradient's noise in batches of 32 is the draw's.
    """

    batch_size: int
    signal: float
    data: float
    draw: float
    signal_error: float = 0.0
    data_error: float = 0.0
    draw_error: float = 0.0
    draw_share_error: float = 0.0
    num_examples: int = 0
    num_gradients: int = 0

    @property
    def total(self) -> float:
        """Both noises."""
        return max(self.data, 0.0) + max(self.draw, 0.0)

    @property
    def draw_share(self) -> float:
        """Share of the noise that is the draw's, 0 to 1; NaN without any noise."""
        return float(_share(np.array(self.data), np.array(self.draw)))

    @property
    def is_clear(self) -> bool:
        """Whether it is known, to two standard errors, which noise is the larger one, or that the signal is."""
        return self._is_quiet or bool(abs(self.draw_share - 0.5) > _CLEAR * self.draw_share_error)

    @property
    def _is_quiet(self) -> bool:
        """Whether the signal is above both noises."""
        error = math.hypot(self.signal_error, self.data_error, self.draw_error)
        return self.signal - self.total > _CLEAR * error

    def at(self, batch_size: int) -> GradientNoise:
        """The same for batches of another size, small against the data: the noise of the data falls as 1 / size.

        Args:
            batch_size: Rows in a batch.
        """
        factor, share = self.batch_size / batch_size, self.draw_share
        # The share becomes r / (r + f (1 - r)); its error changes by the slope there.
        slope = factor / (share + factor * (1.0 - share)) ** 2
        return dataclasses.replace(
            self,
            batch_size=batch_size,
            data=factor * self.data,
            data_error=factor * self.data_error,
            draw_share_error=slope * self.draw_share_error,
        )

    def __str__(self) -> str:
        """Whether larger batches would help, where that is clear."""
        share, error, size = self.draw_share, self.draw_share_error, self.batch_size
        if self._is_quiet:
            return (
                f"The gradient's noise in batches of {size} is {self.total / self.signal:.2g} of its signal (squared "
                "norms): neither larger batches nor more draws would help much."
            )
        if not self.is_clear:
            return (
                f"Whether larger batches than {size} would help is not clear: {_percent(share, error)} of the "
                "gradient's noise is the draw's."
            )
        if share > 0.5:
            return (
                f"Larger batches would not help: {_percent(share, error)} of the gradient's noise in batches of {size} "
                "is the draw's."
            )
        halved = math.ceil((1.0 - share) / (0.5 - share) - 1e-6) * size
        what = (
            f"batches of {halved} would halve it all"
            if halved < self.num_examples
            else f"a step on all {self.num_examples} rows would have next to none of it"
        )
        return (
            f"Larger batches would help: {_percent(1.0 - share, error)} of the gradient's noise in batches of {size} "
            f"is the data's, and {what}."
        )


def analysis_of_variance(
    means: np.ndarray, within: np.ndarray, num_batches: int, batch_size: int, num_examples: int
) -> GradientNoise:
    """Signal and noises from gradients under several draws.

    Args:
        means: Mean gradient of each draw, `(draws, numbers)`, weighted.
        within: Sum of squares of its batches' gradients around that mean, `(draws,)`.
        num_batches: Batches of each draw, two at least.
        batch_size: Rows in each.
        num_examples: Rows that they were picked from.

    Returns:
        The estimates, with standard errors by the jackknife over draws.

    Source: Searle, Casella and McCulloch 1992, "Variance components", section 3.6.

    Example:
    >>> means = np.random.default_rng(0).normal(2.0, 1.0, size=(400, 1))  # signal 4; 1 is draw and half of the data's
    >>> noise = analysis_of_variance(means, np.full(400, 0.5), num_batches=2, batch_size=8, num_examples=99)
    >>> noise.data, abs(noise.draw - 0.75) < 3 * noise.draw_error
    (0.5, True)
    """
    means = np.asarray(means, "float64")
    products, draws = means @ means.T, len(means)
    squares, whole = np.trace(products), products.sum()
    own = np.diag(products)
    # Of all draws, and of all but one of them.
    number = np.array([draws, *[draws - 1] * draws], "float64")
    squares = squares - np.concatenate([[0.0], own])
    whole = whole - np.concatenate([[0.0], 2.0 * products.sum(axis=0) - own])
    inside = within.sum() - np.concatenate([[0.0], within])
    data = inside / (number * (num_batches - 1))
    between = (squares - whole / number) / (number - 1.0)
    signal = (whole - squares) / (number * (number - 1.0))
    draw = between - data / num_batches
    found = np.stack([signal, data, draw, _share(data, draw)])
    others = found[:, 1:]
    errors = np.sqrt((draws - 1) / draws * ((others - others.mean(axis=1, keepdims=True)) ** 2).sum(axis=1))
    values, deviations = found[:, 0].tolist(), errors.tolist()
    return GradientNoise(
        batch_size,
        signal=values[0],
        data=values[1],
        draw=values[2],
        signal_error=deviations[0],
        data_error=deviations[1],
        draw_error=deviations[2],
        draw_share_error=deviations[3],
        num_examples=num_examples,
        num_gradients=draws * num_batches,
    )


def _share(data: np.ndarray, draw: np.ndarray) -> np.ndarray:
    data, draw = np.maximum(data, 0.0), np.maximum(draw, 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(draw / (data + draw))


def _percent(share: float, error: float) -> str:
    return f"{100.0 * share:.0f} % (± {max(100.0 * error, 1.0):.0f} %)"
