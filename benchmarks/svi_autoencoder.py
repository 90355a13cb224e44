"""An autoencoder of digits, written as a network and as a story, and one whose code collapses.

The autoencoder and the digits are those of examples/digit_codes.py. The decoder that collapses predicts each pixel from
those before it, and sees the code besides: at T = 1 from the start it has learned to do without before the code says
anything (Bowman et al. 2016, arXiv 1511.06349).

    python benchmarks/svi_autoencoder.py bounds --seeds 3       # both ways, codes of several sizes; some minutes
    python benchmarks/svi_autoencoder.py collapse --seeds 3     # the verdict, and what the first remedy makes of it
    python benchmarks/svi_autoencoder.py report --write         # tables, into benchmarks/README.md
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import typer
from keras import layers
from runs import cell, grouped, markdown, replace_section

import bdl

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "examples"))

import digit_codes as example  # noqa: E402

app = typer.Typer(add_completion=False)
RESULTS = HERE / "results" / "svi_autoencoder.json"
PAGE = HERE / "README.md"
HIDDEN = 64
"""Hidden units of each pixel in the decoder that sees the pixels before it."""
FIGURES = ("elbo", "importance_weighted", "kl", "active")


def stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def store(name: str, figures: Any) -> None:
    draft = RESULTS.with_suffix(".tmp")
    draft.write_text(json.dumps({**stored(), name: figures}, indent=1) + "\n")
    draft.replace(RESULTS)


def judged(mean: np.ndarray, scale: np.ndarray, found: bdl.bounds.Bounds) -> dict[str, float]:
    """Figures of test digits, in nats per digit, and the units of the code that are active."""
    rows = len(found.elbo_by_row)
    kl = (0.5 * (mean**2 + scale**2 - 1.0) - np.log(scale)).sum(axis=1)
    return {
        "elbo": found.elbo / rows,
        "importance_weighted": found.importance_weighted / rows,
        "kl": float(kl.mean()),
        "active": example.active_units(mean),
    }


@app.command()
def bounds(
    seeds: Annotated[int, typer.Option(help="Trainings of each way.")] = 3,
    epochs: Annotated[int, typer.Option(help="Of a training.")] = 150,
    draws: Annotated[int, typer.Option(help="Draws of a code in the importance weighted bound.")] = 50,
) -> None:
    """Trains codes of 2 and of 8 numbers both ways; test digits differ with the seed."""
    rows = []
    for units, seed, way in itertools.product((8, 2), range(seeds), example.WAYS):
        train, test = example.load(seed)
        began = time.perf_counter()
        model = example.autoencoder(way, units, seed, epochs)
        model.fit(train.image)
        row = {"way": way, "units": units, "seed": seed, "seconds": round(time.perf_counter() - began, 1)}
        rows.append(row | judged(*model.codes(test.image), model.bounds(test.image, draws)))
        print(json.dumps(rows[-1]), flush=True)
        store("bounds", {"epochs": epochs, "draws": draws, "rows": rows})


def predicts_from_pixels(units: int) -> keras.Model:
    """An autoencoder whose decoder sees, of each pixel, those before it and the code (NADE; Larochelle & Murray 2011).

    `hidden[t] = relu(sum of weights[s] * pixel[s] over s < t, + what the code says)`, and the logit of pixel t is read
    off it.
    """
    image = keras.Input((example.SIDE**2,))
    code = bdl.layers.NormalLatent(units, name="code")(layers.Dense(256, "relu")(image))
    each = layers.EinsumDense("bt,th->bth", output_shape=(example.SIDE**2, HIDDEN))(image)
    told = layers.RepeatVector(example.SIDE**2)(layers.Dense(HIDDEN)(code))
    hidden = layers.Activation("relu")(keras.ops.cumsum(each, axis=1) - each + told)
    logits = layers.EinsumDense("bth,th->bt", output_shape=(example.SIDE**2,), bias_axes="t")(hidden)
    return keras.Model(image, logits)


def judged_network(model: bdl.VariationalModel, images: np.ndarray, draws: int) -> dict[str, float]:
    """Figures of a model with a layer `code`."""
    with bdl.layers.collect_latents() as reports:
        model.network(images)
    q = reports[0].latent
    return judged(q.mean, q.scale, model.bounds(images, images, draws))


@app.command()
def collapse(
    seeds: Annotated[int, typer.Option(help="Trainings.")] = 3,
    epochs: Annotated[int, typer.Option(help="Of a training.")] = 30,
    draws: Annotated[int, typer.Option(help="Draws of a code in the importance weighted bound.")] = 50,
) -> None:
    """Trains at T = 1, diagnoses, and trains again with the first remedy."""
    rows = []
    for seed in range(seeds):
        train, test = example.load(seed)
        keras.utils.set_random_seed(seed)
        model = bdl.VariationalModel(predicts_from_pixels(8), bdl.likelihoods.Bernoulli(), kl_weight=1.0)
        model.compile(keras.optimizers.Adam(2e-3))
        remedy = "none"
        for _ in range(2):
            model.fit(train.image, train.image, batch_size=example.BATCH_SIZE, epochs=epochs, verbose=0)
            data = (test.image, test.image)
            report = bdl.diagnostics.diagnose(model, train.image, train.image, validation_data=data, twin=None)
            row = {"seed": seed, "remedy": remedy, "verdict": report.verdict, "confidence": report.confidence}
            rows.append(row | judged_network(model, test.image, draws))
            print(json.dumps(rows[-1]), flush=True)
            store("collapse", {"epochs": epochs, "draws": draws, "rows": rows})
            if not report.remedies:
                break
            remedy, model = report.remedies[0].name, report.remedies[0].apply(model)


@app.command()
def report(write: Annotated[bool, typer.Option(help="Write the tables into benchmarks/README.md.")] = False) -> None:
    """Prints both tables."""
    found = stored()
    header = ["seeds", "test ELBO", f"bound of {found['bounds']['draws']} draws", "KL", "active units"]
    lines = []
    for (units, way), rows in grouped(found["bounds"]["rows"], ("units", "way")).items():
        lines.append([f"{units} numbers, as a {way}", str(len(rows)), *(cell(rows, name, 2) for name in FIGURES)])
    told = "Digits of 8 x 8 black or white pixels, nats per test digit, mean and standard error over seeds."
    text = f"{told}\n\n" + markdown(["code", *header], lines)
    lines = []
    for (remedy,), rows in grouped(found["collapse"]["rows"], ("remedy",)).items():
        verdicts = ", ".join(dict.fromkeys(row["verdict"] for row in rows))
        lines.append([remedy, verdicts, str(len(rows)), *(cell(rows, name, 2) for name in FIGURES)])
    text += "\n\nThe decoder that sees the pixels before each, T = 1 from the start, and with the first remedy:\n\n"
    text += markdown(["remedy", "verdict", *header], lines)
    print(text)
    if write:
        replace_section(PAGE, "svi_autoencoder", text)


if __name__ == "__main__":
    app()
