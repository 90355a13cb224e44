"""`bdl.optimizers.IVON`: parity with the authors' package, cost of a step, and test NLL against Adam.

    python benchmarks/optimizer_ivon.py parity              # needs the package ivon-opt and KERAS_BACKEND=torch
    python benchmarks/optimizer_ivon.py speed               # once for each backend, by KERAS_BACKEND
    python benchmarks/optimizer_ivon.py quality --data DIR  # resumable
    python benchmarks/optimizer_ivon.py report --write      # tables, into benchmarks/README.md

Quality: each method's rate is the one of three with the lowest mean validation NLL over the seeds; the test part is
read once. Adam is the deterministic twin. It also stops at the best fifth epoch of the validation data, by which it
reads those more often than IVON does. Intervals are standard errors over the seeds, each with a split and initial
weights of its own.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import data as data_sets
import keras
import numpy as np
import typer
from runs import markdown, read, replace_section, run_all

import bdl

HERE = Path(__file__).parent
app = typer.Typer(add_completion=False)
QUALITY = HERE / "results" / "ivon_quality.jsonl"
FIGURES = HERE / "results" / "ivon.json"
PAGE = HERE / "README.md"
Data = Annotated[Path | None, typer.Option(help="Folder with uci and fashion_mnist; default: that of BDL_DATA.")]
SETS = {"digits": (32, 50), "energy": (32, 60), "concrete": (32, 60), "fashion": (64, 20)}
"""Batch size and epochs."""
RATES = {"adam": (1e-3, 3e-3, 1e-2), "ivon": (0.03, 0.1, 0.3), "fully_gaussian": (3e-3,)}
SEEDS = (0, 1, 2)
EVERY = 5
"""Epochs from one look at the validation data to the next."""
FASHION_ROWS = 4000
PARITY_STEPS = 100
ROUNDS, STEPS = 9, 40


@dataclass(frozen=True)
class Case:
    """One training."""

    name: str
    method: str
    rate: float
    seed: int
    folder: str = ""


@app.command()
def parity() -> None:
    """One hundred steps of a small network beside those of the authors' package, with the same noise."""
    import ivon
    import torch

    if keras.backend.backend() != "torch":
        raise SystemExit("Run it with KERAS_BACKEND=torch.")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 4)).astype("float32"), random.normal(size=(200, 1)).astype("float32")
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    weights = [torch.nn.Parameter(torch.tensor(each)) for each in network.get_weights()]
    settings: dict[str, Any] = {"beta1": 0.9, "beta2": 0.995, "hess_init": 0.5, "weight_decay": 1.0 / 200, "ess": 200.0}
    published = ivon.IVON(weights, lr=0.1, **settings)
    ours = bdl.optimizers.IVON(0.1, beta_2=0.995, initial_hessian=0.5, seed=0)
    ours.build(network.trainable_variables)
    ours.read_model(SimpleNamespace(num_examples=200, temperature=1.0))
    worst = 0.0
    for _ in range(PARITY_STEPS):
        rows = torch.tensor(random.integers(0, 200, 32))
        with ours.step() as (noise, _kl):
            given = torch.cat([each.flatten() for each in noise])
            published._sample_params = lambda given=given: (torch.cat([w.data.flatten() for w in weights]), given)
            with published.sampled_params(train=True):
                for weight, each in zip(weights, noise, strict=True):
                    weight.data = weight.data + each
                hidden = torch.tanh(torch.tensor(x)[rows] @ weights[0] + weights[1])
                error = hidden @ weights[2] + weights[3] - torch.tensor(y)[rows]
                published.zero_grad()
                (0.5 * error.square().mean()).backward()
            gradients = [weight.grad.clone() for weight in weights]
            with torch.no_grad():
                ours.apply(gradients, network.trainable_variables)
        published.step()
        apart = max(float((w.data - v.value.data).abs().max()) for w, v in zip(weights, ours.means, strict=True))
        worst = max(worst, apart)
    hessian = torch.cat([v.value.flatten() for v in ours.hessians])
    apart = float(((published.param_groups[0]["hess"] - hessian) / hessian).abs().max().detach())
    _keep("parity", {"steps": PARITY_STEPS, "largest_difference_of_a_mean": worst, "relative_of_a_hessian": apart})


