"""Half a million latent variables: how right `bdl.svi` is about what they share, and what a step and an inference cost.

The story, the recognition network and the exact posterior are those of examples/methylation.py. Every command adds its
figures to results/svi_methylation.json.

    python benchmarks/svi_methylation.py globals --data DIR --seeds 3      # against quadrature; some minutes a seed
    python benchmarks/svi_methylation.py inference --data DIR              # a locus by network and by optimisation
    python benchmarks/svi_methylation.py steps --data DIR                  # 10^4 to 10^7 loci; 100 loci and all
    python benchmarks/svi_methylation.py stream --data DIR                 # 10^7 loci read from a file
    python benchmarks/svi_methylation.py report --write                    # tables, into benchmarks/README.md
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import data as data_sets
import keras
import numpy as np
import typer
from runs import markdown, replace_section

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "examples"))

import methylation as example  # noqa: E402

app = typer.Typer(add_completion=False)
RESULTS = HERE / "results" / "svi_methylation.json"
PAGE = HERE / "README.md"
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
BATCH_SIZE = 1000
Data = Annotated[Path | None, typer.Option(help="Folder with methylation/imr90_chr22.npz; default: that of BDL_DATA.")]


def loci_of(data: Path | None) -> example.Loci:
    folder = data_sets.folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    return example.load(folder)


def stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def store(name: str, figures: Any) -> None:
    draft = RESULTS.with_suffix(".tmp")
    draft.write_text(json.dumps({**stored(), name: figures}, indent=1) + "\n")
    draft.replace(RESULTS)


def tiled(loci: example.Loci, rows: int) -> example.Loci:
    """As many loci as asked for, the same ones over and over in another order."""
    order = np.random.default_rng(0).permutation(len(loci["coverage"]))
    return {name: np.resize(values[order], rows) for name, values in loci.items()}


class Clock(keras.callbacks.Callback):
    """Notes when each step ended."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Forgets an earlier fit."""
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes the time."""
        self.ends.append(time.perf_counter())

    def milliseconds(self) -> float:
        """Median time of a step; the first ones are left out."""
        return float(1e3 * np.median(np.diff(self.ends[4:])))


@app.command("globals")
def globals_(
    data: Data = None,
    seeds: Annotated[int, typer.Option(help="Number of fits.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps on batches.")] = 500,
    finish: Annotated[int, typer.Option(help="Steps on all loci, by each bound.")] = 1000,
) -> None:
    """Posteriors of the globals by the ELBO and by 5 and 20 weighted draws, each going on from the one before."""
    loci = loci_of(data)
    exact = example.exact_posterior(loci)
    rows = stored().get("globals", {}).get("rows", [])
    for seed in range(seeds):
        if any(row["seed"] == seed for row in rows):
            continue
        began = time.perf_counter()
        model = example.fit_batches(loci, steps, seed)
        for num_samples in (None, 5, 20):
            example.fit_pairs(model, loci, finish, num_samples)
            found = example.globals_of(model)
            rows.append(
                {
                    "seed": seed,
                    "draws": num_samples,
                    "shift": ((found.mean - exact.mean) / exact.sd).tolist(),
                    "width": (found.sd / exact.sd).tolist(),
                    "correlation": float(found.correlation),
                    "seconds": time.perf_counter() - began,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
        reference = {"mean": exact.mean.tolist(), "sd": exact.sd.tolist(), "correlation": float(exact.correlation)}
        store("globals", {"steps": steps, "finish": finish, "exact": reference, "rows": rows})


@app.command()
def inference(
    data: Data = None,
    steps: Annotated[int, typer.Option(help="Steps on batches, by the ELBO.")] = 1500,
    rows: Annotated[int, typer.Option(help="Loci that are optimised one by one.")] = 500,
) -> None:
    """A locus' posterior by the network, and by optimisation: time, and what the network loses."""
    loci = loci_of(data)
    kept = np.random.default_rng(0).permutation(len(loci["coverage"]))
    new = {name: values[kept[:50_000]] for name, values in loci.items()}
    model = example.fit_batches({name: values[kept[50_000:]] for name, values in loci.items()}, steps, seed=0)
    point = example.globals_of(model).mean
    few = {name: values[:rows] for name, values in new.items()}
    best = example.local_elbo(*example.optimise(few, point), few, point)[0]
    gap = best - example.local_elbo(*example.infer(model, few), few, point)[0]
    loss = log_evidence(few, point) - best
    network = example.seconds_per_locus(lambda some: example.infer(model, some), new, 50_000, repeats=9)
    single = example.seconds_per_locus(lambda some: example.infer(model, some), new, 1, repeats=50)
    optimised = example.seconds_per_locus(lambda some: example.optimise(some, point), new, rows)
    figures = {
        "rows": rows,
        "steps": steps,
        "gap": float(gap.mean()),
        "gap_error": float(gap.std() / np.sqrt(rows)),
        "gaussian_loss": float(loss.mean()),
        "gaussian_loss_error": float(loss.std() / np.sqrt(rows)),
        "network_us": 1e6 * network,
        "network_alone_us": 1e6 * single,
        "optimised_us": 1e6 * optimised,
    }
    print(json.dumps(figures))
    store("inference", figures)


