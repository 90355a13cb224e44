"""`evaluate`: how good predictions and their uncertainty are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np

from bdl.calibration._validation import check_num_bins, check_share, check_targets, real_array
from bdl.evaluation.class_forecasts import ClassForecast, Labels, OfClasses
from bdl.evaluation.class_scores import evaluate_classes
from bdl.evaluation.evaluation import Evaluation
from bdl.evaluation.forecasts import FIELDS, Forecast, forecasts_of, same_but_for_ones, told_by_labels
from bdl.evaluation.outputs import OutputEvaluations, by_output
from bdl.evaluation.scores import ModelEvaluation, Resampling
from bdl.evaluation.target_scores import evaluate_targets
from bdl.likelihoods.heads import Likelihoods, naming
from bdl.training.batches import LabelledData
from bdl.training.data import is_data_set

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


def evaluate(
    y: Any,
    prediction: Any,
    x: Any = None,
    *,
    mask: Any = None,
    likelihood: Likelihoods | None = None,
    ignore_class: int | str | None = None,
    classes: Any = None,
    num_bins: int = 15,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Scores predictions and their uncertainty, from any program.

    Class probabilities are read once, in blocks: a memory map (`np.load(path, mmap_mode="r")`) is never loaded whole.
    Targets, and a few numbers for each label, are kept in memory.

    Args:
        y: Labels `(n,)` or `(...)`, or one-hot with the shape of the probabilities: class indices, or the classes
            themselves (see `classes`); targets or counts for predictive distributions of such. For several outputs a
            dict of these by the outputs' names. None takes the labels of a data set `x`.
        prediction: One of, or a dict of them by the models' names:
            an array or table of class probabilities `(..., classes)`, or of the shape of `y` for label 1;
            a dict of arrays: `{"probabilities"}`, `{"logits"}`, `{"samples"}` (probabilities `(samples, n, classes)`,
            or of the shape of `y` for label 1, or draws of targets `(samples, n)`), `{"mean", "scale"}`. Logits with an
            axis more than `y` are of classes, others of label 1 each. Besides them `"classes"` may name those of this
            prediction;
            what `predict_distribution` returned;
            a `VariationalModel`, a Keras model or list of models (with `likelihood`), or a fitted scikit-learn
            classifier, all with `x`. For several outputs a model, what it predicted, or a dict of any of these
            predictions by the names in `y`.
        x: Inputs for models: whatever `predict_distribution` takes. A data set is read once, and for several models
            kept in memory; its sample weights are ignored. The predictions of all its inputs are kept while they are
            scored: of classes their probabilities, of targets the parameters of all samples. Those of
            classes that do not fit may be written to a file with `write_predictions`, which is read as it lies there. A
            file of targets holds mean and standard deviation, and is judged as Normal distributions.
        mask: True where a label counts, shape of `y`; for several outputs a dict. Nor do masked entries of `numpy.ma`
            count. What does not count may be anything, NaN included.
        likelihood: What the outputs of Keras models mean, and logits whose shape leaves it open.
        ignore_class: Label of events that do not count, such as 255; None takes that of the models' `Categorical`.
        classes: The class of each column, in order; for several outputs a dict. None takes what is known: a
            classifier's `classes_`, the names of a table's columns (also with a common prefix: `p_cat`). Where nothing
            is, labels are column numbers, or as many different ones as columns in sorted order (-1 and 1; names).
        num_bins: Bins of the calibration errors.
        level: Confidence level of the interval of each score. (Prediction intervals are judged at 50 % and 90 %.)
        num_resamples: Bootstrap samples behind the intervals; 0 for none. 1000 take some seconds for 200,000 examples;
            above that number there are none, and the table says so.
        seed: Decides the bootstrap, and the prediction of models.
        **options: Further arguments of `predict_distribution` for models, such as `num_samples`.

    Returns:
        `Evaluation`: `print` it, index it (`evaluation["nll"]`), or `save_html`, `save_json`. For several outputs
        `OutputEvaluations`, the same by output (`evaluation["kind"]["nll"]`).

    Raises:
        ValueError: if an argument is not valid, predictions and `y` do not fit, models are of different kinds, or it is
            not certain which class a label or what a logit means.

    Example:
    >>> evaluation = evaluate([0, 1, 1, 0], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    >>> evaluation["accuracy"]
    0.75
    """
    check_share("level", level)
    check_num_bins(num_bins)
    if isinstance(num_resamples, bool) or not hasattr(num_resamples, "__index__") or num_resamples < 0:
        raise ValueError(f"`num_resamples` must be an integer of at least 0, not {num_resamples!r}. Pass 1000.")
    outputs = list(y) if isinstance(y, Mapping) else None
    named = _by_name(prediction, outputs)
    if x is not None:
        options.setdefault("seed", seed)
    data = LabelledData(x, num_readings=len(named)) if is_data_set(x) else None
    inputs = (lambda: x) if data is None else data.inputs
    forecasts = _of_each(named, lambda each: forecasts_of(each, inputs(), likelihood, outputs, **options))
    y = _labels(y, data)
    found = [list(of_outputs) for of_outputs in forecasts.values()]
    if any(set(each) != set(found[0]) for each in found):
        raise ValueError(f"`prediction` must have the same outputs for all models, not {found}. Evaluate them apart.")

    def one(output: str | None, y: Any, mask: Any, classes: Any) -> Evaluation:
        chosen = _of_each(forecasts, lambda each: told_by_labels(each[output], y, mask, ignore_class))
        # Of several outputs it is meant for those with classes.
        is_for_it = output is None or any(isinstance(each, OfClasses) for each in chosen.values())
        void = ignore_class if is_for_it else None
        return _evaluate(y, chosen, mask, void, classes, num_bins, Resampling(level, int(num_resamples), seed))

    if None in found[0]:
        if isinstance(y, Mapping):
            raise ValueError(f"`y` must be one array for a prediction of one output, not a dict of {list(y)}.")
        return one(None, y, mask, classes)
    names = [str(name) for name in found[0]]
    labels, masks = by_output(y, names, "y"), by_output(mask, names, "mask")
    if classes is not None and not (isinstance(classes, Mapping) and set(classes) <= set(names)):
        raise ValueError(f"`classes` must be a dict by the prediction's outputs, {names}, not {classes!r}.")
    evaluations = {}
    for name in names:
        with naming(name):
            evaluations[name] = one(name, labels[name], masks[name], (classes or {}).get(name))
    return OutputEvaluations(evaluations)


