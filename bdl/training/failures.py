"""Steps that fail: the model lives on as it was before the step, and batches that devices cannot share are named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from bdl.keras_internals import TakesUnevenBatches, keeping_state, num_shards, putting_state_back
from bdl.training.data import DEFAULT_BATCH_SIZE

TRAINED_STATE = ("trainable", "non_trainable", "optimizer", "metrics")
_STATES = {
    "train_function": TRAINED_STATE,
    "test_function": ("trainable", "non_trainable", "metrics"),
}
"""What the compiled steps of Keras' JAX trainer take."""


class SurvivesFailures(TakesUnevenBatches):
    """Mixin of a Keras model whose `fit` and `evaluate` leave it whole where they fail, on JAX, too."""

    def make_train_function(self, force: bool = False) -> Any:
        """As `keras.Model.make_train_function`."""
        self._keep_state("train_function", force)

    def make_test_function(self, force: bool = False) -> Any:
        """As `keras.Model.make_test_function`."""
        self._keep_state("test_function", force)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`."""
        with self._living_on():
            return super().fit(*args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`."""
        with self._living_on():
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def _keep_state(self, name: str, force: bool) -> None:
        """Makes a compiled function as Keras does; a new one keeps the state of the model where it fails."""
        before = getattr(self, name, None)
        getattr(super(), f"make_{name}")(force)
        made = getattr(self, name)
        if made is not before:
            model: Any = self
            setattr(self, name, keeping_state(made, model, _STATES[name]))

    @contextlib.contextmanager
    def _living_on(self) -> Iterator[None]:
        model: Any = self
        try:
            with putting_state_back(model):
                yield
        except Exception as error:
            if type(error).__name__ != "IndivisibleError":  # of JAX
                raise
            raise ValueError(
                f"`x` must give batches of a multiple of {num_shards()} rows, the last one, too, for the devices of "
                f"`keras.distribution` to share them evenly: {error}. Choose such a size, and leave out the rest."
            ) from error


def check_shares(num_examples: int | None, batch_size: int | None) -> None:
    """Refuses arrays whose batches cannot be dealt out evenly to the devices, before anything is trained.

    Args:
        num_examples: Rows of the arrays; None where it is not known.
        batch_size: Rows in a batch; None is Keras' own.

    Raises:
        ValueError: if a batch would not be a multiple of the devices.

    Example:
    >>> check_shares(7, 4)
    """
    shards = num_shards()
    if num_examples is None or shards == 1:
        return
    size, left = min(batch_size or DEFAULT_BATCH_SIZE, num_examples), num_examples % shards
    if size % shards or left:
        more = f", and leave out {left} of the rows" if left else ""
        raise ValueError(
            f"`batch_size` must deal out each batch evenly to the {shards} devices of `keras.distribution`, the last "
            f"one, too, not {num_examples} rows in batches of {size}. Choose a multiple of {shards}{more}."
        )
