"""`TrainingHealth`: a Keras callback that notices what is wrong with a training while it happens."""

from __future__ import annotations

import dataclasses
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from bdl.diagnostics.accounting import Accounting, likelihood_of, measure_accounting, size_of
from bdl.diagnostics.finding import HOPELESS, UNREMARKABLE, Finding
from bdl.diagnostics.gradient_watch import GradientWatch
from bdl.diagnostics.journal import Journal, interrupted_run
from bdl.diagnostics.measure import ProbeData, measure, network_of, posteriors_of, take_probe
from bdl.diagnostics.pacing import Budget, is_due, looks_wrong
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.reading import read_foreign
from bdl.diagnostics.record import RunRecord
from bdl.diagnostics.run import Run, as_number, complete, rate_of, steps_of
from bdl.diagnostics.story import kinds_of, refuse_for_story, story_quantities
from bdl.diagnostics.story_rules import tell_convergence
from bdl.diagnostics.trends import measure_trends
from bdl.diagnostics.verdict import judge
from bdl.diagnostics.weights import start_scales
from bdl.likelihoods import Likelihood
from bdl.protocols import HasTemperature, TellsStory
from bdl.training.resumption import fingerprint_of_optimizer, fingerprint_of_seeds

_ACTIONS = ("warn", "stop", "record")


class HealthWarning(UserWarning):
    """A training is not healthy, or could not be watched."""