def _by_name(prediction: Any, outputs: list[str] | None) -> dict[str, Any]:
    """Predictions by the models' names; a dict by the outputs' names is one model's."""
    is_of_outputs = isinstance(prediction, Mapping) and bool(set(prediction) & set(outputs or ()))
    if isinstance(prediction, Mapping) and not set(prediction) <= set(FIELDS) and not is_of_outputs:
        if not all(isinstance(name, str) for name in prediction):
            raise ValueError(f"`prediction` must name its models by strings, not {list(prediction)}.")
        return dict(prediction)
    if isinstance(prediction, Mapping) and not prediction:
        raise ValueError("`prediction` must hold at least one prediction, not be an empty dict.")
    return {"model": prediction}


def _of_each(models: Mapping[str, _Given], judge: Callable[[_Given], _Found]) -> dict[str, _Found]:
    """What is found of each model; an error about one of several says which."""
    found = {}
    for name, model in models.items():
        with naming(name if len(models) > 1 else None, "Model"):
            found[name] = judge(model)
    return found


def _labels(y: Any, data: LabelledData | None) -> Any:
    """The labels that were given, or those of a data set that was read."""
    found = None if data is None else data.labels()
    if y is None and found is None:
        raise ValueError("`y` must hold the labels, not be None, unless `x` is a data set of (inputs, labels).")
    if y is not None and found is not None:
        raise ValueError("`y` must be None where the data set `x` has labels, which are taken with its inputs.")
    return found if y is None else y


