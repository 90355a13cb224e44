"""`diagnose`: all quantities of a model on a probe set, and the verdict; and the same from a record alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from bdl.diagnostics.accounting import likelihood_of, measure_accounting, size_of
from bdl.diagnostics.callback import TrainingHealth
from bdl.diagnostics.family_gap import check_refits, refit
from bdl.diagnostics.finding import Finding
from bdl.diagnostics.gradient_noise import noise_where_known
from bdl.diagnostics.measure import ProbeData, measure, network_of, take_probe
from bdl.diagnostics.quantities import Fit, Quantities
from bdl.diagnostics.reading import read_foreign
from bdl.diagnostics.record import RunRecord, read_record
from bdl.diagnostics.report import HealthReport
from bdl.diagnostics.story import measure_story, refuse_for_story, rows_of_step, story_in_record
from bdl.diagnostics.symptoms import refit_cause
from bdl.diagnostics.tf_keras_model import as_keras3
from bdl.diagnostics.trends import measure_trends
from bdl.diagnostics.twin import fit_of_twin, train_twin
from bdl.diagnostics.verdict import judge
from bdl.likelihoods import Likelihood
from bdl.protocols import TellsStory
from bdl.training.data import DEFAULT_BATCH_SIZE, is_data_set

_BATCH_SIZE = 64  # of the trainings of twin and refits, where the training's is not known
_TWIN_EPOCHS = 50  # where no record tells how long the model was trained
_NO_NOTHING = "`diagnose` needs a model or a record: diagnose(model, x, y) or diagnose(record='run.jsonl')."


def diagnose(
    model: keras.Model | Sequence[keras.Model] | None = None,
    x: Any = None,
    y: Any = None,
    record: Any = None,
    twin: Any = None,
    validation_data: Any = None,
    likelihood: Likelihood | None = None,
    num_examples: int | None = None,
    family_gap: bool = False,
    num_samples: int = 32,
    probe_size: int = 1000,
    batch_size: int | None = None,
    seed: int = 0,
) -> HealthReport:
    """Judges whether a trained network has learned from its data, or collapsed to its prior.

    Of a model of a story (`bdl.svi.SVI`) it says whether its guide has come to rest, and is the posterior (k-hat):
    `diagnose(model, data, record=health)`. Labels, twin, likelihood and refits do not apply to it.

    Args:
        model: A trained Keras model, variational, MC dropout or plain, or a list of them (an ensemble). None judges a
            record alone.
        x: Training inputs.
        y: Training labels.
        record: What `TrainingHealth` knows of the training: the callback itself, a record file, a `RunRecord`, or None.
        twin: The deterministic twin, which decides about underfitting: a trained Keras model, its `Fit`, `"auto"` to
            train it for the same budget, or None to do without.
        validation_data: Data not trained on, `(x, y)`: what predictions are judged by. Without it they are judged by
            the training data, and say nothing about overfitting.
        likelihood: Of the labels; None takes the model's, or that of the compiled loss.
        num_examples: Number of training examples; None takes what the model's `fit` measured or the model was told,
            else the length of `y`.
        family_gap: Whether to train the network on, four times for some 200 steps, to tell whether its family, its
            prior or its optimizer holds the ELBO back (Q20). bdl's layers only. Of a prior centred on the posterior
            means, such as the default, the ELBO cannot judge; family and optimizer then remain.
        num_samples: Whole functions to draw.
        probe_size: Examples of each set to measure on.
        batch_size: Batch size of the training. T depends on it where the compiled loss is a sum over the batch, and so
            does the noise of the gradient. None takes the record's, or that of a story's last fit. The
            trainings of twin and refits use it as well; without it they use 64, and the gradient is that of 32 rows.
        seed: For the trainings of twin and refits, which set Keras' global seed to it, and for rows and draws of the
            gradient.

    Returns:
        A `HealthReport`. NLLs are in nats per example.

    Raises:
        ValueError: if neither model nor record is given, data and model do not fit, or the likelihood cannot be told.

    Example:
    >>> x = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
    >>> y = (x[:, 0] > 0).astype(int)
    >>> network = keras.Sequential([keras.Input((2,)), bdl.layers.DenseRank1(2)])
    >>> model = bdl.VariationalModel(network, bdl.likelihoods.Categorical())
    >>> model.compile(keras.optimizers.Adam(0.03))
    >>> _ = model.fit(x, y, epochs=30, verbose=0)
    >>> diagnose(model, x, y).verdict
    'healthy'
    """
    run = _as_run(record)
    if model is None:
        if run is None:
            raise ValueError(_NO_NOTHING)
        return _from_record(run)
    if isinstance(model, TellsStory):
        gap = family_gap or None
        refuse_for_story(y=y, twin=twin, validation_data=validation_data, likelihood=likelihood, family_gap=gap)
        return _of_story(model, x, run, num_examples, num_samples, batch_size, seed)
    if (x is None or y is None) and validation_data is None:
        raise ValueError("`x` and `y` are needed to measure what the model has learned; pass the training data.")
    if family_gap:
        check_refits(model, x)
    likelihood = likelihood_of(model, likelihood)
    model = as_keras3(model)
    first = model[0] if isinstance(model, (list, tuple)) else model
    train = None if x is None else take_probe((x, y), probe_size, likelihood, "x, y", model)
    held = validation_data
    validation = None if held is None else take_probe(held, probe_size, likelihood, "validation_data", model)
    some = train or validation
    assert some is not None
    size = size_of(first, num_examples) or len(y if y is not None else validation_data[1])
    steps = run.start.get("steps") if run is not None else None
    trained_with = batch_size or (size / steps if steps else None)
    batch_size = batch_size or _BATCH_SIZE
    is_compiled = getattr(first, "compiled", False) and not isinstance(model, (list, tuple))
    readings = read_foreign(network_of(first), some.x)
    accounting = None
    if is_compiled:
        accounting = measure_accounting(first, some.x, some.y, likelihood, size, trained_with, readings)
    measured = measure(
        model, likelihood, size, train, validation, accounting, None, num_samples, is_thorough=True, readings=readings
    )
    measured = _with_record(measured, run)
    noise = noise_where_known(model, x, y, math.ceil(trained_with or DEFAULT_BATCH_SIZE), seed)
    measured = dataclasses.replace(measured, gradient_noise=noise)
    if twin is not None:
        budget = measured.planned_epochs or _TWIN_EPOCHS
        fit = _twin_fit(twin, first, x, y, validation or some, likelihood, budget, batch_size, seed)
        measured = dataclasses.replace(measured, twin=fit)
    if family_gap:
        assert train is not None
        measured = dataclasses.replace(
            measured, refits=refit(first, x, y, likelihood, train, batch_size=batch_size, seed=seed)
        )
    return HealthReport.of(_with_cause(judge(measured), measured), measured, run.epochs if run else ())


def _of_story(
    model: Any,
    x: Any,
    run: RunRecord | None,
    num_examples: int | None,
    num_samples: int,
    batch_size: int | None,
    seed: int,
) -> HealthReport:
    """The report of a model of a story on its data, with what the record of its fit knows."""
    if x is None or is_data_set(x):
        raise ValueError("`x` must be the data of the story, arrays as `fit` takes them, not a data set or None.")
    measured = measure_story(model, x, num_examples, num_samples, seed)
    noise = noise_where_known(model, x, None, batch_size or rows_of_step(model), seed)
    found = dataclasses.replace(_with_record(measured, run), gradient_noise=noise)
    recorded = run.probes[-1].story if run is not None and run.probes else None
    if recorded is not None and found.story is not None:
        moved = {name: getattr(recorded, name) for name in ("num_iterates", "r_hat", "moved", "moved_site")}
        found = dataclasses.replace(found, story=dataclasses.replace(found.story, **moved))
    return HealthReport.of(judge(found), found, run.epochs if run else ())


def _with_cause(finding: Finding, measured: Quantities) -> Finding:
    """The finding with what the refits say about its cause."""
    if not measured.refits:
        return finding
    found = refit_cause(measured)
    if found is None and measured.has_fitted_means:
        sentence = "No refit gained: neither a richer family nor faster scales raises the ELBO."
    elif found is None:
        sentence = "No refit gained: neither a richer family, another prior nor faster scales raises the ELBO."
    else:
        best, gain = found
        sentence = f"A refit names the {best.change}: {best.what} gains {gain:.3f} nats per example over the control."
    if measured.has_fitted_means:
        sentence += (
            " The posterior means are point estimates (variational EM), which the ELBO leaves out: it cannot judge the "
            "prior."
        )
    return dataclasses.replace(finding, evidence=(*finding.evidence, sentence))


def diagnose_record(path: str | Path, name: str | None = None) -> dict[str, HealthReport]:
    """The report of every run in a record file, by a name for each.

    Args:
        path: The file.
        name: Name of the run, which several have with a number; None takes the file's.
    """
    runs = read_record(path)
    name = Path(path).stem if name is None else name
    names = [name] if len(runs) == 1 else [f"{name} #{number}" for number in range(1, len(runs) + 1)]
    return {name: _from_record(run) for name, run in zip(names, runs, strict=True)}


def _twin_fit(
    twin: Any,
    model: Any,
    x: Any,
    y: Any,
    data: ProbeData,
    likelihood: Likelihood,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Fit:
    if isinstance(twin, Fit):
        return twin
    if isinstance(twin, keras.Model):
        return fit_of_twin(twin, data, likelihood)
    if twin != "auto":
        raise ValueError(f'`twin` must be "auto", a Keras model, a Fit, or None, not {twin!r}.')
    if x is None:
        raise ValueError('`twin="auto"` trains the twin, which needs the training data: pass x and y.')
    return fit_of_twin(train_twin(model, x, y, likelihood, epochs, batch_size, seed), data, likelihood)


def _as_run(record: Any) -> RunRecord | None:
    if record is None or isinstance(record, RunRecord):
        return record
    if isinstance(record, (str, Path)):
        return read_record(record)[-1]
    if isinstance(record, TrainingHealth):
        return record.as_record()
    raise ValueError(f"`record` must be a file, a RunRecord or a TrainingHealth callback, not {record!r}.")


def _with_record(measured: Quantities, run: RunRecord | None) -> Quantities:
    """What only the training's record knows: epochs, trends, and which scales never moved."""
    if run is None:
        return dataclasses.replace(measured, is_over=True, has_data=True)
    last = run.probes[-1] if run.probes else Quantities()
    recorded = run.epochs[-1].get("temperature") if run.epochs else None
    stuck = {layer.name: layer.stuck for layer in last.layers}
    counted = {layer.name: (layer.counted, layer.counted_error) for layer in last.layers}
    layers = []
    for layer in measured.layers:
        own = (layer.counted, layer.counted_error)
        count, error = counted.get(layer.name, own) if layer.counted is None else own
        stuck_share = stuck.get(layer.name)
        layers.append(dataclasses.replace(layer, stuck=stuck_share, counted=count, counted_error=error))
    return dataclasses.replace(
        measured,
        epoch=run.epochs[-1]["epoch"] if run.epochs else 0,
        planned_epochs=run.start.get("planned_epochs"),
        is_over=run.is_complete,
        has_data=True,
        present_temperature=_known(measured.present_temperature, recorded),
        trends=measure_trends(run.epochs, measured.num_examples),
        layers=tuple(layers),
        finite=measured.finite and last.finite,
        temperature=_known(measured.temperature, last.temperature),
        declared_temperature=_known(measured.declared_temperature, last.declared_temperature),
    )


