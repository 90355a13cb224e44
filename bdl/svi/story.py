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

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor
from bdl.svi import supports

Story = Callable[..., Iterator[Any]]
"""A generator function of the data and, by name, of networks."""


@dataclass(frozen=True, eq=False)
class Global:
    """A latent variable with one value for the whole data set.

    Args:
        name: Of the site, unique in the story.
        distribution: Its prior; the value has the shape of its batch and its events together. Its support may depend on
            other global sites, and never on data: a bound that does would be another one on each batch.

    Example:
    >>> Global("mean", bdl.svi.Flat()).name
    'mean'
    """

    name: str
    distribution: Any


@dataclass(frozen=True, eq=False)
class Local:
    """A latent variable with a value for each row; these are on the value's first axis.

    A discrete one has the values, in the dtype, that its library draws. One of few values, such as the component of a
    mixture, is summed out (`bdl.svi.enumeration`) and needs no guide. One that has a guide, `Amortized` with the family
    `"categories"` or `"counts"`, is drawn, whatever the number of its values (`bdl.svi.score`).

    Args:
        name: Of the site, unique in the story.
        distribution: The prior of a row's value, or of all of them, where its first batch axis runs over the rows.

    Example:
    >>> Local("code", bdl.svi.Flat(shape=(8,))).name
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
        mask: Booleans, True where the value was observed: `(rows,)`, or further leading axes of the value, up to the
            shape of the log density. None where all of it was. What is missing holds any finite number, has no part in
            the likelihood and its gradient, and is predicted as the rest is. Networks that read the value should read
            the mask as well.

    Example:
    >>> Observed("y", bdl.svi.Flat(), np.zeros(3), mask=np.array([True, True, False])).value.shape
    (3,)
    """

    name: str
    distribution: Any
    value: Any
    mask: Any = None


Variable = Global | Local | Observed
Answer = Callable[[Variable], Tensor]


@dataclass(frozen=True)
class Site:
    """What a trace found of a site, and all that guides must know of it.

    Args:
        name: Of the site.
        kind: `"global"`, `"local"`, `"enumerated"` (a discrete local site that is summed out) or `"observed"`.
        shape: Of its value; of one row's value where it has rows.
        size: Numbers on the real line of one value; 0 of an enumerated or observed site.
        num_values: Values that one row of an enumerated site may have, or one entry of a discrete local one; 0 of
            others, and where there is no end of them.
        is_discrete: Whether it is a discrete local site that is drawn from a guide.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    size: int = 0
    num_values: int = 0
    is_discrete: bool = False


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

        Entries of an `Observed` site that are missing count nothing.

        Raises:
            ValueError: if it does not have a number for each row.
        """
        variable, value = self.variable, self.value
        mask = _mask_of(variable, value) if isinstance(variable, Observed) else None
        with at_site(self.name):
            if mask is not None:
                # Not the value itself: a density that is not finite there would make the gradient of `where` so, too.
                inside = supports.inside(variable.distribution, value)
                value = ops.where(_with_axes(mask, len(value.shape)), value, inside)
            log_prob = supports.log_prob(variable.distribution, value)
        if isinstance(variable, Observed):
            _check_leading(self.name, "log density", log_prob, value)
        if isinstance(variable, Global):
            return ops.sum(log_prob)
        if mask is not None:
            _check_leading(self.name, "mask", mask, log_prob)
            log_prob = ops.where(_with_axes(mask, len(log_prob.shape)), log_prob, ops.zeros_like(log_prob))
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
    until: str | None = None,
) -> list[Visit]:
    """Runs a story to its end, or to a site.

    Args:
        story: The story.
        data: Its data, tensors or arrays.
        answer: Gives each site that is yielded its value, constrained to its support.
        networks: Layers by the names of the story's keyword arguments.
        rows: Number of rows; None counts those of the data.
        until: Name of the site at which the run ends; None runs to the end.

    Returns:
        The sites in the order in which they were met.

    Raises:
        ValueError: if the story is no generator function, does not take the networks, reads data that are not there,
            yields something else than a site, or meets one twice.

    Example:
    >>> def story(data):
    ...     level = yield Global("level", bdl.svi.Flat())
    ...     yield Observed("y", bdl.svi.Flat(), level + data)
    >>> [float(visit.log_prob()[0]) for visit in run(story, np.ones(3), lambda site: np.ones(3))[1:]]
    [0.0]
    """
    told = _begun(story, data, networks or {})
    rows = num_rows(data) if rows is None else rows
    visits: dict[str, Visit] = {}
    value = None
    with contextlib.closing(told):
        while until is None or until not in visits:
            try:
                variable = _next(told, value, data)
            except StopIteration:
                break
            _check_variable(variable, visits)
            value = answer(variable)
            visits[variable.name] = Visit(variable, value, rows)
    return list(visits.values())


