"""Do the defaults learn? Digits with an MLP 64-h-h-10: accuracy, NLL, and what each network makes of unseen inputs.

The protocol is that of docs/design: stratified 30 % test split by the seed, pixels / 16, `compile("adam")`, 100 epochs
at batch 64, T = 1 at the end, 64 prediction samples. AUROC is of the predictive entropy, test digits against uniform
noise and against the same digits rotated by 90 degrees. Recipes have their own learning rates; the others are layers at
their defaults. An ELBO is to be compared across widths, not across rows: where weights are point estimates it is given
them. Data: scikit-learn's own digits.

    python -m research.digits run --seeds 5                # resumable, on two processes
    python -m research.digits report --write               # the table, into research/defaults.md
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.runs import Row, cell, grouped, markdown, rows_of_run, run_all
from research.contest import digits
from research.record import RUNS, Output, Run, Write, publish, subtract
from research.shifts import quarter_turn, uniform_noise

app = typer.Typer(add_completion=False)
RUN = RUNS / "digits.jsonl"
LAYERS = ("twin", "reparameterization", "flipout", "local_reparameterization", "rank1")
RECIPES = ("fully_gaussian", "last_layer", "instead_of_ensemble")
CONTESTANTS = (*LAYERS, *RECIPES)
EPOCHS = 100
BATCH_SIZE = 64
NUM_SAMPLES = 64
FIGURES = ("accuracy", "nll", "accuracy - twin", "nll - twin", "elbo", "auroc_noise", "auroc_rotated", "stuck")


@dataclass(frozen=True)
class Case:
    """One training."""

    contestant: str
    width: int
    activation: str
    seed: int


def network_of(case: Case) -> Any:
    """The network of a contestant; of a recipe the plain one."""
    import keras

    import bdl

    kinds = {
        "reparameterization": bdl.layers.DenseReparameterization,
        "flipout": bdl.layers.DenseFlipout,
        "local_reparameterization": bdl.layers.DenseLocalReparameterization,
        "rank1": bdl.layers.DenseRank1,
    }
    layer = kinds.get(case.contestant, keras.layers.Dense)
    hidden = [layer(case.width, activation=case.activation) for _ in range(2)]
    return keras.Sequential([keras.Input((64,)), *hidden, layer(10)])


def scales(network: Any) -> np.ndarray:
    """All posterior scales of a network, flat."""
    import keras

    import bdl
    from bdl.keras_internals import flatten_layers

    found = [np.zeros(0)]
    for layer in flatten_layers(network):
        if isinstance(layer, bdl.layers.Variational):
            for weight in layer.sampled_weights.values():
                for name, variable in weight.variables.items():
                    if name.endswith("rho"):
                        rho = keras.ops.convert_to_numpy(variable).ravel()
                        found.append(np.exp(weight.posterior.speed * rho))
    return np.concatenate(found)


def train(case: Case) -> Row:
    """Trains and scores one network; NLL and ELBO in nats per example, `stuck` the share of scales near their start."""
    import keras

    import bdl

    x, y, x_test, y_test = digits(case.seed)
    keras.backend.clear_session()
    keras.utils.set_random_seed(case.seed)
    network = network_of(case)
    likelihood = bdl.likelihoods.Categorical()
    if case.contestant == "twin":
        model: Any = network
        model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    elif case.contestant in RECIPES:
        model = getattr(bdl.recipes, case.contestant)(network, likelihood)
    else:
        model = bdl.VariationalModel(network, likelihood)
        model.compile("adam")
    before = scales(model)
    start = time.perf_counter()
    flat = {name: part.reshape(len(part), -1) for name, part in (("x", x), ("test", x_test))}
    history = model.fit(flat["x"], y, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0).history
    seconds = time.perf_counter() - start
    entropy, probabilities = {}, np.zeros(0)
    for name, images in (
        ("test", x_test),
        ("noise", uniform_noise(x_test, case.seed)),
        ("rotated", quarter_turn(x_test)),
    ):
        samples = 1 if case.contestant == "twin" else NUM_SAMPLES
        found = bdl.predict_distribution(model, images.reshape(len(images), -1), likelihood, samples, batch_size=540)
        entropy[name] = found.total_uncertainty
        probabilities = found.probabilities if name == "test" else probabilities
    auroc = bdl.calibration.out_of_distribution_auroc
    stuck = np.abs(scales(model) / before - 1.0) < 0.05
    return {
        "accuracy": float(bdl.calibration.accuracy(y_test, probabilities)),
        "nll": float(bdl.calibration.negative_log_likelihood(y_test, probabilities)),
        "auroc_noise": float(auroc(entropy["test"], entropy["noise"])),
        "auroc_rotated": float(auroc(entropy["test"], entropy["rotated"])),
        "elbo": history["elbo"][-1] if "elbo" in history else None,
        "temperature": history["temperature"][-1] if "temperature" in history else None,
        "stuck": float(np.mean(stuck)) if len(stuck) else None,
        "seconds": seconds,
    }


@app.command()
def run(
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 5,
    widths: Annotated[str, typer.Option(help="Hidden widths, separated by commas.")] = "32,128,512,1024",
    activations: Annotated[str, typer.Option(help="Activations, separated by commas.")] = "relu,tanh",
    contestants: Annotated[str, typer.Option(help="Contestants, separated by commas.")] = ",".join(CONTESTANTS),
    backend: Annotated[str, typer.Option(help="Keras backend.")] = "jax",
    output: Output = RUN,
) -> None:
    """Trains what is not there yet."""
    cases = [
        Case(contestant, int(width), activation, seed)
        for seed in range(seeds)
        for width in widths.split(",")
        for activation in activations.split(",")
        for contestant in contestants.split(",")
    ]
    run_all(train, cases, output, backend=backend)


@app.command()
def report(run: Run = RUN, write: Write = False) -> None:
    """Prints means over seeds with standard errors, and the paired differences to the twin."""
    rows = rows_of_run(run)
    subtract(rows, "twin", ["width", "activation", "seed"], ["accuracy", "nll"])
    by = ["activation", "width", "contestant"]
    rows.sort(key=lambda row: (row["activation"], row["width"], CONTESTANTS.index(row["contestant"])))
    lines = [
        [activation, str(width), contestant, str(len(group)), *(cell(group, figure, 3) for figure in FIGURES)]
        for (activation, width, contestant), group in grouped(rows, by).items()
    ]
    names = ["accuracy", "NLL", "accuracy - twin", "NLL - twin", "ELBO", "AUROC noise", "AUROC rotated", "stuck"]
    text = markdown(["activation", "h", "layers", "seeds", *names], lines)
    publish("digits", text, rows, by, FIGURES, write)


if __name__ == "__main__":
    app()
