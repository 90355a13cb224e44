"""The scores of class probabilities, from one pass over the events and one sort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdl.calibration import Interval, ReliabilityBins
from bdl.calibration._events import Events, event_blocks
from bdl.calibration._resampling import EventMeans, Examples, Statistic
from bdl.calibration.metrics.classification import hits, log_losses, squared_errors
from bdl.calibration.metrics.ranking import Ranked
from bdl.calibration.reliability import BinSums, class_pairs, top_pairs, uniform_edges
from bdl.evaluation.class_forecasts import ClassForecast
from bdl.evaluation.scores import NUM_SURPRISES, ModelEvaluation, Resampling, Surprise


def evaluate_classes(
    y: NDArray[np.int64], forecast: ClassForecast, mask: NDArray[np.bool_] | None, num_bins: int, resampling: Resampling
) -> ModelEvaluation:
    """Scores of class probabilities; those of ranks and bins have intervals only where resampling gives right ones."""
    found = _Collected.of(y, forecast, mask, num_bins, None if resampling.refusal else Examples(y.shape, mask))
    bins, ranked = found.bins, found.ranked
    curve = ranked.curve()
    # Tokens of a sequence are resampled with it, which ranks forget: they have an interval where events are examples.
    area = ranked.area if y.ndim == 1 else None
    statistics = {
        **found.means,
        "ece": Statistic(bins.expected_calibration_error),
        "debiased_ce": Statistic(bins.debiased_calibration_error),
        "classwise_ece": Statistic(float(np.mean([each.expected_calibration_error for each in found.class_bins]))),
        "aurc": Statistic(curve.area, area),
    }
    if ranked.losses.any() and not ranked.losses.all():
        statistics["error_auroc"] = Statistic(ranked.auroc())
    parts = None
    if forecast.aleatoric is not None and forecast.epistemic is not None:
        kept = slice(None) if mask is None else np.asarray(mask, dtype=bool).ravel()
        parts = (np.ravel(forecast.aleatoric)[kept], np.ravel(forecast.epistemic)[kept])
        statistics["aleatoric"] = Statistic(float(np.mean(parts[0])))
        statistics["epistemic"] = Statistic(float(np.mean(parts[1])))
    scores = resampling.intervals(statistics)
    ends = bins.debiased_interval(resampling.level)
    scores["debiased_ce"] = Interval(scores["debiased_ce"].value, *ends, resampling.level)
    surprises = _surprises(y, forecast.probabilities, mask, ranked)
    return ModelEvaluation(scores, surprises, curve, bins=bins, parts=parts, not_resampled=resampling.refusal)


@dataclass(frozen=True, eq=False)
class _Collected:
    """What the scores need of the events.

    Attributes:
        means: Accuracy, negative log likelihood and Brier score.
        bins: Reliability bins of the predicted class.
        class_bins: Those of each class.
        ranked: Whether predictions are wrong, the most confident first. Confidences stay of the probabilities' type, in
            which they are exact.
    """

    means: dict[str, Statistic]
    bins: ReliabilityBins
    class_bins: list[ReliabilityBins]
    ranked: Ranked

    @classmethod
    def of(
        cls,
        y: NDArray[np.int64],
        forecast: ClassForecast,
        mask: NDArray[np.bool_] | None,
        num_bins: int,
        examples: Examples | None,
    ) -> _Collected:
        """One pass over the events; `examples` is None where they are not resampled."""
        p = forecast.probabilities
        losses = forecast.log_losses(y)

        def exact_losses(events: Events) -> NDArray[np.float64]:
            """Those of logits or log probabilities where these are known, which no rounding ends."""
            return log_losses(events) if losses is None else losses.ravel()[events.place]

        means = EventMeans({"accuracy": hits, "nll": exact_losses, "brier": squared_errors}, examples)
        top = BinSums(uniform_edges(num_bins))
        of_classes = BinSums(uniform_edges(num_bins, 1 if y.shape == p.shape else p.shape[-1]))
        confidences: list[NDArray[Any]] = []
        errors: list[NDArray[np.bool_]] = []
        for events in event_blocks(y, p, mask):
            means.add(events)
            top.add(*top_pairs(events))
            of_classes.add(*class_pairs(events))
            confidences.append(events.confidence)
            errors.append(~hits(events))
        ranked = Ranked.of(np.concatenate(errors), -np.concatenate(confidences))
        return cls(means.statistics(), top.bins()[0], of_classes.bins(), ranked)


def _surprises(
    y: NDArray[np.int64], probabilities: NDArray[Any], mask: NDArray[np.bool_] | None, ranked: Ranked
) -> list[Surprise]:
    """The most confident errors."""
    place = ranked.order[np.flatnonzero(ranked.losses)[:NUM_SURPRISES]]
    if not len(place):
        return []
    if mask is not None:
        place = np.flatnonzero(mask)[place]
    rows = probabilities.reshape(-1, *probabilities.shape[y.ndim :])
    return [
        Surprise(int(index), float(truth), float(said), float(confidence))
        for events in event_blocks(y.ravel()[place], rows[place])
        for index, truth, said, confidence in zip(
            place[events.place], events.labels, events.predicted, events.confidence, strict=True
        )
    ]
