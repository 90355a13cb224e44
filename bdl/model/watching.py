"""Where the weights' posterior is: what a fit's convergence is judged by."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import flatten_layers
from bdl.layers.variational import Variational
from bdl.posteriors import Component
from bdl.training.iterates import Iterate

MOST_WEIGHTS = 500
"""Weights that are watched: a read stays cheap, and the largest of so many R-hats still says something."""


class Watched:
    """Iterates of a model of a network; see `bdl.training.iterates.HasIterates`.

    They are the means and log scales of weights, and not the network's outputs: those would need data, and a run of the
    network at each read. So units that trade places count as movement, though no prediction changes.
    """

    network: keras.Model

    average = None
    convergence: Any = None

    def iterate(self) -> Iterate | None:
        """Means and scales of some weights, the same ones at each call; None where no weight has a scale."""
        means: list[np.ndarray] = []
        scales: list[np.ndarray] = []
        for _, part, chosen in self._watched():
            mean = ops.reshape(ops.convert_to_tensor(part.mean), (-1,))
            scale = ops.broadcast_to(part.posterior.scale(part.variables), ops.shape(part.mean))
            for found, values in ((means, mean), (scales, ops.log(ops.reshape(scale, (-1,))))):
                found.append(ops.convert_to_numpy(ops.take(ops.cast(values, "float32"), chosen)))
        return Iterate(np.concatenate(means), np.concatenate(scales)) if means else None

    def iterate_names(self) -> list[str]:
        """Names of their layers, with their places among the layer's numbers."""
        return [f"{name}[{place}]" for name, _, chosen in self._watched() for place in chosen]

    def _watched(self) -> list[tuple[str, Component, np.ndarray]]:
        """Layers' names, components of their posteriors, and places of what is watched of each."""
        parts = [
            (layer.name, part)
            for layer in flatten_layers(self.network)
            if isinstance(layer, Variational)
            for weight in layer.sampled_weights.values()
            for part in weight.components()
        ]
        sizes = [int(np.prod(part.mean.shape)) for _, part in parts]
        total = sum(sizes)
        chosen = np.sort(np.random.default_rng(0).choice(total, min(MOST_WEIGHTS, total), replace=False))
        ends = np.cumsum([0, *sizes])
        of_each = [chosen[(chosen >= first) & (chosen < end)] - first for first, end in itertools.pairwise(ends)]
        return [(*part, places) for part, places in zip(parts, of_each, strict=True) if places.size]
