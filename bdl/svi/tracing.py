"""A trace: one run of a story on a batch, which finds its sites and where a fit may begin."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import is_concrete
from bdl.random import Tensor, fold_in
from bdl.svi import supports
from bdl.svi.enumeration import Combinations, all_values
from bdl.svi.host_functions import noting_host_calls
from bdl.svi.story import Local, Observed, Site, Story, Variable, Visit, at_site, num_rows, run, support_of_site
from bdl.svi.supports import Flat

NUM_START_DRAWS = 51
"""Draws of a site's prior, whose median on the real line is where a trace, and a fit, begins."""


_WITHIN = (
    "support: where a guide draws discrete values, prior and likelihood must rule out none of those that it may draw. "
    "Tell the story in what is free to vary, as the docstring of bdl.svi.Counts shows."
)


@dataclass(frozen=True, eq=False)
class Trace:
    """What one run of a story on a batch found.

    Args:
        sites: In the order in which the story tells them.
        values: Of the latent sites but the enumerated ones, constrained: where a fit may begin.
        data: The batch.
        host_calls: Names of functions in the story that NumPy computes, which XLA on TensorFlow cannot take.
    """

    sites: tuple[Site, ...]
    values: dict[str, np.ndarray]
    data: Any
    host_calls: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> list[Site]:
        """The sites of a kind."""
        return [site for site in self.sites if site.kind == kind]


def trace(
    story: Story,
    data: Any,
    key: Tensor,
    networks: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    guided: Collection[str] = (),
) -> Trace:
    """Runs a story once, to learn names, shapes and supports of its sites, and checks that it can be fitted.

    Latent sites have the values of `start`, or else the median of their prior on the real line, given the sites before;
    discrete local sites have a draw of theirs. They are enumerated, unless they have a guide.

    Args:
        story: The story.
        data: A batch of data, of concrete arrays.
        key: Of the draws from priors; from `bdl.random`.
        networks: Layers by the names of the story's keyword arguments.
        start: Values of latent sites by name, constrained.
        dtype: Of the latent values.
        guided: Names of sites that have a guide of their own.

    Raises:
        ValueError: naming a site that is met twice, is discrete and not a local one of few values or with a guide, has
            a log density that is not finite or is summed over the rows already, whose rows do not match, or for which
            `start` has a value of another shape, none, or one that its distribution does not have; or if there is no
            latent, or no observed site.
    """
    with noting_host_calls() as calls:
        found = _Teller(story, data, key, networks, start, dtype, guided).tell()
    found = replace(found, host_calls=tuple(sorted(set(calls))))
    unknown = sorted(set(start or {}) - set(found.values))
    if unknown:
        raise ValueError(f"`start` must have values of the sites {sorted(found.values)}, not of {unknown}.")
    if all(site.kind == "observed" for site in found.sites) or not found.of_kind("observed"):
        missing = "an Observed site" if found.sites and not found.of_kind("observed") else "a Global or Local site"
        raise ValueError(f"`story` must yield {missing}, which {getattr(story, '__name__', story)!r} does not.")
    return found


