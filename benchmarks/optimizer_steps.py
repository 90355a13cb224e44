"""Steps to a given ELBO: what momentum saves, and natural gradients, on two stories and on a network.

Stories: `kidiq` with a full-rank guide and `nes` with a mean-field guide, of the public posterior database, on all rows
and in batches. Network: digits of scikit-learn, 64 flipout units, in batches. Each optimizer takes constant rates of a
grid, and its figures are those at the rate with the lowest median. An iterate has arrived from the step on after which
all iterates that are read stay within the target. The ELBO is that of all rows, with the same noise at each iterate. A
target is a distance, in nats in total, from the ELBO of a long fit: Adam with a cosine decay, all rows, averaged.

    python benchmarks/optimizer_steps.py run --data DIR      # resumable; JAX
    python benchmarks/optimizer_steps.py report --write      # into benchmarks/README.md
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from data import folder_of, posterior
from runs import Row, grouped, markdown, replace_section, rows_of_run, run_all

app = typer.Typer(add_completion=False)
HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "optimizer_steps.jsonl", HERE / "README.md"
TASKS: dict[str, tuple[str, tuple[int | str, ...], int, tuple[float, float]]] = {
    "kidiq": ("full_rank", ("all", 50), 2000, (10.0, 1.0)),
    "nes": ("mean_field", ("all", 100), 2000, (10.0, 1.0)),
    "digits": ("flipout", (256, 32), 1500, (100.0, 20.0)),
}
"""Family, batch sizes, steps, and targets in nats."""
SGD_RATES = (0.03, 0.1, 0.3, 1.0)
ADAM_RATES = (0.003, 0.01, 0.03, 0.1)
OPTIMIZERS: dict[str, tuple[float, ...]] = {
    "SGD": SGD_RATES,
    "SGD, momentum .9": tuple(rate / 10 for rate in SGD_RATES),
    "SGD, Nesterov .9": tuple(rate / 10 for rate in SGD_RATES),
    "Adam, beta_1 0": ADAM_RATES,
    "Adam, beta_1 .9": ADAM_RATES,
    "NaturalGradient": (0.01, 0.03, 0.1, 0.3),
}
"""Rates: with momentum m a step is 1 / (1 - m) times as long in the end, so that these grids are the same."""
EVERY, SEEDS, JUDGE_DRAWS = 10, 5, 64
REFERENCE, REFERENCE_STEPS = "reference", 10_000


@dataclass(frozen=True)
class Case:
    """All rates and seeds of one optimizer on one task."""

    task: str
    batch: int | str
    optimizer: str


@dataclass
class Task:
    """What is trained: a model by its seed, how it is fitted, and the negative ELBO of values of its variables."""

    model_of: Callable[[int], Any]
    fit: Callable[..., Any]
    cost: Callable[[Sequence[Any]], Any]


@app.command()
def run(
    data: Annotated[Path | None, typer.Option(help="Folder with posteriordb/*.npz; else BDL_DATA.")] = None,
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = ",".join(TASKS),
    workers: Annotated[int, typer.Option(help="Number of processes.")] = 1,
) -> None:
    """Trains what is not there yet."""
    folder = folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    chosen = tasks.split(",")
    references = [Case(task, "all", REFERENCE) for task in chosen]
    best = {row["task"]: row["best"] for row in run_all(partial(refer, folder=folder), references, RESULTS, 1, "jax")}
    cases = [Case(task, batch, optimizer) for task in chosen for batch in TASKS[task][1] for optimizer in OPTIMIZERS]
    run_all(partial(train, folder=folder, best=best), cases, RESULTS, workers, "jax")


def task_of(name: str, folder: Path) -> Task:
    """The task of a name."""
    return digits_task() if name == "digits" else story_task(name, folder)


def refer(case: Case, folder: Path) -> Row:
    """Negative ELBO after a long fit, in nats in total."""
    import keras

    task = task_of(case.task, folder)
    model = task.model_of(SEEDS)
    rates = keras.optimizers.schedules.CosineDecay(0.03, REFERENCE_STEPS)
    model.compile(keras.optimizers.Adam(rates), steps_per_execution=EVERY)
    reading = iterates(EVERY)
    task.fit(model, "all", REFERENCE_STEPS, [reading])
    tail = reading.values[-len(reading.values) // 10 :]
    return {"best": float(task.cost([np.mean(each, axis=0) for each in zip(*tail, strict=True)]))}


def train(case: Case, folder: Path, best: dict[str, float]) -> Row:
    """Steps to the targets at each rate and seed; None where they were not reached."""
    task = task_of(case.task, folder)
    _, _, num_steps, targets = TASKS[case.task]
    starts = [[np.asarray(each.value) for each in task.model_of(seed).variables] for seed in range(SEEDS)]
    model, optimizer = task.model_of(0), optimizer_of(case.optimizer)
    model.compile(optimizer, steps_per_execution=EVERY)
    optimizer.build(model.trainable_variables)
    fresh = [np.asarray(each.value) for each in optimizer.variables]
    steps: dict[str, list[list[int | None]]] = {}
    for rate in OPTIMIZERS[case.optimizer]:
        found = []
        for seed in range(SEEDS):  # one model, for each of them would be compiled anew
            set_values(model.variables, starts[seed])
            set_values(optimizer.variables, fresh)
            optimizer.learning_rate.assign(rate)
            reading = iterates(EVERY)
            task.fit(model, case.batch, num_steps, [reading])
            left = np.array([float(task.cost(values)) - best[case.task] for values in reading.values])
            found.append([arrival(left, reading.steps, target) for target in targets])
        steps[str(rate)] = found
    return {"steps": steps}


def arrival(left: np.ndarray, steps: list[int], target: float) -> int | None:
    """The step from which on all that is left stays below a target; None if the last does not."""
    outside = np.flatnonzero(~(left <= target))  # what is not a number is outside
    first = 0 if not outside.size else int(outside[-1]) + 1
    return None if first == len(left) else steps[first]


def optimizer_of(name: str) -> Any:
    """A new optimizer; its rate is set later."""
    import keras

    import bdl

    kind, _, option = name.partition(", ")
    if kind == "NaturalGradient":
        return bdl.optimizers.NaturalGradient(0.1, keras.optimizers.Adam(0.01))  # of biases
    if kind == "Adam":
        return keras.optimizers.Adam(beta_1=float(option.split()[1]))
    return keras.optimizers.SGD(momentum=0.9 if option else 0.0, nesterov="Nesterov" in option)


def set_values(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Assigns a value to each variable."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def iterates(every: int) -> Any:
    """A callback that keeps the trained variables after each multiple of a number of steps."""
    import keras

    class Iterates(keras.callbacks.Callback):
        """Keeps them."""

        def on_train_begin(self, logs: Any = None) -> None:
            """Begins anew."""
            self.values: list[list[np.ndarray]] = []
            self.steps: list[int] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            """Notes the values."""
            self.model.jax_state_sync()
            step = int(self.model.optimizer.iterations.value)
            if step % every == 0:
                self.steps.append(step)
                self.values.append([np.asarray(each.value) for each in self.model.trainable_variables])

    return Iterates()


def story_task(name: str, folder: Path) -> Task:
    """A story of the posterior database."""
    import keras
    from keras import ops
    from svi_stories import MODELS as STORIES

    from bdl import random
    from bdl.keras_internals import compiled
    from bdl.svi import SVI

    story = STORIES[name]
    rows = story.rows(posterior(folder, story.name).data)
    tensors = {key: ops.convert_to_tensor(np.asarray(each, "float32")) for key, each in rows.items()}

    def model_of(seed: int, num_samples: int = 2) -> Any:
        model = SVI(story.story, TASKS[name][0], start="prior", num_samples=num_samples, averaging=False, seed=seed)
        model.begin(rows, None)
        return model

    judge, key = model_of(0, JUDGE_DRAWS), random.draw_key(0)

    @compiled
    def cost(values: Sequence[Any]) -> Any:
        with keras.StatelessScope(list(zip(judge.trainable_variables, values, strict=True))):
            terms = judge.estimator.terms(tensors, key, 1.0)
        return ops.mean(ops.sum(terms.nll, axis=-1)) + sum(terms.global_kl.values())

    def fit(model: Any, batch: int | str, steps: int, callbacks: list[Any]) -> None:
        model.fit(rows, batch_size=batch, steps=steps, verbose=0, callbacks=callbacks)

    return Task(model_of, fit, cost)


def digits_task() -> Task:
    """A classifier of scikit-learn's digits."""
    import keras
    from keras import ops
    from sklearn.datasets import load_digits

    import bdl
    from bdl.elbo import kl_divergence
    from bdl.keras_internals import compiled

    x, y = load_digits(return_X_y=True)
    x, y = (x[:1792] / 16.0).astype("float32"), y[:1792]  # whole batches
    likelihood = bdl.likelihoods.Categorical()

    def model_of(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        flipout = bdl.layers.DenseFlipout
        network = keras.Sequential([keras.Input((64,)), flipout(64, activation="relu"), flipout(10)])
        return bdl.VariationalModel(network, likelihood, len(x), kl_weight=1.0)

    judge = model_of(0)

    @compiled
    def cost(values: Sequence[Any]) -> Any:
        with keras.StatelessScope(list(zip(judge.trainable_variables, values, strict=True))):
            nll = likelihood.nll(ops.convert_to_tensor(y), judge.network(ops.convert_to_tensor(x), training=True))
            return ops.sum(nll) + kl_divergence(judge.network)

    def fit(model: Any, batch: int | str, steps: int, callbacks: list[Any]) -> None:
        size = len(x) if batch == "all" else int(batch)
        model.fit(x, y, batch_size=size, epochs=-(-steps * size // len(x)), verbose=0, callbacks=callbacks)

    return Task(model_of, fit, cost)


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints the table: median, lowest and highest over seeds, at the best rate."""
    lines = []
    rows = [row for row in rows_of_run(RESULTS) if row["optimizer"] != REFERENCE]
    for (task, batch), found in grouped(rows, ["task", "batch"]).items():
        family, _, _, targets = TASKS[task]
        for row in found:
            cells = [_best(row["steps"], place) for place in range(len(targets))]
            lines.append([f"{task}, {family}, batch {batch}", row["optimizer"], *cells])
    text = markdown(["task", "optimizer", "first target", "second target"], lines)
    print(text)
    if write:
        replace_section(PAGE, "optimizer_steps", text)


def _best(steps: dict[str, list[list[int | None]]], place: int) -> str:
    """Steps at the rate with the lowest median, those that did not arrive counted as endless."""
    columns = {
        rate: [np.inf if each[place] is None else each[place] for each in found] for rate, found in steps.items()
    }
    rate = min(columns, key=lambda each: float(np.median(columns[each])))
    found = np.array(columns[rate])
    arrived = found[np.isfinite(found)]
    if not np.isfinite(np.median(found)):
        return f"never ({len(arrived)} of {len(found)})"
    few = "" if len(arrived) == len(found) else f", {len(arrived)} of {len(found)}"
    return f"{np.median(found):.0f} ({arrived.min():.0f} to {arrived.max():.0f}{few}), rate {rate}"


if __name__ == "__main__":
    app()
