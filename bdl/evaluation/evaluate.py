"""`evaluate` and its result: tables, JSON and an HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from bdl.calibration import Interval
from bdl.calibration._validation import check_num_bins, check_share, check_targets, real_array
from bdl.evaluation.forecasts import FIELDS, ClassForecast, Forecast, forecast_of
from bdl.evaluation.scores import ModelEvaluation, Resampling, evaluate_classes, evaluate_targets
from bdl.likelihoods import Likelihood
from bdl.report import Row, Table, render, write_atomically
from bdl.training.batches import LabelledData
from bdl.training.data import is_data_set

_MAX_JSON_POINTS = 200


@dataclass(frozen=True)
class Meaning:
    """How a score is named in tables, and what it says."""

    title: str
    text: str


MEANINGS = {
    "accuracy": Meaning("Accuracy", "Share of predictions that are right."),
    "nll": Meaning("NLL [nats]", "Mean surprise at what came true, lower is better."),
    "brier": Meaning("Brier score", "Squared distance between probabilities and truth, lower is better."),
    "ece": Meaning(
        "ECE",
        "Mean gap between confidence and accuracy in bins. Chance alone makes it positive, so it has no interval.",
    ),
    "debiased_ce": Meaning(
        "Debiased calibration error",
        "Root mean square gap without the part of chance: around 0 if calibrated, and significant if 0 is outside.",
    ),
    "classwise_ece": Meaning("Classwise ECE", "The same gap for the probability of each class, averaged."),
    "aurc": Meaning("AURC", "Mean error rate when the least certain are set aside, lower is better."),
    "error_auroc": Meaning("AUROC of errors", "How often an error was less confident than a right prediction."),
    "aleatoric": Meaning("Aleatoric [nats]", "Mean expected entropy: noise in the data."),
    "epistemic": Meaning("Epistemic [nats]", "Mean mutual information: doubt that more data could remove."),
    "crps": Meaning("CRPS", "Distance between distribution and target, in its unit, lower is better."),
    "rmse": Meaning("RMSE", "Root mean square error of the predictive mean."),
    "coverage_50%": Meaning("Coverage of 50 % intervals", "Share of targets inside; should be 0.5."),
    "width_50%": Meaning("Width of 50 % intervals", "Mean width: narrower is better at equal coverage."),
    "interval_score_50%": Meaning("Interval score, 50 %", "Width and misses in one, lower is better."),
    "coverage_90%": Meaning("Coverage of 90 % intervals", "Share of targets inside; should be 0.9."),
    "width_90%": Meaning("Width of 90 % intervals", "Mean width: narrower is better at equal coverage."),
    "interval_score_90%": Meaning("Interval score, 90 %", "Width and misses in one, lower is better."),
    "qce": Meaning("Quantile calibration error", "Mean gap between quantiles' levels and the share below them."),
    "ence": Meaning("ENCE", "Relative gap between predicted and observed error, in bins of the scale."),
    "sharpness": Meaning("Sharpness", "Root mean square predictive scale: what is claimed to be known."),
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        kind: `"classification"` or `"regression"` (real targets and counts).
        num_events: Number of labels or targets.
        level: Nominal coverage of the intervals.
        models: A `ModelEvaluation` for each model, by name.
    """

    kind: Literal["classification", "regression"]
    num_events: int
    level: float
    models: dict[str, ModelEvaluation]

    def __getitem__(self, score: str) -> float:
        """The value of a score of the only model."""
        (model,) = self.models.values()
        return model.scores[score].value

    def table(self) -> Table:
        """The scores, a column for each model."""
        names = list(dict.fromkeys(name for model in self.models.values() for name in model.scores))
        rows = [
            Row(MEANINGS[name].title, [_shown(model.scores.get(name)) for model in self.models.values()],
                MEANINGS[name].text)
            for name in names
        ]  # fmt: skip
        return Table(
            list(self.models),
            rows,
            f"{self.num_events:,} {'labels' if self.kind == 'classification' else 'targets'}; in brackets the "
            f"{self.level:.0%} interval, where there is one.",
        )

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain Python numbers, lists and dicts; long curves at 200 of their points."""
        return {
            "kind": self.kind,
            "num_events": self.num_events,
            "level": self.level,
            "models": {name: _as_dict(model) for name, model in self.models.items()},
        }

    def save_json(self, path: str | PathLike[str]) -> None:
        """Writes `to_dict()` as JSON; the file appears whole or not at all.

        Args:
            path: File to write; replaced if it exists.
        """
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    def save_html(self, path: str | PathLike[str], title: str = "How good is the uncertainty?") -> None:
        """Writes one self-contained HTML page with all figures; the file appears whole or not at all.

        Args:
            path: File to write; replaced if it exists.
            title: Heading of the page.
        """
        from bdl.evaluation.page import build_page

        write_atomically(Path(path), render(build_page(self, title)))

    def __str__(self) -> str:
        table = self.table()
        rows = [["", *table.columns], *([row.name, *row.cells] for row in table.rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, table.caption])


def evaluate(
    y: ArrayLike | None,
    prediction: Any,
    x: Any = None,
    *,
    mask: ArrayLike | None = None,
    likelihood: Likelihood | None = None,
    num_bins: int = 15,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Evaluation:
    """Tells how good predictions and their uncertainty are, whoever made them.

    Args:
        y: Labels (class indices) `(n,)` or `(...)`; targets or counts for predictive distributions of such. None takes
            the labels of a data set `x`.
        prediction: One of, or a dict of them by the models' names:
            an array of class probabilities `(..., classes)`, or of the shape of `y` for label 1;
            a dict of arrays: `{"probabilities"}`, `{"logits"}`, `{"samples"}` (probabilities `(samples, n, classes)`,
            or draws of targets `(samples, n)`), `{"mean", "scale"}`;
            what `predict_distribution` returned;
            a `VariationalModel`, a Keras model or list of models (with `likelihood`), or a fitted scikit-learn
            classifier, all with `x`.
        x: Inputs for models: whatever `predict_distribution` takes. A data set is read once, and for several models
            kept in memory; its sample weights are ignored.
        mask: True where a label counts, shape of `y`.
        likelihood: What the outputs of Keras models mean.
        num_bins: Bins of the calibration errors.
        level: Nominal coverage of the intervals.
        num_resamples: Bootstrap samples behind the intervals; 0 for none. Above 200,000 examples there are none.
        seed: Decides the bootstrap, and the prediction of models.
        **options: Further arguments of `predict_distribution` for models, such as `num_samples`.

    Returns:
        `Evaluation`: `print` it, index it (`evaluation["nll"]`), or `save_html`, `save_json`.

    Raises:
        ValueError: if an argument is not valid, predictions and `y` do not fit, or models are of different kinds.

    Example:
    >>> evaluation = evaluate([0, 1, 1, 0], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    >>> evaluation["accuracy"]
    0.75
    """
    check_share("level", level)
    check_num_bins(num_bins)
    if isinstance(num_resamples, bool) or not hasattr(num_resamples, "__index__") or num_resamples < 0:
        raise ValueError(f"`num_resamples` must be an integer of at least 0, not {num_resamples!r}. Pass 1000.")
    named = _by_name(prediction)
    if x is not None:
        options.setdefault("seed", seed)
    data = LabelledData(x, num_readings=len(named)) if is_data_set(x) else None
    forecasts = {
        name: forecast_of(each, x if data is None else data.inputs(), likelihood, **options)
        for name, each in named.items()
    }
    kind = _kind(forecasts)
    labels = real_array("y", _labels(y, data))
    resampling = Resampling(level, int(num_resamples), seed, examples=len(labels) if labels.ndim else 0)
    models = {name: _evaluate(labels, each, mask, num_bins, resampling) for name, each in forecasts.items()}
    num_events = labels.size if mask is None else int(np.sum(np.asarray(mask, dtype=bool)))
    return Evaluation(kind, num_events, level, models)


def _by_name(prediction: Any) -> dict[str, Any]:
    if isinstance(prediction, Mapping) and not set(prediction) <= set(FIELDS):
        if not all(isinstance(name, str) for name in prediction):
            raise ValueError(f"`prediction` must name its models by strings, not {list(prediction)}.")
        return dict(prediction)
    if isinstance(prediction, Mapping) and not prediction:
        raise ValueError("`prediction` must hold at least one prediction, not be an empty dict.")
    return {"model": prediction}


def _labels(y: ArrayLike | None, data: LabelledData | None) -> ArrayLike:
    """The labels that were given, or those of a data set that was read."""
    found = None if data is None else data.labels()
    if y is None and found is None:
        raise ValueError("`y` must hold the labels, not be None, unless `x` is a data set of (inputs, labels).")
    if y is not None and found is not None:
        raise ValueError("`y` must be None where the data set `x` has labels, which are taken with its inputs.")
    return found if y is None else y  # type: ignore[return-value]


def _kind(forecasts: Mapping[str, Forecast]) -> Literal["classification", "regression"]:
    are_classes = {name: isinstance(forecast, ClassForecast) for name, forecast in forecasts.items()}
    if len(set(are_classes.values())) > 1:
        raise ValueError(
            "`prediction` must be of class probabilities for all models, or of targets for all, not classes from "
            f"{[name for name, is_class in are_classes.items() if is_class]} only. Evaluate them apart."
        )
    return "classification" if next(iter(are_classes.values())) else "regression"


def _evaluate(
    y: np.ndarray, forecast: Forecast, mask: ArrayLike | None, num_bins: int, resampling: Resampling
) -> ModelEvaluation:
    if isinstance(forecast, ClassForecast):
        if y.dtype.kind == "f" and np.isfinite(y).all() and (y != np.floor(y)).any():
            raise ValueError(
                "`prediction` must say how sure it is of real targets, {'mean': ..., 'scale': ...} or "
                f"{{'samples': ...}}, not be an array of shape {forecast.probabilities.shape}, which stands for class "
                "probabilities: `y` has fractions."
            )
        return evaluate_classes(y, forecast, mask, num_bins, resampling)
    if mask is not None:
        raise ValueError("`mask` must be of labels, not of targets. Drop the targets that do not count.")
    (targets,) = check_targets(("y", y))
    if targets.size != forecast.mean.size:
        raise ValueError(
            "`y` and `prediction` must describe the same targets, "
            f"not shapes {targets.shape} and {forecast.mean.shape}. Predict on exactly the inputs of `y`."
        )
    return evaluate_targets(targets, forecast, resampling)


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return "none"
    if math.isnan(interval.low):
        return f"{interval.value:.4g}"
    return (
        f"{interval.value:.4g} ({interval.low:.3g}\u00a0to\u00a0{interval.high:.3g})"  # breaks only before the bracket
    )


def _as_dict(model: ModelEvaluation) -> dict[str, Any]:
    curve = model.risk_coverage
    points = np.unique(np.linspace(0, len(curve.coverage) - 1, min(len(curve.coverage), _MAX_JSON_POINTS)).astype(int))
    found: dict[str, Any] = {
        "scores": {
            name: {"value": each.value, "low": _number(each.low), "high": _number(each.high)}
            for name, each in model.scores.items()
        },
        "surprises": [asdict(surprise) for surprise in model.surprises],
        "risk_coverage": {
            "coverage": curve.coverage[points].tolist(),
            "risk": curve.risk[points].tolist(),
            "best_risk": curve.best_risk[points].tolist(),
        },
    }
    if model.bins is not None:
        names = ("edges", "confidence", "accuracy", "count")
        found["reliability"] = {name: [_number(v) for v in getattr(model.bins, name).tolist()] for name in names}
    if model.pit is not None:
        found["pit_histogram"] = model.pit.tolist()
    if model.coverage is not None:
        found["interval_coverage"] = model.coverage.tolist()
    return found


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
