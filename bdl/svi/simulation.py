"""Runs of a story for the values of its sites: given, drawn from priors, simulated, or drawn given the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from keras import ops

from bdl.random import Tensor, fold_in
from bdl.svi import supports
from bdl.svi.enumeration import draw_combination
from bdl.svi.estimators import Estimator
from bdl.svi.story import Global, Observed, Site, Variable, num_rows, run, support_of_site


def simulate(
    estimator: Estimator,
    sites: Mapping[str, Site],
    batch: Any,
    real: Mapping[str, Tensor] | None,
    key: Tensor | None = None,
    until: str | None = None,
    combination: Tensor | None = None,
) -> dict[str, Tensor]:
    """Values of all sites in a run of the story, or up to one of them.

    Latent sites have the given numbers on the real line, zeros where there are none, or without any a draw of their
    prior; observed sites a draw, or the data's without a key.

    Args:
        estimator: That knows story, networks and enumerated sites.
        sites: All sites by name, in the order of the story.
        batch: The data; a dict may lack what is to be predicted.
        real: By site, `(numbers,)` or `(rows, numbers)`; None draws latent sites from their priors.
        key: Of all draws.
        until: Name of the site at which the run ends; None runs to the end.
        combination: Of the enumerated sites' values, for each row `(rows,)`; None takes the first one.

    Raises:
        ValueError: if the data lack what the story computes with.
    """
    rows = num_rows(batch)
    names = list(sites)
    combination = estimator.combinations.first(rows) if combination is None else combination

    def answer(variable: Variable) -> Tensor:
        site = sites[variable.name]
        if isinstance(variable, Observed) and key is None:
            return variable.value
        lead = () if isinstance(variable, Global) else (rows,)
        if real is None or isinstance(variable, Observed):
            return supports.sample_of_shape(
                variable.distribution, (*lead, *site.shape), fold_in(key, names.index(site.name))
            )
        if site.kind == "enumerated":
            return estimator.combinations.value(variable, combination)
        numbers = real.get(site.name)
        if numbers is None:
            numbers = ops.zeros((*lead, site.size), dtype=estimator.dtype)
        return support_of_site(variable, site).constrain(numbers, site.shape)

    with _forgiving(batch) as data, supports.unchecked():
        visits = run(estimator.story, data, answer, estimator.networks, rows, until)
    return {visit.name: visit.value for visit in visits}


def log_weights_of(estimator: Estimator, batch: Any, real: Mapping[str, Tensor]) -> Tensor:
    """Log probability of each combination of the enumerated sites' values, given the rest and what the batch has.

    Args:
        estimator: Of the story.
        batch: The data; a dict may lack what is to be predicted, which then tells nothing.
        real: By site, `(numbers,)` or `(rows, numbers)`.

    Returns:
        `(rows, combinations)`.

    Raises:
        ValueError: if the data lack what the story computes with.
    """
    with _forgiving(estimator.combinations.repeat(batch)) as data:
        visits = estimator.visit_every(data, real, num_rows(batch))
    return estimator.summed(visits, real).log_weights


def combination_of(estimator: Estimator, batch: Any, real: Mapping[str, Tensor], key: Tensor) -> Tensor | None:
    """A draw of the enumerated sites' combination for each row, given the rest; None where the story has no such site.

    Args:
        estimator: Of the story.
        batch: The data; a dict may lack what is to be predicted.
        real: By site, `(numbers,)` or `(rows, numbers)`.
        key: Of the draw.
    """
    if not estimator.combinations.sites:
        return None
    return draw_combination(log_weights_of(estimator, batch, real), key)


@contextlib.contextmanager
def _forgiving(data: Any) -> Iterator[Any]:
    """The data for a story that may ask them for what is to be predicted, which is None then.

    Raises:
        ValueError: if the story cannot do without.
    """
    data = _Dict(data) if isinstance(data, dict) else data
    try:
        yield data
    except Exception as error:
        missed = data.missed if isinstance(data, _Dict) else []
        if not missed:
            raise
        raise ValueError(
            f"`x` must have the keys {missed}, too: the story computes with them. Only what it hands to an "
            "Observed site as it is may be left out; any numbers do in its place."
        ) from error


class _Dict(dict):
    """Data of which some may be missing.

    Attributes:
        missed: Keys that were asked for and are not there.
    """

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.missed: list[str] = []

    def __missing__(self, key: str) -> None:
        self.missed.append(key)
