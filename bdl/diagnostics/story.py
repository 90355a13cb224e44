"""What is measured of a model of a story (`bdl.svi`): T, divergences of its sites, how its guides move, k-hat.

Such a model has no labels and no outputs, so that nothing here asks for a likelihood, a twin or a fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from bdl.diagnostics.accounting import size_of, size_ratio, told_examples
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.story_health import SiteHealth, StoryHealth
from bdl.diagnostics.story_rules import LEAST_ITERATES
from bdl.keras_internals import without_gradients
from bdl.protocols import TellsStory
from bdl.training.iterates import Iterate
from bdl.training.mixing import split_r_hat

MOST_NUMBERS = 1000
"""Latent numbers up to which k-hat is computed: it grows with them, however good each guide is."""

_GUIDED = ("global", "local")  # kinds of sites; enumerated ones are exact

_LARGEST_K = 10.0


def kinds_of(model: TellsStory) -> dict[str, str]:
    """Kinds of the sites of a model of a story that have guides, by name."""
    return {site.name: site.kind for site in model.sites if site.kind in _GUIDED}


def refuse_for_story(**given: Any) -> None:
    """Refuses arguments that a model of a story has no use for.

    Raises:
        ValueError: naming those that are not None.
    """
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ValueError(
            f"`{wrong[0]}` must be None for a model of a story, which has no labels, likelihood or twin of its own. "
            "TrainingHealth() needs no data there, and diagnose(model, data) those of fit."
        )


def movement(iterates: Sequence[Iterate], model: TellsStory) -> dict[str, Any]:
    """How the second half of the iterates moves: fields of `StoryHealth`.

    R-hat compares its two halves with what varies within them (Dhaka et al. 2020, "Robust, accurate stochastic
    optimization for variational inference", section 4). A rate that falls to zero leaves iterates that hardly vary, so
    that R-hat alone says little: how far they moved, in the guide's own units, counts as well.
    """
    found: dict[str, Any] = {"num_iterates": len(iterates)}
    if len(iterates) < LEAST_ITERATES:
        return found
    window = iterates[-(len(iterates) // 4 * 2) :]
    mean, log_scale = (np.array([getattr(each, name) for each in window]) for name in ("mean", "log_scale"))
    numbers = np.concatenate([mean, log_scale], axis=1)
    moving = np.ptp(numbers, axis=0) > 0
    if not moving.any() or not np.isfinite(numbers).all():
        return found
    half = len(window) // 2
    units = np.concatenate([np.exp(log_scale.mean(axis=0)), np.ones(log_scale.shape[1])])
    moved = np.abs(numbers[half:].mean(axis=0) - numbers[:half].mean(axis=0)) / units
    farthest = int(moved.argmax())
    names = model.iterate_names()
    r_hat = split_r_hat(numbers[None][..., moving])
    return {
        **found,
        "r_hat": float(r_hat.max()),
        "moved": float(moved[farthest]),
        "moved_site": names[farthest % len(names)],
    }


def story_quantities(
    model: TellsStory, entry: Mapping[str, Any] | None = None, num_examples: int | None = None
) -> Quantities:
    """What a model of a story says of itself: T, whether it is finite, its sites and guides.

    Args:
        model: The model.
        entry: Logs of an epoch, with the divergence of each site.
        num_examples: N; None takes what `fit` measured, else what the model was told.
    """
    progress, own = model.progress, model.progress.num_examples
    size = size_of(progress, num_examples)
    ratio = size_ratio(progress, size)
    declared = progress.final_temperature
    weights = [ops.convert_to_numpy(weight) for guide in model.guides for weight in guide.iterates]
    sites = {site.name: site for site in model.sites if site.kind in _GUIDED}
    guides = {name: model.guide_of(name) for name in sites}
    start = getattr(model, "start", None)
    return Quantities(
        num_examples=size,
        finite=all(bool(np.isfinite(weight).all()) for weight in weights),
        temperature=declared * ratio,
        declared_temperature=declared,
        present_temperature=None if progress.temperature is None else progress.temperature * ratio,
        told_examples=told_examples(own, size),
        story=StoryHealth(
            sites=sites_in_logs(
                [SiteHealth(name, site.kind, type(guides[name]).__name__) for name, site in sites.items()],
                entry or {},
                size,
            ),
            start=start if isinstance(start, str) else "values",
            is_point=all(guide.is_point for guide in guides.values()) if guides else None,
        ),
    )


def sites_in_logs(
    sites: Sequence[SiteHealth], entry: Mapping[str, Any], num_examples: int | None
) -> tuple[SiteHealth, ...]:
    """Sites with their divergences as an epoch's logs have them: of a local one, over all rows."""
    found = []
    for site in sites:
        kl = entry.get(f"kl_{site.name}")
        if kl is not None and site.kind == "local":
            kl = kl / num_examples if num_examples else None
        found.append(site if kl is None else dataclasses.replace(site, kl=float(kl)))
    return tuple(found)


def story_in_record(
    story: StoryHealth | None, start: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]], num_examples: int | None
) -> StoryHealth | None:
    """A story with the divergences of the last recorded epoch; None of a network.

    Args:
        story: Of the last measurement, if there was one.
        start: What the record says of the run at its start.
        epochs: Logs.
        num_examples: N.
    """
    if story is None and start.get("sites") is None:
        return None
    story = story or StoryHealth(tuple(SiteHealth(name, kind) for name, kind in start["sites"].items()))
    return dataclasses.replace(story, sites=sites_in_logs(story.sites, epochs[-1] if epochs else {}, num_examples))


