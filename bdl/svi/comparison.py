"""Posteriors in tables, and compared: with reference draws, chains with each other, stories by the log evidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from bdl.arguments import check_num_samples
from bdl.bounds import Bounds
from bdl.keras_internals import flatten_layers, without_gradients
from bdl.protocols import HasKL
from bdl.random import Tensor, draw_key, fold_in
from bdl.svi.chains import Agreement, ChainLosses
from bdl.svi.draws import Draws
from bdl.svi.results import Results
from bdl.svi.summary import Comparison, SummaryTable
from bdl.training.progress import Progress

NOBODY_LOOKED = (
    "Whether the fit converged is not known: nothing watched it. Pass fit(..., callbacks=[bdl.training.Converged()])."
)
"""What a summary says of a model whose last fit nobody watched, and of one that was loaded from a file."""


class Compared(Results):
    """Tables, agreement of chains, and bounds of a model of a story; see `bdl.svi.SVI`."""

    num_chains: int
    progress: Progress
    chain_losses: ChainLosses | None
    convergence: Any

    def compare(self, draws: Mapping[str, Any], num_samples: int = 4000, seed: int | None = 0) -> Comparison:
        """The global sites' posterior beside reference draws, such as those of `bdl.svi.nuts`.

        Args:
            draws: By site `(draws, *shape)`; other sites are not compared.
            num_samples: Number of draws from the guides.
            seed: Integer, for the same draws on each call.

        Raises:
            ValueError: if the model was not fitted, no site is in both, or their shapes differ.
        """
        return Comparison.of(self.posterior(num_samples=num_samples, seed=seed), draws)

    def summary_table(self, num_samples: int = 4000, seed: int | None = 0, interval: float = 0.9) -> SummaryTable:
        """Mean, standard deviation and interval of each number of the global sites; prints itself, in notebooks too.

        Of several chains the figures are those of `chain`, with the R-hat of all of them, and a sentence where they
        disagree; see `agreement`. Below the table stands what `bdl.training.Converged` or
        `bdl.diagnostics.TrainingHealth` saw of the last fit's convergence, or that neither looked.

        Args:
            num_samples: Number of draws.
            seed: Integer, for the same draws on each call.
            interval: Probability of the central interval.

        Raises:
            ValueError: if the model was not fitted.
        """
        table = SummaryTable.of(self.posterior(num_samples=num_samples, seed=seed), interval)
        rest = str(self.convergence or NOBODY_LOOKED)
        if self.num_chains == 1:
            return dataclasses.replace(table, remark=rest)
        found = self.agreement(seed=seed)
        remark = rest if found.is_reached else f"{found.verdict} {rest}"
        return dataclasses.replace(table, r_hat=found.r_hat, remark=remark)

    def agreement(self, num_samples: int = 1000, seed: int | None = 0) -> Agreement:
        """Whether the chains came to the same: R-hat of each number of the global sites, and the chains' ELBOs.

        Chains that disagree have found local optima, or have not come to rest. That they agree does not prove that
        there is no other mode.

        Args:
            num_samples: Number of draws of each chain.
            seed: Integer, for the same draws on each call.

        Raises:
            ValueError: if the model has one chain, or was not fitted.
        """
        self._require_fit("agreement")
        if self.chain_losses is None:
            raise ValueError("`num_chains` must be 2 or more for chains to agree, not 1. Pass SVI(..., num_chains=4).")
        model: Any = self
        chains = range(self.num_chains)
        seeds = [seed if seed is None else seed + 1_000_003 * chain for chain in chains]  # independent draws
        draws = [self._posterior(model.estimator_of(chain), None, num_samples, seeds[chain]) for chain in chains]
        gaps = self.chain_losses.gaps(self.progress.num_examples or 1)
        return Agreement.of(draws, -self.chain_losses.means, *gaps)

    def bounds(self, x: Any, num_samples: int = 50, num_globals: int = 10, seed: int | None = None) -> Bounds:
        """The ELBO and the importance weighted bound of the log evidence, with standard errors, in nats.

        All rows are held in memory at once, with all draws of a group. Rows that were not fitted are judged by
        `elbo_by_row` and `importance_weighted_by_row`, in which the globals' divergence has no part.

        Args:
            x: Rows, as of `fit`.
            num_samples: Draws of the local sites inside the logarithm of each row; of a story without local sites,
                draws of the global ones.
            num_globals: Draws of the global sites, each with `num_samples` of the local ones, where there are both.
            seed: Integer, for the same draws on each call.

        Raises:
            ValueError: if the model was not fitted, a guide is a point, a network has random weights, an argument is
                not a positive integer, or data are not sound.

        Source: Burda et al. 2016, arXiv 1509.00519; see `bdl.bounds`.
        """
        self._require_fit("bounds")
        num_samples = check_num_samples(num_samples, "draws inside the logarithm")
        num_globals = check_num_samples(num_globals, "draws of the global sites", "num_globals")
        if self._is_point():
            raise ValueError("`guide` must not be a point (Delta) here: it has no density, and so no bound.")
        networks = self.estimator.networks
        wrong = [name for name, net in networks.items() if any(isinstance(each, HasKL) for each in flatten_layers(net))]
        if wrong:
            raise ValueError(
                f"`networks` must not have random weights for these bounds, as {wrong} have: each row would see "
                "weights of its own. Their ELBO is what `evaluate` returns."
            )
        batch, key = self._batch(x), self._key(seed, 0)
        kinds = {site.kind for site in self.sites}
        if "local" not in kinds:
            rows, shared = self._log_weights(batch, key, num_samples, is_shared=False)
            return Bounds.of(rows[:, None], shared)
        groups = num_globals if "global" in kinds else 1
        found = [self._log_weights(batch, fold_in(key, group), num_samples, is_shared=True) for group in range(groups)]
        return Bounds.of(np.stack([rows for rows, _ in found]), np.stack([shared[0] for _, shared in found]))

    def _log_weights(self, batch: Any, key: Tensor, number: int, is_shared: bool) -> tuple[np.ndarray, np.ndarray]:
        """Log weights of draws: of each row `(draws, rows)`, and of the global sites `(draws,)`."""
        estimator = self.estimator
        with without_gradients():
            draws = estimator.draws(batch, key, number, is_shared, is_mirrored=False)
            log_q = [ops.convert_to_numpy(each) for each in self._log_q(draws)]

        def log_p(batch: Any, real: dict[str, Tensor], key: Tensor) -> dict[str, Tensor]:
            parts: dict[str, Tensor] = {"shared": ops.zeros((), dtype=self.compute_dtype)}
            for name, density in estimator.log_densities(batch, real).items():
                part = "shared" if estimator.is_global(name) else "rows"
                parts[part] = parts.get(part, 0.0) + ops.cast(density, self.compute_dtype)
            return parts

        found = self._each("log_weights", log_p, batch, draws.real, number, draw_key(0))
        return found["rows"].astype("float64") - log_q[0], found["shared"].astype("float64") - log_q[1]

    def _log_q(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Log densities of draws on the real line: of the local sites by row, and of the global ones."""
        local, shared = (ops.zeros(shape, dtype=self.compute_dtype) for shape in ((1, 1), (1,)))
        for place in draws.families:
            density = ops.sum(draws.log_density_of(place), axis=-1)
            if self.estimator.guides[place].is_local:
                local = local + density
            else:
                shared = shared + density
        return local, shared
