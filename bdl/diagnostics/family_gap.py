"""Family, prior or optimizer? Short refits from the same means tell which of the three a bad ELBO is due to (Q20).

The network is trained on from its posterior means four times for the same few hundred steps on the ELBO at T = 1, by
its own optimizer: as it is (the control, so that the further steps themselves are not credited), with a richer family,
with another prior, and with scales that move faster. ELBOs are compared at T = 1. The richer family is `LowRankNormal`,
which holds every mean-field posterior, so that under the same prior its bound is comparable; rank-1 factors are not,
for their bound leaves the weights out.

Under a prior centred on the posterior means (`TiedMean`) these are point estimates, and the bound leaves them out. It
compares families and scales under that prior, but cannot judge the prior itself: it rises without limit as a tied scale
shrinks, and is above that of a prior that the means must pay for. There is no refit with another prior then.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from bdl.diagnostics.accounting import likelihood_of
from bdl.diagnostics.measure import ProbeData, measure, network_of
from bdl.diagnostics.quantities import Refit
from bdl.diagnostics.twin import drawn_families, own_family, own_optimizer, rebuilt
from bdl.diagnostics.weights import has_fitted_means
from bdl.keras_internals import even_batch
from bdl.likelihoods import Likelihood
from bdl.posteriors import LowRankNormal, MeanFieldNormal
from bdl.priors import EmpiricalBayes, FanInNormal

_LEAST_STEPS = 200
_FAST = 3.0  # times the speed of the scales
_SAMPLES = 32


def check_refits(model: Any, x: Any) -> None:
    """Whether a model can be refitted.

    Raises:
        ValueError: if there are no training data, no mean-field-like posteriors of bdl's, or several networks.
    """
    if isinstance(model, (list, tuple)):
        raise ValueError("`family_gap=True` refits one network, not an ensemble; pass one of its members as `model`.")
    posteriors = drawn_families(model)
    if x is None or not posteriors:
        raise ValueError(
            "`family_gap=True` trains the network on: it needs x, y, and bdl's layers with a posterior over weights."
        )
    if not all(posterior.samples_weights for posterior in posteriors):
        raise ValueError(
            "`family_gap=True` compares ELBOs of whole weights, and a rank-1 posterior's leaves the weights out. Leave "
            "family_gap at False."
        )


def refit(
    model: keras.Model,
    x: Any,
    y: Any,
    likelihood: Likelihood,
    data: ProbeData,
    batch_size: int = 64,
    seed: int = 0,
) -> tuple[Refit, ...]:
    """Trains the variants and measures their ELBOs.

    Args:
        model: A trained Bayesian model; it is left as it was.
        x: Training inputs.
        y: Training labels.
        likelihood: Of the labels.
        data: Probe of the training data, on which the NLL is measured.
        batch_size: Of each refit.
        seed: Of shuffling and noise; the same for all.

    Returns:
        The control first, then one for each change; none of the prior where the means are point estimates.
    """
    epochs = math.ceil(_LEAST_STEPS / math.ceil(len(np.asarray(y)) / batch_size))
    prior, family = own_family(model)
    slow = family if isinstance(family, MeanFieldNormal) else MeanFieldNormal()
    fast = MeanFieldNormal(initial_scale=slow.initial_scale, speed=_FAST * max(slow.speed, 10.0))
    rich = LowRankNormal(initial_scale=slow.initial_scale, speed=slow.speed)
    other = FanInNormal() if isinstance(prior, EmpiricalBayes) else EmpiricalBayes()
    variants: list[tuple[str, str, dict[str, Any]]] = [
        ("nothing", f"{epochs} more epochs", {}),
        ("family", "LowRankNormal(2), which holds every mean-field posterior", {"posterior": rich}),
        ("prior", f"the prior {other}", {"prior": other}),
        ("optimizer", f"scales that move at speed {fast.speed:g}", {"posterior": fast}),
    ]
    if has_fitted_means(network_of(model)):
        variants = [variant for variant in variants if variant[0] != "prior"]
    found = []
    for change, what, options in variants:
        keras.utils.set_random_seed(seed)
        variant = rebuilt(
            model,
            likelihood,
            kl_weight=1.0,
            keeps_weights=True,
            optimizer=own_optimizer(model),
            objective="elbo",
            **options,
        )
        variant.fit(x, y, batch_size=even_batch(batch_size), epochs=epochs, verbose=0)
        measured = measure(variant, likelihood_of(variant), len(np.asarray(y)), data, num_samples=_SAMPLES)
        assert measured.train is not None
        error = (measured.train.disagreement or 0.0) / math.sqrt(_SAMPLES)
        found.append(Refit(change, what, -(measured.train.nll_gibbs + (measured.rate or 0.0)), error))
    return tuple(found)
