"""`VariationalModel`: a Keras model that trains on the ELBO and predicts with uncertainty."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras
from keras import ops

from bdl.arguments import check_free_bits, check_num_samples, check_objective
from bdl.elbo import KLSchedule, elbo_parts, kl_divergence, share_of_loss
from bdl.keras_internals import rows_per_replica, symbolic_inputs, take_losses
from bdl.latents import keep_local_kl, kl_of_draws, take_local_kl
from bdl.likelihoods.heads import Heads, Likelihoods
from bdl.model.comparing import Comparing
from bdl.model.drawing import DrawsWeights, check_plain
from bdl.model.fitting import Fitting
from bdl.model.predicting import Predicting
from bdl.model.watching import Watched
from bdl.random import Tensor
from bdl.serialization import take_format
from bdl.training.batches import known_inputs
from bdl.training.checks import check_estimators, warn_if_deterministic
from bdl.training.figures import latent_trackers, part_trackers, update_parts
from bdl.training.progress import Progress
from bdl.training.steps import strategy_scope
from bdl.uncounted import counted

FORMAT_VERSION = 1
"""Version of the configuration that `get_config` writes."""

# Of each thread its own: the replicas of a TensorFlow strategy are threads.
_is_training_step: ContextVar[bool] = ContextVar("is_training_step", default=False)


@keras.saving.register_keras_serializable(package="bdl")
class VariationalModel(DrawsWeights, Watched, Predicting, Comparing, Fitting):
    """Any Keras network with variational layers, trained on the ELBO.

    Everything works as for any Keras model: `compile`, `fit`, callbacks, `evaluate`, saving. The likelihood takes the
    loss's place. Logs hold `loss` (tempered, per example), `nll` (per example, mean over the draws of the step),
    `kl` (total; with it the `penalty()` of a likelihood's `scale_prior`), `elbo` (per example, always at T = 1) and
    `temperature`, all in nats. `val_loss` and `evaluate` are the negative ELBO at T = 1 for one draw per batch,
    whatever `kl_weight`, `free_bits`, `num_samples` and `objective` made of `loss`; `nll`, `kl` and `elbo` are the
    ELBO's parts. The NLLs of several outputs add up. `sample_weight` and `loss_weights` are in all these figures: they
    say how often something counts as observed. Regularizers, and what layers give to `add_loss`, are added to `loss`
    and `val_loss` as in Keras.

    Where weights are point estimates (the means of `TiedMean`, the default prior, and rank-1 weights) or a scale has a
    prior, `elbo` bounds the log probability of the data given these estimates, less their penalty, and not the evidence
    of the whole model: compare it between trainings of one prior and posterior, not across them.

    Args:
        network: Any Keras model with bdl layers. Raw outputs (logits) are better conditioned than probabilities.
        likelihood: `bdl.likelihoods.Likelihood`. For several outputs a dict of them by the outputs' names or a list in
            their order; None, or no entry, for an output without labels. One alone serves all outputs. `Categorical()`
            and `Bernoulli()` follow the network where it visibly ends in softmax or sigmoid: the attribute of this name
            says what was found.
        num_examples: Number of training examples, N. None infers it in `fit` from arrays, a `tf.data.Dataset` of known
            cardinality and static batch size, a `PyDataset` or a Torch `DataLoader`.
        kl_weight: Temperature T: a number (1.0 is Bayes throughout) or a `bdl.elbo.KLSchedule`. None is the default
            schedule: T rises linearly from 0 to 1 over the first 85 % of the first `fit`, then stays at 1.
        free_bits: Rate F of the latent variables of single examples (codes, alignments), in nats per example: the loss
            counts `max(batch mean of the local KL, F)`, so that nothing pushes them below F (Kingma et al. 2016, arXiv
            1606.04934). 0 is the ELBO, above it `loss` is not. The weights' KL has no part in it.
        num_samples: Draws S of the whole network in a training step, each an evaluation with noise of its own: a step
            costs S times as much, in memory too.
        objective: `"elbo"`: the mean of the NLL over the draws, the same objective as with one and less gradient noise.
            `"multi_sample"`: of each example `-log (1/S) sum_s exp(-(nll_s + T * local_kl_s))`, plus the weights' KL as
            ever (`bdl.elbo` has the formulas). Over random weights it trains the predictive mixture (PAC^m-Bayes), and
            is **not** a bound of the log evidence. It is one, the importance weighted bound, only where all randomness
            is in latent variables whose layers report `log q(z | x) - log p(z)` of their own draw, as
            `bdl.layers.NormalLatent` does; latent attention reports the divergence itself.
            Nothing in `loss` says how good the ELBO is: `elbo` does.
        optimizer_posterior: True for a plain network, whose weights get their posterior from the optimizer with which
            the model is then compiled, `bdl.optimizers.IVON`. T is constant, by default 1 throughout.
        name: Name of the model.
        **kwargs: Other arguments of `keras.Model`.

    Raises:
        ValueError: if an argument is of the wrong kind, likelihoods do not fit the network's outputs, or
            `"multi_sample"` meets `free_bits` or a score-function estimator.

    Sources: `bdl.elbo` names those of the objectives.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> model = VariationalModel(network, bdl.likelihoods.Categorical())
    >>> model.compile("adam")
    >>> history = model.fit(np.ones((20, 4)), np.zeros(20, int), epochs=2, verbose=0)
    >>> sorted(history.history)
    ['elbo', 'kl', 'loss', 'nll', 'temperature']
    >>> model.predict_distribution(np.ones((2, 4))).epistemic.shape
    (2,)
    """

    is_called_like_network = True  # which `bdl.keras_internals` asks for

    def __init__(
        self,
        network: keras.Model,
        likelihood: Likelihoods,
        num_examples: int | None = None,
        kl_weight: float | KLSchedule | None = None,
        free_bits: float = 0.0,
        num_samples: int = 1,
        objective: str = "elbo",
        optimizer_posterior: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(network, keras.Layer):
            raise ValueError(f"`network` must be a Keras model, not {network!r}.")
        super().__init__(name=name, **kwargs)
        self._heads = Heads(likelihood, network)
        self.network = network
        self.likelihood = self._heads.likelihood
        self.optimizer_posterior = bool(optimizer_posterior)
        default = 1.0 if self.optimizer_posterior and kl_weight is None else kl_weight
        self.progress = Progress(self, num_examples, default)
        self.kl_weight = kl_weight if isinstance(kl_weight, KLSchedule | None) else float(kl_weight)
        self.free_bits = check_free_bits(free_bits)
        self.num_samples = check_num_samples(num_samples)
        self.objective = check_objective(objective, self.free_bits)
        self._part_trackers = part_trackers()
        self._latent_trackers = latent_trackers(network)
        self._check_network()
        # A training step and a copy of the weights for a prediction exclude each other.
        self._begin_predicting(threading.RLock())
        if network.built:
            self._warn_if_deterministic()
            self.built = True

    @property
    def num_examples(self) -> int | None:
        """Number of training examples, or None before it is known."""
        return self.progress.num_examples

    @property
    def measured_examples(self) -> int | None:
        """Number of examples in the data of the last `fit`, whatever `num_examples` was given; None if not known."""
        return self.progress.measured_examples

    @property
    def step(self) -> int:
        """Training steps done so far."""
        return self.progress.step

    @property
    def temperature(self) -> float | None:
        """T of the next training step, or None where its schedule does not know its length yet."""
        return self.progress.temperature

    @property
    def final_temperature(self) -> float:
        """T once the schedule has run out, or on average over one that never does; a constant T is itself."""
        return self.progress.final_temperature

    def end_schedule(self) -> None:
        """Moves the count of steps to the end of the schedule of T, if that is before it."""
        self.progress.end_schedule()

    def build(self, input_shape: Any = None) -> None:
        """Builds the network."""
        if not self.network.built:
            # A symbolic call builds any network; `network.build` would not build a subclassed one.
            self.network(symbolic_inputs(input_shape))
        self._latent_trackers = latent_trackers(self.network)  # of layers that were made while building, too
        self._check_network()
        self._warn_if_deterministic()
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Raw network outputs for one draw of the weights; within a training step a list of `num_samples` of them."""
        inputs = known_inputs(self.network, inputs)
        if self.num_samples == 1:
            with self._at_drawn_weights(inputs):
                return self.network(inputs, training=training)
        take_losses(self)  # of the step before: Keras' JAX trainer, which goes past `__call__`, would leave them
        if not _is_training_step.get():
            return self.network(inputs, training=training)
        draws, losses, divergences = [], [], []
        for _ in range(self.num_samples):
            with kl_of_draws() if self.objective == "multi_sample" else contextlib.nullcontext():
                draws.append(self.network(inputs, training=training))
            losses.append(take_losses(self.network))
            divergences.append(take_local_kl(self.network))
        # What a layer gives to `add_loss` counts once per step: on average over the draws.
        for each in zip(*losses, strict=True):
            self.add_loss(ops.mean(ops.stack(each), axis=0))
        if divergences[0] is not None:
            keep_local_kl(self, ops.stack(divergences))
        return draws

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one training step as `keras.Model.train_step` does, with `num_samples` draws of the network."""
        with self.as_in_step(), self._drawing_to_train(*args):
            return super().train_step(*args, **kwargs)

    @contextlib.contextmanager
    def as_in_step(self) -> Iterator[None]:
        """Within this context a call is that of a training step: of all `num_samples` draws of the network."""
        token = _is_training_step.set(True)
        try:
            with counted():
                yield
        finally:
            _is_training_step.reset(token)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The objective per example, in nats; outside training the negative ELBO, at T = 1 and without free bits.

        Regularizers and what layers gave to `add_loss` are added, as in Keras.
        """
        draws = self._draws(y_pred)
        weights = self._heads.weights(sample_weight, draws[0], self._loss_weights)
        with self._at_drawn_likelihood():
            nll = [self._heads.nll(y, draw, weights) for draw in draws]
        parts = elbo_parts(
            nll[0] if len(nll) == 1 else ops.stack(nll),
            kl_divergence(self.network) + self._heads.penalty() + self._optimizer_kl(),
            self.progress.size,
            self.progress.current_temperature if training else 1.0,
            take_local_kl(self),
            weights.of_examples,
            self.free_bits if training else 0.0,
            self.objective if training else "elbo",
        )
        if training:
            self.progress.advance()
        batch = ops.shape(keras.tree.flatten(y_pred)[0])[0]
        update_parts(self._part_trackers, parts, rows_per_replica(batch))
        for tracker in self._latent_trackers:
            tracker.update(batch)
        added = sum(ops.cast(ops.sum(loss), "float32") for loss in self.losses)
        return share_of_loss(parts.loss + added)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Metrics of `compile` see the likelihood's mean (probabilities), on average over the draws of a step.

        Events that do not count, void or masked, are masked for them.
        """
        return super().compute_metrics(x, *self._heads.means(y, self._draws(y_pred), sample_weight))

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Refused with a ValueError, before anything is changed: integer weights have no posterior."""
        raise ValueError(
            f"A VariationalModel must not be quantized, as {self.name!r} would be: its layers would lose their noise. "
            "Quantize a copy of bdl.convert.to_deterministic(model), the plain model."
        )

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        differs = self.progress.is_size_given and self.measured_examples not in (None, self.num_examples)
        return {
            **({"measured_examples": self.measured_examples} if differs else {}),
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "likelihood": keras.saving.serialize_keras_object(self.likelihood),
            "num_examples": self.num_examples if self.progress.is_size_given else None,
            "kl_weight": keras.saving.serialize_keras_object(self.kl_weight),
            "free_bits": self.free_bits,
            "num_samples": self.num_samples,
            "objective": self.objective,
            **({"optimizer_posterior": True} if self.optimizer_posterior else {}),
            "format_version": FORMAT_VERSION,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> VariationalModel:
        """Builds the model again.

        Raises:
            ValueError: if the configuration was written by a newer version of bdl.
        """
        config = dict(config)
        take_format(config, FORMAT_VERSION)
        measured = config.pop("measured_examples", None)
        for name in ("network", "likelihood", "kl_weight"):
            config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        model = cls(**config)
        model.progress.measured_examples = measured
        return model

    def build_on(self, inputs: Any) -> None:
        """Builds the network, if it is not, by calling it on inputs."""
        if not self.network.built:
            with strategy_scope(self):
                self(
                    keras.tree.map_structure(lambda each: None if each is None else ops.convert_to_tensor(each), inputs)
                )

    def _check_network(self) -> None:
        """Refuses a network that does not go with the objective, or with where the posterior is."""
        check_estimators(self.network, self.objective)
        if self.optimizer_posterior:
            check_plain(self.network, self._heads, self.kl_weight, self.num_samples)

    def _warn_if_deterministic(self) -> None:
        if not self.optimizer_posterior:
            warn_if_deterministic(self.network)

    def _draws(self, outputs: Any) -> list[Any]:
        """What `call` returned, one entry for each draw of the network."""
        return list(outputs) if self.num_samples > 1 and _is_training_step.get() else [outputs]
