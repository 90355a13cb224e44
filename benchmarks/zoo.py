"""The labelled zoo: many short trainings with a known cause, half to set thresholds, half to score the verdicts.

Each run trains a network on a real data set with a `TrainingHealth` callback, then `diagnose`s it with the
deterministic twin. A run's label is what was done to it; where two verdicts are right (a wide network whose weights
mostly match their prior is healthy or variance-saturated), both count. Seeds of even number set thresholds, odd ones
score.

    python benchmarks/zoo.py run --output zoo.jsonl     # goes on where it was interrupted, on two processes
    python benchmarks/zoo.py score zoo.jsonl
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

app = typer.Typer(add_completion=False)

DATA_SETS = ("digits", "breast_cancer", "wine", "diabetes")
BATCH_SIZE = 32
# Epochs so that every data set has about the same number of steps.
EPOCHS = {"digits": 50, "breast_cancer": 100, "wine": 200, "diabetes": 100}


@dataclass(frozen=True)
class Case:
    """One run: what is done, to what, and which verdicts are right.

    Args:
        kind: What is done.
        right: Verdicts that are right.
        data: Data set.
        width: Of both hidden layers.
        activation: Of both.
        seed: Of split, initial weights and noise.
    """

    kind: str
    right: tuple[str, ...]
    data: str
    width: int
    activation: str = "relu"
    seed: int = 0

    @property
    def key(self) -> str:
        """Its identity in the results."""
        return f"{self.kind}/{self.data}/{self.width}/{self.activation}/{self.seed}"


def cases(seeds: Iterable[int]) -> Iterator[Case]:
    """The whole zoo."""
    healthy, wide = ("healthy",), ("healthy", "variance_saturated")
    for seed in seeds:
        for data in DATA_SETS:
            for kind, right, width in (
                ("rank1", healthy, 32),
                ("rank1", healthy, 256),
                ("default", wide, 32),
                ("default", wide, 128),
                ("rank1_wide" if data != "breast_cancer" else "default_wide", wide, 512),
                ("dropout", healthy, 64),
                ("rank1_noisy", healthy, 64),
                ("rank1_tiny", healthy, 32),
            ):
                yield Case(kind, right, data, width, "tanh" if seed % 3 == 2 else "relu", seed)
            for kind in (
                ()
                if data in ("digits", "breast_cancer")
                else ("times_N", "times_10", "tenth", "thousandth", "declared_10")
            ):
                yield Case(kind, ("mis_scaled_kl",), data, 32, "relu", seed)
            for kind in (
                () if data in ("digits", "breast_cancer") else ("missing", "doubled", "one_missing", "one_doubled")
            ):
                yield Case(kind, ("accounting_error",), data, 32, "relu", seed)
            # At a rate of 1e-5 the scales are where they were as well.
            yield Case("slow", ("still_training", "scales_not_learned"), data, 32, "relu", seed)
            yield Case("few_steps", ("still_training",), data, 32, "relu", seed)
            yield Case("nan", ("diverged",), data, 32, "relu", seed)
            yield Case("stuck", ("scales_not_learned",), data, 32, "relu", seed)
            yield Case("cold", ("near_deterministic",), data, 32, "relu", seed)
            yield Case("dead_dropout", ("near_deterministic",), data, 32, "relu", seed)
        for width in (512, 1024):
            yield Case("collapse", ("collapsed",), "digits", width, "relu", seed)
        # So few examples do not pay for the weights of a wide network, warm-up and empirical Bayes or not.
        for data in ("wine", "diabetes"):
            yield Case("default_collapse", ("underfitting", "collapsed"), data, 512, "relu", seed)
        for width in (96, 128):
            yield Case("forget", ("underfitting",), "digits", width, "relu", seed)
        for data in ("digits", "breast_cancer", "wine"):
            yield Case("overfit", ("overfitting",), data, 256, "relu", seed)


@lru_cache(maxsize=64)
def load(data: str, seed: int) -> tuple[np.ndarray, ...]:
    """Training and test data, standardised; targets of a regression to unit variance."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bunch = getattr(datasets, f"load_{data}")()
    x, y = bunch.data.astype("float32"), bunch.target
    is_regression = data == "diabetes"
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.3, random_state=seed, stratify=None if is_regression else y
    )
    centre, scale = (np.zeros(1), 16.0) if data == "digits" else (x.mean(axis=0), x.std(axis=0) + 1e-6)
    x, x_test = ((part - centre) / scale for part in (x, x_test))
    if is_regression:
        mean, deviation = y.mean(), y.std()
        y, y_test = (((part - mean) / deviation).astype("float32") for part in (y, y_test))
    return x.astype("float32"), y, x_test.astype("float32"), y_test


