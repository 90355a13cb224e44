"""How well sequences of numbers mix: R-hat and the effective sample size, of Markov chains and of a fit's iterates."""

from __future__ import annotations

import math

import numpy as np


def split_r_hat(draws: np.ndarray) -> np.ndarray:
    """How much the halves of sequences differ: 1 where they agree.

    Args:
        draws: `(sequences, length, numbers)`.

    Returns:
        The larger one of the R-hats of ranks and of distances from the median, `(numbers,)`.

    Source: Vehtari et al. 2021, "Rank-normalization, folding, and localization: an improved R-hat", eq. 4 to 14.

    Example:
    >>> noise = np.random.default_rng(0).normal(size=(1, 400, 1))
    >>> bool(split_r_hat(noise)[0] < 1.05), bool(split_r_hat(noise + np.linspace(0, 3, 400)[:, None])[0] > 1.2)
    (True, True)
    """
    halves = _halves(draws)
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    return np.maximum(_r_hat(_normal_scores(halves)), _r_hat(_normal_scores(folded)))


def bulk_effective_sample_size(draws: np.ndarray) -> np.ndarray:
    """Number of independent draws that would be as accurate in the middle of the distribution: `(numbers,)`.

    Args:
        draws: `(sequences, length, numbers)`.

    Source: Vehtari et al. 2021, section 3.2, "bulk-ESS"; Geyer 1992, "Practical Markov chain Monte Carlo", section 3.3.

    Example:
    >>> bool(600 < bulk_effective_sample_size(np.random.default_rng(0).normal(size=(2, 400, 1)))[0] < 1000)
    True
    """
    scores = _normal_scores(_halves(draws))
    return np.array([_effective_sample_size(scores[..., entry]) for entry in range(scores.shape[-1])])


def _halves(draws: np.ndarray) -> np.ndarray:
    """Chains cut in two; an odd draw in the middle is left out."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _normal_scores(draws: np.ndarray) -> np.ndarray:
    """Ranks over all chains as quantiles of the normal distribution."""
    from scipy import special, stats

    flat = draws.reshape(-1, draws.shape[-1])
    ranks = stats.rankdata(flat, axis=0)
    return special.ndtri((ranks - 0.375) / (len(flat) + 0.25)).reshape(draws.shape)


def _r_hat(draws: np.ndarray) -> np.ndarray:
    length = draws.shape[1]
    within = draws.var(axis=1, ddof=1).mean(axis=0)
    between = draws.mean(axis=1).var(axis=0, ddof=1)
    return np.sqrt((length - 1) / length + between / within)


def _effective_sample_size(draws: np.ndarray) -> float:
    """Of chains `(chains, length)`, by sums of two neighbouring autocorrelations while they are positive and fall."""
    chains, length = draws.shape
    centred = draws - draws.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, 2 * length, axis=1)
    covariances = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :length].mean(axis=0) / length
    within = covariances[0] * length / (length - 1)
    total = covariances[0] + draws.mean(axis=1).var(ddof=1)
    correlations = 1.0 - (within - covariances) / total
    correlations[0] = 1.0
    pairs = correlations[: length // 2 * 2].reshape(-1, 2)
    ended = np.flatnonzero(pairs.sum(axis=1) <= 0)
    end = ended[0] if ended.size else len(pairs) - 1
    falling = np.minimum.accumulate(pairs[:end].sum(axis=1))
    # Half of the pair in which the sums end counts where it is positive: without it negative correlations count more.
    time = 2.0 * falling.sum() - 1.0 + max(pairs[end, 0], 0.0)
    time = max(time, 1.0 / math.log10(chains * length))
    return chains * length / time
