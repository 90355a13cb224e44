"""The smoothed guide: a path's own transition, times a Gaussian factor for each step that a network gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor
from bdl.svi.guides.amortized import Amortized
from bdl.svi.guides.base import softplus_inverse
from bdl.svi.guides.chain import Chain, Layout, Linear, chained, later


@dataclass(frozen=True, eq=False)
class Transition:
    """Of a linear Gaussian path: `h_1 ~ N(first_mean, first_sd^2)`, `h_{t+1} ~ N(shift_t + slope_t h_t, sd_t^2)`.

    All are numbers, or arrays that broadcast to `(rows, T)`. Entry t of `shift`, `slope` and `sd` leads from step t to
    the next, and the last does not count.
    """

    first_mean: Tensor
    first_sd: Tensor
    shift: Tensor
    slope: Tensor
    sd: Tensor


@keras.saving.register_keras_serializable(package="bdl")
class Smoothed(Amortized):
    """The path of a state-space model by row: its transition, times a Gaussian factor for each step from a network.

        q(h | g) = N(h_1) prod_t N(h_{t+1}; shift_t + slope_t h_t, sd_t^2) prod_t exp(-k_t (h_t - l_t)^2 / 2) / Z

    where the transition is a function of a draw g of other sites, and the network gives locations l and precisions k.
    So the path follows g as it does in the posterior: how rough it is, how far it goes, and how much neighbours share.
    The network has to tell only what the data say of each step. Where transition and observations are linear and
    Gaussian, the guide can be the posterior of the path for every g; where they nearly are, it comes near. Means,
    standard deviations and correlations are those of a Kalman smoother, in log2(T) rounds over all steps.

    Args:
        network: A Keras layer or model, from `(rows, T, inputs)`, with the draw of `given` at each step, to
            `(rows, T, features)`.
        transition: A registered function `(given, more)` to a `Transition`. `given` is the draw of these sites on the
            real line, `(numbers,)` in their order, None without any; `more` has `num_more` numbers of the network for
            each step, `(num_more, rows, T)`, which begin at zero: for a transition that is not linear in the path, or
            depends on data.
        inputs: As of `Amortized`.
        given: Names of global sites on whose draw transition and factors depend.
        num_more: Numbers for each step that the transition takes from the network.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: as of `Amortized` with `by_step`, or if `transition` is no function.

    Sources: Johnson et al. 2016, "Composing graphical models with neural networks for structured representations and
    fast inference", arXiv 1603.06277, for factors from a network; Särkkä and García-Fernández 2021, "Temporal
    parallelization of Bayesian smoothers", arXiv 1905.13002, for the rounds.

    Example:
    >>> walk = lambda given, more: Transition(0.0, 1.0, 0.0, 1.0, 0.3)
    >>> guide = Smoothed(keras.layers.Identity(), walk, inputs="y")
    >>> data = {"y": np.ones((2, 50), "float32")}
    >>> guide.bind({"path": 50}, data)
    >>> tuple(guide.distribution(data).draw(np.zeros((2, 50), "float32")).shape)
    (2, 50)
    """

    def __init__(
        self,
        network: keras.Layer,
        transition: Callable[[Any, Tensor], Transition],
        inputs: str | Sequence[str] | Callable[[Any], Tensor] | None = None,
        given: Sequence[str] = (),
        num_more: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, inputs, given, family="structured", by_step=True, **kwargs)
        if not callable(transition):
            raise ValueError(f"`transition` must be a function of (given, more), not {transition!r}.")
        self.transition = transition
        self.num_more = int(num_more)

    def num_outputs(self) -> int:
        """Numbers of the network for one row: location, precision, and what the transition takes, of each step."""
        return (2 + self.num_more) * self.size

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Chain:
        """The chain of each row."""
        found = ops.reshape(self.parameters(data, given), (-1, 2 + self.num_more, self.size))
        found = ops.transpose(found, (1, 0, 2))
        transition = self.transition(given, found[2:])
        return smoothed(transition, found[0], ops.softplus(found[1] + softplus_inverse(1.0)))

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        config = super().get_config()
        for name in ("family", "by_step"):
            del config[name]
        transition = keras.saving.serialize_keras_object(self.transition)
        return {**config, "transition": transition, "num_more": self.num_more}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Smoothed:
        """Builds the guide again."""
        transition = keras.saving.deserialize_keras_object(config["transition"])
        return super().from_config({**config, "transition": transition})


def smoothed(transition: Transition, location: Tensor, precision: Tensor) -> Chain:
    """The posterior of a linear Gaussian path given `l_t ~ N(h_t, 1 / k_t)`, as a chain forwards in time.

    The Kalman filter, then Rauch, Tung and Striebel's recursion. The filter's variances follow fractions of linear
    functions, `R' = (a R + b) / (c R + d)` with positive numbers, whose composition is a product of matrices; all else
    is affine.

    Args:
        transition: Of the path.
        location: l, `(rows, T)`.
        precision: k, positive, `(rows, T)`.
    """
    zeros = ops.zeros_like(location)
    shift, slope, sd = (each + zeros for each in (transition.shift, transition.slope, transition.sd))
    first_mean, first_sd = (each + zeros[:, :1] for each in (transition.first_mean, transition.first_sd))
    ahead = predicted_variance(first_sd**2, slope, sd**2, precision)  # R of each step, before its own factor
    variance = ahead / (1.0 + precision * ahead)
    gain = precision * variance
    move, start = slope * (1.0 - gain), shift + slope * gain * location
    mean_ahead = chained(later(move, 1), ops.concatenate([first_mean, start[:, :-1]], axis=1))
    mean = mean_ahead + gain * (location - mean_ahead)
    # Backwards: h_t given h_{t+1} and the data until t.
    back = slope[:, :-1] * variance[:, :-1] / ahead[:, 1:]
    rest = variance[:, :-1] * sd[:, :-1] ** 2 / ahead[:, 1:]
    whole = _backwards(back, mean[:, :-1] - back * mean_ahead[:, 1:], mean[:, -1:])
    marginal = _backwards(back**2, rest, variance[:, -1:])
    nothing = zeros[:, :1]
    forward_slope = ops.concatenate([nothing, back * marginal[:, 1:] / marginal[:, :-1]], axis=1)
    forward_variance = ops.concatenate([marginal[:, :1], marginal[:, 1:] * rest / marginal[:, :-1]], axis=1)
    rho = ops.full_like(zeros, softplus_inverse(1.0))
    layout = Layout((int(location.shape[1]),), -1)
    return Chain(Linear(whole), Linear(forward_slope), Linear(rho), ops.sqrt(forward_variance), layout)


def predicted_variance(first: Tensor, slope: Tensor, noise: Tensor, precision: Tensor) -> Tensor:
    """Variances of a path's steps given the factors before them: `R_{t+1} = slope_t^2 R_t / (1 + k_t R_t) + noise_t`.

    Args:
        first: `(rows, 1)`.
        slope: `(rows, T)`; the last does not count here and below.
        noise: Variances of the steps, `(rows, T)`.
        precision: k, `(rows, T)`.

    Example:
    >>> one = np.ones((1, 3), "float32")
    >>> np.round(np.asarray(predicted_variance(one[:, :1], one, one, one)), 4).tolist()
    [[1.0, 1.5, 1.6]]
    """
    one = ops.ones_like(precision[:, :-1])
    a, b, c, d = slope[:, :-1] ** 2 + (noise * precision)[:, :-1], noise[:, :-1], precision[:, :-1], one
    distance, number = 1, int(precision.shape[1]) - 1
    while distance < number:  # the matrices then lead over the last `distance` steps
        before = [later(each, distance) for each in (a, b, c, d)]
        is_first = ops.cast(ops.arange(number) < distance, one.dtype)  # nothing is before them: the identity
        e, f, g, h = before[0] + is_first, before[1], before[2], before[3] + is_first
        a, b, c, d = a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
        size = a + d
        a, b, c, d = a / size, b / size, c / size, d / size
        distance *= 2
    return ops.concatenate([first, (a * first + b) / (c * first + d)], axis=1)


def _backwards(slope: Tensor, shift: Tensor, last: Tensor) -> Tensor:
    """Solves `y_t = slope_t y_{t+1} + shift_t`, `(rows, T)`, from the last; the others are `(rows, T - 1)`."""
    slope = ops.concatenate([slope, ops.zeros_like(last)], axis=1)
    shift = ops.concatenate([shift, last], axis=1)
    return ops.flip(chained(ops.flip(slope, axis=1), ops.flip(shift, axis=1)), axis=1)
