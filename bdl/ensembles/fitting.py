"""`fit`: members are trained where the caller says, and those that are there already are kept."""

from __future__ import annotations

import contextlib
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import keras

from bdl.arguments import check_positive_integer
from bdl.diagnostics import Finding, HealthWarning
from bdl.diagnostics.finding import UNREMARKABLE
from bdl.ensembles.member import Plan, changed_since, train_member
from bdl.ensembles.settings import described, weights_of
from bdl.keras_internals import fresh_session


class Submits(Protocol):
    """What an executor offers."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Starts a call, and returns a future: an object with `result()` and `cancel()`."""


def fit(
    make: Callable[[int], Any],
    n: int,
    folder: str | Path,
    x: Any = None,
    y: Any = None,
    *,
    executor: Submits | None = None,
    seed: int = 0,
    **arguments: Any,
) -> list[keras.Model]:
    """Trains the members of an ensemble, each with its own seed, and keeps them in a folder.

    Member i is `make(seed + i)`, fitted. Its initial weights, its noise and the order of its batches follow from that
    seed alone: a loop, processes and Ray train equal members, to the last bit on CPUs of one kind. The folder holds for
    each member the model `member-i.keras`, the settings `member-i.json` and the record `member-i.jsonl` of
    `bdl.diagnostics.TrainingHealth`.

    A call that was interrupted goes on where it was: members that are whole are made again, compared with how they were
    made before, and not trained again. To train a larger ensemble later, call it with a larger `n`. On a machine of
    another kind initial weights may be rounded differently; `keras.saving.load_model` loads members there.

    Args:
        make: Function from a seed, an integer, to a compiled Keras model; or to a pair of it and a dict with arguments
            of its `fit`, such as callbacks, or data that the worker loads. It runs in the process that trains.
        n: Positive number of members.
        folder: Where the files are written; it is made if it is not there. Workers on other machines must see it.
        x: As of the model's `fit`. With an executor it is sent to each worker; large data are better loaded by
            `make`.
        y: As of the model's `fit`.
        executor: Object with `submit(function, *args)` that returns a future, such as a `ProcessPoolExecutor` that
            starts its processes by `"spawn"`, one of loky, or `RayExecutor()`. None trains one member after another
            in this process, whose random generators are afterwards as they were.
        seed: Integer of at least 0, the seed of the first member.
        **arguments: Further ones of the model's `fit`, such as `epochs`. `verbose` is 0 unless it is given.

    Returns:
        The members in order, as they are loaded from their files.

    Raises:
        ValueError: if an argument is out of range or cannot be sent to a worker; if the folder holds members that were
            trained with other settings; or if two members are equal, because `make` does not use its seed.
        RuntimeError: if members failed, once all others are trained. It names the members and their errors.

    Warns:
        HealthWarning: if `TrainingHealth` found that a member is not healthy.

    Example:
    >>> import tempfile
    >>> def make(seed):
    ...     network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    ...     network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ...     return network
    >>> x, y, folder = np.ones((8, 4)), np.arange(8) % 3, tempfile.mkdtemp()
    >>> members = fit(make, 2, folder, x, y, epochs=1)
    >>> prediction = bdl.predict_distribution(members, x, bdl.likelihoods.Categorical())
    >>> prediction.probabilities.shape
    (8, 3)
    """
    n = check_positive_integer(n, "n")
    _check_make(make, executor)
    if not hasattr(seed, "__index__") or isinstance(seed, bool) or not 0 <= int(seed) <= 2**32 - n:
        raise ValueError(f"`seed` must be an integer from 0 to {2**32 - n}, so that each member has one, not {seed!r}.")
    if "callbacks" in arguments:
        raise ValueError(
            "`callbacks` must come from `make`, which returns (model, {'callbacks': [...]}): each member needs its own."
        )
    given = {name: value for name, value in (("x", x), ("y", y)) if value is not None}
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    plan = Plan.of(make, path, int(seed), {**given, **arguments}, executor is None)
    trained = [number for number in range(n) if plan.model_file(number).exists()]
    changes = _run(changed_since, plan, trained, executor or _Loop())
    for number, change in changes.items():
        if change is not None:
            raise ValueError(
                f"`folder` must not hold members of other settings, but {plan.model_file(number)} was trained with "
                f"other ones: {change}. Name another folder, or move this one's files away."
            )
    findings = _run(train_member, plan, [i for i in range(n) if i not in trained], executor or _Loop())
    _tell(findings)
    with fresh_session(plan.seed):  # to build layers takes names and random numbers
        members = [keras.saving.load_model(plan.model_file(number)) for number in range(n)]
    _check_distinct(members)
    return members


