"""A prediction: the batches of the data, each evaluated by every network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from bdl.keras_internals import without_gradients
from bdl.sampling.sampler import SUMS, Sampler
from bdl.training.batches import Batch, batches


class Draws:
    """One prediction of one network, batch by batch.

    Args:
        sampler: The network's.
        inputs: Those of the first batch.
        num_samples: Draws of the network.
        consistent: Whether sample s has the same weights for all inputs.
        seed: Integer, or None to go on with the layers' own.
        keep_outputs: Whether to keep all outputs.
    """

    def __init__(
        self, sampler: Sampler, inputs: Any, num_samples: int, consistent: bool, seed: int | None, keep_outputs: bool
    ) -> None:
        self._sampler = sampler
        prepared = sampler.prepare(inputs, num_samples, consistent, seed, keep_outputs)
        self._run, self._values, self._seeds = prepared
        self._results: list[dict[str | None, dict[str, np.ndarray]]] = []
        self._start = 0

    def add(self, batch: Batch) -> None:
        """Evaluates a batch, which follows the one before in the data."""
        pairs = zip(self._values, self._seeds, strict=True)
        values = [value if new is None else new for value, new in pairs]
        self._values, filled = self._run(values, batch.inputs, ops.convert_to_tensor(self._start, dtype="int32"))
        self._results.append(self._sampler.to_arrays(filled, batch.size))
        self._start += batch.size

    def end(self) -> dict[str | None, dict[str, np.ndarray]]:
        """Leaves the state of stateful layers, and joins the batches.

        Returns:
            Of each head. For a classifier sums over samples: `entropy_sum`, and of probabilities
            `exp(p_scale) * p_sum`; otherwise the likelihood's parameters, `(num_samples, n, ...)`. With `keep_outputs`
            also `outputs`, `(num_samples, n, ...)`.
        """
        self._sampler.keep_stateful(self._values)
        return {head: _join([result[head] for result in self._results]) for head in self._sampler.heads}


def draw(
    samplers: Sequence[Sampler],
    x: Any,
    num_samples: int,
    batch_size: int | None = 32,
    consistent: bool = False,
    seed: int | None = None,
    keep_outputs: bool = False,
    steps: int | None = None,
) -> list[dict[str | None, dict[str, np.ndarray]]]:
    """Draws from the predictive distributions of several networks, which see each batch in turn: `x` is read once.

    Args:
        samplers: Of the networks; the seed of each is one higher than that of the one before.
        x: Arrays of any kind or a data set.
        num_samples: Draws of each network.
        batch_size: As of `bdl.training.batches.batches`.
        consistent: Whether sample s has the same weights for all inputs.
        seed: Integer, or None to go on with the layers' own.
        keep_outputs: Whether to keep all outputs.
        steps: As of `bdl.training.batches.batches`.

    Returns:
        What `Draws.end` gives, of each network.
    """
    stream = batches(x, batch_size, steps, samplers[0].network)
    first = next(stream)
    with without_gradients():
        draws = [
            Draws(sampler, first.inputs, num_samples, consistent, None if seed is None else seed + number, keep_outputs)
            for number, sampler in enumerate(samplers)
        ]
        for batch in itertools.chain([first], stream):
            for each in draws:
                each.add(batch)
        return [each.end() for each in draws]


def _join(results: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Batches put together: sums are `(n, ...)`, everything else `(num_samples, n, ...)`."""
    return {
        key: np.concatenate([result[key] for result in results], axis=0 if key in SUMS else 1) for key in results[0]
    }
