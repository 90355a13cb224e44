"""Whether the densities of a model's guides stick the landing: one choice for all, in place of each guide's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bdl.svi.guides.framed import Framed
from bdl.svi.guides.gaussian import RealLine


def check_sticking(value: Any) -> bool | None:
    """The argument `sticking` of a model.

    Raises:
        ValueError: if it is neither True, False nor None.
    """
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"`sticking` must be True, False, or None for the default of each guide, not {value!r}.")
    return value


def told_to_stick(families: Sequence[RealLine], sticks: bool | None) -> list[RealLine]:
    """Distributions whose densities stick, or do not; points, rows of tables and discrete ones are left as they are.

    Args:
        families: The distributions. One that occurs several times still does.
        sticks: What is wanted; None leaves all as they are.

    Example:
    >>> from bdl.svi.guides.gaussian import Gaussian
    >>> one = Gaussian(np.zeros(2), np.ones(2), is_diagonal=True)
    >>> found = told_to_stick([one, one], True)
    >>> found[0].sticks, found[0] is found[1]
    (True, True)
    """
    if sticks is None:
        return list(families)
    told = {id(family): _told(family, sticks) for family in families}
    return [told[id(family)] for family in families]


def _told(family: Any, sticks: bool) -> Any:
    if isinstance(family, Framed):
        return replace(family, base=_told(family.base, sticks))
    if not hasattr(family, "sticks"):
        return family
    others = getattr(family, "others", None)  # of chains
    return replace(family, sticks=sticks, **({} if others is None else {"others": _told(others, sticks)}))
