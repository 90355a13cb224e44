"""Gradients of the guides of discrete local sites: the score function's, each draw measured by a baseline.

A draw k of such a guide has no pathwise gradient. With the cost f of a row, `nll + T local KLs`,

    d/dphi E f(k) = E f(k) d log q(k) / dphi + E df/dphi

for any f. What is subtracted from f(k_s) and does not depend on k_s changes no expectation, and much of the variance.
Of the ELBO it is the mean cost of the other draws (leave one out), so that the S draws of a row have the gradient

    1/S sum_s (f_s - mean_{r != s} f_r) d log q(k_s) / dphi

or what a learned baseline expects of the row (`bdl.svi.baseline`), which one draw can do with. The direct gradient of
log q in the divergence, T d log q(k_s) / dphi, is zero on average and left out.

Where a row has several guides, a guide's score meets its own share of the cost: f = a + b, where b are the divergences
and likelihoods of sites that the story yields before the guide's first, which cannot depend on its draw. The score
times b has the mean zero, so that a + c b serves with any c that does not depend on the row's draws. Ranganath et al.
take c = 0 (Rao-Blackwell), which is right where b has nothing to do with a. Where it has, c = 0 may be far worse than
c = 1: at the exact posterior f is a constant, its gradient has no noise at all, and that of a alone has. So c is the
regression of a on -b over the other rows of the batch, within 0 and 1. Entries of one guide share their cost.

Of the importance weighted bound L = log 1/S sum_s w_s, with log w = -f, all draws share one value. A draw's part of it
is L less the bound in which w_s is replaced by the geometric mean of the other weights (VIMCO):

    sum_s (L - L_{-s}) d log q(k_s) / dphi + dL/dphi

Here the direct gradient is weighted by the draw's share and is not zero on average: it stays.

The noise of these guides is drawn for each draw anew and not mirrored, for the baseline of a draw must not depend on
it. That of other guides stays mirrored. Given all of that noise, the draws k_s are still independent of each other and
of it, each of the distribution q, which is all that the above needs; and each draw of all sites together has the
distribution of the guides, which is all that the pathwise gradients need. For the same reason the doubly
reparameterized gradients of continuous sites beside them stay right: they hold at any k_1 .. k_S.

Sources: Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ranganath, Gerrish and
Blei 2014, "Black box variational inference", arXiv 1401.0118, sections 3.1 and 3.2; Mnih and Rezende 2016, "Variational
inference for Monte Carlo objectives", arXiv 1602.06725, eq. 6 to 10.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keras import ops

from bdl.random import Tensor
from bdl.svi.baseline import features_of
from bdl.svi.draws import Draws
from bdl.svi.guides import PerRow

if TYPE_CHECKING:
    from bdl.svi.estimators import Estimator, Terms


def score_terms(estimator: Estimator, data: Any, draws: Draws, terms: Terms, temperature: Tensor | float) -> Tensor:
    """Terms of each row's cost that are zero, with the gradients of the guides of discrete sites and of baselines.

    Args:
        estimator: That runs the story.
        data: The batch.
        draws: Of the step.
        terms: What they cost.
        temperature: T.

    Returns:
        `(rows,)`: not a number where a cost is infinite.
    """
    places = [place for place, guide in enumerate(estimator.guides) if guide.is_discrete]
    log_q = {place: ops.sum(draws.log_density_of(place), axis=-1) for place in places}
    if estimator.objective == "multi_sample":
        costs = ops.stop_gradient(terms.costs(temperature))
        return with_score(vimco(costs), sum(log_q.values()))
    total: Tensor = 0.0
    for place in places:
        after, before = _around(estimator, place, terms, temperature)
        baseline = estimator.baselines.get(place)
        if baseline is None:
            advantages = [None if each is None else leave_one_out(each) for each in (after, before)]
        else:
            features = features_of(estimator.guides[place], data, draws, baseline.network)
            *advantages, error = baseline.advantages(after, before, features)
            total = total + error
        total = total + with_score(joined(*advantages) / after.shape[0], log_q[place])
    return total


def _around(
    estimator: Estimator, place: int, terms: Terms, temperature: Tensor | float
) -> tuple[Tensor, Tensor | None]:
    """What draws cost from a guide's first site on, and before it, `(draws, rows)`; None where that is nothing."""
    names = list(terms.by_site)
    first = min(names.index(name) for name in estimator.guides[place].sizes)
    # A row of a table takes a few steps before it is drawn, and sees the draws of all other sites.
    if any(isinstance(guide, PerRow) for guide in estimator.guides):
        first = 0
    after, before = (ops.stop_gradient(terms.costs(temperature, part)) for part in (names[first:], names[:first]))
    return after, before if first else None


def with_score(advantages: Tensor, log_q: Tensor) -> Tensor:
    """Zeros with the gradient of the score function, `(rows,)`.

    Args:
        advantages: Of each draw and row, `(draws, rows)`.
        log_q: Log probability of the draws, `(draws, rows)`.

    Example:
    >>> np.asarray(with_score(np.array([[1.0], [-1.0]]), np.log([[0.5], [0.5]])))
    array([0.])
    """
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


def joined(after: Tensor, before: Tensor | None) -> Tensor:
    """What a draw costs from a site on, and of what comes before as much as makes that quieter in the other rows.

    Args:
        after: Advantages of the part that depends on the site, `(draws, rows)`.
        before: Those of the part that does not; None where there is none.

    Returns:
        `after + c before`, with a c from 0 to 1 of each row's own; 1 of a single row, which has no others.

    Example:
    >>> after = np.array([[1.0, 2.0, -1.0]])
    >>> np.asarray(joined(after, -after))[0], np.asarray(joined(after, after))[0]
    (array([0., 0., 0.]), array([ 1.,  2., -1.]))
    """
    if before is None:
        return after
    power, shared = (ops.sum(before * each, axis=0) for each in (before, after))
    power, shared = (ops.sum(each) - each for each in (power, shared))
    share = ops.where(power > 0.0, -shared / ops.where(power > 0.0, power, ops.ones_like(power)), 1.0)
    return after + ops.clip(share, 0.0, 1.0) * before


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
