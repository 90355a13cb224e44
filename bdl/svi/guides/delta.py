"""The point guide: the posterior's mode."""

from __future__ import annotations

from typing import Any

import keras

from bdl.random import Tensor
from bdl.svi.guides.base import LocationScaleGuide
from bdl.svi.guides.gaussian import Point


@keras.saving.register_keras_serializable(package="bdl")
class Delta(LocationScaleGuide):
    """A point, for globals: the fit is the mode of the posterior (MAP), in the values' own units.

    Its KL is `-log p(value)`, without the log determinant of the way to the real line, so that the mode is the usual
    one. `elbo` is the log joint density of data and point per example, and no bound of the evidence.

    Args:
        **kwargs: Of `keras.Layer`.

    Example:
    >>> guide = Delta()
    >>> guide.bind({"mean": 1})
    >>> np.asarray(guide.distribution().draw(np.ones(1, "float32")))
    array([0.], dtype=float32)
    """

    is_point = True

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Point:
        """The point."""
        return Point(self.value(self.origin) + self.value(self.frame) * self.value(self.shift))
