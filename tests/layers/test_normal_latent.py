"""NormalLatent: its moments, its KL, what it reports, and the contract of a Keras layer."""

import keras
import numpy as np
import pytest
from gradients import weight_gradients
from keras import ops
from keras.src.testing import TestCase
from layer_contract import array
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from standard_errors import assert_moments, assert_within_standard_errors

import bdl
from bdl.diagnostics.local import local_latents
from bdl.diagnostics.symptoms import is_local_collapse
from bdl.latents import kl_of_draws, take_local_kl
from bdl.layers import NormalLatent, collect_latents

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(6, 4)).astype("float32")
SEQUENCES = RANDOM.normal(size=(6, 3, 4)).astype("float32")
MASK = np.arange(3) < np.array([3, 1, 2, 3, 1, 2])[:, None]


def code_of(x, units=2, **kwargs):
    """A layer whose scales differ from example to example, and its posterior there."""
    layer = NormalLatent(units, seed=0, **kwargs)
    layer.build(x.shape)
    layer.scale_head.kernel.assign(0.5 * RANDOM.normal(size=(x.shape[-1], units)))
    q = layer.posterior(ops.convert_to_tensor(x))
    return layer, array(q.mean).astype("float64"), array(q.scale).astype("float64")


def closed_form(mean, scale):
    """Divergence from N(0, 1) of each unit."""
    return 0.5 * (mean**2 + scale**2 - 1.0) - np.log(scale)


@pytest.mark.core
def test_draws_have_the_moments_of_the_posterior_and_each_example_its_own():
    layer, mean, scale = code_of(X)
    draws = array(layer(np.repeat(X, 5_000, axis=0))).reshape(6, 5_000, 2).astype("float64")
    for example in range(6):
        assert_moments(draws[example], mean[example], scale[example] ** 2)
    noise = ((draws - mean[:, None]) / scale[:, None]).transpose(1, 0, 2).reshape(5_000, 12)
    assert np.abs(np.corrcoef(noise.T) - np.eye(12)).max() < 5 / np.sqrt(5_000)


