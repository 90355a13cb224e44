"""Rules about what was learned: is there a signal, was there time, and did the KL cost it (rungs 2, 4 to 6 and 9)."""

from __future__ import annotations

from bdl.diagnostics.finding import Finding
from bdl.diagnostics.noise import broad_layers, drowning_layers, explained, is_drowned
from bdl.diagnostics.quantities import Fit, Quantities, Trends
from bdl.diagnostics.symptoms import (
    accuracy_gap,
    forgot,
    is_behind,
    is_collapsed,
    is_done,
    is_less_accurate,
    is_local_collapse,
    is_over_pruned,
    is_rising,
    is_unpaid,
    is_warming_up,
    pruned_layers,
    still_learns,
    unit,
)
from bdl.diagnostics.thresholds import THRESHOLDS as LIMIT


def no_signal(q: Quantities) -> Finding | None:
    """Rung 2: the twin, trained without any KL, gains nothing either: there is nothing to underfit (Q14)."""
    fit, twin = q.judged, q.twin
    if fit is None or twin is None or fit.gain >= LIMIT.collapsed_gain:
        return None
    if twin.gain >= LIMIT.collapsed_gain:
        return None
    is_sure = twin.gain + LIMIT.errors * twin.gain_error < LIMIT.collapsed_gain
    return Finding(
        "no_signal",
        "probable" if is_sure else "possible",
        (
            f"The deterministic twin gains {twin.gain:.3f} ± {twin.gain_error:.3f} at its best epoch, this network "
            f"{fit.gain:.3f} ± {fit.gain_error:.3f}: the labels do not follow from the inputs as far as this "
            "architecture can tell in this budget. A posterior that stays at its prior is then right.",
        ),
    )


def still_training(q: Quantities) -> Finding | None:
    """Rung 2: the ELBO still rises and the NLL still falls, or the prior still beats the posterior (Q7, Q15)."""
    trend, fit = q.trends, q.train or q.validation
    if fit is None or not is_done(q):
        return None
    if trend is None or (trend.elbo_p is None and trend.nll_p is None):
        return _hardly_begun(q, fit, trend)
    is_elbo_known = trend.elbo_p is not None  # not where a KL cannot be read: then the NLL alone says it
    if (is_elbo_known and not is_rising(trend)) or forgot(q):
        return None  # what rises while the network forgets is not on its way to anything better
    nats = unit(fit.nll_null)
    dominated = q.rate is not None and fit.gain < LIMIT.collapsed_gain and q.rate > LIMIT.dominated_rate * nats
    dominated = dominated and not is_collapsed(q)  # what is left of R is on its way out, and buys nothing
    if not (still_learns(q) or dominated or is_unpaid(q)):
        return None
    moved = [f"the ELBO rose by {trend.elbo_change:.3g} (p = {trend.elbo_p:.2g})"] if is_elbo_known else []
    if trend.nll_p is not None:
        moved.append(f"the NLL changed by {trend.nll_change:+.3g} (p = {trend.nll_p:.2g})")
    evidence = [f"Over the last {trend.window} recorded epochs, in nats per example, {' and '.join(moved)}."]
    if is_unpaid(q):
        evidence.append(f"R = {q.rate:.3g} nats per example is more than an optimum at T = 1 would pay.")
    if dominated:
        evidence.append(f"The KL still costs {q.rate:.3g} nats per example while the data have taught nothing yet.")
    is_known = q.twin is not None or trend.val_nll_p is not None
    return Finding("still_training", "probable" if is_known else "possible", tuple(evidence))


def _hardly_begun(q: Quantities, fit: Fit, trend: Trends | None) -> Finding | None:
    """Of a run too short for a trend, or without a record: what says that it was not over."""
    evidence = []
    if is_unpaid(q) and (q.temperature is None or q.temperature >= LIMIT.temperature_low):
        evidence.append(
            f"R = {q.rate:.3g} nats per example is more than an optimum at T = 1 would pay, and no trend says that the "
            "ELBO has come to rest."
        )
    fall = -(trend.nll_change or 0.0) if trend is not None else 0.0
    if trend is not None and fall > LIMIT.material_nll_fall * unit(fit.nll_null):
        evidence.append(
            f"Only {trend.window} epochs were recorded, and the last of them took {fall:.3g} nats per example off "
            "the NLL."
        )
    return Finding("still_training", "possible", tuple(evidence)) if evidence else None


def underfitting(q: Quantities) -> Finding | None:
    """Rung 4: the KL was saved, and the predictions pay for it: in training (Q15), or in a layer's noise (Q14, Q21)."""
    fit = q.judged
    if fit is None or q.kl is None:
        return None
    has_forgotten = forgot(q)
    is_sure = fit.gain + LIMIT.errors * fit.gain_error < LIMIT.collapsed_gain
    if is_collapsed(q) and (is_sure or not has_forgotten):
        return None  # which has a name of its own; of a network that forgot it must be beyond the error
    has_drowned = is_drowned(q)
    if q.twin is None and not has_forgotten:
        return None
    if q.twin is not None and not has_drowned:
        if has_forgotten and not is_behind(q, LIMIT.drowned_gap):
            return None  # the twin reaches no more
        if not has_forgotten and not _is_outdone_without_a_cause(q):
            return None
    evidence = [explained(layer, q) for layer in drowning_layers(q)] if has_drowned else []
    if has_forgotten:
        evidence.append(_how_it_forgot(q))
    if q.twin is not None:
        evidence.append(_behind_the_twin(q.twin, fit))
    return Finding("underfitting", "certain" if q.twin is not None and has_forgotten else "probable", tuple(evidence))


