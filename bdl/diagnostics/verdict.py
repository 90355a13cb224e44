"""The verdict ladder: one small rule a verdict, plain functions of recorded quantities; the first that fires decides.

A rule returns a `Finding` with its evidence in numbers, or None. It fires on what was measured only, never on what is
missing, and does not fire inside two standard errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bdl.diagnostics.noise import broad_layers, costly_layers, drowning_layers, explained, is_drowned
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.symptoms import (
    accuracy_gap,
    forgot,
    is_behind,
    is_cold,
    is_collapsed,
    is_declared_cold,
    is_declared_one,
    is_done,
    is_local_collapse,
    is_unpaid,
    is_warming_up,
    pruned_layers,
    unit,
)
from bdl.diagnostics.thresholds import THRESHOLDS as LIMIT

VERDICTS = (
    "diverged",
    "accounting_error",
    "mis_scaled_kl",
    "still_training",
    "underfitting",
    "collapsed",
    "over_pruned",
    "variance_saturated",
    "scales_not_learned",
    "near_deterministic",
    "overfitting",
    "healthy",
    "inconclusive",
)
HOPELESS = ("diverged", "accounting_error", "mis_scaled_kl", "collapsed")
"""Verdicts on which going on with the same run is a waste."""


@dataclass(frozen=True)
class Finding:
    """A verdict with what it rests on.

    Args:
        verdict: One of `VERDICTS`.
        confidence: `"certain"`, `"probable"` or `"possible"`.
        evidence: Sentences with numbers.
    """

    verdict: str
    confidence: str
    evidence: tuple[str, ...]


Rule = Callable[[Quantities], Finding | None]


def judge(quantities: Quantities) -> Finding:
    """The verdict on a run.

    Example:
    >>> judge(Quantities(finite=False)).verdict
    'diverged'
    >>> judge(Quantities(temperature=1000.0)).verdict
    'mis_scaled_kl'
    """
    finding = next((found for rule in RULES if (found := rule(quantities)) is not None), None)
    finding = healthy(quantities) if finding is None else finding
    if not is_warming_up(quantities):
        return finding
    return replace(finding, evidence=(*finding.evidence, _unfinished(quantities)))


def _unfinished(q: Quantities) -> str:
    """What it means that T is not yet where it should end."""
    return (
        f"T has come to {q.present_temperature:.3g}, and should end at {q.temperature:.3g}: the KL does not count in "
        "full yet. A training that ends here, by early stopping for example, leaves a posterior that is surer than the "
        "data allow: stop only after the warm-up, or train with kl_weight=1.0."
    )


def diverged(q: Quantities) -> Finding | None:
    """Rung 0: loss or weights are no numbers."""
    if q.finite:
        return None
    return Finding("diverged", "certain", (f"A loss or weight is not finite at epoch {q.epoch}.",))


def accounting_error(q: Quantities) -> Finding | None:
    """Rung 0: the KL is missing, or a layer's is not counted once (Q2)."""
    counts = {layer.name: layer.counted for layer in q.layers if layer.counted is not None}
    missing = sorted(name for name, count in counts.items() if count == 0.0)
    if missing or (q.temperature == 0.0 and q.declared_temperature != 0.0):
        return Finding(
            "accounting_error",
            "certain",
            (f"The compiled loss does not contain the KL of {', '.join(missing) or 'any layer'}.",),
        )
    wrong = {
        layer.name: layer.counted
        for layer in q.layers
        if layer.counted is not None
        and abs(layer.counted - 1.0) > max(LIMIT.count_tolerance, LIMIT.count_errors * (layer.counted_error or 0.0))
    }
    if wrong:
        found = ", ".join(f"{name} {count:.3g} times" for name, count in wrong.items())
        return Finding("accounting_error", "certain", (f"The loss counts the KL of some layers differently: {found}.",))
    whole = round(q.temperature or 0.0)
    is_multiple = 2 <= whole <= 4 and abs(q.temperature / whole - 1.0) < LIMIT.count_tolerance  # type: ignore[operator]
    if is_multiple and q.declared_temperature != q.temperature and is_declared_one(q):
        return Finding(
            "accounting_error",
            "certain",
            (f"The loss contains every layer's KL {whole} times (measured T = {q.temperature:.3f}).",),
        )
    return None