@app.command()
def speed() -> None:
    """Time of a step beside that of a twin with DenseReparameterization and Adam, in turns, ratio by round."""
    random = np.random.default_rng(0)
    rows = {}
    for width, batch in ((128, 32), (512, 128)):
        x, y = random.normal(size=(batch, 784)).astype("float32"), random.integers(0, 10, batch)
        dense, sampled = keras.layers.Dense, bdl.layers.DenseReparameterization
        plain = keras.Sequential([keras.Input((784,)), dense(width, "relu"), dense(width, "relu"), dense(10)])
        noisy = keras.Sequential(
            [keras.Input((784,)), sampled(width, activation="relu"), sampled(width, activation="relu"), sampled(10)]
        )
        likelihood = bdl.likelihoods.Categorical()
        ivon = bdl.VariationalModel(plain, likelihood, batch, optimizer_posterior=True)
        ivon.compile(bdl.optimizers.IVON(0.1))
        adam = bdl.VariationalModel(noisy, likelihood, batch, kl_weight=1.0)
        adam.compile("adam")
        times: dict[str, list[float]] = {"ivon": [], "reparameterized": []}
        for turn in range(ROUNDS + 1):
            for name, model in (("ivon", ivon), ("reparameterized", adam)):
                model.train_on_batch(x, y)
                start = time.perf_counter()
                for _ in range(STEPS):
                    model.train_on_batch(x, y)
                if turn:
                    times[name].append((time.perf_counter() - start) / STEPS * 1e3)
        ratios = sorted(a / b for a, b in zip(times["ivon"], times["reparameterized"], strict=True))
        rows[f"784-{width}-{width}-10, batch {batch}"] = {
            "ivon_ms": statistics.median(times["ivon"]),
            "reparameterized_ms": statistics.median(times["reparameterized"]),
            "ratio": statistics.median(ratios),
            "low": ratios[1],
            "high": ratios[-2],
        }
    _keep(f"speed_{keras.backend.backend()}", rows)


@app.command()
def quality(data: Data = None, workers: int = 1) -> None:
    """Trains all cases that are not in the results yet."""
    folder = data_sets.folder_of(data)
    names = list(SETS) if folder is not None else ["digits"]
    methods = {name: [*RATES] if name == "digits" else ["adam", "ivon"] for name in names}
    cases = [
        Case(name, method, rate, seed)
        for name in names
        for method in methods[name]
        for rate in RATES[method]
        for seed in SEEDS
    ]
    if folder is not None:
        import os

        os.environ["BDL_DATA"] = str(folder)  # which the workers read: a path is no part of a case
    run_all(trained, cases, QUALITY, workers)