@pytest.mark.core
def test_a_new_layer_has_the_scale_of_the_prior():
    layer = NormalLatent(3)
    layer(X)
    assert_allclose(array(layer.posterior(X).scale), 1.0, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("x", [X, SEQUENCES], ids=["vector", "sequence"])
def test_the_kl_is_in_closed_form_and_of_each_example(x):
    layer, mean, scale = code_of(x)
    layer(x, training=True)
    expected = closed_form(mean, scale).reshape(6, -1).sum(axis=1)
    assert_allclose(array(take_local_kl(layer)), expected, rtol=1e-4)
    assert_allclose(array(layer.latent_figures())[0], expected.mean(), rtol=1e-4)


@pytest.mark.core
def test_the_kl_of_draws_is_their_log_ratio():
    layer, mean, scale = code_of(X)
    with kl_of_draws():
        code = array(layer(X)).astype("float64")
    log_ratio = stats.norm(mean, scale).logpdf(code) - stats.norm().logpdf(code)
    assert_allclose(array(take_local_kl(layer)), log_ratio.sum(axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.core
def test_what_is_masked_costs_nothing_and_is_reported_as_the_prior():
    layer, mean, scale = code_of(SEQUENCES)
    with collect_latents() as reports:
        code = layer(ops.convert_to_tensor(SEQUENCES), mask=ops.convert_to_tensor(MASK))
    assert code.shape == (6, 3, 2)
    expected = (closed_form(mean, scale).sum(axis=-1) * MASK).sum(axis=1)
    assert_allclose(array(take_local_kl(layer)), expected, rtol=1e-4)
    (report,) = reports
    assert_allclose(report.latent.mean, mean * MASK[..., None], rtol=1e-5, atol=1e-6)
    assert_allclose(report.latent.scale, np.where(MASK[..., None], scale, 1.0), rtol=1e-5)


@pytest.mark.core
def test_masks_come_from_the_layer_before_and_go_on():
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    layer = NormalLatent(2, seed=0)
    network = keras.Sequential([keras.layers.Embedding(5, 4, mask_zero=True), layer])
    with collect_latents() as reports:
        output = network(tokens)
    assert_array_equal(ops.convert_to_numpy(output._keras_mask), tokens != 0)
    assert_array_equal(reports[0].latent.mean[tokens == 0], 0.0)


@pytest.mark.core
def test_the_mean_takes_the_draws_place_within_mean_weights():
    layer, mean, _ = code_of(X)
    with bdl.mean_weights(layer):
        for training in (True, False):
            assert_allclose(array(layer(X, training=training)), mean, rtol=1e-5)
    assert not np.allclose(array(layer(X)), mean, atol=1e-2)


@pytest.mark.core
def test_the_noise_of_an_example_is_that_of_its_place_within_a_prediction():
    layer, *_ = code_of(X)
    network = keras.Sequential([keras.Input((4,)), layer])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), num_examples=6)
    first, second = (
        model.predict_distribution(X, num_samples=3, batch_size=size, seed=0, keep_outputs=True).outputs
        for size in (6, 2)
    )
    assert_allclose(first, second, rtol=1e-5)
    assert first.std(axis=0).min() > 0


@pytest.mark.core
def test_gradients_are_finite_and_reach_every_weight():
    for x in (X, np.zeros_like(X), 1e4 * X):
        layer = NormalLatent(2, seed=0)
        network = keras.Sequential([keras.Input((4,)), layer])

        def objective(code, network=network):
            return ops.sum(ops.square(code - 1.0)) + ops.sum(take_local_kl(network))

        found = weight_gradients(network, x, objective)
        assert len(found) == 4
        assert all(np.isfinite(each).all() for each in found.values())
        if x is X:
            assert all(np.any(each != 0) for each in found.values())
    layer.scale_head.bias.assign([-200.0, -200.0])  # a scale below what float32 tells from zero
    found = weight_gradients(network, X, objective)
    assert all(np.isfinite(each).all() for each in found.values())


@pytest.mark.core
def test_as_keras_does():
    for shape in ((2, 4), (2, 3, 4)):
        TestCase().run_layer_test(
            NormalLatent,
            {"units": 3, "seed": 1},
            input_shape=shape,
            expected_output_shape=(*shape[:-1], 3),
            expected_output_dtype="float32",
            expected_num_trainable_weights=4,
            expected_num_non_trainable_weights=2,
            expected_num_seed_generators=1,
            expected_num_losses=0,
            supports_masking=True,
            run_training_check=False,
        )


@pytest.mark.core
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_the_posterior_and_its_kl_stay_in_float32_whatever_the_policy(policy):
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no 64 bits unless asked")
    layer, reference = NormalLatent(2, seed=0, dtype=policy), NormalLatent(2, seed=0)
    for each in (reference, layer):
        each.build((None, 4))
    layer.set_weights(reference.get_weights())
    rounded = ops.cast(X, layer.compute_dtype)
    code, expected = layer(rounded), reference(ops.cast(rounded, "float32"))
    assert keras.backend.standardize_dtype(code.dtype) == layer.compute_dtype
    assert_allclose(array(code), array(expected), rtol=2.0**-8)  # the spacing of bfloat16
    kl = take_local_kl(layer)
    assert keras.backend.standardize_dtype(kl.dtype) == "float32"
    assert_allclose(array(kl), array(take_local_kl(reference)), rtol=1e-4, atol=1e-6)


@pytest.mark.core
def test_a_file_gives_weights_configuration_and_draws_back(tmp_path):
    network = keras.Sequential([keras.Input((4,)), NormalLatent(2, seed=5, name="code"), keras.layers.Dense(1)])
    network(X)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    assert loaded.get_layer("code").get_config() == network.get_layer("code").get_config()
    first = array(network(X))
    assert_allclose(array(loaded(X)), first, rtol=1e-6)
    assert not np.allclose(array(loaded(X)), first)


@pytest.mark.core
def test_logs_have_the_kl_and_the_active_units():
    x = np.repeat(X, 20, axis=0)
    network = keras.Sequential([keras.Input((4,)), NormalLatent(3, seed=0, name="code"), keras.layers.Dense(4)])
    layer = network.get_layer("code")
    kernel = array(layer.mean_head.kernel)
    kernel[:, 0] = 0.0  # its mean is a constant
    layer.mean_head.kernel.assign(kernel)
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.0))
    history = model.fit(x, x, batch_size=120, verbose=0).history
    mean = array(layer.posterior(x).mean)
    assert_allclose(history["code_kl"], closed_form(mean, np.ones_like(mean)).sum(1).mean(), rtol=1e-4)
    assert_allclose(history["code_active_units"], 2 / 3, rtol=1e-6)
    assert_allclose(history["kl"], 120 * np.array(history["code_kl"]), rtol=1e-5)
    assert_allclose(history["elbo"], -np.array(history["nll"]) - history["code_kl"], rtol=1e-5)


