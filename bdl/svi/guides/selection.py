"""Which guide is for which site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bdl.svi.guides.base import Guide
from bdl.svi.guides.categories import Categories
from bdl.svi.guides.counts import Counts
from bdl.svi.guides.delta import Delta
from bdl.svi.guides.discrete import DiscreteFamily
from bdl.svi.guides.flow import Flow
from bdl.svi.guides.full_rank import FullRank
from bdl.svi.guides.low_rank import LowRank
from bdl.svi.guides.mean_field import MeanField
from bdl.svi.guides.structured import Structured
from bdl.svi.story import Site

GUIDES: dict[str, type[Guide]] = {
    "mean_field": MeanField,
    "full_rank": FullRank,
    "low_rank": LowRank,
    "flow": Flow,
    "structured": Structured,
    "delta": Delta,
}
"""Guides that can be named by a string."""

DISCRETE: dict[str, type[DiscreteFamily]] = {"categories": Categories, "counts": Counts}
"""Families of discrete local sites."""

Assignment = list[tuple[tuple[str, ...], Guide]]
"""Guides with the names of the sites that each is for, jointly."""


def as_guide(value: Any) -> Guide:
    """A guide, from itself or its name.

    Raises:
        ValueError: if it is neither.

    Example:
    >>> as_guide("full_rank").is_local
    False
    """
    if isinstance(value, Guide):
        return value
    if isinstance(value, str) and value in GUIDES:
        return GUIDES[value]()
    raise ValueError(
        f"`guide` must be a bdl.svi.guides.Guide, one of {sorted(GUIDES)}, or a dict of these by site, not {value!r}."
    )


def check_guide(guide: Any) -> Any:
    """The argument `guide` of a model, its names made guides.

    Raises:
        ValueError: if there is something else in it than guides and their names, one guide twice, or one of discrete
            values without the name of its site.
    """
    if not isinstance(guide, Mapping):
        guide = as_guide(guide)
        if guide.is_discrete:
            raise ValueError(
                'A guide of discrete values must be given by the name of its site, guide={"<site>": ...}, not for all '
                "sites together."
            )
        return guide
    guides = {key: as_guide(value) for key, value in guide.items()}
    if len({id(each) for each in guides.values()}) < len(guides):
        raise ValueError("`guide` must have a guide of its own for each entry, not one object twice.")
    return guides


def requested(guide: Guide | Mapping[Any, Guide]) -> Assignment:
    """The guides of the argument `guide` with the sites that each is named for: none of one for all sites together.

    Example:
    >>> [(names, type(each).__name__) for names, each in requested({("mean", "scale"): MeanField(), "rate": Delta()})]
    [(('mean', 'scale'), 'MeanField'), (('rate',), 'Delta')]
    """
    if not isinstance(guide, Mapping):
        return [((), guide)]
    return [((key,) if isinstance(key, str) else tuple(key), each) for key, each in guide.items()]


def assign_guides(guide: Guide | Mapping[Any, Guide], sites: Mapping[str, Site]) -> Assignment:
    """Gives each latent site its guide.

    Args:
        guide: One for all sites, or a dict by the name of a site or a tuple of names. Global sites that a dict leaves
            out have a mean-field guide.
        sites: The latent sites by name; enumerated ones have no guide.

    Raises:
        ValueError: naming sites that are unknown, have two guides or none, or one of the wrong kind or family.

    Example:
    >>> sites = {"mean": Site("mean", "global", (), 1), "scale": Site("scale", "global", (), 1)}
    >>> [(names, type(guide).__name__) for names, guide in assign_guides({"scale": Delta()}, sites)]
    [(('scale',), 'Delta'), (('mean',), 'MeanField')]
    """
    sites = {name: site for name, site in sites.items() if site.kind != "enumerated"}
    if isinstance(guide, Mapping):
        assignment = requested(guide)
    elif sites:
        assignment = [(tuple(sites), guide)]
    else:
        assignment = []
    named = [name for names, _ in assignment for name in names]
    unknown = sorted(set(named) - set(sites))
    if unknown:
        raise ValueError(f"`guide` must be for latent sites of the story, {list(sites)}, not for {unknown}.")
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ValueError(f"`guide` must have one guide for each site, not two for {twice}.")
    rest = tuple(name for name in sites if name not in named)
    if rest and all(sites[name].kind == "global" for name in rest):
        assignment.append((rest, MeanField()))
        rest = ()
    if rest:
        raise ValueError(
            f"`guide` must have a guide for each local site, and has none for {_locals(rest, sites)}. {_FIX}"
        )
    for names, each in assignment:
        _check_kinds(names, each, sites)
    return assignment


_FIX = 'Pass guide={"<site>": Amortized(network, inputs=[...])}, or PerRow(num_rows).'


def _locals(names: tuple[str, ...], sites: Mapping[str, Site]) -> list[str]:
    return [name for name in names if sites[name].kind == "local"]


def _check_kinds(names: tuple[str, ...], guide: Guide, sites: Mapping[str, Site]) -> None:
    local = _locals(names, sites)
    kind = type(guide).__name__
    if not guide.is_local and local:
        raise ValueError(
            f"The guide of local sites must be Amortized or PerRow, not {kind}, which {local} have. {_FIX}"
        )
    if guide.is_local and len(local) < len(names):
        globals_ = [name for name in names if name not in local]
        raise ValueError(
            f"The guide of global sites must be one of {sorted(GUIDES)}, not {kind}, which {globals_} have."
        )
    for name in names:
        _check_values(guide, sites[name])
    unknown = [name for name in guide.given if name not in sites or sites[name].kind != "global"]
    if unknown:
        raise ValueError(f"`given` of {kind} must be global sites, not {unknown}.")


def _check_values(guide: Any, site: Site) -> None:
    """Refuses a discrete family at a continuous site, a continuous one at a discrete site, and other values."""
    if guide.is_discrete and not site.is_discrete:
        raise ValueError(
            f"`family` of the guide of {site.name!r}, whose values are continuous, must be one of {sorted(GUIDES)}, or "
            f"such a guide, not a discrete one of {sorted(DISCRETE)}."
        )
    if not guide.is_discrete and site.is_discrete:
        raise ValueError(
            f"`family` of the guide of {site.name!r}, whose values are discrete, must be one of {sorted(DISCRETE)}, or "
            "Categories(num_values), not a continuous one. A site of few values may be left out of `guide`: it is then "
            "summed out exactly."
        )
    wrong = guide.misfit(site) if guide.is_discrete else None
    if wrong:
        raise ValueError(f"`family` of the guide of {site.name!r} must have its values: the site {wrong}.")
