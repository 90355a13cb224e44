"""Attention as inference over a latent alignment: layers with the signatures of Keras' own."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bdl.keras_internals import keras_mask
from bdl.layers.latent_attention import alignment
from bdl.layers.latent_attention.latent_alignment import LatentAlignment
from bdl.layers.latent_attention.scores import AlignmentScore
from bdl.random import Tensor

_register = keras.saving.register_keras_serializable(package="bdl")


@_register
class LatentAttention(LatentAlignment):
    """`keras.layers.Attention` whose softmax is the prior over a latent alignment z of each query with a key.

    The softmax of the scores is p(z | x). Soft attention plugs in its mean; the other estimators sum over z, or sample
    it. With an inference network q(z | x, y) sees the target in training, and KL(q || p), in nats per example over the
    queries that exist, joins the ELBO as a local KL. `estimator="soft"` without a decoder equals the Keras layer.

    Args:
        use_scale: Whether a learned scalar multiplies the scores.
        score_mode: `"dot"` and `"concat"` as in Keras; `"scaled_dot"`, `"general"` or `"additive"`.
        dropout: Share of attention weights that is dropped in training; 0 with a decoder.
        seed: Integer seed of the noise, or None for a random one.

    Call arguments: `inputs` `[query, value]` or `[query, value, key]`, `(batch, queries, dim)` and `(batch, keys,
    dim)`; `mask` `[query_mask, value_mask]`; `target`, features of y `(batch, queries, target_dim)`, for the inference
    network in training; `return_attention_scores`, `use_causal_mask` and `training` as in Keras. The scores returned
    are the probabilities of q in training and of p outside it.

    Output shape: `(batch, queries, value_dim)`; with a decoder `(batch, queries, alignments, units + 2)`, which
    `bdl.likelihoods.Mixture` reads.

    Raises:
        ValueError: if an argument is out of range, or a setting lacks what it needs.

    Source: Deng et al. 2018, "Latent alignment and variational attention", arXiv 1807.03756.

    Example:
    >>> query, value = keras.Input((5, 8)), keras.Input((7, 8))
    >>> outputs = LatentAttention(estimator="marginal", decoder=keras.layers.Dense(10))([query, value])
    >>> model = bdl.VariationalModel(
    ...     keras.Model([query, value], outputs), bdl.likelihoods.Mixture(bdl.likelihoods.Categorical()), num_examples=4
    ... )
    >>> model.predict_distribution([np.ones((4, 5, 8)), np.ones((4, 7, 8))], num_samples=1).probabilities.shape
    (4, 5, 10)
    """

    def __init__(
        self,
        use_scale: bool = False,
        score_mode: str = "dot",
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dropout=dropout, seed=seed, **kwargs)
        self.use_scale, self.score_mode = use_scale, score_mode
        self.score = AlignmentScore(score_mode, use_scale, name="score", dtype=self.dtype_policy)

    def build(self, inputs_shape: Any, target_shape: Any = None) -> None:
        """Builds scores, inference network and decoder."""
        if inputs_shape[0] is None or isinstance(inputs_shape[0], int):  # the shape of one tensor
            _check_inputs(None)
        _check_inputs(inputs_shape)
        query, value, key = (*inputs_shape, inputs_shape[1])[:3]
        self.score.build(query, key)
        self.build_alignment(query, value, target_shape, key[-1])
        self.built = True

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
        target: Tensor | None = None,
    ) -> Any:
        """Attends; see the class."""
        _check_inputs(inputs)
        query, value, key = (*inputs, inputs[1])[:3]
        # Keras fills in `mask` only where there is no target.
        query_mask, value_mask = (mask or [keras_mask(each) for each in inputs])[:2]
        scores = self.score(query, key)
        inferred = self.posterior_query(query, target, training)
        correction = None
        if inferred is not None:
            correction = ops.expand_dims(ops.matmul(inferred, ops.swapaxes(key, -2, -1)) / key.shape[-1] ** 0.5, 1)
        key_mask = key_mask_of(scores, value_mask, use_causal_mask)
        exists = None if query_mask is None else ops.expand_dims(query_mask, 1)
        posterior = self.infer(ops.expand_dims(scores, 1), correction, key_mask, exists)
        if self.decoder is not None:
            outputs = self.decode(posterior, value, query, training)
        else:
            weights = ops.cast(ops.squeeze(self.context_weights(posterior, training), 1), self.compute_dtype)
            outputs = ops.matmul(weights, value)
            if query_mask is not None:
                outputs = ops.where(ops.expand_dims(query_mask, -1), outputs, 0.0)
        if not return_attention_scores:
            return outputs
        return outputs, ops.cast(
            ops.squeeze(alignment.probabilities(posterior.log_q, posterior.mask), 1), self.compute_dtype
        )

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask of the queries."""
        return None if mask is None or mask[0] is None else ops.convert_to_tensor(mask[0])

    def compute_output_shape(self, inputs_shape: Any, target_shape: Any = None) -> Any:
        """Queries by the dimension of the values, or the decoder's packed outputs outside training."""
        query, value = inputs_shape[:2]
        return (*query[:-1], value[-1]) if self.decoder is None else self.decoded_shape(query, value)

    def compute_output_spec(self, inputs: Any, *args: Any, return_attention_scores: bool = False, **kwargs: Any) -> Any:
        """Shapes and dtypes of the outputs."""
        query, value, key = (*inputs, inputs[1])[:3]
        shape = self.compute_output_shape([query.shape, value.shape])
        outputs = keras.KerasTensor(shape, "float32" if self.decoder is not None else self.compute_dtype)
        if not return_attention_scores:
            return outputs
        return outputs, keras.KerasTensor((*query.shape[:-1], key.shape[-2]), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "use_scale": self.use_scale, "score_mode": self.score_mode}


def key_mask_of(scores: Tensor, value_mask: Tensor | None, use_causal_mask: bool) -> Tensor | None:
    """Keys that a query may attend to, `(batch or 1, 1, queries or 1, keys)`, or None for all."""
    mask = None if value_mask is None else ops.cast(value_mask, "bool")[:, None, None, :]
    if use_causal_mask:
        rows, columns = (ops.arange(ops.shape(scores)[axis]) for axis in (-2, -1))
        causal = ops.greater_equal(rows[:, None], columns[None, :])[None, None]
        mask = causal if mask is None else ops.logical_and(mask, causal)
    return mask


def _check_inputs(inputs: Any) -> None:
    if not isinstance(inputs, (list, tuple)) or not 2 <= len(inputs) <= 3:
        received = f"{len(inputs)} of them" if isinstance(inputs, (list, tuple)) else "one tensor"
        raise ValueError(f"`inputs` must be a list [query, value] or [query, value, key], not {received}.")