def mis_scaled_kl(q: Quantities) -> Finding | None:
    """Rung 1: the effective temperature is not about 1 (Q1)."""
    if q.temperature is None or LIMIT.temperature_low <= q.temperature <= LIMIT.temperature_high:
        return None
    if is_declared_cold(q):
        return None
    evidence = [f"The compiled loss weights the KL with T = {q.temperature:.4g}; Bayes is T = 1."]
    if q.num_examples and abs(q.temperature / q.num_examples - 1.0) < LIMIT.count_tolerance:
        evidence.append(f"T equals the number of training examples, {q.num_examples}: the KL is not divided by N.")
    if q.declared_temperature is not None and q.declared_temperature != 1.0:
        evidence.append(f"kl_weight={q.declared_temperature:g} asks for it.")
    return Finding("mis_scaled_kl", "certain", tuple(evidence))


def still_training(q: Quantities) -> Finding | None:
    """Rung 2: the ELBO still rises and the NLL still falls, or the prior still beats the posterior (Q7, Q15)."""
    trend, fit = q.trends, q.train or q.validation
    if trend is None or fit is None or not is_done(q):
        return None
    if trend.elbo_p is None or trend.elbo_p >= LIMIT.significance or (trend.elbo_change or 0.0) <= 0.0:
        return None
    fall = -(trend.nll_change or 0.0)
    is_falling = trend.nll_p is not None and trend.nll_p < LIMIT.significance
    nats = unit(fit.nll_null)
    # A training NLL that falls is no news where the twin is reached, or where validation got worse.
    is_news = q.twin_gap is None or q.twin_gap > LIMIT.twin_reached
    is_useful = (trend.val_nll_rise or 0.0) < LIMIT.overfit_rise * nats
    still_learns = is_falling and is_news and is_useful and fall > LIMIT.material_nll_fall * nats
    dominated = q.rate is not None and fit.gain < LIMIT.collapsed_gain and q.rate > LIMIT.dominated_rate * nats
    if not (still_learns or dominated or is_unpaid(q)):
        return None
    evidence = [
        f"Over the last {trend.window} recorded epochs the ELBO rose by {trend.elbo_change:.3g} nats per example "
        f"(p = {trend.elbo_p:.2g}) and the NLL changed by {trend.nll_change or 0.0:+.3g}."
    ]
    if is_unpaid(q):
        evidence.append(f"R = {q.rate:.3g} nats per example is more than an optimum at T = 1 would pay.")
    if dominated:
        evidence.append(f"The KL still costs {q.rate:.3g} nats per example while the data have taught nothing yet.")
    return Finding("still_training", "probable", tuple(evidence))


def underfitting(q: Quantities) -> Finding | None:
    """Rung 3: the KL was saved, and the predictions pay for it: in training (Q15), or in a layer's noise (Q14, Q21)."""
    fit, trend = q.judged, q.trends
    if fit is None or q.kl is None or is_collapsed(q):
        return None
    has_forgotten = forgot(q)
    has_drowned = is_drowned(q)
    if q.twin is None and not has_forgotten:
        return None
    if q.twin is not None and not has_drowned:
        less_accurate = accuracy_gap(q) > max(LIMIT.accuracy_gap, LIMIT.errors * (fit.accuracy_error or 0.0))
        if not (is_behind(q, LIMIT.twin_gap) and less_accurate and trend is not None):
            return None
        if pruned_layers(q) and not has_forgotten:
            return None  # units that never took part are a cause of their own, named below
    evidence = [explained(layer, q) for layer in drowning_layers(q)] if has_drowned else []
    if has_forgotten and trend is not None:
        evidence.append(
            f"The ELBO rose by {trend.elbo_change:.3g} nats per example over the last {trend.window} recorded epochs, "
            f"{trend.kappa:.0%} of it by a smaller KL, while accuracy fell by {trend.accuracy_drop:.3f} from its best."
        )
    if q.twin is not None:
        evidence.append(
            f"The deterministic twin gains {q.twin.gain:.3f} (accuracy {q.twin.accuracy:.3f}), this network "
            f"{fit.gain:.3f} ± {fit.gain_error:.3f} (accuracy {fit.accuracy:.3f})."
        )
    return Finding("underfitting", "certain" if q.twin is not None and has_forgotten else "probable", tuple(evidence))


