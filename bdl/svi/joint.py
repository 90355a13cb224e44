"""A joint distribution of TensorFlow Probability as a story."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import keras

from bdl.random import Tensor
from bdl.svi.story import Global, Local, Observed, Story, num_rows


def from_joint(
    joint: Any | Callable[[Any], Any], observed: Sequence[str] | Mapping[str, str], local: Sequence[str] = ()
) -> Story:
    """The story that a joint distribution of TensorFlow Probability tells, for `SVI` on TensorFlow.

    Its variables are the sites, under their names: those in `observed` are data, those in `local` have a value for each
    row, and all others are global. Log densities are those of `joint.log_prob`, to the last digits of float32.

    Observed and local variables have the rows on their first axis. `tfd.Sample` and `tfd.Independent`, which sum over
    the rows, are taken apart, so that each row has a density of its own.

    Args:
        joint: A `JointDistributionNamed`, `JointDistributionSequential` or `JointDistributionCoroutine`, or one of
            their `AutoBatched` kinds. Or a function of the data that returns one: batches, and rows that were not
            fitted, have predictors of their own, which a joint distribution that is made once does not see.
        observed: Names of the variables that are data, under the same keys; or a dict of the keys by name.
        local: Names of the variables with a value for each row.

    Returns:
        A generator function of the data, which are a dict.

    Raises:
        ValueError: if the backend is not TensorFlow, `joint` is something else, or a name is not one of its variables
            or in both lists; when the story runs, if the rows are not those of the joint distribution.

    Example:
    >>> import tensorflow_probability as tfp
    >>> tfd = tfp.distributions
    >>> def model(data):
    ...     return tfd.JointDistributionNamed({
    ...         "slope": tfd.Normal(0.0, 1.0),
    ...         "y": lambda slope: tfd.Independent(tfd.Normal(slope * data["x"], 0.5), 1),
    ...     })
    >>> svi = bdl.svi.SVI(from_joint(model, observed=["y"]), "full_rank", seed=0)
    >>> svi.compile(keras.optimizers.Adam(0.1))
    >>> x = np.linspace(0.0, 1.0, 20)
    >>> history = svi.fit({"x": x, "y": 2 * x}, batch_size="all", steps=100, verbose=0)
    >>> svi.posterior(num_samples=500)["slope"].shape
    (500,)
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"`joint` needs Keras' TensorFlow backend, with which TensorFlow Probability computes, not "
            f"{keras.backend.backend()}. Write a story with Global, Local and Observed sites there."
        )
    keys = dict(observed) if isinstance(observed, Mapping) else {name: name for name in _names(observed, "observed")}
    plated = _names(local, "local")
    both = sorted(set(keys) & set(plated))
    if both or not keys:
        raise ValueError(
            f"`observed` must name the variables that are data, at least one and none of `local`, not {sorted(keys)}"
            + (f" with {both} in both." if both else ".")
        )
    if _is_joint(joint) or not callable(joint):
        _check_names(_checked(joint), keys, plated)

    def story(data: Any) -> Iterator[Any]:
        made = joint if _is_joint(joint) else _checked(joint(data))
        _check_names(made, keys, plated)
        rows = num_rows(dict(data))
        told = _told(made)
        value = None
        while True:
            try:
                name, distribution = told.send(value)
            except StopIteration:
                return
            if name in keys:
                value = yield Observed(name, _by_row(distribution, name, rows, is_data=True), data[keys[name]])
            elif name in plated:
                value = yield Local(name, _by_row(distribution, name, rows, is_data=False))
            else:
                value = yield Global(name, distribution)

    return story


def _names(names: Sequence[str], argument: str) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`{argument}` must be a list of names of variables, not {names!r}.")
    return list(names)


def _is_joint(joint: Any) -> bool:
    import tensorflow_probability as tfp

    return isinstance(joint, tfp.distributions.JointDistribution)


