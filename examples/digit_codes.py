"""Codes of digits
===============

What is a digit, in two numbers? A variational autoencoder, written as a network and as a story.

::

    python examples/digit_codes.py --figure digit_codes.png
    python examples/digit_codes.py --way story

scikit-learn's 1,797 digits of 8 x 8 pixels are black or white, and each is given a code in the plane::

    code ~ N(0, I),   pixel ~ Bernoulli(logits = decoder(code))

An encoder computes a Gaussian of each digit's code. As a network, encoder, `NormalLatent` and decoder stand in a row
and `VariationalModel` trains them; as a story, the code is a `Local` site with an `Amortized` guide. Both maximise the
same ELBO. The figure has the codes of the test digits, the digits whose picture varies most with draws of their code,
and what the decoder makes of a grid over the plane.
"""

# sphinx_gallery_thumbnail_path = "images/digit_codes.png"

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow_probability as tfp
import typer
from sklearn.datasets import load_digits

import bdl
from bdl.bounds import Bounds
from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Amortized, Local, Observed

tfd = tfp.distributions
SIDE = 8
NUM_TRAIN = 1400
BATCH_SIZE = 100
WAYS = ("network", "story")


@dataclass(frozen=True)
class Digits:
    """Black and white digits.

    Args:
        image: `(digits, 64)`, 0 or 1.
        label: `(digits,)`, which digit it is; no model sees it.
    """

    image: np.ndarray
    label: np.ndarray


def load(seed: int = 0) -> tuple[Digits, Digits]:
    """Training and test digits, divided by a seed."""
    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    image, label = (found.data[order] > 7.5).astype("float32"), found.target[order]
    return Digits(image[:NUM_TRAIN], label[:NUM_TRAIN]), Digits(image[NUM_TRAIN:], label[NUM_TRAIN:])


def encoder_of() -> keras.Sequential:
    """From pixels to features."""
    return keras.Sequential([keras.layers.Dense(256, "relu"), keras.layers.Dense(128, "relu")], name="encoder")


def decoder_of(units: int) -> keras.Sequential:
    """From a code to the logits of the pixels."""
    hidden = [keras.layers.Dense(128, "relu"), keras.layers.Dense(256, "relu")]
    return keras.Sequential([keras.Input((units,)), *hidden, keras.layers.Dense(SIDE**2)], name="decoder")


class Autoencoder:
    """What both ways of writing it offer.

    Args:
        units: Size of the code.
        seed: Of weights and noise.
        epochs: Passes over the training digits.
    """

    def __init__(self, units: int, seed: int, epochs: int) -> None:
        keras.utils.set_random_seed(seed)
        self.units, self.epochs = units, epochs
        self.encoder, self.decoder = encoder_of(), decoder_of(units)
        self.model = self.build(seed)
        self.model.compile(keras.optimizers.Adam(DecayOverFit(2e-3)))

    def build(self, seed: int) -> Any:
        """The model, not compiled."""
        raise NotImplementedError

    def fit(self, images: np.ndarray) -> None:
        """Trains at T = 1, on two draws per step."""
        raise NotImplementedError

    def codes(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each digit's code, `(digits, units)`."""
        raise NotImplementedError

    def bounds(self, images: np.ndarray, num_samples: int) -> Bounds:
        """Bounds of the log evidence of digits, in nats."""
        raise NotImplementedError

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Probability of a black pixel, `(codes, 64)`."""
        return keras.ops.convert_to_numpy(keras.ops.sigmoid(self.decoder(codes.astype("float32"))))


class AsNetwork(Autoencoder):
    """Encoder, code and decoder in a row."""

    def build(self, seed: int) -> bdl.VariationalModel:
        """The network, with a Bernoulli likelihood of each pixel."""
        self.code = bdl.layers.NormalLatent(self.units, seed=seed, name="code")
        network = keras.Sequential([keras.Input((SIDE**2,)), self.encoder, self.code, self.decoder])
        return bdl.VariationalModel(network, bdl.likelihoods.Bernoulli(), kl_weight=1.0, num_samples=2)

    def fit(self, images: np.ndarray) -> None:
        """Trains: the images are inputs and labels."""
        self.model.fit(images, images, batch_size=BATCH_SIZE, epochs=self.epochs, verbose=0)

    def codes(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The layer's posterior."""
        q = self.code.posterior(self.encoder(images))
        return keras.ops.convert_to_numpy(q.mean), keras.ops.convert_to_numpy(q.scale)

    def bounds(self, images: np.ndarray, num_samples: int) -> Bounds:
        """Those of the model."""
        return self.model.bounds(images, images, num_samples)


@keras.saving.register_keras_serializable(package="digit_codes")
def story(data: Any, decoder: Any) -> Iterator[Any]:
    """How a digit came about."""
    code = yield Local("code", tfd.Normal(keras.ops.zeros(decoder.input_shape[-1]), 1.0))
    yield Observed("image", tfd.Bernoulli(logits=decoder(code)), data["image"])


class AsStory(Autoencoder):
    """The story, with the encoder as recognition network."""

    def build(self, seed: int) -> SVI:
        """The model of the story."""
        guide = {"code": Amortized(self.encoder, inputs="image")}
        return SVI(story, guide, networks={"decoder": self.decoder}, averaging=False, seed=seed)

    def fit(self, images: np.ndarray) -> None:
        """Trains: with local sites a step has a pair of draws by itself."""
        self.model.trace_on({"image": images})
        self._spread_means()
        self.model.fit({"image": images}, batch_size=BATCH_SIZE, epochs=self.epochs, verbose=0)

    def _spread_means(self) -> None:
        """Gives digits different means from the start, as `NormalLatent` does.

        The guide's last layer starts at zero: until it has moved the decoder learns to do without the code, and some
        of that stays.
        """
        head = self.model.guide_of("code").head
        kernel, bias = head.get_weights()
        means = keras.initializers.GlorotUniform(seed=1)((len(kernel), self.units))
        kernel[:, : self.units] = keras.ops.convert_to_numpy(means)
        head.set_weights([kernel, bias])

    def codes(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The guide's distribution."""
        q = self.model.guide_of("code").distribution({"image": keras.ops.convert_to_tensor(images)})
        return keras.ops.convert_to_numpy(q.mean), keras.ops.convert_to_numpy(q.factor)

    def bounds(self, images: np.ndarray, num_samples: int) -> Bounds:
        """Those of the model."""
        return self.model.bounds({"image": images}, num_samples)


def autoencoder(way: str, units: int, seed: int, epochs: int) -> Autoencoder:
    """One way of writing it.

    Raises:
        ValueError: if there is no such way.
    """
    if way not in WAYS:
        raise ValueError(f"`way` must be one of {WAYS}, not {way!r}.")
    return {"network": AsNetwork, "story": AsStory}[way](units, seed, epochs)


def active_units(mean: np.ndarray) -> int:
    """Units of a code whose mean varies between digits by more than .01 (Burda et al. 2016)."""
    return int(np.sum(mean.var(axis=0) > 0.01))


def uncertainty(model: Autoencoder, images: np.ndarray, draws: int = 32) -> np.ndarray:
    """How much the picture varies with draws of its code: information between them, summed over pixels, in nats."""
    mean, scale = model.codes(images)
    noise = np.random.default_rng(0).standard_normal((draws, *mean.shape))
    p = model.decode((mean + scale * noise).reshape(-1, mean.shape[1])).reshape(draws, *images.shape)
    return (entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)).sum(axis=-1)


def entropy(p: np.ndarray) -> np.ndarray:
    """Of black or white pixels, in nats."""
    p = np.clip(p.astype("float64"), 1e-12, 1 - 1e-12)
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


def framed(images: np.ndarray) -> np.ndarray:
    """Images with a grey line around each, `(images, 10, 10)`."""
    return np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)), constant_values=0.15)


