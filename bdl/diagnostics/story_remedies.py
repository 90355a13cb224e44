"""What to do about a verdict on a model of a story: each remedy is one change of the user's code."""

from __future__ import annotations

from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.remedy import Remedy
from bdl.diagnostics.story_rules import chains_disagree, misses_posterior

LOWER_RATE = Remedy(
    "a lower rate and clipped gradients",
    "Look for the epoch in the record; check the data for outliers, and standardise them.",
    "Pascanu et al. 2013",
    "model.compile(keras.optimizers.Adam(1e-3, clipnorm=1.0))",
)
T_ONE = Remedy(
    "train at T = 1",
    "Without num_examples= the model learns N from fit, and divides the divergence of global sites by it.",
    "Hoffman et al. 2013, arXiv 1206.7051",
    "SVI(story, guide)  # kl_weight=1.0, N from fit",
)
FALLING_RATE = Remedy(
    "a rate that falls to zero",
    "At a constant rate the guide walks about its optimum for ever, and widely so where the data are many.",
    "Dhaka et al. 2020, arXiv 2009.00666",
    "model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps)))",
)
MORE_STEPS = Remedy(
    "more steps",
    "The guide has not come to rest: this verdict is about the budget, not about the model.",
    "R-hat of the iterates",
    "model.fit(data, steps=4 * steps, epochs=40)",
)
LAPLACE = Remedy(
    "start at the mode, in round coordinates",
    "L-BFGS finds the mode and the curvature there whitens the guide's coordinates: scales apart by 100 and "
    "correlations near 1 cost no steps.",
    "Tierney & Kadane 1986; Dhaka et al. 2020, arXiv 2009.00666",
    'SVI(story, guide, start="laplace")',
)
FULL_RANK = Remedy(
    "a full-rank guide",
    "A mean-field guide leaves correlations out, and is too narrow where there are any.",
    "Kucukelbir et al. 2017, section 2.4",
    'SVI(story, "full_rank")',
)
FLOW = Remedy(
    "a flow guide",
    "A Gaussian has no skewness, no long tails and no funnels; coupling layers bend it.",
    "Rezende & Mohamed 2015; Dinh, Sohl-Dickstein & Bengio 2017, arXiv 1605.08803",
    'SVI(story, "flow", start="laplace")',
)
NUTS = Remedy(
    "compare with NUTS",
    "Its draws need no guide, and say which site the guide misses, and by how much.",
    "Hoffman & Gelman 2014; Yao et al. 2018, arXiv 1802.02538",
    "print(model.compare(bdl.svi.nuts(story, data)))",
)
WARMUP = Remedy(
    "KL warm-up",
    "The networks of the story learn to read the site while it costs nothing. It ends at T = 1.",
    "Bowman et al. 2015, arXiv 1511.06349",
    "SVI(story, guide, kl_weight=bdl.elbo.LinearWarmup(0.85))",
)

STORY_REMEDIES: dict[str, tuple[Remedy, ...]] = {
    "diverged": (LOWER_RATE, LAPLACE),
    "mis_scaled_kl": (T_ONE,),
    "still_training": (FALLING_RATE, MORE_STEPS, LAPLACE),
    "collapsed": (WARMUP,),
    "near_deterministic": (T_ONE,),
}
"""Remedies of each verdict on a story, the likeliest first."""


def story_remedies(verdict: str, quantities: Quantities) -> tuple[Remedy, ...]:
    """What to do about a verdict on a model of a story, the likeliest first.

    Example:
    >>> from bdl.diagnostics import StoryHealth
    >>> story = StoryHealth(k_hat=1.2, k_hat_threshold=0.7, start="laplace")
    >>> [remedy.name for remedy in story_remedies("inconclusive", Quantities(story=story))]
    ['a full-rank guide', 'compare with NUTS']
    """
    listed = STORY_REMEDIES.get(verdict, ())
    if verdict == "inconclusive" and chains_disagree(quantities):
        listed = (FALLING_RATE, MORE_STEPS, NUTS)
    elif verdict == "inconclusive" and misses_posterior(quantities):
        listed = (FULL_RANK, LAPLACE, FLOW, NUTS)
    return tuple(remedy for remedy in listed if not _is_there(remedy, quantities))


def _is_there(remedy: Remedy, q: Quantities) -> bool:
    """Whether the model has already what a remedy would change, or cannot have it."""
    story = q.story
    assert story is not None
    if remedy is FULL_RANK:
        globals_ = [site for site in story.sites if site.kind == "global"]
        return bool(globals_) and all(site.guide in ("FullRank", "Flow") for site in globals_)
    if remedy is FLOW:  # the next one after full rank
        return not (story.sites and all(site.guide == "FullRank" for site in story.sites))
    return remedy is LAPLACE and (story.start == "laplace" or any(site.kind == "local" for site in story.sites))
