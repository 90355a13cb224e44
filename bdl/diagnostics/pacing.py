"""When a callback measures: what it may cost, and what the logs by themselves call for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from bdl.diagnostics.symptoms import unit
from bdl.diagnostics.thresholds import THRESHOLDS

_FIRST_SHARE = 0.25  # of the budget may be spent at once, the rest as the training goes on
_FAST_STEP = 1e-3  # seconds; no training step is much faster, so that many planned ones are a long training for sure
_FIRST_TIME = 3.0  # times what a measurement costs later: the first of a run traces functions for its shapes
_NEARLY_NULL = 0.95  # share of NLL_null above which a training NLL looks like a collapse
_SPACING = 0.05  # of the planned epochs, between two measurements that the logs call for
# Seconds that the last measurement of a kind took in this process; at first guesses, of what backends prepare once.
_GUESSES = {"probe": 0.1, "accounting": 0.3, "iterate": 0.005, "gradient": 1.0}
_COSTS = dict(_GUESSES)


class Budget:
    """A share of a training's time, and what was spent of it.

    Args:
        share: Part of the training's time that may be spent; 1 is no limit.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.began = time.perf_counter()
        self.own_seconds = 0.0
        self._entered: float | None = None
        self._known: set[str] = set()
        self._spent_on: dict[str, float] = {}
        # What another, larger model took says nothing of this one.
        self._costs = {kind: min(cost, _GUESSES[kind]) for kind, cost in _COSTS.items()}

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Within this context the clock of the own seconds runs."""
        self._entered = time.perf_counter()
        try:
            yield
        finally:
            self.own_seconds = self.spent()
            self._entered = None

    @contextmanager
    def measuring(self, kind: str) -> Iterator[None]:
        """Within this context a measurement of a kind is made, whose cost is remembered."""
        start = time.perf_counter()
        yield
        self._costs[kind] = _COSTS[kind] = seconds = time.perf_counter() - start
        self._spent_on[kind] = self._spent_on.get(kind, 0.0) + seconds
        self._known.add(kind)

    def spent(self) -> float:
        """Own seconds so far."""
        return self.own_seconds + (0.0 if self._entered is None else time.perf_counter() - self._entered)

    def elapsed(self) -> float:
        """Seconds of the training so far."""
        return time.perf_counter() - self.began

    def pays(self, kind: str, seconds: float, share: float = 1.0, part: float = 1.0) -> bool:
        """Whether a training of so many seconds pays for one more measurement of a kind out of a share of the budget.

        No more than a part of that share goes to measurements of this kind.

        Example:
        >>> Budget(0.04).pays("probe", seconds=3600.0), Budget(0.04).pays("probe", seconds=0.1)
        (True, False)
        """
        expected = self._costs[kind] * (1.0 if kind in self._known else _FIRST_TIME if kind == "probe" else 1.0)
        allowed = share * self.share * seconds
        is_within = self.spent() + expected <= allowed and self._spent_on.get(kind, 0.0) + expected <= part * allowed
        return self.share == 1.0 or is_within

    def pays_before(self, kind: str, steps: int) -> bool:
        """The same before the first step: only for so many steps that the training is long for sure."""
        return self.pays(kind, _FAST_STEP * steps)

    def expect(self, kind: str, seconds: float) -> None:
        """Says what the first measurement of a kind will take, where that is known better than by a guess."""
        if kind not in self._known:
            self._costs[kind] = seconds

    def pays_now(
        self, kind: str, epochs: Sequence[Mapping[str, Any]], planned: int, is_urgent: bool, part: float = 1.0
    ) -> bool:
        """The same at the end of an epoch, for the whole training as the epochs so far foretell it.

        Args:
            kind: Of the measurement.
            epochs: Recorded epochs, with the `seconds` at which each ended.
            planned: Epochs that were asked for.
            is_urgent: Whether all of the budget may be spent now.
            part: Of what may be spent now, how much measurements of this kind may take.
        """
        if self.share == 1.0:
            return True
        if len(epochs) < 2:
            return False  # the first epoch compiles: nothing is known yet
        shortest = shortest_epoch(epochs)
        done = len(epochs) / max(planned, len(epochs))
        share = 1.0 if is_urgent else _FIRST_SHARE + (1.0 - _FIRST_SHARE) * done
        return self.pays(kind, self.elapsed() + shortest * max(planned - len(epochs), 0), share, part)


def shortest_epoch(epochs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of the shortest of the last epochs, two at least: what further ones will take at the least.

    The first compiles, and one with validation may, too.
    """
    return float(np.min(np.diff([entry["seconds"] for entry in epochs[-20:]])))


def looks_wrong(epochs: Sequence[Mapping[str, Any]], nll_null: float, num_examples: int | None) -> bool:
    """Whether the logs alone look like a collapse, a network that forgets, or overfitting.

    Args:
        epochs: Logs of each epoch, in order, with what is known of `nll` (nats per example), `kl` (nats, total),
            `val_nll`, `accuracy` and `val_accuracy`.
        nll_null: NLL of a model that ignores the inputs.
        num_examples: N.

    Example:
    >>> looks_wrong([{"nll": 2.3, "kl": 1.0}], nll_null=2.3, num_examples=100)
    True
    >>> looks_wrong([{"nll": 0.3, "kl": 90.0, "accuracy": 0.9}], nll_null=2.3, num_examples=100)
    False
    """
    nats, last = unit(nll_null), epochs[-1]
    nll, kl = last.get("nll"), last.get("kl")
    if nll is not None and kl is not None and num_examples and nll > nll_null - (1.0 - _NEARLY_NULL) * nats:
        return kl / num_examples < THRESHOLDS.collapsed_rate * nats

    def worse_than_best(key: str, sign: float) -> float:
        values = [sign * entry[key] for entry in epochs if entry.get(key) is not None]
        return values[-1] - min(values) if values and last.get(key) is not None else 0.0

    fell = max(worse_than_best("val_accuracy", -1.0), worse_than_best("accuracy", -1.0)) > THRESHOLDS.accuracy_drop
    return fell or worse_than_best("val_nll", 1.0) > THRESHOLDS.overfit_rise * nats


def is_due(epoch: int, last: int, planned: int) -> bool:
    """Whether enough epochs passed since the last measurement for the logs to call for another."""
    return epoch - last > planned * _SPACING
