"""An autoencoder of digits, written as a network and as a story, and one whose code collapses.

The autoencoder and the digits are those of examples/digit_codes.py. The code that collapses is that of a network whose
wide decoder sees a noisy copy of the image besides: at T = 1 from the start it has learned to do without the code
before the code says anything (Bowman et al. 2016, arXiv 1511.06349).

    python benchmarks/svi_autoencoder.py bounds --seeds 3       # both ways, test digits; some minutes
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
FLIPPED = 0.12
"""Share of pixels that are flipped in the copy that the decoder sees."""
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
    units: Annotated[int, typer.Option(help="Size of the code.")] = 8,
    epochs: Annotated[int, typer.Option(help="Of a training.")] = 100,
    draws: Annotated[int, typer.Option(help="Draws of a code in the importance weighted bound.")] = 50,
) -> None:
    """Trains both ways; test digits differ with the seed."""
    rows = []
    for seed, way in itertools.product(range(seeds), example.WAYS):
        train, test = example.load(seed)
        began = time.perf_counter()
        model = example.autoencoder(way, units, seed, epochs)
        model.fit(train.image)
        row = {"way": way, "units": units, "seed": seed, "seconds": round(time.perf_counter() - began, 1)}
        rows.append(row | judged(*model.codes(test.image), model.bounds(test.image, draws)))
        print(json.dumps(rows[-1]), flush=True)
        store("bounds", {"epochs": epochs, "draws": draws, "rows": rows})


def denoiser(units: int) -> keras.Model:
    """An autoencoder whose decoder sees a copy of the image with some pixels flipped, and so needs the code little."""
    image, noisy = (keras.Input((example.SIDE**2,), name=name) for name in ("image", "noisy"))
    code = bdl.layers.NormalLatent(units, name="code")(layers.Dense(256, "relu")(image))
    hidden = layers.Dense(512, "relu")(layers.Concatenate()([noisy, code]))
    return keras.Model({"image": image, "noisy": noisy}, layers.Dense(example.SIDE**2)(hidden))


def with_noisy_copies(images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """What that network reads."""
    is_flipped = np.random.default_rng(seed).random(images.shape) < FLIPPED
    return {"image": images, "noisy": np.where(is_flipped, 1 - images, images)}


def judged_network(model: bdl.VariationalModel, inputs: dict[str, np.ndarray], draws: int) -> dict[str, float]:
    """Figures of a model with one code."""
    with bdl.layers.collect_latents() as reports:
        model.network(inputs)
    q = reports[0].latent
    return judged(q.mean, q.scale, model.bounds(inputs, inputs["image"], draws))


@app.command()
def collapse(
    seeds: Annotated[int, typer.Option(help="Trainings.")] = 3,
    epochs: Annotated[int, typer.Option(help="Of a training.")] = 40,
    draws: Annotated[int, typer.Option(help="Draws of a code in the importance weighted bound.")] = 50,
) -> None:
    """Trains at T = 1, diagnoses, and trains again with the first remedy."""
    rows = []
    for seed in range(seeds):
        train, test = (with_noisy_copies(digits.image, seed) for digits in example.load(seed))
        keras.utils.set_random_seed(seed)
        model = bdl.VariationalModel(denoiser(8), bdl.likelihoods.Bernoulli(), kl_weight=1.0)
        model.compile(keras.optimizers.Adam(2e-3))
        remedy = "none"
        for _ in range(2):
            model.fit(train, train["image"], batch_size=example.BATCH_SIZE, epochs=epochs, verbose=0)
            report = bdl.diagnostics.diagnose(
                model, train, train["image"], validation_data=(test, test["image"]), twin=None
            )
            row = {"seed": seed, "remedy": remedy, "verdict": report.verdict, "confidence": report.confidence}
            rows.append(row | judged_network(model, test, draws))
            print(json.dumps(rows[-1]), flush=True)
            store("collapse", {"epochs": epochs, "draws": draws, "rows": rows})
            if report.verdict != "collapsed":
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
    text += "\n\nThe decoder that sees a noisy copy, T = 1 from the start, and with the first remedy:\n\n"
    text += markdown(["remedy", "verdict", *header], lines)
    print(text)
    if write:
        replace_section(PAGE, "svi_autoencoder", text)


if __name__ == "__main__":
    app()