def parts_of(name: str, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training, validation and test part of a data set; inputs, and targets of a regression, are standardised."""
    random = np.random.default_rng(seed)
    folder = data_sets.folder_of(None)
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        x, y = (digits.data / 16.0).astype("float32"), digits.target
    elif name == "fashion":
        x, y, x_test, y_test = data_sets.fashion_mnist(folder)
        order = random.permutation(len(x))[:FASHION_ROWS]
        x, x_test = (each.reshape(len(each), -1).astype("float32") for each in (x[order], x_test))
        largest = max(float(x.max()), 1.0)
        cut = FASHION_ROWS * 4 // 5
        y = y[order]
        return [(x[:cut] / largest, y[:cut]), (x[cut:] / largest, y[cut:]), (x_test / largest, y_test)]
    else:
        x, y = data_sets.uci(folder, name)
    order = random.permutation(len(x))
    first, second = len(x) * 6 // 10, len(x) * 8 // 10
    train, held, test = order[:first], order[first:second], order[second:]
    if name != "digits":
        x, y = data_sets.standardised(x, x[train]), data_sets.standardised(y, y[train])
    return [(x[rows], y[rows]) for rows in (train, held, test)]


def trained(case: Case) -> dict[str, Any]:
    """Validation and test NLL of one training, in nats per example of the standardised targets."""
    (x, y), held, test = parts_of(case.name, case.seed)
    batch, epochs = SETS[case.name]
    keras.utils.set_random_seed(case.seed)
    is_class = case.name in ("digits", "fashion")
    hidden = (128,) if is_class else (50,)
    network = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            *(keras.layers.Dense(n, "relu") for n in hidden),
            keras.layers.Dense(10 if is_class else 1),
        ]
    )
    likelihood = bdl.likelihoods.Categorical() if is_class else bdl.likelihoods.Normal()
    start, steps = time.perf_counter(), len(x) // batch
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {"batch_size": batch, "epochs": epochs, "verbose": 0}
    if case.method == "adam":
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a deterministic network, as this one is to be
            model = bdl.VariationalModel(network, likelihood, kl_weight=1.0)
        model.compile(keras.optimizers.Adam(case.rate), steps_per_execution=steps)
        best = _Best(held)
        model.fit(x, y, **settings, callbacks=[best])
        found |= _scores(model, held, test, 1)
        model.set_weights(best.weights)
        found |= {f"stopped_{name}": value for name, value in _scores(model, held, test, 1).items()}
    elif case.method == "ivon":
        model = bdl.VariationalModel(network, likelihood, optimizer_posterior=True)
        model.compile(bdl.optimizers.IVON(case.rate, seed=case.seed), steps_per_execution=steps)
        model.fit(x, y, **settings)
        found |= _scores(model, held, test, 64)
    else:
        model = bdl.recipes.fully_gaussian(network, likelihood, seed=case.seed)
        model.fit(x, y, **settings)
        found |= _scores(model, held, test, 64)
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


class _Best(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the lowest validation NLL."""

    def __init__(self, held: tuple[np.ndarray, np.ndarray]) -> None:
        super().__init__()
        self._held, self._lowest, self.weights = held, np.inf, None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % EVERY:
            return
        nll = self.model.evaluate(*self._held, batch_size=512, verbose=0, return_dict=True)["nll"]
        if nll < self._lowest:
            self._lowest, self.weights = nll, self.model.get_weights()


def _scores(model: Any, held: Any, test: Any, samples: int) -> dict[str, float]:
    found = {}
    for name, (x, y) in (("held", held), ("test", test)):
        prediction = model.predict_distribution(x, num_samples=samples, batch_size=512, seed=0)
        found[f"{name}_nll"] = -float(np.mean(prediction.log_prob(y)))
        if hasattr(prediction, "probabilities"):
            found[f"{name}_accuracy"] = float(np.mean(prediction.probabilities.argmax(-1) == y))
    return found


@app.command()
def report(write: bool = False) -> None:
    """Prints the tables."""
    figures = json.loads(FIGURES.read_text())
    lines = [
        "Parity over {steps} steps: means differ by at most {largest_difference_of_a_mean:.1e}, Hessians by "
        "{relative_of_a_hessian:.1e} of themselves.".format(**figures["parity"]),
        "",
    ]
    table = [
        [
            backend,
            name,
            f"{row['ivon_ms']:.2f}",
            f"{row['reparameterized_ms']:.2f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
        ]
        for backend in ("tensorflow", "jax")
        for name, row in figures.get(f"speed_{backend}", {}).items()
    ]
    lines += [markdown(["backend", "network", "IVON, ms a step", "reparameterized", "ratio"], table), ""]
    rows = read(QUALITY)
    table = []
    for name in SETS:
        for label, method, prefix in _CONTESTANTS:
            mine = [row for row in rows if (row["name"], row["method"]) == (name, method)]
            if not mine:
                continue
            rate = min(
                RATES[method], key=lambda rate: np.mean([r[f"{prefix}held_nll"] for r in mine if r["rate"] == rate])
            )
            chosen = [row for row in mine if row["rate"] == rate]
            nll = [row[f"{prefix}test_nll"] for row in chosen]
            accuracy = [row.get(f"{prefix}test_accuracy", np.nan) for row in chosen]
            table.append([name, label, f"{rate:g}", _spread(nll), "" if np.isnan(accuracy[0]) else _spread(accuracy)])
    lines.append(markdown(["data", "method", "rate", "test NLL", "accuracy"], table))
    text = "\n".join(lines)
    print(text)
    if write:
        replace_section(PAGE, "ivon", text)


_CONTESTANTS = (
    ("Adam, last epoch", "adam", ""),
    ("Adam, best epoch", "adam", "stopped_"),
    ("IVON", "ivon", ""),
    ("fully_gaussian", "fully_gaussian", ""),
)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


def _keep(name: str, figures: Any) -> None:
    kept = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    FIGURES.write_text(json.dumps({**kept, name: figures}, indent=1, sort_keys=True) + "\n")
    print(json.dumps({name: figures}, indent=1))


if __name__ == "__main__":
    app()
