"""What several rules of the ladder ask of recorded quantities; each is a plain function of them."""

from __future__ import annotations

import math

from bdl.diagnostics.quantities import LocalLatents, Quantities, Refit, Trends
from bdl.diagnostics.thresholds import THRESHOLDS as LIMIT


def is_done(q: Quantities, share: float = 1.0) -> bool:
    """Whether the run (or this share of it) is over; some verdicts would be premature before."""
    return bool(q.is_over) or q.planned_epochs is None or q.epoch >= share * q.planned_epochs


def is_declared_one(q: Quantities) -> bool:
    """Whether the user asked for T = 1, or had no way to ask."""
    return q.declared_temperature is None or q.declared_temperature == 1.0


def is_declared_cold(q: Quantities) -> bool:
    """Whether the user asked for next to no KL."""
    return q.declared_temperature is not None and q.declared_temperature < LIMIT.declared_cold


def is_warming_up(q: Quantities) -> bool:
    """Whether the KL of the weights is still on its way to its final weight."""
    if q.temperature is None or q.present_temperature is None or not (q.layers or q.story):
        return False
    return q.present_temperature < (1.0 - LIMIT.count_tolerance) * q.temperature


def is_stopped_cold(q: Quantities) -> bool:
    """Whether the training is over, and ended far below its final T: by early stopping in a warm-up, for example."""
    is_low = (q.present_temperature or 0.0) < LIMIT.temperature_low * (q.temperature or 0.0)
    return bool(q.is_over) and is_warming_up(q) and is_low


def unit(nll_null: float) -> float:
    """What changes of an NLL are measured by: NLL_null of labels; of a density, whose NLL has no zero, one nat."""
    return nll_null if 0.05 < nll_null < 5.0 else 1.0


def is_collapsed(q: Quantities) -> bool:
    """The posterior says next to nothing, and the predictions ignore the inputs (Q6, Q8, Q13)."""
    fit = q.judged
    if fit is None or q.rate is None or q.function_signal is None or not q.layers:
        return False
    says_nothing = q.rate < LIMIT.collapsed_rate * unit(fit.nll_null)
    on_its_way = (q.function_variance or 0.0) > LIMIT.saturated_variance  # what is left of R is on its way out
    ignores_inputs = fit.gain < LIMIT.collapsed_gain and q.function_signal < LIMIT.collapsed_signal
    return ignores_inputs and (says_nothing or on_its_way)


def is_local_collapse(local: LocalLatents) -> bool:
    """Codes or alignments that carry nothing about their example (Q19)."""
    silent = local.kl is not None and local.kl < LIMIT.local_rate
    if local.mutual_information is not None:  # q may equal an informative prior: then the prior carries it
        silent = silent and local.mutual_information < LIMIT.local_rate
    inactive = local.active_units is not None and local.active_units == 0.0
    uniform = local.attention_entropy is not None and local.attention_entropy > LIMIT.uniform_attention
    return silent or inactive or uniform


def is_cold(q: Quantities) -> bool:
    """R far above what an optimum at T = 1 would pay (Q7)."""
    if q.train is None or q.information_excess is None:
        return False
    return q.information_excess > LIMIT.excess_rate * unit(q.train.nll_null)


def is_unpaid(q: Quantities) -> bool:
    """Q7 is violated, and neither frozen scales nor a declared T explain it."""
    return is_cold(q) and not stuck_layers(q) and not is_declared_cold(q) and not is_collapsed(q)


def stuck_layers(q: Quantities) -> dict[str, float]:
    """Share of scales that are where they started, of the layers in which most are (Q17)."""
    return {layer.name: layer.stuck for layer in q.layers if layer.stuck is not None and layer.stuck > LIMIT.stuck}


def is_rising(trend: Trends) -> bool:
    """Whether the ELBO rose over the window, beyond chance (Q15)."""
    return trend.elbo_p is not None and trend.elbo_p < LIMIT.significance and (trend.elbo_change or 0.0) > 0.0


