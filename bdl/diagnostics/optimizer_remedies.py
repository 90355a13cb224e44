"""What to do about a verdict on a network whose posterior is its optimizer's, `bdl.optimizers.IVON`."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras

from bdl.diagnostics.remedy import Remedy
from bdl.diagnostics.twin import restarted, trained_anew
from bdl.keras_internals import innermost

_SOURCE = "Shen et al. 2024, arXiv 2402.17641"


def _changed(model: Any, likelihood: Any, data: Any = None, **factors: float) -> keras.Model:
    """The same network with new weights, and its IVON with settings times these factors.

    Args:
        model: The model.
        likelihood: Of its labels.
        data: Not used.
        **factors: By the names of arguments of IVON; `memory` is `1 / (1 - beta_2)`.
    """
    optimizer = innermost(model.optimizer)
    config = optimizer.get_config()
    memory = factors.pop("memory", 1.0)
    config |= {name: factor * config[name] for name, factor in factors.items()}
    config["beta_2"] = 1.0 - min((1.0 - config["beta_2"]) / memory, 0.5)
    return restarted(model, likelihood, kl_weight=model.kl_weight, optimizer=type(optimizer).from_config(config))


LOWER_RATE = Remedy(
    "a lower rate",
    "Look for the epoch in the record; check inputs and targets for outliers and standardise them.",
    _SOURCE,
    "bdl.optimizers.IVON(learning_rate / 3)",
)
TRAIN_LONGER = Remedy(
    "train longer",
    "The ELBO is still rising: this verdict is about the budget, not about the model. apply() returns the model as it "
    "was, with new weights, to be fitted for longer.",
    "Theil-Sen slope and Mann-Kendall test of the record",
    "model.fit(..., epochs=4 * epochs)",
    trained_anew,
)
WIDER_PRIOR = Remedy(
    "a wider prior",
    "The prior N(0, prior_scale^2) pulls every mean to zero.",
    _SOURCE,
    "bdl.optimizers.IVON(..., prior_scale=3 * prior_scale)",
    partial(_changed, prior_scale=3.0),
)
NARROW_START = Remedy(
    "a narrower start",
    "The scales begin at 1 / sqrt(N (initial_hessian + d)), and the memory of the Hessian keeps them near it for long.",
    _SOURCE,
    "bdl.optimizers.IVON(..., initial_hessian=10 * initial_hessian)",
    partial(_changed, initial_hessian=10.0),
)
SHORTER_MEMORY = Remedy(
    "a Hessian with a shorter memory",
    "The estimate of the Hessian, and so the scales, remember 1 / (1 - beta_2) steps, and the training had fewer. A "
    "shorter memory makes them noisier.",
    _SOURCE,
    "bdl.optimizers.IVON(..., beta_2=1 - 10 * (1 - beta_2))",
    partial(_changed, memory=0.1),
)
T_ONE = Remedy(
    "train at T = 1",
    "Less than T = 1 narrows the posterior beyond what the data say, and more widens it. If it is wanted, report T.",
    "Wenzel et al. 2020, arXiv 2002.02405",
    "bdl.VariationalModel(network, likelihood, optimizer_posterior=True)  # without num_examples= and kl_weight=",
    partial(restarted, kl_weight=1.0),
)

OWN_REMEDIES: dict[str, tuple[Remedy, ...]] = {
    "diverged": (LOWER_RATE,),
    "accounting_error": (T_ONE,),
    "mis_scaled_kl": (T_ONE,),
    "still_training": (TRAIN_LONGER,),
    "underfitting": (WIDER_PRIOR, NARROW_START),
    "collapsed": (WIDER_PRIOR, NARROW_START),
    "over_pruned": (WIDER_PRIOR,),
    "variance_saturated": (NARROW_START, SHORTER_MEMORY),
    "scales_not_learned": (SHORTER_MEMORY,),
    "near_deterministic": (T_ONE,),
}
"""Remedies by verdict that keep the optimizer; those that take another posterior are for every network."""
