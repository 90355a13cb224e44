"""One likelihood, or one for each output of a network whose outputs are a dict: what a model needs of either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import keras_mask, with_mask_of
from bdl.likelihoods.base import Likelihood
from bdl.random import Tensor

Likelihoods = Likelihood | Mapping[str, Likelihood]


def heads_of(likelihood: Likelihoods) -> list[Likelihood]:
    """Each likelihood once, also one of several outputs."""
    heads = likelihood.values() if isinstance(likelihood, Mapping) else [likelihood]
    return list({id(head): head for head in heads}.values())


def nll_of(likelihood: Likelihoods, y: Any, y_pred: Any) -> Tensor:
    """Of each example, summed over outputs, in nats; of each draw and example for a list of draws."""
    if isinstance(y_pred, list):
        return ops.stack([nll_of(likelihood, y, draw) for draw in y_pred])
    if not isinstance(likelihood, Mapping):
        return likelihood.nll(y, y_pred, keras_mask(y_pred))
    return sum(head.nll(y[name], y_pred[name], keras_mask(y_pred[name])) for name, head in likelihood.items())


def mean_of(likelihood: Likelihoods, y_pred: Any) -> Any:
    """The likelihood's mean; for a list of draws the mean of theirs."""
    if isinstance(y_pred, list):
        means = [mean_of(likelihood, draw) for draw in y_pred]
        return keras.tree.map_structure(lambda *each: with_mask_of(ops.mean(ops.stack(each), axis=0), each[0]), *means)
    if isinstance(likelihood, Mapping):
        return {name: head.mean(y_pred[name]) for name, head in likelihood.items()}
    return likelihood.mean(y_pred)


def penalty_of(likelihood: Likelihoods) -> Tensor:
    """What scale priors charge, each once, as the weights of a shared layer; scalar, total, in nats."""
    return sum((head.penalty() for head in heads_of(likelihood)), ops.zeros((), dtype="float32"))


def check_labels_of(likelihood: Likelihoods, y: Any, outputs: Any) -> None:
    """Refuses labels that do not fit.

    Args:
        likelihood: What the outputs mean.
        y: Labels; a dict of them for several outputs.
        outputs: Specification of the network's outputs.

    Raises:
        ValueError: if they do not.
    """
    if not isinstance(likelihood, Mapping):
        likelihood.check_labels(_to_numpy(y), tuple(outputs.shape))
        return
    for name, head in likelihood.items():
        head.check_labels(_to_numpy(y[name]), tuple(outputs[name].shape))


def _to_numpy(values: Any) -> np.ndarray:
    return ops.convert_to_numpy(values) if ops.is_tensor(values) else np.asarray(values)