def still_learns(q: Quantities) -> bool:
    """Whether the training NLL still falls by much, and the fall is news (Q15).

    It is none where the twin is reached, or where the validation NLL does not fall with it; where that is not known, a
    twin must be ahead beyond the errors.
    """
    trend, fit = q.trends, q.train or q.validation
    if trend is None or fit is None or trend.nll_p is None or trend.nll_p >= LIMIT.significance:
        return False
    material = LIMIT.material_nll_fall * unit(fit.nll_null)
    if (trend.val_nll_rise or 0.0) >= LIMIT.overfit_rise * unit(fit.nll_null):
        return False
    is_news = q.twin_gap is None or q.twin_gap > LIMIT.twin_reached
    if trend.val_nll_p is not None:
        is_news = is_news and trend.val_nll_p < LIMIT.significance and -(trend.val_nll_change or 0.0) > material
    elif q.twin_gap is not None:
        is_news = is_behind(q, LIMIT.twin_reached)
    return is_news and -(trend.nll_change or 0.0) > material


def accuracy_gap(q: Quantities) -> float:
    """Accuracy of the twin above the network's; 0 where one is not known."""
    fit = q.judged
    if fit is None or q.twin is None or fit.accuracy is None or q.twin.accuracy is None:
        return 0.0
    return q.twin.accuracy - fit.accuracy


def is_less_accurate(q: Quantities, gap: float) -> bool:
    """Whether the network is less accurate than its twin, by so much and by two standard errors (Q14)."""
    fit = q.judged
    if fit is None or q.twin is None:
        return False
    error = math.hypot(fit.accuracy_error or 0.0, q.twin.accuracy_error or 0.0)
    return accuracy_gap(q) > max(gap, LIMIT.errors * error)


def is_behind(q: Quantities, gap: float) -> bool:
    """Whether the network gains less than its twin, by so much and by two standard errors (Q14)."""
    fit, found = q.judged, q.twin_gap
    return fit is not None and found is not None and found > max(gap, LIMIT.errors * fit.gain_error)


def forgot(q: Quantities) -> bool:
    """The accuracy fell from its best, and the KL with it (Q15).

    Either the ELBO rose by the smaller KL, or the network unlearned its training data while the KL fell: by then the
    ELBO may stand still, or fall.
    """
    fit, trend = q.judged, q.trends
    if fit is None or trend is None or trend.accuracy_drop is None:
        return False
    fell = trend.accuracy_drop > max(LIMIT.accuracy_drop, LIMIT.errors * (fit.accuracy_error or 0.0))
    bought = is_rising(trend) and (trend.kappa or 0.0) > LIMIT.kappa
    rise = trend.nll_rise or 0.0
    is_risen = rise > LIMIT.material_nll_fall * unit(fit.nll_null)
    unlearned = is_risen and (trend.nll_rise_errors or 0.0) > LIMIT.errors and (trend.kl_fall or 0.0) > rise
    return fell and (bought or unlearned)


def is_over_pruned(q: Quantities) -> bool:
    """Most units of a layer carry noise, and the twin is ahead (Q12, Q14)."""
    if not pruned_layers(q) or not is_done(q) or is_collapsed(q):
        return False
    return is_behind(q, LIMIT.pruned_gap) and is_less_accurate(q, 0.0)


def pruned_layers(q: Quantities) -> dict[str, float]:
    """Share of active units of the layers in which most are noise (Q12)."""
    return {
        layer.name: layer.active_units
        for layer in q.layers
        if layer.active_units is not None and layer.active_units < LIMIT.active_units
    }


def refit_cause(q: Quantities) -> tuple[Refit, float] | None:
    """The one change that gained most ELBO over the control, and its gain in nats per example (Q20).

    None where none gained more than two standard errors of the difference and a material share of NLL_null.

    Example:
    >>> control, other = Refit("nothing", "20 more epochs", -2.0, 0.01), Refit("prior", "the prior ...", -0.5, 0.01)
    >>> from bdl.diagnostics import Fit
    >>> fit = Fit(100, nll_null=2.3, nll_gibbs=2.0, nll_bma=2.0)
    >>> refit_cause(Quantities(train=fit, refits=(control, other)))[0].change
    'prior'
    """
    if len(q.refits) < 2 or q.train is None:
        return None
    control = q.refits[0]
    best = max(q.refits[1:], key=lambda each: each.elbo)
    gain, error = best.elbo - control.elbo, math.hypot(best.elbo_error, control.elbo_error)
    is_material = gain > max(LIMIT.errors * error, LIMIT.refit_gain * unit(q.train.nll_null))
    return (best, gain) if is_material else None