def _is_of(joint: Any, kind: str) -> bool:
    """Whether it is a `"Named"`, `"Sequential"` or `"Coroutine"` one, batched automatically or not."""
    import tensorflow_probability as tfp

    tfd = tfp.distributions
    return isinstance(joint, tuple(getattr(tfd, f"JointDistribution{kind}{end}") for end in ("", "AutoBatched")))


def _checked(joint: Any) -> Any:
    if not any(_is_of(joint, kind) for kind in ("Named", "Sequential", "Coroutine")):
        raise ValueError(
            "`joint` must be a JointDistributionNamed, JointDistributionSequential or JointDistributionCoroutine of "
            f"TensorFlow Probability, or a function of the data that returns one, not {joint!r}."
        )
    return joint


def _check_names(joint: Any, observed: Mapping[str, str], local: Sequence[str]) -> None:
    known = _names_of(joint)
    for argument, names in (("observed", observed), ("local", local)):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"`{argument}` must name variables of `joint`, {known}, not {unknown}.")


def _names_of(joint: Any) -> list[str]:
    """Names of the variables, in the order in which they are told."""
    if _is_of(joint, "Coroutine"):
        return list(joint.dtype._fields)
    return [name for name, _ in joint.resolve_graph()]


def _told(joint: Any) -> Generator[tuple[str, Any], Any, None]:
    """Names and distributions, one after the other; each is answered with a value, on which later ones depend."""
    import tensorflow_probability as tfp

    if _is_of(joint, "Coroutine"):
        yield from _told_by_coroutine(joint)
        return
    model, is_named = joint.model, _is_of(joint, "Named")
    values: dict[str, Tensor] = {}
    for place, (name, parents) in enumerate(joint.resolve_graph()):
        key = name if is_named else place
        maker = getattr(model, name) if is_named and not isinstance(model, Mapping) else model[key]
        if isinstance(maker, tfp.distributions.Distribution):
            distribution = maker
        elif is_named:
            distribution = maker(**{parent: values[parent] for parent in parents})
        else:  # a function of the values before it, the last one first
            before = list(values.values())
            distribution = maker(*reversed(before[len(before) - len(parents) :]))
        values[name] = yield name, distribution


def _told_by_coroutine(joint: Any) -> Generator[tuple[str, Any], Any, None]:
    import tensorflow_probability as tfp

    told = joint.model()
    value = None
    for name in _names_of(joint):
        node = told.send(value)
        is_root = isinstance(node, tfp.distributions.JointDistributionCoroutine.Root)
        value = yield name, node.distribution if is_root else node
    told.close()


def _by_row(distribution: Any, name: str, rows: Any, is_data: bool) -> Any:
    """A distribution whose log density has a number for each row, of one whose event has the rows on its first axis."""
    import tensorflow_probability as tfp

    tfd = tfp.distributions
    if len(distribution.batch_shape) == 0 and isinstance(distribution, tfd.Independent):
        inner = distribution.distribution
        axes = len(inner.batch_shape)
        distribution = inner if axes == 1 else tfd.Independent(inner, axes - 1)
    elif len(distribution.batch_shape) == 0 and isinstance(distribution, tfd.Sample):
        shape = [int(length) for length in distribution.event_shape]
        own = len(shape) - len(distribution.distribution.event_shape)
        inner = distribution.distribution
        if len(inner.batch_shape) == 0:
            distribution = inner if own == 1 else tfd.Sample(inner, shape[1:own])
    if not isinstance(rows, int) or len(distribution.batch_shape) == 0:
        return distribution
    length = distribution.batch_shape[0]
    if length == rows + 1 and not is_data:  # the trace looks at one row fewer, to see which axis is the rows'
        return distribution[1:]
    if length is not None and length not in (1, rows):
        raise ValueError(
            f"`joint` must have the data's {rows} rows on the first axis of {name!r}, not {length}. A joint "
            'distribution that is made once holds all of its rows: fit it with batch_size="all", or give a function '
            "of the data that returns one."
        )
    return distribution
