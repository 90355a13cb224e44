"""`Converged`: a callback that ends a fit when its iterates are at rest and their average is known well enough."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bdl.keras_internals import rate_schedule, without_gradients
from bdl.training.averaging import MeanOfReads
from bdl.training.iterates import HasIterates, Movement

LEAST_READS = 20
"""Reads from which a run of iterates is judged: halves of ten."""

MOST_READS = 1000
"""Reads of a run that are kept: beyond it every second one is dropped, and the distance between reads doubles."""

DRIFT, SLOWNESS = 0.25, 0.5
"""A number is also at rest where its drift does not matter, though R-hat sees it.

That is so where, at its present speed, it would move by less than a fourth of a posterior standard deviation in as many
steps as the fit has had, and this speed is less than half of its average one. At a small learning rate iterates jitter
by much less than the posterior's standard deviation, and R-hat, which compares drift with jitter, asks for too much.
The second condition keeps a fit from ending because its rate is so small that it hardly moves.
"""

GROWTH = 1.5
"""A run that has not come to rest is given up for a new one when so much longer a fit has passed since it began.

Then the last third of the fit is in it, and what came before is forgotten.
"""


@dataclass(frozen=True)
class Convergence:
    """What `Converged` saw of a fit; `print` shows it as a sentence.

    Args:
        is_reached: Whether all that was asked for was reached.
        steps: Steps of the fit.
        first: Step after which the run that was judged begins: what came after it is averaged.
        r_hat: Largest R-hat between the halves of the run; None if it was too short to be judged.
        drift: The most that a number whose R-hat is too large would still move in as many steps again, in the
            posterior's own standard deviations; 0 if there is none.
        error: Largest Monte Carlo standard error of its average, in the posterior's own standard deviations.
        effective: Least effective sample size of the numbers whose R-hat is not too large.
        worst: Name of the number with the largest R-hat.
        obstacle: Why the run could not be judged, or what is missing; empty if nothing is.
    """

    is_reached: bool
    steps: int
    first: int
    r_hat: float | None = None
    drift: float = 0.0
    error: float | None = None
    effective: float | None = None
    worst: str = ""
    obstacle: str = ""

    def __str__(self) -> str:
        """A sentence or two."""
        if self.r_hat is None:
            return f"The fit of {self.steps} steps was not seen to converge: {self.obstacle}."
        drift = f", with a drift of {self.drift:.2g} posterior standard deviations in as many steps again"
        found = (
            f"over steps {self.first + 1} to {self.steps} R-hat of the iterates is at most {self.r_hat:.3g} "
            f"({self.worst}){drift if self.drift else ''}; their average has a standard error of at most "
            f"{self.error:.2g} posterior standard deviations"
        )
        if self.is_reached:
            return f"The fit converged: {found}."
        return f"The fit of {self.steps} steps was not seen to converge: {self.obstacle}; {found}."


class Converged(keras.callbacks.Callback):
    """Ends a fit when the posterior's means and scales have come to rest, and their average is precise enough.

    It reads the means and log scales of the posterior of the global parameters as the fit goes: those of a story's
    global sites, of all chains, or those of 500 weights of a network, chosen at random. A run of iterates begins anew
    each time the fit has become half as long again, so that it forgets where the fit came from, until all numbers are
    at rest: the R-hat between its halves is at most `r_hat`, or the drift between them too slow to matter (`DRIFT` and
    `SLOWNESS` in this file). Then it goes on, and the fit ends as soon as its average has a standard error of at
    most `error` of the posterior's own standard deviations, from `effective` independent iterates or more. That average
    takes the variables' place when the fit ends. The loss plays no part: it may lie still while the posterior moves.

    What it saw is in `report`, and the model's summary tells it. R-hat compares iterates at one learning rate and one
    T: a run begins anew whenever either changes, and a fit whose rate falls at every step runs to its planned end. In
    the last third of a fit of known length no run begins, so that the average covers a third of the fit at least.

    Args:
        r_hat: Largest R-hat of iterates at rest.
        error: Largest standard error of the average, in the posterior's own standard deviations.
        effective: Least number of independent iterates that it takes.
        every: Steps between two reads; a call of several steps (`steps_per_execution`) is read once. A read costs about
            as much as a small step, and the distance grows with the length of a run.
        averaging: Whether the fit ends with the average. Of a model that keeps one (`SVI`) it is the mean of all steps;
            of others it is the mean of the reads, of all trainable variables. The statistics of batch normalisation are
            not averaged.

    Attributes:
        report: `Convergence`, once a fit has ended.

    Raises:
        ValueError: if an argument is out of range, or, when the fit begins, the model has no posterior of global
            parameters.

    Warns:
        UserWarning: if the fit has ended and was not seen to converge, or the learning rate follows a schedule.

    Source: Dhaka et al. 2020, "Robust, accurate stochastic optimization for variational inference", algorithm 1. The
    R-hat of 1.1 and the error of .1 are those of the library viabel. The drift is bdl's: R-hat alone, with an
    effective size of 25, ended eight of ten fits after 4 to 10 times the steps that were needed, and two never.

    Example:
    >>> import tensorflow_probability as tfp
    >>> from bdl.svi import SVI, Global, Observed
    >>> def story(data):
    ...     mean = yield Global("mean", tfp.distributions.Normal(0.0, 3.0))
    ...     yield Observed("y", tfp.distributions.Normal(mean, 1.0), data["y"])
    >>> model, converged = SVI(story, seed=0), bdl.training.Converged()
    >>> model.compile(keras.optimizers.Adam(0.05))
    >>> history = model.fit({"y": np.full(20, 2.0)}, batch_size="all", steps=5000, verbose=0, callbacks=[converged])
    >>> converged.report.is_reached, converged.report.steps < 3000
    (True, True)
    """

    def __init__(
        self,
        r_hat: float = 1.1,
        error: float = 0.1,
        effective: float = 10.0,
        every: int = 5,
        averaging: bool = True,
    ) -> None:
        super().__init__()
        if not r_hat > 1.0:
            raise ValueError(f"`r_hat` must be a number above 1, not {r_hat!r}. 1.1 is usual.")
        if not error > 0.0:
            raise ValueError(f"`error` must be a positive number, not {error!r}: .1 is a tenth of a posterior's sd.")
        if not effective >= 1.0:
            raise ValueError(f"`effective` must be a number of iterates, 1 at least, not {effective!r}.")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"`every` must be a positive integer, not {every!r}.")
        self.r_hat, self.error, self.effective, self.every, self.averaging = r_hat, error, effective, every, averaging
        self.report: Convergence | None = None
        self._names: Sequence[str] = ()
        self._reads: list[np.ndarray] = []
        self._movement: Movement | None = None
        self._setting: tuple[float, float | None] | None = None
        self._average: Any = None
        self._first = self._last_read = self._judged = 0
        self._is_mixed = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Begins the first run.

        Raises:
            ValueError: if the model has no posterior of global parameters.
        """
        first = self.model.iterate() if isinstance(self.model, HasIterates) else None
        if first is None:
            raise ValueError(
                "`callbacks` must not hold Converged where nothing global has a posterior with a scale: it goes with "
                f"SVI and VariationalModel whose guides or layers have one, not with {type(self.model).__name__}."
            )
        self.report = None
        self._start = first.numbers
        self._names = self.model.iterate_names()
        self._step, self._epoch_began = 0, 0
        self._planned = self._planned_steps()
        average = self.model.average
        if self.averaging and average is None:
            average = MeanOfReads([each for each in self.model.trainable_variables if "float" in each.dtype])
        self._average = average if self.averaging else None
        self._distance = self.every
        self._begin_run()
        if isinstance(rate_schedule(self.model.optimizer), keras.optimizers.schedules.LearningRateSchedule):
            warnings.warn(
                "Converged compares iterates at one learning rate, and this one follows a schedule: while it changes, "
                "the fit is not ended, and runs to its planned length. Compile with a constant rate.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Counts from here."""
        self._epoch_began = self._step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reads the posterior, if it is time, and ends the fit if it has converged."""
        self._step = self._epoch_began + batch + 1
        if self._step - self._last_read < self._distance:
            return
        self._read()
        if len(self._reads) >= max(LEAST_READS, self._judged + max(self._judged // 10, 2)):
            self._judge()

    def on_train_end(self, logs: Any = None) -> None:
        """Puts the average in place, and tells what was seen."""
        if len(self._reads) >= LEAST_READS and not self.model.stop_training:
            self._movement = self._moved()
        self.report = self._convergence()
        self.model.convergence = self.report
        if isinstance(self._average, MeanOfReads):
            self._average.put_in_place()
        if not self.report.is_reached:
            warnings.warn(f"{self.report} Train on, or take a larger learning rate.", stacklevel=2)

    def has_converged(self) -> None:
        """Ends the fit; called once all is reached."""
        self.model.stop_training = True

    def _read(self) -> None:
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        setting = (
            float(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(self.model.optimizer.learning_rate))),
            self.model.temperature,
        )
        if setting != self._setting and self._reads:
            self._is_mixed = not self._begin_run()
        self._setting, self._last_read = setting, self._step
        with without_gradients():
            self._reads.append(self.model.iterate().numbers)
        if isinstance(self._average, MeanOfReads):
            self._average.update()
        if len(self._reads) > MOST_READS:
            self._reads, self._distance = self._reads[1::2], 2 * self._distance
            self._judged //= 2

    def _judge(self) -> None:
        found = self._movement = self._moved()
        self._judged = len(self._reads)
        if self._missing(found) == "":
            self.has_converged()
        elif not self._is_at_rest(found).all() and self._step >= GROWTH * self._first:
            self._begin_run()

    def _moved(self) -> Movement:
        return Movement.of(np.array(self._reads), self._start, self._first / self._distance)

    def _is_at_rest(self, found: Movement) -> np.ndarray:
        return (found.r_hat <= self.r_hat) | ((found.drift <= DRIFT) & (found.slowness <= SLOWNESS))

    def _effective(self, found: Movement) -> float:
        """Of numbers that drift, even if it does not matter, the size says nothing."""
        steady = found.r_hat <= self.r_hat
        return float(found.effective[steady].min()) if steady.any() else np.inf

    def _begin_run(self) -> bool:
        """Forgets the present run, unless the fit is so near its planned end that a new one would be too short."""
        if self._step and self._planned is not None and GROWTH * self._step > self._planned:
            return False
        self._first = self._last_read = self._step
        self._reads, self._judged = [], 0
        self._movement, self._setting, self._is_mixed = None, None, False
        if self._average is not None:
            self._average.restart()
        return True

    def _missing(self, found: Movement) -> str:
        """What is not reached yet."""
        if self._is_mixed:
            return "the learning rate or T changed until its end, so that its iterates cannot be compared"
        at_rest = self._is_at_rest(found)
        if not at_rest.all():
            return f"{self._name(np.where(at_rest, 0.0, found.r_hat))} still moves"
        if not found.error.max() <= self.error:
            return f"the average is not known to {self.error:g} standard deviations"
        if not self._effective(found) >= self.effective:
            return f"there are fewer than {self.effective:g} effective iterates"
        return ""

    def _name(self, figures: np.ndarray) -> str:
        """Name of the number with the largest figure."""
        return self._names[int(np.argmax(figures)) % len(self._names)]

    def _convergence(self) -> Convergence:
        found = self._movement
        if found is None:
            obstacle = (
                f"after step {self._first} its posterior was read {len(self._reads)} times, and it takes {LEAST_READS}"
            )
            return Convergence(False, self._step, self._first, obstacle=obstacle)
        obstacle = self._missing(found)
        drift = float(np.max(found.drift, initial=0.0, where=found.r_hat > self.r_hat))
        figures = (float(found.r_hat.max()), drift, float(found.error.max()), self._effective(found))
        return Convergence(obstacle == "", self._step, self._first, *figures, self._name(found.r_hat), obstacle)

    def _planned_steps(self) -> int | None:
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        return epochs * steps if epochs and steps else None
