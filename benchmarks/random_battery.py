"""Is the noise of `bdl.random` good enough to train with? A battery of tests for its hash of counter and key.

Two parts, of which `--quick` runs only the first:

1. `random_statistics.py`: checks in NumPy and SciPy of what a Bayesian network relies on, above all that layers,
   steps and weights with neighbouring keys draw unrelated noise (half a minute).
2. dieharder (Debian and Ubuntu: `apt-get install dieharder`), fed through a pipe with 32-bit words in five orders:
   one long stream of one key; short streams of consecutive steps, layers or weights, one after the other; and the
   streams of a whole network, word by word in turn (twelve minutes on one core). `--stream control` feeds it with
   another generator (SFC64), to see whether an alarm is the test's own fault.

An alarm of part 1 is a p-value below `FAMILY_ERROR` divided by the number of checks. In part 2 no single p-value is
an alarm, for dieharder's own come too near to 1 too often: of 345 with the control generator, 12 were within 0.005 of
0 or 1, and 3.5 should have been. Such a test is repeated with four times the samples on streams of another seed, and
alarms if its p-value is then within 1e-5; a real fault that was near 0.005 goes far below. A perfect generator sets
off any alarm at all in less than one of 200 full runs. Exit status 1 on alarm.

Left out of dieharder's tests: those that its author marks as not to be used, and the Marsaglia-Tsang GCD test, whose
default sample is so large that it suspects good generators too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from random_statistics import Check, all_checks
from random_streams import STREAMS, Words
from rich.console import Console
from rich.progress import track
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results" / "random_battery.json"
FAMILY_ERROR = 1e-3  # probability of an alarm of part 1 under perfect randomness
WEAK = 5e-3  # distance of a p-value from 0 or 1: dieharder's own limit
FAILED_AGAIN = 1e-5  # about ten results are repeated
MORE_SAMPLES = 4
SEED_STEP = 10_000  # between the seeds of two tests, more than the layers that a test uses up
OUTPUT_FIELDS = ("test_name", "ntuple", "psamples", "pvalues")

DIEHARDER_TESTS = (
    *(f"-d {number}" for number in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 100, 101, 102)),
    *(f"-d 200 -n {bits}" for bits in (1, 2, 3, 4)),
    *(f"-d 201 -n {dimension}" for dimension in (2, 3)),
    *(f"-d 202 -n {length}" for length in (3, 5)),
    *(f"-d 203 -n {lag}" for lag in (0, 1, 3)),
    *(f"-d {number}" for number in (204, 205, 206, 207, 208, 209)),
)
"""Options that select a test; `dieharder -l` names them."""

console = Console()


@dataclass(frozen=True)
class DieharderResult:
    """One p-value of dieharder.

    Attributes:
        stream: Order of the words, a key of `STREAMS`.
        test: dieharder's name of the test.
        ntuple: Its parameter.
        samples: Number of p-values that were combined into this one.
        p_value: Near 0 and near 1 are both suspect.
        again: P-value of other streams with more samples, where this one was weak.
    """

    stream: str
    test: str
    ntuple: int
    samples: int
    p_value: float
    again: float | None = None

    @property
    def passed(self) -> bool:
        """Whether there is no alarm."""
        return self.again is None or distance(self.again) >= FAILED_AGAIN


def distance(p_value: float) -> float:
    """How near a p-value is to 0 or 1."""
    return min(p_value, 1 - p_value)


def judge(stream: str, number: int, seed: int) -> list[DieharderResult]:
    """Runs one of `DIEHARDER_TESTS`, and once more if it is weak."""
    test = DIEHARDER_TESTS[number].split()
    results = run_dieharder(stream, test, seed + SEED_STEP * number)
    if all(distance(result.p_value) >= WEAK for result in results):
        return results
    other_seed = seed + SEED_STEP * (number + len(DIEHARDER_TESTS))
    repeated = run_dieharder(stream, [*test, "-m", str(MORE_SAMPLES)], other_seed)
    return [
        DieharderResult(**{**asdict(first), "again": second.p_value}) if distance(first.p_value) < WEAK else first
        for first, second in zip(results, repeated, strict=True)
    ]


def run_dieharder(stream: str, test: list[str], seed: int) -> list[DieharderResult]:
    """P-values of one run, which reads as many words as it likes."""
    command = ["dieharder", "-g", "200", *test]
    for field in OUTPUT_FIELDS:
        command += ["-D", field]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with contextlib.suppress(BrokenPipeError):  # how dieharder says that it has enough
        feed(process, STREAMS[stream](seed))
    output = process.communicate()[0].decode()
    if process.returncode != 0 or not output:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode} after 2^31 words at most")
    fields = [[field.strip() for field in line.split("|")] for line in output.splitlines()]
    return [DieharderResult(stream, name, int(n), int(samples), float(p)) for name, n, samples, p, *_ in fields]


def feed(process: subprocess.Popen[bytes], blocks: Iterable[Words]) -> None:
    """Writes blocks until the reader goes away."""
    for block in blocks:
        process.stdin.write(memoryview(block).cast("B"))


def check_table(checks: list[Check], threshold: float) -> Table:
    """All checks of part 1."""
    table = Table(title=f"bdl.random: {len(checks)} checks, alarm at p < {threshold:.1e}")
    for heading in ("test", "streams", "statistic"):
        table.add_column(heading)
    table.add_column("value", justify="right")
    table.add_column("p", justify="right")
    for check in checks:
        style = "bold red" if check.alarms(threshold) else None
        table.add_row(
            check.test, check.streams, check.statistic, f"{check.value:.6g}", f"{check.p_value:.2g}", style=style
        )
    return table


def dieharder_table(results: list[DieharderResult]) -> Table:
    """The most extreme p-value of each test and stream, as its distance from 0 or 1, and of how many it is one."""
    streams = list(dict.fromkeys(result.stream for result in results))
    table = Table(title="dieharder: smallest distance of a p-value from 0 or 1; (repeated with more samples)")
    table.add_column("test")
    table.add_column("p-values", justify="right")
    for stream in streams:
        table.add_column(stream, justify="right")
    for test in dict.fromkeys(result.test for result in results):
        cells = []
        for stream in streams:
            group = [result for result in results if (result.test, result.stream) == (test, stream)]
            cells.append(cell(min(group, key=lambda result: (result.passed, distance(result.p_value)))))
        table.add_row(test, str(len(group)), *cells)
    return table


def cell(result: DieharderResult) -> str:
    """A p-value of the table."""
    text = f"{distance(result.p_value):.2g}"
    if result.again is not None:
        text += f" ({distance(result.again):.2g})"
    return text if result.passed else f"[bold red]{text}"


def content(checks: list[Check], threshold: float, results: list[DieharderResult], seed: int) -> dict[str, object]:
    """What the file says: every p-value, and where the alarms begin."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in ("keras", "jax", "numpy", "scipy")},
        "seed": seed,
        "check_threshold": threshold,
        "dieharder_thresholds": {"weak": WEAK, "failed_again": FAILED_AGAIN},
        "checks": [{**asdict(check), "passed": not check.alarms(threshold)} for check in checks],
        "dieharder": [{**asdict(result), "passed": result.passed} for result in results],
    }


