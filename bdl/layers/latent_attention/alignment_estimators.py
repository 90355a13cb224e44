"""How a latent alignment is summed out: the estimators that latent attention layers share.

With p = p(z | x) from query and keys, and q = q(z | x, y) from an inference network that sees the target too (q = p
without one), each estimator says which alignments what follows is evaluated at, and with which weights:

| estimator | in training | outside training, with a decoder | without a decoder |
|---|---|---|---|
| soft | at the mean of p | the same | the same |
| marginal | at every key, weighted by p: log sum | the same | - |
| enumerate | at every key, weighted by q: exact ELBO | at every key, by p | - |
| reinforce | at samples of q, score function | at every key, by p | - |
| gumbel | at relaxed samples of q | at every key, by p | at a sample of p |
| dirichlet | at Dirichlet samples of q | at samples of p | at a sample of p |

Source: Deng et al. 2018, "Latent alignment and variational attention", arXiv 1807.03756, sections 3 to 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from keras import ops

from bdl.layers.latent_attention import alignment
from bdl.likelihoods.mixture import BASELINE, EXPECTATION, MIXTURE, SAMPLE
from bdl.random import Tensor

ESTIMATORS = ("soft", "marginal", "enumerate", "gumbel", "reinforce", "dirichlet")
NEED_DECODER = ("marginal", "enumerate", "reinforce")
VARIATIONAL = ("enumerate", "gumbel", "reinforce", "dirichlet")
BASELINES = ("leave_one_out", "soft", "none")


@dataclass(frozen=True, eq=False)
class AlignmentPosterior:
    """Prior and posterior of the alignments of a call.

    Args:
        scores: Of the prior, `(batch, heads, queries, keys)`, float32.
        posterior_scores: Of the posterior; the same object where there is no inference network at work.
        mask: Keys that exist, broadcastable; None for all.
        is_dirichlet: Whether alignments are points of the simplex and not single keys.
    """

    scores: Tensor
    posterior_scores: Tensor
    mask: Tensor | None
    is_dirichlet: bool = False

    @property
    def is_prior(self) -> bool:
        """Whether the posterior is the prior."""
        return self.posterior_scores is self.scores

    @cached_property
    def log_p(self) -> Tensor:
        """Log probabilities of the prior; of a Dirichlet those of its mean."""
        return self._log_mean(self.scores)

    @cached_property
    def log_q(self) -> Tensor:
        """Log probabilities of the posterior."""
        return self.log_p if self.is_prior else self._log_mean(self.posterior_scores)

    def kl(self) -> Tensor:
        """`(batch, heads, queries)`, in nats."""
        if not self.is_dirichlet:
            return alignment.categorical_kl(self.log_q, self.log_p, self.mask)
        alpha, beta = (alignment.concentration(each, self.mask) for each in (self.posterior_scores, self.scores))
        return alignment.dirichlet_kl(alpha, beta, self.mask)

    def draw(self, key: Tensor, num_samples: int | None = None, from_prior: bool = False) -> Tensor:
        """Samples: one-hot, or points of the simplex; differentiable for a Dirichlet."""
        if self.is_dirichlet:
            alpha = alignment.concentration(self.scores if from_prior else self.posterior_scores, self.mask)
            return alignment.dirichlet_sample(alpha, self.mask, key, num_samples)
        return self._without_missing(alignment.sample(self.log_p if from_prior else self.log_q, key, num_samples))

    def relaxed(self, temperature: float, key: Tensor, num_samples: int | None = None) -> Tensor:
        """Gumbel-softmax samples of the posterior."""
        return self._without_missing(alignment.relaxed_sample(self.log_q, temperature, key, num_samples))

    def _log_mean(self, scores: Tensor) -> Tensor:
        if self.is_dirichlet:
            scores = ops.log(alignment.concentration(scores, self.mask))
        return alignment.log_probabilities(scores, self.mask)

    def _without_missing(self, weights: Tensor) -> Tensor:
        return weights if self.mask is None else ops.where(self.mask, weights, 0.0)


@dataclass(frozen=True)
class Evaluation:
    """Where what follows is evaluated.

    Args:
        weights: Weights of the values, `(batch, points, queries, keys)`; None for every key by itself.
        log_weight: Of each point in the sum, `(batch, points, queries)`.
        role: What the sum is, a constant of `bdl.likelihoods.mixture`.
    """

    weights: Tensor | None
    log_weight: Tensor
    role: float


def context_weights(
    posterior: AlignmentPosterior, estimator: str, temperature: float, key: Tensor, strength: Tensor, training: bool
) -> Tensor:
    """Weights of the values without a decoder, `(batch, heads, queries, keys)`: of the mean or of one sample.

    Args:
        posterior: Of this call.
        estimator: `soft`, `gumbel` or `dirichlet`.
        temperature: Of gumbel.
        key: Of the noise.
        strength: 1, or 0 for the mean in the place of samples outside training.
        training: Whether samples must let gradients through.
    """
    mean = alignment.probabilities(posterior.log_q if training else posterior.log_p, posterior.mask)
    if estimator == "soft":
        return mean
    if not training:
        return strength * posterior.draw(key, from_prior=True) + (1.0 - strength) * mean
    return posterior.relaxed(temperature, key) if estimator == "gumbel" else posterior.draw(key)


def evaluations(
    posterior: AlignmentPosterior,
    estimator: str,
    temperature: float,
    num_samples: int,
    baseline: str,
    key: Tensor,
    strength: Tensor,
    training: bool,
) -> list[Evaluation]:
    """Where a decoder is evaluated, of one shared alignment; see the module's table. `strength` as above."""
    if estimator == "soft":
        weights = alignment.probabilities(posterior.log_p, posterior.mask)
        return [Evaluation(weights, ops.zeros_like(weights[..., 0]), MIXTURE)]
    if estimator == "dirichlet" and not training:
        mean = alignment.probabilities(posterior.log_p, posterior.mask)
        draws = posterior.draw(key, num_samples, from_prior=True)
        return [_equal(strength * draws + (1.0 - strength) * mean, MIXTURE)]
    if estimator == "marginal" or not training:
        return [Evaluation(None, _first_head(posterior.log_p), MIXTURE)]
    if estimator == "enumerate":
        return [Evaluation(None, _first_head(posterior.log_q), EXPECTATION)]
    if estimator == "dirichlet":
        return [_equal(posterior.draw(key, num_samples), EXPECTATION)]
    if estimator == "gumbel":
        return [_equal(posterior.relaxed(temperature, key, num_samples), EXPECTATION)]
    return _score_function(posterior, num_samples, baseline, key)


