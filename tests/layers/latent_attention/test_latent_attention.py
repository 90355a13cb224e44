"""Latent attention: Keras' own where it is soft, the exact mixture at prediction, and inference from both sides."""

from pathlib import Path

import keras
import numpy as np
import pytest
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from latent_networks import (
    BATCH,
    CLASSES,
    DIM,
    KEYS,
    LABELS,
    QUERIES,
    QUERY,
    QUERY_MASK,
    TARGET,
    TARGETS,
    VALUE,
    VALUE_MASK,
    all_gradients,
    array,
    built,
    called,
    data_of,
    latent,
    network,
    quiet_model,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy import optimize, special, stats
from standard_errors import assert_mean, assert_within_standard_errors

import bdl
from bdl.latents import take_local_kl
from bdl.layers import LatentAttention
from bdl.layers.latent_attention import alignment
from bdl.layers.latent_attention.alignment_estimators import ESTIMATORS, NEED_DECODER
from bdl.likelihoods import Categorical, Mixture, Normal

INPUTS = [QUERY, VALUE, TARGETS]
KEY = np.random.default_rng(7).normal(size=VALUE.shape).astype("float32")
BACKEND = keras.backend.backend()
WITHOUT_DECODER = [name for name in ESTIMATORS if name not in NEED_DECODER]
CASES = [(name, "dense") for name in ESTIMATORS] + [(name, None) for name in WITHOUT_DECODER]
CASE_NAMES = [f"{name}{'' if decoder else ' without decoder'}" for name, decoder in CASES]


# Soft attention is Keras'


LAYERS = {
    "dot": {},
    "concat": {"score_mode": "concat"},
    "scaled": {"use_scale": True},
    "scaled concat": {"score_mode": "concat", "use_scale": True},
}
CALLS = {
    "whole": {},
    "masks": {"mask": [QUERY_MASK, VALUE_MASK]},
    "query mask": {"mask": [QUERY_MASK, None]},
    "causal": {"use_causal_mask": True},
    "causal with value mask": {"mask": [None, VALUE_MASK], "use_causal_mask": True},
    "training": {"training": True},
}


@pytest.mark.core
@pytest.mark.parametrize("arguments", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_soft_attention_is_that_of_keras(arguments, call):
    ours, theirs = LatentAttention(**arguments), keras.layers.Attention(**arguments)
    masks = call.get("mask")
    call = {**call, "mask": masks and [mask if mask is None else ops.convert_to_tensor(mask) for mask in masks]}
    for inputs in ([QUERY, VALUE], [QUERY, VALUE, KEY]):
        inputs = [ops.convert_to_tensor(each) for each in inputs]
        for layer in (ours, theirs):
            if not layer.built:
                layer.build([each.shape for each in inputs])
            for number, weight in enumerate(layer.trainable_weights):
                weight.assign(0.6 + 0.3 * number)
        assert_allclose(array(ours(inputs, **call)), array(theirs(inputs, **call)), atol=1e-6)
        outputs, scores = ours(inputs, return_attention_scores=True, **call)
        expected, expected_scores = theirs(inputs, return_attention_scores=True, **call)
        assert_allclose(array(outputs), array(expected), atol=1e-6)
        assert_allclose(array(scores), array(expected_scores), atol=1e-6)


@pytest.mark.core
def test_gradients_of_soft_attention_are_those_of_keras():
    found = []
    for layer in (LatentAttention(use_scale=True), keras.layers.Attention(use_scale=True)):
        layer.build([QUERY.shape, VALUE.shape])

        def total(values, layer=layer):
            state = [variable.value for variable in layer.non_trainable_variables]
            outputs, _ = layer.stateless_call(values[2:], state, list(values[:2]))
            return ops.sum(ops.square(outputs))

        values = [ops.convert_to_tensor(each) for each in (QUERY, VALUE, np.float32(0.7))]
        found.append([array(each) for each in gradients(total, values)])
    for ours, theirs in zip(*found, strict=True):
        assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# The identity, given the query alone


def scores_and_weights():
    """Scores `(batch, queries, keys)` and Keras' attention weights."""
    weights = keras.layers.Attention()([QUERY, VALUE], return_attention_scores=True)[1]
    return QUERY @ VALUE.swapaxes(1, 2), array(weights).astype("float64")


def elbo(scores, log_q):
    """`sum_k q_k score_k + H(q)`: evidence p(query | z = k) in proportion to exp(score_k) and a uniform prior."""
    return ops.sum(ops.exp(log_q) * ops.convert_to_tensor(scores), axis=-1) + alignment.entropy(log_q)


@pytest.mark.core
def test_attention_weights_are_the_posterior_of_the_key_given_the_query():
    """The bound is tight at Keras' weights, and flat."""
    scores, weights = scores_and_weights()
    tight = array(elbo(scores, ops.convert_to_tensor(np.log(weights).astype("float32"))))
    assert_allclose(tight, special.logsumexp(scores, axis=-1), atol=1e-5, rtol=1e-6)

    def total(values):
        return ops.sum(elbo(scores, alignment.log_probabilities(values[0])))

    slope = array(gradients(total, [ops.convert_to_tensor(np.log(weights).astype("float32"))])[0])
    assert_allclose(slope, 0.0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_every_other_alignment_is_lower_by_its_divergence_from_the_weights(seed, scale):
    scores, weights = scores_and_weights()
    log_q = special.log_softmax(scale * np.random.default_rng(seed).normal(size=scores.shape), axis=-1)
    gap = special.logsumexp(scores, axis=-1) - array(elbo(scores, ops.convert_to_tensor(log_q.astype("float32"))))
    assert np.all(gap > 0)
    assert_allclose(gap, stats.entropy(np.exp(log_q), weights, axis=-1), rtol=1e-3, atol=2e-5)


def test_the_maximiser_over_free_alignments_is_found_at_the_weights():
    scores, weights = scores_and_weights()

    def negative(flat):
        values = ops.convert_to_tensor(flat.reshape(scores.shape).astype("float32"))

        def total(values):
            return -ops.sum(elbo(scores, alignment.log_probabilities(values[0])))

        return float(total([values])), array(gradients(total, [values])[0]).ravel().astype("float64")

    start = np.random.default_rng(0).normal(size=scores.size)
    found = optimize.minimize(negative, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    assert_allclose(special.softmax(found.x.reshape(scores.shape), axis=-1), weights, atol=2e-3)  # float32 gradients
    assert -found.fun == pytest.approx(special.logsumexp(scores, axis=-1).sum(), rel=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_dot_products_with_keys_of_equal_norm_are_responsibilities_of_a_mixture_of_gaussians(scale):
    """Means are the keys, the variance is scale^2: p(z = k | query) = softmax(query' key_k / scale^2)."""
    keys = 1.7 * VALUE / np.linalg.norm(VALUE, axis=-1, keepdims=True)
    layer = LatentAttention(use_scale=True)
    layer.build([QUERY.shape, keys.shape])
    layer.score.scale.assign(1 / scale**2)
    _, weights = layer([QUERY, VALUE, keys], return_attention_scores=True)
    densities = np.stack(
        [
            [stats.multivariate_normal(mean, scale**2).pdf(queries) for mean in means]
            for queries, means in zip(QUERY.astype("float64"), keys, strict=True)
        ]
    ).swapaxes(1, 2)
    assert_allclose(array(weights), densities / densities.sum(axis=-1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_the_mixture_of_gaussians_is_scikit_learns():
    mixture = pytest.importorskip("sklearn.mixture").GaussianMixture(KEYS, covariance_type="spherical")
    keys = VALUE[0] / np.linalg.norm(VALUE[0], axis=-1, keepdims=True)
    mixture.weights_, mixture.means_ = np.full(KEYS, 1 / KEYS), keys.astype("float64")
    mixture.covariances_, mixture.precisions_cholesky_ = np.full(KEYS, 0.25), np.full(KEYS, 2.0)
    layer = LatentAttention(use_scale=True)
    layer.build([(1, QUERIES, DIM), (1, KEYS, DIM)])
    layer.score.scale.assign(4.0)
    _, weights = layer([QUERY[:1], keys[None]], return_attention_scores=True)
    assert_allclose(array(weights)[0], mixture.predict_proba(QUERY[0].astype("float64")), rtol=1e-4, atol=1e-6)


# The identity, given the target


@pytest.mark.core
def test_the_posterior_given_the_target_is_the_softmax_of_score_and_log_likelihood():
    layer, likelihood = built("marginal"), Mixture(Categorical())
    outputs = layer([QUERY, VALUE])
    each = array(
        Categorical().log_prob(ops.convert_to_tensor(np.repeat(LABELS[..., None], KEYS, -1)), outputs[..., :-2])
    )
    scores = QUERY @ VALUE.swapaxes(1, 2) / np.sqrt(DIM)
    posterior = array(likelihood.posterior(LABELS, outputs))
    assert_allclose(posterior, special.softmax(scores + each, axis=-1), rtol=1e-4, atol=1e-6)
    # The ELBO of that q, with the layer's own prior, is the layer's log marginal.
    log_prior = special.log_softmax(scores, axis=-1)
    bound = np.sum(posterior * (each + log_prior - np.log(posterior)), axis=(-1, -2))
    assert_allclose(-array(likelihood.nll(LABELS, outputs)), bound, atol=1e-5, rtol=1e-6)


# Masks


def mask_tensors(*masks):
    return [None if mask is None else ops.convert_to_tensor(mask) for mask in masks]


@pytest.mark.core
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("estimator", ["soft", "marginal", "enumerate"])
def test_padding_changes_nothing(estimator, training):
    """A batch with masks is, example by example, the batch without its padding."""
    layer, likelihood = built(estimator), Mixture(Categorical())
    outputs, kl = called(layer, INPUTS, training, mask=mask_tensors(QUERY_MASK, VALUE_MASK))
    nll = array(likelihood.nll(LABELS, outputs, QUERY_MASK))
    for example in range(BATCH):
        queries, keys = QUERY_MASK[example].sum(), VALUE_MASK[example].sum()
        rows = [each[example : example + 1] for each in INPUTS]
        short = [rows[0][:, :queries], rows[1][:, :keys], rows[2][:, :queries]]
        expected, expected_kl = called(layer, short, training)
        assert_allclose(array(kl)[example], array(expected_kl)[0], rtol=1e-4, atol=1e-6)
        assert_allclose(
            nll[example], array(likelihood.nll(LABELS[example : example + 1, :queries], expected))[0], rtol=1e-4
        )


@pytest.mark.core
@pytest.mark.parametrize(("estimator", "decoder"), CASES, ids=CASE_NAMES)
def test_a_causal_mask_hides_what_comes_later(estimator, decoder):
    layer = built(estimator, decoder)
    later = VALUE.copy()
    later[:, 2:] += 1.0
    for training in (False, True):
        one, other = (
            array(called(layer, [QUERY, value, TARGETS], training, use_causal_mask=True)[0]) for value in (VALUE, later)
        )
        if decoder and (estimator == "marginal" or not training or estimator == "enumerate") and one.shape[2] == KEYS:
            one, other = one[:, :, :2], other[:, :, :2]  # the other points have no weight
        assert_allclose(one[:, :2], other[:, :2], atol=1e-6)
        assert not np.allclose(one[:, 3], other[:, 3], atol=1e-4) or one.shape[2] == 2


@pytest.mark.core
@pytest.mark.parametrize(("estimator", "decoder"), CASES, ids=CASE_NAMES)
def test_queries_without_any_key_give_neither_nan_outputs_nor_gradients(estimator, decoder):
    """One example has no key at all; of another the first queries see none, by the causal mask."""
    layer = built(estimator, decoder, use_scale=True)
    keys = np.array([[True] * KEYS, [False] * KEYS, [False, False, True, True, True]])
    likelihood = Mixture(Categorical())
    arguments = {"mask": mask_tensors(QUERY_MASK, keys), "use_causal_mask": True}

    def loss(outputs, kl):
        fit = ops.sum(likelihood.nll(LABELS, outputs)) if decoder else ops.sum(ops.square(outputs - 1.0))
        return fit + ops.sum(kl)

    for training in (False, True):
        outputs, kl = called(layer, INPUTS, training, **arguments)
        assert np.all(np.isfinite(array(outputs)))
        assert np.all(np.isfinite(array(kl)))
        assert array(kl)[1] == 0.0
    for slope in all_gradients(layer, INPUTS, loss, **arguments):
        assert np.all(np.isfinite(slope))


@pytest.mark.core
@pytest.mark.parametrize("estimator", ["marginal", "enumerate"])
def test_masks_of_embeddings_reach_the_layer_and_its_likelihood(estimator):
    """Ragged sentences: the padded batch has the NLL of the sentences by themselves, and so its gradient."""
    source, target = np.array([[1, 2, 3], [4, 0, 0]]), np.array([[2, 3, 1], [1, 2, 0]])
    inputs = [keras.Input((None,), dtype="int32") for _ in range(2)]
    keys, queries = (keras.layers.Embedding(5, DIM, mask_zero=True)(tokens) for tokens in inputs)
    layer = latent(estimator, keras.layers.Dense(5))
    arguments = {"target": keras.layers.Embedding(5, TARGET)(inputs[1])} if layer.is_variational else {}
    model = keras.Model(inputs, layer([queries, keys], **arguments))
    likelihood = Mixture(Categorical())

    def nll(source, target, training):
        outputs = model([source, target], training=training)
        kl = take_local_kl(model) if training and layer.is_variational else 0.0
        return array(likelihood.nll(target, outputs, bdl.keras_internals.keras_mask(outputs)) + kl)

    for training in (False, True):
        padded = nll(source, target, training)
        assert_allclose(padded[0], nll(source[:1], target[:1], training)[0], rtol=1e-5)
        assert_allclose(padded[1], nll(source[1:, :1], target[1:, :2], training)[0], rtol=1e-5)


# Prediction


def mixture_of(layer):
    """Log weights of the keys and the decoder's outputs at each, by NumPy."""
    log_weight = special.log_softmax(QUERY @ VALUE.swapaxes(1, 2) / np.sqrt(DIM), axis=-1)
    shape = (BATCH, QUERIES, KEYS, DIM)
    pairs = [np.broadcast_to(VALUE[:, None], shape), np.broadcast_to(QUERY[:, :, None], shape)]
    kernel, bias = (array(weight) for weight in layer.decoder.weights)
    return log_weight, np.concatenate(pairs, axis=-1) @ kernel + bias


@pytest.mark.core
@pytest.mark.parametrize("estimator", ["marginal", "enumerate", "reinforce", "gumbel"])
def test_probabilities_are_the_exact_sum_over_alignments(estimator):
    layer = built(estimator)
    model = network(layer)
    found = bdl.predict_distribution(model, data_of(model), Mixture(Categorical()), num_samples=2)
    log_weight, logits = mixture_of(layer)
    expected = np.sum(np.exp(log_weight)[..., None] * special.softmax(logits, axis=-1), axis=-2)
    assert_allclose(found.probabilities, expected, rtol=1e-4, atol=1e-6)
    assert_allclose(found.epistemic, 0.0, atol=1e-6)  # the alignment's doubt is in every sample
    assert_allclose(found.total_uncertainty, stats.entropy(expected, axis=-1), rtol=1e-4)
    chosen = np.take_along_axis(expected, LABELS[..., None], axis=-1)[..., 0]
    assert_allclose(found.log_prob(LABELS), np.log(chosen), rtol=1e-4)


@pytest.mark.core
def test_a_regression_mixture_predicts_what_the_sum_over_alignments_has():
    layer = built("enumerate", keras.layers.Dense(1))
    model = network(layer)
    found = bdl.predict_distribution(model, data_of(model), Mixture(Normal(scale=0.5)), num_samples=2)
    log_weight, location = mixture_of(layer)
    weight, location = np.exp(log_weight)[..., None], location.astype("float64")
    mean = np.sum(weight * location, axis=-2)
    assert found.mean.shape == (BATCH, QUERIES, 1)
    assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-5)
    variance = 0.25 + np.sum(weight * (location - mean[..., None, :]) ** 2, axis=-2)
    assert_allclose(found.variance, variance, rtol=1e-4)
    assert_allclose(found.epistemic, 0.0, atol=1e-8)
    y = TARGETS[..., :1]
    density = np.sum(weight * stats.norm(location, 0.5).pdf(y[..., None, :]), axis=-2)
    assert_allclose(found.log_prob(y), np.log(density), rtol=1e-3, atol=1e-5)
    median = found.quantile(0.5)
    assert_allclose(np.sum(weight * stats.norm(location, 0.5).cdf(median[..., None, :]), axis=-2), 0.5, atol=1e-4)
    assert_allclose(found.cdf(median), 0.5, atol=1e-9)
    wide = bdl.predict_distribution(model, data_of(model), Mixture(Normal(scale=0.5)), num_samples=512, seed=0)
    assert_mean(wide.sample(seed=0), mean, k=4)


@pytest.mark.core
def test_a_prediction_is_of_the_component_that_it_is_asked_for():
    model = network(built("marginal", keras.layers.Dense(1)))
    narrow, wide = (
        bdl.predict_distribution(model, data_of(model), Mixture(Normal(scale=scale)), num_samples=1).variance
        for scale in (0.5, 2.0)
    )
    assert_allclose(wide - narrow, 2.0**2 - 0.5**2, rtol=1e-4)


@pytest.mark.core
@pytest.mark.parametrize("estimator", ["gumbel", "dirichlet"])
def test_without_a_decoder_alignments_are_sampled_and_their_mean_is_soft_attention(estimator):
    layer = built(estimator, None)
    soft = array(built("soft", None)([QUERY, VALUE]))
    first, second = (array(layer([QUERY, VALUE])) for _ in range(2))
    assert not np.allclose(first, second, atol=1e-3)
    with bdl.mean_weights(layer):
        for _ in range(2):
            assert_allclose(array(layer([QUERY, VALUE])), soft, rtol=1e-4, atol=1e-5)
    many = [np.tile(each[:1], (4_096, 1, 1)) for each in INPUTS]
    draws = array(called(layer, many, training=False)[0])
    assert_mean(draws, soft[0], k=4)
    if estimator == "gumbel":  # each query takes one whole value
        distance = np.abs(draws[:50, :, None] - VALUE[0]).max(axis=-1)
        assert distance.min(axis=-1).max() < 1e-6


@pytest.mark.core
def test_predictions_without_a_decoder_tell_the_doubt_of_the_alignment():
    model = network(built("gumbel", None))
    prior = special.softmax(QUERY @ VALUE.swapaxes(1, 2) / np.sqrt(DIM), axis=-1)[..., None]
    each = special.softmax(VALUE, axis=-1)[:, None]
    mean = np.sum(prior * each, axis=-2)
    variance = np.sum(prior * (each - mean[..., None, :]) ** 2, axis=-2)
    found, again = (
        bdl.predict_distribution(model, data_of(model), Categorical(), num_samples=512, seed=0) for _ in range(2)
    )
    assert_within_standard_errors(found.probabilities, mean, np.sqrt(variance / 512), k=4)
    assert np.all(found.epistemic > 0)
    assert_array_equal(found.probabilities, again.probabilities)


@pytest.mark.core
@pytest.mark.parametrize(("estimator", "decoder"), CASES, ids=CASE_NAMES)
def test_symbolic_shapes_are_those_outside_training(estimator, decoder):
    layer = latent(estimator, decoder)
    model = network(layer, return_attention_scores=True)
    outputs, scores = model(data_of(model))
    assert model.output_shape[0][1:] == tuple(outputs.shape[1:])
    assert model.output_shape[1][1:] == tuple(scores.shape[1:]) == (QUERIES, KEYS)
    assert model.outputs[0].dtype == keras.backend.standardize_dtype(outputs.dtype)


@pytest.mark.core
def test_scores_returned_are_of_q_in_training_and_of_p_outside_it():
    layer = built("enumerate")
    prior = special.softmax(QUERY @ VALUE.swapaxes(1, 2) / np.sqrt(DIM), axis=-1)
    scores = [
        array(layer([QUERY, VALUE], target=TARGETS, training=training, return_attention_scores=True)[1])
        for training in (False, True)
    ]
    assert_allclose(scores[0], prior, rtol=1e-4, atol=1e-6)
    assert_allclose(scores[1].sum(axis=-1), 1.0, atol=1e-5)
    assert np.abs(scores[1] - prior).max() > 0.1


@pytest.mark.core
@pytest.mark.parametrize("estimator", WITHOUT_DECODER)
def test_dropout_is_of_weights_in_training_and_keeps_their_mean(estimator):
    layer = built(estimator, None, dropout=0.5, inference_network=None)
    inputs = [np.tile(each[:1], (4_096, 1, 1)) for each in INPUTS]
    soft = array(built("soft", None)([QUERY[:1], VALUE[:1]]))[0]
    draws = array(called(layer, inputs, training=True)[0])
    assert draws.var(axis=0).min() > 0
    if estimator != "gumbel":  # whose relaxed samples have another mean
        assert_mean(draws, soft, k=4)
    if estimator == "soft":
        assert_allclose(array(called(layer, inputs, training=False)[0])[0], soft, rtol=1e-4, atol=1e-5)


# Precision, compilation, files


@pytest.mark.core
@pytest.mark.parametrize(("estimator", "decoder"), CASES, ids=CASE_NAMES)
def test_mixed_precision_keeps_probabilities_in_full(estimator, decoder):
    found = []
    for dtype in ("float32", "mixed_float16"):
        wanted = keras.layers.Dense(CLASSES, dtype=dtype) if decoder else None
        layer = built(estimator, wanted, dtype=dtype, inference_network=None)
        found.append(layer([QUERY, VALUE], mask=mask_tensors(QUERY_MASK, VALUE_MASK)))
        if layer.estimator not in ("soft", "marginal"):
            layer = built(estimator, wanted, dtype=dtype)
            outputs = layer([QUERY, VALUE], target=TARGETS, training=True, mask=mask_tensors(QUERY_MASK, VALUE_MASK))
            assert np.all(np.isfinite(array(outputs)))
            kl = take_local_kl(layer)
            assert keras.backend.standardize_dtype(kl.dtype) == "float32"
            assert np.all(np.isfinite(array(kl)))
    full, half = found
    assert keras.backend.standardize_dtype(half.dtype) == ("float32" if decoder else "float16")
    if estimator not in ("dirichlet", "gumbel") or (decoder and estimator == "gumbel"):
        # float16 has eps = 1e-3, and the scores of some units are sums of 12 products.
        assert_allclose(np.exp(np.minimum(array(half), 0)), np.exp(np.minimum(array(full), 0)), atol=2e-2)


@pytest.mark.core
@pytest.mark.skipif(BACKEND == "torch", reason="Torch has no XLA here")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_compiled_step_has_the_loss_of_an_eager_call(estimator):
    """XLA and the eager call draw the same noise."""
    if BACKEND == "tensorflow" and estimator == "dirichlet":
        pytest.skip("TensorFlow's gamma does not compile under XLA; the layer says so")
    layer, likelihood = built(estimator), Mixture(Categorical())
    outputs, kl = called(layer, INPUTS, training=True)
    expected = array(likelihood.nll(LABELS, outputs) + kl).mean()
    model = quiet_model(network(layer), likelihood, num_examples=BATCH, kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    before = [array(weight) for weight in layer.trainable_weights]
    logs = model.train_on_batch(data_of(model.network), LABELS, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, rel=1e-4)
    assert all(np.all(np.isfinite(array(weight))) for weight in layer.trainable_weights)
    assert any(np.any(array(weight) != old) for weight, old in zip(layer.trainable_weights, before, strict=True))


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow alone")
def test_what_does_not_compile_says_so():
    assert not latent("dirichlet").supports_jit
    assert not latent("marginal", block_size=2).supports_jit
    assert latent("enumerate").supports_jit


@pytest.mark.core
@pytest.mark.parametrize(("estimator", "decoder"), CASES, ids=CASE_NAMES)
def test_models_are_saved_with_decoder_inference_network_and_noise(estimator, decoder, tmp_path: Path):
    layer = built(estimator, decoder, use_scale=True, block_size=2)
    model = network(layer)
    model(data_of(model))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        assert_array_equal(one, other)
    for training in (False, True):
        one, other = (each(data_of(model), training=training) for each in (model, again))
        assert_array_equal(array(one), array(other))
        assert array(take_local_kl(again)).tolist() == array(take_local_kl(model)).tolist()


@pytest.mark.core
@pytest.mark.parametrize(
    ("inputs", "received"),
    [
        (QUERY, "one tensor"),
        ([QUERY], "1 of them"),
        ([QUERY] * 4, "4 of them"),
    ],
    ids=["array", "1", "4"],
)
def test_inputs_are_two_or_three(inputs, received):
    with pytest.raises(ValueError, match=rf"`inputs` must be a list \[query, value\] .*not {received}"):
        LatentAttention()(inputs)