class _Teller:
    """Answers a story's sites with where they begin, and notes what they are."""

    def __init__(
        self, story: Story, data: Any, key: Tensor, networks: Any, start: Any, dtype: str, guided: Collection[str]
    ) -> None:
        self.story, self.data, self.key, self.networks, self.dtype = story, data, key, networks, dtype
        self.start, self.guided = start or {}, guided
        self.rows = int(num_rows(data))
        self.found: dict[str, tuple[Site, Any]] = {}
        self.runs_over_rows: dict[str, bool] = {}  # of the distribution of a local site

    def tell(self) -> Trace:
        visits = run(self.story, self.data, self.answer, self.networks)
        sites = tuple(site for site, _ in self.found.values())
        combinations = Combinations.of(sites)
        if combinations.sites:
            visits = self._on_every(combinations)
        for visit in visits:
            check_finite(visit, combinations)
        latent = {name: value for name, (_, value) in self.found.items() if value is not None}
        return Trace(sites, latent, self.data)

    def _on_every(self, combinations: Combinations) -> list[Visit]:
        """The run on all combinations of the enumerated sites' values."""
        every = combinations.every(self.rows)

        def answer(variable: Variable) -> Tensor:
            if isinstance(variable, Observed):
                return ops.convert_to_tensor(variable.value)
            site, value = self.found[variable.name]
            if site.kind == "enumerated":
                return combinations.value(variable, every)
            value = self._as_tensor(site, value)
            return combinations.repeat(value) if site.kind == "local" else value

        return run(self.story, combinations.repeat(self.data), answer, self.networks)

    def answer(self, variable: Variable) -> Tensor:
        name, distribution = variable.name, variable.distribution
        if isinstance(variable, Observed):
            _check_observed(variable, self.rows)
            value = ops.convert_to_tensor(variable.value)
            self.found[name] = Site(name, "observed", tuple(value.shape[1:])), None
            return value
        with at_site(name):
            shape = supports.shape_of(distribution)
            is_discrete = supports.is_discrete(distribution)
        is_local = isinstance(variable, Local)
        if isinstance(variable, Local) and self._has_rows(variable, shape):
            shape = shape[1:]
        if is_local and is_discrete and name not in self.guided:
            number = int(all_values(variable, shape).shape[0])
            self.found[name] = Site(name, "enumerated", shape, num_values=number), None
            return supports.sample_of_shape(distribution, (self.rows, *shape), fold_in(self.key, len(self.found)))
        support = support_of_site(variable)
        number = support.num_values if is_discrete else 0
        site = Site(name, "local" if is_local else "global", shape, support.flat_size(shape), number, is_discrete)
        value = self._begin(site, distribution, support, (self.rows,) if is_local else ())
        self.found[name] = site, value
        return self._as_tensor(site, value)

    def _as_tensor(self, site: Site, value: np.ndarray) -> Tensor:
        """A value as the story gets it: of a discrete site in the dtype of its library's draws."""
        return ops.convert_to_tensor(value, dtype=None if site.is_discrete else self.dtype)

    def _has_rows(self, variable: Local, shape: tuple[int, ...]) -> bool:
        """Whether the first axis of a local site's distribution runs over the rows."""
        if variable.name not in self.runs_over_rows:
            is_long = bool(supports.batch_rank(variable.distribution)) and shape[0] == self.rows
            # An axis may be as long as the rows by chance: then it is as long with one row fewer.
            is_rows = is_long and (self.rows == 1 or self._shape_with_fewer_rows(variable.name) != shape)
            self.runs_over_rows[variable.name] = is_rows
        return self.runs_over_rows[variable.name]

    def _shape_with_fewer_rows(self, name: str) -> tuple[int, ...]:
        fewer = keras.tree.map_structure(lambda leaf: leaf[1:], self.data)
        other = _Teller(self.story, fewer, self.key, self.networks, None, self.dtype, self.guided)
        other.runs_over_rows = dict(self.runs_over_rows)

        def answer(variable: Variable) -> Tensor:
            return None if variable.name == name else other.answer(variable)

        visits = run(self.story, fewer, answer, self.networks, until=name)
        return supports.shape_of(visits[-1].variable.distribution)

    def _begin(self, site: Site, distribution: Any, support: Any, lead: tuple[int, ...]) -> np.ndarray:
        """The value at which a site begins: `(*lead, *site.shape)`."""
        whole = (*lead, *site.shape)
        if site.name in self.start:
            value = np.asarray(self.start[site.name], dtype=self.dtype)
            if value.shape != whole:
                raise ValueError(
                    f"`start` must have a value of shape {whole} for site {site.name!r}, not {value.shape}."
                )
            return self._among(site, support, value) if site.is_discrete else value
        if site.is_discrete:
            return ops.convert_to_numpy(
                supports.sample_of_shape(distribution, whole, fold_in(self.key, len(self.found)))
            )
        if isinstance(distribution, Flat):
            real = ops.zeros((site.size,), dtype=self.dtype)
        else:
            draws = supports.sample(distribution, NUM_START_DRAWS, fold_in(self.key, len(self.found)))
            real = ops.median(support.unconstrain(ops.cast(draws, self.dtype), site.shape), axis=0)
        value = support.constrain(real, site.shape)
        return np.array(np.broadcast_to(ops.convert_to_numpy(value), whole))

    def _among(self, site: Site, support: Any, value: np.ndarray) -> np.ndarray:
        """Given values of a discrete site, in the dtype of its distribution's draws."""
        if not support.has(value, site.shape):
            raise ValueError(f"`start` must have values of the distribution of site {site.name!r}, not {value}.")
        return ops.convert_to_numpy(support.constrain(support.unconstrain(value, site.shape), site.shape))


def _check_observed(variable: Observed, rows: int) -> None:
    shape = tuple(getattr(variable.value, "shape", ()))
    if variable.value is None or not shape or shape[0] != rows:
        raise ValueError(
            f"Observed site {variable.name!r} must have the data's {rows} rows on its first axis, not "
            f"{'no value' if variable.value is None else f'the shape {shape}'}. A single series of T steps is one row, "
            "(1, T)."
        )


def check_finite(visit: Visit, combinations: Combinations, drawn: str = "") -> None:
    """Refuses a start at which a site has no density, in any combination of the enumerated sites' values.

    Args:
        visit: Of the site, on rows that are repeated for the combinations.
        combinations: Of the story.
        drawn: What was drawn from guides, where that is not where the trace is.

    Raises:
        ValueError: naming the site.
    """
    if not is_concrete(visit.value):
        return
    log_prob = ops.convert_to_numpy(visit.log_prob())
    value = ops.convert_to_numpy(visit.value)
    if log_prob.ndim:
        by_combination = log_prob.reshape(-1, combinations.number)
        finite = np.isfinite(by_combination)
        best = np.where(finite.any(1), finite.argmax(1), 0)
        log_prob = by_combination[np.arange(len(best)), best]
        value = value[:: combinations.number]
    bad = np.argwhere(~np.isfinite(log_prob))
    if len(bad) == 0:
        return
    row = int(bad[0][0]) if log_prob.ndim else None
    at = value if row is None else value[row]
    where = "" if row is None else f" in row {row}"
    raise ValueError(
        f"The log density of site {visit.name!r} must be finite at the start, not {log_prob.ravel()[row or 0]}{where}, "
        f"at the value {np.array2string(np.asarray(at), threshold=6)}{drawn}. Check the data against the "
        "distribution's " + (_WITHIN if drawn else "support, or give start={site: value}.")
    )