def _score_function(posterior: AlignmentPosterior, num_samples: int, baseline: str, key: Tensor) -> list[Evaluation]:
    draws = ops.stop_gradient(posterior.draw(key, num_samples))
    sampled = _equal(draws, SAMPLE if baseline == "leave_one_out" else EXPECTATION)
    log_q = _points(ops.sum(draws * posterior.log_q, axis=-1))
    log_weight = sampled.log_weight + log_q - ops.stop_gradient(log_q)
    found = [Evaluation(sampled.weights, log_weight, sampled.role)]
    if baseline == "soft":
        mean = ops.stop_gradient(alignment.probabilities(posterior.log_q, posterior.mask))
        found.append(Evaluation(mean, ops.full_like(mean[..., 0], alignment.MASKED), BASELINE))
    return found


def _equal(draws: Tensor, role: float) -> Evaluation:
    """Samples `(num_samples, batch, 1, queries, keys)`, each of weight 1 / num_samples."""
    weights = _points(draws)
    number = float(draws.shape[0])
    return Evaluation(weights, ops.zeros_like(weights[..., 0]) - math.log(number), role)


def _points(draws: Tensor) -> Tensor:
    """`(num_samples, batch, 1, queries, ...)` as `(batch, num_samples, queries, ...)`."""
    return ops.swapaxes(ops.squeeze(draws, 2), 0, 1)


def _first_head(log_weight: Tensor) -> Tensor:
    """`(batch, 1, queries, keys)` as `(batch, keys, queries)`: each key is a point."""
    return ops.swapaxes(ops.squeeze(log_weight, 1), -2, -1)


def check_estimator(estimator: str, baseline: str, num_samples: int, temperature: float, dropout: float) -> None:
    """Checks the settings that all latent attention layers have.

    Raises:
        ValueError: if one is out of range, or they do not fit each other.
    """
    for argument, value, known in (("estimator", estimator, ESTIMATORS), ("baseline", baseline, BASELINES)):
        if value not in known:
            raise ValueError(f"`{argument}` must be one of {known}, not {value!r}.")
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(f"`num_samples` must be a positive integer, not {num_samples!r}.")
    if estimator == "reinforce" and baseline == "leave_one_out" and num_samples < 2:
        raise ValueError(
            "`num_samples` must be at least 2 for baseline='leave_one_out', where the other samples are the baseline. "
            "Use num_samples=2, or baseline='soft'."
        )
    if not temperature > 0:
        raise ValueError(f"`temperature` must be a positive number, not {temperature!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), not {dropout!r}.")
    if dropout and estimator in NEED_DECODER:
        raise ValueError(
            f"`dropout={dropout}` drops attention weights, and estimator={estimator!r} has probabilities that sum to "
            "1 in their place. Use dropout=0 here and a Dropout layer on the inputs."
        )
