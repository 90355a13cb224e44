"""What to do about a verdict: the likeliest remedy first, each with its source and the change in code.

A remedy that needs nothing of the user's code is applied by `remedy.apply(model)`, which returns a new model,
compiled and untrained, of the same architecture; the model that was diagnosed is not touched. What it returns is what
its `code` says and nothing besides. The order in which a verdict lists its remedies was set on the calibration half of
`benchmarks/zoo.py`; docs/explain/diagnostics.md has the table, and names what was tried and left out.
"""

from __future__ import annotations

from functools import partial

from bdl.diagnostics import optimizer_remedies
from bdl.diagnostics.noise import broad_layers
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.remedy import Remedy
from bdl.diagnostics.story_remedies import story_remedies
from bdl.diagnostics.symptoms import is_local_collapse, refit_cause
from bdl.diagnostics.twin import burnt_in, rebuilt, redropped, restarted, trained_anew, without_factors
from bdl.elbo import LinearWarmup
from bdl.posteriors import LowRankNormal, MeanFieldNormal, Rank1
from bdl.priors import EmpiricalBayes, TiedMean

RANK1 = Remedy(
    "a rank-1 posterior",
    "Its KL grows with the number of features and not of weights, so the data can pay for it at any width. The weights "
    "themselves become point estimates (variational EM).",
    "Dusenberry et al. 2020, arXiv 2005.07186",
    "keras.layers.Dense(...) -> bdl.layers.DenseRank1(...); bdl.VariationalModel(network, likelihood, kl_weight=1.0)",
    partial(rebuilt, posterior=Rank1(), kl_weight=1.0),
)
EMPIRICAL_BAYES = Remedy(
    "empirical-Bayes prior with warm-up",
    "Prior scales are fitted by row and column, and T rises from 0 to 1, so that the means find the data before the KL "
    "bites. It ends at T = 1.",
    "MacKay 1992; Bowman et al. 2015",
    "bdl.layers.DenseReparameterization(..., kernel_prior='empirical_bayes'); "
    "bdl.VariationalModel(network, likelihood, kl_weight=None)",
    partial(rebuilt, prior=EmpiricalBayes(), posterior=MeanFieldNormal()),
)
TIED_MEAN = Remedy(
    "a tied-mean prior",
    "The KL acts on the scales only; the means are fitted by maximum likelihood (variational EM).",
    "Nado et al. 2021, arXiv 2106.04015",
    "bdl.layers.DenseReparameterization(..., kernel_prior='tied_mean')",
    partial(rebuilt, prior=TiedMean(), posterior=MeanFieldNormal()),
)
LAST_LAYER = Remedy(
    "Bayesian last layer only",
    "Features are learned by maximum likelihood; only what reads them is uncertain.",
    "Riquelme et al. 2018; Harrison et al. 2024",
    "bdl.convert.to_variational(network, layers='last', prior='empirical_bayes')",
    partial(rebuilt, layers="last", prior=EmpiricalBayes(), posterior=MeanFieldNormal()),
)
HONEST_ELBO = Remedy(
    "bdl's ELBO in place of the loss",
    "It divides the KL by the number of training examples, which it learns from fit, and counts each layer once. The "
    "layers keep prior and posterior; what they gave to add_loss goes.",
    "Graves 2011, eq. 3",
    "bdl.VariationalModel(network, likelihood).compile('adam')  # without num_examples=, and without add_loss",
    rebuilt,
)
T_ONE = Remedy(
    "train at T = 1",
    "Less than T = 1 narrows the posterior beyond what the data say. If it is wanted, report T. With 1.0 no epoch has "
    "another T, wherever the training stops.",
    "Wenzel et al. 2020, arXiv 2002.02405",
    "bdl.VariationalModel(network, likelihood, kl_weight=1.0)",
    partial(restarted, kl_weight=1.0),
)
TRAIN_LONGER = Remedy(
    "train longer, at Adam's rate",
    "The ELBO is still rising: this verdict is about the budget, not about the model. apply() returns the model as it "
    "was, with new weights and Adam's default rate, to be fitted for longer.",
    "Theil-Sen slope and Mann-Kendall test of the record",
    "model.compile(keras.optimizers.Adam(1e-3)); model.fit(..., epochs=4 * epochs)",
    trained_anew,
)
FAST_SCALES = Remedy(
    "scales that move as fast as means",
    "Adam moves a stored parameter by its rate a step, whatever the gradient: stored as log(scale) / 10, a scale "
    "arrives.",
    "docs/explain/defaults.md",
    "kernel_posterior=bdl.posteriors.MeanFieldNormal(speed=10.0), with Adam at 1e-3",
    partial(rebuilt, posterior=MeanFieldNormal(speed=10.0)),
)
LOWER_RATE = Remedy(
    "a lower rate and clipped gradients",
    "Look for the epoch in the record; check inputs and targets for outliers and standardise them.",
    "Pascanu et al. 2013",
    "keras.optimizers.Adam(1e-3, clipnorm=1.0)",
    partial(trained_anew, optimizer={"class_name": "Adam", "config": {"learning_rate": 1e-3, "clipnorm": 1.0}}),
)
EARLY_STOPPING = Remedy(
    "stop at the best validation NLL",
    "The later epochs only fitted the training data. T is 1 throughout: a training that stops in a warm-up, or goes "
    "back to an epoch in it, ends with a smaller T. apply() returns the model, to be fitted with this callback.",
    "Prechelt 1998",
    "bdl.VariationalModel(network, likelihood, kl_weight=1.0); model.fit(..., callbacks=["
    "keras.callbacks.EarlyStopping('val_nll', mode='min', patience=10, restore_best_weights=True)])",
    partial(restarted, kl_weight=1.0),
)
LIVE_NOISE = Remedy(
    "dropout that reaches the outputs",
    "Noise that nothing follows, or of rate 0, says nothing about uncertainty.",
    "Gal & Ghahramani 2016, arXiv 1506.02142",
    "bdl.convert.to_mc_dropout(network, rate=0.1)",
    redropped,
)
OTHER_SEEDS = Remedy(
    "members that differ",
    "Equal initial weights and equal batches end in equal networks: give each member a seed of its own.",
    "Lakshminarayanan et al. 2017, arXiv 1612.01474",
    "for seed in range(5): keras.utils.set_random_seed(seed); members.append(train(build()))",
)
NARROW_FACTORS = Remedy(
    "narrow factors, or none",
    "Factors of prior scale s cost about log(s / 0.1) nats each to become readable. Where every entry of the input "
    "carries something, broad ones do not become so, and the network reads noise. The prior of InputFactors() is "
    "narrow on such entries and broad on empty ones; without broad factors, inputs that the data never used do not "
    "make the network unsure. apply() returns the recipe without input factors.",
    "Dusenberry et al. 2020, arXiv 2005.07186; docs/explain/diagnostics.md",
    "bdl.recipes.instead_of_ensemble(network, likelihood, input_prior=None); in your own layers "
    "bdl.layers.InputFactors() with its own prior, bdl.priors.InputNormal(), "
    "bdl.layers.DenseRank1(..., input_factor_prior=...)",
    without_factors,
)
LOW_RANK = Remedy(
    "a low-rank posterior",
    "Correlated weights can move together where the data do not care, which mean-field weights cannot.",
    "Ong et al. 2018, arXiv 1701.03208",
    "bdl.layers.DenseReparameterization(..., kernel_posterior=bdl.posteriors.LowRankNormal(2))",
    partial(rebuilt, posterior=LowRankNormal()),
)
BURN_IN = Remedy(
    "deterministic burn-in",
    "The network is trained without noise first; prior and posterior are then centred on its weights. The data are "
    "used twice, so few epochs should follow.",
    "Krishnan et al. 2020, arXiv 1906.05323",
    "plain.fit(x, y); network = bdl.convert.to_variational(plain, prior='moped'); "
    "bdl.VariationalModel(network, likelihood, kl_weight=1.0)",
    burnt_in,
    needs_data=True,
)
FREE_BITS = Remedy(
    "free bits",
    "The local KL costs nothing below a rate, so that a code is not pushed to its prior before the decoder reads it.",
    "Kingma et al. 2016, arXiv 1606.04934",
    "bdl.VariationalModel(network, likelihood, kl_weight=1.0, free_bits=0.5)  # no ELBO below 0.5 nats",
    partial(restarted, kl_weight=1.0, free_bits=0.5),
)
LOCAL_WARMUP = Remedy(
    "KL warm-up",
    "The decoder learns to read the code while it costs nothing.",
    "Bowman et al. 2015, arXiv 1511.06349",
    "bdl.VariationalModel(network, likelihood, kl_weight=bdl.elbo.LinearWarmup(0.85))",
    partial(restarted, kl_weight=LinearWarmup()),
)
LAPLACE_OR_ENSEMBLE = Remedy(
    "another method",
    "Where the family does not fit, an ensemble or a Laplace approximation may.",
    "Lakshminarayanan et al. 2017; Daxberger et al. 2021",
    "bdl.predict_distribution([model_a, model_b, ...], x, likelihood)",
)

