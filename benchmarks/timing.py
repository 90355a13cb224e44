"""Interleaved timing of contestants that live in warm worker processes.

On a machine that others use too, a number measured now cannot be compared with one measured ten minutes ago. So every
contestant is started and warmed up once, and then they take turns: in each round everyone runs one short burst while
all the others sleep. A ratio is formed inside a round, and its median and spread are taken over the rounds.

Parent and worker talk in JSON, one line a message, over the worker's standard input and output. Only the standard
library is imported here, for a worker may run in another environment than its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

PAUSE_SECONDS = 0.1  # between two bursts: thread pools spin for some milliseconds before they sleep
BUSY_SHARE = 0.2  # of the cores' time taken by others in a pause, above which a burst had better wait
LOG_TAIL_LINES = 3  # of a dead worker's standard error, for the report
SUMMARY_LINES = 2  # of an error's message, for the report
ANSI_STYLE = re.compile(r"\x1b\[[0-9;]*m")

Round = dict[str, float]
"""Seconds per step of each contestant that took part in one round."""


class WorkerError(RuntimeError):
    """A worker could not do what it was asked.

    Attributes:
        missing_module: Name of the module that could not be imported, if that was the reason.
    """

    def __init__(self, message: str, missing_module: str | None = None):
        super().__init__(message)
        self.missing_module = missing_module


class Worker:
    """A process that answers one request at a time.

    Args:
        command: The program and its arguments; the program calls `serve`.
        environment: Variables set on top of this process's own.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]):
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **environment},
        )

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ask(self, request: str, timeout: float, **arguments: object) -> dict:
        """Send a request and wait for its answer.

        Raises:
            WorkerError: if the worker reports an error, dies, or is silent for `timeout` seconds (it is then killed).
        """
        try:
            self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(f"the worker is gone: {self._last_words()}") from None
        readable, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not readable:
            self._process.kill()
            raise WorkerError(f"no answer to {request!r} within {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the worker died: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], answer.get("missing_module"))
        return answer

    def close(self) -> None:
        """End the process: it leaves its loop when its input ends."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        return " | ".join(self._log.read().strip().splitlines()[-LOG_TAIL_LINES:]) or "it left no message"


def serve(handlers: Mapping[str, Callable[..., dict]]) -> None:
    """Answer requests from standard input until it ends; the worker's side of `Worker`.

    Args:
        handlers: For each request a function of its arguments that returns the answer.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not get between the answers
    for line in sys.stdin:
        arguments = json.loads(line)
        handler = handlers[arguments.pop("request")]
        try:
            answer = handler(**arguments)
        except Exception as error:  # the parent reports it and goes on with the other contestants
            traceback.print_exc()
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            answer = {"error": f"{type(error).__name__}: {_summary(error)}", "missing_module": missing}
        answers.write(json.dumps(answer) + "\n")


def _summary(error: Exception) -> str:
    """The first lines of a message: Keras says in the first one where it happened, and only then what."""
    lines = [line.strip() for line in ANSI_STYLE.sub("", str(error)).splitlines() if line.strip()]
    return " ".join(lines[:SUMMARY_LINES]) or "no message"


def busy_share(seconds: float) -> float:
    """Wait, and return the share of the cores' time that was used meanwhile; 0 where the system does not tell."""
    before = _core_times()
    time.sleep(seconds)
    after = _core_times()
    return (after[0] - before[0]) / max(after[1] - before[1], 1)


def _core_times() -> tuple[int, int]:
    """Busy and total time of all cores since the start, in ticks of the system's clock."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except OSError:
        return 0, 0
    idle = ticks[3] + ticks[4]  # the second of them waits for a disk
    return sum(ticks) - idle, sum(ticks)


def wait_for_quiet(patience: float) -> bool:
    """Pause until the other processes of the machine leave it alone, at most `patience` seconds; `False` if in vain."""
    deadline = time.monotonic() + patience
    while busy_share(PAUSE_SECONDS) > BUSY_SHARE:
        if time.monotonic() > deadline:
            return False
    return True


@dataclass
class Interleaving:
    """Contestants that take turns.

    Attributes:
        bursts: For each contestant a function that runs one burst and returns its seconds per step.
        drop: Called with a contestant whose burst failed; it takes no further part.
        patience: Seconds to wait, before a burst, for a machine that is busy with something else.
        num_bursts: How many bursts were started ...
        num_disturbed: ... and how many of them on a machine that was still busy.
    """

    bursts: Mapping[str, Callable[[], float]]
    drop: Callable[[str, WorkerError], None]
    patience: float
    num_bursts: int = 0
    num_disturbed: int = 0

    def rounds(self, number: int) -> Iterator[Round]:
        """Play `number` rounds, every second one in reversed order, so that nobody always follows the same one."""
        running = dict(self.bursts)
        for index in range(number):
            measured: Round = {}
            for name in list(running)[:: -1 if index % 2 else 1]:
                self.num_bursts += 1
                self.num_disturbed += not wait_for_quiet(self.patience)
                try:
                    measured[name] = running[name]()
                except WorkerError as error:
                    del running[name]
                    self.drop(name, error)
            yield measured


@dataclass(frozen=True)
class Spread:
    """Median and the range from the 10 % to the 90 % quantile of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise `values`, at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), deciles[0], deciles[-1])

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def time_of(name: str, rounds: Sequence[Round]) -> Spread | None:
    """Milliseconds per step of a contestant, or `None` if it never ran."""
    values = [1e3 * measured[name] for measured in rounds if name in measured]
    return Spread.of(values) if values else None


def ratio_of(name: str, reference: str, rounds: Sequence[Round]) -> Spread | None:
    """Time of a contestant over that of a reference, formed in each round, or `None` if they never met."""
    values = [measured[name] / measured[reference] for measured in rounds if name in measured and reference in measured]
    return Spread.of(values) if values else None
