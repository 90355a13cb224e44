"""What comes out of a fit: draws of the posterior, of the predictive and of the prior, log likelihoods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import without_gradients
from bdl.random import Tensor, draw_key, fold_in
from bdl.svi.arviz import as_datatree, observed_values, require_arviz
from bdl.svi.checks import ParetoSmoothing, k_hat
from bdl.svi.derivatives import Kept
from bdl.svi.estimators import Estimator
from bdl.svi.files import invented
from bdl.svi.rows import as_data, as_tensors
from bdl.svi.simulation import combination_of, log_weights_of, simulate
from bdl.svi.story import Observed, Site
from bdl.svi.supports import Flat

Arrays = dict[str, np.ndarray]
_OfDraw = Callable[[Any, dict[str, Tensor], Tensor], dict[str, Tensor]]
"""A function of the batch, of a draw on the real line, and of a key."""


class Results:
    """Results of a model of a story; see `bdl.svi.SVI`."""

    sites: tuple[Site, ...]
    estimator: Estimator
    networks: dict[str, keras.Layer]
    described: Any
    kept: Kept
    compute_dtype: str
    seed_generator: Any

    def posterior(self, data: Any = None, num_samples: int = 1000, seed: int | None = None) -> Arrays:
        """Draws of the latent sites from the guides.

        Enumerated sites are drawn from their exact distribution given the data and the other sites' draw.

        Args:
            data: Rows whose local sites are drawn as well; None draws the global sites alone, in runs of the story on
                invented numbers that end with the last of them.
            num_samples: Number of draws.
            seed: Integer, for the same draws on each call.

        Returns:
            By site `(num_samples, *shape)`, and `(num_samples, rows, *shape)` of local ones.

        Raises:
            ValueError: if the model was not fitted, data are not sound, or the story fails on invented numbers.
        """
        self._require_fit("posterior")
        return self._posterior(self.estimator, data, num_samples, seed)

    def _posterior(self, estimator: Estimator, data: Any, num_samples: int, seed: int | None) -> Arrays:
        """Draws of the latent sites from the guides of an estimator."""
        is_global = data is None
        batch = invented(self.described) if is_global else self._batch(data, "data")
        kinds = ("global",) if is_global else ("global", "local", "enumerated")
        names = [site.name for site in self.sites if site.kind in kinds]

        def values(batch: Any, real: dict[str, Tensor], key: Tensor) -> dict[str, Tensor]:
            combination = None if is_global else combination_of(estimator, batch, real, self._own(key))
            found = self._simulate(estimator, batch, real, None, names[-1], combination)
            return {name: found[name] for name in names}

        if not names:
            return {}
        name = "globals" if is_global else "posterior"
        try:
            draws = self._real_draws(batch, num_samples, seed, is_global, estimator)
            key = draw_key(0) if is_global else self._key(seed, 1)
            return self._by_site(name, values, batch, draws, num_samples, key)
        except Exception as error:
            if not is_global:
                raise
            raise ValueError(
                "`data` must be given here, not None: up to its last Global site the story does not run on invented "
                f"numbers ({type(error).__name__}: {error}). Call posterior(data)."
            ) from error

    def probabilities(self, data: Any, num_samples: int = 1000, seed: int | None = None) -> Arrays:
        """Posterior probabilities of the values of discrete sites that were summed out.

        They are exact given the other latent sites, over whose draws they are averaged: quieter than the shares of
        values in `posterior(data)`.

        Args:
            data: Rows.
            num_samples: Number of draws.
            seed: Integer, for the same draws on each call.

        Returns:
            By enumerated site `(rows, values)`, the values in the order of the distribution's; of a site with several
            entries in a row all their combinations, the last entry changing fastest.

        Raises:
            ValueError: if the model was not fitted, the story has no such site, or data are not sound.
        """
        self._require_fit("probabilities")
        estimator = self.estimator
        if not estimator.combinations.sites:
            raise ValueError(
                f"`story` must have a discrete local site that is summed out here, not only {list(estimator.sites)}."
            )
        batch = self._batch(data, "data")

        def values(batch: Any, real: dict[str, Tensor], key: Tensor) -> dict[str, Tensor]:
            found = ops.exp(log_weights_of(estimator, batch, real))
            return {site.name: estimator.combinations.marginal(site, found) for site in estimator.combinations.sites}

        draws = self._real_draws(batch, num_samples, seed)
        found = self._by_site("probabilities", values, batch, draws, num_samples, draw_key(0))
        return {name: each.mean(0) for name, each in found.items()}

    def predict(self, x: Any, num_samples: int = 100, seed: int | None = None, **kwargs: Any) -> Arrays:
        """Draws of every observed site from the posterior predictive, of missing entries as of the others.

        Args:
            x: Rows. What is to be predicted may be left out of a dict: its entry is then None in the story.
            num_samples: Number of draws, each with latent variables of its own.
            seed: Integer, for the same draws on each call.
            **kwargs: None is taken; Keras' `batch_size` and the like have no meaning here.

        Returns:
            By site `(num_samples, rows, *shape)`.

        Raises:
            ValueError: if the model was not fitted, or data are not sound.
        """
        if kwargs:
            raise ValueError(f"`predict` of a story takes `x`, `num_samples` and `seed`, not {sorted(kwargs)}.")
        self._require_fit("predict")
        batch = self._batch(x)
        names, estimator = self._names("observed"), self.estimator
        draws = self._real_draws(batch, num_samples, seed)

        def values(batch: Any, real: dict[str, Tensor], key: Tensor) -> dict[str, Tensor]:
            combination = combination_of(estimator, batch, real, self._own(key))
            found = self._simulate(estimator, batch, real, key, None, combination)
            return {name: found[name] for name in names}

        return self._by_site("predict", values, batch, draws, num_samples, self._key(seed, 1))

    def sample_prior(self, x: Any, num_samples: int = 100, seed: int | None = None) -> Arrays:
        """Draws of all sites from the story itself, before any data: what it believes.

        Args:
            x: Rows, as of `predict`.
            num_samples: Number of draws.
            seed: Integer, for the same draws on each call.

        Returns:
            By site, as `posterior` and `predict`.

        Raises:
            ValueError: if a prior is improper (`Flat`), or data are not sound.
        """
        batch = as_tensors(as_data(x, self.compute_dtype), self.compute_dtype)
        if not self.sites:
            self.trace_on(batch)  # type: ignore[attr-defined]
        estimator = self.estimator

        def values(batch: Any, real: dict[str, Tensor], key: Tensor) -> dict[str, Tensor]:
            return self._simulate(estimator, batch, None, key)

        return self._by_site("prior", values, batch, {}, num_samples, self._key(seed, 2))

    def log_likelihood(self, x: Any, num_samples: int = 1000, seed: int | None = None) -> Arrays:
        """Log likelihood of each row at draws of the posterior, unscaled: for LOO and WAIC.

        What is missing by a site's mask counts nothing: a row of which all is missing has zeros. Enumerated sites are
        summed out; of several observed sites each is then given those before it, so that their sum is that of the row.

        Args:
            x: Rows.
            num_samples: Number of draws.
            seed: Integer, for the same draws on each call.

        Returns:
            By observed site `(num_samples, rows)`, in nats.

        Raises:
            ValueError: if the model was not fitted, or data are not sound.
        """
        self._require_fit("log_likelihood")
        batch = self._batch(x)
        estimator = self.estimator
        names = self._names("observed")

        def values(batch: Any, real: dict[str, Tensor], key: Tensor) -> dict[str, Tensor]:
            log_prob = estimator.log_densities(batch, real)
            return {name: log_prob[name] for name in names}

        draws = self._real_draws(batch, num_samples, seed)
        return self._by_site("log_likelihood", values, batch, draws, num_samples, draw_key(0))

    def log_weights(self, x: Any, num_samples: int = 1000, seed: int | None = None) -> np.ndarray:
        """Log importance weights `log p(data, latent) - log q(latent)` of draws of all latent sites, with all rows.

        Args:
            x: All data.
            num_samples: Number of draws.
            seed: Integer, for the same draws on each call.

        Returns:
            `(num_samples,)`, in nats; the logarithm of their mean estimates the log evidence.

        Raises:
            ValueError: if the model was not fitted, a guide is a point, or data are not sound.
        """
        self._require_fit("log_weights")
        if self._is_point():
            raise ValueError("`guide` must not be a point (Delta) here: it has no density to weight draws with.")
        log_p, log_q = self._log_densities(self._batch(x), num_samples, seed)
        return log_p - log_q

    def k_hat(self, x: Any, num_samples: int = 4000, seed: int | None = None) -> ParetoSmoothing:
        """How far the guide is from the posterior: the tail of its importance weights, see `bdl.svi.checks.k_hat`.

        Args:
            x: All data.
            num_samples: Number of draws.
            seed: Integer, for the same draws on each call.

        Raises:
            ValueError: as `log_weights` and `bdl.svi.checks.k_hat` do.
        """
        return k_hat(self.log_weights(x, num_samples, seed))

    def to_arviz(
        self,
        x: Any,
        num_samples: int = 1000,
        seed: int = 0,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """The results as ArviZ takes them, with all rows' arrays in memory; needs `pip install "keras-bdl[arviz]"`.

        Of a model with several chains they are those of `chain` alone: independent draws of one guide.

        Args:
            x: All data; of data that do not fit into memory, some rows.
            num_samples: Number of draws, in one chain: they are independent.
            seed: Integer, the same one for all groups.
            coords: Labels along an axis by its name, such as `{"row": names_of_rows, "school": names}`.
            dims: Names of the axes of one value of a site, such as `{"effect": ["school"]}`. Rows are `"row"`.

        Returns:
            An `xarray.DataTree` with the groups `posterior`, `posterior_predictive`, `log_likelihood` (of each row, in
            nats), `observed_data` (NaN where it is missing); `sample_stats` with the log densities `log_p` of data and
            draw together and `log_q` of the guide, on the real line, unless a guide is a point; `prior` and
            `prior_predictive` unless a prior is improper.

        Raises:
            ValueError: if ArviZ is not installed, the model was not fitted, or an argument does not go with the sites.
        """
        require_arviz()
        self._require_fit("to_arviz")
        batch = self._batch(x)
        one = {name: each[0] for name, each in self._real_draws(batch, 1, seed).items()}
        with without_gradients():
            variables = [visit.variable for visit in self.estimator.visit(batch, one)]
        observed = {each.name: observed_values(each) for each in variables if isinstance(each, Observed)}
        groups = {
            "posterior": self.posterior(x, num_samples, seed),
            "posterior_predictive": self.predict(x, num_samples, seed),
            "log_likelihood": self.log_likelihood(x, num_samples, seed),
            "observed_data": observed,
        }
        if not self._is_point():
            log_p, log_q = self._log_densities(batch, num_samples, seed)
            groups["sample_stats"] = {"log_p": log_p, "log_q": log_q}
        if not any(isinstance(each.distribution, Flat) for each in variables):
            drawn = self.sample_prior(x, num_samples, seed)
            groups["prior"] = {name: each for name, each in drawn.items() if name not in observed}
            groups["prior_predictive"] = {name: drawn[name] for name in observed}
        return as_datatree(groups, self.sites, coords, dims)

    def _log_densities(self, batch: Any, num_samples: int, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Of draws of all latent sites on the real line: joint with the data, and the guides'; `(num_samples,)`."""
        estimator = self.estimator
        with without_gradients():
            draws = estimator.draws(batch, self._key(seed, 0), num_samples, is_mirrored=False)
            log_q = ops.convert_to_numpy(draws.log_density())

        def joint(batch: Any, real: dict[str, Tensor], key: Tensor) -> dict[str, Tensor]:
            return {"joint": estimator.log_joint(batch, real)}

        log_p = self._each("joint", joint, batch, draws.real, num_samples, draw_key(0))["joint"]
        return log_p.astype("float64"), np.broadcast_to(log_q.astype("float64"), log_p.shape)

    def _is_point(self) -> bool:
        """Whether a guide has no density."""
        return any(guide.is_point for guide in self.estimator.guides)

    def _simulate(
        self,
        estimator: Estimator,
        batch: Any,
        real: dict[str, Tensor] | None,
        key: Tensor | None,
        until: str | None = None,
        combination: Tensor | None = None,
    ) -> dict[str, Tensor]:
        sites = {site.name: site for site in self.sites}
        return simulate(estimator, sites, batch, real, key, until, combination)

    def _own(self, key: Tensor) -> Tensor:
        """A key beside those of the sites of a run."""
        return fold_in(key, len(self.sites))

    def _by_site(self, *arguments: Any) -> Arrays:
        """What `_each` returns, by site, in the order of the story: JAX sorts the names of what it compiles."""
        found = self._each(*arguments)
        return {site.name: found[site.name] for site in self.sites if site.name in found}

    def _each(
        self, name: str, function: _OfDraw, batch: Any, real: dict[str, Tensor], number: int, key: Tensor
    ) -> Arrays:
        """A function's results for each draw and its key, stacked; compiled under its name."""

        def results(batch: Any, real: dict[str, Tensor], places: Tensor, key: Tensor) -> dict[str, Tensor]:
            return ops.map(lambda each: function(batch, each[0], fold_in(key, each[1])), (real, places))

        with without_gradients():
            if self.networks or keras.backend.backend() == "torch":
                # Networks keep their own state, such as seeds, which a loop that is compiled would not hand back.
                draws = [{name: each[place] for name, each in real.items()} for place in range(number)]
                each = [function(batch, draw, fold_in(key, place)) for place, draw in enumerate(draws)]
                stacked = {name: ops.stack([one[name] for one in each]) for name in each[0]}
            else:
                stacked = self.kept(name, results, batch, real, ops.arange(number, dtype="int32"), key)
        return {name: ops.convert_to_numpy(each) for name, each in stacked.items()}

    def _real_draws(
        self,
        batch: Any,
        num_samples: int,
        seed: int | None,
        is_global: bool = False,
        estimator: Estimator | None = None,
    ) -> dict[str, Tensor]:
        key, estimator = self._key(seed, 0), estimator or self.estimator
        with without_gradients():
            return estimator.draws(batch, key, num_samples, is_mirrored=False, is_global=is_global).real

    def _key(self, seed: int | None, number: int) -> Tensor:
        return fold_in(draw_key(self.seed_generator if seed is None else seed), number)

    def _batch(self, x: Any, argument: str = "x") -> Any:
        return as_tensors(self.checked_data(x, argument), self.compute_dtype)  # type: ignore[attr-defined]

    def _names(self, kind: str) -> list[str]:
        return [site.name for site in self.sites if site.kind == kind]

    def _require_fit(self, method: str) -> None:
        if not self.sites:
            raise ValueError(f"The model must be fitted before {method} is called. Call fit, or load a file.")