REMEDIES: dict[str, tuple[Remedy, ...]] = {
    "diverged": (LOWER_RATE,),
    "accounting_error": (HONEST_ELBO, RANK1, TIED_MEAN),
    "mis_scaled_kl": (HONEST_ELBO, RANK1, TIED_MEAN),
    "no_signal": (),
    "still_training": (TRAIN_LONGER, RANK1, TIED_MEAN),
    "underfitting": (RANK1, TIED_MEAN, BURN_IN, LAST_LAYER, LAPLACE_OR_ENSEMBLE),
    "collapsed": (RANK1, TIED_MEAN, BURN_IN, LAST_LAYER, LAPLACE_OR_ENSEMBLE),
    "over_pruned": (RANK1, TIED_MEAN, BURN_IN, LAST_LAYER),
    "variance_saturated": (RANK1, TIED_MEAN, BURN_IN),
    "scales_not_learned": (RANK1, FAST_SCALES),
    "near_deterministic": (T_ONE, RANK1, TIED_MEAN),
    "overfitting": (RANK1, EARLY_STOPPING, TIED_MEAN),
    "healthy": (),
    "inconclusive": (),
}
"""Remedies of each verdict on weights, the likeliest first."""
_LOCAL = (LOCAL_WARMUP, FREE_BITS)
_OF_THE_POSTERIOR = ("underfitting", "collapsed", "over_pruned", "variance_saturated", "scales_not_learned")
_OF_LAYERS = (LOWER_RATE, HONEST_ELBO, TRAIN_LONGER, FAST_SCALES, T_ONE)
"""Changes of settings of variational layers, and of their optimizer; where IVON has the posterior, it has its own."""
_BY_CAUSE = {"family": (LOW_RANK,), "prior": (TIED_MEAN, EMPIRICAL_BAYES), "optimizer": (FAST_SCALES,)}
"""What a refit that gained speaks for (Q20)."""