def collapsed(q: Quantities) -> Finding | None:
    """Rung 4: the posterior is the prior and the mean ignores the inputs (Q6, Q8, Q13), or the codes do (Q19)."""
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
    return Finding(
        "collapsed",
        "certain",
        (
            f"Data gain G = {fit.gain:.3f} ± {fit.gain_error:.3f}; the NLL {fit.nll_bma:.3f} is that of a model that "
            f"ignores x ({fit.nll_null:.3f}).",
            f"The posterior says R = {q.rate:.3g} nats per example and the predictions vary with x by "
            f"{q.function_signal:.3f} of what the labels do.",
            *(explained(layer, q) for layer in broad_layers(q)),
        ),
    )


def over_pruned(q: Quantities) -> Finding | None:
    """Rung 5: most units of a layer are noise, and it costs (Q12, Q14)."""
    dead, fit = pruned_layers(q), q.judged
    if not dead or fit is None or q.twin is None or not is_done(q) or is_collapsed(q):
        return None
    if not is_behind(q, LIMIT.pruned_gap) or accuracy_gap(q) <= LIMIT.errors * (fit.accuracy_error or 0.0):
        return None
    found = ", ".join(f"{name} {share:.0%}" for name, share in dead.items())
    return Finding(
        "over_pruned",
        "probable",
        (f"Active units: {found}.", f"The twin gains {q.twin.gain:.3f}, this network {fit.gain:.3f}."),
    )


def variance_saturated(q: Quantities) -> Finding | None:
    """Rung 6: the mean fits, but functions vary as if there were no data (Q4, Q13).

    Functions of a prior centred on fitted means vary around what the data taught: to vary as they do may be all that
    the data ask for, and only what it costs counts.
    """
    fit = q.judged
    if fit is None or fit.gain < LIMIT.collapsed_gain or not is_done(q) or q.kl is None:
        return None
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
    """Rung 7: most scales of a layer are where they started (Q17)."""
    stuck = {layer.name: layer.stuck for layer in q.layers if layer.stuck is not None and layer.stuck > LIMIT.stuck}
    if not stuck or not is_done(q, share=0.5):
        return None
    found = ", ".join(f"{name} {share:.0%}" for name, share in stuck.items())
    return Finding("scales_not_learned", "certain", (f"Scales within 5 % of their start: {found}.",))


def near_deterministic(q: Quantities) -> Finding | None:
    """Rung 8: declared cold, dead dropout, members that agree, or an R that T = 1 would never pay (Q7, Q8)."""
    evidence = []
    if is_declared_cold(q):
        evidence.append(f"kl_weight={q.declared_temperature:g}: the posterior is {q.declared_temperature:g} of Bayes'.")
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


