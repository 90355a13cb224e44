"""Rules about a model of a story: the same verdicts, where they apply, from T, sites, iterates and k-hat.

Gain, accuracy, a twin, activity of units and scales at their start are of networks with labels; a story has none.
"""

from __future__ import annotations

from typing import Any

from bdl.diagnostics.finding import Finding
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.story_health import StoryHealth
from bdl.diagnostics.symptoms import is_declared_cold, is_done
from bdl.diagnostics.thresholds import THRESHOLDS as LIMIT

NOT_APPLICABLE = (
    "Not applicable to a story, and not judged: data gain and accuracy, a twin, overfitting, idle units, scales at "
    "their start."
)


LEAST_ITERATES = 20
"""Epochs from which the movement of guides is judged: two windows of five each in their second half."""


def story_still_training(q: Quantities) -> Finding | None:
    """Rung 2: the guides of the global sites still move (Q22)."""
    story = q.story
    if story is None or story.r_hat is None or story.moved is None or not is_done(q):
        return None
    if story.r_hat <= LIMIT.iterates or story.moved <= LIMIT.moved:
        return None
    return Finding("still_training", "probable", (_how_it_moved(story),))


def story_collapsed(q: Quantities) -> Finding | None:
    """Rung 4: local sites carry nothing about their rows (Q19)."""
    if q.story is None or not q.story.silent or not is_done(q, share=LIMIT.local_share):
        return None
    found = ", ".join(f"{site.name} {site.kl:.2g}" for site in q.story.silent)
    return Finding(
        "collapsed",
        "probable",
        (
            f"KL per row of local sites, in nats: {found}. The guide gives every row its prior: these values say "
            "nothing about their rows.",
            "Rows that tell nothing about such a value end like this as well; then the site can be left out.",
        ),
    )


def story_near_deterministic(q: Quantities) -> Finding | None:
    """Rung 8: declared cold."""
    if q.story is None or not is_declared_cold(q):
        return None
    return Finding(
        "near_deterministic",
        "certain",
        (f"kl_weight={q.declared_temperature:g}: the posterior is {q.declared_temperature:g} of Bayes'.",),
    )


def story_inconclusive(q: Quantities) -> Finding | None:
    """Rung 10: a guide that misses part of the posterior, has no uncertainty or is unknown, or chains that disagree."""
    story = q.story
    if story is None:
        return None
    if story.is_point:
        found = "Every guide is a point (MAP): there is no uncertainty to judge."
        return Finding("inconclusive", "certain", (found, NOT_APPLICABLE))
    if chains_disagree(q):
        known = [] if story.k_hat is None else [_k_hat_in_words(story)]
        return Finding("inconclusive", "probable", (*_what_else(story), *known, NOT_APPLICABLE))
    if misses_posterior(q):
        return Finding("inconclusive", "probable", (_k_hat_in_words(story), *_what_else(story), NOT_APPLICABLE))
    if story.k_hat is None and story.r_hat is None:
        evidence = [*_what_else(story), _unknown(story), NOT_APPLICABLE]
        return Finding("inconclusive", "certain", tuple(evidence))
    return None


def story_healthy(q: Quantities) -> Finding:
    """Nothing was found."""
    story = q.story
    assert story is not None
    evidence = [_k_hat_in_words(story) if story.k_hat is not None else _unknown(story), *_what_else(story)]
    if q.temperature is not None:
        evidence.append(f"Effective temperature T = {q.temperature:.3g}.")
    if _is_mean_field(story):
        evidence.append(
            "A mean-field guide leaves correlations out, which can make it far too narrow without a bad k-hat: a "
            "full-rank guide, or model.compare(bdl.svi.nuts(story, data)), shows it."
        )
    is_sure = story.k_hat is not None and story.r_hat is not None and not _is_mean_field(story)
    return Finding("healthy", "probable" if is_sure else "possible", (*evidence, NOT_APPLICABLE))


