"""`AdaptiveBatch`: a callback by which updates take more micro-batches as the gradient's noise outgrows its signal."""

from __future__ import annotations

from typing import Any

import keras

from bdl.keras_internals import innermost, is_one_device, rate_schedule
from bdl.protocols import ReadsModel
from bdl.training.micro_batches import MicroBatches
from bdl.training.steps import build_optimizer, learning_noise

_UNBOUNDED = 2**20


class AdaptiveBatch(keras.callbacks.Callback):
    """Lets updates take 1, 2, 4, ... micro-batches, and doubles them when the gradient's noise exceeds its signal.

    The batches of `fit` become micro-batches. Far from the optimum the signal is large and each of them is an update;
    near it the mean of many has the noise of a large batch. So growing batches take the place of a falling learning
    rate, which must be constant. Their number is `micro_batches` in the logs of each epoch. Nothing is compiled anew
    when it grows. It works for `bdl.svi.SVI`, `bdl.VariationalModel` and other Keras models; while the fit runs
    `model.optimizer` is wrapped in `bdl.training.micro_batches.MicroBatches`. Files that are written meanwhile have the
    optimizer of `compile`. Gradients of an update that the fit does not complete are dropped. A further fit with this
    callback goes on with the number that was reached; one with another callback, or of a loaded model, begins at 1.

    It rarely pays. Averaging the iterates of small batches, which `SVI` does by default, brings a fit to rest sooner:
    on half a million loci, at the best of three rates, it stayed within one nat of the optimum after 1.39 epochs,
    growing batches with averaging after 1.47, and growing batches alone not within three (medians of five seeds,
    `benchmarks/svi_batches.py`). It is for trainings of which the last iterate is wanted.

    Args:
        most: Most micro-batches in an update; None takes those of an epoch, so that an update never sees more than the
            data.
        threshold: Ratio of an update's noise to its signal, squared norms, above which the number doubles.
        interval: Pairs of gradients that a decision is made from at least.

    Raises:
        ValueError: if an argument is not positive; when a fit begins, if the learning rate follows a schedule, the
            optimizer accumulates gradients itself or needs each of them, or the model is on several devices.

    Sources: De, Yadav, Jacobs and Goldstein 2017, "Automated inference with adaptive batches"; McCandlish, Kaplan,
    Amodei et al. 2018, "An empirical model of large-batch training", arXiv 1812.06162.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
    >>> model.compile("adam")
    >>> adaptive = AdaptiveBatch(interval=10)
    >>> x, y = np.ones((64, 4)), np.arange(64) % 3
    >>> history = model.fit(x, y, batch_size=4, epochs=5, verbose=0, callbacks=[adaptive])
    >>> history.history["micro_batches"][0] <= adaptive.micro_batches <= 16
    True
    """

    def __init__(self, most: int | None = None, threshold: float = 1.0, interval: int = 50) -> None:
        super().__init__()
        for argument, value in (("most", most), ("interval", interval)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"`{argument}` must be a positive integer, not {value!r}.")
        if not threshold > 0.0:
            raise ValueError(f"`threshold` must be a positive number, not {threshold!r}. Pass 1.0.")
        self.most, self.threshold, self.interval = most, float(threshold), interval
        self._wrapper: MicroBatches | None = None

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an update, as the last fit left them."""
        return 1 if self._wrapper is None else self._wrapper.number

    @property
    def noise_scale(self) -> float:
        """Micro-batches of which the mean had as much noise as signal, at the last decision; NaN before one."""
        return float("nan") if self._wrapper is None else self._wrapper.noise_scale

    def on_train_begin(self, logs: Any = None) -> None:
        """Puts the optimizer into one that takes micro-batches."""
        optimizer = self.model.optimizer
        if isinstance(optimizer, MicroBatches):  # of a fit that was cut off
            self._wrapper = optimizer
        else:
            self._check(optimizer)
            if self._wrapper is None or self._wrapper.inner_optimizer is not optimizer:
                self._wrapper = MicroBatches(optimizer, left_out=learning_noise(self.model))
        steps = self.params.get("steps")
        self._wrapper.most = self.most or (2 ** (int(steps).bit_length() - 1) if steps else _UNBOUNDED)
        self._wrapper.threshold, self._wrapper.interval = self.threshold, self.interval
        self._exchange(self._wrapper)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds the number of micro-batches to the logs."""
        if logs is not None:
            logs["micro_batches"] = self.micro_batches

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the model its optimizer back."""
        assert self._wrapper is not None
        self._exchange(self._wrapper.inner_optimizer)

    def _exchange(self, optimizer: keras.optimizers.Optimizer) -> None:
        model: Any = self.model
        model.optimizer = optimizer
        if getattr(model, "network", model).built:
            build_optimizer(model)
        model.make_train_function(force=True)  # it is compiled for an optimizer

    def _check(self, optimizer: Any) -> None:
        name = type(optimizer).__name__
        inner = innermost(optimizer)
        if isinstance(rate_schedule(optimizer), keras.optimizers.schedules.LearningRateSchedule):
            raise ValueError(
                f"The learning rate must be constant with AdaptiveBatch, not a schedule, as that of {name} is: growing "
                "batches take its place. Compile with a number."
            )
        steps = inner.gradient_accumulation_steps
        if steps:
            raise ValueError(
                f"`gradient_accumulation_steps` must be None with AdaptiveBatch, which accumulates itself, not {steps}."
            )
        if isinstance(inner, ReadsModel):
            raise ValueError(
                f"`optimizer` must move weights by the mean of several gradients, which {name} does not: it reads the "
                "model, or pairs each gradient with its noise. Compile with Adam, or train without AdaptiveBatch."
            )
        if not is_one_device(self.model):
            raise ValueError("The model must be on one device for AdaptiveBatch, not on several.")
