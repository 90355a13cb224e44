"""Trainings and evaluations of a `VariationalModel`: Keras' own, with what bdl must know before and do after."""

from __future__ import annotations

from typing import Any

import keras

from bdl.keras_internals import own_buffers
from bdl.likelihoods.heads import Heads
from bdl.model.drawing import check_optimizer
from bdl.training import data as training_data
from bdl.training import refit
from bdl.training.failures import check_shares
from bdl.training.progress import Progress, begin_decay
from bdl.training.resident import FitsOnDevice
from bdl.training.soundness import checked_data
from bdl.training.steps import build_optimizer, inform_optimizer, prepared


class Fitting(FitsOnDevice, keras.Model):
    """`compile`, `fit`, `evaluate` and steps on batches of a model of a network; see `bdl.VariationalModel`.

    Attributes:
        progress: N, T and the steps so far.
    """

    network: keras.Model
    optimizer_posterior: bool
    progress: Progress
    _heads: Heads
    _weights_lock: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loss_weights: Any = None

    def compile(self, optimizer: Any = "adam", loss: None = None, loss_weights: Any = None, **kwargs: Any) -> None:
        """Compiles as `keras.Model.compile` does, without a loss: the likelihood says what the loss is.

        `loss_weights` multiply the outputs' NLLs, in training and evaluation: exponents of likelihoods, 1 is Bayes.
        With `steps_per_execution=k`, k steps of a fit to arrays are one compiled call, on data that stay on the device.

        Raises:
            ValueError: if a loss is given.
        """
        if loss is not None:
            raise ValueError(
                f"`loss` must be None, not {loss!r}: VariationalModel trains on the ELBO of its likelihood. "
                "Choose the likelihood instead (Normal for mse, Categorical for cross-entropy)."
            )
        check_optimizer(self, optimizer)
        self._loss_weights = loss_weights
        super().compile(optimizer=optimizer, loss=None, loss_weights=loss_weights, **kwargs)
        inform_optimizer(self)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles again after loading."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            build_optimizer(self)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the training function. Predictions in other threads copy the weights between two steps."""
        before: Any = getattr(self, "train_function", None)
        super().make_train_function(force)
        made: Any = getattr(self, "train_function", None)
        if made is not before:
            self.train_function = prepared(made, self, self._weights_lock)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        *,
        initial_epoch: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Trains as `keras.Model.fit` does, after it has found N and the length of the schedule.

        The default schedule of T runs over the epochs of the first fit, from `initial_epoch` on; later fits go on at
        T = 1. For `fit(epochs=1)` in a loop, give the model `kl_weight=bdl.elbo.LinearWarmup(steps=...)`. Early
        stopping before the end of the ramp leaves T below 1: use `EarlyStopping(..., start_from_epoch=...)`, or a
        constant `kl_weight`.

        Where the optimizer ends the fit with an average of its iterates (`use_ema=True`), the likelihood's constants
        and the statistics of batch normalisation are then fitted to it, on the training data: checkpoints have neither.

        Raises:
            ValueError: if N is not known and cannot be inferred, the schedule needs a length that is not known, or the
                data are not sound (not finite, of unequal length, or labels that do not fit the likelihood).

        Warns:
            UserWarning: if the fit ended before its schedule of T did, or the schedule had ended with a first fit of
                one epoch; or if it averaged, and the data cannot be read again.
        """
        x, y, kwargs = checked_data(self, self._heads, x, y, kwargs, self._loss_weights)
        size = training_data.measure(x, batch_size, validation_split)
        if not training_data.is_data_set(x):
            check_shares(size.num_examples, batch_size)
        self.progress.set_num_examples(size.num_examples, x)
        steps_per_epoch = kwargs.get("steps_per_epoch") or size.steps_per_epoch
        self.progress.begin_fit(steps_per_epoch, epochs - initial_epoch)
        if begin_decay(self.optimizer, steps_per_epoch, epochs - initial_epoch):
            self.make_train_function(force=True)  # the schedule is compiled into it
        self.convergence = None
        inform_optimizer(self)
        if self.optimizer_posterior and self.network.built:
            build_optimizer(self)  # callbacks read the posterior from the start on
        settings = {**kwargs, "validation_split": validation_split, "initial_epoch": initial_epoch}
        history = super().fit(x, y, batch_size, epochs, verbose, callbacks, **settings)
        own_buffers(self.trainable_variables)
        read = refit.TrainingData.given_to_fit(
            x, y, batch_size, size.num_examples or self.progress.num_examples, kwargs
        )
        refit.refit_to_average(self, refit.Objective(self._heads, self._loss_weights), read)
        self.progress.end_fit(was_stopped=bool(self.stop_training))
        return history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Evaluates as `keras.Model.evaluate` does: the ELBO at T = 1 and its parts, with one draw per batch."""
        self.progress.require_num_examples()
        given = {"sample_weight": sample_weight, **kwargs}
        x, y, kwargs = checked_data(self, self._heads, x, y, given, self._loss_weights)
        return super().evaluate(x, y, batch_size, verbose, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates a batch as `keras.Model.test_on_batch` does; needs `num_examples`.

        Raises:
            ValueError: if it is not known.
        """
        self.progress.require_num_examples()
        return super().test_on_batch(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Trains on a batch as `keras.Model.train_on_batch` does; needs `num_examples` and a schedule of known length.

        Raises:
            ValueError: if either is missing.
        """
        self.progress.require_num_examples()
        self.progress.require_length("train_on_batch")
        inform_optimizer(self)
        return super().train_on_batch(*args, **kwargs)
