"""`bdl.optimizers.IVON`: parity with the authors' package, cost of a step, and test NLL against Adam.

    python benchmarks/optimizer_ivon.py parity              # needs the package ivon-opt and KERAS_BACKEND=torch
    python benchmarks/optimizer_ivon.py speed               # once for each backend, by KERAS_BACKEND
    python benchmarks/optimizer_ivon.py quality --data DIR  # resumable
    python benchmarks/optimizer_ivon.py report --write      # tables, into benchmarks/README.md

Quality: Adam trains the deterministic twin. Each method has eight settings, and its own is the one with the lowest
mean validation NLL over the seeds: rate and weight decay of Adam; rate, prior and memory of the Hessian of IVON. Every
rate falls to zero along half a cosine. Both are judged after the last epoch, and at the best fifth of the training by
the same validation data. The test part chooses nothing. Intervals are standard errors over the seeds, each with a split
and initial weights of its own; those of differences are paired.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import data as data_sets
import keras
import numpy as np
import typer
from runs import Row, markdown, read, replace_section, run_all

import bdl

HERE = Path(__file__).parent
app = typer.Typer(add_completion=False)
QUALITY = HERE / "results" / "ivon_quality.jsonl"
FIGURES = HERE / "results" / "ivon.json"
PAGE = HERE / "README.md"
Data = Annotated[Path | None, typer.Option(help="Folder with uci and fashion_mnist; default: that of BDL_DATA.")]
SETS = {"digits": (32, 50), "energy": (32, 60), "concrete": (32, 60), "fashion": (64, 20)}
"""Batch size and epochs."""
SETTINGS: dict[str, list[dict[str, float]]] = {
    "adam": [{"rate": rate, "weight_decay": decay} for rate in (1e-3, 3e-3, 1e-2, 3e-2) for decay in (0.0, 0.1)],
    "ivon": [
        {"rate": rate, "prior_scale": prior, "beta_2": memory}
        for rate in (0.3, 1.0)
        for prior in (1.0, 3.0)
        for memory in (0.999, 0.9999)
    ],
    "fully_gaussian": [{}],
}
SEEDS = (10, 11, 12)
LOOKS = 5
"""At the validation data, spread evenly over the epochs."""
DRAWS = 32
"""Of a prediction."""
FASHION_ROWS, FASHION_TEST_ROWS = 4000, 2000
PARITY_STEPS = 100
ROUNDS, STEPS = 9, 40


@dataclass(frozen=True)
class Case:
    """One training."""

    name: str
    method: str
    seed: int
    rate: float = 0.0
    weight_decay: float = 0.0
    prior_scale: float = 1.0
    beta_2: float = 0.9999


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
    """CPU time of a step beside that of a twin with DenseReparameterization and Adam, in turns, ratio by round."""
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
                start = time.process_time()
                for _ in range(STEPS):
                    model.train_on_batch(x, y)
                if turn:
                    times[name].append((time.process_time() - start) / STEPS * 1e3)
        ratios = sorted(a / b for a, b in zip(times["ivon"], times["reparameterized"], strict=True))
        rows[f"784-{width}-{width}-10, batch {batch}"] = {
            "ivon_ms": statistics.median(times["ivon"]),
            "reparameterized_ms": statistics.median(times["reparameterized"]),
            "ratio": statistics.median(ratios),
            "low": ratios[1],
            "high": ratios[-2],
            "clock": "CPU",
        }
        _keep(f"speed_{keras.backend.backend()}", rows)


@app.command()
def quality(data: Data = None, workers: int = 1) -> None:
    """Trains all cases that are not in the results yet."""
    folder = data_sets.folder_of(data)
    names = list(SETS) if folder is not None else ["digits"]
    cases = [
        Case(name, method, seed, **settings)
        for name in names
        for method in SETTINGS
        if method != "fully_gaussian" or name == "digits"
        for settings in SETTINGS[method]
        for seed in SEEDS
    ]
    if folder is not None:
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
        test = (x_test[:FASHION_TEST_ROWS] / largest, y_test[:FASHION_TEST_ROWS])
        return [(x[:cut] / largest, y[:cut]), (x[cut:] / largest, y[cut:]), test]
    else:
        x, y = data_sets.uci(folder, name)
    order = random.permutation(len(x))
    first, second = len(x) * 6 // 10, len(x) * 8 // 10
    train, held, test = order[:first], order[first:second], order[second:]
    if name != "digits":
        x, y = data_sets.standardised(x, train), data_sets.standardised(y, train)
    return [(x[rows], y[rows]) for rows in (train, held, test)]


def trained(case: Case) -> dict[str, Any]:
    """Validation and test NLL of one training at each look, in nats per example of the standardised targets."""
    (x, y), held, test = parts_of(case.name, case.seed)
    batch, epochs = SETS[case.name]
    keras.utils.set_random_seed(case.seed)
    is_class = case.name in ("digits", "fashion")
    network = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Dense(128 if is_class else 50, "relu"),
            keras.layers.Dense(10 if is_class else 1),
        ]
    )
    likelihood = bdl.likelihoods.Categorical() if is_class else bdl.likelihoods.Normal()
    start, steps, rate = time.perf_counter(), -(-len(x) // batch), bdl.schedules.DecayOverFit(case.rate or 1.0)
    if case.method == "adam":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a deterministic network, as this one is to be
            model = bdl.VariationalModel(network, likelihood, kl_weight=1.0)
        adam = keras.optimizers.Adam(rate, weight_decay=case.weight_decay or None)
        model.compile(adam, steps_per_execution=steps)
    elif case.method == "ivon":
        model = bdl.VariationalModel(network, likelihood, optimizer_posterior=True)
        ivon = bdl.optimizers.IVON(rate, prior_scale=case.prior_scale, beta_2=case.beta_2, seed=0)
        model.compile(ivon, steps_per_execution=steps)
    else:
        model = bdl.recipes.fully_gaussian(network, likelihood, seed=case.seed)
    looks = _Looks(held, test, epochs // LOOKS, 1 if case.method == "adam" else DRAWS)
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=[looks])
    return {**looks.found, "seconds": round(time.perf_counter() - start, 1)}


class _Looks(keras.callbacks.Callback):
    """Scores on validation and test data in the course of a training."""

    def __init__(self, held: Any, test: Any, every: int, draws: int) -> None:
        super().__init__()
        self._sets, self._every, self._draws = {"held": held, "test": test}, every, draws
        self.found: dict[str, list[float]] = defaultdict(list)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % self._every:
            return
        for name, (x, y) in self._sets.items():
            prediction = self.model.predict_distribution(x, num_samples=self._draws, batch_size=512, seed=0)
            self.found[f"{name}_nll"].append(-float(np.mean(prediction.log_prob(y))))
            if hasattr(prediction, "probabilities"):
                right = prediction.probabilities.argmax(-1) == y
                self.found[f"{name}_accuracy"].append(float(np.mean(right)))


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
            row["clock"],
            f"{row['ivon_ms']:.2f}",
            f"{row['reparameterized_ms']:.2f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
        ]
        for backend in ("tensorflow", "jax")
        for name, row in figures.get(f"speed_{backend}", {}).items()
    ]
    lines += [markdown(["backend", "network", "clock", "IVON, ms a step", "reparameterized", "ratio"], table), ""]
    lines += [_quality_table(read(QUALITY))]
    text = "\n".join(lines)
    print(text)
    if write:
        replace_section(PAGE, "ivon", text)


def _quality_table(rows: list[Row]) -> str:
    table = []
    for name in SETS:
        for rule in ("last", "best"):
            chosen = {method: _chosen(rows, name, method, rule) for method in SETTINGS}
            adam = chosen["adam"]
            for method, mine in chosen.items():
                if not mine or not adam:
                    continue
                change = [] if method == "adam" else [a - b for a, b in zip(mine.nll, adam.nll, strict=True)]
                behind = [] if method == "adam" else [b - a for a, b in zip(mine.accuracy, adam.accuracy, strict=True)]
                cells = [_spread(each) for each in (mine.nll, change, mine.accuracy, behind)]
                table.append([name, method, rule, mine.settings, *cells])
    header = ["data", "method", "epoch", "settings", "test NLL", "above Adam's", "accuracy", "below Adam's"]
    return markdown(header, table)


@dataclass(frozen=True)
class _Chosen:
    """Test scores of the settings that the validation data chose, by seed."""

    settings: str
    nll: list[float]
    accuracy: list[float]


def _chosen(rows: list[Row], name: str, method: str, rule: str) -> _Chosen | None:
    """The best settings of a method by validation NLL, judged at the last look or at the best one of each training."""
    mine = [row for row in rows if (row["name"], row["method"]) == (name, method)]
    found = []
    for settings in SETTINGS[method]:
        same = [row for row in mine if all(row[key] == value for key, value in settings.items())]
        if [row["seed"] for row in sorted(same, key=lambda row: row["seed"])] != list(SEEDS):
            continue
        same.sort(key=lambda row: row["seed"])
        looks = [-1 if rule == "last" else int(np.argmin(row["held_nll"])) for row in same]

        def at(key: str, same: list[Row] = same, looks: list[int] = looks) -> list[float]:
            return [row[key][look] for row, look in zip(same, looks, strict=True) if key in row]

        text = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        held = float(np.mean(at("held_nll")))  # not a number where a training diverged
        found.append((held if np.isfinite(held) else np.inf, text, at("test_nll"), at("test_accuracy")))
    if not found:
        return None
    _, text, nll, accuracy = min(found, key=lambda each: each[0])
    return _Chosen(f"{text} (best of {len(found)})" if len(found) > 1 else text, nll, accuracy)


def _spread(values: list[float]) -> str:
    return "" if not values else f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


def _keep(name: str, figures: Any) -> None:
    kept = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    FIGURES.write_text(json.dumps({**kept, name: figures}, indent=1, sort_keys=True) + "\n")
    print(json.dumps({name: figures}, indent=1))


if __name__ == "__main__":
    app()
