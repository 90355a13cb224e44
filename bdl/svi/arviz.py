"""Results of a fit as ArviZ takes them: groups of arrays with named axes, in an xarray `DataTree`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from bdl.svi.story import Observed, Site

ROW = "row"
"""Name of the axis of rows."""

_DATA = "observed_data"  # the one group without draws


def require_arviz() -> None:
    """Refuses to go on without ArviZ.

    Raises:
        ValueError: if it is not installed.
    """
    if importlib.util.find_spec("arviz_base") is None:
        raise ValueError(
            "`to_arviz` needs ArviZ, which is not installed. Install it with: pip install 'keras-bdl[arviz]'"
        )


def observed_values(site: Observed) -> np.ndarray:
    """What was observed at a site, NaN where it is missing.

    Args:
        site: As the story yields it on data.

    Example:
    >>> observed_values(Observed("y", None, np.zeros(2), mask=np.array([True, False])))
    array([ 0., nan])
    """
    values, mask = ops.convert_to_numpy(site.value), site.mask
    if mask is None:
        return values
    mask = np.asarray(ops.convert_to_numpy(mask))
    return np.where(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values, np.nan)


def as_datatree(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    sites: Sequence[Site],
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Arrays as ArviZ's groups.

    Args:
        groups: By the name of the group and of the site: `(draws, ...)`, and `(...)` in `observed_data`; the rows come
            next of local and observed sites. In `log_likelihood` a row has one number.
        sites: Of the story.
        coords: Labels along an axis, by its name; `"row"` is that of the rows.
        dims: Names of the axes of one value of a site, by site.

    Returns:
        An `xarray.DataTree` with the axes `chain`, of length one, and `draw` in front.

    Raises:
        ValueError: if ArviZ is missing, or `dims` and `coords` do not go with the sites.
    """
    require_arviz()
    import arviz_base

    named = _named_axes(sites, dims or {})
    lengths = _lengths(groups, sites, named)
    labels = {name: np.asarray(values) for name, values in (coords or {}).items()}
    for name, values in labels.items():
        if lengths.get(name) != len(values):
            raise ValueError(
                f"`coords` must label the axes {lengths}, not {name!r} of length {len(values)}. Name axes with dims."
            )
    with_chains = {
        group: arrays if group == _DATA else {name: each[None] for name, each in arrays.items()}
        for group, arrays in groups.items()
    }
    return arviz_base.from_dict(with_chains, coords=labels, dims=named, attrs={"/": {"inference_library": "bdl"}})


def _named_axes(sites: Sequence[Site], dims: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Names of all axes of each site behind the draws', as far as they have one."""
    shapes = {site.name: site.shape for site in sites}
    for name, names in dims.items():
        if name not in shapes or isinstance(names, str) or len(names) != len(shapes[name]):
            raise ValueError(
                f"`dims` must have a list of names for the axes of a site, of which one value has the shape {shapes}, "
                f"not {names!r} for {name!r}. Rows have the name {ROW!r} by themselves."
            )
    rows = {site.name: [] if site.kind == "global" else [ROW] for site in sites}
    return {name: [*rows[name], *dims.get(name, ())] for name in shapes}


def _lengths(
    groups: Mapping[str, Mapping[str, np.ndarray]], sites: Sequence[Site], named: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """Length of each axis that has a name."""
    rows = len(next(iter(groups[_DATA].values())))
    found = {ROW: rows}
    for site in sites:
        whole = site.shape if site.kind == "global" else (rows, *site.shape)
        for name, length in zip(named[site.name], whole, strict=False):
            if found.setdefault(name, length) != length:
                raise ValueError(
                    f"`dims` must have axes of one length under one name, not {name!r} of {found[name]} and, of site "
                    f"{site.name!r}, {length}."
                )
    return found
