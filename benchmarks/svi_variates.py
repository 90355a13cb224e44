"""What takes noise off the gradients of Gaussian guides in `bdl.svi`, and what it costs.

Sums over a guide's variables of the variance over 400 draws, on the same rows and at the same place: of one draw, two
independent ones, a mirrored pair, and a pair with densities that stick the landing or with the quadratic control
variate (with both nothing changes but where the coefficients begin). Models: three of the public posterior database, a
Poisson regression with levels of groups, a dense network whose 49 weights are the latent numbers, and the globals of
the methylation story beside its recognition network. Times are of one gradient under XLA, the fastest of as many,
estimators in turn. It runs on TensorFlow.

    python benchmarks/svi_variates.py noise --data DIR           # resumable
    python benchmarks/svi_variates.py layers                     # diagonal coefficients, as dense layers would have
    python benchmarks/svi_variates.py fits --data DIR            # what the control variate changes in a fit; resumable
    python benchmarks/svi_variates.py report --write             # tables, into benchmarks/README.md
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import data as data_sets
import keras
import numpy as np
import typer
from keras import ops
from runs import markdown, replace_section
from svi_gradients import Data, folder_of
from svi_stories import MODELS

from bdl.elbo import elbo_parts
from bdl.svi import SVI, Global, Observed
from bdl.svi.control import ControlVariate
from bdl.svi.estimators import Estimator
from bdl.svi.rows import as_data, as_tensors

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "examples"))

import methylation  # noqa: E402

app = typer.Typer(add_completion=False)
RESULTS = HERE / "results" / "svi_variates.json"
PAGE = HERE / "README.md"
NUM_DRAWS, STAGES, RATE = 400, (1, 300), 1e-2
NUM_GROUPS, NUM_ROWS, HIDDEN = 8, 200, 16

ESTIMATORS: dict[str, tuple[int, bool, bool | None, bool]] = {  # draws, mirrored, sticking, control variate
    "one draw": (1, True, False, False),
    "two draws": (2, False, False, False),
    "mirrored": (2, True, False, False),
    "mirrored, sticks": (2, True, True, False),
    "mirrored, quadratic": (2, True, False, True),
    "one draw, quadratic": (1, True, False, True),
}


def poisson(data: Any) -> Iterator[Any]:
    """Counts by a feature and the level of their group."""
    import tensorflow_probability as tfp

    slopes = yield Global("slopes", tfp.distributions.Normal(np.zeros(2, "float32"), 2.0))
    levels = yield Global("levels", tfp.distributions.Normal(np.zeros(NUM_GROUPS, "float32"), 1.0))
    log_rate = slopes[0] + slopes[1] * data["x"] + ops.sum(data["group"] * levels, axis=-1)
    yield Observed("count", tfp.distributions.Poisson(log_rate=log_rate), data["count"])


def network(data: Any) -> Iterator[Any]:
    """A dense network of one hidden layer."""
    import tensorflow_probability as tfp

    weights = yield Global("weights", tfp.distributions.Normal(np.zeros(3 * HIDDEN + 1, "float32"), 1.0))
    first, offset, last = weights[:HIDDEN], weights[HIDDEN : 2 * HIDDEN], weights[2 * HIDDEN : 3 * HIDDEN]
    hidden = ops.tanh(data["x"][:, None] * first + offset)
    yield Observed("y", tfp.distributions.Normal(ops.sum(hidden * last, axis=-1) + weights[-1], 0.2), data["y"])


def counts() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    x, group = random.normal(size=NUM_ROWS), np.eye(NUM_GROUPS)[random.integers(NUM_GROUPS, size=NUM_ROWS)]
    rate = np.exp(0.5 + 0.4 * x + group @ random.normal(size=NUM_GROUPS))
    return {"x": x, "group": group, "count": random.poisson(rate).astype("float64")}


def curve() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.uniform(-3.0, 3.0, size=NUM_ROWS)
    return {"x": x, "y": np.sin(2.0 * x) + 0.2 * random.normal(size=NUM_ROWS)}


def loci(data: Path | None) -> dict[str, np.ndarray]:
    """Some of those of examples/methylation.py."""
    found = methylation.load(folder_of(data))
    kept = np.random.default_rng(0).permutation(len(found["coverage"]))[:1000]
    return {name: values[kept] for name, values in found.items()}


@dataclass(frozen=True)
class Case:
    """A model, its guides, and where a fit begins.

    Args:
        story: The model.
        read: Its rows.
        guides: By name.
        start: Where a fit begins.
    """

    story: Callable[..., Any]
    read: Callable[[], Any]
    guides: dict[str, Callable[[], Any]]
    start: Any = "laplace"

    def model(self, guide: str, **settings: Any) -> SVI:
        """Compiled, with a pair of draws."""
        model = SVI(self.story, self.guides[guide](), start=self.start, **{"num_samples": 2, "seed": 0, **settings})
        model.compile(keras.optimizers.Adam(RATE))
        return model


BOTH = {name: functools.partial(str, name) for name in ("mean_field", "full_rank")}


def cases(data: Path | None) -> dict[str, Case]:
    """By name."""

    def of_database(name: str) -> Case:
        told = MODELS[name]
        return Case(told.story, lambda: told.rows(data_sets.posterior(folder_of(data), told.name).data), BOTH)

    start = {"weights": np.random.default_rng(1).normal(size=3 * HIDDEN + 1)}
    return {
        **{name: of_database(name) for name in ("kidiq", "arK", "eight_schools")},
        "Poisson regression": Case(poisson, counts, BOTH),
        "dense network": Case(network, curve, {"mean_field": BOTH["mean_field"]}, start),
        "methylation": Case(
            methylation.story,
            functools.partial(loci, data),
            {"full_rank": lambda: methylation.model_of(0).requested_guide},
            "prior",
        ),
    }


@contextlib.contextmanager
def independent() -> Iterator[None]:
    """Within this context no noise is mirrored."""
    kept = Estimator._noise
    Estimator._noise = lambda self, *given: kept(self, *given[:-1], False)
    try:
        yield
    finally:
        Estimator._noise = kept


class Gradients:
    """Gradients of a model's objective on the same rows, compiled, in the variables of a guide and its control variate.

    Args:
        model: Traced or fitted.
        x: The rows.
        estimator: As in `ESTIMATORS`.
    """

    def __init__(self, model: SVI, x: Any, estimator: tuple[int, bool, bool | None, bool]) -> None:
        import tensorflow as tf

        draws, is_mirrored, sticks, is_controlled = estimator
        batch = as_tensors(as_data(x, model.compute_dtype), model.compute_dtype)
        place = next(place for place, guide in enumerate(model.guides) if not guide.is_local)
        guide, control = model.guides[place], model.controls[place]
        weights = [*guide.trainable_weights, *([control.level, control.slope] if is_controlled else [])]
        held = [None] * len(model.controls)

        @tf.function(jit_compile=True, autograph=False)
        def gradient() -> Any:
            with tf.GradientTape() as tape:
                kept, model.controls = model.controls, model.controls if is_controlled else held
                model.num_samples, model.sticking = draws, sticks
                with contextlib.nullcontext() if is_mirrored else independent():
                    [terms] = model(batch, training=True)
                model.controls = kept
                total, local = sum(terms["global"].values(), ops.zeros(())), terms["local"]
                local_kl = sum(local.values()) if local else None
                loss = elbo_parts(terms["nll"], total, model.progress.size, 1.0, local_kl).loss
            found = tape.gradient(loss, [weight.value for weight in weights])
            parts = [ops.reshape(each, (-1,)) for each in found]
            count = len(guide.trainable_weights)
            return ops.concatenate(parts[:count]), ops.concatenate(parts[count:] or [ops.zeros((0,))])

        self.gradient = gradient


def compared(model: SVI, estimators: dict[str, Gradients], is_sticky: bool) -> dict[str, dict[str, float]]:
    """Sum of the variances and the least time of each, in turn.

    Args:
        model: At the place.
        estimators: By name.
        is_sticky: Whether the coefficients were learned of densities that stick, of which C is less by I.
    """
    control = next(each for each in model.controls if each is not None)
    learned = ops.convert_to_numpy(control.slope)
    control.slope.assign(learned + float(is_sticky) * np.eye(len(learned)))  # densities do not stick here
    draws: dict[str, list[np.ndarray]] = {name: [] for name in estimators}
    times: dict[str, list[float]] = {name: [] for name in estimators}
    for number in range(NUM_DRAWS + 1):
        for name, each in estimators.items():
            began = time.perf_counter()
            found = each.gradient()[0].numpy()
            if number:  # the first is compiled
                times[name].append(1e3 * (time.perf_counter() - began))
                draws[name].append(found)
    control.slope.assign(learned)
    return {
        name: {"variance": float(np.var(draws[name], axis=0, ddof=1).sum()), "ms": min(times[name])} for name in draws
    }


def stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def store(name: str, figures: Any) -> None:
    RESULTS.write_text(json.dumps({**stored(), name: figures}, indent=1) + "\n")


@app.command()
def noise(data: Data = None, models: Annotated[str, typer.Option(help="Models; default: all.")] = "") -> None:
    """Noise and cost of each estimator; rows that are there already are left out."""
    rows = stored().get("noise", [])
    for name, case in cases(data).items():
        for guide in case.guides:
            known = any((row["model"], row["guide"]) == (name, guide) for row in rows)
            if not known and (not models or name in models.split(",")):
                rows += _stages(name, guide, case)
                store("noise", rows)


def _stages(name: str, guide: str, case: Case) -> list[dict[str, Any]]:
    x, model = case.read(), case.model(guide, control_variate="quadratic")
    rows, done = [], 0
    estimators: dict[str, Gradients] = {}
    for steps in STAGES:
        model.num_samples, model.sticking = 2, None
        model.fit(x, batch_size="all", steps=steps - done, verbose=0)
        done = steps
        estimators = estimators or {key: Gradients(model, x, each) for key, each in ESTIMATORS.items()}
        row = {"model": name, "guide": guide, "steps": steps, **compared(model, estimators, guide == "full_rank")}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


@app.command()
def layers(stages: str = "300,3000", draws: int = 4000) -> None:
    """Coefficients in the dense network, whose diagonal alone would be as many as a layer has weights."""
    case = cases(None)["dense network"]
    x, model = case.read(), case.model("mean_field", control_variate="quadratic")
    rows: list[dict[str, Any]] = []
    done, pair = 0, None
    for steps in map(int, stages.split(",")):
        model.fit(x, batch_size="all", steps=steps - done, verbose=0)
        done, control = steps, model.controls[0]
        assert control is not None
        pair = pair or Gradients(model, x, ESTIMATORS["mirrored, quadratic"])
        row = {"weights": control.size, "steps": steps, **_with_coefficients(pair, control, len(x["y"]), draws)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    store("layers", rows)


def _with_coefficients(pair: Gradients, control: ControlVariate, num_rows: int, draws: int) -> dict[str, float]:
    """Sums of variances: as the fit has left the coefficients, without any, and with those of least squares."""
    learned = control.get_weights()
    figures, (level, slope) = {"learned": _variance(pair)}, (np.zeros_like(each) for each in learned)
    control.set_weights([level, slope])
    figures["none"] = _variance(pair)
    for _ in range(3):  # by whole steps, for the noise has the covariance I; the loss is that per row
        found = num_rows * np.mean([pair.gradient()[1].numpy() for _ in range(draws)], axis=0)
        level, slope = level - found[: len(level)], slope - found[len(level) :].reshape(slope.shape)
        control.set_weights([level, slope])
    figures["least squares"] = _variance(pair)
    control.set_weights([level, np.diag(np.diag(slope))])
    figures["diagonal"] = _variance(pair)
    control.set_weights(learned)
    return figures


def _variance(gradients: Gradients) -> float:
    draws = [gradients.gradient()[0].numpy() for _ in range(2 * NUM_DRAWS)]
    return float(np.var(draws, axis=0, ddof=1).sum())


@app.command()
def fits(
    data: Data = None, models: str = "kidiq,arK,Poisson regression", steps: int = 1000, num_seeds: int = 3
) -> None:
    """Mean-field fits of a pair of draws against one of 64 draws and four times as many steps; resumable."""
    rows = stored().get("fits", [])
    for name in models.split(","):
        if any(row["model"] == name for row in rows):
            continue
        case = cases(data)[name]
        best = _fitted(case, 4 * steps, num_samples=64, sticking=True, control_variate="quadratic")[:2]
        for kind, settings in FITS.items():
            found = [_fitted(case, steps, seed=seed, **settings) for seed in range(num_seeds)]
            gaps = np.array([[*(mean - best[0]) / best[1], *np.log(sd / best[1])] for mean, sd, _ in found])
            size = gaps.shape[1] // 2
            each = [np.sqrt((part**2).mean(axis=1)) for part in (gaps[:, :size], gaps[:, size:])]
            seconds = [row[2] for row in found]
            row = {"model": name, "kind": kind, "steps": steps, "seconds": float(np.median(seconds))}
            row |= {"mean": each[0].tolist(), "log sd": each[1].tolist()}
            print(json.dumps(row), flush=True)
            rows.append(row)
        store("fits", rows)


FITS: dict[str, dict[str, Any]] = {
    "mirrored": {},
    "sticks": {"sticking": True},
    "quadratic": {"control_variate": "quadratic"},
    "eight draws": {"num_samples": 8},
}


def _fitted(case: Case, steps: int, **settings: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """Means and standard deviations of a mean-field guide, and the seconds of all steps but the first."""
    x, model = case.read(), case.model("mean_field", **settings)
    model.fit(x, batch_size="all", steps=1, verbose=0)
    began = time.perf_counter()
    model.fit(x, batch_size="all", steps=steps - 1, verbose=0)
    seconds = time.perf_counter() - began
    found = model.guides[0].distribution()
    return ops.convert_to_numpy(found.mean), ops.convert_to_numpy(found.factor), seconds


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints what is stored."""
    found = stored()
    text = "\n\n".join([_noise_table(found["noise"]), _layers_table(found["layers"]), _fits_table(found["fits"])])
    print(text)
    if write:
        replace_section(PAGE, "svi_variates", text)


