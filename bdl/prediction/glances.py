"""How a prediction shows itself: what it is, and its first events."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bdl.report import Paragraph, Row, Table

NUM_SHOWN = 5
"""Events."""


def glance(
    prediction: Any, what: str, shape: tuple[int, ...], columns: Mapping[str, np.ndarray]
) -> list[Paragraph | Table]:
    """A heading, and the first events as rows.

    Args:
        prediction: Its class and its number of samples are told.
        what: What it is of.
        shape: Of the events.
        columns: Figures of the first events at least.
    """
    places = list(itertools.islice(np.ndindex(shape), NUM_SHOWN))
    cells = zip(*(np.ravel(values)[: len(places)] for values in columns.values()), strict=True)
    rows = [
        Row(f"event {place[0] if len(place) == 1 else place}", [_shown(value) for value in values])
        for place, values in zip(places, cells, strict=True)
    ]
    left_out = math.prod(shape) - len(places)
    caption = f"and {left_out:,} more events" if left_out else ""
    heading = f"{type(prediction).__name__}: {what}, {prediction.num_samples} samples"
    return [Paragraph(heading), Table(list(columns), rows, caption)]


def glance_at_targets(prediction: Any, few: Any, examples: int) -> list[Paragraph | Table]:
    """Mean and standard deviations of the first events.

    Args:
        prediction: Of targets.
        few: The same of its first examples, five events at least; not of all, which may be millions.
        examples: How many there are.
    """
    mean, noise, doubt = few.mean, few.aleatoric, few.epistemic
    columns = {
        "mean": mean,
        "std": np.sqrt(noise + doubt),
        "aleatoric std": np.sqrt(noise),
        "epistemic std": np.sqrt(doubt),
    }
    what = f"{examples:,} examples of {type(prediction.likelihood).__name__}"
    return glance(prediction, what, (examples, *mean.shape[1:]), columns)


def _shown(value: np.number) -> str:
    return f"{value:.4g}" if isinstance(value, np.floating) else f"{value}"
