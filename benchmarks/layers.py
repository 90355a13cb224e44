"""How long does a training step with variational layers take, beside the deterministic network's and other libraries'?

Run `python benchmarks/layers.py --help`; README.md in this folder explains the method and the peers' environment.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from layer_contestants import (
    CONTESTANTS,
    DETERMINISTIC,
    NETWORKS,
    PROMISED_RUNTIMES,
    TWIN_TARGETS,
    WORKERS,
    Contestant,
    peer_target,
    rivals_of,
    select,
    twin_of,
)
from layer_workers import MAX_STEPS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import Burst, Interleaving, Round, Spread, Worker, WorkerError, ratio_of, time_of

HERE = Path(__file__).resolve().parent
MIN_STEPS = 5  # of a burst, however slow a contestant is
PREPARE_TIMEOUT = 300.0  # seconds; torch.compile takes the longest
BURST_TIMEOUT = 120.0
PACKAGE_OF = {
    "blitz": "blitz-bayesian-pytorch",
    "bayesian_torch": "bayesian-torch",
    "keras_proba": "keras-proba",
    "torch_uncertainty": "torch-uncertainty",
}
TOLERABLE_DISTURBED_SHARE = 0.3  # of the bursts: medians bear that much
REPORT_WIDTH = 150  # where the output is not a terminal
console = Console(width=None if sys.stdout.isatty() else REPORT_WIDTH, highlight=False)


@dataclass
class Outcome:
    """What was measured on one network.

    Attributes:
        contestants: Everyone selected, in the order of a round.
        steps: Steps in a burst, of each contestant that could be prepared.
        start_up_seconds: To build, compile and warm up, of the same.
        rounds: The measurements.
        skipped: Why a contestant did not take part, or not to the end.
        disturbed_share: Share of the bursts that other processes disturbed, repetitions not counted.
    """

    contestants: list[Contestant]
    steps: dict[str, int] = field(default_factory=dict)
    start_up_seconds: dict[str, float] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    disturbed_share: float = 0.0


class Crew:
    """The workers, each started when it is first needed and kept to the end.

    Args:
        peer_python: Interpreter of the peers' environment.
    """

    def __init__(self, peer_python: str):
        self._peer_python = peer_python
        self._workers: dict[str, Worker] = {}

    def __getitem__(self, name: str) -> Worker:
        if name not in self._workers:
            spec = WORKERS[name]
            python = self._peer_python if spec.peers else sys.executable
            # Let a plain checkout be measured; the peers' environment need not have bdl.
            path = {} if spec.peers else {"PYTHONPATH": _path_with(HERE.parent)}
            self._workers[name] = Worker([python, str(HERE / "layer_workers.py"), spec.framework], path)
        return self._workers[name]

    def versions(self) -> dict[str, dict[str, str]]:
        """Versions of the installed packages, by worker."""
        return {name: worker.ask("versions", PREPARE_TIMEOUT)["versions"] for name, worker in self._alive()}

    def release(self) -> None:
        """Make every worker forget its contestants."""
        for _, worker in self._alive():
            worker.ask("release", BURST_TIMEOUT)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()

    def _alive(self) -> list[tuple[str, Worker]]:
        return [(name, worker) for name, worker in self._workers.items() if worker.is_alive]


def _path_with(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def reason(contestant: Contestant, error: WorkerError) -> str:
    """Why a contestant does not take part, with the cure where there is one."""
    if error.missing_module is None:
        return str(error)
    package = PACKAGE_OF.get(error.missing_module, error.missing_module)
    if WORKERS[contestant.worker].peers:
        return f"not installed: {package} (pip install -r benchmarks/requirements-peers.txt, see benchmarks/README.md)"
    return f"not installed: {package} (pip install -e '.[jax,torch]')"


@dataclass(frozen=True)
class Settings:
    """How to measure: see the options of the command."""

    rounds: int
    burst_seconds: float
    patience: float

    def steps(self, step_seconds: float) -> int:
        """How many steps fill a burst."""
        return min(max(round(self.burst_seconds / max(step_seconds, 1e-4)), MIN_STEPS), MAX_STEPS)


def prepare(network: str, outcome: Outcome, crew: Crew, settings: Settings) -> None:
    """Have every contestant built, compiled and warmed up; note who cannot be."""
    for contestant in outcome.contestants:
        name = contestant.name
        identity = {key: getattr(contestant, key) for key in ("name", "library", "estimator", "runtime")}
        try:
            ready = crew[contestant.worker].ask("prepare", PREPARE_TIMEOUT, network=network, **identity)
        except WorkerError as error:
            outcome.skipped[name] = reason(contestant, error)
            continue
        outcome.start_up_seconds[name] = ready["start_up_seconds"]
        outcome.steps[name] = settings.steps(ready["step_seconds"])


def measure(network: str, contestants: list[Contestant], crew: Crew, settings: Settings) -> Outcome:
    """Prepare the contestants, let them take turns, and collect the times."""
    outcome = Outcome(contestants)
    with console.status(f"{network}: {len(contestants)} contestants prepare themselves"):
        prepare(network, outcome, crew, settings)
    by_name = {contestant.name: contestant for contestant in contestants}

    def burst_of(name: str) -> Burst:
        worker = crew[by_name[name].worker]
        return Burst(**worker.ask("burst", BURST_TIMEOUT, name=name, steps=outcome.steps[name]))

    def drop(name: str, error: WorkerError) -> None:
        outcome.skipped[name] = reason(by_name[name], error)

    turns = Interleaving({name: partial(burst_of, name) for name in outcome.steps}, drop, settings.patience)
    # One round more than asked for: the first warms up, tells how long a burst has to be, and is thrown away.
    total = settings.rounds + 1
    played = enumerate(turns.rounds(total))
    for number, measured in track(played, f"{network}: rounds", total=total, console=console):
        if number == 0:
            outcome.steps = {name: settings.steps(seconds) for name, seconds in measured.items()}
        else:
            outcome.rounds.append(measured)
    outcome.disturbed_share = turns.num_disturbed / max(turns.num_turns, 1)
    return outcome


def verdict(met: bool | None) -> str:
    """The last column of the tables."""
    return {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[met]


def twin_target(contestant: Contestant) -> float | None:
    """The greatest ratio to the twin that bdl has promised, if it has."""
    if contestant.library != "bdl" or contestant.runtime not in PROMISED_RUNTIMES:
        return None
    return TWIN_TARGETS[contestant.estimator]


def compare_with_twins(outcome: Outcome) -> dict[str, dict]:
    """Figures of each contestant that ran, ready for JSON and the table."""
    measured = {}
    for contestant in outcome.contestants:
        name = contestant.name
        time = time_of(name, outcome.rounds)
        if time is None:
            continue
        ratio = ratio_of(name, twin_of(contestant).name, outcome.rounds)
        target = twin_target(contestant)
        measured[name] = {
            "milliseconds_per_step": asdict(time),
            "ratio_to_twin": ratio and asdict(ratio),
            "target": target,
            "met": None if target is None or ratio is None else ratio.median <= target,
            "steps_per_burst": outcome.steps[name],
            "start_up_seconds": round(outcome.start_up_seconds[name], 2),
            "bursts_milliseconds": [round(1e3 * r[name], 4) for r in outcome.rounds if name in r],
        }
    return measured


def compare_with_bdl(outcome: Outcome) -> list[dict]:
    """Figures of each meeting of a peer with bdl, ready for JSON and the table."""
    meetings = []
    for peer in filter(lambda c: c.is_peer, outcome.contestants):
        for rival in rivals_of(peer):
            ratio = ratio_of(peer.name, rival.name, outcome.rounds)
            twins = ratio_of(twin_of(peer).name, twin_of(rival).name, outcome.rounds)
            if ratio is None:
                continue
            meetings.append(
                {
                    "peer": peer.name,
                    "bdl_runtime": rival.runtime,
                    "ratio": asdict(ratio),
                    "ratio_of_their_twins": twins and asdict(twins),
                    "target": peer_target(peer),
                    "met": ratio.median >= peer_target(peer),
                }
            )
    return meetings


def print_twin_table(network: str, outcome: Outcome, measured: dict[str, dict]) -> None:
    """All contestants beside the deterministic network on the same runtime."""
    table = Table(title=f"{network}: training step; median (10-90 %) of {len(outcome.rounds)} rounds")
    for column in ("library", "estimator", "runtime", "ms / step", "x deterministic", "target", ""):
        left = column in ("library", "estimator", "runtime")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for contestant in outcome.contestants:
        who = (contestant.library, contestant.estimator, contestant.runtime)
        figures = measured.get(contestant.name)
        if figures is None:
            table.add_row(*who, "-", "-", "", "")
            continue
        ratio = figures["ratio_to_twin"]
        shown = "" if ratio is None or contestant.estimator == DETERMINISTIC else str(Spread(**ratio))
        target = "" if figures["target"] is None else f"<= {figures['target']}"
        time = Spread(**figures["milliseconds_per_step"])
        table.add_row(*who, str(time), shown, target, verdict(figures["met"]))
    console.print(table)
    share = outcome.disturbed_share
    warning = "; measure again in a quieter hour" if share > TOLERABLE_DISTURBED_SHARE else ""
    console.print(f"{network}: {share:.0%} of the bursts were disturbed by other processes{warning}")
    for name, why in outcome.skipped.items():
        console.print(f"{network}: {name}: {why}", style="yellow", markup=False, soft_wrap=True)


def print_peer_table(network: str, meetings: list[dict]) -> None:
    """The peers beside bdl; their deterministic twins' ratio tells what is the frameworks' and not the layers'."""
    table = Table(title=f"{network}: a peer's step over bdl's for the same estimator")
    for column in ("peer", "bdl's runtime", "peer / bdl", "their twins", "target", ""):
        left = column in ("peer", "bdl's runtime")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in meetings:
        ratio, twins = (Spread(**row[key]) if row[key] else "" for key in ("ratio", "ratio_of_their_twins"))
        table.add_row(
            row["peer"], row["bdl_runtime"], str(ratio), str(twins), f">= {row['target']}", verdict(row["met"])
        )
    console.print(table)


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "system": platform.system(), "load_average": os.getloadavg()}