def data_of(case: Case) -> tuple[np.ndarray, ...]:
    """The case's data: with wrong labels, or few examples, where it says so."""
    x, y, x_test, y_test = load(case.data, case.seed)
    random = np.random.default_rng(case.seed)
    if case.kind == "rank1_tiny":
        x, y = x[:120], y[:120]
    if case.kind == "overfit":
        x, y = x[:100], y[:100]
    if case.kind in ("rank1_noisy", "overfit"):
        wrong = random.random(len(y)) < 0.2
        y = np.where(wrong, random.permutation(y), y)
    return x, y, x_test, y_test


def build(case: Case, num_examples: int) -> Any:
    """The compiled model of a case."""
    import keras

    import bdl

    layers, kind = bdl.layers, case.kind
    is_regression = case.data == "diabetes"
    outputs = 1 if is_regression else {"digits": 10, "breast_cancer": 2, "wine": 3}[case.data]
    inputs = {"digits": 64, "breast_cancer": 30, "wine": 13, "diabetes": 10}[case.data]
    likelihood = bdl.likelihoods.Normal() if is_regression else bdl.likelihoods.Categorical()
    options: dict[str, Any] = {}
    layer = layers.DenseReparameterization
    if kind.startswith("rank1"):
        layer = layers.DenseRank1
    elif kind in ("collapse", "forget"):
        options = {"kernel_prior": "fan_in_normal"}
    elif kind == "stuck":
        options = {"kernel_posterior": bdl.posteriors.MeanFieldNormal(speed=0.02)}
    elif kind in ("dropout", "dead_dropout", "overfit"):
        layer = keras.layers.Dense
    weights = ADD_LOSS.get(kind)
    stack: list[Any] = [keras.Input((inputs,))]
    for number, units in enumerate((case.width, case.width, outputs)):
        activation = case.activation if number < 2 else None
        if weights is None:
            stack.append(layer(units, activation=activation, **options))
        else:
            t = weights[number] * (num_examples if kind == "times_N" else 1.0)
            stack.append(add_loss_layer()(units, activation=activation, kl_weight=t / num_examples))
        if number < 2 and kind in ("dropout", "dead_dropout", "overfit"):
            rate = {"dropout": 0.2, "dead_dropout": 0.0, "overfit": 0.02}[kind]
            stack.append(layers.MCDropout(rate))
    network = keras.Sequential(stack)
    rate = {"slow": 1e-5}.get(kind, 3e-3 if kind == "overfit" else 1e-3)
    optimizer = keras.optimizers.Adam(rate)
    if weights is not None:
        if is_regression:
            likelihood = bdl.likelihoods.Normal(scale=0.5**0.5)
            loss: Any = "mse"
        else:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(optimizer, loss=loss)
        return network, likelihood
    kl_weight = {"cold": 1e-3, "declared_10": 10.0, "collapse": 1.0}.get(kind)
    model = bdl.VariationalModel(network, likelihood, kl_weight=kl_weight)
    model.compile(optimizer, metrics=[] if is_regression else ["accuracy"])
    return model, likelihood


# T by which each of the three layers weighs its own KL, as libraries without an ELBO leave it to the user.
ADD_LOSS = {
    "times_N": (1.0, 1.0, 1.0),
    "times_10": (10.0, 10.0, 10.0),
    "tenth": (0.1, 0.1, 0.1),
    "thousandth": (1e-3, 1e-3, 1e-3),
    "missing": (0.0, 0.0, 0.0),
    "doubled": (2.0, 2.0, 2.0),
    "one_missing": (1.0, 0.0, 1.0),
    "one_doubled": (1.0, 2.0, 1.0),
}


@lru_cache(maxsize=1)
def add_loss_layer() -> Any:
    """A layer that adds its KL by `add_loss` with a weight of the user's, as other libraries do."""
    import bdl

    class AddLossDense(bdl.layers.DenseReparameterization):
        def __init__(self, units: int, kl_weight: float = 1.0, **kwargs: Any) -> None:
            super().__init__(units, **kwargs)
            self.kl_weight = kl_weight

        def call(self, *args: Any, **kwargs: Any) -> Any:
            self.add_loss(self.kl_weight * self.kl_divergence())
            return super().call(*args, **kwargs)

    return AddLossDense


_TWINS: dict[tuple[Any, ...], Any] = {}


