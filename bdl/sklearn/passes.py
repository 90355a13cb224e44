"""Training batches in an order that a seed decides, and no global state of Keras, NumPy or the backend."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np


class Passes(keras.utils.PyDataset):
    """Endless passes over the examples, each in an order of its own, cut into batches of one size.

    A batch may hold the end of one pass and the beginning of the next, so that all have the same size and nothing is
    compiled twice. Batch number i is a function of i and the seed.

    Args:
        arrays: Inputs, labels and, optionally, weights of the same examples.
        batch_size: Number of examples in a batch; at most all of them.
        seed: Decides the orders.

    Example:
    >>> passes = Passes([np.arange(5), np.arange(5)], batch_size=2, seed=0)
    >>> first_pass_and_second = np.concatenate([passes[number][0] for number in range(5)])
    >>> sorted(first_pass_and_second[:5].tolist()), sorted(first_pass_and_second[5:].tolist())
    ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """

    def __init__(self, arrays: Sequence[np.ndarray], batch_size: int, seed: int) -> None:
        super().__init__()
        self.arrays = tuple(arrays)
        self.num_examples = len(self.arrays[0])
        self.batch_size = min(batch_size, self.num_examples)
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}

    @property
    def num_batches(self) -> None:
        """None: there is always another batch."""
        return None

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        places = np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        first, last = (int(place) // self.num_examples for place in (places[0], places[-1]))
        orders = np.concatenate([self._order(number) for number in range(first, last + 1)])
        chosen = orders[places - first * self.num_examples]
        return tuple(array[chosen] for array in self.arrays)

    def _order(self, number: int) -> np.ndarray:
        """The order of a pass; those of the last two are kept."""
        order = self._orders.get(number)
        if order is None:
            order = np.random.default_rng([self.seed, number]).permutation(self.num_examples)
            self._orders = {key: kept for key, kept in self._orders.items() if key == number - 1} | {number: order}
        return order
