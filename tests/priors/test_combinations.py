"""Every prior with every posterior and every estimator that admits it, in layers: trained, saved, in half precision."""

import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from gradients import gradients
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose, assert_array_equal

import bdl
from bdl.layers import Variational
from bdl.posteriors import LowRankNormal, MatrixNormal, MeanFieldNormal, Posterior, Rank1
from bdl.priors import (
    EmpiricalBayes,
    FanInNormal,
    Horseshoe,
    Laplace,
    Moped,
    Normal,
    Prior,
    ScaleMixture,
    TiedMean,
    WidthNormal,
)

PRIORS: list[Prior] = [
    Normal(0.1, 0.7),
    FanInNormal(),
    EmpiricalBayes("layer"),
    EmpiricalBayes("row"),
    EmpiricalBayes("column"),
    EmpiricalBayes(),
    TiedMean(),
    TiedMean(FanInNormal(0.5), Normal()),
    WidthNormal(),
    TiedMean(WidthNormal(), Normal()),
    Moped(),
    Moped(Horseshoe()),
    Laplace(scale="fan_in"),
    ScaleMixture(),
    ScaleMixture((0.2, 0.3, 0.5), (2.0, 0.5, 0.1), "fan_in", learned=True),
    Horseshoe("weight"),
    Horseshoe("row"),
    Horseshoe("column", 0.5),
]
POSTERIORS: list[Posterior] = [MeanFieldNormal(), MatrixNormal(), LowRankNormal()]
POINT_PRIORS = [None, Normal(), FanInNormal(), Laplace(), ScaleMixture(), Moped()]
KERAS_LAYERS = {
    "dense": (lambda **kwargs: keras.layers.Dense(3, **kwargs), (2, 4)),
    "conv": (lambda **kwargs: keras.layers.Conv2D(3, 2, **kwargs), (2, 4, 3, 2)),
}


def sampled(
    kind: str, prior: Any, posterior: Any, estimator: str = "reparameterization", dtype: Any = "float32"
) -> tuple[Variational, Any]:
    make, shape = KERAS_LAYERS[kind]
    layer = Variational(make(dtype=dtype), estimator, prior, posterior, seed=0)
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=shape).astype("float32"))
    layer(x)
    return layer, x


def check_finite(layer: Variational, x: Any) -> None:
    """The divergence and the gradients of loss plus divergence are finite, and every divergence has a gradient."""
    held = layer.trainable_variables
    values = [ops.convert_to_tensor(ops.convert_to_numpy(variable)) for variable in held]
    state = [ops.convert_to_tensor(ops.convert_to_numpy(variable)) for variable in layer.non_trainable_variables]

    def divergence(values: list[Any]) -> Any:
        with keras.StatelessScope(list(zip(held, values, strict=True))):
            return layer.kl_divergence()

    def loss(values: list[Any]) -> Any:
        outputs = layer.stateless_call(values, state, x, training=True)[0]
        return ops.sum(ops.cast(ops.square(outputs), "float32")) + divergence(values)

    total = layer.kl_divergence()
    assert keras.backend.standardize_dtype(total.dtype) == "float32"
    assert np.isfinite(array(total))
    for variable, slope in zip(held, gradients(loss, values), strict=True):
        assert np.all(np.isfinite(array(slope))), variable.path
    slopes = dict(zip([variable.path for variable in held], gradients(divergence, values), strict=True))
    moved = [path for path, slope in slopes.items() if np.any(array(slope) != 0)]
    assert [path for path in slopes if "rho" in path or "mixture" in path] == [
        path for path in moved if "rho" in path or "mixture" in path
    ]


def estimators_of(posterior: Posterior) -> tuple[str, ...]:
    everything = ("reparameterization", "flipout", "local_reparameterization")
    return everything if posterior.has_independent_weights else everything[:1]


COMBINATIONS = [
    pytest.param(
        kind, prior, posterior, estimator,
        marks=[pytest.mark.core] if (kind, estimator) == ("dense", "reparameterization") else [],
        id=f"{kind}-{prior}-{type(posterior).__name__}-{estimator}",
    )
    for kind, prior, posterior in itertools.product(KERAS_LAYERS, PRIORS, POSTERIORS)
    for estimator in estimators_of(posterior)
]  # fmt: skip


@pytest.mark.parametrize(("kind", "prior", "posterior", "estimator"), COMBINATIONS)
def test_divergence_and_gradients_are_finite(kind: str, prior: Prior, posterior: Posterior, estimator: str):
    check_finite(*sampled(kind, prior, posterior, estimator))


