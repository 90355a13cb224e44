"""What the remedies of the zoo's verdicts are worth: the remedied network against its twin, on several splits.

One test set of 54 wines cannot tell a point of accuracy from a chance: so each remedy is tried on several splits into
training and test data, and its gap to the twin is the mean over them. Runs that differ only in their loss end in the
same remedied network, which is trained once for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from zoo_cases import OF_THEIR_DATA, Case, build, data_of

WHICH = ("first", "all")
# Kinds whose remedied network depends on the kind: on its data or on its architecture.
OF_THEIR_OWN = (*OF_THEIR_DATA, "pruned", "code", "code_collapse")
# So far apart that splits of one run are those of no other, and as even or odd as its seed, which is its half.
_BETWEEN_SPLITS = 1000


@dataclass(frozen=True)
class Trial:
    """One remedy for one kind of network.

    Args:
        remedy: Its name.
        verdict: What it is for.
        quantities: Of a run with that verdict, from which the remedy follows.
        case: That run.
        splits: Splits into training and test data.
    """

    remedy: str
    verdict: str
    quantities: dict[str, Any]
    case: Case
    splits: int

    @property
    def key(self) -> str:
        """Its identity in the results, shared by all runs that end in the same network."""
        return trial_key(self.remedy, self.case)


def trial_key(remedy: str, case: Case) -> str:
    """Identity of a remedied network: of its recipe, which several remedies share, and of what it is applied to."""
    group = case.kind if case.kind in OF_THEIR_OWN else "mlp"
    return f"{_recipes()[remedy]}/{group}/{case.data}/{case.width}/{case.activation}/{case.seed}"


@lru_cache(maxsize=1)
def _recipes() -> dict[str, str]:
    """For each remedy the first one, by name, that builds the same network."""
    from bdl.diagnostics import remedies

    first: dict[int, str] = {}
    known = [remedy for remedy in vars(remedies).values() if isinstance(remedy, remedies.Remedy)]
    return {remedy.name: first.setdefault(id(remedy.build), remedy.name) for remedy in known}


def applicable(verdict: str, quantities: Any) -> list[Any]:
    """Remedies of a verdict that need no change in the user's code."""
    from bdl.diagnostics.remedies import remedies_of

    return [remedy for remedy in remedies_of(verdict, quantities) if remedy.build is not None]


def trials(results: Iterable[dict[str, Any]], which: str, splits: int) -> list[Trial]:
    """The trials that runs of a right verdict call for, each once; by the rules of today."""
    from bdl.diagnostics import Quantities

    found: dict[str, Trial] = {}
    for result in results:
        # A training that a NaN ended has no fault that another network could mend.
        if result["verdict"] not in result["right"] or result["verdict"] == "diverged":
            continue
        case = case_of(result)
        remedies = applicable(result["verdict"], Quantities.from_dict(result["quantities"]))
        for remedy in remedies[:1] if which == "first" else remedies:
            trial = Trial(remedy.name, result["verdict"], result["quantities"], case, splits)
            if not case.kind.startswith("foreign"):  # whose layers bdl cannot replace
                found.setdefault(trial.key, trial)
    return list(found.values())


def case_of(result: dict[str, Any]) -> Case:
    """The case of a recorded run."""
    return Case(*(result[name] for name in ("kind", "right", "data", "width", "activation", "seed")))


def attempt(trial: Trial, folder: Path | None) -> dict[str, Any]:
    """Test accuracy of remedied network and twin on every split; None for a remedy that failed."""
    pairs = [_on_split(trial, number, folder) for number in range(trial.splits)]
    return {
        "key": trial.key,
        "remedy": trial.remedy,
        "verdict": trial.verdict,
        "seed": trial.case.seed,
        "accuracy": [accuracy for accuracy, _ in pairs],
        "twin_accuracy": [accuracy for _, accuracy in pairs],
    }


def _on_split(trial: Trial, number: int, folder: Path | None) -> tuple[float | None, float]:
    import keras
    from zoo import twin_of

    from bdl.diagnostics import Quantities
    from bdl.diagnostics.measure import measure, take_probe

    case = replace(trial.case, seed=trial.case.seed + number * _BETWEEN_SPLITS)
    x, y, x_test, y_test = data = data_of(case, folder)
    keras.backend.clear_session()
    model, likelihood = build(case, x.shape[1], len(x))
    twin = twin_of(case, data, likelihood)
    (remedy,) = (r for r in applicable(trial.verdict, Quantities.from_dict(trial.quantities)) if r.name == trial.remedy)
    keras.utils.set_random_seed(case.seed)
    # As long as the patient was trained, or should have been.
    epochs = max(case.epochs, replace(case, kind="rank1").epochs)
    try:
        better = remedy.apply(model, likelihood, data=(x, y))
        better.fit(x, y, batch_size=case.batch_size, epochs=epochs, verbose=0)
    except ValueError as error:
        print(f"{trial.key}: cannot be applied: {error}", flush=True)
        return None, twin.accuracy
    probe = take_probe((x_test, y_test), 1000, better.likelihood, "data", better)
    fit = measure(better, better.likelihood, len(x), None, probe, num_samples=32).validation
    return (None if fit is None else fit.accuracy), twin.accuracy


def read_trials(path: Path) -> dict[str, dict[str, Any]]:
    """Results of `attempt` by their keys; none where there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["key"]: result for result in map(json.loads, lines) if "error" not in result}
