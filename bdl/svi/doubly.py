"""Doubly reparameterized gradients of the importance weighted bound, for the variables of local sites' guides.

With draws z_s, weights w_s = p(x, z_s) / q(z_s) and their shares v_s = w_s / sum_r w_r, the usual gradient of the bound
in the variables phi of q is that of sum_s v_s log w_s with v_s held fixed. The part of it that comes through the
density of q at a fixed draw, -sum_s v_s d log q(z_s) / d phi, is mostly noise, next to which the rest fades as draws
become more. Its expectation can be written with gradients through the draws alone (Tucker et al. 2019, arXiv
1810.04152, eq. 8). With g_s = d log w_s / d z_s and, at temperature T, log w = log p(x | z) + T log (p(z) / q(z)), the
gradient is then

    sum_s v_s g_s (1 - T (1 - v_s)) dz_s/dphi,     which has v_s^2 at T = 1,

if draws are independent. Here they come in pairs reflected at the centre m of q, z_r = 2 m - z_s. So v_s depends on z_s
through z_r as well, and with dz_r/dz_s = -1 the same step gives

    sum_s v_s g_s ((1 - T (1 - v_s)) dz_s/dphi - T v_r dz_r/dphi)

A draw that the story sees hands the gradient that it gets, v_s g_s, on to itself and to its partner, in these shares.
What else the story depends on, globals and networks, keeps its usual gradient.

The shares are needed before the draws: the story is evaluated twice, in the same way, which a compiler does once.

On logits of binomial counts and on a Gaussian, the variance at the best guide is 50 to 20,000 times less with 2 to 20
draws, and still 2 to 700 times less with one 1.5 times too wide; with one at .6 of its width it is up to 20 times more.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from bdl.random import Tensor


def shares_of(log_weights: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """Which parts of its gradient each draw hands on to itself and to its partner.

    Args:
        log_weights: Of each draw and row, `(draws, rows)`, mirrored in pairs.
        temperature: T.

    Returns:
        Two tensors `(draws, rows)`.

    Example:
    >>> own, partners = shares_of(np.log(np.array([[3.0], [1.0]])), 1.0)
    >>> np.asarray(own)[:, 0], np.asarray(partners)[:, 0]
    (array([0.75, 0.25]), array([-0.25, -0.75]))
    """
    shares = ops.softmax(ops.stop_gradient(log_weights), axis=0)
    temperature = ops.cast(temperature, shares.dtype)
    own = 1.0 - temperature * (1.0 - shares)
    order, has_partner = _partners(shares.shape[0])
    partners = -temperature * ops.take(shares, order, axis=0) * ops.cast(has_partner, shares.dtype)[:, None]
    return ops.stop_gradient(own), ops.stop_gradient(partners)


def handing_on(draws: Tensor, own: Tensor, partners: Tensor) -> Tensor:
    """The draws, which hand on their gradient to themselves and to their partners.

    Args:
        draws: `(draws, rows, size)`, mirrored in pairs.
        own: Shares of their own, `(draws, rows)`.
        partners: Shares of their partners, `(draws, rows)`.
    """
    order, _ = _partners(draws.shape[0])
    return _handing_on(draws, ops.take(draws, order, axis=0), own[..., None], partners[..., None])


@ops.custom_gradient
def _handing_on(draws: Tensor, others: Tensor, own: Tensor, partners: Tensor) -> Any:
    def gradient(*arguments: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, ...]:
        passed = arguments[0] if upstream is None else upstream
        return own * passed, partners * passed, ops.zeros_like(own), ops.zeros_like(partners)

    return draws, gradient


def _partners(number: int) -> tuple[list[int], list[bool]]:
    """The other draw of each pair, and whether there is one: of an odd number of draws the last is alone."""
    order = [min(place ^ 1, number - 1) for place in range(number)]
    return order, [other != place for place, other in enumerate(order)]