def rows_of_step(model: Any) -> int:
    """Rows in a step of the last fit: those of the batch that the story was traced on when it began."""
    from bdl.svi.files import invented
    from bdl.svi.story import num_rows

    return int(num_rows(invented(model.described)))


def measure_story(model: Any, x: Any, num_examples: int | None, num_samples: int, seed: int) -> Quantities:
    """The same, with divergences and k-hat measured on data, and whether chains agree.

    Args:
        model: A fitted `bdl.svi.SVI`.
        x: The data of the story: arrays.
        num_examples: N; None takes what `fit` measured, else what the model was told.
        num_samples: Draws for the divergences.
        seed: Of all draws.
    """
    measured = story_quantities(model, None, num_examples)
    story = measured.story
    assert story is not None
    divergences = _divergences(model, x, num_samples, seed)
    sites = tuple(dataclasses.replace(site, kl=divergences[site.name]) for site in story.sites)
    if model.num_chains > 1:
        found = model.agreement(seed=seed)
        story = dataclasses.replace(story, chains=found.verdict, chains_agree=found.is_reached)
    story = dataclasses.replace(story, sites=sites, **_k_hat(model, x, measured, seed))
    return dataclasses.replace(measured, has_data=True, story=story)


def _divergences(model: Any, x: Any, num_samples: int, seed: int) -> dict[str, float]:
    """Divergence of each latent site, in nats: in total of a global one, per row of a local one."""
    from bdl.random import draw_key, fold_in
    from bdl.svi.rows import as_data, as_tensors

    dtype = model.compute_dtype
    batch = as_tensors(as_data(x, dtype), dtype)
    estimator = dataclasses.replace(model.estimator, num_samples=2, objective="elbo")
    found: dict[str, list[float]] = {}
    with without_gradients():
        for number in range(max(num_samples // 2, 1)):
            terms = estimator.terms(batch, fold_in(draw_key(seed), number))
            for name, value in {**terms.global_kl, **terms.local_kl}.items():
                found.setdefault(name, []).append(float(np.mean(ops.convert_to_numpy(value))))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _k_hat(model: Any, x: Any, measured: Quantities, seed: int) -> dict[str, Any]:
    """k-hat of all latent numbers together, or why there is none."""
    from bdl.svi.story import num_rows

    rows = int(num_rows(x))
    latent = sum(site.size * (rows if site.kind == "local" else 1) for site in model.sites)
    if any(guide.is_point for guide in model.guides):
        why = "a guide is a point, which has no density"
    elif measured.num_examples is not None and rows != measured.num_examples:
        why = f"it takes all {measured.num_examples} rows, and `x` has {rows}"
    elif latent > MOST_NUMBERS:
        why = f"it grows with the latent numbers, which are {latent} on these rows"
    else:
        try:
            found = model.k_hat(x, num_samples=4000, seed=seed)
        except ValueError as error:
            return {"k_hat_unknown": f"it cannot be computed: {error}"}
        # Infinite where all weights are equal, or one draw has all of the weight; a record holds no such number.
        k = float(np.clip(found.k, -_LARGEST_K, _LARGEST_K))
        return {"k_hat": k, "k_hat_threshold": float(found.threshold), "effective_share": found.effective_share}
    return {"k_hat_unknown": why}
