"""Is a training step slower than in another checkout? Both take turns in one run; the ratio is formed in each round.

`git worktree add ../before COMMIT`, then `python benchmarks/before_after.py ../before --contestants "bdl/*/*"`.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from layer_contestants import NETWORKS, WORKERS, Contestant, select
from layers import BURST_TIMEOUT, HERE, PREPARE_TIMEOUT, Settings, console
from rich.table import Table
from timing import Burst, Interleaving, Round, Spread, Worker, WorkerError, ratio_of, time_of

CHECKOUTS = ("before", "after")


def worker_of(checkout: Path, framework: str) -> Worker:
    """A worker that imports bdl, and the benchmark's own trainers, from a checkout."""
    program = str(checkout / "benchmarks" / "layer_workers.py")
    return Worker([sys.executable, program, framework], {"PYTHONPATH": str(checkout)})


def compare(contestant: Contestant, network: str, workers: dict[str, Worker], settings: Settings) -> list[Round]:
    """Rounds of both checkouts; the first, which warms up, is left out."""
    identity = {key: getattr(contestant, key) for key in ("name", "library", "estimator", "runtime")}
    ready = {
        which: worker.ask("prepare", PREPARE_TIMEOUT, network=network, **identity) for which, worker in workers.items()
    }
    steps = settings.steps(min(answer["step_seconds"] for answer in ready.values()))

    def burst_of(which: str) -> Burst:
        return Burst(**workers[which].ask("burst", BURST_TIMEOUT, name=contestant.name, steps=steps))

    def drop(which: str, error: WorkerError) -> None:
        raise error

    turns = Interleaving({which: partial(burst_of, which) for which in workers}, drop, settings.patience)
    rounds = list(turns.rounds(settings.rounds + 1))[1:]
    for worker in workers.values():
        worker.ask("release", BURST_TIMEOUT)
    return rounds


def main(
    before: Annotated[Path, typer.Argument(help="Folder of the other checkout.")],
    contestants: Annotated[str, typer.Option(help="Patterns of names, comma-separated, as of layers.py.")] = "bdl/*/*",
    networks: Annotated[str, typer.Option(help="mlp, conv or both, comma-separated.")] = ",".join(NETWORKS),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 15,
    burst_seconds: Annotated[float, typer.Option(min=0.01, help="About how long a turn lasts.")] = 0.4,
    patience: Annotated[float, typer.Option(min=0.0, help="Seconds a turn may wait for a quiet machine.")] = 3.0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Prints the ratio of a training step's time, after over before: median, and the range from 10 % to 90 %."""
    settings = Settings(rounds, burst_seconds, patience)
    folders = dict(zip(CHECKOUTS, (before.resolve(), HERE.parent), strict=True))
    table = Table("network", "contestant", "after / before", "ms a step", title="A training step in two checkouts")
    found: list[dict] = []
    workers: dict[str, dict[str, Worker]] = {}
    for network in networks.split(","):
        for contestant in select(contestants.split(","), network):
            framework = WORKERS[contestant.worker].framework
            if framework not in workers:
                workers[framework] = {which: worker_of(folder, framework) for which, folder in folders.items()}
            measured = compare(contestant, network, workers[framework], settings)
            ratio, step = ratio_of("after", "before", measured), time_of("after", measured)
            assert isinstance(ratio, Spread)
            table.add_row(network, contestant.name, str(ratio), str(step))
            found.append({"network": network, "contestant": contestant.name, **vars(ratio)})
            console.print(f"{network} {contestant.name}: {ratio}")
    for pair in workers.values():
        for worker in pair.values():
            worker.close()
    console.print(table)
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
