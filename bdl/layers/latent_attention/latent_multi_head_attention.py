"""Multi-head attention as inference over latent alignments, with the signature of Keras' own."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bdl.layers.latent_attention import alignment
from bdl.layers.latent_attention.alignment_estimators import NEED_DECODER
from bdl.layers.latent_attention.latent_alignment import LatentAlignment
from bdl.layers.latent_attention.latent_attention import key_mask_of
from bdl.random import Tensor


@keras.saving.register_keras_serializable(package="bdl")
class LatentMultiHeadAttention(LatentAlignment):
    """`keras.layers.MultiHeadAttention` whose heads attend by latent alignments.

    Each head has an alignment of its own, with the KL, entropy and mutual information of each in the logs. Where a
    decoder follows every single alignment, the heads share one (`share_alignment=True`): its score is the sum of
    theirs, a product of experts. `estimator="soft"` without a decoder equals the Keras layer with the same weights, at
    queries that exist.

    Args:
        num_heads: Number of heads.
        key_dim: Dimension of a head's queries and keys.
        value_dim: Dimension of a head's values; None is `key_dim`.
        dropout: Share of attention weights that is dropped in training; 0 with a decoder.
        use_bias: Whether the projections have biases.
        output_shape: Dimension of the outputs; None is that of the query.
        share_alignment: Whether all heads share one alignment, as a decoder needs.
        kernel_initializer: Of the projections.
        bias_initializer: Of the projections.
        kernel_regularizer: Of the projections.
        bias_regularizer: Of the projections.
        kernel_constraint: Of the projections.
        bias_constraint: Of the projections.

    Call arguments: `query` `(batch, queries, dim)`, `value` and `key` `(batch, keys, dim)`, `attention_mask` `(batch,
    queries, keys)` or `(batch, heads, queries, keys)`, `query_mask`, `value_mask`, `key_mask`,
    `return_attention_scores`, `use_causal_mask` and `training` as in Keras; `target` `(batch, queries, target_dim)`,
    for the inference network in training.

    Output shape: `(batch, queries, output_dim)`; with a decoder `(batch, queries, alignments, units + 2)`, which
    `bdl.likelihoods.Mixture` reads.

    Raises:
        ValueError: if an argument is out of range, or heads that do not share an alignment have a decoder.

    Sources: Deng et al. 2018, arXiv 1807.03756; Vaswani et al. 2017, "Attention is all you need", section 3.2.2.

    Example:
    >>> layer = LatentMultiHeadAttention(num_heads=2, key_dim=3, estimator="gumbel", seed=0)
    >>> outputs, scores = layer(np.ones((2, 4, 6)), np.ones((2, 5, 6)), return_attention_scores=True)
    >>> outputs.shape == (2, 4, 6), scores.shape == (2, 2, 4, 5)
    (True, True)
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | None = None,
        *,
        share_alignment: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dropout=dropout, **kwargs)
        for argument, value in (("num_heads", num_heads), ("key_dim", key_dim), ("value_dim", value_dim or key_dim)):
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ValueError(f"`{argument}` must be a positive integer, not {value!r}.")
        if self.decoder is not None and num_heads > 1 and not share_alignment:
            needs = " needs a decoder, which" if self.estimator in NEED_DECODER else ": a decoder"
            raise ValueError(
                f"`share_alignment` is False with {num_heads} heads, but estimator={self.estimator!r}{needs} is "
                "evaluated once for each alignment: heads with one each would need keys^heads of them. Use "
                "share_alignment=True or num_heads=1; or 'soft', 'gumbel' or 'dirichlet' without a decoder."
            )
        self.num_heads, self.key_dim, self.value_dim = num_heads, key_dim, value_dim or key_dim
        self.use_bias, self.output_dim, self.share_alignment = use_bias, output_shape, share_alignment
        self._projections = {
            "kernel_initializer": keras.initializers.get(kernel_initializer),
            "bias_initializer": keras.initializers.get(bias_initializer),
            "kernel_regularizer": keras.regularizers.get(kernel_regularizer),
            "bias_regularizer": keras.regularizers.get(bias_regularizer),
            "kernel_constraint": keras.constraints.get(kernel_constraint),
            "bias_constraint": keras.constraints.get(bias_constraint),
        }

    @property
    def num_alignments(self) -> int:
        """One per head, or one for all."""
        return 1 if self.share_alignment else self.num_heads

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None, target_shape: Any = None) -> None:
        """Builds projections, inference network and decoder; projections in Keras' order."""
        key_shape = value_shape if key_shape is None else key_shape
        bias = "hd" if self.use_bias else None
        self.query_projection = self._projection("query", "btd,dhk->bthk", (self.num_heads, self.key_dim), bias)
        self.key_projection = self._projection("key", "btd,dhk->bthk", (self.num_heads, self.key_dim), bias)
        self.value_projection = self._projection("value", "btd,dhk->bthk", (self.num_heads, self.value_dim), bias)
        output_dim = self.output_dim or query_shape[-1]
        self.output_projection = self._projection(
            "attention_output", "bthk,hkd->btd", (output_dim,), "d" if self.use_bias else None
        )
        self.query_projection.build(query_shape)
        self.key_projection.build(key_shape)
        self.value_projection.build(value_shape)
        self.output_projection.build((*query_shape[:-1], self.num_heads, self.value_dim))
        mixed = (*value_shape[:-1], output_dim)
        self.build_alignment(query_shape, mixed, target_shape, self.num_heads * self.key_dim)
        self.built = True

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        target: Tensor | None = None,
    ) -> Any:
        """Attends; see the class."""
        keys = self.key_projection(value if key is None else key)
        scores = self._scores(self.query_projection(query), keys)
        inferred = self.posterior_query(query, target, training)
        correction = None
        if inferred is not None:
            shape = (*ops.shape(inferred)[:-1], self.num_heads, self.key_dim)
            correction = self._scores(ops.reshape(inferred, shape), keys)
        mask = key_mask_of(scores, _both(value_mask, key_mask), use_causal_mask)
        if attention_mask is not None:
            attention_mask = ops.cast(attention_mask, "bool")
            rank = len(attention_mask.shape)
            if rank == 4 and self.share_alignment and attention_mask.shape[1] != 1:
                raise ValueError(
                    f"`attention_mask` has one mask for each of {attention_mask.shape[1]} heads, which share an "
                    "alignment here (share_alignment=True). Pass one of shape (batch, queries, keys)."
                )
            mask = _both(mask, attention_mask[:, None] if rank == 3 else attention_mask)
        exists = None if query_mask is None else ops.expand_dims(query_mask, 1)
        posterior = self.infer(scores, correction, mask, exists)
        values = self.value_projection(value)
        if self.decoder is not None:
            # The output projection is linear: it may come before the sum over keys.
            outputs = self.decode(posterior, self.output_projection(values), query, training)
        else:
            weights = ops.cast(self.context_weights(posterior, training), self.compute_dtype)
            weights = ops.broadcast_to(weights, (*ops.shape(scores)[:1], self.num_heads, *ops.shape(scores)[2:]))
            outputs = self.output_projection(ops.einsum("bhtk,bkhd->bthd", weights, values))
        if not return_attention_scores:
            return outputs
        return outputs, ops.cast(alignment.probabilities(posterior.log_q, posterior.mask), self.compute_dtype)

    def compute_mask(self, query: Any, value: Any, query_mask: Any = None, **kwargs: Any) -> Any:
        """The mask of the queries."""
        return query_mask

    def compute_output_shape(self, query_shape: Any, value_shape: Any, key_shape: Any = None, **kwargs: Any) -> Any:
        """Queries by outputs, or the decoder's packed outputs outside training."""
        output_dim = self.output_dim or query_shape[-1]
        if self.decoder is None:
            return (*query_shape[:-1], output_dim)
        return self.decoded_shape(query_shape, (*value_shape[:-1], output_dim))

    def compute_output_spec(
        self, query: Any, value: Any, *args: Any, return_attention_scores: bool = False, **kwargs: Any
    ) -> Any:
        """Shapes and dtypes of the outputs."""
        shape = self.compute_output_shape(query.shape, value.shape)
        outputs = keras.KerasTensor(shape, "float32" if self.decoder is not None else self.compute_dtype)
        if not return_attention_scores:
            return outputs
        shape = (query.shape[0], self.num_alignments, query.shape[1], value.shape[1])
        return outputs, keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        serialized = {name: keras.saving.serialize_keras_object(value) for name, value in self._projections.items()}
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "use_bias": self.use_bias,
            "output_shape": self.output_dim,
            "share_alignment": self.share_alignment,
            **serialized,
        }

    def _projection(self, name: str, equation: str, output_shape: tuple[int, ...], bias: str | None) -> Any:
        shape = (None, *output_shape)
        axes = None if bias is None else equation.split("->")[1][-len(bias) :]
        return keras.layers.EinsumDense(
            equation,
            output_shape=shape,
            bias_axes=axes,
            name=name,
            dtype=self.dtype_policy,
            **_copies(self._projections),
        )

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """`(batch, alignments, queries, keys)`."""
        scores = ops.einsum("bthk,bshk->bhts", query / self.key_dim**0.5, keys)
        return ops.sum(scores, axis=1, keepdims=True) if self.share_alignment else scores


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return ops.logical_and(one, other)


def _copies(settings: dict[str, Any]) -> dict[str, Any]:
    """Initializers of their own for each projection, which must not start alike."""
    return {
        name: value.clone() if isinstance(value, keras.initializers.Initializer) else value
        for name, value in settings.items()
    }
