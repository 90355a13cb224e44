"""Embeddings with a posterior over their table, or over a factor for each token."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from bdl import posteriors, priors
from bdl.layers.named import Families, NamedRank1, NamedVariational
from bdl.posteriors import AnyPosterior, MeanFieldNormal
from bdl.priors import EmpiricalBayes, Prior

# One row is looked up, so the fan-in is 1. One prior scale for the whole table, fitted to it: tokens are a population,
# and what is known of a token that never occurs is how large the others are. A scale of its own row would be fitted to
# nothing there, and a fixed one would have to guess the size of embeddings, which differs by orders of magnitude.
DEFAULT_EMBEDDINGS_PRIOR = EmpiricalBayes("layer")
# A tenth of the range in which Keras starts the rows, +-0.05; a tenth of 1 / sqrt(fan_in) would drown them.
DEFAULT_EMBEDDINGS_POSTERIOR = MeanFieldNormal(initial_scale=0.005)


class EmbeddingReparameterization(NamedVariational, wraps=layers.Embedding, estimator="reparameterization"):
    """`keras.layers.Embedding` with one sampled table per call: a token has the same vector wherever it stands.

    The input holds integers and has any shape; the output has one more axis, of size `output_dim`. With
    `mask_zero=True` it masks as the Keras layer does.

    Args:
        embeddings_prior: `bdl.priors.Prior` of the table, or its name. Default: `EmpiricalBayes("layer")`, one scale
            for the whole table.
        embeddings_posterior: `bdl.posteriors.Posterior` of the table, or its name. Default:
            `MeanFieldNormal(initial_scale=0.005)`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> EmbeddingReparameterization(10, 3)(np.array([[1, 2, 1, 0]])).shape == (1, 4, 3)
    True
    """

    def __init__(
        self,
        *args: Any,
        embeddings_prior: Prior | str | dict[str, Any] = DEFAULT_EMBEDDINGS_PRIOR,
        embeddings_posterior: AnyPosterior | str | dict[str, Any] = DEFAULT_EMBEDDINGS_POSTERIOR,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.embeddings_prior = priors.get(embeddings_prior, "embeddings_prior")
        self.embeddings_posterior = posteriors.get(embeddings_posterior, "embeddings_posterior")
        self._wrap(args, kwargs, self.estimator_name, seed)

    def families(self, layer: keras.Layer) -> Families:
        """Prior and posterior of the table."""
        return {"embeddings": (self.embeddings_prior, self.embeddings_posterior)}


class EmbeddingRank1(NamedRank1, wraps=layers.Embedding, estimator="rank1"):
    """`keras.layers.Embedding` with a random factor for each token and for each output feature.

    The input holds integers and has the shape `(batch, ...)`; the output has one more axis, of size `output_dim`. Every
    place in an example draws factors of its own.

    **Unseen tokens go unnoticed.** A factor that training never shows keeps its prior, but it multiplies a row of the
    table that stays where it began, near zero: the product is small, and so is the uncertainty that it adds. Train with
    one number for "unknown", which stands for rare tokens, if such inputs are to be noticed.

    Args:
        input_factor_prior: `bdl.priors.Prior` of the tokens' factors, around 1. Default: `Normal(1, 1)`.
        kernel_prior: Prior of the table, or its name. None, the default, is maximum likelihood.

    Source: the input factors of Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1
    factors", eq. 4, on one-hot vectors.

    Example:
    >>> EmbeddingRank1(10, 3)(np.array([[1, 2, 1, 0]])).shape == (1, 4, 3)
    True
    """
