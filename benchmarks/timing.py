"""Interleaved timing of contestants that live in warm worker processes.

On a machine that others use too, a number measured now cannot be compared with one measured ten minutes ago. So every
contestant is started and warmed up once, and then they take turns: in each round everyone runs one short burst while
all the others sleep. A ratio is formed inside a round, and its median and spread are taken over the rounds. A burst
that other processes of the machine disturbed is repeated.

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
BUSY_SHARE = 0.1  # of the cores' time: if others take more of it, they disturb
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")  # a second, in /proc/stat
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


@dataclass(frozen=True)
class Burst:
    """What a worker tells of a burst: wall-clock seconds per step, and the processor time of the whole burst."""

    step_seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class CoreClock:
    """Seconds that all cores together have spent busy, and altogether, up to a moment."""

    busy: float
    total: float

    @classmethod
    def now(cls) -> CoreClock:
        """Read the system's counters; where there are none, the machine looks idle."""
        try:
            with open("/proc/stat") as file:
                ticks = [int(field) for field in file.readline().split()[1:9]]
        except OSError:
            return cls(0.0, time.monotonic())
        idle = ticks[3] + ticks[4]  # the second of them waits for a disk
        return cls((sum(ticks) - idle) / CLOCK_TICKS, sum(ticks) / CLOCK_TICKS)

    def share_of_others(self, cpu_seconds: float = 0.0) -> float:
        """Share of the cores' time since this moment that was used, but for our own `cpu_seconds`."""
        now = CoreClock.now()
        return (now.busy - self.busy - cpu_seconds) / max(now.total - self.total, 1 / CLOCK_TICKS)


@dataclass
class Interleaving:
    """Contestants that take turns.

    Attributes:
        bursts: For each contestant a function that runs one burst.
        drop: Called with a contestant whose burst failed; it takes no further part.
        patience: Seconds that one turn may be prolonged to wait for a quiet machine, and to repeat a disturbed burst.
        num_turns: How many turns have been taken ...
        num_disturbed: ... and how many ended with a burst that others disturbed all the same.
    """

    bursts: Mapping[str, Callable[[], Burst]]
    drop: Callable[[str, WorkerError], None]
    patience: float
    num_turns: int = 0
    num_disturbed: int = 0

    def rounds(self, number: int) -> Iterator[Round]:
        """Play `number` rounds, every second one in reversed order, so that nobody always follows the same one."""
        running = dict(self.bursts)
        for index in range(number):
            measured: Round = {}
            for name in list(running)[:: -1 if index % 2 else 1]:
                try:
                    measured[name] = self._turn(running[name])
                except WorkerError as error:
                    del running[name]
                    self.drop(name, error)
            yield measured

    def _turn(self, burst: Callable[[], Burst]) -> float:
        deadline = time.monotonic() + self.patience
        while True:
            _wait_for_quiet(deadline)
            start = CoreClock.now()
            result = burst()
            disturbed = start.share_of_others(result.cpu_seconds) > BUSY_SHARE
            if not disturbed or time.monotonic() > deadline:
                break
        self.num_turns += 1
        self.num_disturbed += disturbed
        return result.step_seconds


def _wait_for_quiet(deadline: float) -> None:
    """Pause, and longer while other processes are busy; our own workers all sleep now."""
    while True:
        start = CoreClock.now()
        time.sleep(PAUSE_SECONDS)
        if start.share_of_others() <= BUSY_SHARE or time.monotonic() > deadline:
            return


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