def _noise_table(rows: list[dict[str, Any]]) -> str:
    kinds = [name for name in ESTIMATORS if name != "two draws"]
    lines = []
    for row in rows:
        base, cells = row["two draws"], []
        for kind in kinds:
            if row["model"] == "methylation" and kind.startswith("one"):
                cells.append("")  # local sites have a pair at least
                continue
            cells.append(f"{base['variance'] / row[kind]['variance']:.3g} ({row[kind]['ms'] / base['ms']:.2f})")
        lines.append([row["model"], row["guide"], str(row["steps"]), f"{base['variance']:.2g}", *cells])
    return markdown(["model", "guide", "steps", "two draws: variance", *kinds], lines)


def _layers_table(rows: list[dict[str, Any]]) -> str:
    kinds = ("diagonal", "learned", "least squares")
    lines = [
        [str(row["weights"]), str(row["steps"]), *(f"{row['none'] / row[kind]:.2f}" for kind in kinds)] for row in rows
    ]
    return markdown(["dense network: weights", "steps", *(f"{kind}: ratio" for kind in kinds)], lines)


def _fits_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            row["model"],
            row["kind"],
            *(f"{np.mean(row[key]):.4f} ({min(row[key]):.4f} to {max(row[key]):.4f})" for key in ("mean", "log sd")),
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    return markdown(["model", "fit", "mean: distance, sd", "log sd: distance", "seconds"], lines)


if __name__ == "__main__":
    app()