def _is_outdone_without_a_cause(q: Quantities) -> bool:
    """Behind the twin by much in a recorded run; units that never took part are a cause of their own, named below."""
    is_outdone = is_behind(q, LIMIT.twin_gap) and is_less_accurate(q, LIMIT.accuracy_gap)
    return is_outdone and q.trends is not None and not pruned_layers(q)


def _how_it_forgot(q: Quantities) -> str:
    trend = q.trends
    assert trend is not None
    said = f"Accuracy fell by {trend.accuracy_drop:.3f} from its best"
    if is_rising(trend) and trend.kappa is not None:
        return (
            f"{said}, while the ELBO rose by {trend.elbo_change:.3g} nats per example over the last {trend.window} "
            f"recorded epochs, {trend.kappa:.0%} of it by a smaller KL."
        )
    return (
        f"{said}; the training NLL rose by {trend.nll_rise:.3f} nats per example from its best, and KL / N fell by "
        f"{trend.kl_fall:.3g} since."
    )


def _behind_the_twin(twin: Fit, fit: Fit) -> str:
    return (
        f"The deterministic twin gains {twin.gain:.3f} (accuracy {twin.accuracy:.3f}), this network {fit.gain:.3f} ± "
        f"{fit.gain_error:.3f} (accuracy {fit.accuracy:.3f})."
    )


def collapsed(q: Quantities) -> Finding | None:
    """Rung 5: the posterior is the prior and the mean ignores the inputs (Q6, Q8, Q13), or the codes do (Q19)."""
    if q.local is not None and is_local_collapse(q.local) and is_done(q, share=LIMIT.local_share):
        local = q.local
        return Finding(
            "collapsed",
            "certain",
            (
                f"Local latent variables carry {local.kl or 0.0:.3g} nats per example"
                + ("" if local.active_units is None else f", {local.active_units:.0%} of the code units are active")
                + (
                    ""
                    if local.attention_entropy is None
                    else f", attention entropy is {local.attention_entropy:.3f} of uniform"
                )
                + ".",
            ),
        )
    if not is_collapsed(q):
        return None
    fit = q.judged
    assert fit is not None
    evidence = [
        f"Data gain G = {fit.gain:.3f} ± {fit.gain_error:.3f}; the NLL {fit.nll_bma:.3f} is that of a model that "
        f"ignores x ({fit.nll_null:.3f}).",
        f"The posterior says R = {q.rate:.3g} nats per example and the predictions vary with x by "
        f"{q.function_signal:.3f} of what the labels do.",
        *(explained(layer, q) for layer in broad_layers(q)),
    ]
    twin = q.twin
    if twin is not None:
        evidence.append(_behind_the_twin(twin, fit))
    is_ahead = twin is not None and twin.gain - LIMIT.errors * twin.gain_error >= LIMIT.collapsed_gain
    has_signal = is_ahead or forgot(q)
    if not has_signal:
        evidence.append(
            'Data without a signal end like this as well: diagnose(..., twin="auto") on enough validation_data tells '
            "one from the other."
        )
    return Finding("collapsed", "certain" if has_signal else "probable", tuple(evidence))


def over_pruned(q: Quantities) -> Finding | None:
    """Rung 6: most units of a layer are noise, and it costs (Q12, Q14)."""
    fit = q.judged
    if not is_over_pruned(q) or fit is None or q.twin is None:
        return None
    found = ", ".join(f"{name} {share:.0%}" for name, share in pruned_layers(q).items())
    return Finding(
        "over_pruned",
        "probable",
        (f"Active units: {found}.", f"The twin gains {q.twin.gain:.3f}, this network {fit.gain:.3f}."),
    )


def overfitting(q: Quantities) -> Finding | None:
    """Rung 9: the training NLL falls while the validation NLL has risen from its best (Q15).

    Recorded validation NLLs are those of one weight sample per epoch. A rise that a mixture of samples does not show
    was noise, not overfitting, and the NLL measured at the end must confirm the record. A small rise is enough where
    the twin, at its best epoch, is ahead.
    """
    trend, fit = q.trends, q.validation
    if trend is None or fit is None or trend.val_nll_rise is None or trend.val_nll_rise_errors is None:
        return None
    if is_warming_up(q):
        return None  # the KL that will mend it does not count in full yet
    noise = fit.nll_gibbs - fit.nll_bma
    rise = trend.val_nll_rise
    if trend.val_nll_best is not None:
        rise = min(rise, fit.nll_gibbs - trend.val_nll_best)
    share = LIMIT.material_nll_fall if is_behind(q, LIMIT.drowned_gap) else LIMIT.overfit_rise
    is_material = rise - noise > share * unit(fit.nll_null) and trend.val_nll_rise_errors > LIMIT.errors
    if not is_material or (trend.nll_change or 0.0) > 0.0:
        return None
    return Finding(
        "overfitting",
        "probable",
        (
            f"The validation NLL is {rise:.3f} nats above its best ({trend.val_nll_rise:.3f} in the record, "
            f"{trend.val_nll_rise_errors:.1f} standard errors) while the training NLL changed by "
            f"{trend.nll_change or 0.0:+.3g}; weight noise accounts for {noise:.3f} of it.",
        ),
    )


def outdone(q: Quantities) -> Finding | None:
    """Rung 9: nothing more specific was found, and the twin is more accurate beyond the errors of both (Q14)."""
    fit = q.judged
    if fit is None or q.kl is None or q.twin is None or not is_done(q):
        return None
    if not is_less_accurate(q, LIMIT.accuracy_alone):
        return None
    evidence = [_behind_the_twin(q.twin, fit), *(explained(layer, q) for layer in drowning_layers(q))]
    return Finding("underfitting", "probable", (f"Accuracy is {accuracy_gap(q):.3f} below the twin's.", *evidence))