def misses_posterior(q: Quantities) -> bool:
    """Whether the guide is so far from the posterior that weighting its draws does not correct it (Q22)."""
    story = q.story
    if story is None or story.k_hat is None:
        return False
    return not _weights_correct(story)


def chains_disagree(q: Quantities) -> bool:
    """Whether the chains of a model came to different posteriors."""
    return q.story is not None and q.story.chains_agree is False


def _threshold(story: StoryHealth) -> float:
    from bdl.svi.checks import RELIABLE_K  # bdl.svi takes a second to import, which a record of a network does not need

    return RELIABLE_K if story.k_hat_threshold is None else story.k_hat_threshold


def _weights_correct(story: StoryHealth) -> bool:
    from bdl.svi.checks import correct

    assert story.k_hat is not None
    return correct(story.k_hat, _threshold(story), story.effective_share)


def _is_mean_field(story: StoryHealth) -> bool:
    return any(site.kind == "global" and site.guide == "MeanField" for site in story.sites)


def _k_hat_in_words(story: StoryHealth) -> str:
    assert story.k_hat is not None
    threshold = _threshold(story)
    if story.k_hat < threshold:
        return (
            f"k-hat {story.k_hat:.2f}, below {threshold:.2g}: as far as the guide's draws reach, weighting them "
            "corrects what is left."
        )
    if _weights_correct(story):
        return (
            f"k-hat {story.k_hat:.2f}, above {threshold:.2g}, of weights that are nearly equal "
            f"({story.effective_share:.0%} of the draws are effective): as far as the guide's draws reach, it is the "
            "posterior."
        )
    return (
        f"k-hat {story.k_hat:.2f}, above {threshold:.2g}: the guide misses part of the posterior. Its means may still "
        "be good; its standard deviations and tails should not be relied on."
    )


def _unknown(story: StoryHealth) -> str:
    if story.k_hat_unknown is not None:
        return f"k-hat is not known: {story.k_hat_unknown}. Compare with bdl.svi.nuts on a part of the data."
    return "k-hat is not known: diagnose(model, data) measures it."


def _what_else(story: StoryHealth) -> list[str]:
    """Whether chains agree, and how the guides moved, or why that is not known."""
    chains = [] if story.chains is None else [story.chains]
    if story.r_hat is not None and story.moved is not None:
        return [*chains, _how_it_moved(story)]
    if story.num_iterates is None:
        unknown = "Whether the guides have come to rest is not known: pass record=, a TrainingHealth of the fit."
        return [*chains, unknown]
    return [
        *chains,
        f"Whether the guides have come to rest is not known: they were read after {story.num_iterates} epochs, and it "
        f"takes {LEAST_ITERATES}. fit(..., steps=2000, epochs=40) has 40, and TrainingHealth(max_cost=1.0) reads each.",
    ]


def tell_convergence(model: Any, story: StoryHealth | None) -> None:
    """Gives a model's summary what was seen of its guides' movement, unless `Converged` has said more.

    Args:
        model: A model of a story, at the end of a fit.
        story: What was measured; nothing is told where too few epochs were read.
    """
    if story is None or story.r_hat is None or story.moved is None or model.convergence is not None:
        return
    is_moving = story.r_hat > LIMIT.iterates and story.moved > LIMIT.moved
    model.convergence = f"The fit {'has not come' if is_moving else 'came'} to rest. {_how_it_moved(story)}"


def _how_it_moved(story: StoryHealth) -> str:
    assert story.moved is not None
    assert story.r_hat is not None
    return (
        f"Between the last two quarters of {story.num_iterates} epochs the guide of {story.moved_site!r} moved most, "
        f"by {story.moved:.2g} of its standard deviations (R-hat of the iterates {story.r_hat:.3g}); it is "
        f"at rest where one of them is at most {LIMIT.moved:g} or {LIMIT.iterates:g}."
    )
