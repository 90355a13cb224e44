"""A prediction as columns of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from bdl.prediction.distributions import ClassificationPrediction, RegressionPrediction

MAX_EVENTS = 1000
"""Columns of one kind: a table with more is no table."""


def columns_of(
    prediction: Any, quantiles: Sequence[float] | None = None, classes: Sequence[Any] | None = None
) -> dict[str, np.ndarray]:
    """The figures of a prediction by name, one number for each input: columns of a table.

    `bdl evaluate` reads a file of them; it judges targets as Normal distributions of that mean and `std`. Of classes:
    `class` (the most probable), `p_<class>`, `total_uncertainty`, `aleatoric` and `epistemic` (nats); of labels of 0 or
    1 `probabilities` in the place of the first two. Of targets and counts: `mean`, `std` and the variances `aleatoric`
    and `epistemic`, then `quantile_<level>`. Where an input has several events their number follows (`mean_0`); of
    several outputs the output's name comes first (`kind/mean`).

    Args:
        prediction: What `predict_distribution` returned, or a dict or list of such.
        quantiles: Levels of the quantiles of targets and counts; None takes those of a summary.
        classes: The class of each column of probabilities; None takes their numbers.

    Returns:
        Arrays of shape `(n,)` by name.

    Raises:
        ValueError: if an input has more events than a table has columns, or names of classes do not fit.

    Example:
    >>> parameters = {"loc": np.array([[1.0, 5.0], [3.0, 5.0]]), "scale": np.ones((2, 2))}
    >>> prediction = bdl.prediction.RegressionPrediction(bdl.likelihoods.Normal(), parameters)
    >>> {name: column.tolist() for name, column in columns_of(prediction, quantiles=[0.5]).items()}["mean"]
    [2.0, 5.0]
    """
    columns = {}
    for output, part in _outputs(prediction):
        prefix = "" if output is None else f"{output}/"
        is_of_classes = isinstance(part, ClassificationPrediction)
        found = _of_classes(part, classes) if is_of_classes else _of_targets(part, quantiles)
        columns.update({prefix + name: column for name, column in found})
    return columns


def _outputs(prediction: Any) -> Iterator[tuple[Any, Any]]:
    """Predictions with the names, or numbers, of their outputs; None of one output."""
    for path, part in keras.tree.flatten_with_path(prediction):
        if part is not None:
            yield ("/".join(map(str, path)) if path else None), part


def _of_classes(
    prediction: ClassificationPrediction, classes: Sequence[Any] | None
) -> Iterator[tuple[str, np.ndarray]]:
    p = prediction.probabilities
    if not prediction.likelihood.has_class_axis:
        yield from _events("probabilities", p)
    else:
        names = list(range(p.shape[-1])) if classes is None else list(classes)
        if len(names) != p.shape[-1] or len(set(map(str, names))) != len(names):
            raise ValueError(
                f"`classes` must name {p.shape[-1]} different classes, one for each column, not {classes!r}."
            )
        yield from _events("class", np.asarray(names)[p.argmax(axis=-1)])
        for number, name in enumerate(names):
            yield from _events(f"p_{name}", p[..., number])
    for name in ("total_uncertainty", "aleatoric", "epistemic"):
        yield from _events(name, getattr(prediction, name))


def _of_targets(prediction: Any, quantiles: Sequence[float] | None) -> Iterator[tuple[str, np.ndarray]]:
    aleatoric, epistemic = prediction.aleatoric, prediction.epistemic
    yield from _events("mean", prediction.mean)
    yield from _events("std", np.sqrt(aleatoric + epistemic))
    yield from _events("aleatoric", aleatoric)
    yield from _events("epistemic", epistemic)
    kept = () if isinstance(prediction, RegressionPrediction) else prediction.levels
    levels = kept if quantiles is None else tuple(quantiles)
    for level, values in zip(levels, prediction.quantile(levels) if levels else (), strict=True):
        yield from _events(f"quantile_{level:g}", values)


def _events(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """A column, or one for each event of an input, numbered along the events' axes."""
    if values.ndim == 1 or values.shape[1:] == (1,):
        yield name, values.reshape(len(values))
        return
    events = values[0].size if len(values) else 0
    if events > MAX_EVENTS:
        raise ValueError(
            f"`prediction` must have at most {MAX_EVENTS} events for each input to be a table, not {events:,}. Write "
            "the arrays themselves, part by part: bdl.predict_parts gives them."
        )
    for place in np.ndindex(values.shape[1:]):
        yield "_".join([name, *map(str, place)]), values[(slice(None), *place)]
