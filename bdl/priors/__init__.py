"""Priors over the weights of one tensor, and their Kullback-Leibler divergence from a Gaussian posterior.

`Normal`, `FanInNormal`, `WidthNormal`, `TiedMean` and `Moped` are Gaussian, and one closed form gives the divergence

    KL(N(mu, sigma^2) || N(m, s^2)) = log(s / sigma) + (sigma^2 + (mu - m)^2) / (2 s^2) - 1/2   [nats per weight]

So is `InputNormal`, the prior of input factors. `EmpiricalBayes` fits its scales, as maximisers of the ELBO, inside the
divergence. `Laplace` has a closed form of its own; `ScaleMixture` and `Horseshoe` take the least upper bound over
latent variables, so that the ELBO stays a lower bound. `Prior.penalty` is what point-estimated weights pay.
"""

from __future__ import annotations

from typing import Any

from bdl.priors.base import Prior, Variables, check_penalty, check_positive, fan_in, normal_kl
from bdl.priors.centred import Moped, TiedMean
from bdl.priors.empirical_bayes import EMPIRICAL_BAYES_GROUPS, EmpiricalBayes
from bdl.priors.gaussian import FanInNormal, Normal, WidthNormal
from bdl.priors.horseshoe import HORSESHOE_GROUPS, Horseshoe
from bdl.priors.inputs import InputNormal
from bdl.priors.laplace import Laplace
from bdl.priors.scale_mixture import ScaleMixture
from bdl.serialization import resolve

__all__ = [
    "EMPIRICAL_BAYES_GROUPS",
    "HORSESHOE_GROUPS",
    "EmpiricalBayes",
    "FanInNormal",
    "Horseshoe",
    "InputNormal",
    "Laplace",
    "Moped",
    "Normal",
    "Prior",
    "ScaleMixture",
    "TiedMean",
    "Variables",
    "WidthNormal",
    "check_penalty",
    "check_positive",
    "fan_in",
    "get",
    "normal_kl",
]

_PRIORS: dict[str, type] = {
    "normal": Normal,
    "fan_in_normal": FanInNormal,
    "width_normal": WidthNormal,
    "empirical_bayes": EmpiricalBayes,
    "tied_mean": TiedMean,
    "moped": Moped,
    "laplace": Laplace,
    "scale_mixture": ScaleMixture,
    "horseshoe": Horseshoe,
}


def get(prior: Prior | str | dict[str, Any], argument: str = "prior") -> Prior:
    """Turns a name, a configuration or a prior into a prior.

    Args:
        prior: A `Prior`; one of `"normal"`, `"fan_in_normal"`, `"width_normal"`, `"empirical_bayes"`,
            `"tied_mean"`, `"moped"`, `"laplace"`, `"scale_mixture"`, `"horseshoe"`; or a configuration.
        argument: Name of the argument, for the error message.

    Raises:
        ValueError: if it is none of these.

    Example:
    >>> get("fan_in_normal")
    FanInNormal(scale=1.0)
    """
    return resolve(prior, _PRIORS, argument, Prior)