def twin_of(case: Case, data: tuple[np.ndarray, ...], likelihood: Any) -> Any:
    """The fit of the deterministic twin on test data, trained once for all cases that share it."""
    import keras

    from bdl.diagnostics.measure import take_probe
    from bdl.diagnostics.twin import fit_of_twin

    share = case.kind if case.kind in ("rank1_tiny", "rank1_noisy", "overfit") else ""
    key = (share, case.data, case.width, case.activation, case.seed)
    if key not in _TWINS:
        x, y, x_test, y_test = data
        plain = Case("dead_dropout", (), case.data, case.width, case.activation, case.seed)
        keras.utils.set_random_seed(case.seed)
        model, own = build(plain, len(x))
        model.fit(x, y, batch_size=BATCH_SIZE, epochs=EPOCHS[case.data] // 2, verbose=0)
        _TWINS[key] = fit_of_twin(model, take_probe((x_test, y_test), 1000, own, "twin"), own)
    return _TWINS[key]


def run(case: Case, with_remedy: bool) -> dict[str, Any]:
    """Trains and diagnoses one case."""
    import warnings

    import keras

    from bdl.diagnostics import TrainingHealth, diagnose

    warnings.simplefilter("ignore")
    began = time.perf_counter()
    data = data_of(case)
    x, y, x_test, y_test = data
    keras.backend.clear_session()
    _, likelihood = build(case, len(x))
    twin = None if case.kind == "nan" else twin_of(case, data, likelihood)
    keras.utils.set_random_seed(case.seed)
    model, likelihood = build(case, len(x))
    epochs = EPOCHS[case.data]
    epochs = {"few_steps": max(6, epochs // 12), "overfit": 4 * epochs, "nan": 10, "rank1_tiny": 2 * epochs}.get(
        case.kind, 10 if case.kind in ADD_LOSS else epochs
    )
    health = TrainingHealth((x, y), (x_test, y_test), likelihood=likelihood, on_verdict="record")
    callbacks: list[Any] = [health]
    if case.kind == "nan":
        callbacks.insert(0, poison(epochs // 2))
    start = time.perf_counter()
    watched = {"validation_data": (x_test, y_test), "validation_freq": max(1, epochs // 20)}
    history = model.fit(x, y, batch_size=BATCH_SIZE, epochs=epochs, verbose=0, callbacks=callbacks, **watched)
    seconds = time.perf_counter() - start
    held = {"validation_data": (x_test, y_test), "likelihood": likelihood}
    report = diagnose(model, x, y, record=health, twin=twin, num_samples=16, **held)
    first = next((epoch for epoch, verdict, _ in health.verdicts if verdict in case.right), None)
    live = [
        epoch for epoch, verdict, _ in health.verdicts if verdict not in ("healthy", "inconclusive", "still_training")
    ]
    result = {
        **asdict(case),
        "key": case.key,
        "verdict": report.verdict,
        "confidence": report.confidence,
        "evidence": report.evidence,
        "quantities": report.quantities.to_dict(),
        "curve": [entry.get("accuracy", entry.get("nll")) for entry in health.epochs],
        "epochs": epochs,
        "first_right": first,
        "first_alarm": live[0] if live else None,
        "last_live": health.verdicts[-1][1] if health.verdicts else None,
        "own_share": health.own_seconds / seconds,
        "fit_seconds": seconds,
        "last_loss": history.history["loss"][-1],
    }
    if with_remedy and report.remedies and report.verdict in case.right and twin is not None:
        result["remedied"] = remedied(
            report, model, likelihood, data, epochs if case.kind != "few_steps" else EPOCHS[case.data]
        )
        result["twin_accuracy"] = twin.accuracy
    return {**result, "seconds": time.perf_counter() - began}


def remedied(report: Any, model: Any, likelihood: Any, data: Any, epochs: int) -> dict[str, float]:
    """Test accuracy after each remedy that can be applied, by its name."""
    from bdl.diagnostics.measure import measure, take_probe

    x, y, x_test, y_test = data
    found = {}
    for remedy in [remedy for remedy in report.remedies if remedy.build is not None][:1]:
        better = remedy.apply(model, likelihood)
        better.fit(x, y, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
        probe = take_probe((x_test, y_test), 1000, likelihood, "data")
        fit = measure(better, better.likelihood, len(x), None, probe, num_samples=32).validation
        found[remedy.name] = fit.accuracy
    return found


def poison(epoch: int) -> Any:
    """A callback that puts a NaN into the first weight in the middle of the training."""
    import keras

    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, number: int, logs: Any = None) -> None:
            if number == epoch:
                weight = self.model.trainable_weights[0]
                weight.assign(keras.ops.convert_to_numpy(weight) * np.nan)

    return Poison()


def _work(case: Case, with_remedy: bool) -> dict[str, Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # one core a process
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    try:
        return run(case, with_remedy)
    except Exception as error:  # one bad run must not end the others; it is reported
        return {**asdict(case), "key": case.key, "error": f"{type(error).__name__}: {error}"}


@app.command("run")
def run_all(
    output: Annotated[Path, typer.Option(help="JSON lines of the results; goes on with what is missing.")] = Path(
        "zoo.jsonl"
    ),
    last_seed: Annotated[int, typer.Option(help="The last seed.")] = 9,
    only: Annotated[str, typer.Option(help="Only kinds that begin so.")] = "",
    first_seed: Annotated[int, typer.Option(help="The first seed; every second follows.")] = 1,
    remedies: Annotated[bool, typer.Option(help="Apply the first remedy of each right verdict.")] = False,
    processes: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Trains whatever the output does not hold yet."""
    done = {json.loads(line)["key"] for line in output.read_text().splitlines()} if output.exists() else set()
    todo = [case for case in cases(range(first_seed, last_seed + 1, 2)) if case.key not in done]
    todo = [case for case in todo if case.kind.startswith(only)]
    print(f"{len(done)} done, {len(todo)} to do", flush=True)
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=60) as pool, output.open("a") as file:
        futures = [pool.submit(_work, case, remedies and case.seed == first_seed) for case in todo]
        for number, future in enumerate(as_completed(futures), 1):
            result = future.result()
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{number}/{len(todo)} {result['key']}: {result.get('verdict', result.get('error'))}", flush=True)


@app.command()
def score(path: Path, half: Annotated[str, typer.Option(help="calibration, scoring or all.")] = "scoring") -> None:
    """Prints the confusion matrix, the false-alarm rate and the onset of a half of the zoo, judged anew."""
    from bdl.diagnostics import Quantities, judge

    wanted = {"calibration": (0,), "scoring": (1,), "all": (0, 1)}[half]
    results = [json.loads(line) for line in path.read_text().splitlines()]
    results = [result for result in results if result["seed"] % 2 in wanted]
    failed = [result for result in results if "error" in result]
    for result in failed:
        print("failed:", result["key"], result["error"])
    results = [result for result in results if "error" not in result]
    # Verdicts are functions of recorded quantities, so that other thresholds need no new training.
    for result in results:
        result["verdict"] = judge(Quantities.from_dict(result["quantities"])).verdict
    _print_confusion(results)
    healthy = [result for result in results if "healthy" in result["right"]]
    faulty = [result for result in results if "healthy" not in result["right"]]
    right = sum(result["verdict"] in result["right"] for result in faulty)
    alarms = [result for result in healthy if result["verdict"] not in result["right"]]
    print(f"faulty runs named right: {right} of {len(faulty)} ({right / max(len(faulty), 1):.1%})")
    print(f"false alarms: {len(alarms)} of {len(healthy)} ({len(alarms) / max(len(healthy), 1):.1%})")
    live = [result for result in healthy if result["first_alarm"] is not None]
    print(f"healthy runs with a live alarm at any epoch: {len(live)}")
    onsets = [
        result["first_right"] / result["epochs"]
        for result in faulty
        if result["first_right"] is not None and result["kind"] not in ("slow", "few_steps", "nan")
    ]
    print(f"onset (share of the budget), median {np.median(onsets):.3f}, {len(onsets)} runs called while training")
    shares = np.array([result["own_share"] for result in results])
    print(f"callback's share of fit: median {np.median(shares):.3f}, 95 % {np.quantile(shares, 0.95):.3f}")
    for result in [*alarms, *(result for result in faulty if result["verdict"] not in result["right"])]:
        print("wrong:", result["key"], "->", result["verdict"])
    _print_remedies(results)


def _print_confusion(results: list[dict[str, Any]]) -> None:
    counts: dict[tuple[str, str], int] = {}
    for result in results:
        pair = (f"{result['kind']} ({'/'.join(result['right'])})", result["verdict"])
        counts[pair] = counts.get(pair, 0) + 1
    for kind in dict.fromkeys(pair[0] for pair in counts):
        print(f"{kind}: " + ", ".join(f"{verdict} {n}" for (name, verdict), n in counts.items() if name == kind))


def _print_remedies(results: list[dict[str, Any]]) -> None:
    tried = [result for result in results if "remedied" in result]
    within = [
        accuracy >= result["twin_accuracy"] - 0.01 for result in tried for accuracy in result["remedied"].values()
    ]
    if tried:
        print(f"first remedy within a point of the twin: {sum(within)} of {len(within)}")
        for kind in dict.fromkeys(result["kind"] for result in tried):
            gaps = [a - r["twin_accuracy"] for r in tried if r["kind"] == kind for a in r["remedied"].values()]
            near = np.mean(np.array(gaps) >= -0.01)
            print(f"  {kind}: mean gap to the twin {np.mean(gaps):+.3f}, {near:.0%} within a point")


if __name__ == "__main__":
    app()
