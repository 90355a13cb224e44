"""What `evaluate` found: tables, JSON and an HTML page."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from bdl.calibration import Interval
from bdl.evaluation.scores import ModelEvaluation
from bdl.report import Page, Paragraph, Report, Row, Table

_MAX_JSON_POINTS = 200
_NUM_SHOWN = 5


@dataclass(frozen=True)
class Meaning:
    """How a score is named in tables, and what it says.

    Args:
        title: Its name.
        text: A sentence that says how to read it.
        best: Which value is best: the `"highest"`, the `"lowest"`, or the one that is nearest to a number; None where
            the score has no order.
    """

    title: str
    text: str
    best: Literal["highest", "lowest"] | float | None = None

    def loss(self, value: float) -> float:
        """A number that is lower the better the value is; NaN where the score has no order."""
        match self.best:
            case "highest":
                return -value
            case "lowest":
                return value
            case None:
                return math.nan
            case goal:
                return abs(value - goal)


MEANINGS = {
    "accuracy": Meaning("Accuracy", "Share of predictions that are right.", "highest"),
    "nll": Meaning("NLL [nats]", "Mean surprise at what came true, lower is better.", "lowest"),
    "brier": Meaning("Brier score", "Squared distance between probabilities and truth, lower is better.", "lowest"),
    "ece": Meaning(
        "ECE",
        "Mean gap between confidence and accuracy in bins. Chance alone makes it positive, so it has no interval.",
        "lowest",
    ),
    "debiased_ce": Meaning(
        "Debiased RMS calibration error",
        "Root mean square gap without the part of chance: around 0 if calibrated, and significant if 0 is outside.",
    ),
    "classwise_ece": Meaning("Classwise ECE", "The same gap for the probability of each class, averaged.", "lowest"),
    "aurc": Meaning("AURC", "Mean error rate when the least certain are set aside, lower is better.", "lowest"),
    "error_auroc": Meaning(
        "AUROC of errors", "How often an error was less confident than a right prediction.", "highest"
    ),
    "aleatoric": Meaning("Aleatoric [nats]", "Mean expected entropy: noise in the data."),
    "epistemic": Meaning("Epistemic [nats]", "Mean mutual information: doubt that more data could remove."),
    "crps": Meaning("CRPS", "Distance between distribution and target, in its unit, lower is better.", "lowest"),
    "rmse": Meaning("RMSE", "Root mean square error of the predictive mean.", "lowest"),
    "coverage_50%": Meaning("Coverage of 50 % intervals", "Share of targets inside; should be 0.5.", 0.5),
    "width_50%": Meaning("Width of 50 % intervals", "Mean width: narrower is better at equal coverage."),
    "interval_score_50%": Meaning("Interval score, 50 %", "Width and misses in one, lower is better.", "lowest"),
    "coverage_90%": Meaning("Coverage of 90 % intervals", "Share of targets inside; should be 0.9.", 0.9),
    "width_90%": Meaning("Width of 90 % intervals", "Mean width: narrower is better at equal coverage."),
    "interval_score_90%": Meaning("Interval score, 90 %", "Width and misses in one, lower is better.", "lowest"),
    "qce": Meaning(
        "Quantile calibration error", "Mean gap between quantiles' levels and the share below them.", "lowest"
    ),
    "ence": Meaning("ENCE", "Relative gap between predicted and observed error, in bins of the scale.", "lowest"),
    "sharpness": Meaning("Sharpness", "Root mean square predictive scale: what is claimed to be known."),
}


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Report):
    """What `evaluate` found; `print` it for all scores with their intervals.

    Attributes:
        kind: `"classification"` or `"regression"` (real targets and counts).
        num_events: Number of labels or targets.
        level: Confidence level of the scores' intervals.
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

    def best(self, score: str) -> list[str]:
        """The models whose value of a score is best.

        Args:
            score: Its name, such as `"nll"`.

        Returns:
            Their names; several where their values read the same, and none where the score has no order, or all that
            have it read the same.

        Example:
        >>> sure, unsure = [[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.4, 0.6]]
        >>> bdl.evaluate([0, 1], {"sure": sure, "unsure": unsure}).best("nll")
        ['sure']
        """
        values = {name: model.scores[score].value for name, model in self.models.items() if score in model.scores}
        losses = {name: MEANINGS[score].loss(value) for name, value in values.items()}
        ranked = {name: loss for name, loss in losses.items() if not math.isnan(loss)}
        if not ranked:
            return []
        first = min(ranked, key=lambda name: ranked[name])
        best = [name for name in ranked if f"{values[name]:.4g}" == f"{values[first]:.4g}"]
        return best if len(best) < len(ranked) else []

    def table(self) -> Table:
        """The scores with their intervals, a column for each model; of several models the best are marked."""
        rows = [
            Row(
                MEANINGS[score].title,
                [_shown(model.scores.get(score)) for model in self.models.values()],
                MEANINGS[score].text,
                best=[place for place, name in enumerate(self.models) if name in self.best(score)],
            )
            for score in self._scores
        ]
        caption = (
            f"{self._events}; in brackets the {self.level:.0%} confidence interval of the score, where there is one."
            f"{self._not_resampled()}{self._left_out()}"
        )
        return Table(list(self.models), rows, caption)

    def glance(self) -> list[Paragraph | Table]:
        """The models with the values of their scores; the best are marked."""
        return [Paragraph(self._heading), self._values(self._scores)]

    def __repr__(self) -> str:
        """The first scores, which fit a terminal."""
        scores = self._scores
        few = self._values(scores[:_NUM_SHOWN])
        return f"{self._heading}\n{few}\nThe first {_NUM_SHOWN} of {len(scores)} scores; print it for all."

    def _values(self, scores: list[str]) -> Table:
        rows = [
            Row(
                name,
                [f"{model.scores[score].value:.4g}" if score in model.scores else "none" for score in scores],
                best=[place for place, score in enumerate(scores) if name in self.best(score)],
            )
            for name, model in self.models.items()
        ]
        return Table(scores, rows)

    @property
    def _scores(self) -> list[str]:
        return list(dict.fromkeys(name for model in self.models.values() for name in model.scores))

    @property
    def _heading(self) -> str:
        return f"Evaluation: {self.kind}, {self._events}"

    @property
    def _events(self) -> str:
        return f"{self.num_events:,} {'labels' if self.kind == 'classification' else 'targets'}"

    def _not_resampled(self) -> str:
        """Why most scores have no interval, in a sentence."""
        reasons = dict.fromkeys(model.not_resampled for model in self.models.values() if model.not_resampled)
        return "".join(f" Scores were not resampled for an interval, as {reason}." for reason in reasons)

    def _left_out(self) -> str:
        """Why scores are missing, in a sentence."""
        reasons = dict.fromkeys(reason for model in self.models.values() for reason in model.left_out.items())
        if not reasons:
            return ""
        return " Left out: " + "; ".join(f"{MEANINGS[name].title}, as {why}" for name, why in reasons) + "."

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain Python numbers, lists and dicts; long curves at 200 of their points.

        An infinite figure is the string `"Infinity"` or `"-Infinity"`, and what does not exist is None.
        """
        found = {
            "kind": self.kind,
            "num_events": self.num_events,
            "level": self.level,
            "models": {name: _as_dict(model) for name, model in self.models.items()},
        }
        return _for_json(found)

    def page(self, title: str | None = None) -> Page:
        """The page with all figures.

        Args:
            title: Its heading; None asks how good the uncertainty is.
        """
        from bdl.evaluation.page import build_page

        return build_page(self, title)

    def __str__(self) -> str:
        return str(self.table())


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
            name: {"value": each.value, "low": each.low, "high": each.high} for name, each in model.scores.items()
        },
        "left_out": model.left_out,
        "surprises": [asdict(surprise) for surprise in model.surprises],
        "risk_coverage": {
            "coverage": curve.coverage[points].tolist(),
            "risk": curve.risk[points].tolist(),
            "best_risk": curve.best_risk[points].tolist(),
        },
    }
    if model.classes is not None:
        found["classes"] = list(model.classes)
    if model.bins is not None:
        names = ("edges", "confidence", "accuracy", "count")
        found["reliability"] = {name: getattr(model.bins, name).tolist() for name in names}
    if model.pit is not None:
        found["pit_histogram"] = model.pit.tolist()
    if model.coverage is not None:
        found["interval_coverage"] = model.coverage.tolist()
    return found


def _for_json(value: Any) -> Any:
    """The same with None for NaN and the name of an infinity for it, which JSON has not."""
    if isinstance(value, dict):
        return {name: _for_json(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_for_json(each) for each in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