def remedies_of(verdict: str, quantities: Quantities) -> tuple[Remedy, ...]:
    """What to do about a verdict on a model of this kind, the likeliest first.

    Example:
    >>> [remedy.name for remedy in remedies_of("near_deterministic", Quantities(num_members=5))]
    ['members that differ']
    """
    if quantities.story is not None:
        return story_remedies(verdict, quantities)
    if verdict == "near_deterministic" and quantities.num_members > 1:
        return (OTHER_SEEDS,)
    if verdict == "near_deterministic" and quantities.dropout_rates and not quantities.layers:
        return (LIVE_NOISE, RANK1)
    if verdict == "collapsed" and quantities.local is not None and is_local_collapse(quantities.local):
        return _LOCAL
    found, listed = refit_cause(quantities), REMEDIES[verdict]
    if verdict in _OF_THE_POSTERIOR and broad_layers(quantities):
        listed = (NARROW_FACTORS, *listed)
    if quantities.is_of_optimizer:
        listed = (
            *optimizer_remedies.OWN_REMEDIES.get(verdict, ()),
            *(remedy for remedy in listed if remedy not in _OF_LAYERS),
        )
    listed = tuple(remedy for remedy in listed if not _is_there(remedy, quantities))
    if found is None or verdict not in _OF_THE_POSTERIOR:
        return listed
    named = _BY_CAUSE[found[0].change]
    return (*named, *(remedy for remedy in listed if remedy not in named))


def _is_there(remedy: Remedy, q: Quantities) -> bool:
    """Whether the model has already what a remedy would change."""
    if remedy is RANK1:
        return bool(q.is_rank1)
    if remedy is TIED_MEAN:
        return bool(q.has_fitted_means)
    return remedy in (T_ONE, optimizer_remedies.T_ONE) and q.declared_temperature == 1.0 == q.present_temperature
