"""Whether data can be trained on, before anything is compiled."""

from __future__ import annotations

from typing import Any, Protocol

import keras

from bdl.keras_internals import output_spec
from bdl.likelihoods.heads import Heads
from bdl.training.batches import batches, known_inputs, symbolic
from bdl.training.checks import check_outputs, outputs_on
from bdl.training.data import as_arrays, as_inputs, check_lengths, first_batch, is_data_set


class Trained(Protocol):
    """A model around a network."""

    network: keras.Model

    def build_on(self, inputs: Any) -> None:
        """Builds the network, if it is not, by calling it on inputs."""


def checked_data(
    model: Trained,
    heads: Heads,
    x: Any,
    y: Any = None,
    others: dict[str, Any] | None = None,
    loss_weights: Any = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """The data of `fit` and `evaluate` as Keras takes them; arrays are checked whole, of a data set the first batch.

    Args:
        model: What they are for; built on them if it is not.
        heads: Likelihoods of its outputs.
        x: Inputs, or a data set.
        y: Labels, or None.
        others: Further arguments, `sample_weight` and `validation_data` among them.
        loss_weights: As of `compile`.

    Returns:
        The same, plain lists as arrays and text as tensors.

    Raises:
        ValueError: if they differ in length or are not finite, or labels or weights do not fit the outputs.
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
    batch = (x, y, others.get("sample_weight")) if y is not None else first_batch(x)
    if batch is not None:
        inputs, labels, weights = batch
        first = next(batches(inputs, 1, 1, model.network)).inputs  # which looks at all of them
        model.build_on(first)
        outputs = output_spec(model.network, symbolic(first, is_any_size=True))
        heads.check_labels(labels, outputs, weights, lambda count: outputs_on(model.network, inputs, count))
        heads.weights(None, outputs, loss_weights)
        check_outputs(model.network, heads, inputs, outputs)
    return x, y, others
