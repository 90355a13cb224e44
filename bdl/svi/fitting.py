"""Fits of a story: Keras' `fit`, `evaluate` and the like, on data without labels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import keras
import numpy as np

from bdl.optimizers import NaturalGradient
from bdl.svi.beginning import Beginning
from bdl.svi.guides import Conjugate, PerRow
from bdl.svi.rows import (
    EndlessRows,
    all_rows,
    as_validation,
    as_weights,
    refuse_arguments_of_labels,
    repeated,
    steps_per_epoch,
)
from bdl.training import data as training_data
from bdl.training.failures import check_shares
from bdl.training.progress import Progress, begin_decay
from bdl.training.resident import FitsOnDevice, Resident
from bdl.training.resumption import Follows
from bdl.training.steps import build_optimizer, inform_optimizer


class Fitting(Beginning, FitsOnDevice, keras.Model):
    """Fits of a model of a story; see `bdl.svi.SVI`.

    Attributes:
        progress: N, T and the steps so far.
        is_fitting: Whether a fit is under way.
    """

    progress: Progress
    prefers_xla = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_fitting = False
        self._trained: tuple[list[str], list[int]] | None = None

    def compile(self, optimizer: Any = "adam", loss: None = None, **kwargs: Any) -> None:
        """As `keras.Model.compile`, without a loss: the story says what the loss is.

        With `steps_per_execution=50`, for one, 50 steps are one call, in which arrays are read where the device keeps
        them. On TensorFlow such calls are compiled by XLA unless `jit_compile=False`.

        Raises:
            ValueError: if a loss is given, or `steps_per_execution` is no positive integer.
        """
        if loss is not None:
            raise ValueError(f"`loss` must be None, not {loss!r}: SVI trains on the ELBO of its story.")
        self._trained = None
        super().compile(optimizer=optimizer, loss=None, **kwargs)
        inform_optimizer(self)

    def fit(
        self,
        x: Any = None,
        y: None = None,
        batch_size: int | Literal["all"] | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *,
        steps: int | None = None,
        initial_epoch: int = 0,
        validation_data: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.fit`, on the data of the story, which hold what was observed: there are no labels.

        A further fit goes on from where the last one ended, with its own data and their N: it does not remember earlier
        rows. To keep the globals as they are, freeze them and compile again: `guide_of(site).trainable = False`.
        Validation sees the variables as they are at the end of an epoch; their mean takes their place after the last.

        Args:
            x: Arrays with one row for each example, in a dict for a story that reads several; a `tf.data.Dataset`, a
                `PyDataset` or another data set of such batches.
            y: None.
            batch_size: Rows in a step; `"all"` takes the whole data in each.
            epochs: Passes over the data; with `steps` the number of reports, among which they are divided.
            verbose: As in Keras.
            callbacks: As in Keras.
            steps: Number of training steps, in place of passes over the data.
            initial_epoch: As in Keras.
            validation_data: Data of the same kind as `x`.
            **kwargs: As in Keras, `sample_weight` among them: how often a row counts as observed. N is the number of
                rows whatever their weights, so that rows that occur several times may be given once, with their counts.

        Returns:
            Keras' `History`.

        Raises:
            ValueError: if N is not known and cannot be inferred, data are not sound, a site is not (see `trace_on`), or
                `batch_size` and `steps` do not go with the data.
        """
        if y is not None:
            raise ValueError("`y` must be None: a story reads all its data from `x`. Pass fit({'x': ..., 'y': ...}).")
        refuse_arguments_of_labels(kwargs)
        x = self.checked_data(x, is_read=False)
        width = all_rows(x) if batch_size == "all" else batch_size
        size = training_data.measure(x, width)
        if not training_data.is_data_set(x):
            check_shares(size.num_examples, width)
        self.progress.set_num_examples(size.num_examples, x)
        has_rows = not training_data.is_data_set(x)
        self.begin(x, width, as_weights(kwargs.get("sample_weight"), x, self.compute_dtype) if has_rows else None)
        if validation_data is not None:
            validation_data = as_validation(self.checked_data(validation_data, "validation_data", is_read=False))
        asked = steps_per_epoch(steps, epochs) or kwargs.pop("steps_per_epoch", None)
        per_epoch = asked or size.steps_per_epoch
        kwargs["steps_per_epoch"] = asked if training_data.is_data_set(x) else per_epoch
        x, resident, order, kwargs = self._batches(x, width, steps, kwargs)
        self.progress.begin_fit(per_epoch, epochs - initial_epoch)
        if begin_decay(self.optimizer, per_epoch, epochs - initial_epoch):
            self.make_train_function(force=True)
        if self.average is not None:
            self.average.begin(None if per_epoch is None else per_epoch * (epochs - initial_epoch))
        if self.chain_losses is not None:
            self.chain_losses.begin()
        self.check_trained()
        inform_optimizer(self)
        build_optimizer(self)
        settings = {**kwargs, "initial_epoch": initial_epoch, "validation_data": validation_data, "order": order}
        self.is_fitting, self.convergence = True, None
        try:
            with self._without_optimizer(), contextlib.nullcontext() if resident is None else self.fitting(resident):
                history = super().fit(x, None, None, epochs, verbose, callbacks, **settings)
        finally:
            self.is_fitting = False
        if self.average is not None:
            self.average.put_in_place()
        self.progress.end_fit(was_stopped=bool(self.stop_training))
        return history

    @contextlib.contextmanager
    def _without_optimizer(self) -> Iterator[None]:
        """Within this context Keras does not warn that nothing is trained, if tables of rows are all that is."""
        with warnings.catch_warnings():
            if any(isinstance(guide, PerRow) and guide.trainable for guide in self.guides):
                warnings.filterwarnings("ignore", "The model does not have any trainable weights", UserWarning)
            yield

    def evaluate(self, x: Any = None, y: None = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`: the ELBO and its parts at T = 1, on data as of `fit`.

        Raises:
            ValueError: if N is not known, or data are not sound.
        """
        self.progress.require_num_examples()
        x = self.checked_data(x, is_read=not self.is_fitting)  # validation may hold rows whose turn is still to come
        weights = as_weights(kwargs.get("sample_weight"), x, self.compute_dtype)
        labels = None if weights is None else np.zeros(len(weights), "float32")  # without any Keras drops the weights
        if not self.built:
            self.trace_first(x, batch_size)
        return super().evaluate(x, labels, batch_size, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; needs `num_examples`.

        Raises:
            ValueError: if it is not known.
        """
        self.progress.require_num_examples()
        self.progress.require_length("train_on_batch")
        checked = self.checked_data(x, is_read=False)
        if not self.is_started:
            self.begin(checked, None)
        self.check_trained()
        inform_optimizer(self)
        return super().train_on_batch(x, *args, **kwargs)

    def check_trained(self) -> None:
        """Refuses to go on with a compiled step, or an optimizer, made for other variables.

        Raises:
            ValueError: if what is trained has changed since the first fit after `compile`.
        """
        frozen = [guide.name for guide in self.guides if not guide.trainable]  # which may have no such variables
        trained = (frozen, [id(variable) for variable in self.trainable_variables])
        if self._trained is not None and trained != self._trained:
            raise ValueError(
                f"What is trained must stay as it was compiled, {len(self._trained[1])} variables, not become "
                f"{len(trained[1])} others: `trainable` of a guide or network has changed. Call compile again."
            )
        self._trained = trained
        conjugate = [name for guide in self.guides if guide.is_conjugate for name in guide.sizes]
        if conjugate and self.objective != "elbo":
            raise ValueError(
                f"`objective` must be 'elbo' with the conjugate guides of {conjugate}, not {self.objective!r}: they "
                "stand at points, which are no draws to be weighted. Give these sites other guides."
            )
        wrong = [guide.site for guide in self.guides if isinstance(guide, Conjugate) and guide.trainable]
        if wrong and not isinstance(self.optimizer, NaturalGradient):
            raise ValueError(
                f"`optimizer` must be bdl.optimizers.NaturalGradient for the Conjugate guides of {wrong}, whose "
                f"gradients are natural ones, not {type(self.optimizer).__name__}."
            )

    def _batches(
        self, x: Any, batch_size: int | None, steps: int | None, kwargs: dict[str, Any]
    ) -> tuple[Any, Resident | None, Follows | None, dict[str, Any]]:
        """The batches of a fit, the same on the device, their order and other settings.

        Arrays are cut and shuffled from the model's seed.
        """
        kwargs = {**kwargs, "shuffle": False}  # Keras warns otherwise of what shuffles itself
        if training_data.is_data_set(x):
            return (repeated(x) if steps else x), None, None, kwargs
        weights = as_weights(kwargs.pop("sample_weight", None), x, self.compute_dtype)
        size = batch_size or training_data.DEFAULT_BATCH_SIZE
        batches = EndlessRows(x, size, self.seed, weights)
        is_resident = self.is_fit_for_device((x, weights))
        resident = batches.on_device(self.steps_per_execution, kwargs["steps_per_epoch"]) if is_resident else None
        return batches.for_fit(), resident, batches, kwargs
