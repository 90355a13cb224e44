"""Gradients of the guides of discrete local sites: the score function's, each draw measured by the others.

A draw k of such a guide has no pathwise gradient. With the cost f of a row, `nll + T local KLs`,

    d/dphi E f(k) = E f(k) d log q(k) / dphi + E df/dphi

for any f. What is subtracted from f(k_s) and does not depend on k_s changes no expectation, and much of the variance.
Of the ELBO it is the mean cost of the other draws (leave one out), so that the S draws of a row have the gradient

    1/S sum_s (f_s - mean_{r != s} f_r) d log q(k_s) / dphi

The direct gradient of log q in the divergence, T d log q(k_s) / dphi, is zero on average and left out.

Of the importance weighted bound L = log 1/S sum_s w_s, with log w = -f, all draws share one value. A draw's part of it
is L less the bound in which w_s is replaced by the geometric mean of the other weights (VIMCO):

    sum_s (L - L_{-s}) d log q(k_s) / dphi + dL/dphi

Here the direct gradient is weighted by the draw's share and is not zero on average: it stays.

The noise of these guides is drawn for each draw anew and not mirrored, for the baseline of a draw must not depend on
it. That of other guides stays mirrored. Given all of that noise, the draws k_s are still independent of each other and
of it, each of the distribution q, which is all that the above needs; and each draw of all sites together has the
distribution of the guides, which is all that the pathwise gradients need. For the same reason the doubly
reparameterized gradients of continuous sites beside them stay right: they hold at any k_1 .. k_S.

Sources: Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Mnih and Rezende 2016,
"Variational inference for Monte Carlo objectives", arXiv 1602.06725, eq. 6 to 10.
"""

from __future__ import annotations

import math

from keras import ops

from bdl.random import Tensor


def score_term(costs: Tensor, log_q: Tensor, objective: str) -> Tensor:
    """A term of each row's cost that is zero, with the gradient of the draws of discrete sites.

    Args:
        costs: Of each draw and row, `(draws, rows)`, in nats; two draws at least.
        log_q: Log probability of the draws of all discrete sites, `(draws, rows)`.
        objective: `"elbo"` or `"multi_sample"`.

    Returns:
        `(rows,)`: not a number where a cost is infinite.

    Example:
    >>> np.asarray(score_term(np.array([[3.0], [1.0]]), np.log([[0.5], [0.5]]), "elbo"))
    array([0.])
    """
    costs = ops.stop_gradient(costs)
    advantages = leave_one_out(costs) / costs.shape[0] if objective == "elbo" else vimco(costs)
    return ops.sum(advantages * (log_q - ops.stop_gradient(log_q)), axis=0)


def leave_one_out(costs: Tensor) -> Tensor:
    """Cost of each draw less the mean of the others'.

    Args:
        costs: `(draws, rows)`, two draws at least.

    Example:
    >>> np.asarray(leave_one_out(np.array([[3.0], [1.0], [2.0]])))[:, 0]
    array([ 1.5, -1.5,  0. ])
    """
    number = costs.shape[0]
    return (costs - ops.mean(costs, axis=0)) * (number / (number - 1))


def vimco(costs: Tensor) -> Tensor:
    """What each draw adds to the cost of its row, `-L`: less that with the others' geometric mean as its weight.

    Args:
        costs: `(draws, rows)`, two draws at least.

    Example:
    >>> np.asarray(vimco(-np.log(np.array([[0.2], [0.6]])))).round(4)[:, 0]  # log of .2 and .6 over .4
    array([ 0.4055, -0.6931])
    """
    number = costs.shape[0]
    others = (ops.sum(costs, axis=0) - costs) / (number - 1)
    is_own = ops.eye(number, dtype=costs.dtype)[..., None] > 0.0
    replaced = ops.where(is_own, others[:, None], costs[None])  # by the draw that is replaced
    return _bound_cost(costs) - _bound_cost(ops.swapaxes(replaced, 0, 1))


def _bound_cost(costs: Tensor) -> Tensor:
    """`-L` of costs with the draws on the first axis."""
    return math.log(costs.shape[0]) - ops.logsumexp(-costs, axis=0)
