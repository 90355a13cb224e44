"""`TrainingHealth`: a Keras callback that notices what is wrong with a training while it happens."""

from __future__ import annotations

import dataclasses
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from bdl.diagnostics.accounting import Accounting, likelihood_of, measure_accounting, present_temperature, with_counts
from bdl.diagnostics.measure import ProbeData, measure, posteriors_of, take_probe
from bdl.diagnostics.pacing import Budget, is_due, looks_wrong
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.record import FORMAT, append
from bdl.diagnostics.trends import measure_trends
from bdl.diagnostics.verdict import HOPELESS, Finding, judge
from bdl.diagnostics.weights import WeightPosterior, layer_health, start_scales
from bdl.likelihoods import Likelihood
from bdl.protocols import HasTemperature

_SILENT = ("healthy", "inconclusive", "still_training")  # nothing to interrupt a progress display for
_ACTIONS = ("warn", "stop", "record")


class HealthWarning(UserWarning):
    """A training is not healthy, or could not be watched."""


class TrainingHealth(keras.callbacks.Callback):
    """Watches a training: records ELBO, KL, temperature, fit and scales, and says when something is wrong.

    It works on `VariationalModel` and on plain Keras models, with bdl's layers or another library's. It measures on a
    probe, a fixed sample of the data that it is given, and leaves weights, seeds and metrics as they were, so that a
    training with it ends where one without it does. It spends at most `max_cost` of the training's time: where epochs
    are short, it measures fewer of them. An error inside it is a warning; it never breaks a training.

    Args:
        data: Training data `(x, y)`, arrays; N is their length. None judges by the logs alone, and then no verdict on
            predictions is given.
        validation_data: Data not trained on, `(x, y)`; what predictions are judged by.
        likelihood: `bdl.likelihoods.Likelihood` of the labels. None takes the model's, or that of the compiled loss.
        num_examples: Number of training examples, where `data` is a part of them.
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
        self._is_broken = False
        self._said: set[str] = set()
        self._state: _Run | None = None

    @property
    def own_seconds(self) -> float:
        """Seconds of the present training that went into watching it."""
        return self._budget.own_seconds

    def on_train_begin(self, logs: Any = None) -> None:
        """Takes the probes, and reads what is known before the first step."""
        self._budget = Budget(self._budget.share)
        self._is_broken = False
        self._watch(self._begin)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Reads a network that was not built before."""
        if self._state is not None and not self._state.is_read:
            self._watch(self._read_model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Records the epoch; measures where that is within the budget."""
        self._watch(lambda: self._end_epoch(epoch + 1, dict(logs or {})))

    def on_train_end(self, logs: Any = None) -> None:
        """Measures the end, and closes the record."""
        self._watch(self._end)

    def _watch(self, action: Callable[[], None]) -> None:
        """Runs a part of the callback: on the clock, and never to the harm of the training."""
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
        self.finding, self.quantities, self.epochs, self.verdicts = None, None, [], []
        self._said.clear()
        likelihood = likelihood_of(self.model, self._likelihood)
        train = self._probe(self._data, "data", likelihood)
        validation = self._probe(self._validation_data, "validation_data", likelihood)
        size = self._given_size or getattr(self.model, "num_examples", None)
        if size is None and self._data is not None:
            size = len(np.asarray(self._data[1]))
        self._state = _Run(uuid.uuid4().hex, likelihood, size, train, validation)
        self._write(
            {
                "event": "start",
                "format": FORMAT,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "model": self.model.name,
                "backend": keras.backend.backend(),
                "num_examples": size,
                "planned_epochs": self.params.get("epochs"),
            }
        )
        self._read_model()

    def _probe(self, data: Any, argument: str, likelihood: Likelihood) -> ProbeData | None:
        return None if data is None else take_probe(data, self._probe_size, likelihood, argument, self.model)

    def _read_model(self) -> None:
        """Scales at the start, and how the loss counts the KL where that is known without measuring it."""
        run = self._state
        assert run is not None
        if not self.model.built:
            return
        run.is_read = True
        posteriors = posteriors_of(self.model)
        run.start = start_scales(posteriors)
        if posteriors and isinstance(self.model, HasTemperature):
            self._take_accounting(Accounting.by_construction(self.model), posteriors)
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
        run.needs_accounting = False
        with self._budget.measuring("accounting"):
            found = measure_accounting(self.model, run.train.x, run.train.y, run.likelihood, run.size)
            self._take_accounting(found, posteriors_of(self.model))

    def _take_accounting(self, accounting: Accounting | None, posteriors: list[WeightPosterior]) -> None:
        run = self._state
        assert run is not None
        run.accounting = accounting
        if accounting is not None:
            epoch = self.epochs[-1]["epoch"] if self.epochs else 0
            self._judge(Quantities(epoch, self._planned, run.size, **_counts(run, self.model, posteriors)), epoch)

    @property
    def _planned(self) -> int | None:
        return self.params.get("epochs")

    def _end_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        run = self._state
        if run is None:
            return
        if "nll" not in logs and run.is_read and not run.has_posteriors:
            logs["nll"] = logs.get("loss")  # a plain model's loss is all there is
        entry = {"epoch": epoch, **{key: _number(value) for key, value in logs.items()}}
        self.epochs.append(entry)
        entry["seconds"] = self._budget.elapsed()
        loss = logs.get("loss", logs.get("nll"))
        if loss is not None and not np.isfinite(loss):
            self._judge(Quantities(epoch, self._planned, run.size, finite=False), epoch)
        elif run.train is not None or run.validation is not None:
            self._measure_if_paid(epoch)
        self._write({"event": "epoch", "epoch": epoch, "logs": {k: v for k, v in entry.items() if k != "epoch"}})
        self._to_board(epoch, entry)

    def _measure_if_paid(self, epoch: int) -> None:
        """Measures within the budget; what the logs call for may spend all of it."""
        run = self._state
        assert run is not None
        planned = max(self._planned or epoch, epoch)
        if run.needs_accounting:
            if self._budget.pays_now("accounting", self.epochs, planned, is_urgent=True):
                self._measure_accounting()
            return
        probe = run.train or run.validation
        assert probe is not None
        is_urgent = is_due(epoch, run.last_probe, planned) and looks_wrong(self.epochs, probe.nll_null, run.size)
        if self._budget.pays_now("probe", self.epochs, planned, is_urgent):
            with self._budget.measuring("probe"):
                self._probe_now(epoch)

    def _probe_now(self, epoch: int) -> None:
        run = self._state
        assert run is not None
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
        )
        self._complete(self.epochs[-1], measured)
        measured = dataclasses.replace(
            measured,
            epoch=epoch,
            planned_epochs=self._planned,
            present_temperature=self._present_temperature(),
            trends=measure_trends(self.epochs, run.size),
        )
        self._judge(measured, epoch)
        run.last_probe = epoch

    def _complete(self, entry: dict[str, Any], q: Quantities) -> None:
        """Adds what the model does not log itself; plain Keras models know neither NLL nor KL apart."""
        for key, value in (
            ("nll", q.train.nll_gibbs if q.train else None),
            ("kl", q.kl),
            ("val_nll", q.validation.nll_gibbs if q.validation else None),
        ):
            if value is not None and entry.get(key) is None:
                entry[key] = value
        if q.judged is not None:
            entry.setdefault("val_accuracy", q.judged.accuracy)
        if entry.get("elbo") is None and q.train is not None and q.rate is not None:
            entry["elbo"] = -(entry["nll"] + q.rate)
        if entry.get("temperature") is None:
            entry["temperature"] = q.temperature

    def _judge(self, quantities: Quantities, epoch: int) -> None:
        finding = judge(quantities)
        is_blank = quantities.judged is None and finding.verdict == "inconclusive"
        self.quantities, self.finding = quantities, finding
        if is_blank:
            return
        self.verdicts.append((epoch, finding.verdict, finding.confidence))
        self._write(
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
        if self.on_verdict == "stop" and finding.verdict in HOPELESS and finding.confidence == "certain":
            self.model.stop_training = True

    def _say(self, finding: Finding, epoch: int) -> None:
        if self.on_verdict == "record" or finding.verdict in _SILENT or finding.verdict in self._said:
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
        self._last_look()
        last = self.epochs[-1]["epoch"] if self.epochs else 0
        self._write(
            {
                "event": "end",
                "epoch": last,
                "seconds": self._budget.elapsed(),
                "own_seconds": self.own_seconds,
            }
        )

    def _last_look(self) -> None:
        """Measures the end, where the whole training pays for it."""
        run = self._state
        assert run is not None
        last = self.epochs[-1]["epoch"] if self.epochs else 0
        is_finite = self.quantities is None or self.quantities.finite
        if not self.epochs or not is_finite or run.last_probe == last or not (run.train or run.validation):
            return

        elapsed = self._budget.elapsed()
        if run.needs_accounting and self._budget.pays("accounting", elapsed):
            self._measure_accounting()
        if self._budget.pays("probe", elapsed):
            self._probe_now(last)
        elif self.quantities is not None:  # the last measurement, with what logs and weights say since
            trends = measure_trends(self.epochs, run.size)
            layers = layer_health(self.model, posteriors_of(self.model), run.start)
            layers = with_counts(layers, run.accounting)
            present = self._present_temperature()
            self._judge(
                dataclasses.replace(
                    self.quantities, epoch=last, trends=trends, layers=layers, present_temperature=present
                ),
                last,
            )

    def _present_temperature(self) -> float | None:
        """That of the model as it stands, which may be of an earlier epoch, restored; else that of the last logs."""
        own = present_temperature(self.model)
        return self.epochs[-1].get("temperature") if own is None else own

    def _write(self, event: dict[str, Any]) -> None:
        if self._path is not None and self._state is not None:
            append(self._path, {**event, "run": self._state.identity})

    def _to_board(self, epoch: int, entry: dict[str, Any]) -> None:
        if self._board_folder is None:
            return
        import tensorflow as tf

        assert self._state is not None
        if self._state.board is None:
            self._state.board = tf.summary.create_file_writer(str(self._board_folder))
        with self._state.board.as_default():
            for key, value in entry.items():
                if isinstance(value, (int, float)) and key != "epoch":
                    tf.summary.scalar(f"health/{key}", value, step=epoch)
            for layer in self.quantities.layers if self.quantities else ():
                if layer.kl is not None:
                    tf.summary.scalar(f"health/kl/{layer.name}", layer.kl, step=epoch)
        self._state.board.flush()


@dataclasses.dataclass(eq=False)
class _Run:
    """State of the run that is being watched."""

    identity: str
    likelihood: Likelihood
    size: int | None
    train: ProbeData | None
    validation: ProbeData | None
    accounting: Accounting | None = None
    start: dict[str, np.ndarray] | None = None
    is_read: bool = False
    has_posteriors: bool = False
    needs_accounting: bool = False
    last_probe: int = 0
    board: Any = None


def _counts(run: _Run, model: keras.Model, posteriors: list[WeightPosterior]) -> dict[str, Any]:
    """What is known before the first step."""
    assert run.accounting is not None
    return {
        "temperature": run.accounting.temperature,
        "declared_temperature": run.accounting.declared,
        "layers": with_counts(layer_health(model, posteriors), run.accounting),
    }


def _number(value: Any) -> Any:
    return float(value) if hasattr(value, "__float__") else value