class _Loop(Executor):
    """One call after another, here."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls the function at once."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _run(work: Callable[[Plan, int], Any], plan: Plan, numbers: Sequence[int], executor: Submits) -> dict[int, Any]:
    """Does some work for each of several members, and waits for all.

    Raises:
        RuntimeError: if it failed for some.
    """
    results: dict[int, Any] = {}
    errors: dict[int, Exception] = {}
    futures: dict[int, Any] = {}
    try:
        for number in numbers:
            with _catching(errors, number):
                futures[number] = executor.submit(work, plan, number)
        for number, future in futures.items():
            with _catching(errors, number):
                results[number] = future.result()
    finally:
        for future in futures.values():
            future.cancel()  # what has not begun, where the caller is interrupted
    if errors:
        raise RuntimeError(_told(errors, plan, len(numbers))) from next(iter(errors.values()))
    return results


@contextlib.contextmanager
def _catching(errors: dict[int, Exception], number: int) -> Iterator[None]:
    """A context whose error is kept as that of a member, so that the others go on."""
    try:
        yield
    except Exception as error:
        errors[number] = error


def _told(errors: dict[int, Exception], plan: Plan, total: int) -> str:
    """Which members failed, why, and what to do."""
    lines = [f"member {number}: {type(error).__name__}: {error}" for number, error in errors.items()]
    advice = "Call `fit` again with the same arguments: members that are whole are not trained again."
    if any(isinstance(error, BrokenExecutor) for error in errors.values()):
        advice += (
            " A worker ended: memory may have run out, `make` cannot be imported in a new process, or the script does "
            'not begin its work under `if __name__ == "__main__":`. The executor is spent; make a new one.'
        )
    return "\n".join([f"{len(errors)} of {total} members in {plan.folder} failed:", *lines, advice])


def _check_make(make: Any, executor: Any) -> None:
    """Refuses what is no function, or what the executor of the standard library cannot send to its processes."""
    if not callable(make) or isinstance(make, keras.Layer):
        raise ValueError(f"`make` must be a function from a seed to a compiled Keras model, not {make!r}.")
    if not isinstance(executor, ProcessPoolExecutor):
        return
    main = sys.modules["__main__"]
    is_typed_in = getattr(make, "__module__", None) == "__main__" and not hasattr(main, "__file__")
    try:
        pickle.dumps(make)
    except Exception as error:  # AttributeError, PicklingError or TypeError, by what it is
        reason = str(error)
    else:
        reason = "it was typed into an interactive session" if is_typed_in else ""
    if reason:
        raise ValueError(
            "`make` must be a function at the top level of a module or script, which a ProcessPoolExecutor can find in "
            f"another process, and no lambda or inner function, not {make!r} ({reason}). Executors of loky and Ray "
            "take any function."
        )


def _tell(findings: dict[int, Finding | None]) -> None:
    """Warns of members that are not healthy."""
    told = [
        f"member {number}: {finding.verdict} ({finding.confidence}). {finding.evidence[0]}"
        for number, finding in findings.items()
        if finding is not None and finding.verdict not in UNREMARKABLE
    ]
    if told:
        warnings.warn("\n".join(["Not all members are healthy:", *told]), HealthWarning, stacklevel=3)


def _check_distinct(members: Sequence[keras.Model]) -> None:
    """Refuses members with the same weights."""
    first: dict[str, int] = {}
    for number, member in enumerate(members):
        before = first.setdefault(described(weights_of(member)), number)
        if before != number:
            raise ValueError(
                f"`make` must use the seed that it is given: members {before} and {number} have the same weights. Does "
                "it set a seed of its own? Change it, and name another folder."
            )
