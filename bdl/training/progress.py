"""How far a training is: the number of examples, the steps, and T at each of them."""

from __future__ import annotations

import warnings
from typing import Any

import keras
from keras import ops

from bdl.arguments import check_kl_weight, check_num_examples
from bdl.keras_internals import current_value, is_concrete, rate_schedule, stored_value
from bdl.random import Tensor, num_processes
from bdl.schedules import DecayOverFit, KLSchedule, LinearWarmup


class Progress:
    """Number of examples, count of steps and schedule of T of one model.

    The numbers are variables of the model, so that they are saved, and so that compiled functions follow a change.
    `measured_examples` is what the last fit's data held, where it could be told, whatever the model was given.

    Args:
        model: The model that is trained.
        num_examples: Number of training examples N, or None to learn it from the data.
        kl_weight: A constant T, a schedule of it, or None for `LinearWarmup()`.

    Raises:
        ValueError: if an argument is of the wrong kind.
    """

    def __init__(self, model: keras.Model, num_examples: int | None, kl_weight: float | KLSchedule | None) -> None:
        self._owner = type(model).__name__
        is_constant = not isinstance(kl_weight, KLSchedule | None)
        self._constant = check_kl_weight(kl_weight) if is_constant else 1.0
        schedule = LinearWarmup() if kl_weight is None else kl_weight
        self.schedule: KLSchedule | None = schedule if isinstance(schedule, KLSchedule) else None
        self.is_size_given = num_examples is not None
        given_size = 0 if num_examples is None else check_num_examples(num_examples)
        self.measured_examples: int | None = None
        self._num_examples = _counter(model, "num_examples", given_size)
        self._step = _counter(model, "step", 0)
        self._total_steps = _counter(model, "total_steps", 0)
        self._is_short = False
        self._was_told = False

    @property
    def num_examples(self) -> int | None:
        """Number of training examples, or None before it is known."""
        stored = stored_value(self._num_examples)
        return (_to_int(self._num_examples) if stored is None else int(stored)) or None

    @property
    def size(self) -> Tensor:
        """The same as a tensor, which compiled functions follow.

        Raises:
            ValueError: before it is known.
        """
        size = current_value(self._num_examples)
        stored = size if is_concrete(size) else stored_value(self._num_examples)
        if stored is not None and int(stored) == 0:
            self.require_num_examples()
        return size

    @property
    def step(self) -> int:
        """Training steps done so far."""
        return _to_int(self._step)

    @property
    def total_steps(self) -> int | None:
        """Length of the schedule in steps, or None before it is known."""
        return _to_int(self._total_steps) or None

    @property
    def needs_length(self) -> bool:
        """Whether the schedule runs over a training whose length is not known yet."""
        return self.schedule is not None and self.schedule.needs_total_steps and self.total_steps is None

    @property
    def current_temperature(self) -> Tensor | float:
        """T of the present step, as a tensor where a schedule gives it."""
        if self.schedule is None:
            return self._constant
        step, total = (ops.cast(ops.convert_to_tensor(v), "float32") for v in (self._step, self._total_steps))
        return self.schedule(step, total)

    @property
    def temperature(self) -> float | None:
        """T of the next training step, or None where the schedule does not know its length yet."""
        return None if self.needs_length else float(ops.convert_to_numpy(self.current_temperature))

    @property
    def final_temperature(self) -> float:
        """T once the schedule has run out, or on average over one that never does; a constant T is itself."""
        return self._constant

    def advance(self) -> None:
        """Counts a training step."""
        self._step.assign_add(1)

    def end_schedule(self) -> None:
        """Moves the count of steps to the end of the schedule, if that is before it."""
        if self.schedule is not None:
            self._step.assign(max(self.step, self.schedule.num_steps(self.total_steps or 0)))

    def require_num_examples(self) -> None:
        """Refuses to go on without N.

        Raises:
            ValueError: if it is not known.
        """
        if self.num_examples is None:
            raise ValueError(
                "`num_examples` is unknown before fit, and the KL cannot be scaled without it. Pass "
                f"{self._owner}(..., num_examples=N)."
            )

    def require_length(self, method: str) -> None:
        """Refuses a schedule without a length, for a method that does not know one.

        Raises:
            ValueError: if the schedule needs one.
        """
        if self.needs_length:
            raise ValueError(
                f"`kl_weight` is a schedule over the whole training, whose length {method} does not know. Give "
                "kl_weight=1.0, or bdl.elbo.LinearWarmup(steps=...)."
            )

    def set_num_examples(self, measured: int | None, x: Any) -> None:
        """Takes N from the data, or compares what was given with it.

        Of several processes each may hold all the data, or its part of them: N must be given then.

        Args:
            measured: Number of examples that the data hold, or None where it cannot be told.
            x: The data, for the message.

        Raises:
            ValueError: if neither is known, or N is not given and there are several processes.
        """
        self.measured_examples = measured or self.measured_examples
        processes = num_processes()
        if self.is_size_given:
            size = self.num_examples or 1
            is_part = measured is not None and abs(measured * processes - size) < processes
            if measured is not None and measured != size and not is_part:
                warnings.warn(
                    f"num_examples={self.num_examples}, but fit was given {measured} training examples. The KL is "
                    f"divided by {self.num_examples}: the effective temperature is "
                    f"{measured / size:.3g}.",
                    stacklevel=3,
                )
            return
        if processes > 1:
            raise ValueError(
                f"`num_examples` must be given where {processes} processes train together, for each may hold a part of "
                f"the data (here {measured or 'an unknown number of'} examples). Pass {self._owner}(..., "
                "num_examples=N), the number in all of them."
            )
        if measured is None:
            raise ValueError(
                f"`num_examples` is unknown: {type(x).__name__} does not tell how many examples it holds. Pass "
                f"{self._owner}(..., num_examples=N); the KL cannot be scaled without it."
            )
        self._num_examples.assign(measured)

    def give_num_examples(self, num_examples: int) -> None:
        """Sets N, as if the model had been given it.

        Raises:
            ValueError: if it is no positive integer.
        """
        self._num_examples.assign(check_num_examples(num_examples))
        self.is_size_given = True

    def begin_fit(self, steps_per_epoch: int | None, epochs: int) -> None:
        """Gives the schedule its length: that of the first fit. Later ones go on where it ended, at T = 1.

        Args:
            steps_per_epoch: Batches in an epoch, or None where it cannot be told.
            epochs: Epochs that this fit will run. A fit that came to no step gave no length.

        Raises:
            ValueError: if the schedule needs a length and it cannot be told.
        """
        is_under_way = self.schedule is None or not self.schedule.needs_total_steps or self.step > 0
        if is_under_way and not self.needs_length:
            if self._is_short:
                self._is_short = False
                warnings.warn(
                    "The schedule of T ended with the first fit, of one epoch: T is 1 from here on. For a ramp over "
                    "several calls of fit pass kl_weight=bdl.elbo.LinearWarmup(steps=...) to the model.",
                    stacklevel=3,
                )
            return
        if steps_per_epoch is None:
            raise ValueError(
                "`steps_per_epoch` is unknown, so the KL schedule has no length. Pass steps_per_epoch to fit, or "
                f"kl_weight=1.0 or bdl.elbo.LinearWarmup(steps=...) to {self._owner}."
            )
        self._is_short = epochs == 1
        self._total_steps.assign(steps_per_epoch * max(epochs, 0))

    def end_fit(self, was_stopped: bool) -> None:
        """Warns where a fit left T below the end of its schedule.

        Args:
            was_stopped: Whether a callback stopped the fit.
        """
        if self.schedule is None or self.needs_length:
            return
        end = self.schedule.num_steps(self.total_steps or 0)
        temperature = self.temperature
        if self.step >= end or temperature is None or temperature >= 1.0:
            return
        if not was_stopped and self._was_told:
            return  # a ramp over several calls of fit
        self._was_told = True
        warnings.warn(
            f"fit ended at T = {temperature:.2g}, after {self.step} of the {end} steps over which T rises to 1: the "
            "posterior was trained on a KL of that weight, so that its uncertainty is too small. Train on, stop early "
            "after the ramp (keras.callbacks.EarlyStopping(..., start_from_epoch=...)), or give the model a constant "
            "kl_weight=1.0.",
            stacklevel=3,
        )


