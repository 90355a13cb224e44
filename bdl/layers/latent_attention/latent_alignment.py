"""What latent attention layers share: their settings, the local KL, its figures, and what follows from an alignment."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bdl.estimators.stateless import computed_again
from bdl.keras_internals import set_signature
from bdl.latents import Alignment, add_local_kl, report_latent
from bdl.layers.documentation import complete_docstring, with_arguments_of
from bdl.layers.latent_attention import alignment
from bdl.layers.latent_attention.alignment_estimators import (
    NEED_DECODER,
    VARIATIONAL,
    AlignmentPosterior,
    Evaluation,
    check_estimator,
    context_weights,
    evaluations,
)
from bdl.layers.noise_layers import SEED_KEY, HasNoise
from bdl.likelihoods.mixture import NUM_EXTRAS, pack
from bdl.random import Tensor
from bdl.uncounted import warn_if_uncounted

STATISTICS = ("kl", "alignment_entropy", "mutual_information")
"""Figures of each head: nats per example; nats per query; what a query's alignment says of its example, in nats."""


class LatentAlignment(HasNoise, keras.layers.Layer):
    """Base of attention layers whose alignment is a latent variable.

    Subclasses score queries against keys, `infer` alignments from that, and take `context_weights` or `decode`.

    Args:
        estimator: How alignments are summed out: `"soft"`, `"marginal"`, `"enumerate"`, `"reinforce"`, `"gumbel"` or
            `"dirichlet"`.
        inference_network: Of q(z | x, y): None for q = p; `"dense"`, one Dense layer; or a layer or model from the
            concatenation of query and target, `(batch, queries, query_dim + target_dim)`, to a query of its own, of the
            keys' dimension (num_heads * key_dim), whose score is added to the prior's.
        decoder: Layer or model, applied at each position, from the concatenation of an alignment's value and the query,
            `(batch, queries, alignments, value_dim + query_dim)`, to the outputs that a `bdl.likelihoods.Mixture`
            reads; a functional one begins with `keras.Input((None, None, value_dim + query_dim))`.
        num_samples: Alignments to draw for each query where a decoder follows.
        temperature: Of gumbel; the lower, the less bias and the more variance.
        baseline: Control variate of reinforce: the other samples' mean (`"leave_one_out"`), the outputs of soft
            attention (`"soft"`), or `"none"`.
        block_size: Alignments to decode at a time, by a decoder without noise and moving means. The hidden values of a
            block are computed again in the backward pass, so that memory grows with keys by the outputs alone. None,
            or a number of keys that is not known before the call, decodes all at once.
        dropout: Share of attention weights that is dropped in training.
        seed: Integer seed of the noise, or None for a random one.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        set_signature(cls, with_arguments_of(cls, LatentAlignment))
        complete_docstring(cls, [LatentAlignment])

    def __init__(
        self,
        estimator: str = "soft",
        inference_network: Any = None,
        decoder: Any = None,
        num_samples: int = 2,
        temperature: float = 0.5,
        baseline: str = "leave_one_out",
        block_size: int | None = None,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_estimator(estimator, baseline, num_samples, temperature, dropout)
        if decoder is None and estimator in NEED_DECODER:
            raise ValueError(
                f"`decoder` is None, but estimator={estimator!r} evaluates what follows at single alignments. Pass the "
                "layers that follow as decoder= and train with Mixture(likelihood); or use 'gumbel' or 'dirichlet'."
            )
        if dropout and decoder is not None:
            raise ValueError(
                f"`dropout={dropout}` drops attention weights, which single alignments in front of a decoder do not "
                "have. Use dropout=0 here and a Dropout layer in the decoder."
            )
        if inference_network is not None and estimator not in VARIATIONAL:
            raise ValueError(
                f"`inference_network` is not used by estimator={estimator!r}; its estimators are {VARIATIONAL}."
            )
        if block_size is not None and (
            not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1
        ):
            raise ValueError(f"`block_size` must be a positive integer or None, not {block_size!r}.")
        self.estimator, self.num_samples, self.temperature = estimator, num_samples, temperature
        self.baseline, self.block_size, self.dropout = baseline, block_size, dropout
        self.decoder = decoder
        self._has_dense_inference = inference_network == "dense"
        self.inference_network: Any = None if self._has_dense_inference else inference_network
        self.supports_masking = True
        # TensorFlow's gamma noise, and recomputation in blocks, do not compile under XLA.
        if keras.backend.backend() == "tensorflow" and (estimator == "dirichlet" or block_size is not None):
            self.supports_jit = False
        self.create_noise(seed)

    @property
    def num_alignments(self) -> int:
        """Alignments of a query: one, or one per head."""
        return 1

    @property
    def sums_latents(self) -> bool:
        """Whether alignments are a latent variable, and not only their mean is plugged in."""
        return self.estimator != "soft"

    @property
    def uses_score_function(self) -> bool:
        """Whether the gradient of sampled alignments is REINFORCE's."""
        return self.estimator == "reinforce"

    def latent_figure_names(self) -> list[str]:
        """`STATISTICS` of each head, under the layer's name."""
        heads = [f"_head_{number}" for number in range(self.num_alignments)] if self.num_alignments > 1 else [""]
        return [f"{self.name}{head}_{statistic}" for head in heads for statistic in STATISTICS]

    def latent_figures(self) -> Tensor:
        """The figures of the present batch, in the order of their names."""
        return ops.reshape(ops.convert_to_tensor(self.statistics), (-1,))

    @property
    def is_variational(self) -> bool:
        """Whether q sees the target, so that it differs from p and has a KL."""
        return self._has_dense_inference or self.inference_network is not None

    def build_alignment(self, query_shape: Any, value_shape: Any, target_shape: Any, inference_units: int) -> None:
        """Builds what subclasses share, given the dimension of the values that are mixed."""
        self.add_noise_strength()
        shape = (self.num_alignments, len(STATISTICS))
        self.statistics = self.add_weight(
            name="statistics",
            shape=shape,
            initializer="zeros",
            trainable=False,
            dtype="float32",
            autocast=False,
            aggregation="only_first_replica",
        )
        if self.is_variational:
            if target_shape is None:
                raise ValueError(
                    f"`target` is missing: estimator={self.estimator!r} has an inference network, which sees it in "
                    "training. Call the layer with target=, features of y at each query."
                )
            if self._has_dense_inference:
                self.inference_network = keras.layers.Dense(inference_units, name="inference", dtype=self.dtype_policy)
            shape = (*query_shape[:-1], query_shape[-1] + target_shape[-1])
            if not self.inference_network.built:
                self.inference_network.build(shape)
            units = self.inference_network.compute_output_shape(shape)[-1]
            if units != inference_units:
                raise ValueError(
                    f"`inference_network` must give queries of the keys' dimension {inference_units}, not {units}. "
                    "Change the units of its last layer."
                )
        if self.decoder is not None and not self.decoder.built:
            self.decoder.build((*query_shape[:-1], None, value_shape[-1] + query_shape[-1]))
        if self.block_size is not None and self.decoder is not None and _has_state(self.decoder):
            raise ValueError(
                f"`block_size={self.block_size}` computes the decoder again in the backward pass, and this one draws "
                "noise or keeps moving means, which would then be others. Use block_size=None, or a decoder without "
                "dropout, sampling and batch normalization."
            )

    def posterior_query(self, query: Tensor, target: Tensor | None, training: bool | None) -> Tensor | None:
        """What the inference network makes of query and target; None where q is p."""
        if not training or not self.is_variational:
            return None
        warn_if_uncounted(self, training)
        if target is None:
            raise ValueError("`target` is None in training, but the inference network of q(z | x, y) needs it.")
        return self.inference_network(ops.concatenate([query, target], axis=-1))

    def infer(
        self, scores: Tensor, correction: Tensor | None, key_mask: Tensor | None, query_mask: Tensor | None
    ) -> AlignmentPosterior:
        """Prior and posterior of a call; adds the local KL, and keeps and reports its figures.

        Args:
            scores: `(batch, heads, queries, keys)`.
            correction: What the inference network adds to them; None where q is p.
            key_mask: Broadcastable to the scores.
            query_mask: `(batch, 1, queries)` or None.
        """
        scores = ops.cast(scores, "float32")
        posterior_scores = scores if correction is None else scores + ops.cast(correction, "float32")
        posterior = AlignmentPosterior(scores, posterior_scores, key_mask, self.estimator == "dirichlet")
        exists = ops.ones_like(scores[..., 0]) if query_mask is None else ops.cast(query_mask, "float32")
        kl = ops.zeros_like(scores[:, :, 0, 0])
        if not posterior.is_prior:
            kl = ops.sum(posterior.kl() * exists, axis=-1)
            add_local_kl(self, ops.sum(kl, axis=-1))
        self._keep_statistics(posterior, kl, exists, query_mask)
        mask = None if key_mask is None else ops.broadcast_to(key_mask, ops.shape(scores))
        report_latent(
            self,
            Alignment(
                alignment.probabilities(posterior.log_q, key_mask),
                mask,
                None if query_mask is None else ops.broadcast_to(query_mask, ops.shape(scores)[:-1]),
                alignment.probabilities(posterior.log_p, key_mask),
            ),
        )
        return posterior

    def context_weights(self, posterior: AlignmentPosterior, training: bool | None) -> Tensor:
        """Weights of the values, `(batch, heads, queries, keys)`, with dropout; for layers without a decoder."""
        key, strength = self.draw()
        weights = context_weights(posterior, self.estimator, self.temperature, key, strength, bool(training))
        if training and self.dropout:
            weights = keras.random.dropout(weights, self.dropout, seed=self.seed_generator)
        return weights

    def decode(self, posterior: AlignmentPosterior, value: Tensor, query: Tensor, training: bool | None) -> Tensor:
        """What follows from each alignment, packed: `(batch, queries, points, units + 2)`.

        Args:
            posterior: Of this call, of one shared alignment.
            value: `(batch, keys, value_dim)`.
            query: `(batch, queries, query_dim)`.
            training: Whether gradients are wanted.
        """
        key, strength = self.draw()
        settings = (self.estimator, self.temperature, self.num_samples, self.baseline)
        found = evaluations(posterior, *settings, key, strength, bool(training))
        parts = [self._decode_at(each, posterior.mask, value, query, training) for each in found]
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=2)

    def decoded_shape(self, query_shape: Any, value_shape: Any) -> Any:
        """Shape of `decode` outside training."""
        units = self.decoder.compute_output_shape((*query_shape[:-1], 1, value_shape[-1] + query_shape[-1]))[-1]
        points = {"soft": 1, "dirichlet": self.num_samples}.get(self.estimator, value_shape[-2])
        return (*query_shape[:-1], points, units + NUM_EXTRAS)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "inference_network": "dense" if self._has_dense_inference else serialize(self.inference_network),
            "decoder": serialize(self.decoder),
            "num_samples": self.num_samples,
            "temperature": self.temperature,
            "baseline": self.baseline,
            "block_size": self.block_size,
            "dropout": self.dropout,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Builds the layer again, and the networks inside it."""
        inside = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("inference_network", "decoder")
            if isinstance(config.get(name), dict)
        }
        return cls(**{**config, **inside})

    def _keep_statistics(
        self, posterior: AlignmentPosterior, kl: Tensor, exists: Tensor, query_mask: Tensor | None
    ) -> None:
        """Means over the batch of each head's figures, in a variable that the logs read."""
        log_q = ops.stop_gradient(posterior.log_q)
        exists = ops.broadcast_to(exists, ops.shape(log_q)[:-1])
        uncertain = alignment.entropy(log_q, posterior.mask)
        queries = ops.maximum(ops.sum(exists, axis=(0, 2)), 1.0)
        mean_entropy = ops.sum(uncertain * exists, axis=(0, 2)) / queries
        total = alignment.mutual_information(log_q, posterior.mask, query_mask)
        information = total * ops.cast(ops.shape(log_q)[0], "float32") / queries
        self.statistics.assign(ops.stack([ops.mean(ops.stop_gradient(kl), axis=0), mean_entropy, information], axis=-1))

    def _decode_at(
        self, found: Evaluation, mask: Tensor | None, value: Tensor, query: Tensor, training: bool | None
    ) -> Tensor:
        log_weight = ops.swapaxes(found.log_weight, -2, -1)
        if found.weights is None:
            context = ops.expand_dims(value, 1)
            context = ops.broadcast_to(context, (*ops.shape(log_weight), ops.shape(value)[-1]))
            if mask is not None:  # a query without any key sees nothing, whatever masked keys hold
                has_key = ops.any(ops.squeeze(mask, 1), axis=-1)[..., None, None]
                context = ops.where(has_key, context, ops.zeros_like(context))
        else:
            weights = ops.cast(found.weights, self.compute_dtype)
            context = ops.swapaxes(ops.matmul(weights, ops.expand_dims(value, 1)), 1, 2)
        queries = ops.broadcast_to(ops.expand_dims(query, 2), (*ops.shape(log_weight), ops.shape(query)[-1]))
        return pack(self._decoded(ops.concatenate([context, queries], axis=-1), training), log_weight, found.role)

    def _decoded(self, inputs: Tensor, training: bool | None) -> Tensor:
        points = inputs.shape[2]
        if self.block_size is None or points is None or points <= self.block_size:
            return self.decoder(inputs, training=training)
        decode = computed_again(self.decoder, training)
        # Split and not sliced: the gradient of a slice is padded to the whole for each block.
        blocks = ops.split(inputs, list(range(self.block_size, points, self.block_size)), axis=2)
        outputs, losses = zip(*map(decode, blocks), strict=True)
        self.add_loss(list(losses))
        return ops.concatenate(outputs, axis=2)


def _has_state(network: keras.Layer) -> bool:
    """Whether calling a built network changes it: seeds, or moving statistics."""
    endings = (SEED_KEY, "moving_mean", "moving_variance")
    return any(variable.path.endswith(endings) for variable in network.non_trainable_variables)
