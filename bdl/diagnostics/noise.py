"""Layers whose noise drowns what the data say: which they are, and what it costs, from recorded quantities alone.

The ELBO lets a layer keep the noise of its prior where certainty would cost more nats of KL than it gains of NLL. For
one broad factor for each entry of an image that is soon the case, whatever the image holds: K factors of prior scale s
cost about K log(s / 0.1) nats to become certain to a tenth, and labels hold no more than N times their entropy.
"""

from __future__ import annotations

import math

from bdl.diagnostics.quantities import LayerHealth, Quantities
from bdl.diagnostics.symptoms import is_behind, is_done, is_less_accurate, unit
from bdl.diagnostics.thresholds import THRESHOLDS as LIMIT

READABLE = 0.1
"""Scale of a factor, as a share of its mean, at which what it multiplies can be read."""


def is_near_prior(layer: LayerHealth) -> bool:
    """Whether the data have hardly narrowed the layer's scales (Q10)."""
    return layer.contraction is not None and layer.contraction < LIMIT.near_prior


def price_of_certainty(layer: LayerHealth, num_examples: int) -> float:
    """What factors would cost, in nats per example, if all of them became readable under their prior (Q21).

    That is the divergence of `N(m, (m / 10)^2)` from a prior `N(m, s^2)`, with the layer's median `s / m`.

    Example:
    >>> broad = LayerHealth("inputs", 3072, contraction=0.0, signal_to_noise=1 / 3, draws_factors=True)
    >>> round(price_of_certainty(broad, 3200), 2)  # 2.9 nats each
    2.79
    """
    if not layer.signal_to_noise or layer.contraction is None or layer.contraction >= 1.0:
        return 0.0
    ratio = READABLE * layer.signal_to_noise * math.sqrt(1.0 - layer.contraction)
    return layer.num_weights * max(0.5 * (ratio**2 - 1.0) - math.log(ratio), 0.0) / num_examples


def costly_layers(q: Quantities) -> tuple[LayerHealth, ...]:
    """Layers near their prior whose noise costs a material part of what the labels hold, the dearest first (Q21)."""
    fit = q.train
    if fit is None:
        return ()
    least = max(LIMIT.noise_cost * unit(fit.nll_null), LIMIT.errors * (fit.disagreement or 0.0))
    found = [layer for layer in q.layers if is_near_prior(layer) and (layer.noise_cost or 0.0) > least]
    return tuple(sorted(found, key=lambda layer: -(layer.noise_cost or 0.0)))


def broad_layers(q: Quantities) -> tuple[LayerHealth, ...]:
    """Layers of factors that are noisier than they are large, and that the data cannot pay to narrow (Q11, Q21)."""
    fit = q.train or q.validation
    if fit is None or not q.num_examples:
        return ()
    return tuple(
        layer
        for layer in q.layers
        if layer.draws_factors
        and is_near_prior(layer)
        and (layer.signal_to_noise or 1.0) < 1.0
        and price_of_certainty(layer, q.num_examples) > unit(fit.nll_null)
    )


def drowning_layers(q: Quantities) -> tuple[LayerHealth, ...]:
    """Both of them, each layer once."""
    found = {layer.name: layer for layer in (*costly_layers(q), *broad_layers(q))}
    return tuple(found.values())


def is_drowned(q: Quantities) -> bool:
    """Whether a network with such a layer predicts worse than its twin (Q14)."""
    fit = q.judged
    if fit is None or not drowning_layers(q) or not is_done(q):
        return False
    return is_behind(q, LIMIT.drowned_gap) and is_less_accurate(q, LIMIT.accuracy_gap)


def explained(layer: LayerHealth, q: Quantities) -> str:
    """Sentences on what a layer's noise is, what it costs, and why it stays."""
    fit, size = q.train or q.validation, q.num_examples
    assert fit is not None
    near = math.sqrt(max(1.0 - (layer.contraction or 0.0), 0.0))
    said = [f"{layer.name}: its scales are at {near:.0%} of their prior's in the median"]
    if size and layer.kl is not None:
        said[0] += f" (KL {layer.kl / size:.2g} nats per example)"
    if layer.noise_cost is not None and layer.noise_cost > 0.0:  # below, the network has adapted to it
        said.append(
            f"its noise costs {layer.noise_cost:.3g} nats per example: the NLL of one draw is {fit.nll_gibbs:.3f} with "
            f"it and {fit.nll_gibbs - layer.noise_cost:.3f} without"
        )
    if size and layer.signal_to_noise and layer in broad_layers(q):
        said.append(
            f"{layer.num_weights} entries are multiplied by noise of {1 / layer.signal_to_noise:.2g} times their "
            f"factors' mean; to make them all readable takes {price_of_certainty(layer, size):.2g} nats of KL per "
            f"example, and the labels hold {fit.nll_null:.2g}"
        )
    return "; ".join(said) + "."