def log_evidence(loci: example.Loci, point: np.ndarray) -> np.ndarray:
    """Of each locus at given globals, without the binomial coefficient, by quadrature: `(rows,)`."""
    z = np.linspace(-9, 9, 2001)[:, None]
    logit = point[0] + np.exp(point[1]) * z
    log_joint = loci["methylated"] * logit - loci["coverage"] * np.logaddexp(0.0, logit)
    log_joint = log_joint - 0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    top = log_joint.max(0)
    return top + np.log(np.trapezoid(np.exp(log_joint - top), z, axis=0))


def timed_model(loci: example.Loci, batch_size: Any) -> example.SVI:
    """A model whose step is compiled for a batch size."""
    model = example.fit_batches(loci, steps=2, seed=0, batch_size=batch_size)
    return example.compiled(model)


def time_in_turns(cases: dict[str, tuple[example.Loci, Any]], steps: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of a step of each case, in rounds in which all have their turn: median, lowest and highest."""
    models = {name: timed_model(*case) for name, case in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, (loci, batch_size) in cases.items():
            clock = Clock()
            models[name].fit(loci, batch_size=batch_size, steps=steps, callbacks=[clock], verbose=0)
            if number:  # the first round compiles
                times[name].append(clock.milliseconds())
        print(number, {name: each[-1:] for name, each in times.items()}, flush=True)
    return {name: {"ms": float(np.median(each)), "low": min(each), "high": max(each)} for name, each in times.items()}


@app.command()
def steps(
    data: Data = None,
    num_steps: Annotated[int, typer.Option(help="Steps of a turn.")] = 60,
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 5,
) -> None:
    """Time of a step by the number of loci, and of 100 loci against all of them."""
    loci = loci_of(data)
    sizes = time_in_turns({str(size): (tiled(loci, size), BATCH_SIZE) for size in SIZES}, num_steps, rounds)
    store("steps", {"batch_size": BATCH_SIZE, "rounds": rounds, "sizes": sizes})
    one = {name: values.copy() for name, values in loci.items()}
    few = time_in_turns({"100": (one, 100)}, num_steps, rounds)
    full = time_in_turns({"all": (one, "all")}, 8, 1)
    store("full_batch", {**few, **full, "factor": full["all"]["ms"] / few["100"]["ms"]})
    report()


class Memory(keras.callbacks.Callback):
    """Notes the memory that belongs to this process alone, in MB; Linux only. Pages of mapped files do not count."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.megabytes = every, {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes the memory, now and then."""
        if (batch + 1) % self.every == 0:
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.megabytes[str(batch + 1)] = kilobytes / 1024
            print(batch + 1, f"{kilobytes / 1024:.0f} MB", flush=True)


@app.command()
def stream(
    data: Data = None,
    rows: Annotated[int, typer.Option(help="Loci in the file.")] = 10_000_000,
    passes: Annotated[float, typer.Option(help="Passes over the file.")] = 1.0,
) -> None:
    """Memory of a fit that reads its loci from a file, which `numpy.memmap` maps."""
    import tensorflow as tf

    loci = loci_of(data)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        written = np.memmap(file.name, "uint16", "w+", shape=(rows, 2))
        for begin in range(0, rows, len(loci["coverage"])):
            part = slice(0, min(len(loci["coverage"]), rows - begin))
            written[begin : begin + part.stop] = np.stack([loci["methylated"][part], loci["coverage"][part]], axis=1)
        written.flush()
        mapped = np.memmap(file.name, "uint16", "r", shape=(rows, 2))

        def batches() -> Iterator[dict[str, np.ndarray]]:
            for begin in range(0, rows - BATCH_SIZE + 1, BATCH_SIZE):
                part = np.asarray(mapped[begin : begin + BATCH_SIZE], "float32")
                yield {"methylated": part[:, 0], "coverage": part[:, 1]}

        spec = {name: tf.TensorSpec((BATCH_SIZE,), "float32") for name in ("methylated", "coverage")}
        source = tf.data.Dataset.from_generator(batches, output_signature=spec).prefetch(2)
        number = int(passes * rows / BATCH_SIZE)  # steps
        memory, clock = Memory(every=max(number // 10, 1)), Clock()
        model = example.model_of(seed=0, num_examples=rows)
        model.fit(source, steps=number, callbacks=[memory, clock], verbose=0)
    figures = {"rows": rows, "steps": number, "file_mb": rows * 4 / 2**20, "mb": memory.megabytes}
    store("stream", {**figures, "ms": clock.milliseconds()})


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints what is stored."""
    found = stored()
    parts = [part(found[name]) for name, part in PARTS.items() if name in found]
    text = "\n\n".join(parts)
    print(text)
    if write:
        replace_section(PAGE, "svi_methylation", text)


def _globals_table(found: dict[str, Any]) -> str:
    exact = found["exact"]
    header = ["bound", "seeds", "mean: shift", "sd", "log spread: shift", "sd", "correlation", "seconds so far"]
    lines = []
    for draws in (None, 5, 20):
        rows = [row for row in found["rows"] if row["draws"] == draws]
        if rows:
            cells = []
            for axis in range(2):
                shifts, widths = ([row[key][axis] for row in rows] for key in ("shift", "width"))
                cells += [_span(shifts, "+.2f"), _span([100 * (width - 1) for width in widths], "+.0f") + " %"]
            cells += [
                _span([row["correlation"] for row in rows], ".2f"),
                _span([row["seconds"] for row in rows], ".0f"),
            ]
            lines.append(["ELBO" if draws is None else f"{draws} weighted draws", str(len(rows)), *cells])
    parts = (f"{mean:.5f} ± {sd:.5f}" for mean, sd in zip(exact["mean"], exact["sd"], strict=True))
    told = "Exact: mean {}, log spread {}, correlation {:.2f}. Shifts are in exact standard deviations.".format(
        *parts, exact["correlation"]
    )
    return f"{told} {found['steps']} steps on batches, then {found['finish']} by each bound on pairs.\n\n" + markdown(
        header, lines
    )


def _span(values: list[float], form: str) -> str:
    """The only value, or the lowest and highest."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _inference_text(found: dict[str, Any]) -> str:
    ratio = found["optimised_us"] / found["network_us"]
    return (
        f"A new locus takes {found['network_us']:.2f} microseconds by the network, among 50,000, and "
        f"{found['optimised_us']:,.0f} by SciPy's L-BFGS: {ratio:,.0f} times as long. A locus alone takes the network "
        f"{found['network_alone_us']:,.0f}, nearly all of it the call of Keras that is not compiled. The network's "
        f"Gaussians lose {found['gap']:.4f} ± {found['gap_error']:.4f} nats a locus to the best ones, over "
        f"{found['rows']} loci that were not trained on (the amortization gap); the best ones lose "
        f"{found['gaussian_loss']:.4f} ± {found['gaussian_loss_error']:.4f} to the exact posterior."
    )


def _steps_table(found: dict[str, Any]) -> str:
    lines = [
        [f"{int(size):,}", f"{each['ms']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}"]
        for size, each in found["sizes"].items()
    ]
    told = f"A step of {found['batch_size']:,} loci, in turns, {found['rounds']} rounds; the loci are tiled."
    return f"{told}\n\n" + markdown(["loci", "ms a step, median", "lowest and highest"], lines)


def _full_text(found: dict[str, Any]) -> str:
    return (
        f"A step of 100 loci takes {found['100']['ms']:.2f} ms, one of all 494,728 {found['all']['ms']:,.0f} ms: "
        f"{found['factor']:,.0f} times as long, for 4,947 times as many loci. Most of the small step is what any step "
        "costs: Keras' loop, the making of batches, the optimizer."
    )


def _stream_text(found: dict[str, Any]) -> str:
    numbers = [int(step) for step in found["mb"]]
    return (
        f"{found['rows']:,} loci in a file of {found['file_mb']:.0f} MB, read through `tf.data`: {found['ms']:.2f} ms "
        f"a step. Memory of the process from step {min(numbers):,} to {max(numbers):,}: "
        f"{_span(list(found['mb'].values()), '.0f')} MB."
    )


PARTS = {
    "globals": _globals_table,
    "inference": _inference_text,
    "steps": _steps_table,
    "full_batch": _full_text,
    "stream": _stream_text,
}


if __name__ == "__main__":
    app()
