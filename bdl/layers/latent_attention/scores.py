"""How a query is scored against keys: the score modes of attention, as layers with their weights."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor

SCORE_MODES = ("dot", "concat", "scaled_dot", "general", "additive")


class AlignmentScore(keras.layers.Layer):
    """Scores of queries and keys.

    Args:
        mode: `"dot"` and `"concat"` as in `keras.layers.Attention`; `"scaled_dot"`, divided by sqrt(dim); `"general"`,
            `q' W k` (Luong et al. 2015, eq. 8); `"additive"`, `v' tanh(W q + U k)` (Bahdanau et al. 2015, A.1.2).
        use_scale: Whether a learned scalar multiplies the scores; of `"dot"`, `"scaled_dot"` and `"concat"` only.
        units: Width of `"additive"`; None is the dimension of the keys.
    """

    def __init__(self, mode: str, use_scale: bool = False, units: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if mode not in SCORE_MODES:
            raise ValueError(f"`score_mode` must be one of {SCORE_MODES}, not {mode!r}.")
        if use_scale and mode in ("general", "additive"):
            raise ValueError(
                f"`use_scale=True` adds nothing to score_mode={mode!r}, whose weights have a scale. Drop it."
            )
        self.mode, self.use_scale, self.units = mode, use_scale, units
        self.supports_masking = True

    def build(self, query_shape: Any, key_shape: Any) -> None:
        """Adds the weights that the mode has."""
        if self.mode in ("dot", "concat", "scaled_dot") and query_shape[-1] != key_shape[-1]:
            raise ValueError(
                f"`score_mode={self.mode!r}` needs queries and keys of one dimension, not {query_shape[-1]} and "
                f"{key_shape[-1]}. Use score_mode='general' or 'additive'."
            )
        if self.use_scale:
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones")
        if self.mode == "concat":
            self.concat_score_weight = self.add_weight(name="concat_score_weight", shape=(), initializer="ones")
        if self.mode == "general":
            self.kernel = self.add_weight(name="kernel", shape=(query_shape[-1], key_shape[-1]))
        if self.mode == "additive":
            units = self.units or key_shape[-1]
            self.query_kernel = self.add_weight(name="query_kernel", shape=(query_shape[-1], units))
            self.key_kernel = self.add_weight(name="key_kernel", shape=(key_shape[-1], units))
            self.score_kernel = self.add_weight(name="score_kernel", shape=(units, 1))
        self.built = True

    def call(self, query: Tensor, key: Tensor) -> Tensor:
        """`(batch, queries, keys)`."""
        if self.mode == "additive":
            hidden = _pairs(ops.matmul(query, self.query_kernel), ops.matmul(key, self.key_kernel))
            return ops.squeeze(ops.matmul(ops.tanh(hidden), self.score_kernel), -1)
        scale = self.scale if self.use_scale else 1.0
        if self.mode == "concat":
            return self.concat_score_weight * ops.sum(ops.tanh(scale * _pairs(query, key)), axis=-1)
        if self.mode == "general":
            query = ops.matmul(query, self.kernel)
        scores = scale * ops.matmul(query, ops.swapaxes(key, -2, -1))
        return scores / math.sqrt(key.shape[-1]) if self.mode == "scaled_dot" else scores

    def compute_output_shape(self, query_shape: Any, key_shape: Any) -> Any:
        """Queries by keys."""
        return (*query_shape[:-1], key_shape[-2])


def _pairs(query: Tensor, key: Tensor) -> Tensor:
    """Sums of each query and each key, `(batch, queries, keys, dim)`."""
    return ops.expand_dims(query, -2) + ops.expand_dims(key, -3)
