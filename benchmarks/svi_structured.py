"""Guides of a path against the Kalman smoother: a linear Gaussian state-space model of 1,000 steps.

    x_1 ~ N(0, q^2 / (1 - phi^2)),     x_t ~ N(phi x_{t-1}, q^2),     y_t ~ N(x_t, r^2)

`known`: phi, q and r are given, and the smoother is the posterior. `unknown`: q and r have priors LogNormal(-1, 1) and
LogNormal(0, 1); the posterior is the smoother averaged over a grid of the Kalman filter's likelihood.

Errors are the largest over the steps: of a mean in posterior standard deviations, and of a standard deviation in
percent. `factor` is the mean of the posterior's standard deviation over the guide's. Moments of the guide are exact for
`known`, and of 40,000 mirrored draws for `unknown`, whose noise is up to 1.3 % in the largest of 1,000 errors.

`schools` fits eight schools, told with effects around their mean, and compares with the draws of the posterior
database, as svi_reference.py does: the effects follow their prior (`Hierarchical`), and mean and scale have a full-rank
guide, or all have one.

    python benchmarks/svi_structured.py run --seeds 3           # resumable
    python benchmarks/svi_structured.py schools --data DIR
    python benchmarks/svi_structured.py report --write          # into benchmarks/README.md
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from data import folder_of, posterior
from runs import Row, grouped, markdown, read, replace_section, run_all

app = typer.Typer(add_completion=False)
RESULTS = Path(__file__).parent / "results" / "svi_structured.jsonl"
SCHOOLS = Path(__file__).parent / "results" / "svi_schools.jsonl"
PAGE = Path(__file__).parent / "README.md"
NUM_STEPS, PHI, Q, R = 1000, 0.95, 0.3, 1.0
RATE, NUM_SAMPLES = 1e-2, 4
GRID = 25
"""Points of each parameter's grid."""
NUM_DRAWS = 40_000
SCHOOLS_STEPS = 4000


@dataclass(frozen=True)
class Case:
    """One fit."""

    story: str
    guide: str
    start: str
    steps: int
    seed: int


CASES = (
    ("known", "structured", "laplace", 500),
    ("known", "mean_field", "laplace", 500),
    ("known", "structured", "prior", 4000),
    ("known", "mean_field", "prior", 4000),
    ("unknown", "structured", "prior", 20_000),
    ("unknown", "mean_field", "prior", 20_000),
)


@app.command()
def run(
    seeds: Annotated[int, typer.Option(help="Number of seeds, of data and fit, from 0.")] = 3,
    stories: Annotated[str, typer.Option(help="known, unknown.")] = "known,unknown",
    backend: Annotated[str, typer.Option(help="Keras backend: jax or tensorflow.")] = "jax",
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
) -> None:
    """Fits what is not there yet."""
    cases = [Case(*each, seed) for seed in range(seeds) for each in CASES if each[0] in stories.split(",")]
    run_all(fit, cases, results, 1, backend)


def series(seed: int, length: int = NUM_STEPS) -> np.ndarray:
    """Observations of a path that the model draws, `(length,)`."""
    random = np.random.default_rng(seed)
    path = random.normal(0.0, Q / np.sqrt(1 - PHI**2), size=length)
    for step in range(1, length):
        path[step] = PHI * path[step - 1] + Q * random.normal()
    return path + R * random.normal(size=length)


