"""The mathematics of alignments: masked distributions over keys, their divergence, entropy, information and samples.

Everything here is float32, works along the last axis (the keys), and takes `mask`, True for keys that exist. A row
without any key has probabilities of zero, no divergence and no entropy.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from bdl import random
from bdl.likelihoods import digamma, log_gamma
from bdl.random import Tensor

MASKED = -1e9
"""Log probability of a key that does not exist."""
_LEAST_CONCENTRATION = 1e-2
_TINY = 1e-30


def log_probabilities(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log softmax over the keys that exist; those that do not have `MASKED`, or log(1 / keys) where none exists.

    Example:
    >>> [round(float(p), 3) for p in log_probabilities(np.array([0.0, 0.0, 5.0]), np.array([True, True, False]))[:2]]
    [-0.693, -0.693]
    """
    scores = ops.cast(scores, "float32")
    if mask is not None:
        scores = ops.where(mask, scores, MASKED)
    return ops.log_softmax(scores, axis=-1)


def probabilities(log_p: Tensor, mask: Tensor | None = None) -> Tensor:
    """Probabilities, exactly zero for keys that do not exist."""
    p = ops.exp(ops.cast(log_p, "float32"))
    return p if mask is None else ops.where(mask, p, 0.0)


def categorical_kl(log_q: Tensor, log_p: Tensor, mask: Tensor | None = None) -> Tensor:
    """`KL(q || p)` of each query, without its last axis, in nats.

    Example:
    >>> round(float(categorical_kl(np.log([0.5, 0.5]), np.log([0.25, 0.75]))), 4)
    0.1438
    """
    log_q, log_p = (ops.maximum(ops.cast(each, "float32"), MASKED) for each in (log_q, log_p))  # no 0 * inf
    return ops.sum(probabilities(log_q, mask) * (log_q - log_p), axis=-1)


def entropy(log_q: Tensor, mask: Tensor | None = None) -> Tensor:
    """Entropy of each query's alignment, without its last axis, in nats: how uncertain it is.

    Example:
    >>> round(float(entropy(np.array([np.log(0.5), np.log(0.5), -np.inf]))), 4)  # the last has probability zero
    0.6931
    """
    log_q = ops.maximum(ops.cast(log_q, "float32"), MASKED)  # no 0 * inf
    return -ops.sum(probabilities(log_q, mask) * log_q, axis=-1)


def mutual_information(log_q: Tensor, mask: Tensor | None = None, query_mask: Tensor | None = None) -> Tensor:
    """`H(E_x q) - E_x H(q)` of each head over a batch, summed over queries, in nats per example.

    What the alignment of a query says about which example it is of; 0 where all examples align alike. It lies below
    log(batch) for each query, so that a small batch shows less.

    Args:
        log_q: `(batch, heads, queries, keys)`.
        mask: Keys that exist, broadcastable.
        query_mask: Queries that exist, broadcastable to `(batch, heads, queries)`.

    Returns:
        `(heads,)`.

    Example:
    >>> one_hot = np.where(np.eye(4, dtype=bool), 0.0, MASKED).reshape((4, 1, 1, 4))
    >>> round(float(mutual_information(one_hot)[0]), 4)  # each of four examples attends to a key of its own
    1.3863
    """
    q = probabilities(log_q, mask)
    exists = ops.cast(ops.sum(q, axis=-1) > 0.5, "float32")
    if query_mask is not None:
        exists = exists * ops.cast(query_mask, "float32")
    count = ops.maximum(ops.sum(exists, axis=0), 1.0)
    mean = ops.sum(q * ops.expand_dims(exists, -1), axis=0) / ops.expand_dims(count, -1)
    of_mean = -ops.sum(mean * ops.log(ops.maximum(mean, _TINY)), axis=-1)
    own = ops.sum(entropy(log_q, mask) * exists, axis=0) / count
    # A query that only some examples have counts by their share.
    share = ops.sum(exists, axis=0) / ops.cast(ops.shape(q)[0], "float32")
    return ops.sum(ops.maximum(of_mean - own, 0.0) * share, axis=-1)


