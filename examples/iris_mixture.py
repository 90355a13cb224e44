"""Kinds of irises
================

Which flowers belong together? A mixture of Gaussians whose indicators are summed out, on Fisher's irises.

::

    python examples/iris_mixture.py --figure iris.png

Four lengths of each of 150 flowers (Fisher 1936, "The use of multiple measurements in taxonomic problems"), in cm. In
the story a flower is one of three kinds, each with its mean, scales and correlations. Which kind is a discrete latent
variable of each flower::

    which_n ~ Categorical(shares),   flower_n ~ N(mean[which_n], diag(scale) C C^T diag(scale) of which_n)

`Local("which", tfd.Categorical(...))` needs no guide: the fit sums it out exactly. Afterwards `probabilities` says of
each flower how likely each kind is, uncertainty of the globals included. The species that botanists gave are not used
in the fit, only to see what the kinds are. Beside it stands EM for the same mixture, scikit-learn's `GaussianMixture`.
"""

# sphinx_gallery_thumbnail_path = "images/iris_mixture.png"

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow_probability as tfp
import typer
from keras import ops
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Global, Local, Observed

tfd = tfp.distributions
LENGTHS = ("sepal length", "sepal width", "petal length", "petal width")
SPECIES = ("setosa", "versicolor", "virginica")
K, D = len(SPECIES), len(LENGTHS)


@keras.saving.register_keras_serializable(package="iris_mixture")
def story(data: Any) -> Iterator[Any]:
    """Flowers of three kinds."""
    shares = yield Global("shares", tfd.Dirichlet(np.ones(K, "float32")))
    means = yield Global("means", tfd.Sample(tfd.Normal(4.0, 3.0), (K, D)))
    scales = yield Global("scales", tfd.Sample(tfd.HalfNormal(1.0), (K, D)))
    correlations = yield Global("correlations", tfd.Sample(tfd.CholeskyLKJ(D, 2.0), K))
    which = yield Local("which", tfd.Categorical(probs=shares))
    factors = scales[..., None] * correlations
    of_kind = tfd.MultivariateNormalTriL(ops.take(means, which, axis=0), ops.take(factors, which, axis=0))
    yield Observed("flower", of_kind, data["flower"])


@dataclass(frozen=True)
class Kinds:
    """What a mixture says of the flowers, kinds in the order of the species that they fit best.

    Args:
        probabilities: Of each flower and kind, `(flowers, kinds)`.
        means: `(kinds, lengths)`.
        covariances: `(kinds, lengths, lengths)`.
    """

    probabilities: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def named(self, species: np.ndarray) -> Kinds:
        """With the kinds in the order in which most flowers have the right species."""
        chosen = self.probabilities.argmax(1)
        orders = [np.array(order) for order in itertools.permutations(range(self.probabilities.shape[1]))]
        best = max(orders, key=lambda order: np.mean(order[species] == chosen))
        return Kinds(self.probabilities[:, best], self.means[best], self.covariances[best])

    def right(self, species: np.ndarray) -> np.ndarray:
        """Whether the most likely kind of each flower is its species."""
        return self.probabilities.argmax(1) == species


def start_of(flowers: np.ndarray) -> dict[str, np.ndarray]:
    """A kind for each third of the flowers by the length of their petals: another start would number them otherwise."""
    thirds = np.array_split(flowers[np.argsort(flowers[:, 2])], K)
    return {"means": np.array([each.mean(0) for each in thirds]), "scales": np.array([each.std(0) for each in thirds])}


def fit(flowers: np.ndarray, steps: int, seed: int) -> SVI:
    """Independent Gaussians, on the real line, of shares, means, scales and correlations."""
    model = SVI(story, "mean_field", start=start_of(flowers), num_samples=4, seed=seed)
    model.compile(keras.optimizers.Adam(DecayOverFit(2e-2)))
    model.fit({"flower": flowers}, batch_size="all", steps=steps, verbose=0)
    return model


