"""Likelihoods: what a network's outputs say about the data.

A likelihood is a Keras layer, so that a learned scale is trained, saved and loaded with the model. It reads raw network
outputs in float32. The NLL of an example is the **sum** over its unmasked events (tokens, pixels, targets): a mean
over them would scale the likelihood by the sequence length and with it the temperature of the ELBO.
"""

from bdl.likelihoods.base import MIN_LIKELIHOOD_SCALE, Likelihood
from bdl.likelihoods.classifiers import Bernoulli, Categorical
from bdl.likelihoods.continuous import Normal, StudentT
from bdl.likelihoods.counts import NegativeBinomial, Poisson, digamma, log_gamma
from bdl.likelihoods.mixture import Mixture

__all__ = [
    "MIN_LIKELIHOOD_SCALE",
    "Bernoulli",
    "Categorical",
    "Likelihood",
    "Mixture",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
    "digamma",
    "log_gamma",
]
