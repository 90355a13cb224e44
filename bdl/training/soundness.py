"""Whether data can be trained on, before anything is compiled."""

from __future__ import annotations

from typing import Any, Protocol

import keras

from bdl.keras_internals import output_spec
from bdl.likelihoods.heads import Likelihoods, check_labels_of
from bdl.training.batches import batches, known_inputs, symbolic
from bdl.training.data import as_arrays, as_inputs, check_finite, check_lengths, first_batch, is_data_set


class Trained(Protocol):
    """A model that is trained on the labels of a likelihood."""

    network: keras.Model
    likelihood: Likelihoods

    def build_on(self, inputs: Any) -> None:
        """Builds the network, if it is not, by calling it on inputs."""


def checked_data(
    model: Trained, x: Any, y: Any = None, others: dict[str, Any] | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    """The data of `fit` and `evaluate` as Keras takes them; arrays are checked whole, of a data set the first batch.

    Args:
        model: What they are for; built on them if it is not.
        x: Inputs, or a data set.
        y: Labels, or None.
        others: Further arguments, `sample_weight` and `validation_data` among them.

    Returns:
        The same, plain lists as arrays and text as tensors.

    Raises:
        ValueError: if they differ in length or are not finite, or labels do not fit the likelihood.
    """
    others = dict(others or {})
    x, y = as_inputs(known_inputs(model.network, x)), as_arrays(y, "y")
    if others.get("sample_weight") is not None:
        others["sample_weight"] = as_arrays(others["sample_weight"], "sample_weight")
    validation = others.get("validation_data")
    if isinstance(validation, (tuple, list)):
        rest = (as_arrays(part, "validation_data") for part in validation[1:])
        others["validation_data"] = (as_inputs(validation[0], "validation_data"), *rest)
    if x is not None and not is_data_set(x):
        check_lengths({"x": x, "y": y, "sample_weight": others.get("sample_weight")})
    pair = (x, y) if y is not None else first_batch(x)
    if pair is not None:
        inputs = next(batches(pair[0], 1, 1, model.network)).inputs  # checks all of them
        check_finite(pair[1], "y")
        model.build_on(inputs)
        outputs = output_spec(model.network, symbolic(inputs, is_any_size=True))
        check_labels_of(model.likelihood, pair[1], outputs)
    return x, y, others
