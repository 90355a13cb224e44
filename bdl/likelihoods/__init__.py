"""Likelihoods: what a network's outputs say about the data.

A likelihood is a Keras layer, so that a learned scale is trained, saved and loaded with the model. It reads raw network
outputs in float32. The NLL of an example is the **sum** over its events that count (tokens, pixels, targets): a mean
over them would scale the likelihood by the sequence length and with it the temperature of the ELBO. Events that are
masked, void (`Categorical(ignore_class=255)`) or of weight 0 were not observed: they add nothing, and the others count
no more for it. N counts examples, those without any label too. The mean of a batch is over examples, so that N times it
estimates the log likelihood of all that was observed, without bias; Keras' mean over the events of a batch that have a
label estimates no such sum.
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
