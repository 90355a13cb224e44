"""Recipes: prior, posterior, schedule and optimizer that work together, each with its evidence.

A recipe takes a built Keras network that ends in raw outputs (logits) and returns a compiled `VariationalModel` around
the same network; `fit` it. All end at T = 1. Figures are those of benchmarks/ (docs/defaults.md has the tables and says
how to repeat them); NLL is per example, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras

from bdl.convert import to_variational
from bdl.convert.selection import Selector
from bdl.convert.variational import can_be_variational
from bdl.keras_internals import input_structure
from bdl.layers import InputFactors
from bdl.layers.linear import is_linear
from bdl.likelihoods import Likelihood
from bdl.model import VariationalModel
from bdl.posteriors import MeanFieldNormal, Posterior, Rank1
from bdl.priors import EmpiricalBayes, Normal

Likelihoods = Likelihood | Mapping[str, Likelihood]


def small_data(
    network: keras.Model, likelihood: Likelihoods, num_examples: int | None = None, seed: int | None = None
) -> VariationalModel:
    """Some hundreds or thousands of examples, above all regression.

    Mean-field posteriors trained by local reparameterization, with the layers' default prior around fitted means
    (variational EM: the means are MAP estimates); Adam at 1e-2 with scales slowed to it; an exponential average of the
    variables over about 200 steps takes their place at the end of `fit`.
    """
    posterior = MeanFieldNormal(speed=3.0)
    converted = to_variational(network, "all", "local_reparameterization", posterior=posterior, seed=seed)
    model = VariationalModel(converted, likelihood, num_examples)
    model.compile(_averaging_adam(1e-2, 0.995))
    return model


def instead_of_ensemble(
    network: keras.Model, likelihood: Likelihoods, num_examples: int | None = None, seed: int | None = None
) -> VariationalModel:
    """One network where one would train an ensemble: classification, of any width, with unseen inputs to be noticed.

    Rank-1 factors with prior `N(1, 0.5^2)` on every kernel, and in front a factor with the broad prior `N(1, 10^2)` for
    each entry of the input (`bdl.layers.InputFactors`), unless the inputs are integers. Weights are point estimates
    (variational EM), and so are embeddings, which a posterior made worse. Adam at 3e-3; an exponential average of the
    variables over about 100 steps takes their place at the end of `fit`.
    """
    converted = to_variational(network, _has_kernel, posterior=_rank1_where_linear, seed=seed)
    model = VariationalModel(_with_input_factors(network, converted, seed), likelihood, num_examples)
    model.compile(_averaging_adam(3e-3, 0.99))
    return model


def fully_gaussian(
    network: keras.Model, likelihood: Likelihoods, num_examples: int | None = None, seed: int | None = None
) -> VariationalModel:
    """Every kernel Gaussian, none of it fitted by maximum likelihood: full Bayes as far as mean-field goes.

    Row x column empirical Bayes, local reparameterization, T rising to 1 over 85 % of the training, Adam at 3e-3.
    """
    converted = to_variational(network, "all", "local_reparameterization", EmpiricalBayes("row_column"), seed=seed)
    model = VariationalModel(converted, likelihood, num_examples)
    model.compile(keras.optimizers.Adam(3e-3))
    return model


def last_layer(
    network: keras.Model, likelihood: Likelihoods, num_examples: int | None = None, seed: int | None = None
) -> VariationalModel:
    """A Gaussian posterior on the last layer only; everything below is a point estimate. Adam at 1e-3."""
    converted = to_variational(network, "last", "local_reparameterization", EmpiricalBayes("row_column"), seed=seed)
    model = VariationalModel(converted, likelihood, num_examples)
    model.compile("adam")
    return model


def fine_tuning(
    network: keras.Model,
    likelihood: Likelihoods,
    num_examples: int | None = None,
    layers: Selector = "all",
    seed: int | None = None,
) -> VariationalModel:
    """A trained network becomes Bayesian in a few epochs.

    Priors `N(trained weight, 1 / fan-in)` (MOPED) and scales that start at a tenth of each weight; T = 1 throughout,
    Adam at 1e-3. The data that trained the network are used twice: an empirical-Bayes method.
    """
    converted = to_variational(network, layers, prior="moped", seed=seed)
    model = VariationalModel(converted, likelihood, num_examples, kl_weight=1.0)
    model.compile("adam")
    return model


def _averaging_adam(rate: float, momentum: float) -> keras.optimizers.Optimizer:
    """Adam at a rate whose noise would show in the last iterate; `fit` ends with an average over the last ones.

    Averaging: Polyak & Juditsky 1992.
    """
    return keras.optimizers.Adam(rate, use_ema=True, ema_momentum=momentum)


def _has_kernel(layer: keras.Layer) -> bool:
    """What `to_variational` converts, without embeddings."""
    return can_be_variational(layer) and not isinstance(layer, keras.layers.Embedding)


def _rank1_where_linear(layer: keras.Layer) -> Posterior:
    """Factors for dense and convolutional layers; recurrent ones have no such form."""
    prior = Normal(1.0, 0.5)
    return Rank1(prior, prior) if is_linear(layer) else MeanFieldNormal()


def _with_input_factors(network: keras.Model, converted: keras.Model, seed: int | None) -> keras.Model:
    """The converted network behind input factors, where its input is one tensor of real numbers and of known shape."""
    inputs = input_structure(network)
    inputs = inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs
    if not isinstance(inputs, keras.KerasTensor) or None in inputs.shape[1:]:
        return converted
    if "float" not in keras.backend.standardize_dtype(inputs.dtype):
        return converted
    entry = keras.Input(inputs.shape[1:], dtype=inputs.dtype)
    # No seed that to_variational gives: layers of one seed draw the same noise.
    own = None if seed is None else seed * 10_007 + 10_006
    return keras.Model(entry, converted(InputFactors(seed=own)(entry)))
