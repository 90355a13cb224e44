"""A model told as a story: a generator function that yields its random variables and gets their values back.

    def story(data):
        mean = yield Global("mean", tfd.Normal(0.0, 3.0))                 # one value for the whole data set
        code = yield Local("code", tfd.Normal(mean, 1.0))                 # one value for each row: (rows,)
        yield Observed("y", tfd.Normal(code, 0.5), data["y"])             # data

`data` is whatever `fit` was given, its arrays with the rows on their first axis. Networks reach a story as keyword
arguments. Distributions are built inside it, at each call: one that is built once from a variable stays at its value.

The story's log joint density is a sum over its sites: one number of a `Global`, one for each row of a `Local` and of an
`Observed`. Whoever runs the story says how each site is answered; nothing here knows of guides or of training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import is_concrete
from bdl.random import Tensor, fold_in
from bdl.svi import supports
from bdl.svi.supports import Flat

Story = Callable[..., Iterator[Any]]
"""A generator function of the data and, by name, of networks."""

NUM_START_DRAWS = 51
"""Draws of a site's prior, whose median on the real line is where a trace, and a fit, begins."""


@dataclass(frozen=True, eq=False)
class Global:
    """A latent variable with one value for the whole data set.

    Args:
        name: Of the site, unique in the story.
        distribution: Its prior; the value has the shape of its batch and its events together.

    Example:
    >>> Global("mean", Flat()).name
    'mean'
    """

    name: str
    distribution: Any


@dataclass(frozen=True, eq=False)
class Local:
    """A latent variable with a value for each row; these are on the value's first axis.

    Args:
        name: Of the site, unique in the story.
        distribution: The prior of a row's value, or of all of them, where its first batch axis runs over the rows.

    Example:
    >>> Local("code", Flat(shape=(8,))).name
    'code'
    """

    name: str
    distribution: Any


@dataclass(frozen=True, eq=False)
class Observed:
    """Data: the log density of a row is its log likelihood.

    Args:
        name: Of the site, unique in the story.
        distribution: Of the value, given the latent variables.
        value: What was observed, rows on the first axis; None where it is to be predicted.

    Example:
    >>> Observed("y", Flat(), np.zeros(3)).value.shape
    (3,)
    """

    name: str
    distribution: Any
    value: Any


Variable = Global | Local | Observed
Answer = Callable[[Variable], Tensor]