def begin_decay(optimizer: Any, steps_per_epoch: int | None, epochs: int) -> bool:
    """Gives a `DecayOverFit` of the optimizer the length of a fit that begins.

    Args:
        optimizer: The compiled model's.
        steps_per_epoch: Batches in an epoch, or None where it cannot be told.
        epochs: Epochs that this fit will run.

    Returns:
        Whether a schedule changed, so that compiled functions must be made anew.

    Raises:
        ValueError: if the length cannot be told.
    """
    schedule = rate_schedule(optimizer)
    if not isinstance(schedule, DecayOverFit) or epochs <= 0:
        return False
    if steps_per_epoch is None:
        raise ValueError(
            "`steps_per_epoch` must be given where the data do not tell their length: the learning rate falls over "
            "the whole fit (DecayOverFit). Pass it to fit, or compile with a constant learning rate."
        )
    return schedule.begin_fit(_to_int(optimizer.iterations), steps_per_epoch * epochs)


def _counter(model: keras.Model, name: str, value: int) -> keras.Variable:
    return model.add_weight(
        name=name,
        shape=(),
        dtype="int32",
        initializer=keras.initializers.Constant(value),
        trainable=False,
        aggregation="only_first_replica",
    )


def _to_int(variable: keras.Variable) -> int:
    # By way of a tensor, for a variable mirrored over replicas is no number.
    return int(ops.convert_to_numpy(ops.convert_to_tensor(variable)))
