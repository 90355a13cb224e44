"""Noise of the gradients of `bdl.svi`: sums over a guide's variables of the variance over draws, on the same rows.

The bound: doubly reparameterized gradients against usual ones, of the recognition network of examples/methylation.py on
1,000 loci, where the fit begins and after one by the ELBO. Sticking the landing: densities whose gradient comes through
the draw alone against divergences in closed form, of mean-field guides on models of the public posterior database at
the end of a fit, with the ELBO that each reaches, and of the recognition network with two draws of the ELBO. Discrete
sites: eight switches in each of 1,000 rows that are seen mixed, with a recognition network, by the score function with
and without a baseline, and summed out. It runs on TensorFlow.

    python benchmarks/svi_gradients.py bound --data DIR
    python benchmarks/svi_gradients.py sticking --data DIR       # resumable
    python benchmarks/svi_gradients.py amortized --data DIR
    python benchmarks/svi_gradients.py discrete
    python benchmarks/svi_gradients.py scores                    # resumable, of `svi_scores`
    python benchmarks/svi_gradients.py report --write            # tables, into benchmarks/README.md
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import data as data_sets
import keras
import numpy as np
import svi_scores
import typer
from keras import ops
from runs import markdown, replace_section

from bdl.elbo import elbo_parts, mixture_nll
from bdl.svi import SVI, Amortized, Global, Local, MeanField, Observed, score
from bdl.svi.estimators import Estimator
from bdl.svi.rows import as_data, as_tensors

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "examples"))

app = typer.Typer(add_completion=False)
RESULTS = HERE / "results" / "svi_gradients.json"
PAGE = HERE / "README.md"
NUM_ROWS, NUM_DRAWS = 1000, 200
NUM_SWITCHES = 8
MODELS = ("kidiq", "nes", "arK", "mixture", "eight_schools")
NUM_STEPS, RATE, NUM_SAMPLES = 1000, 1e-2, 8  # of a fit of these
Data = Annotated[Path | None, typer.Option(help="Folder with methylation and posteriordb; default: that of BDL_DATA.")]


@contextlib.contextmanager
def usual_gradients() -> Iterator[None]:
    """Within this context no gradient is doubly reparameterized."""
    kept = Estimator._is_doubly_reparameterized
    Estimator._is_doubly_reparameterized = property(lambda self: False)
    try:
        yield
    finally:
        Estimator._is_doubly_reparameterized = kept


@contextlib.contextmanager
def sticking(kind: type, sticks: bool) -> Iterator[None]:
    """Within this context the Gaussians of a kind of guide stick, or do not."""
    kept = kind.distribution
    kind.distribution = lambda self, *given: dataclasses.replace(kept(self, *given), sticks=sticks)
    try:
        yield
    finally:
        kind.distribution = kept


@contextlib.contextmanager
def without_baseline() -> Iterator[None]:
    """Within this context the score function weighs a draw by its cost, or by that of its row, alone."""
    kept = score.leave_one_out, score.vimco
    score.leave_one_out = lambda costs: costs
    score.vimco = lambda costs: ops.broadcast_to(mixture_nll(costs), costs.shape)
    try:
        yield
    finally:
        score.leave_one_out, score.vimco = kept


class Noise:
    """Gradients of a model's objective in the variables of a guide, on the same rows, compiled.

    Args:
        model: Traced or fitted.
        guide: The guide.
        x: The rows.
    """

    def __init__(self, model: SVI, guide: Any, x: Any) -> None:
        import tensorflow as tf

        batch = as_tensors(as_data(x, model.compute_dtype), model.compute_dtype)

        @tf.function(jit_compile=True, autograph=False)
        def gradient() -> Any:
            with tf.GradientTape() as tape:
                [terms] = model(batch, training=True)
                local, total = terms["local"], sum(terms["global"].values(), ops.zeros(()))
                local_kl = sum(local.values()) if local else None
                size = model.progress.size
                loss = elbo_parts(terms["nll"], total, size, 1.0, local_kl, objective=model.objective).loss
            found = tape.gradient(loss, [weight.value for weight in guide.trainable_weights])
            return ops.concatenate([ops.reshape(each, (-1,)) for each in found])

        self.gradient = gradient

    def figures(self, number: int = NUM_DRAWS) -> dict[str, float]:
        """Sum of the variances, and milliseconds of the fastest one, which other work disturbed least."""
        self.gradient()
        draws, times = [], []
        for _ in range(number):
            began = time.perf_counter()
            draws.append(self.gradient().numpy())
            times.append(1e3 * (time.perf_counter() - began))
        return {"variance": float(np.var(draws, axis=0, ddof=1).sum()), "ms": min(times)}


def folder_of(data: Path | None) -> Path:
    folder = data_sets.folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    return folder


def stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def store(name: str, figures: Any) -> None:
    RESULTS.write_text(json.dumps({**stored(), name: figures}, indent=1) + "\n")


def loci_and_model(data: Path | None, steps: int, seed: int) -> tuple[Any, SVI]:
    """Loci of the chromosome, and the model after a fit to batches by the ELBO."""
    import methylation as example

    loci = example.load(folder_of(data))
    model = example.fit_batches(loci, steps=steps, seed=seed)
    kept = np.random.default_rng(0).permutation(len(loci["coverage"]))[:NUM_ROWS]
    return {name: values[kept] for name, values in loci.items()}, model


@app.command()
def bound(
    data: Data = None,
    draws: Annotated[str, typer.Option(help="Draws in the bound, separated by commas.")] = "2,5,20",
    steps: Annotated[int, typer.Option(help="Steps of the fit by the ELBO.")] = 500,
) -> None:
    """Usual and doubly reparameterized gradients of the importance weighted bound."""
    rows = []
    for name, number in (("at the start", 1), (f"after {steps} steps by the ELBO", steps)):
        loci, model = loci_and_model(data, number, seed=0)
        for size in map(int, draws.split(",")):
            model.objective, model.num_samples = "multi_sample", size
            row: dict[str, Any] = {"where": name, "draws": size}
            for kind, context in (("usual", usual_gradients()), ("doubly", contextlib.nullcontext())):
                with context:
                    row[kind] = Noise(model, model.guide_of("logit"), loci).figures()
            print(json.dumps(row), flush=True)
            rows.append(row)
    store("bound", {"rows": rows})


@app.command(name="sticking")
def sticking_command(
    data: Data = None,
    models: Annotated[str, typer.Option(help="Models, separated by commas.")] = ",".join(MODELS),
    starts: Annotated[str, typer.Option(help="Where fits begin, separated by commas.")] = "laplace,prior",
) -> None:
    """Sticking the landing in mean-field guides; rows that are there already are left out."""
    from svi_stories import MODELS as STORIES

    rows = stored().get("sticking", [])
    for start, name in itertools.product(starts.split(","), models.split(",")):
        if any((row["model"], row["start"]) == (name, start) for row in rows):
            continue
        told = STORIES[name]
        x = told.rows(data_sets.posterior(folder_of(data), told.name).data)
        row: dict[str, Any] = {"model": name, "start": start}
        for kind in ("closed", "sticks"):
            with sticking(MeanField, kind == "sticks"):
                model = SVI(told.story, start=start, num_samples=NUM_SAMPLES, seed=0)
                model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, NUM_STEPS)))
                model.fit(x, batch_size="all", steps=NUM_STEPS, verbose=0)
                row[kind] = {"elbo": float(model.log_weights(x, num_samples=4000, seed=1).mean())}
        for kind in ("closed", "sticks"):  # at the same place, the end of the second fit
            with sticking(MeanField, kind == "sticks"):
                row[kind] |= Noise(model, model.guides[0], x).figures()
        print(json.dumps(row), flush=True)
        rows.append(row)
        store("sticking", rows)


@app.command()
def amortized(
    data: Data = None,
    steps: Annotated[int, typer.Option(help="Steps of the fit by the ELBO.")] = 500,
) -> None:
    """Sticking the landing in the recognition network."""
    loci, model = loci_and_model(data, steps, seed=0)
    row: dict[str, Any] = {"model": "methylation, recognition network", "start": "prior"}
    for kind in ("closed", "sticks"):
        with sticking(Amortized, kind == "sticks"):
            row[kind] = Noise(model, model.guide_of("logit"), loci).figures()
    print(json.dumps(row), flush=True)
    store("amortized", row)


def mixed(data: Any) -> Any:
    """Switches of each row, seen mixed by unknown weights."""
    import tensorflow_probability as tfp

    tfd = tfp.distributions
    weights = yield Global("weights", tfd.Normal(ops.zeros((NUM_SWITCHES, NUM_SWITCHES)), 1.0))
    switches = yield Local("switches", tfd.Bernoulli(probs=ops.full((NUM_SWITCHES,), 0.3)))
    mean = ops.matmul(ops.cast(switches, "float32"), weights)
    yield Observed("y", tfd.Normal(mean, 0.5), data["y"])


@app.command()
def discrete(
    steps: Annotated[int, typer.Option(help="Steps of the fit by the ELBO.")] = 500,
) -> None:
    """The score function of a recognition network's switches, and the gradient of the weights, summed out and not."""
    random = np.random.default_rng(0)
    weights = 2.0 * np.eye(NUM_SWITCHES) + 0.5 * random.normal(size=(NUM_SWITCHES, NUM_SWITCHES))
    true = random.random((NUM_ROWS, NUM_SWITCHES)) < 0.3
    data = {"y": (true @ weights + 0.5 * random.normal(size=true.shape)).astype("float32")}
    start = {"weights": 2.0 * np.eye(NUM_SWITCHES)}
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.layers.Dense(32, "tanh")])
    guide = {"switches": Amortized(network, ["y"], family="categories")}
    models = {"drawn": SVI(mixed, guide, start=start, seed=0), "summed out": SVI(mixed, start=start, seed=0)}
    for model in models.values():
        model.compile(keras.optimizers.Adam(1e-2), steps_per_execution=10)
    rows = []
    for where, number in (("at the start", 1), (f"after {steps} steps", steps - 1)):
        for model in models.values():
            model.objective, model.num_samples = "elbo", 4
            model.fit(data, batch_size=100, steps=number, verbose=0)
        for objective, size in (("elbo", 2), ("elbo", 4), ("multi_sample", 4)):
            row: dict[str, Any] = {"where": where, "objective": objective, "draws": size}
            for name, model in models.items():
                model.objective, model.num_samples = objective, size
                row[name] = Noise(model, model.guide_of("weights"), data).figures()
            model = models["drawn"]
            for name, context in (("plain", without_baseline()), ("baseline", contextlib.nullcontext())):
                with context:
                    row[name] = Noise(model, model.guide_of("switches"), data).figures()
            print(json.dumps(row), flush=True)
            rows.append(row)
    store("discrete", rows)


