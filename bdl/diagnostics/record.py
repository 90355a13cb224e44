"""The record of a run: one JSON object a line, appended as training goes, so that a killed run has said all it knew.

{"event": "start", "format": 1, "run": ..., "model": ..., "num_examples": ..., "planned_epochs": ..., "steps": ...}
{"event": "epoch", "epoch": 1, "logs": {...}, "seconds": ...}
{"event": "probe", "epoch": 1, "quantities": {...}, "verdict": ..., "confidence": ..., "evidence": [...]}
{"event": "end", "epoch": ..., "seconds": ..., "own_seconds": ...}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.schema import checked

FORMAT = 1


@dataclass(frozen=True)
class _Start:
    format: int = 0
    run: str | None = None
    num_examples: int | None = None
    planned_epochs: int | None = None
    steps: int | None = None
    has_data: bool | None = None
    sites: dict[str, str] | None = None
    seeds: str | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    resumed_after: int | None = None


@dataclass(frozen=True)
class _Epoch:
    epoch: int
    run: str | None = None
    logs: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Probe:
    epoch: int
    verdict: str
    run: str | None = None
    confidence: str = ""
    quantities: Quantities = field(default_factory=Quantities)


@dataclass(frozen=True)
class _End:
    run: str | None = None
    epoch: int | None = None


_EVENTS: dict[str, type] = {"start": _Start, "epoch": _Epoch, "probe": _Probe, "end": _End}
"""What is read of each event."""


@dataclass
class RunRecord:
    """One run as it was recorded.

    Args:
        run: Identity of the run.
        start: What its first line holds: `num_examples` and `planned_epochs` where they are known, and more.
        epochs: Logs of each epoch, in order, each with its number under `"epoch"`.
        probes: What was measured, in order.
        verdicts: `(epoch, verdict, confidence)` of each probe.
        is_complete: Whether training ended by itself.
        is_cut: Whether it ends in the middle of a line.
    """

    run: str
    start: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    probes: list[Quantities] = field(default_factory=list)
    verdicts: list[tuple[int, str, str]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    is_cut: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether training ended by itself."""
        return bool(self.end)

    def cut_after(self, epoch: int) -> None:
        """Forgets what came after an epoch; after epoch 0 that is everything."""
        self.epochs = [each for each in self.epochs if each["epoch"] <= epoch]
        kept = [epoch > 0 and each <= epoch for each, _, _ in self.verdicts]
        self.probes = [each for each, is_kept in zip(self.probes, kept, strict=True) if is_kept]
        self.verdicts = [each for each, is_kept in zip(self.verdicts, kept, strict=True) if is_kept]

    def first(self, verdict: str) -> int | None:
        """The epoch at which a verdict was first given."""
        return next((epoch for epoch, name, _ in self.verdicts if name == verdict), None)


def append(path: Path, event: Mapping[str, Any]) -> None:
    """Adds a line, on the disk before it returns."""
    line = json.dumps(plain(event), allow_nan=False) + "\n"
    if path.exists() and path.stat().st_size and not _ends_with_newline(path):
        line = "\n" + line  # what a killed run left unfinished stays a line of its own
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_record(path: str | Path) -> list[RunRecord]:
    """Reads every run of a record.

    Args:
        path: A file that `TrainingHealth(record=...)` wrote; it may hold several runs, and be cut in the middle.

    Returns:
        The runs, in order.

    Raises:
        ValueError: if the file does not exist, is empty, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`record` {str(path)!r} is no file. TrainingHealth(record=...) writes one.")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # a name may hold other ends of lines
    runs: list[RunRecord] = []
    cut_line: int | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, braces in braces
            if runs:
                runs[-1].is_cut = True
            elif not line.startswith("{"):  # a run that was killed while it wrote its first line leaves a part of it
                raise ValueError(_no_json(path, number)) from None
            cut_line = cut_line or number
            continue
        kind = values.get("event") if isinstance(values, dict) else None
        if not isinstance(kind, str) or kind not in _EVENTS or not (runs or kind == "start"):
            raise ValueError(f"`record` {path.name!r}: line {number} is no event of a run; this is no training record.")
        try:
            event = checked(_EVENTS[kind], values)
        except ValueError as error:
            raise ValueError(f"`record` {path.name!r}, line {number}: {error} The file is damaged there.") from None
        if isinstance(event, _Start) and event.format > FORMAT:
            raise ValueError(f"`record` {path.name!r} has format {event.format}, newer than {FORMAT}. Upgrade bdl.")
        _take(runs, event, values)
    if not runs and cut_line is not None:
        raise ValueError(_no_json(path, cut_line))
    if not runs:
        raise ValueError(f"`record` {path.name!r} is empty: the run was killed before its first epoch, or never began.")
    return runs


def _no_json(path: Path, number: int) -> str:
    return f"`record` {path.name!r}: line {number} is not JSON; this is no training record."


def _take(runs: list[RunRecord], event: Any, values: dict[str, Any]) -> None:
    """Adds an event to the run that it is of."""
    if isinstance(event, _Start):
        known = {name: value for name, value in asdict(event).items() if name in values}
        start = {**values, **known}
        resumed = next((run for run in reversed(runs) if event.run is not None and run.run == event.run), None)
        if resumed is None:
            runs.append(RunRecord(str(event.run), start))
        else:  # it goes on: one training is one run
            resumed.start, resumed.end, resumed.is_cut = {**resumed.start, **start}, {}, False
            if event.resumed_after is not None:
                resumed.cut_after(event.resumed_after)
        return
    # Two runs may write to one file at a time: each line says whose it is.
    run = next((run for run in reversed(runs) if run.run == event.run), runs[-1])
    match event:
        case _Epoch():
            run.epochs.append({**event.logs, "epoch": event.epoch})
        case _Probe():
            run.probes.append(event.quantities)
            run.verdicts.append((event.epoch, event.verdict, event.confidence))
        case _End():
            run.end = values


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: None stands for them."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