def sample(log_q: Tensor, key: Tensor, num_samples: int | None = None) -> Tensor:
    """One-hot samples of alignments (Gumbel-max).

    Args:
        log_q: `(..., keys)`.
        key: From `bdl.random.draw_key`.
        num_samples: None for one of log_q's shape, else that many along a new first axis.

    Example:
    >>> draws = sample(np.log([0.25, 0.75]), bdl.random.draw_key(0), num_samples=1000)
    >>> draws.shape == (1000, 2), bool(abs(keras.ops.mean(draws[:, 1]) - 0.75) < 0.05)
    (True, True)
    """
    log_q = ops.cast(log_q, "float32")
    noisy = log_q + _gumbel(log_q, key, num_samples)
    return ops.one_hot(ops.argmax(noisy, axis=-1), log_q.shape[-1] or ops.shape(log_q)[-1], dtype="float32")


def relaxed_sample(log_q: Tensor, temperature: float, key: Tensor, num_samples: int | None = None) -> Tensor:
    """Differentiable samples from within the simplex, which are one-hot in the limit of temperature 0.

    Sources: Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712.

    Example:
    >>> draw = relaxed_sample(np.log([0.25, 0.75]), 0.5, bdl.random.draw_key(0))
    >>> round(float(draw[0] + draw[1]), 4)
    1.0
    """
    log_q = ops.cast(log_q, "float32")
    return ops.exp(ops.log_softmax((log_q + _gumbel(log_q, key, num_samples)) / temperature, axis=-1))


def concentration(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Dirichlet concentrations `exp(score)`, whose mean is the softmax; at least 0.01, and that for missing keys."""
    scores = ops.cast(scores, "float32")
    alpha = ops.maximum(ops.exp(ops.minimum(scores, 15.0)), _LEAST_CONCENTRATION)
    return alpha if mask is None else ops.where(mask, alpha, _LEAST_CONCENTRATION)


def dirichlet_sample(alpha: Tensor, mask: Tensor | None, key: Tensor, num_samples: int | None = None) -> Tensor:
    """Dirichlet samples over the keys that exist, differentiable in the concentrations.

    Gamma noise of concentration a is that of a + 1 times `u^(1/a)`, here in logarithms, for small ones underflow.
    """
    axis = 0 if num_samples is None else 1
    if num_samples is not None:
        alpha = ops.broadcast_to(alpha, (num_samples, *ops.shape(alpha)))
    log_gamma_noise = ops.log(random.gamma(alpha + 1.0, random.of_examples(random.fold_in(key, 1), axis)))
    uniform = random.uniform(ops.shape(alpha), random.of_examples(random.fold_in(key, 2), axis))
    log_uniform = ops.log(ops.maximum(uniform, _TINY))
    return probabilities(log_probabilities(log_gamma_noise + log_uniform / alpha, mask), mask)


def dirichlet_kl(alpha: Tensor, beta: Tensor, mask: Tensor | None = None) -> Tensor:
    """`KL(Dirichlet(alpha) || Dirichlet(beta))` of each query, without its last axis, in nats.

    Example:
    >>> round(float(dirichlet_kl(np.array([1.0, 1.0], "float32"), np.array([2.0, 2.0], "float32"))), 4)
    0.2082
    """
    exists = ops.ones_like(alpha) if mask is None else ops.cast(ops.broadcast_to(mask, ops.shape(alpha)), "float32")

    def total(values: Any) -> Tensor:
        return ops.sum(exists * values, axis=-1)

    # A row without keys has no total to take the logarithm of.
    alpha_total, beta_total = (ops.maximum(total(values), _LEAST_CONCENTRATION) for values in (alpha, beta))
    shift = digamma(alpha) - ops.expand_dims(digamma(alpha_total), -1)
    kl = log_gamma(alpha_total) - log_gamma(beta_total) + total(log_gamma(beta) - log_gamma(alpha))
    return ops.where(total(1.0) > 0.0, kl + total((alpha - beta) * shift), 0.0)


def _gumbel(log_q: Tensor, key: Tensor, num_samples: int | None) -> Tensor:
    shape = ops.shape(log_q) if num_samples is None else (num_samples, *ops.shape(log_q))
    uniform = ops.clip(
        random.uniform(shape, random.of_examples(key, 0 if num_samples is None else 1)), 1e-7, 1.0 - 1e-7
    )
    return -ops.log(-ops.log(uniform))