def draw(path: Path, model: Autoencoder, test: Digits, number: int = 10) -> None:
    """The codes in the plane, the most uncertain digits, and a grid of decoded codes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Ellipse
    from scipy.stats import norm

    mean, scale = model.codes(test.image)
    chosen = np.argsort(-uncertainty(model, test.image))[:number]
    figure = plt.figure(figsize=(12, 8.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 1])
    plane, decoded, strip = (figure.add_subplot(part) for part in (grid[0, 0], grid[0, 1], grid[1, :]))
    colours = plt.get_cmap("tab10")
    for digit in range(10):
        rows = test.label == digit
        plane.scatter(*mean[rows].T, s=14, color=colours(digit), label=str(digit))
    for row in chosen:
        colour = colours(test.label[row])
        plane.add_patch(Ellipse(mean[row], *(4 * scale[row]), fill=False, edgecolor=colour, lw=1.2))
    plane.set(xlabel="code, first number", ylabel="second number", title="Test digits; ellipses: the most uncertain")
    plane.set_aspect("equal", "datalim")
    plane.legend(frameon=False, ncols=10, loc="upper center", bbox_to_anchor=(0.5, -0.12), handletextpad=0.1)
    side = 12
    points = norm.ppf((np.arange(side) + 0.5) / side)
    codes = np.stack(np.meshgrid(points, points[::-1]), axis=-1).reshape(-1, 2)
    tiles = framed(model.decode(codes)).reshape(side, side, SIDE + 2, SIDE + 2)
    tiles = tiles.transpose(0, 2, 1, 3).reshape(side * (SIDE + 2), -1)
    decoded.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    decoded.set(xticks=[], yticks=[], title="What the decoder makes of codes, by quantiles of N(0, 1)")
    made = model.decode(mean[chosen])
    pairs = np.concatenate([framed(test.image[chosen]), framed(made)], axis=1)
    strip.imshow(np.concatenate(list(pairs), axis=1), cmap="gray_r", vmin=0, vmax=1)
    names = [str(digit) for digit in test.label[chosen]]
    strip.set_xticks((SIDE + 2) * np.arange(number) + (SIDE + 1) / 2, names)
    strip.set_yticks([(SIDE + 1) / 2, 1.5 * SIDE + 2.5], ["digit", "decoded"])
    strip.tick_params(length=0)
    strip.set_title("The most uncertain test digits, and what the decoder makes of the mean of their codes")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    way: Annotated[str, typer.Option(help="How it is written: network or story.")] = "network",
    epochs: Annotated[int, typer.Option(help="Passes over the training digits.")] = 150,
    draws: Annotated[int, typer.Option(help="Draws of a code in the importance weighted bound.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the division, of weights and noise.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of the codes.")] = None,
) -> None:
    """Trains one autoencoder, prints its bounds on test digits and draws its codes."""
    train, test = load(seed)
    began = time.perf_counter()
    model = autoencoder(way, 2, seed, epochs)
    model.fit(train.image)
    print(f"{len(train.image)} digits, {epochs} epochs, {time.perf_counter() - began:.0f} s")
    found = model.bounds(test.image, draws)
    print(found)
    mean, _ = model.codes(test.image)
    print(f"{active_units(mean)} of {model.units} units of the code are active")
    uncertain = uncertainty(model, test.image)
    told = [f"{test.label[row]} ({uncertain[row]:.1f})" for row in np.argsort(-uncertain)[:10]]
    print(f"most uncertain, nats: {', '.join(told)}")
    if figure is not None:
        draw(figure, model, test)


if __name__ == "__main__":
    typer.run(main)
