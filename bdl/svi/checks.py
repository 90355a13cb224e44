"""How far a guide may be trusted: Pareto-smoothed importance sampling, and NUTS as a standard to compare with."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy import special, stats

from bdl import random
from bdl.random import Tensor
from bdl.training.mixing import bulk_effective_sample_size, split_r_hat

RELIABLE_K = 0.7
"""Pareto shape up to which importance sampling converges at a useful rate (Vehtari et al. 2024, section 3.2.4)."""

NEARLY_EQUAL = 0.9
"""Effective share of the draws from which on a heavy tail of the weights is one of small differences.

The weights' variance is then at most .11, and the divergence of the posterior from the guide, as the draws show it, at
most log(1 / .9) = .11 nats, of which importance sampling needs few draws (Chatterjee, Diaconis 2018, "The sample size
required in importance sampling", theorem 1.1: exp of it).
"""

_LEAST_TAIL = 5
"""Fewest weights from which a generalized Pareto distribution is fitted."""

_NO_WEIGHT = 1e-300
"""Of the largest weight: below this part of it a weight is none in float64."""


@dataclass(frozen=True)
class ParetoSmoothing:
    """What the importance weights of draws say about the distribution they were drawn from.

    Args:
        k: Shape of the generalized Pareto distribution of the largest weights; `-inf` where they do not differ, `inf`
            where a few draws have all the weight. The weights have `1 / k` finite moments.
        log_weights: Smoothed and normalized: their exponentials sum to one.
        effective_sample_size: Number of draws from the target that estimate a mean as well as the weighted draws.
        threshold: Largest `k` at which so many draws are enough, `min(1 - 1 / log10(S), 0.7)`, unless the weights are
            nearly equal.
    """

    k: float
    log_weights: np.ndarray
    effective_sample_size: float
    threshold: float

    @property
    def effective_share(self) -> float:
        """`effective_sample_size` as a part of the draws."""
        return self.effective_sample_size / self.log_weights.size

    @property
    def is_reliable(self) -> bool:
        """Whether `k` is below the threshold, or the weights are nearly equal and have a mean (`k < 1`)."""
        return correct(self.k, self.threshold, self.effective_share)

    def __str__(self) -> str:
        """One sentence."""
        draws = self.log_weights.size
        found = f"k-hat {self.k:.2f}, {self.effective_sample_size:.0f} effective of {draws} draws"
        if self.is_reliable and self.k >= self.threshold:
            return f"{found}: the weights are nearly equal: as far as its draws reach, the guide is the posterior."
        if self.is_reliable:
            return f"{found}: weights correct what the guide misses, as far as its draws reach."
        if self.k < RELIABLE_K:
            return f"{found}: {draws} draws are too few for this k-hat; {_draws_for(self.k)} are enough."
        return f"{found}: above {RELIABLE_K}, the guide misses so much of the posterior that weights cannot correct it."


def correct(k: float, threshold: float, effective_share: float | None) -> bool:
    """Whether weights correct what a guide misses: their tail is light, or they hardly differ.

    Args:
        k: Shape of their tail.
        threshold: Largest one at which so many draws are enough.
        effective_share: Effective sample size as a part of the draws, where it is known.

    Example:
    >>> correct(0.8, 0.7, 0.5), correct(0.8, 0.7, 0.99)
    (False, True)
    """
    return k < threshold or (k < 1.0 and (effective_share or 0.0) >= NEARLY_EQUAL)


def k_hat(log_weights: Any) -> ParetoSmoothing:
    """Pareto-smoothed importance sampling: how heavy the tail of importance weights is, and the weights smoothed.

    A generalized Pareto distribution is fitted to the `min(S / 5, 3 sqrt(S))` largest of S weights, rounded down as in
    ArviZ, which its quantiles then replace, none of them above the largest weight.

    Args:
        log_weights: Log density of the posterior, known up to a constant, less the guide's, of each of S independent
            draws from the guide; `(S,)`, in nats. `-inf` is a weight of zero.

    Raises:
        ValueError: if there are fewer than 25 draws, or log weights that are `nan` or `+inf`.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024, "Pareto smoothed importance sampling", JMLR 25(72), algorithm 1;
    the fit is that of Zhang and Stephens 2009, "A new and efficient estimation method for the generalized Pareto
    distribution", with the prior of the former's appendix G.

    Example:
    >>> weights = np.random.default_rng(0).pareto(2.0, 4000)  # a tail with 2 finite moments: k = 1 / 2
    >>> smoothed = k_hat(np.log1p(weights))
    >>> round(smoothed.k, 1), smoothed.is_reliable
    (0.5, True)
    """
    log_weights = _check_log_weights(log_weights)
    size = log_weights.size
    scaled = log_weights - log_weights.max()
    k, smoothed = _smooth(scaled, math.floor(min(size / 5, 3 * math.sqrt(size))))
    smoothed = smoothed - special.logsumexp(smoothed)
    return ParetoSmoothing(
        k=k,
        log_weights=smoothed,
        effective_sample_size=float(np.exp(-special.logsumexp(2.0 * smoothed))),
        threshold=min(1.0 - 1.0 / math.log10(size), RELIABLE_K),
    )


def _check_log_weights(log_weights: Any) -> np.ndarray:
    values = np.asarray(log_weights, "float64")
    if values.ndim != 1 or values.size < 5 * _LEAST_TAIL:
        raise ValueError(f"`log_weights` must have the shape (S,) with S >= {5 * _LEAST_TAIL}, not {values.shape}.")
    bad = np.flatnonzero(np.isnan(values) | np.isposinf(values))
    if bad.size:
        raise ValueError(
            f"`log_weights` must be numbers or -inf, not {values[bad[0]]} as draw {bad[0]} and {bad.size - 1} others. "
            "Look for a density that overflows, or data that are missing."
        )
    if np.isneginf(values).all():
        raise ValueError("`log_weights` must have a weight above zero, not -inf alone: no draw is in the support.")
    return values


def _smooth(log_weights: np.ndarray, tail: int) -> tuple[float, np.ndarray]:
    """Shape of the tail, and the weights with a smoothed one; the largest given log weight is 0."""
    order = np.argsort(log_weights, kind="stable")
    cutoff = log_weights[order[-tail - 1]]
    in_tail = order[-tail:]
    above = in_tail[log_weights[in_tail] > cutoff]
    if above.size < _LEAST_TAIL:
        return -math.inf, log_weights
    if in_tail.size - above.size >= in_tail.size // 4:
        in_tail = above  # of so many ties with the cutoff, no exceedances, the fit would know no scale
    exceedances = np.exp(log_weights[in_tail]) - np.exp(cutoff)
    if exceedances[in_tail.size // 4] < _NO_WEIGHT:
        return math.inf, log_weights
    k, scale = _fit_generalized_pareto(exceedances)
    quantiles = (np.arange(in_tail.size) + 0.5) / in_tail.size
    smoothed = log_weights.copy()
    smoothed[in_tail] = np.log(np.exp(cutoff) + stats.genpareto(k, scale=scale).ppf(quantiles))
    return k, np.minimum(smoothed, 0.0)


def _fit_generalized_pareto(exceedances: np.ndarray) -> tuple[float, float]:
    """Shape and scale, by Zhang and Stephens' posterior mean of `theta = -k / scale` over a grid of it.

    Args:
        exceedances: Positive, ascending.
    """
    size = exceedances.size
    points = 30 + math.isqrt(size)
    quarter = exceedances[int(size / 4 + 0.5) - 1]
    theta = 1 / exceedances[-1] + (1 - np.sqrt(points / (np.arange(points) + 0.5))) / (3 * quarter)
    shapes = np.mean(np.log1p(-theta[:, None] * exceedances), axis=1)
    profile = size * (np.log(-theta / shapes) - shapes - 1)
    mean_theta = float(np.sum(special.softmax(profile) * theta))
    k = float(np.mean(np.log1p(-mean_theta * exceedances)))
    scale = -k / mean_theta
    return (size * k + 10 * 0.5) / (size + 10), scale  # a prior worth 10 exceedances of k = 1/2


def _draws_for(k: float) -> int:
    """Draws for which a k-hat is at the threshold."""
    return math.ceil(10 ** (1 / (1 - k)))


@dataclass(frozen=True)
class Chains:
    """Draws of Markov chains, and whether they can be trusted.

    Args:
        draws: `(num_chains, num_samples, size)`.
        divergences: Number of draws at which the integration of the path failed; some mean that the sampler does not
            reach all of the distribution.
    """

    draws: np.ndarray
    divergences: int

    @property
    def r_hat(self) -> np.ndarray:
        """How much the halves of the chains differ, `(size,)`: 1 where they agree; above 1.01 draw more.

        Source: `bdl.training.mixing.split_r_hat`.
        """
        return split_r_hat(self.draws)

    @property
    def effective_sample_size(self) -> np.ndarray:
        """Number of independent draws that would be as accurate in the middle of the distribution: `(size,)`.

        Source: `bdl.training.mixing.bulk_effective_sample_size`.
        """
        return bulk_effective_sample_size(self.draws)


def nuts_flat(
    log_density: Callable[[Tensor], Tensor],
    start: Any,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
    is_compilable: bool = True,
) -> Chains:
    """Draws from a density on unconstrained numbers with the No-U-Turn sampler.

    On TensorFlow it is TensorFlow Probability's under XLA, on JAX NumPyro's. Both adapt the step size, and the
    coordinates to the covariance of the draws of the warm-up (their variances alone, above 100 numbers).

    Args:
        log_density: From `(..., size)` to `(...)`, in nats, up to a constant.
        start: Where chains begin: `(num_chains, size)`, or `(size,)` for all of them. R-hat tells more of chains that
            began apart. Its dtype is the chains'.
        num_samples: Draws of each chain that are kept.
        num_warmup: Draws before them, which are not.
        num_chains: Number of chains, which run side by side.
        seed: Integer; the same one gives the same draws.
        is_compilable: Whether XLA can take the density on TensorFlow, which is much faster than a graph.

    Raises:
        ValueError: if the backend has no such sampler, or NumPyro is missing, or `start` has another shape.

    Source: Hoffman and Gelman 2014, "The No-U-Turn sampler", algorithm 6.
    """
    start = np.asarray(start)
    if start.ndim == 1:
        start = np.tile(start, (num_chains, 1))
    if start.ndim != 2 or len(start) != num_chains:
        raise ValueError(f"`start` must have the shape (size,) or ({num_chains}, size), not {start.shape}.")
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _nuts_of_tfp(log_density, start, num_samples, num_warmup, seed, is_compilable)
    if backend == "jax" and importlib.util.find_spec("numpyro") is not None:
        return _nuts_of_numpyro(log_density, start, num_samples, num_warmup, seed)
    raise ValueError(
        "NUTS must run on the backend tensorflow, with TensorFlow Probability, or jax, with NumPyro installed (`pip "
        f"install numpyro`), not on {backend}{' without NumPyro' if backend == 'jax' else ''}."
    )


_DENSE_UP_TO = 100
"""Numbers up to which NUTS adapts to their covariances, and not to their variances alone."""


def _nuts_of_tfp(
    log_density: Callable[[Tensor], Tensor],
    start: np.ndarray,
    num_samples: int,
    num_warmup: int,
    seed: int,
    is_compilable: bool,
) -> Chains:
    """Two thirds of the warm-up find coordinates in which draws are uncorrelated, the rest the step size there."""
    import tensorflow as tf
    import tensorflow_probability as tfp

    @tf.function(jit_compile=is_compilable, autograph=False)
    def run(position: Tensor, centre: Tensor, factor: Tensor, words: Tensor, kept: int, adapting: int) -> Any:
        def of_whitened(z: Tensor) -> Tensor:
            return log_density(centre + tf.linalg.matvec(factor, z))

        kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
            tfp.mcmc.NoUTurnSampler(of_whitened, step_size=tf.constant(0.5, position.dtype)), adapting, 0.8
        )
        whitened = tf.linalg.triangular_solve(factor, tf.transpose(position - centre))
        return tfp.mcmc.sample_chain(
            kept,
            tf.transpose(whitened),
            kernel=kernel,
            num_burnin_steps=adapting,
            trace_fn=lambda _, results: results.inner_results.has_divergence,
            seed=words,
        )

    def draw(position: np.ndarray, centre: np.ndarray, factor: np.ndarray, stage: int, *lengths: int) -> Any:
        words = tf.cast(random.fold_in(random.draw_key(seed), stage), tf.int32)
        z, diverged = run(*map(tf.constant, (position, centre, factor)), words, *lengths)
        return centre + z.numpy() @ factor.T, int(diverged.numpy().sum())

    size, sixth = start.shape[1], max(num_warmup // 6, 1)
    position, centre, factor = start, np.zeros(size, start.dtype), np.eye(size, dtype=start.dtype)
    for stage in range(2):
        draws, _ = draw(position, centre, factor, stage, sixth, sixth)
        position = draws[-1]
        centre, factor = _coordinates(draws.reshape(-1, size))
    draws, divergences = draw(position, centre, factor, 2, num_samples, max(num_warmup - 4 * sixth, 1))
    return Chains(np.swapaxes(draws, 0, 1), divergences)


def _coordinates(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of draws, and the Cholesky factor of their covariance, shrunk a little towards their variances."""
    count, size = draws.shape
    variances = draws.var(axis=0)
    factor = np.diag(np.sqrt(variances))
    if size <= _DENSE_UP_TO:
        weight = count / (count + 5.0 * size)
        covariance = np.atleast_2d(np.cov(draws, rowvar=False))
        factor = np.linalg.cholesky(weight * covariance + (1.0 - weight) * np.diag(variances))
    return draws.mean(axis=0), factor.astype(draws.dtype)


def _nuts_of_numpyro(
    log_density: Callable[[Tensor], Tensor], start: np.ndarray, num_samples: int, num_warmup: int, seed: int
) -> Chains:
    import jax
    from numpyro.infer import MCMC, NUTS

    chains, size = start.shape
    kernel = NUTS(potential_fn=lambda u: -log_density(u[None])[0], dense_mass=size <= _DENSE_UP_TO)
    sampler = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    begin = jax.numpy.asarray(start if chains > 1 else start[0])
    sampler.run(jax.random.key(seed), init_params=begin, extra_fields=("diverging",))
    draws = np.asarray(sampler.get_samples(group_by_chain=True))
    return Chains(draws, int(np.asarray(sampler.get_extra_fields()["diverging"]).sum()))