def _known(value: float | None, otherwise: float | None) -> float | None:
    return otherwise if value is None else value


def _from_record(run: RunRecord) -> HealthReport:
    """A report from what was recorded alone; of a run that was killed, on what it had shown."""
    last = run.probes[-1] if run.probes else Quantities()
    epoch = run.epochs[-1]["epoch"] if run.epochs else 0
    size = last.num_examples or run.start.get("num_examples")
    losses = [entry.get("loss", entry.get("nll", 0.0)) for entry in run.epochs]
    quantities = dataclasses.replace(
        last,
        epoch=epoch,
        planned_epochs=run.start.get("planned_epochs"),
        is_over=run.is_complete,
        has_data=run.start.get("has_data"),
        num_examples=size,
        finite=last.finite and None not in losses,
        present_temperature=run.epochs[-1].get("temperature") if run.epochs else None,
        trends=measure_trends(run.epochs, size),
        story=story_in_record(last.story, run.start, run.epochs, size),
    )
    report = HealthReport.of(judge(quantities), quantities, run.epochs)
    notes = []
    if run.is_cut:
        notes.append("The record is cut in the middle of a line; what stands before it was read.")
    if not run.is_complete:
        notes.append(f"The run did not end by itself: the record stops after epoch {epoch}.")
    return dataclasses.replace(report, evidence=(*report.evidence, *notes))