@pytest.mark.core
def test_a_diagnosis_reads_the_kl_and_the_active_units_and_knows_a_silent_code():
    network = keras.Sequential([keras.Input((4,)), NormalLatent(3, seed=0, name="code"), keras.layers.Dense(4)])
    layer = network.get_layer("code")
    x = np.repeat(X, 20, axis=0)
    for silent, active in ((1, 2 / 3), (3, 0.0)):
        kernel = array(layer.mean_head.kernel)
        kernel[:, :silent] = 0.0
        layer.mean_head.kernel.assign(kernel)
        found = local_latents(network, x)
        mean = array(layer.posterior(x).mean)
        assert_allclose(found.kl, closed_form(mean, np.ones_like(mean)).sum(axis=1).mean(), rtol=1e-4, atol=1e-6)
        assert found.active_units == pytest.approx(active)
        assert is_local_collapse(found) == (active == 0.0)


OBSERVED = 1.5
EVIDENCE = stats.norm(0, np.sqrt(2)).logpdf(OBSERVED)


@pytest.mark.core
@pytest.mark.parametrize(("objective", "steps"), [("multi_sample", 2), ("elbo", 40)])
def test_at_the_exact_posterior_the_bounds_are_the_log_evidence(objective, steps):
    """Of `z ~ N(0, 1)`, `x | z ~ N(z, 1)`, whose posterior is `N(x / 2, 1 / 2)`; each draw's own ratio is exact."""
    layer = NormalLatent(1, seed=0)
    network = keras.Sequential([keras.Input((1,)), layer])
    layer.mean_head.set_weights([np.full((1, 1), 0.5), np.zeros(1)])
    layer.scale_head.bias.assign(np.log(np.expm1(np.sqrt(0.5)))[None])
    settings = {"num_examples": 200, "kl_weight": 1.0, "num_samples": 3, "objective": objective}
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), **settings)
    model.compile(keras.optimizers.SGD(0.0))
    x = np.full((200, 1), OBSERVED, "float32")
    found = np.array([-float(model.train_on_batch(x, x, return_dict=True)["loss"]) for _ in range(steps)])
    if objective == "multi_sample":
        assert_allclose(found, EVIDENCE, rtol=1e-5)
    else:
        assert_within_standard_errors(found.mean(), EVIDENCE, found.std(ddof=1) / np.sqrt(steps))


def test_the_plain_network_has_the_mean_in_its_place():
    network = keras.Sequential([keras.Input((4,)), NormalLatent(2, seed=0, name="code"), keras.layers.Dense(1)])
    plain = bdl.convert.to_deterministic(network)
    assert type(plain.get_layer("code")) is keras.layers.Dense
    with bdl.mean_weights(network):
        assert_allclose(array(plain(X)), array(network(X)), rtol=1e-5)


@pytest.mark.parametrize("units", [0, -1, 2.5, True, None, "two"])
def test_bad_units_are_named(units):
    with pytest.raises(ValueError, match="`units` must be a positive integer, the size of the code, not"):
        NormalLatent(units)