def write_json(path: Path, content: dict[str, object]) -> None:
    """Writes all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Only the checks in NumPy and SciPy; writes no file.")] = False,
    stream: Annotated[list[str] | None, typer.Option(help="Only these orders of the words; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="First seed of all streams.")] = 0,
    output: Annotated[Path, typer.Option(help="Where the results go, as JSON.")] = RESULTS,
) -> None:
    """Test the random words of bdl.random; exit status 1 if they are not random."""
    streams = stream or [name for name in STREAMS if name != "control"]
    if unknown := set(streams) - set(STREAMS):
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: choose from {', '.join(STREAMS)}", param_hint="--stream"
        )
    if not quick and shutil.which("dieharder") is None:
        raise typer.BadParameter("dieharder is not installed: apt-get install dieharder, or use --quick")
    with console.status("checks in NumPy and SciPy"):
        checks = list(all_checks(seed))
    threshold = FAMILY_ERROR / len(checks)
    console.print(check_table(checks, threshold))
    results: list[DieharderResult] = []
    if not quick:
        for name in streams:
            for number in track(range(len(DIEHARDER_TESTS)), f"dieharder, {name}", console=console):
                results += judge(name, number, seed)
        console.print(dieharder_table(results))
        write_json(output, content(checks, threshold, results, seed))
    alarms = [check for check in checks if check.alarms(threshold)] + [r for r in results if not r.passed]
    repeated = sum(result.again is not None for result in results)
    console.print(
        f"{len(checks)} checks, {len(results)} p-values of dieharder ({repeated} repeated): {len(alarms)} alarms"
    )
    for alarm in alarms:
        console.print(alarm)
    raise typer.Exit(bool(alarms))


if __name__ == "__main__":
    typer.run(main)
