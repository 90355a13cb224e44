"""Figures of a training step for the logs: the parts of the ELBO, and what layers tell of their latent variables."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from bdl.elbo import ELBOParts
from bdl.keras_internals import flatten_layers
from bdl.protocols import HasLocalLatents
from bdl.random import Tensor

PARTS = ("nll", "kl", "elbo", "temperature")


def part_trackers() -> list[keras.metrics.Mean]:
    """A mean over batches for each part of the ELBO that is logged beside the loss.

    In float32 whatever Keras' `floatx`: the KL of a small network is more nats than the greatest float16 number.
    """
    return [keras.metrics.Mean(name=part, dtype="float32") for part in PARTS]


def update_parts(trackers: Sequence[keras.metrics.Mean], parts: ELBOParts, batch: Tensor) -> None:
    """Adds the parts of a batch of that many examples."""
    for tracker in trackers:
        tracker.update_state(getattr(parts, tracker.name), sample_weight=batch)


class LatentTracker(keras.metrics.Mean):
    """Mean over batches of one figure of a layer's latent variables.

    Args:
        layer: The layer.
        name: One of its `latent_figure_names()`.
    """

    def __init__(self, layer: HasLocalLatents, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self._layer, self._number = layer, layer.latent_figure_names().index(name)

    def update(self, batch: Tensor) -> None:
        """Adds the figure of the present batch, of that many examples: none, in a replica that has none."""
        figure = self._layer.latent_figures()[self._number]
        self.update_state(keras.ops.where(batch > 0, figure, 0.0), sample_weight=batch)


def latent_trackers(network: keras.Layer) -> list[LatentTracker]:
    """A tracker for every figure that the layers of a network tell of their latent variables."""
    return [
        LatentTracker(layer, name)
        for layer in flatten_layers(network)
        if isinstance(layer, HasLocalLatents)
        for name in layer.latent_figure_names()
    ]