def _begun(story: Story, data: Any, networks: Mapping[str, Any]) -> Any:
    """The story as a generator."""
    parameters = list(inspect.signature(story).parameters.values())[1:]
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        needed = {each.name for each in parameters if each.default is inspect.Parameter.empty}
        names = [each.name for each in parameters]
        if set(networks) - set(names) or needed - set(networks):
            raise ValueError(
                f"`networks` must be those that the story takes by name after the data, {names}, not {list(networks)}."
            )
    told = story(data, **networks)
    if not inspect.isgenerator(told):
        raise ValueError(f"`story` must be a generator function that yields its sites, not {story!r}. Use yield.")
    return told


def _next(told: Any, value: Any, data: Any) -> Any:
    """What the story yields once it has been answered."""
    try:
        return told.send(value)
    except KeyError as error:
        key = error.args[0] if error.args else None
        if isinstance(data, Mapping) and key not in data:
            raise ValueError(f"`x` must have the key {key!r}, which the story reads, not {list(data)} only.") from error
        raise


def _check_variable(variable: Any, visits: Mapping[str, Visit]) -> None:
    if not isinstance(variable, Variable):
        raise ValueError(
            f"`story` must yield Global, Local or Observed sites, not {variable!r}. Yield each random variable as in: "
            "value = yield Global(name, distribution)."
        )
    name = variable.name
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(
            f"`name` of a site must be a text that is not empty and has no '/', which ends a group's name in files, "
            f"not {name!r}."
        )
    if name in visits:
        raise ValueError(f"Site {name!r} must be met once, not twice. Give each site its own name.")


@contextlib.contextmanager
def at_site(name: str) -> Iterator[None]:
    """Within this context errors of distributions name the site: a `ValueError` at its start, others in a note.

    Raises:
        ValueError: naming the site.

    Example:
    >>> with at_site("mean"):
    ...     raise ValueError("It must be positive.")
    Traceback (most recent call last):
    ...
    ValueError: Site 'mean': It must be positive.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Site {name!r}: {error}") from error
    except Exception as error:  # such as a backend's, where precisions differ
        error.add_note(f"This happened at site {name!r} of the story.")
        raise


def support_of_site(variable: Variable, site: Site | None = None) -> Any:
    """The support of a latent site.

    Args:
        variable: The site, as the story yields it.
        site: What the trace found of it; None within the trace.

    Raises:
        ValueError: naming the site, if it is discrete and not a local one, its distribution is not known, or has
            another number of values than on the batch that was traced.
    """
    with at_site(variable.name):
        support = supports.support_of(variable.distribution, takes_discrete=isinstance(variable, Local))
    # On TensorFlow a compiled function may not know the number of values; they are counts there, the same numbers.
    number = support.num_values if isinstance(support, supports.Discrete) else 0
    if site is not None and number and site.num_values != number:
        raise ValueError(f"Site {site.name!r} must have {site.num_values} values on all batches, not {number} on one.")
    return support


def _mask_of(variable: Observed, value: Tensor) -> Tensor | None:
    if variable.mask is None:
        return None
    mask = ops.convert_to_tensor(variable.mask)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool" or len(mask.shape) == 0:
        raise ValueError(
            f"`mask` of site {variable.name!r} must be booleans with the rows on their first axis, not {dtype} of the "
            f"shape {tuple(mask.shape)}. Give True where the value was observed."
        )
    _check_leading(variable.name, "mask", mask, value)
    return mask


_FIXES = {
    "log density": "Give the distribution the axes of the value, as in loc[:, None] for a value of shape (rows, 1).",
    "mask": "A mask says of each row, or of each event of the distribution, whether it was observed.",
}


def _check_leading(name: str, what: str, tensor: Tensor, whole: Tensor) -> None:
    """Checks that the shape of a tensor is that of the first axes of another; sizes may be open."""
    shape, expected = tuple(tensor.shape), tuple(whole.shape)
    fits = len(shape) <= len(expected) and all(
        own is None or other is None or own == other for own, other in zip(shape, expected, strict=False)
    )
    if not fits:
        raise ValueError(
            f"The {what} of site {name!r} must have the shape {expected} of its "
            f"{'value' if what == 'log density' else 'value or log density'}, or of its first axes, not {shape}. "
            f"{_FIXES[what]}"
        )


def _with_axes(mask: Tensor, rank: int) -> Tensor:
    """A mask with axes of size 1 behind its own, up to a rank."""
    for _ in range(rank - len(mask.shape)):
        mask = mask[..., None]
    return mask


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
