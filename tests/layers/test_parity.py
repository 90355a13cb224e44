"""The nine classes of tfp.layers and their namesakes here: same parameters, same noise, same input, same numbers.

tfp.layers runs on Keras 2 (tf_keras) in the same process. Both draw their noise from recorded arrays.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose
from standard_errors import assert_mean

import bdl
from bdl import priors

pytestmark = [
    pytest.mark.tensorflow,
    # tfp.layers on tf_keras
    pytest.mark.filterwarnings("ignore:.layer.add_variable. is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:The initializer RandomNormal is unseeded:UserWarning"),
]
if keras.backend.backend() != "tensorflow":
    pytest.skip("tfp.layers needs the TensorFlow backend", allow_module_level=True)

BATCH, CHANNELS, FEATURES, KERNEL_SIZE = 3, 4, 5, 2
LAYERS = [
    "DenseReparameterization",
    "DenseLocalReparameterization",
    "DenseFlipout",
    *(f"Conv{rank}D{estimator}" for rank in (1, 2, 3) for estimator in ("Reparameterization", "Flipout")),
]


@pytest.fixture(scope="module")
def tfp() -> Any:
    return pytest.importorskip("tensorflow_probability")


class Noise:
    """Noise by its flat size: whoever asks for as many numbers gets the same ones, in the shape that he asks for.

    tfp.layers gives flipout's signs the shape (batch, channels) and bdl (batch, 1, 1, channels), of the same size.
    """

    def __init__(self) -> None:
        self.given: set[tuple[str, int, str]] = set()

    def draw(self, kind: str, shape: Any, asker: str) -> np.ndarray:
        shape = tuple(int(size) for size in np.asarray(shape))
        size = int(np.prod(shape))
        self.given.add((kind, size, asker))
        generator = np.random.default_rng(size)
        values = generator.normal(size=size) if kind == "normal" else generator.choice([-1.0, 1.0], size=size)
        return values.astype("float32").reshape(shape)


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch, tfp: Any) -> Noise:
    import tensorflow as tf

    shared = Noise()
    monkeypatch.setattr(
        bdl.random, "normal", lambda shape, key: tf.constant(shared.draw("normal", list(map(int, shape)), "bdl"))
    )
    monkeypatch.setattr(
        bdl.random, "rademacher", lambda shape, key: tf.constant(shared.draw("sign", list(map(int, shape)), "bdl"))
    )
    monkeypatch.setattr(
        "tensorflow_probability.python.random.rademacher",
        lambda shape, dtype, seed: tf.constant(shared.draw("sign", shape, "tfp"), dtype),
    )
    return shared


def tfp_layer(tfp: Any, name: str, noise: Noise, arguments: dict[str, Any]) -> Any:
    def draw(distribution: Any) -> Any:
        shape = [*distribution.batch_shape, *distribution.event_shape]
        normal = getattr(distribution, "distribution", distribution)
        return normal.loc + normal.scale * noise.draw("normal", shape, "tfp")

    return getattr(tfp.layers, name.replace("Conv", "Convolution"))(**arguments, kernel_posterior_tensor_fn=draw)


def both_layers(tfp: Any, name: str, noise: Noise, x: np.ndarray, **arguments: Any) -> tuple[Any, Any]:
    """A bdl layer and a TFP layer with the same parameters."""
    if name.startswith("Dense"):
        arguments |= {"units": FEATURES}
    else:
        arguments |= {"filters": FEATURES, "kernel_size": KERNEL_SIZE}
    ours = getattr(bdl.layers, name)(**arguments, kernel_prior="normal")
    theirs = tfp_layer(tfp, name, noise, arguments)
    ours.build(x.shape)
    theirs.build(x.shape)
    generator = np.random.default_rng(1)
    mean = generator.normal(size=ours.layer.kernel.shape)
    scale = generator.uniform(0.05, 2.0, size=mean.shape)
    bias = generator.normal(size=FEATURES)
    speed = ours.kernel_posterior.speed
    ours.layer.kernel.assign(mean)
    ours.layer.bias.assign(bias)
    rho = next(weight for weight in ours.trainable_weights if weight.path.endswith("kernel_rho"))
    rho.assign(np.log(scale) / speed)
    parameters = {
        "kernel_posterior_loc": mean,
        "kernel_posterior_untransformed_scale": np.log(np.expm1(scale)),
        "bias_posterior_loc": bias,
    }
    for weight in theirs.weights:
        weight.assign(parameters.pop(weight.name.split("/")[-1].split(":")[0]))
    assert not parameters
    return ours, theirs


def layer_input(name: str) -> np.ndarray:
    spatial = () if name.startswith("Dense") else (5, 4, 3)[: int(name[4])]
    return np.random.default_rng(2).normal(size=(BATCH, *spatial, CHANNELS)).astype("float32")


@pytest.mark.parametrize("arguments", [{}, {"activation": "relu"}], ids=["linear", "relu"])
@pytest.mark.parametrize("name", LAYERS)
def test_same_output_and_divergence(name: str, arguments: dict[str, Any], tfp: Any, noise: Noise):
    x = layer_input(name)
    ours, theirs = both_layers(tfp, name, noise, x, **arguments)
    output = np.asarray(ours(x))  # in training, reparameterization would mirror the noise of every second example
    assert_allclose(output, np.asarray(theirs(x)), rtol=1e-5, atol=1e-5)
    assert_allclose(float(ours.kl_divergence()), float(sum(theirs.losses)), rtol=1e-5)
    # Both drew the same noise, and it mattered.
    askers = {asker: {draw[:2] for draw in noise.given if draw[2] == asker} for asker in ("bdl", "tfp")}
    assert askers["bdl"] == askers["tfp"]
    assert {kind for kind, _ in askers["bdl"]} == ({"normal", "sign"} if "Flipout" in name else {"normal"})
    with bdl.mean_weights(ours):
        assert not np.allclose(np.asarray(ours(x, training=True)), output, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("Conv")])
def test_same_output_with_strides_and_padding(name: str, tfp: Any, noise: Noise):
    x = layer_input(name)
    ours, theirs = both_layers(tfp, name, noise, x, strides=2, padding="same")
    assert_allclose(np.asarray(ours(x)), np.asarray(theirs(x)), rtol=1e-5, atol=1e-5)


# Each prior here, and the same distribution built in TFP for weights of shape (6, 4) with the rows summed over.
PRIORS: list[tuple[priors.Prior, Callable[[Any, np.ndarray, np.ndarray], Any]]] = [
    (priors.Normal(), lambda tfd, mean, scale: tfd.Normal(np.float64(0), np.float64(1))),
    (priors.Normal(-0.5, 0.3), lambda tfd, mean, scale: tfd.Normal(np.float64(-0.5), np.float64(0.3))),
    (priors.FanInNormal(2.0), lambda tfd, mean, scale: tfd.Normal(np.float64(0), 2 / np.sqrt(np.float64(6)))),
    (priors.WidthNormal(0.2), lambda tfd, mean, scale: tfd.Normal(np.float64(0), np.float64(0.2))),
    (priors.TiedMean(0.7), lambda tfd, mean, scale: tfd.Normal(mean, np.float64(0.7))),
    (priors.TiedMean(), lambda tfd, mean, scale: tfd.Normal(mean, 1 / np.sqrt(np.float64(6)))),
    (
        priors.EmpiricalBayes("layer", 0.0),
        lambda tfd, mean, scale: tfd.Normal(np.float64(0), np.sqrt(np.mean(mean**2 + scale**2))),
    ),
    (
        priors.EmpiricalBayes("row", 0.0),
        lambda tfd, mean, scale: tfd.Normal(np.float64(0), np.sqrt(np.mean(mean**2 + scale**2, 1, keepdims=True))),
    ),
    (
        priors.EmpiricalBayes("column", 0.0),
        lambda tfd, mean, scale: tfd.Normal(np.float64(0), np.sqrt(np.mean(mean**2 + scale**2, 0, keepdims=True))),
    ),
    (
        priors.EmpiricalBayes("row_column", 0.0),  # its scales are told from numerical optimisation in tests/priors
        lambda tfd, mean, scale: tfd.Normal(
            np.float64(0), np.float64(priors.EmpiricalBayes("row_column", 0.0).parameters(mean, scale, (0,))[1])
        ),
    ),
]


@pytest.mark.parametrize(("prior", "build"), PRIORS, ids=[repr(prior) for prior, _ in PRIORS])
def test_divergence_equals_tfp(prior: priors.Prior, build: Any, tfp: Any):
    generator = np.random.default_rng(3)
    mean, scale = generator.normal(size=(6, 4)), generator.uniform(0.05, 2.0, size=(6, 4))
    posterior, twin = tfp.distributions.Normal(mean, scale), build(tfp.distributions, mean, scale)
    observed = float(prior.kl(mean.astype("float32"), scale.astype("float32"), input_axes=(0,)))
    expected = float(np.sum(tfp.distributions.kl_divergence(posterior, twin)))
    assert_allclose(observed, expected, rtol=1e-5)
    weights = posterior.sample(4_000, seed=4)
    draws = np.sum(posterior.log_prob(weights) - twin.log_prob(weights), axis=(1, 2))
    assert_mean(draws, observed, k=4)
