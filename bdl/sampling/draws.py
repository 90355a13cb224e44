"""A prediction: the batches of the data, each evaluated by every network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from keras import ops

from bdl.keras_internals import without_gradients
from bdl.sampling.running import PARAMETERS, SUMS, Kept
from bdl.sampling.sampler import Sampler
from bdl.training.batches import Batch, batches

Drawn = dict[str | None, dict[str, np.ndarray]]
"""What one network drew, by head. Of a classifier sums over samples: `entropy_sum`, and of probabilities
`exp(p_scale) * p_sum`; of targets and counts what `Kept` says."""


MAX_ROW = 2**31 - 1
"""The place of an example is a 32-bit integer in compiled code."""


class Draws:
    """One prediction of one network, batch by batch.

    Args:
        sampler: The network's.
        inputs: Those of the first batch.
        num_samples: Draws of the network.
        consistent: Whether sample s has the same weights for all inputs.
        seed: Integer, or None to go on with the layers' own.
        kept: What is kept of the samples.
        first_row: Place of the first example in the data.
    """

    def __init__(
        self,
        sampler: Sampler,
        inputs: Any,
        num_samples: int,
        consistent: bool,
        seed: int | None,
        kept: Kept,
        first_row: int,
    ) -> None:
        self._sampler = sampler
        self._run, self._values, self._seeds = sampler.prepare(inputs, num_samples, consistent, seed, kept)
        self._kept = kept
        self._start = first_row

    def evaluate(self, batch: Batch) -> Drawn:
        """What is drawn for a batch, which follows the one before in the data."""
        if self._start + batch.size > MAX_ROW + 1:
            raise ValueError(
                f"`x` must end with row {MAX_ROW:,} of the data, for the place of an example is a 32-bit integer. "
                "Predict the rest apart, with another seed."
            )
        pairs = zip(self._values, self._seeds, strict=True)
        values = [value if new is None else new for value, new in pairs]
        self._values, filled = self._run(values, batch.inputs, ops.convert_to_tensor(self._start, dtype="int32"))
        self._start += batch.size
        return self._sampler.to_arrays(filled, batch.size, self._kept)

    def end(self) -> None:
        """Leaves the state of stateful layers."""
        self._sampler.keep_stateful(self._values)


def draw(
    samplers: Sequence[Sampler],
    x: Any,
    num_samples: int,
    batch_size: int | None = 32,
    consistent: bool = False,
    seed: int | None = None,
    kept: Kept = PARAMETERS,
    steps: int | None = None,
    first_row: int = 0,
    part_size: int | None = None,
) -> Iterator[list[Drawn]]:
    """Draws from the predictive distributions of several networks, which see each batch in turn: `x` is read once.

    Args:
        samplers: Of the networks; the seed of each is one higher than that of the one before.
        x: Arrays of any kind or a data set.
        num_samples: Draws of each network.
        batch_size: As of `bdl.training.batches.batches`.
        consistent: Whether sample s has the same weights for all inputs.
        seed: Integer, or None to go on with the layers' own.
        kept: What is kept of the samples.
        steps: As of `bdl.training.batches.batches`.
        first_row: Place of the first example in the data that `x` is a part of.
        part_size: Examples that are drawn for before they are given, rounded up to whole batches; None takes all.

    Yields:
        What each network drew for the next examples.
    """
    stream = batches(x, batch_size, steps, samplers[0].network)
    first = next(stream)
    with without_gradients():
        draws = [
            Draws(
                sampler, first.inputs, num_samples, consistent, None if seed is None else seed + number, kept, first_row
            )
            for number, sampler in enumerate(samplers)
        ]
    part: list[list[Drawn]] = []
    rows = 0
    for batch in itertools.chain([first], stream):
        with without_gradients():  # not while others work on a part
            part.append([each.evaluate(batch) for each in draws])
        rows += batch.size
        if part_size is not None and rows >= part_size:
            yield _joined(part)
            part, rows = [], 0
    for each in draws:
        each.end()
    if part:
        yield _joined(part)


def _joined(part: list[list[Drawn]]) -> list[Drawn]:
    """Batches put together, for each network: sums are `(n, ...)`, everything else `(num_samples, n, ...)`."""
    return [
        {head: _concatenated([batch[head] for batch in of_network]) for head in of_network[0]}
        for of_network in zip(*part, strict=True)
    ]


def _concatenated(results: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        key: np.concatenate([result[key] for result in results], axis=0 if key in SUMS else 1) for key in results[0]
    }