def _kind(forecasts: Mapping[str, Forecast]) -> Literal["classification", "regression"]:
    are_classes = {name: isinstance(forecast, OfClasses) for name, forecast in forecasts.items()}
    if len(set(are_classes.values())) > 1:
        raise ValueError(
            "`prediction` must be of class probabilities for all models, or of targets for all, not classes from "
            f"{[name for name, is_class in are_classes.items() if is_class]} only. Evaluate them apart, or if they are "
            "outputs of one model, let `y` be a dict by the same names."
        )
    return "classification" if next(iter(are_classes.values())) else "regression"


def _evaluate(
    y: Any,
    forecasts: dict[str, Forecast],
    mask: Any,
    ignore_class: int | str | None,
    classes: Any,
    num_bins: int,
    resampling: Resampling,
) -> Evaluation:
    """The scores of all models for one output."""
    kind = _kind(forecasts)
    if kind == "regression":
        if classes is not None:
            raise ValueError("`classes` must be of labels, not of targets, which have none. Leave it out.")
        targets = real_array("y", y)
        resampling = replace(resampling, examples=len(targets) if targets.ndim else 0)
        models = _of_each(forecasts, lambda each: _evaluate_targets(targets, each, mask, ignore_class, resampling))
        return Evaluation(kind, targets.size, resampling.level, models)
    labels = Labels.of(y, mask)
    of_classes = {name: each for name, each in forecasts.items() if isinstance(each, OfClasses)}
    of_models = _of_each(of_classes, lambda each: each.for_labels(labels))
    void = {each.ignore_class for each in of_models.values()} - {None}
    if ignore_class is None and len(void) > 1:
        raise ValueError(f"`ignore_class` must be given where models disagree on it, {sorted(map(str, void))}.")
    if ignore_class is None and void:
        (ignore_class,) = void
    evaluated = _of_each(
        of_models, lambda each: _evaluate_classes(labels, each, ignore_class, classes, num_bins, resampling)
    )
    num_events = [number for number, _ in evaluated.values()][-1]
    return Evaluation(kind, num_events, resampling.level, {name: found for name, (_, found) in evaluated.items()})


def _evaluate_classes(
    y: Labels,
    forecast: ClassForecast,
    ignore_class: int | str | None,
    classes: Any,
    num_bins: int,
    resampling: Resampling,
) -> tuple[int, ModelEvaluation]:
    """How many labels count, and the scores of one model."""
    names, indices, kept = forecast.labels(y, ignore_class, classes)
    resampling = replace(resampling, examples=_num_examples(indices, kept))
    found = evaluate_classes(indices, forecast, kept, num_bins, resampling)
    are_numbers = np.array_equal(names, np.arange(len(names)))
    num_events = indices.size if kept is None else int(kept.sum())
    return num_events, found if are_numbers else replace(found, classes=tuple(names.tolist()))


def _num_examples(indices: np.ndarray, kept: np.ndarray | None) -> int:
    """Of how many examples an event counts; padding is none."""
    if indices.ndim == 0 or kept is None:
        return len(indices) if indices.ndim else 0
    return int(kept.reshape(len(kept), -1).any(axis=1).sum())


def _evaluate_targets(
    y: np.ndarray, forecast: Any, mask: Any, ignore_class: int | str | None, resampling: Resampling
) -> ModelEvaluation:
    for name, value in (("mask", mask), ("ignore_class", ignore_class)):
        if value is not None:
            raise ValueError(f"`{name}` must be of labels, not of targets. Drop the targets that do not count.")
    (targets,) = check_targets(("y", y))
    if not same_but_for_ones(targets.shape, forecast.mean.shape):
        is_transposed = sorted(targets.shape) == sorted(forecast.mean.shape)
        cure = "Transpose one of them" if is_transposed else "Predict on exactly the inputs of `y`"
        raise ValueError(
            "`y` and `prediction` must describe the same targets, "
            f"not shapes {targets.shape} and {forecast.mean.shape}. {cure}."
        )
    return evaluate_targets(targets, forecast, resampling)
