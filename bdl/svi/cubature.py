"""Points in the place of draws: expectations over global sites by a rule, without chance.

A standard normal of d numbers has the 2 d points `+-sqrt(d)` along its axes, each of the weight 1 / (2 d). Their mean
is zero and their covariance the identity, so that expectations of cubics are exact. They come in mirrored pairs, as
draws do (Arasaratnam and Haykin 2009, "Cubature Kalman filters", section III).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bdl.arguments import check_num_samples
from bdl.svi.guides import Guide
from bdl.svi.guides.per_row import MOST_NUMBERS

CUBATURE = "cubature"


def check_draws(num_samples: Any, objective: str) -> int | str:
    """The argument `num_samples` of a model.

    Raises:
        ValueError: if it is neither a positive integer nor `"cubature"`, or that with the multi-sample objective.

    Example:
    >>> check_draws(4, "elbo"), check_draws("cubature", "elbo")
    (4, 'cubature')
    """
    if not isinstance(num_samples, str):
        return check_num_samples(num_samples, 'draws in a training step, or "cubature"')
    if num_samples != CUBATURE or objective != "elbo":
        raise ValueError(
            f"`num_samples` must be a positive integer, or 'cubature' with objective='elbo', not {num_samples!r} with "
            f"{objective!r}."
        )
    return num_samples


def num_points(guides: Sequence[Guide]) -> int:
    """Evaluations of the story in a step.

    Raises:
        ValueError: if the global sites have too many numbers.
    """
    size = sum(_sizes(guides))
    if size > MOST_NUMBERS:
        raise ValueError(
            f"`num_samples` must be an integer for global sites of more than {MOST_NUMBERS} numbers on the real line, "
            f"not 'cubature' for {size}: each is two evaluations of the story. Pass num_samples=2."
        )
    return max(2 * size, 2)


def points_of(guides: Sequence[Guide], guide: Guide) -> np.ndarray:
    """The noise of a global guide at each point, `(points, noise_size)`.

    Example:
    >>> from bdl.svi import MeanField
    >>> one, two = MeanField(), MeanField()
    >>> one.bind({"a": 1}), two.bind({"b": 1})
    (None, None)
    >>> points_of([one, two], two).round(2).tolist()
    [[0.0], [-0.0], [1.41], [-1.41]]
    """
    sizes = _sizes(guides)
    place = next(number for number, each in enumerate(guides) if each is guide)
    start = sum(sizes[:place])
    axes = np.sqrt(sum(sizes)) * np.eye(sum(sizes))
    points = np.stack([axes, -axes], axis=1).reshape(-1, sum(sizes))
    return points[:, start : start + sizes[place]] if sum(sizes) else np.zeros((2, 0))


def _sizes(guides: Sequence[Guide]) -> list[int]:
    return [0 if guide.is_local else guide.noise_size for guide in guides]
