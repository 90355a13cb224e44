"""How probable data are under a model with latent variables: two lower bounds of the log evidence, to compare models.

With draws `z_s ~ q(z | x)` of a row's latent variables and weights `w_s = p(x, z_s) / q(z_s | x)`

    ELBO                  E log w                      <=   log p(x)
    importance weighted   E log (1/S) sum_s w_s        <=   log p(x), and rises to it with S

Where global variables g are drawn as well, `W_g = p(g) / q(g) * prod_rows (1/S) sum_s w_s(g)` is an unbiased estimate
of the evidence of all rows, so that the logarithm of a mean of G of them is a bound, too.

Source: Burda, Grosse and Salakhutdinov 2016, "Importance weighted autoencoders", arXiv 1509.00519.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bdl.report import Paragraph, Row, Shown, Table


@dataclass(frozen=True, repr=False)
class Bounds(Shown):
    """Lower bounds of the log evidence of data; `print` and notebooks show them as a table. All in nats.

    The errors are of the draws (Monte Carlo). How much a mean over rows would change with other rows is their standard
    deviation over the square root of their number; two models are compared by the difference of their rows.

    Args:
        elbo: Of all rows.
        elbo_error: Its standard error.
        importance_weighted: Of all rows.
        importance_weighted_error: Its standard error.
        elbo_by_row: `(rows,)`, without the divergence of global variables.
        importance_weighted_by_row: `(rows,)`, the same.
        num_samples: Draws inside the logarithm of a row.

    Example:
    >>> print(Bounds.of(np.log([[[0.1, 0.4], [0.3, 0.4]]])))  # two draws of two rows, log .2 + log .4 in the limit
                           total  error  per row
    ELBO                   -2.67  0.549    -1.33
    importance weighted    -2.53  0.5      -1.26
    """

    elbo: float
    elbo_error: float
    importance_weighted: float
    importance_weighted_error: float
    elbo_by_row: np.ndarray
    importance_weighted_by_row: np.ndarray
    num_samples: int

    @classmethod
    def of(cls, log_weights: np.ndarray, shared: np.ndarray | None = None) -> Bounds:
        """The bounds that follow from the log weights of draws.

        Args:
            log_weights: `(groups, draws, rows)`, in nats: `log p(row, z) - log q(z)`. The draws of a group share their
                global variables.
            shared: `(groups,)`, `log p(g) - log q(g)` of the global variables of each group; None without any.
        """
        log_weights = np.asarray(log_weights, "float64")
        groups, draws, _ = log_weights.shape
        inner = np.logaddexp.reduce(log_weights, axis=1) - np.log(draws)
        outer = np.zeros(groups) if shared is None else np.asarray(shared, "float64")
        elbos, totals = log_weights.mean(axis=1).sum(axis=1) + outer, inner.sum(axis=1) + outer
        top = totals.max()
        weights = np.exp(totals - top)
        if groups > 1:
            errors = elbos.std(ddof=1), weights.std(ddof=1) / weights.mean()
            elbo_error, weighted_error = (float(error / np.sqrt(groups)) for error in errors)
        else:  # rows have draws of their own; the logarithm's error is that of its argument over the argument
            relative = np.exp(log_weights[0] - inner[0])
            elbo_error, weighted_error = (
                float(np.sqrt(np.sum(np.var(each, axis=0)) / max(draws - 1, 1))) for each in (log_weights[0], relative)
            )
        return cls(
            elbo=float(elbos.mean()),
            elbo_error=elbo_error,
            importance_weighted=float(top + np.log(weights.mean())),
            importance_weighted_error=weighted_error,
            elbo_by_row=log_weights.mean(axis=(0, 1)),
            importance_weighted_by_row=inner.mean(axis=0),
            num_samples=draws if draws > 1 else groups,
        )

    def glance(self) -> Sequence[Paragraph | Table]:
        """The table."""
        rows = len(self.elbo_by_row)
        pairs = {
            "ELBO": (self.elbo, self.elbo_error),
            "importance weighted": (self.importance_weighted, self.importance_weighted_error),
        }
        cells = [
            Row(name, [f"{total:.6g}" if abs(total) >= 1000 else f"{total:.3g}", f"{error:.3g}", f"{total / rows:.3g}"])
            for name, (total, error) in pairs.items()
        ]
        return [Table(["total", "error", "per row"], cells)]
