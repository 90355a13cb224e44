"""Rules about the posterior's spread: too wide, never moved, or next to none (rungs 3, 7 and 8)."""

from __future__ import annotations

from bdl.diagnostics.finding import Finding
from bdl.diagnostics.noise import drowning_layers, explained
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.symptoms import (
    is_cold,
    is_collapsed,
    is_declared_cold,
    is_done,
    is_stopped_cold,
    stuck_layers,
    unit,
)
from bdl.diagnostics.thresholds import THRESHOLDS as LIMIT


def variance_saturated(q: Quantities) -> Finding | None:
    """Rung 7: the mean fits, but functions vary as if there were no data (Q4, Q13).

    Functions of a prior centred on fitted means vary around what the data taught: to vary as they do may be all that
    the data ask for, and only what it costs counts.
    """
    fit = q.judged
    if fit is None or not is_done(q) or q.kl is None:
        return None
    if fit.gain < LIMIT.collapsed_gain and (q.twin is None or is_collapsed(q)):
        return None  # where nothing was learned that is the news, unless the twin learns no more
    disagreement = (fit.nll_gibbs - fit.nll_bma) / unit(fit.nll_null)
    variance = None if q.has_fitted_means else q.function_variance
    by_variance = variance is not None and variance > LIMIT.saturated_variance
    if not (by_variance or disagreement > LIMIT.saturated_disagreement):
        return None
    evidence = [f"One weight sample costs {fit.nll_gibbs:.3f} nats per example, their mixture {fit.nll_bma:.3f}."]
    if q.function_variance is not None:
        evidence.append(f"Functions vary by {q.function_variance:.2f} of what the prior's do.")
    evidence.extend(explained(layer, q) for layer in drowning_layers(q))
    return Finding("variance_saturated", "probable", tuple(evidence))


def scales_not_learned(q: Quantities) -> Finding | None:
    """Rung 3: most scales of a layer are where they started (Q17): what else is wrong may follow from that."""
    stuck = stuck_layers(q)
    if not stuck or not is_done(q, share=0.5) or is_collapsed(q):
        return None  # a posterior that is the prior is that, wherever its scales started
    found = ", ".join(f"{name} {share:.0%}" for name, share in stuck.items())
    return Finding("scales_not_learned", "certain", (f"Scales within 5 % of their start: {found}.",))


def near_deterministic(q: Quantities) -> Finding | None:
    """Rung 8: declared cold, stopped cold, dead dropout, members that agree, or an R that T = 1 never pays (Q7, Q8)."""
    evidence = []
    if is_declared_cold(q):
        evidence.append(f"kl_weight={q.declared_temperature:g}: the posterior is {q.declared_temperature:g} of Bayes'.")
    if is_stopped_cold(q):
        evidence.append(f"The training ended at T = {q.present_temperature:.3g}: the KL never counted in full.")
    if q.dropout_rates and max(q.dropout_rates) == 0.0 and not q.layers:
        evidence.append("Every dropout layer has the rate 0.")
    elif q.has_noise is False and q.dropout_rates:
        evidence.append("Dropout is dead: repeated predictions of one input are identical.")
    elif q.has_noise is False and q.num_members > 1:
        evidence.append(f"All {q.num_members} members of the ensemble agree on everything.")
    elif q.has_noise is False and q.layers:
        evidence.append("Repeated predictions of one input are identical.")
    excess = q.information_excess
    fit = q.train
    if excess is not None and fit is not None and q.rate is not None and is_done(q) and is_cold(q):
        evidence.append(
            f"The posterior costs R = {q.rate:.3g} nats per example; at an optimum with T = 1 it would be at most "
            f"NLL_prior - NLL_Gibbs = {q.rate - excess:.3g}."
        )
    if not evidence:
        return None
    return Finding(
        "near_deterministic", "certain" if len(evidence) > 1 or excess is None else "probable", tuple(evidence)
    )