def overfitting(q: Quantities) -> Finding | None:
    """Rung 9: the training NLL falls while the validation NLL has risen from its best (Q15).

    Recorded validation NLLs are those of one weight sample: what their mixture takes back was noise, not overfitting.
    """
    trend, fit = q.trends, q.validation
    if trend is None or fit is None or trend.val_nll_rise is None or trend.val_nll_rise_errors is None:
        return None
    if is_warming_up(q):
        return None  # the KL that will mend it does not count in full yet
    rise = trend.val_nll_rise - (fit.nll_gibbs - fit.nll_bma)
    is_material = rise > LIMIT.overfit_rise * unit(fit.nll_null) and trend.val_nll_rise_errors > LIMIT.errors
    if not is_material or (trend.nll_change or 0.0) > 0.0:
        return None
    return Finding(
        "overfitting",
        "probable",
        (
            f"The validation NLL is {trend.val_nll_rise:.3f} nats above its best ({trend.val_nll_rise_errors:.1f} "
            f"standard errors) while the training NLL changed by {trend.nll_change or 0.0:+.3g}; weight noise accounts "
            f"for {fit.nll_gibbs - fit.nll_bma:.3f} of it.",
        ),
    )


def inconclusive(q: Quantities) -> Finding | None:
    """Rung 10: something that would decide is missing."""
    if q.judged is None:
        return Finding(
            "inconclusive", "certain", ("No data were given: pass x and y (or data=) to judge the predictions.",)
        )
    is_plain = not q.layers and not q.dropout_rates and q.num_members == 1 and q.local is None
    if is_plain and not q.has_noise and q.kl is None:
        return Finding(
            "inconclusive",
            "certain",
            ("The model has no variational layer, no dropout that stays on, and no members: no uncertainty to judge.",),
        )
    fit = q.judged
    if q.twin is None and (broad := broad_layers(q)):
        return Finding(
            "inconclusive",
            "possible",
            (
                *(explained(layer, q) for layer in broad),
                f"The data gain is {fit.gain:.3f} ± {fit.gain_error:.3f}.",
                'Whether the network underfits for such noise, diagnose(..., twin="auto") decides.',
            ),
        )
    if q.twin is None and fit.gain + LIMIT.errors * fit.gain_error < LIMIT.collapsed_gain and is_done(q):
        return Finding(
            "inconclusive",
            "possible",
            (
                f"The data gain {fit.gain:.3f} ± {fit.gain_error:.3f} is next to nothing. Either the data hold no "
                'signal or the network missed it: diagnose(..., twin="auto") decides.',
            ),
        )
    return None


def healthy(q: Quantities) -> Finding:
    """Nothing was found."""
    fit = q.judged
    assert fit is not None  # `inconclusive` fires without it
    accuracy = "" if fit.accuracy is None else f", accuracy {fit.accuracy:.3f}"
    evidence = [
        f"Data gain G = {fit.gain:.3f} ± {fit.gain_error:.3f}, NLL {fit.nll_bma:.3f} nats per example{accuracy}."
    ]
    if q.twin is not None:
        evidence.append(f"The deterministic twin: gain {q.twin.gain:.3f}, NLL {q.twin.nll_bma:.3f}.")
    else:
        evidence.extend(
            f'{explained(layer, q)} Whether the network underfits for it, diagnose(..., twin="auto") decides.'
            for layer in costly_layers(q)
        )
    if q.temperature is not None:
        evidence.append(f"Effective temperature T = {q.temperature:.3g}.")
    if q.has_fitted_means and q.function_variance is not None:
        evidence.append(
            f"The means are point estimates (variational EM); functions vary around them by {q.function_variance:.2f} "
            "of what the prior's do."
        )
    sure = q.validation is not None and (q.twin is not None or fit.gain > LIMIT.collapsed_gain)
    sure = sure and not is_warming_up(q)
    return Finding("healthy", "probable" if sure else "possible", tuple(evidence))


RULES: tuple[Rule, ...] = (
    diverged,
    accounting_error,
    mis_scaled_kl,
    still_training,
    underfitting,
    collapsed,
    over_pruned,
    variance_saturated,
    scales_not_learned,
    near_deterministic,
    overfitting,
    inconclusive,
)