def smoother(y: np.ndarray, phi: float, q: float, r: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Means and variances of a path given all observations, `(T,)`, and the log likelihood.

    The Kalman filter forwards, and Rauch, Tung and Striebel's recursion backwards (1965).
    """
    length = len(y)
    mean, variance, evidence = np.zeros(length), np.zeros(length), 0.0
    ahead, spread = 0.0, q**2 / (1 - phi**2)
    for step in range(length):
        total = spread + r**2
        evidence -= 0.5 * (np.log(2 * np.pi * total) + (y[step] - ahead) ** 2 / total)
        mean[step] = ahead + spread / total * (y[step] - ahead)
        variance[step] = spread * r**2 / total
        ahead, spread = phi * mean[step], phi**2 * variance[step] + q**2
    for step in range(length - 2, -1, -1):
        spread = phi**2 * variance[step] + q**2
        back = phi * variance[step] / spread
        mean[step] += back * (mean[step + 1] - phi * mean[step])
        variance[step] += back**2 * (variance[step + 1] - spread)
    return mean, variance, evidence


def averaged(y: np.ndarray) -> dict[str, np.ndarray]:
    """Posterior means and standard deviations of the path and of log q and log r, by a grid of the latter two."""
    centre, width = np.log([Q, R]), np.array([0.8, 0.3])
    for _ in range(2):  # the second grid is laid by the moments of the first
        axes = [np.linspace(c - w, c + w, GRID) for c, w in zip(centre, width, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        found = [smoother(y, PHI, *np.exp(point)) for point in points]
        log_p = np.array([each[2] for each in found]) - 0.5 * ((points - [-1.0, 0.0]) ** 2).sum(-1)
        weights = np.exp(log_p - log_p.max())
        weights /= weights.sum()
        centre = weights @ points
        spread = np.sqrt(weights @ (points - centre) ** 2)
        width = 5 * spread
    means, variances = np.stack([each[0] for each in found]), np.stack([each[1] for each in found])
    mean = weights @ means
    sd = np.sqrt(weights @ (variances + (means - mean) ** 2))
    return {"mean": mean, "sd": sd, "parameters": centre, "parameters_sd": spread}


def fit(case: Case) -> Row:
    """Fits one guide, and compares it with the smoother."""
    import keras

    from bdl.svi import SVI, MeanField, Structured

    keras.backend.clear_session()
    y = series(case.seed)
    if case.story == "known":
        mean, variance, _ = smoother(y, PHI, Q, R)
        exact: Any = {"mean": mean, "sd": np.sqrt(variance)}
    else:
        exact = averaged(y)
    guide = Structured(chain="path") if case.guide == "structured" else MeanField()
    began = time.perf_counter()
    story = path_known if case.story == "known" else path_unknown
    model = SVI(story, guide, start=case.start, num_samples=NUM_SAMPLES, seed=case.seed)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, case.steps)))
    model.fit({"y": y[None].astype("float32")}, batch_size="all", steps=case.steps, verbose=0)
    seconds = time.perf_counter() - began
    mean, sd = moments(model.guide_of("path"), is_gaussian=case.story == "known")
    number = len(mean) - NUM_STEPS
    row = compared(mean[number:], sd[number:], exact["mean"], exact["sd"])
    if number:
        names = list(model.guide_of("path").sizes)[:2]
        order = [names.index(name) for name in ("q", "r")]
        also = compared(mean[order], sd[order], exact["parameters"], exact["parameters_sd"])
        row |= {f"parameters_{name}": value for name, value in also.items()}
    return {**row, "seconds": round(seconds, 1)}


def compared(mean: np.ndarray, sd: np.ndarray, exact_mean: np.ndarray, exact_sd: np.ndarray) -> Row:
    """Largest errors, and the mean factor by which standard deviations are too small."""
    return {
        "mean": float(np.max(np.abs(mean - exact_mean) / exact_sd)),
        "sd": float(100 * np.max(np.abs(sd / exact_sd - 1))),
        "factor": float(np.mean(exact_sd / sd)),
    }


def moments(guide: Any, is_gaussian: bool) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations: of a Gaussian by the draws that belong to unit vectors, otherwise of draws."""
    from keras import ops

    family, size = guide.distribution(), guide.size

    def drawn(noise: np.ndarray) -> np.ndarray:
        return ops.convert_to_numpy(family.draw(ops.convert_to_tensor(noise, dtype="float32"))).astype("float64")

    if is_gaussian:
        draws = drawn(np.concatenate([np.zeros((1, size)), np.eye(size)]))
        return draws[0], np.sqrt(((draws[1:] - draws[0]) ** 2).sum(0))
    random, draws = np.random.default_rng(0), []
    for _ in range(NUM_DRAWS // 4000):
        noise = random.standard_normal((2000, size))
        draws.append(drawn(np.concatenate([noise, -noise])))
    means = np.mean([each.mean(0) for each in draws], axis=0)
    return means, np.sqrt(np.mean([((each - means) ** 2).mean(0) for each in draws], axis=0))


def path_known(data: Any) -> Iterator[Any]:
    """The path alone."""
    from bdl.svi import Global, Observed

    path = yield Global("path", chain(Q))
    yield Observed("y", normal(path[None], R), data["y"])


def path_unknown(data: Any) -> Iterator[Any]:
    """The path, its noise and that of the observations."""
    from bdl.svi import Global, Observed

    q = yield Global("q", log_normal(-1.0, 1.0))
    r = yield Global("r", log_normal(0.0, 1.0))
    path = yield Global("path", chain(q))
    yield Observed("y", normal(path[None], r), data["y"])


def chain(q: Any) -> Any:
    """Of a path."""
    from bdl.svi import MarkovChain

    return MarkovChain(
        normal(0.0, q / np.sqrt(1 - PHI**2)), lambda previous, step: normal(PHI * previous, q), NUM_STEPS
    )


def normal(loc: Any, scale: Any) -> Any:
    """A normal distribution of the backend's library."""
    return _library().Normal(loc, scale)


def log_normal(loc: float, scale: float) -> Any:
    """A log-normal distribution of the backend's library."""
    return _library().LogNormal(loc, scale)


def _library() -> Any:
    import keras

    if keras.backend.backend() == "jax":
        import numpyro.distributions

        return numpyro.distributions
    import tensorflow_probability as tfp

    return tfp.distributions


@dataclass(frozen=True)
class SchoolsCase:
    """One fit of eight schools."""

    guide: str
    seed: int


@app.command()
def schools(
    data: Annotated[Path | None, typer.Option(help="Folder with posteriordb/*.npz; else BDL_DATA.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 3,
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = SCHOOLS,
) -> None:
    """Fits eight schools."""
    folder = folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    cases = [SchoolsCase(guide, seed) for seed in range(seeds) for guide in ("hierarchical", "full_rank")]
    run_all(partial(fit_schools, folder=folder), cases, results, 1, "jax")


def fit_schools(case: SchoolsCase, folder: Path) -> Row:
    """Fits one guide, and compares it with the reference draws."""
    import keras
    from svi_reference import weights_row
    from svi_stories import half_cauchy

    from bdl.svi import SVI, Global, Hierarchical, Observed

    keras.backend.clear_session()
    reference = posterior(folder, "eight_schools-eight_schools_noncentered")
    rows = {name: reference.data[name] for name in ("y", "sigma")}

    def story(data: Any) -> Iterator[Any]:
        mu = yield Global("mu", normal(0.0, 5.0))
        tau = yield Global("tau", half_cauchy(5.0))
        theta = yield Global("theta", normal(mu + np.zeros(8, "float32"), tau))
        yield Observed("y", normal(theta, data["sigma"]), data["y"])

    guide: Any = {("mu", "tau"): "full_rank", "theta": Hierarchical()} if case.guide == "hierarchical" else "full_rank"
    began = time.perf_counter()
    model = SVI(story, guide, num_samples=8, seed=case.seed)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-2, SCHOOLS_STEPS)))
    model.fit(rows, batch_size="all", steps=SCHOOLS_STEPS, verbose=0)
    seconds = time.perf_counter() - began
    draws = model.posterior(num_samples=NUM_DRAWS, seed=1000 + case.seed)
    kept = [number for number, name in enumerate(reference.names) if not name.startswith("theta_trans")]
    columns = []
    for name in (reference.names[number] for number in kept):
        site, _, index = name.partition("[")
        columns.append(draws[site][:, int(index.rstrip("]")) - 1] if index else draws[site])
    numbers = np.stack(columns, axis=1).astype("float64")
    row = compared(numbers.mean(0), numbers.std(0), reference.mean[kept], reference.sd[kept])
    place = [reference.names[number] for number in kept].index("tau")
    row["sd_but_tau"] = float(100 * np.max(np.abs(np.delete(numbers.std(0) / reference.sd[kept], place) - 1)))
    row |= weights_row(model.log_weights(rows, num_samples=4000, seed=2000 + case.seed))
    return {**row, "seconds": round(seconds, 1)}


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
    write: Annotated[bool, typer.Option(help="Put the table into benchmarks/README.md.")] = False,
) -> None:
    """Prints the table."""
    header = ["story", "guide", "start", "steps", "seeds", "path: mean", "sd", "factor"]
    header += ["parameters: mean", "sd", "factor", "seconds"]
    lines = []
    for key, rows in grouped(read(results), ["story", "guide", "start", "steps"]).items():
        cells = [str(each) for each in key] + [str(len(rows))]
        for prefix in ("", "parameters_"):
            for name, form in (("mean", "{:.3f}"), ("sd", "{:.1f} %"), ("factor", "{:.2f}")):
                values = [row[prefix + name] for row in rows if prefix + name in row]
                pick = np.mean if name == "factor" else np.max
                cells.append(form.format(pick(values)) if values else "")
        lines.append([*cells, f"{np.median([row['seconds'] for row in rows]):.0f}"])
    text = markdown(header, lines) + "\n\n" + schools_table()
    print(text)
    if write:
        replace_section(PAGE, "svi-structured", text)


def schools_table() -> str:
    """Eight schools: the largest error of a mean and of a standard deviation over seeds, k-hat, effective part."""
    lines = []
    for (guide,), rows in grouped(read(SCHOOLS), ["guide"]).items():
        worst = [max(row[name] for row in rows) for name in ("mean", "sd", "sd_but_tau")]
        usual = [float(np.mean([row[name] for row in rows])) for name in ("k_hat", "effective")]
        cells = [f"{worst[0]:.2f}", f"{worst[1]:.0f} %", f"{worst[2]:.0f} %", f"{usual[0]:.2f}", f"{usual[1]:.2f}"]
        lines.append([guide, str(len(rows)), *cells, f"{np.median([row['seconds'] for row in rows]):.0f}"])
    header = ["eight schools", "seeds", "mean", "sd", "sd but tau's", "k-hat", "effective", "seconds"]
    return markdown(header, lines)


if __name__ == "__main__":
    app()
