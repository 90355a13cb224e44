"""The verdict ladder: one small rule a verdict, plain functions of recorded quantities; the first that fires decides.

A rule returns a `Finding` with its evidence in numbers, or None. It fires on what was measured only, never on what is
missing, and does not fire inside two standard errors. Where G lies within its error of the line below which nothing was
learned, both sides are judged: unless they agree, the verdict is `inconclusive` and names them. The callback, a record
and a model are judged by this one function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from bdl.diagnostics.finding import Finding
from bdl.diagnostics.learning_rules import (
    collapsed,
    no_signal,
    outdone,
    over_pruned,
    overfitting,
    still_training,
    underfitting,
)
from bdl.diagnostics.loss_rules import accounting_error, diverged, mis_scaled_kl
from bdl.diagnostics.noise import broad_layers, costly_layers, explained
from bdl.diagnostics.noise_rules import near_deterministic, scales_not_learned, variance_saturated
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.story_rules import (
    story_collapsed,
    story_healthy,
    story_inconclusive,
    story_near_deterministic,
    story_still_training,
)
from bdl.diagnostics.symptoms import is_done, is_warming_up
from bdl.diagnostics.thresholds import THRESHOLDS as LIMIT

Rule = Callable[[Quantities], Finding | None]


def judge(quantities: Quantities) -> Finding:
    """The verdict on a run.

    Example:
    >>> judge(Quantities(finite=False)).verdict
    'diverged'
    >>> judge(Quantities(temperature=1000.0)).verdict
    'mis_scaled_kl'
    """
    finding = _first(quantities)
    other_side = _across(quantities)
    if other_side is not None and (other := _first(other_side)).verdict != finding.verdict:
        finding = _undecided(quantities, finding, other)
    evidence = [*finding.evidence, *(sentence for sentence in quantities.unread or ())]
    noise = quantities.gradient_noise
    if noise is not None and noise.is_clear and quantities.finite:
        evidence.append(str(noise))
    if is_warming_up(quantities):
        evidence.append(_unfinished(quantities))
    return replace(finding, evidence=tuple(evidence))


def _first(q: Quantities) -> Finding:
    """What the first rule says that fires."""
    rules, otherwise = (RULES, healthy) if q.story is None else (STORY_RULES, story_healthy)
    finding = next((found for rule in rules if (found := rule(q)) is not None), None)
    return otherwise(q) if finding is None else finding


def _across(q: Quantities) -> Quantities | None:
    """The same quantities with G on the other side of `collapsed_gain`, where its error reaches that; else None."""
    fit, limit = q.judged, LIMIT.collapsed_gain
    if fit is None or not abs(fit.gain - limit) <= LIMIT.errors * fit.gain_error:
        return None
    moved = replace(fit, gain=limit if fit.gain < limit else math.nextafter(limit, -math.inf))
    return replace(q, validation=moved) if q.validation is not None else replace(q, train=moved)


def _undecided(q: Quantities, finding: Finding, other: Finding) -> Finding:
    """Two verdicts between which G does not decide."""
    fit = q.judged
    assert fit is not None
    below, above = (finding, other) if fit.gain < LIMIT.collapsed_gain else (other, finding)
    found = (
        f"Data gain G = {fit.gain:.4f} ± {fit.gain_error:.4f} is within its error of {LIMIT.collapsed_gain}: the "
        f"verdict is {below.verdict} below it and {above.verdict} above. More examples to measure on, and what is "
        'missing of record=, validation_data= and twin="auto", would decide.'
    )
    return Finding("inconclusive", "possible", (found, *finding.evidence))


def _unfinished(q: Quantities) -> str:
    """What it means that T is not yet where it should end."""
    return (
        f"T has come to {q.present_temperature:.3g}, and should end at {q.temperature:.3g}: the KL does not count in "
        "full yet. A training that ends here, by early stopping for example, leaves a posterior that is surer than the "
        "data allow: stop only after the warm-up, or train with kl_weight=1.0."
    )


def inconclusive(q: Quantities) -> Finding | None:
    """Rung 10: something that would decide is missing."""
    if q.judged is None:
        return Finding("inconclusive", "certain", (_why_unmeasured(q),))
    is_plain = not q.layers and not q.dropout_rates and q.num_members == 1 and q.local is None
    if is_plain and not q.has_noise and q.kl is None and not q.unread:
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
    if q.twin is None and fit.gain < LIMIT.collapsed_gain and is_done(q):
        return Finding(
            "inconclusive",
            "possible",
            (
                f"The data gain {fit.gain:.3f} ± {fit.gain_error:.3f} is next to nothing. Either the data hold no "
                'signal or the network missed it: diagnose(..., twin="auto") decides.',
            ),
        )
    return None


def _why_unmeasured(q: Quantities) -> str:
    if q.has_data:
        return (
            "Data were given, but nothing was measured on them: the training was too short to pay for it (max_cost), "
            "or ended before. diagnose(model, x, y) measures now."
        )
    return "No data were given: pass x and y (or data=) to judge the predictions."


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
        if q.trends is None:
            evidence.append(
                "Neither a record nor a twin says what more training, or the network without its KL, would reach: "
                'record= and twin="auto" do.'
            )
    if q.temperature is not None:
        evidence.append(f"Effective temperature T = {q.temperature:.3g}.")
    if q.has_fitted_means and q.function_variance is not None:
        evidence.append(
            f"The means are point estimates (variational EM); functions vary around them by {q.function_variance:.2f} "
            "of what the prior's do."
        )
    has_learned = fit.gain > LIMIT.collapsed_gain and q.trends is not None
    sure = q.validation is not None and (q.twin is not None or has_learned)
    sure = sure and not is_warming_up(q) and not q.unread
    return Finding("healthy", "probable" if sure else "possible", tuple(evidence))


RULES: tuple[Rule, ...] = (
    diverged,
    accounting_error,
    mis_scaled_kl,
    no_signal,
    still_training,
    scales_not_learned,
    underfitting,
    collapsed,
    over_pruned,
    variance_saturated,
    near_deterministic,
    overfitting,
    outdone,
    inconclusive,
)

STORY_RULES: tuple[Rule, ...] = (
    diverged,
    mis_scaled_kl,
    story_still_training,
    story_collapsed,
    story_near_deterministic,
    story_inconclusive,
)
"""Rules that judge a model of a story, which has no labels."""
