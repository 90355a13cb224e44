"""`GradientNoise`: the signal of a gradient and its two noises, from gradients of several batches under several draws.

A step's gradient has noise from two sources: which rows are in its batch, and what is drawn once for all of them. With
draws j, and batches k of fresh rows for each of them,

    g_jk = G + a_j + e_jk

`G` is the mean, the signal; `a_j` the noise of the draw, which more rows do not quieten; `e_jk` the noise of the data:
that of the rows, of what is drawn for each of them alone, and of what a draw does to one row and not to another. Its
variance falls as 1 / batch size. This is the one-way analysis of variance with random effects: the variance within draws
is that of `e`; the variance between the means of m batches, less its own share of that, is that of `a`; products of the
means of different draws have the expectation `|G|^2`. All three are unbiased, so that an estimate may be below zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_CLEAR = 2.0  # standard errors by which a share must be off one half to be spoken of


@dataclass(frozen=True)
class GradientNoise:
    """Signal and noises of the gradient of a training step: squared norms, all in the same units.

    Norms weigh each number by `1 / sqrt(v)`, v its mean square in the optimizer, as the optimizer's steps do; by 1 where
    it keeps none (SGD). The gradient is that of the loss per row, in nats.

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
        num_gradients: Gradients that were measured.

    Estimates are unbiased, and may be below zero where what they estimate is small.

    Example:
    >>> noise = GradientNoise(32, signal=0.5, data=0.2, draw=0.8, draw_share_error=0.05)
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
    num_gradients: int = 0

    @property
    def total(self) -> float:
        """Both noises."""
        return max(self.data, 0.0) + max(self.draw, 0.0)

    @property
    def draw_share(self) -> float:
        """Share of the noise that is the draw's, 0 to 1; NaN without any noise."""
        return float(_share(np.float64(self.data), np.float64(self.draw)))

    def at(self, batch_size: int) -> GradientNoise:
        """The same for batches of another size, of many more rows than that: the noise of the data falls as 1 / size.

        Args:
            batch_size: Rows in a batch.
        """
        factor = self.batch_size / batch_size
        data, share = factor * self.data, self.draw_share
        other = float(_share(np.float64(data), np.float64(self.draw)))
        # The share is r / (f + (1 - f) r) of the old one, r; by its slope there.
        slope = factor / max(factor + (1.0 - factor) * share, 1e-12) ** 2 if math.isfinite(other) else 1.0
        return GradientNoise(
            batch_size,
            self.signal,
            data,
            self.draw,
            self.signal_error,
            factor * self.data_error,
            self.draw_error,
            slope * self.draw_share_error,
            self.num_gradients,
        )

    def __str__(self) -> str:
        """Whether larger batches would help, where that is clear."""
        share, error = self.draw_share, self.draw_share_error
        if not abs(share - 0.5) > _CLEAR * error:
            return (
                f"Whether larger batches than {self.batch_size} would help is not clear: {_percent(share)} "
                f"(± {_percent(error)}) of the gradient's noise is the draw's."
            )
        if share > 0.5:
            return (
                f"Larger batches would not help: {_percent(share)} (± {_percent(error)}) of the gradient's noise in "
                f"batches of {self.batch_size} is the draw's."
            )
        factor = math.ceil((1.0 - share) / (0.5 - share) - 1e-6)
        return (
            f"Larger batches would help: {_percent(1.0 - share)} (± {_percent(error)}) of the gradient's noise in "
            f"batches of {self.batch_size} is the data's, and batches of {factor * self.batch_size} would halve it all."
        )

    @property
    def is_clear(self) -> bool:
        """Whether it is known, to two standard errors, which noise is the larger one."""
        return bool(abs(self.draw_share - 0.5) > _CLEAR * self.draw_share_error)


def analysis_of_variance(means: np.ndarray, within: np.ndarray, num_batches: int, batch_size: int) -> GradientNoise:
    """Signal and noises from gradients under several draws.

    Args:
        means: Mean gradient of each draw, `(draws, numbers)`, weighted.
        within: Sum of squares of its batches' gradients around that mean, `(draws,)`.
        num_batches: Batches of each draw, two at least.
        batch_size: Rows in each.

    Returns:
        The estimates, with standard errors by the jackknife over draws.

    Source: Searle, Casella and McCulloch 1992, "Variance components", section 3.6.

    Example:
    >>> means = np.random.default_rng(0).normal(2.0, 1.0, size=(400, 1))  # signal 4; 1 is draw and half of the data's
    >>> noise = analysis_of_variance(means, np.full(400, 0.5), num_batches=2, batch_size=8)
    >>> noise.data, abs(noise.draw - 0.75) < 3 * noise.draw_error
    (0.5, True)
    """
    products, draws = np.asarray(means, "float64") @ np.asarray(means, "float64").T, len(means)
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
    estimates = (float(value) for value in found[:3, 0])
    return GradientNoise(batch_size, *estimates, *(float(error) for error in errors), draws * num_batches)


def _share(data: np.ndarray, draw: np.ndarray) -> np.ndarray:
    data, draw = np.maximum(data, 0.0), np.maximum(draw, 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(draw / (data + draw))


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %"
