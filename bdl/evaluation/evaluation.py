"""What `evaluate` found: tables, JSON and an HTML page."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bdl.calibration import Interval
from bdl.evaluation.scores import ModelEvaluation
from bdl.report import Page, Row, Table, render, write_atomically

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
        "Debiased RMS calibration error",
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


class Report:
    """What can be saved as JSON and as a page; subclasses write `to_dict` and `page`."""

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain Python numbers, lists and dicts."""
        raise NotImplementedError

    def page(self, title: str) -> Page:
        """The page with all figures.

        Args:
            title: Its heading.
        """
        raise NotImplementedError

    def save_json(self, path: str | PathLike[str]) -> None:
        """Writes `to_dict()` as JSON; the file appears whole or not at all.

        JSON has no infinity and no NaN: an infinite figure is the string `"Infinity"` or `"-Infinity"`, which Python's
        `float` and JavaScript's `Number` read, and what does not exist is `null`.

        Args:
            path: File to write; replaced if it exists.
        """
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def save_html(self, path: str | PathLike[str], title: str = "How good is the uncertainty?") -> None:
        """Writes one self-contained HTML page with all figures; the file appears whole or not at all.

        Args:
            path: File to write; replaced if it exists.
            title: Heading of the page.
        """
        write_atomically(Path(path), render(self.page(title)))


@dataclass(frozen=True, eq=False)
class Evaluation(Report):
    """What `evaluate` found.

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
            f"{self.level:.0%} confidence interval of the score, where there is one.{self._left_out()}",
        )

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

    def page(self, title: str) -> Page:
        """The page with all figures."""
        from bdl.evaluation.page import build_page

        return build_page(self, title)

    def __str__(self) -> str:
        table = self.table()
        rows = [["", *table.columns], *([row.name, *row.cells] for row in table.rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, table.caption])


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