@app.command()
def scores(seeds: Annotated[int, typer.Option(help="Seeds of each fit.")] = 3) -> None:
    """Baselines of the score function; rows that are there already are left out."""
    for rows in svi_scores.run(seeds, Noise, stored().get("scores", [])):
        store("scores", rows)


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints what is stored."""
    found = stored()
    parts = [_bound_table(found["bound"]), _sticking_table([*found["sticking"], found["amortized"]])]
    parts += [_discrete_table(found["discrete"]), svi_scores.table(found["scores"])]
    text = "\n\n".join(parts)
    print(text)
    if write:
        replace_section(PAGE, "svi_gradients", text)


def _bound_table(found: dict[str, Any]) -> str:
    lines = [
        [
            row["where"],
            str(row["draws"]),
            f"{row['usual']['variance']:.2g}",
            f"{row['doubly']['variance']:.2g}",
            f"{row['usual']['variance'] / row['doubly']['variance']:,.1f}",
            f"{row['usual']['ms']:.2f}",
            f"{row['doubly']['ms']:.2f}",
        ]
        for row in found["rows"]
    ]
    header = [
        "bound",
        "draws",
        "usual: variance",
        "doubly reparameterized",
        "ratio",
        "usual: ms",
        "doubly: ms",
    ]
    return markdown(header, lines)


def _discrete_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        plain, ours, drawn, exact = (row[kind]["variance"] for kind in ("plain", "baseline", "drawn", "summed out"))
        name = f"{'ELBO' if row['objective'] == 'elbo' else 'bound'}, {row['draws']} draws"
        cells = [f"{plain:.2g}", f"{ours:.2g}", f"{plain / ours:,.1f}", f"{drawn:.2g}", f"{exact:.2g}"]
        lines.append([name, row["where"], *cells])
    header = ["switches", "where", "network, plain score", "with baseline", "ratio", "weights, drawn", "summed out"]
    return markdown(header, lines)


def _sticking_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        gain = row["sticks"]["elbo"] - row["closed"]["elbo"] if "elbo" in row["closed"] else None
        variances = [row[kind]["variance"] for kind in ("closed", "sticks")]
        cells = [f"{each:.2g}" for each in variances] + [f"{variances[0] / variances[1]:,.1f}"]
        lines.append([row["model"], row["start"], *cells, "" if gain is None else f"{gain:+.4f}"])
    return markdown(["ELBO", "start", "closed form: variance", "sticks", "ratio", "ELBO reached: gain, nats"], lines)


if __name__ == "__main__":
    app()
