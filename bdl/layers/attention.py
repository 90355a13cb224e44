"""Attention with a posterior over its projections."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from bdl.layers.named import NamedVariational

_PROJECTIONS = ("query", "key", "value", "attention_output")


class MultiHeadAttentionReparameterization(
    NamedVariational, wraps=layers.MultiHeadAttention, estimator="reparameterization"
):
    """`keras.layers.MultiHeadAttention` with one sampled kernel of each projection per call.

    The projections of the query, the key, the value (and the gate, with `use_gate=True`) and the output have kernels of
    the same prior and posterior, and biases of the same. A layer that is called again draws again: for keys and values
    that are kept between calls wrap the network that keeps them.

    It is called as the Keras layer is, with `query`, `value`, `key`, `attention_mask`, `return_attention_scores`,
    `use_causal_mask` and the others. Input shapes `(batch, targets, query_dim)` and
    `(batch, sources, value_dim)`, output shape `(batch, targets, query_dim)`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2, on each projection of Vaswani et
    al. 2017, "Attention is all you need", section 3.2.2.

    Example:
    >>> layer = MultiHeadAttentionReparameterization(num_heads=2, key_dim=3)
    >>> layer(np.ones((2, 4, 6)), np.ones((2, 5, 6)), use_causal_mask=True).shape == (2, 4, 6)
    True
    """

    def weight_names(self, layer: keras.Layer) -> tuple[Sequence[str], Sequence[str]]:
        """The kernels and the biases of the projections."""
        projections = (*_PROJECTIONS, "gate") if layer.get_config().get("use_gate") else _PROJECTIONS
        return [f"{name}/kernel" for name in projections], [f"{name}/bias" for name in projections]