def kinds_of(model: SVI, flowers: np.ndarray, draws: int) -> Kinds:
    """Probabilities of the indicators, and the posterior means of the rest."""
    found = model.posterior(num_samples=draws, seed=1)
    factors = found["scales"][..., None] * found["correlations"]
    covariances = (factors @ np.swapaxes(factors, -1, -2)).mean(0)
    probabilities = model.probabilities({"flower": flowers}, num_samples=draws, seed=1)["which"]
    return Kinds(probabilities, found["means"].mean(0), covariances)


def kinds_of_em(flowers: np.ndarray, seed: int) -> Kinds:
    """The same of the maximum of the likelihood."""
    mixture = GaussianMixture(K, random_state=seed, n_init=5).fit(flowers)
    return Kinds(mixture.predict_proba(flowers), mixture.means_, mixture.covariances_)


def report(found: dict[str, Kinds], species: np.ndarray) -> None:
    """Prints how the kinds fit the species, and the flowers of which the first mixture is least sure."""
    table = Table(title="Kinds against species")
    for column in ("", "right", "of the sure (> .95)", "log score, nats"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for name, kinds in found.items():
        right, sure = kinds.right(species), kinds.probabilities.max(1) > 0.95
        score = np.log(np.maximum(kinds.probabilities[np.arange(len(species)), species], 1e-12)).mean()
        table.add_row(name, f"{right.sum()} of {len(right)}", f"{right[sure].sum()} of {sure.sum()}", f"{score:.3f}")
    console = Console(width=100)
    console.print(table)
    kinds = next(iter(found.values()))
    doubtful = Table(title="The least certain flowers")
    for column in ("flower", "species", *SPECIES):
        doubtful.add_column(column, justify="right" if column in ("flower", *SPECIES) else "left")
    for flower in np.argsort(kinds.probabilities.max(1))[:5]:
        cells = [f"{each:.2f}" for each in kinds.probabilities[flower]]
        doubtful.add_row(str(flower), SPECIES[species[flower]], *cells)
    console.print(doubtful)


def draw(path: Path, flowers: np.ndarray, species: np.ndarray, kinds: Kinds) -> None:
    """The flowers in the colours of their kinds, and how sure the kinds are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(name) for name in ("C0", "C1", "C2")])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    petal = flowers[:, 2:] + np.random.default_rng(0).uniform(-0.03, 0.03, flowers[:, 2:].shape)  # many coincide
    left.scatter(*petal.T, s=26, color=kinds.probabilities @ colours, zorder=2)
    wrong = ~kinds.right(species)
    left.scatter(*petal[wrong].T, s=95, facecolor="none", edgecolor="0.2", zorder=3, label="another species")
    angle = np.linspace(0, 2 * np.pi, 200)
    for kind, name in enumerate(SPECIES):
        root = np.linalg.cholesky(kinds.covariances[kind, 2:, 2:])
        around = kinds.means[kind, 2:] + 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ root.T
        left.plot(*around.T, color=colours[kind], lw=1.2, label=f"kind of {name}")
    left.set(xlabel="petal length, cm", ylabel="petal width, cm", title="Kinds, two standard deviations")
    left.legend(frameon=False, fontsize="small", loc="upper left")
    for place in (1, 2):
        likely = kinds.probabilities[species == place, 2]
        order = np.argsort(likely)
        right.plot(np.arange(len(order)) + 1, likely[order], "o", ms=4, color=colours[place], label=SPECIES[place])
    right.axhline(0.5, color="0.7", lw=1)
    right.set(xlabel="flowers of a species, in order", ylabel="probability", title="Is it of the kind of virginica?")
    right.legend(frameon=False, title="species", loc=(0.35, 0.6))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    draws: Annotated[int, typer.Option(help="Draws of the posterior.")] = 500,
    seed: Annotated[int, typer.Option(help="Of both fits.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of the flowers and their kinds.")] = None,
) -> None:
    """Fits the mixture, and compares its kinds with the species."""
    iris = load_iris()
    flowers, species = iris.data.astype("float32"), iris.target
    model = fit(flowers, steps, seed)
    kinds = kinds_of(model, flowers, draws).named(species)
    em = kinds_of_em(flowers, seed).named(species)
    report({"indicators summed out": kinds, "EM": em}, species)
    if figure is not None:
        draw(figure, flowers, species, kinds)


if __name__ == "__main__":
    typer.run(main)