@dataclass(frozen=True)
class Site:
    """What a trace found of a site, and all that guides must know of it.

    Args:
        name: Of the site.
        kind: `"global"`, `"local"` or `"observed"`.
        shape: Of its value; of one row's value where it has rows.
        size: Numbers on the real line of one value; 0 of an observed site.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    size: int = 0


@dataclass(frozen=True, eq=False)
class Visit:
    """A site that a run of the story came to.

    Args:
        variable: What the story yielded.
        value: What it was answered.
        rows: Rows of the data.
    """

    variable: Variable
    value: Tensor
    rows: Tensor | int

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.variable.name

    def log_prob(self) -> Tensor:
        """Log density of the value, in nats: a scalar of a `Global`, `(rows,)` of the others.

        Raises:
            ValueError: if it does not have a number for each row.
        """
        log_prob = supports.log_prob(self.variable.distribution, self.value)
        if isinstance(self.variable, Observed) and len(log_prob.shape) > len(self.value.shape):
            raise ValueError(
                f"The distribution of site {self.name!r} must not have more axes than its value, whose shape is "
                f"{tuple(self.value.shape)}: its log density has the shape {tuple(log_prob.shape)}."
            )
        if isinstance(self.variable, Global):
            return ops.sum(log_prob)
        return _by_row(self.name, log_prob, self.rows)


def num_rows(data: Any) -> Tensor | int:
    """Rows of the data, a tensor where a compiled function leaves them open.

    Example:
    >>> num_rows({"x": np.zeros((5, 2))})
    5
    """
    return ops.shape(keras.tree.flatten(data)[0])[0]


def run(
    story: Story,
    data: Any,
    answer: Answer,
    networks: Mapping[str, Any] | None = None,
    rows: Tensor | int | None = None,
) -> list[Visit]:
    """Runs a story to its end.

    Args:
        story: The story.
        data: Its data, tensors or arrays.
        answer: Gives each site that is yielded its value, constrained to its support.
        networks: Layers by the names of the story's keyword arguments.
        rows: Number of rows; None counts those of the data.

    Returns:
        The sites in the order in which they were met.

    Raises:
        ValueError: if the story is no generator function, yields something else than a site, or meets one twice.

    Example:
    >>> def story(data):
    ...     level = yield Global("level", Flat())
    ...     yield Observed("y", Flat(), level + data)
    >>> [float(visit.log_prob()[0]) for visit in run(story, np.ones(3), lambda site: np.ones(3))[1:]]
    [0.0]
    """
    told = story(data, **(networks or {}))
    if not inspect.isgenerator(told):
        raise ValueError(f"`story` must be a generator function that yields its sites, not {story!r}. Use yield.")
    rows = num_rows(data) if rows is None else rows
    visits: dict[str, Visit] = {}
    try:
        variable = next(told)
        while True:
            if not isinstance(variable, Variable):
                raise ValueError(
                    f"`story` must yield Global, Local or Observed sites, not {variable!r}. Yield each random variable "
                    "as in: value = yield Global(name, distribution)."
                )
            if variable.name in visits:
                raise ValueError(f"Site {variable.name!r} must be met once, not twice. Give each site its own name.")
            value = answer(variable)
            visits[variable.name] = Visit(variable, value, rows)
            variable = told.send(value)
    except StopIteration:
        return list(visits.values())


@dataclass(frozen=True, eq=False)
class Trace:
    """What one run of a story on a batch found.

    Args:
        sites: In the order in which the story tells them.
        values: Of the latent sites, constrained: where a fit may begin.
        data: The batch.
    """

    sites: tuple[Site, ...]
    values: dict[str, np.ndarray]
    data: Any

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
) -> Trace:
    """Runs a story once, to learn names, shapes and supports of its sites, and checks that it can be fitted.

    Latent sites have the values of `start`, or else the median of their prior on the real line, given the sites before.

    Args:
        story: The story.
        data: A batch of data, of concrete arrays.
        key: Of the draws from priors; from `bdl.random`.
        networks: Layers by the names of the story's keyword arguments.
        start: Values of latent sites by name, constrained.
        dtype: Of the latent values.

    Raises:
        ValueError: naming a site that is met twice, is discrete, has a log density that is not finite or is summed over
            the rows already, whose rows do not match, or for which `start` has a value of another shape or none; or if
            there is no latent, or no observed site.
    """
    found = _Teller(story, data, key, networks, start, dtype).tell()
    unknown = sorted(set(start or {}) - set(found.values))
    if unknown:
        raise ValueError(f"`start` must have values of the sites {sorted(found.values)}, not of {unknown}.")
    if not found.values or not found.of_kind("observed"):
        missing = "a Global or Local site" if not found.values else "an Observed site"
        raise ValueError(f"`story` must yield {missing}, which {getattr(story, '__name__', story)!r} does not.")
    return found


class _ReachedError(Exception):
    """Ends a run at a site that was looked for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.shape = shape