@pytest.mark.core
@pytest.mark.parametrize("kernel_prior", POINT_PRIORS, ids=repr)
@pytest.mark.parametrize("kind", list(KERAS_LAYERS))
def test_rank1_factors_beside_every_prior_of_point_estimates(kind: str, kernel_prior: Any):
    layer, x = sampled(kind, "normal", Rank1(kernel_prior=kernel_prior))
    check_finite(layer, x)
    plain, _ = sampled(kind, "normal", Rank1())
    (weight,) = layer.sampled_weights.values()
    plain.layer.kernel.assign(layer.layer.kernel)
    expected = 0.0
    if kernel_prior is not None:
        expected = array(
            kernel_prior.penalty(ops.convert_to_tensor(weight.mean), weight.input_axes, weight.prior_variables)
        )
    assert_allclose(array(layer.kl_divergence()) - array(plain.kl_divergence()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.core
def test_every_prior_serves_rank1_factors():
    for prior in PRIORS:
        check_finite(*sampled("dense", "normal", Rank1(prior, prior)))


@pytest.mark.core
@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_the_divergence_stays_float32_in_half_precision(prior: Prior, policy: str):
    layer, _ = sampled("dense", prior, MeanFieldNormal(), dtype=policy)
    total = layer.kl_divergence()
    assert keras.backend.standardize_dtype(total.dtype) == "float32"
    assert np.isfinite(array(total))
    reference, _ = sampled("dense", prior, MeanFieldNormal())
    (held,), (ours,) = reference.sampled_weights.values(), layer.sampled_weights.values()
    held.mean.assign(ops.cast(ops.convert_to_tensor(ours.mean), "float32"))
    if "centre" in held.prior_variables:
        held.prior_variables["centre"].assign(ours.prior_variables["centre"])
    assert_allclose(array(total), array(reference.kl_divergence()), rtol=1e-4)


@pytest.mark.core
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_a_saved_model_comes_back_with_what_its_priors_keep(prior: Prior, tmp_path: Path):
    model = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3, kernel_prior=prior, bias_prior=prior)])
    for number, variable in enumerate(model.weights):
        if "seed" not in variable.path:
            variable.assign(variable + 0.01 * (number + 1) * np.ones(variable.shape))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].kernel_prior == prior
    assert_allclose(array(loaded.layers[0].kl_divergence()), array(model.layers[0].kl_divergence()), rtol=1e-6)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))


@pytest.mark.parametrize("kernel_prior", POINT_PRIORS[1:], ids=repr)
def test_a_rank1_model_comes_back_with_its_kernel_prior(kernel_prior: Any, tmp_path: Path):
    layer = bdl.layers.Conv1DRank1(3, 2, kernel_prior=kernel_prior)
    model = keras.Sequential([keras.Input((4, 2)), layer])
    layer.layer.kernel.assign(2 * layer.layer.kernel)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].kernel_prior == kernel_prior
    assert_allclose(array(loaded.layers[0].kl_divergence()), array(layer.kl_divergence()), rtol=1e-6)


def test_a_regularizer_beside_a_kernel_prior_is_refused():
    bdl.layers.DenseRank1(3, kernel_regularizer="l2").build((None, 4))
    with pytest.raises(ValueError, match=r"`kernel_regularizer` of layer .* the two would count twice"):
        bdl.layers.DenseRank1(3, kernel_regularizer="l2", kernel_prior="normal").build((None, 4))
    with pytest.raises(ValueError, match=r"`kernel_prior` is the prior of point estimates"):
        bdl.layers.DenseRank1(3, kernel_prior="horseshoe")
    with pytest.raises(ValueError, match=r"`kernel_prior` must be a bdl.priors.Prior or one of the names"):
        bdl.layers.DenseRank1(3, kernel_prior="ridge")


def test_weight_decay_of_one_over_n_is_the_map_of_a_normal():
    """The gradient of the penalty is the weight itself."""
    layer = bdl.layers.DenseRank1(3, kernel_prior="normal")
    layer.build((None, 4))
    kernel = layer.layer.kernel
    values = [ops.convert_to_tensor(ops.convert_to_numpy(kernel))]

    def divergence(values: list[Any]) -> Any:
        with keras.StatelessScope([(kernel, values[0])]):
            return layer.kl_divergence()

    assert_allclose(array(gradients(divergence, values)[0]), array(values[0]), rtol=1e-6)
