"""What to do about a verdict: the likeliest remedy first, each with its source and the change in code.

A remedy that needs nothing of the user's code is applied by `remedy.apply(model)`, which returns a new model,
compiled and untrained, of the same architecture; the model that was diagnosed is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from bdl.diagnostics.accounting import likelihood_of
from bdl.diagnostics.twin import rebuilt
from bdl.model import VariationalModel
from bdl.posteriors import MeanFieldNormal, Rank1
from bdl.priors import TiedMean


@dataclass(frozen=True)
class Remedy:
    """One thing to do.

    Args:
        name: In a few words.
        why: Why it should help, and what it costs.
        source: Where it comes from.
        code: The change in code.
        build: Makes the new model, or None where only the user's code can.
    """

    name: str
    why: str
    source: str
    code: str
    build: Callable[[Any, Any], keras.Model] | None = None

    def apply(self, model: Any, likelihood: Any = None) -> keras.Model:
        """A new model with this remedy: compiled, untrained; `fit` it as before.

        Args:
            model: The model that was diagnosed.
            likelihood: Of its labels; None takes the model's own.

        Raises:
            ValueError: if it needs a change in your code.
        """
        if self.build is None:
            raise ValueError(f"The remedy {self.name!r} needs a change in your code: {self.code}")
        return self.build(model, likelihood_of(model, likelihood))


def _rank1(model: Any, likelihood: Any) -> VariationalModel:
    return rebuilt(model, likelihood, posterior=Rank1(), kl_weight=1.0)


def _default_recipe(model: Any, likelihood: Any) -> VariationalModel:
    return rebuilt(model, likelihood)


def _tied_mean(model: Any, likelihood: Any) -> VariationalModel:
    return rebuilt(model, likelihood, prior=TiedMean())


def _last_layer(model: Any, likelihood: Any) -> VariationalModel:
    return rebuilt(model, likelihood, layers="last")


def _fast_scales(model: Any, likelihood: Any) -> VariationalModel:
    return rebuilt(model, likelihood, posterior=MeanFieldNormal(speed=10.0))


def _lower_rate(model: Any, likelihood: Any) -> VariationalModel:
    return rebuilt(model, likelihood, optimizer=keras.optimizers.Adam(1e-3, clipnorm=1.0))


RANK1 = Remedy(
    "a rank-1 posterior",
    "Its KL grows with the number of features and not of weights, so the data can pay for it at any width. The weights "
    "themselves become point estimates (variational EM).",
    "Dusenberry et al. 2020, arXiv 2005.07186",
    "keras.layers.Dense(...) -> bdl.layers.DenseRank1(...)",
    _rank1,
)
DEFAULT_RECIPE = Remedy(
    "empirical-Bayes prior with warm-up",
    "Prior scales are fitted by row and column, and T rises from 0 to 1, so that the means find the data before the KL "
    "bites. It ends at T = 1.",
    "MacKay 1992; Bowman et al. 2015",
    "bdl.layers.DenseReparameterization(..., kernel_prior='empirical_bayes'); "
    "bdl.VariationalModel(network, likelihood, kl_weight=None)",
    _default_recipe,
)
TIED_MEAN = Remedy(
    "a tied-mean prior",
    "The KL acts on the scales only; the means are fitted by maximum likelihood (variational EM).",
    "Nado et al. 2021, arXiv 2106.04015",
    "bdl.layers.DenseReparameterization(..., kernel_prior='tied_mean')",
    _tied_mean,
)
LAST_LAYER = Remedy(
    "Bayesian last layer only",
    "Features are learned by maximum likelihood; only what reads them is uncertain.",
    "Riquelme et al. 2018; Harrison et al. 2024",
    "bdl.convert.to_variational(network, layers='last')",
    _last_layer,
)
HONEST_ELBO = Remedy(
    "bdl's ELBO in place of the loss",
    "It divides the KL by the number of training examples and counts each layer once.",
    "Graves 2011, eq. 3",
    "bdl.VariationalModel(network, likelihood).compile('adam')",
    _default_recipe,
)
T_ONE = Remedy(
    "train at T = 1",
    "Less than T = 1 narrows the posterior beyond what the data say. If it is wanted, report T.",
    "Wenzel et al. 2020, arXiv 2002.02405",
    "bdl.VariationalModel(network, likelihood, kl_weight=None)",
    _default_recipe,
)
TRAIN_LONGER = Remedy(
    "train longer, or at a higher rate",
    "The ELBO is still rising: this verdict is about the budget, not about the model. What apply returns is the "
    "default recipe at Adam's default rate of 1e-3.",
    "Theil-Sen slope and Mann-Kendall test of the record",
    "model.compile(keras.optimizers.Adam(1e-3)); model.fit(..., epochs=4 * epochs)",
    _default_recipe,
)
FAST_SCALES = Remedy(
    "scales that move as fast as means",
    "Adam moves a stored parameter by its rate a step, whatever the gradient: stored as log(scale) / 10, a scale "
    "arrives.",
    "docs/defaults.md",
    "kernel_posterior=bdl.posteriors.MeanFieldNormal(speed=10.0), with Adam at 1e-3",
    _fast_scales,
)
LOWER_RATE = Remedy(
    "a lower rate and clipped gradients",
    "Look for the epoch in the record; check inputs and targets for outliers and standardise them.",
    "Pascanu et al. 2013",
    "keras.optimizers.Adam(1e-3, clipnorm=1.0)",
    _lower_rate,
)
EARLY_STOPPING = Remedy(
    "stop at the best validation NLL",
    "The later epochs only fitted the training data.",
    "Prechelt 1998",
    "keras.callbacks.EarlyStopping(monitor='val_nll', patience=10, restore_best_weights=True)",
)
MORE_NOISE = Remedy(
    "a posterior over the weights",
    "Weights that are point estimates overfit few data; Gaussian ones pay for what they say.",
    "Blundell et al. 2015, arXiv 1505.05424",
    "bdl.convert.to_variational(network)",
    _default_recipe,
)
LIVE_NOISE = Remedy(
    "dropout that reaches the outputs",
    "Noise that nothing follows, or of rate 0, says nothing about uncertainty.",
    "Gal & Ghahramani 2016, arXiv 1506.02142",
    "bdl.convert.to_mc_dropout(network, rate=0.1); for ensembles, other seeds and initial weights for each member",
)
WARMUP = Remedy(
    "KL warm-up",
    "T rises from 0 to 1. Alone it did not mend a wide network whose prior it does not suit.",
    "Bowman et al. 2015, arXiv 1511.06349",
    "bdl.VariationalModel(network, likelihood, kl_weight=bdl.elbo.LinearWarmup(0.85))",
)
LAPLACE_OR_ENSEMBLE = Remedy(
    "another method",
    "Where the family does not fit, an ensemble or a Laplace approximation may.",
    "Lakshminarayanan et al. 2017; Daxberger et al. 2021",
    "bdl.predict_distribution([model_a, model_b, ...], x, likelihood)",
)

REMEDIES: dict[str, tuple[Remedy, ...]] = {
    "diverged": (LOWER_RATE,),
    "accounting_error": (HONEST_ELBO, RANK1),
    "mis_scaled_kl": (HONEST_ELBO, RANK1),
    "still_training": (TRAIN_LONGER, RANK1),
    "underfitting": (RANK1, DEFAULT_RECIPE, TIED_MEAN, LAST_LAYER, WARMUP, LAPLACE_OR_ENSEMBLE),
    "collapsed": (RANK1, DEFAULT_RECIPE, TIED_MEAN, LAST_LAYER, WARMUP, LAPLACE_OR_ENSEMBLE),
    "over_pruned": (RANK1, DEFAULT_RECIPE, TIED_MEAN, LAST_LAYER),
    "variance_saturated": (RANK1, DEFAULT_RECIPE, TIED_MEAN),
    "scales_not_learned": (FAST_SCALES, RANK1),
    "near_deterministic": (T_ONE, RANK1, LIVE_NOISE),
    "overfitting": (MORE_NOISE, EARLY_STOPPING, RANK1),
    "healthy": (),
    "inconclusive": (),
}