class _Teller:
    """Answers a story's sites with where they begin, and notes what they are."""

    def __init__(self, story: Story, data: Any, key: Tensor, networks: Any, start: Any, dtype: str) -> None:
        self.story, self.data, self.key, self.networks, self.dtype = story, data, key, networks, dtype
        self.start = start or {}
        self.rows = int(num_rows(data))
        self.found: dict[str, tuple[Site, Any]] = {}
        self.runs_over_rows: dict[str, bool] = {}  # of the distribution of a local site

    def tell(self) -> Trace:
        for visit in run(self.story, self.data, self.answer, self.networks):
            _check_finite(visit)
        latent = {name: value for name, (_, value) in self.found.items() if value is not None}
        return Trace(tuple(site for site, _ in self.found.values()), latent, self.data)

    def answer(self, variable: Variable) -> Tensor:
        name, distribution = variable.name, variable.distribution
        if isinstance(variable, Observed):
            _check_observed(variable, self.rows)
            value = ops.convert_to_tensor(variable.value)
            self.found[name] = Site(name, "observed", tuple(value.shape[1:])), None
            return value
        support = support_of_site(variable)
        shape = supports.shape_of(distribution)
        is_local = isinstance(variable, Local)
        if isinstance(variable, Local) and self._has_rows(variable, shape):
            shape = shape[1:]
        site = Site(name, "local" if is_local else "global", shape, support.flat_size(shape))
        value = self._begin(site, distribution, support, (self.rows,) if is_local else ())
        self.found[name] = site, value
        return ops.convert_to_tensor(value, dtype=self.dtype)

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
        other = _Teller(self.story, fewer, self.key, self.networks, None, self.dtype)
        other.runs_over_rows = dict(self.runs_over_rows)

        def answer(variable: Variable) -> Tensor:
            if variable.name == name:
                raise _ReachedError(supports.shape_of(variable.distribution))
            return other.answer(variable)

        try:
            run(self.story, fewer, answer, self.networks)
        except _ReachedError as reached:
            return reached.shape
        return ()

    def _begin(self, site: Site, distribution: Any, support: Any, lead: tuple[int, ...]) -> np.ndarray:
        """The value at which a site begins: `(*lead, *site.shape)`."""
        whole = (*lead, *site.shape)
        if site.name in self.start:
            value = np.asarray(self.start[site.name], dtype=self.dtype)
            if value.shape != whole:
                raise ValueError(
                    f"`start` must have a value of shape {whole} for site {site.name!r}, not {value.shape}."
                )
            return value
        if isinstance(distribution, Flat):
            real = ops.zeros((site.size,), dtype=self.dtype)
        else:
            draws = supports.sample(distribution, NUM_START_DRAWS, fold_in(self.key, len(self.found)))
            real = ops.median(support.unconstrain(ops.cast(draws, self.dtype), site.shape), axis=0)
        value = support.constrain(real, site.shape)
        return np.array(np.broadcast_to(ops.convert_to_numpy(value), whole))


def support_of_site(variable: Variable) -> Any:
    """The support of a latent site.

    Raises:
        ValueError: naming the site, if it is discrete or its distribution is not known.
    """
    try:
        return supports.support_of(variable.distribution)
    except ValueError as error:
        raise ValueError(f"Site {variable.name!r}: {error}") from error


def _check_observed(variable: Observed, rows: int) -> None:
    shape = tuple(getattr(variable.value, "shape", ()))
    if variable.value is None or not shape or shape[0] != rows:
        raise ValueError(
            f"Observed site {variable.name!r} must have the data's {rows} rows on its first axis, not "
            f"{'no value' if variable.value is None else f'the shape {shape}'}. A single series of T steps is one row, "
            "(1, T)."
        )


def _by_row(name: str, log_prob: Tensor, rows: Tensor | int) -> Tensor:
    """Log densities summed over all axes but the rows': `(rows,)`."""
    shape = tuple(log_prob.shape)
    is_known = bool(shape) and shape[0] is not None and isinstance(rows, int)
    if not shape or (is_known and shape[0] != rows):
        raise ValueError(
            f"The log density of site {name!r} must have the {rows} rows on its first axis, not the shape {shape}: "
            "rows must not be summed already, as tfd.Independent does with a batch axis that runs over them, and each "
            "row needs a density."
        )
    return ops.sum(log_prob, axis=tuple(range(1, len(shape)))) if len(shape) > 1 else log_prob


def _check_finite(visit: Visit) -> None:
    """Refuses a start at which a site has no density."""
    log_prob = ops.convert_to_numpy(visit.log_prob()) if is_concrete(visit.value) else np.zeros(())
    bad = np.argwhere(~np.isfinite(log_prob))
    if len(bad) == 0:
        return
    row = int(bad[0][0]) if log_prob.ndim else None
    value = ops.convert_to_numpy(visit.value)
    at = value if row is None else value[row]
    where = "" if row is None else f" in row {row}"
    raise ValueError(
        f"The log density of site {visit.name!r} must be finite at the start, not {log_prob.ravel()[row or 0]}{where}, "
        f"at the value {np.array2string(np.asarray(at), threshold=6)}. Check the data against the distribution's "
        "support, or give start={site: value}."
    )