class TrainingHealth(keras.callbacks.Callback):
    """Watches a training: records ELBO, KL, temperature, fit and scales, and says when something is wrong.

    It works on `VariationalModel` and on plain Keras models, with bdl's layers or another library's. It measures on a
    probe, a fixed sample of the data that it is given, and up to four times in a training the noise of the gradient
    (`bdl.diagnostics.gradient_noise`). It leaves weights, seeds and metrics as they were, so that a training with it
    ends where one without it does. It spends at most `max_cost` of the training's time: where epochs are short, it
    measures fewer of them. An error inside it is a warning; it never breaks a training. A model that is fitted again
    with the same callback, or with the same record file, goes on with the run that it began. A model of a story
    (`bdl.svi.SVI`) is watched without data.

    Args:
        data: Training data `(x, y)`, arrays; N is their length. None judges by the logs alone, and then no verdict on
            predictions is given.
        validation_data: Data not trained on, `(x, y)`; what predictions are judged by.
        likelihood: `bdl.likelihoods.Likelihood` of the labels. None takes the model's, or that of the compiled loss.
        num_examples: Number of training examples; None takes what `fit` measured or the model was told, else the length
            of `data`.
        record: File to append the record to, as JSON lines.
        tensorboard: Folder to write TensorBoard scalars to; needs TensorFlow.
        on_verdict: `"warn"`; `"stop"`, which also ends the training on a verdict that more epochs cannot mend
            (`bdl.diagnostics.HOPELESS`); or `"record"`, which says nothing.
        num_samples: Whole functions to draw for a measurement.
        probe_size: Examples of a probe.
        max_cost: Share of the training's time that measuring may take; 1 measures every epoch, whatever it costs.

    Raises:
        ValueError: if an argument is out of range.

    Example:
    >>> x, y = np.random.default_rng(0).normal(size=(64, 4)).astype("float32"), np.arange(64) % 3
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=7.0)
    >>> model.compile("adam")
    >>> health = TrainingHealth(data=(x, y), on_verdict="record")
    >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[health])
    >>> health.finding.verdict
    'mis_scaled_kl'
    """

    def __init__(
        self,
        data: Any = None,
        validation_data: Any = None,
        likelihood: Likelihood | None = None,
        num_examples: int | None = None,
        record: str | Path | None = None,
        tensorboard: str | Path | None = None,
        on_verdict: str = "warn",
        num_samples: int = 4,
        probe_size: int = 256,
        max_cost: float = 0.04,
    ) -> None:
        super().__init__()
        if on_verdict not in _ACTIONS:
            raise ValueError(f"`on_verdict` must be one of {_ACTIONS}, not {on_verdict!r}.")
        for argument, value in (("num_samples", num_samples), ("probe_size", probe_size)):
            if not isinstance(value, int) or value < 2:
                raise ValueError(f"`{argument}` must be an integer of at least 2, not {value!r}.")
        if not 0 < max_cost <= 1:
            raise ValueError(f"`max_cost` must be a share of the training's time in (0, 1], not {max_cost!r}.")
        self._data, self._validation_data = data, validation_data
        self._likelihood, self._given_size = likelihood, num_examples
        self._path = None if record is None else Path(record)
        self._board_folder = tensorboard
        self.on_verdict = on_verdict
        self._num_samples, self._probe_size = num_samples, probe_size
        self.finding: Finding | None = None
        self.quantities: Quantities | None = None
        self.epochs: list[dict[str, Any]] = []
        self.verdicts: list[tuple[int, str, str]] = []
        self._budget = Budget(max_cost)
        self._is_broken = self._is_begun = False
        self._said: set[str] = set()
        self._state: Run | None = None

    def as_record(self) -> RunRecord:
        """What was recorded so far, as `read_record` would read it."""
        run = self._state
        probes = [] if self.quantities is None else [self.quantities]
        start = {} if run is None else run.start_event(self._planned)
        end = {"event": "end"} if run is not None and run.is_over else {}
        identity = "live" if run is None else run.journal.run
        return RunRecord(identity, start, list(self.epochs), probes, list(self.verdicts), end)

    @property
    def own_seconds(self) -> float:
        """Seconds of the present training that went into watching it."""
        return self._budget.own_seconds

    def on_train_begin(self, logs: Any = None) -> None:
        """Begins to count the time."""
        self._budget = Budget(self._budget.share)
        self._is_broken, self._is_begun = False, False

    def _begin_once(self) -> None:
        """Begins with the first epoch, for the model may be restored by a callback that comes after this one."""
        if not self._is_begun:
            self._is_begun = True
            self._watch(self._begin)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Takes the probes, and reads what is known before the first step, or of a network that was not built."""
        self._begin_once()
        if self._state is not None and not self._state.is_read:
            self._watch(self._read_model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Records the epoch; measures where that is within the budget."""
        self._begin_once()  # in a loop that tells of the ends of epochs alone
        self._watch(lambda: self._end_epoch(epoch + 1, dict(logs or {})))

    def on_train_end(self, logs: Any = None) -> None:
        """Measures the end, and closes the record."""
        self._begin_once()
        self._watch(self._end)

    def _watch(self, action: Callable[[], None]) -> None:
        """Runs a part of the callback and measures its time. Exceptions never reach the training."""
        if self._is_broken:
            return
        try:
            with self._budget.spending():
                action()
        except Exception as error:  # whatever it is, the training goes on
            self._is_broken = True
            self._warn(f"TrainingHealth stopped watching ({type(error).__name__}: {error}). The training goes on.")

    def _warn(self, message: str) -> None:
        """A warning; where warnings are errors a line of text, for the training goes on."""
        try:
            warnings.warn(message, HealthWarning, stacklevel=3)
        except HealthWarning:
            print(f"\n{message}", flush=True)

    def _begin(self) -> None:
        is_story = isinstance(self.model, TellsStory)
        if is_story:
            refuse_for_story(data=self._data, validation_data=self._validation_data, likelihood=self._likelihood)
        is_given_data = self._data is not None or self._validation_data is not None
        likelihood = likelihood_of(self.model, self._likelihood) if is_given_data and not is_story else None
        train = self._probe(self._data, "data", likelihood)
        validation = self._probe(self._validation_data, "validation_data", likelihood)
        size = size_of(self.model.progress if is_story else self.model, self._given_size)
        if size is None and self._data is not None:
            size = len(self._data[1])
        run = Run(Journal(uuid.uuid4().hex, self._path, self._board_folder), likelihood, size, train, validation)
        run.steps = self.params.get("steps")
        run.gradient = GradientWatch(None if is_story else self._data, size, run.steps, self._warn)
        run.sites = kinds_of(self.model) if is_story else None
        run.seeds, run.optimizer = fingerprint_of_seeds(self.model), fingerprint_of_optimizer(self.model)
        run.learning_rate = rate_of(self.model)
        self._go_on_from(run, steps_of(self.model))
        self._state = run
        run.write_start(self.model, self._planned)
        self._read_model()

    def _go_on_from(self, run: Run, step: int) -> None:
        """Takes over what is known of the training so far, if the model was trained before; else begins anew."""
        before = self._state
        if before is not None and before.model_id == id(self.model) and 0 < before.last_step == step:
            run.go_on_from(before, self.epochs)
            return
        self.finding, self.quantities, self.epochs, self.verdicts = None, None, [], []
        self._said.clear()
        run.model_id = id(self.model)
        recorded = interrupted_run(self._path, step, run.start_event(None))
        if recorded is not None:  # of another process; where its scales began is not known any more
            run.go_on_from(recorded, recorded.epochs)
            self.epochs, self.verdicts = list(recorded.epochs), list(recorded.verdicts)

    def _probe(self, data: Any, argument: str, likelihood: Likelihood | None) -> ProbeData | None:
        if data is None or likelihood is None:
            return None
        return take_probe(data, self._probe_size, likelihood, argument, self.model)

    def _read_model(self) -> None:
        """Scales at the start, and how the loss counts the KL where that is known without measuring it."""
        run = self._state
        assert run is not None
        if not self.model.built:
            return
        run.is_read = True
        if run.sites is not None:
            self._judge(story_quantities(self.model, None, run.size), 0)
            return
        posteriors = posteriors_of(self.model)
        if not run.is_resumed:
            run.start = start_scales(posteriors)
        if posteriors and isinstance(self.model, HasTemperature):
            self._take_accounting(Accounting.by_construction(self.model, run.size))
        run.has_posteriors = bool(posteriors)
        run.needs_accounting = bool(posteriors) and run.accounting is None and run.train is not None
        steps = (self.params.get("steps") or 0) * (self._planned or 1)
        if self._budget.share == 1 or self._budget.pays_before("accounting", steps):
            self._measure_accounting()

    def _measure_accounting(self) -> None:
        """Measures what the compiled loss makes of the KL, once."""
        run = self._state
        assert run is not None
        if not run.needs_accounting or run.size is None:
            return
        assert run.train is not None
        assert run.likelihood is not None
        run.needs_accounting = False
        with self._budget.measuring("accounting"):
            run.readings = read_foreign(network_of(self.model), run.train.x)
            batch_size = run.size / run.steps if run.steps else None
            probe, given = run.train, (run.likelihood, run.size, batch_size, run.readings)
            self._take_accounting(measure_accounting(self.model, probe.x, probe.y, *given))

    def _take_accounting(self, accounting: Accounting | None) -> None:
        run = self._state
        assert run is not None
        run.accounting = accounting
        if accounting is not None:
            epoch = self.epochs[-1]["epoch"] if self.epochs else 0
            counts = run.counts(self.model)
            self._judge(Quantities(epoch, self._planned, num_examples=run.size, **counts), epoch)

    @property
    def _planned(self) -> int | None:
        """Epochs that the whole training is to have, with those of the fits before."""
        planned, run = self.params.get("epochs"), self._state
        return planned if planned is None or run is None else planned + run.offset

    def _end_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        run = self._state
        if run is None:
            return
        if run.is_first and self.epochs:  # this fit may count from 1 again
            run.offset = max(0, self.epochs[-1]["epoch"] + 1 - epoch)
            run.write_start(self.model, self._planned)  # again, for now it is known how many epochs are planned in all
        run.is_first = False
        epoch += run.offset
        if "nll" not in logs and run.is_read and not run.has_posteriors:
            logs["nll"] = logs.get("loss")  # a plain model's loss is all there is
        entry = {"epoch": epoch, **{key: as_number(value) for key, value in logs.items()}}
        self.epochs.append(entry)
        entry["seconds"] = run.seconds_before + self._budget.elapsed()
        entry["step"] = run.last_step = steps_of(self.model)
        loss = logs.get("loss", logs.get("nll"))
        if loss is not None and not np.isfinite(loss):
            known = Quantities() if run.sites is None else story_quantities(self.model, entry)
            planned, size = self._planned, run.size
            known = dataclasses.replace(known, epoch=epoch, planned_epochs=planned, num_examples=size, finite=False)
            self._judge(known, epoch)
        elif run.sites is not None:
            if self._budget.pays("iterate", self._budget.elapsed()):
                with self._budget.measuring("iterate"):
                    run.watch_story(self.model)
        elif run.train is not None or run.validation is not None:
            self._measure_if_paid(epoch)
        logs = {key: value for key, value in entry.items() if key != "epoch"}
        run.journal.write({"event": "epoch", "epoch": epoch, "logs": logs})
        run.journal.plot(epoch, entry, self.quantities)

    def _measure_if_paid(self, epoch: int) -> None:
        """Measures within the budget; what the logs call for may spend all of it."""
        run = self._state
        assert run is not None
        planned = max(self._planned or epoch, epoch)
        if run.needs_accounting:
            if self._budget.pays_now("accounting", self.epochs, planned, is_urgent=True):
                self._measure_accounting()
            return
        run.gradient.look(self.model, self._budget, self.epochs, planned, is_over=False)
        probe = run.train or run.validation
        assert probe is not None
        is_urgent = is_due(epoch, run.last_probe, planned) and looks_wrong(self.epochs, probe.nll_null, run.size)
        if self._budget.pays_now("probe", self.epochs, planned, is_urgent):
            with self._budget.measuring("probe"):
                self._probe_now(epoch)

    def _probe_now(self, epoch: int) -> None:
        run = self._state
        assert run is not None
        probe = run.validation or run.train
        assert run.likelihood is not None
        if run.readings is None and probe is not None:
            run.readings = read_foreign(network_of(self.model), probe.x)
        measured = measure(
            self.model,
            run.likelihood,
            run.size or 1,
            # A model that logs its NLL and has validation data needs no probe of the training data.
            None if run.validation is not None and self.epochs[-1].get("nll") is not None else run.train,
            run.validation,
            run.accounting,
            run.start,
            self._num_samples,
            readings=run.readings,
        )
        complete(self.epochs[-1], measured)
        measured = dataclasses.replace(
            measured,
            epoch=epoch,
            planned_epochs=self._planned,
            is_over=run.is_over,
            has_data=True,
            present_temperature=run.present_temperature(self.model, self.epochs[-1]),
            trends=measure_trends(self.epochs, run.size),
            gradient_noise=run.gradient.noise,
        )
        self._judge(measured, epoch)
        run.last_probe = epoch

    def _judge(self, quantities: Quantities, epoch: int) -> None:
        finding = judge(quantities)
        is_blank = quantities.judged is None and finding.verdict == "inconclusive"
        self.quantities, self.finding = quantities, finding
        if is_blank:
            return
        assert self._state is not None
        self.verdicts.append((epoch, finding.verdict, finding.confidence))
        self._state.journal.write(
            {
                "event": "probe",
                "epoch": epoch,
                "quantities": quantities.to_dict(),
                "verdict": finding.verdict,
                "confidence": finding.confidence,
                "evidence": finding.evidence,
            }
        )
        self._say(finding, epoch)
        if self.on_verdict == "stop" and finding.verdict in HOPELESS and finding.confidence != "possible":
            self.model.stop_training = True

    def _say(self, finding: Finding, epoch: int) -> None:
        if self.on_verdict == "record" or finding.verdict in UNREMARKABLE or finding.verdict in self._said:
            return
        self._said.add(finding.verdict)
        message = f"epoch {epoch}: {finding.verdict} ({finding.confidence}). {finding.evidence[0]}"
        if self.params.get("verbose"):
            print(f"\nTrainingHealth: {message}", flush=True)
        else:
            self._warn(message)

    def _end(self) -> None:
        run = self._state
        if run is None:
            return
        run.is_over = True
        self._last_look()
        last = self.epochs[-1]["epoch"] if self.epochs else 0
        seconds = {"seconds": self._budget.elapsed(), "own_seconds": self.own_seconds}
        run.journal.write({"event": "end", "epoch": last, **seconds})

    def _last_look(self) -> None:
        """Measures the end, where the whole training pays for it."""
        run = self._state
        assert run is not None
        last = self.epochs[-1]["epoch"] if self.epochs else 0
        q = self.quantities
        if not self.epochs or not (q is None or q.finite):
            return
        if run.sites is not None:
            q = run.story_quantities(self.model, self.epochs[-1])
            tell_convergence(self.model, q.story)
            trends = measure_trends(self.epochs, run.size)
            self._judge(dataclasses.replace(q, epoch=last, planned_epochs=self._planned, trends=trends), last)
            return
        if not (run.train or run.validation):
            return
        if run.last_probe == last:  # measured; what stopped early ended here
            if q is not None and self._planned is not None and last < self._planned:
                self._judge(dataclasses.replace(q, is_over=True), last)
            return
        elapsed = self._budget.elapsed()
        if run.needs_accounting and self._budget.pays("accounting", elapsed):
            self._measure_accounting()
        run.gradient.look(self.model, self._budget, self.epochs, last, is_over=True)
        if self._budget.pays("probe", elapsed):
            self._probe_now(last)
        elif q is not None:  # the last measurement, with what logs and weights say since
            trends = measure_trends(self.epochs, run.size)
            layers = run.layers(self.model, run.start)
            present = run.present_temperature(self.model, self.epochs[-1])
            q = dataclasses.replace(q, epoch=last, is_over=True, trends=trends, layers=layers)
            q = dataclasses.replace(q, present_temperature=present, gradient_noise=run.gradient.noise)
            self._judge(q, last)