def write_json(path: Path, content: dict) -> None:
    """Write the whole file or, if interrupted, nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(path.suffix + ".tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)


def contest(line_ups: dict[str, list[Contestant]], crew: Crew, settings: Settings) -> dict[str, dict]:
    """Measure and report one network after the other; the results as they go into the JSON file."""
    results = {}
    for network, line_up in line_ups.items():
        outcome = measure(network, line_up, crew, settings)
        measured, meetings = compare_with_twins(outcome), compare_with_bdl(outcome)
        print_twin_table(network, outcome, measured)
        if meetings:
            print_peer_table(network, meetings)
        results[network] = {
            "contestants": measured,
            "peers_over_bdl": meetings,
            "skipped": outcome.skipped,
            "disturbed_share": round(outcome.disturbed_share, 3),
        }
        crew.release()
    return results


def line_ups_of(contestants: str, networks: str) -> dict[str, list[Contestant]]:
    """Read the options of the same names."""
    chosen = [name.strip() for name in networks.split(",")]
    if unknown := set(chosen) - set(NETWORKS):
        raise typer.BadParameter(f"Unknown network {sorted(unknown)}; expected some of {NETWORKS}.")
    patterns = [pattern.strip() for pattern in contestants.split(",")]
    try:
        return {network: select(patterns, network) for network in chosen}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def main(
    contestants: Annotated[
        str, typer.Option(help="Patterns of names (library/estimator/runtime), comma-separated; see --list.")
    ] = "*",
    networks: Annotated[str, typer.Option(help="mlp, conv or both, comma-separated.")] = ",".join(NETWORKS),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count; one more warms up.")] = 15,
    burst_seconds: Annotated[float, typer.Option(min=0.01, help="About how long each contestant's turn lasts.")] = 0.4,
    patience: Annotated[float, typer.Option(min=0.0, help="Seconds a turn may wait for a quiet machine.")] = 3.0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    peer_python: Annotated[str, typer.Option(help="Interpreter of the peers' environment.")] = sys.executable,
    list_: Annotated[bool, typer.Option("--list", help="Show the contestants and stop.")] = False,
) -> None:
    """Time training steps of variational layers, with bdl and its peers taking turns.

    Whoever a selected contestant is compared with takes part too.
    """
    if list_:
        print(*(contestant.name for contestant in CONTESTANTS), sep="\n")
        return
    line_ups = line_ups_of(contestants, networks)
    if shutil.which(peer_python) is None:
        raise typer.BadParameter(f"No such interpreter: {peer_python}", param_hint="--peer-python")
    settings = Settings(rounds, burst_seconds, patience)
    before = machine()
    crew = Crew(peer_python)
    try:
        results = contest(line_ups, crew, settings)
        versions = crew.versions()
    finally:
        crew.close()
    if output is None:
        return
    content = {
        "benchmark": "layers",
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "settings": asdict(settings),
        "machine": {**before, "load_average_at_the_end": os.getloadavg()},
        "versions": versions,
        "networks": results,
    }
    write_json(output, content)
    console.print(f"Results written to {output}", markup=False)


if __name__ == "__main__":
    typer.run(main)
