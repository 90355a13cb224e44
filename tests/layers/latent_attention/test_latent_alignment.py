"""What latent attention layers share: the local KL in the ELBO, its figures, blocks, settings."""

import keras
import numpy as np
import pytest
from keras import ops
from latent_networks import (
    BATCH,
    CLASSES,
    KEYS,
    LABELS,
    QUERIES,
    QUERY,
    QUERY_MASK,
    TARGETS,
    VALUE,
    VALUE_MASK,
    array,
    built,
    called,
    data_of,
    latent,
    network,
    quiet_model,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats

import bdl
from bdl.latents import take_local_kl
from bdl.layers import LatentAttention, collect_latents
from bdl.layers.latent_attention.alignment_estimators import ESTIMATORS, NEED_DECODER, VARIATIONAL
from bdl.likelihoods import Categorical, Mixture, Normal

INPUTS = [QUERY, VALUE, TARGETS]


def scores_of(layer):
    """Of prior and posterior, by NumPy."""
    kernel, bias = (array(weight).astype("float64") for weight in layer.inference_network.weights)
    inferred = np.concatenate([QUERY, TARGETS], axis=-1) @ kernel + bias
    prior, correction = (each @ VALUE.swapaxes(1, 2) / np.sqrt(VALUE.shape[-1]) for each in (QUERY, inferred))
    return prior, prior + correction


def categorical_kl(prior, posterior, keys):
    """Of each query, over the keys that exist."""
    p, q = (special.softmax(np.where(keys[:, None], scores, -np.inf), axis=-1) for scores in (prior, posterior))
    return stats.entropy(q, p, axis=-1)


def dirichlet_kl(prior, posterior, keys):
    kl = np.zeros((BATCH, QUERIES))
    for example in range(BATCH):
        a, b = (np.exp(scores[example][:, keys[example]]) for scores in (posterior, prior))
        total_a, total_b = a.sum(axis=-1), b.sum(axis=-1)
        of_normaliser = special.gammaln(total_a) - special.gammaln(total_b)
        of_each = (
            special.gammaln(b) - special.gammaln(a) + (a - b) * (special.digamma(a) - special.digamma(total_a)[:, None])
        )
        kl[example] = of_normaliser + of_each.sum(axis=-1)
    return kl


# The local KL


@pytest.mark.core
@pytest.mark.parametrize("estimator", VARIATIONAL)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_the_local_kl_is_numpys_over_queries_and_keys_that_exist(estimator, masked):
    layer = built(estimator)
    for weight in layer.inference_network.weights:
        weight.assign(0.5 * weight)
    mask = [ops.convert_to_tensor(each) for each in (QUERY_MASK, VALUE_MASK)] if masked else None
    layer([QUERY, VALUE], target=TARGETS, training=True, mask=mask)
    queries, keys = (QUERY_MASK, VALUE_MASK) if masked else (np.ones_like(QUERY_MASK), np.ones_like(VALUE_MASK))
    of_queries = (dirichlet_kl if estimator == "dirichlet" else categorical_kl)(*scores_of(layer), keys)
    kl = array(take_local_kl(layer))
    assert kl.shape == (BATCH,)
    assert_allclose(kl, (queries * of_queries).sum(axis=-1), rtol=1e-4)


@pytest.mark.core
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_is_added_where_q_is_p(estimator):
    layer = built(estimator)
    layer([QUERY, VALUE], **({"target": TARGETS} if layer.is_variational else {}))
    assert take_local_kl(layer) is None
    if estimator in VARIATIONAL:
        layer = built(estimator, inference_network=None)
        layer([QUERY, VALUE], training=True)
        assert take_local_kl(layer) is None


@pytest.mark.core
def test_figures_of_the_posterior_are_kept_and_reported():
    layer = built("enumerate")
    prior, posterior = scores_of(layer)
    q = special.softmax(posterior, axis=-1)
    with collect_latents() as reports:
        layer([QUERY, VALUE], target=TARGETS, training=True)
    kl = stats.entropy(q, special.softmax(prior, axis=-1), axis=-1).sum(axis=-1).mean()
    entropy = stats.entropy(q, axis=-1)
    information = np.sum(stats.entropy(q.mean(axis=0), axis=-1) - entropy.mean(axis=0))
    assert_allclose(array(layer.statistics), [[kl, entropy.mean(), information / QUERIES]], rtol=1e-4)
    [report] = reports
    assert report.layer == layer.name
    assert_allclose(report.latent.probabilities[:, 0], q, rtol=1e-3, atol=1e-6)
    assert_allclose(report.latent.prior_probabilities[:, 0], special.softmax(prior, axis=-1), rtol=1e-3, atol=1e-6)
    assert bdl.diagnostics.local.alignment_kl(report.latent) == pytest.approx(kl, rel=1e-4)
    assert bdl.diagnostics.local.mutual_information(report.latent) == pytest.approx(
        min(information, np.log(BATCH)), rel=1e-4
    )


@pytest.mark.core
def test_figures_leave_out_queries_that_do_not_exist():
    layer = built("enumerate")
    keys = np.ones_like(VALUE_MASK)
    prior, posterior = scores_of(layer)
    layer([QUERY, VALUE], target=TARGETS, training=True, mask=[ops.convert_to_tensor(QUERY_MASK), None])
    found = array(layer.statistics)[0]
    assert found[0] == pytest.approx((QUERY_MASK * categorical_kl(prior, posterior, keys)).sum() / BATCH, rel=1e-4)
    entropy = stats.entropy(special.softmax(posterior, axis=-1), axis=-1)
    assert found[1] == pytest.approx(entropy[QUERY_MASK].mean(), rel=1e-4)


# The ELBO


class Steps(keras.callbacks.Callback):
    """Logs of each epoch, which is one step."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


@pytest.mark.core
def test_the_models_elbo_has_the_local_kl_which_a_schedule_anneals():
    layer = built("enumerate")
    model = bdl.VariationalModel(network(layer), Mixture(Categorical()), kl_weight=bdl.elbo.LinearWarmup(steps=2))
    model.compile(keras.optimizers.SGD(0.0))
    steps = Steps()
    model.fit(INPUTS, LABELS, batch_size=BATCH, epochs=3, verbose=0, callbacks=[steps])
    prior, posterior = scores_of(layer)
    kl = categorical_kl(prior, posterior, np.ones_like(VALUE_MASK)).sum(axis=-1).mean()
    q = special.softmax(posterior, axis=-1)
    nll = -(q * log_likelihoods(layer)).sum(axis=(-1, -2)).mean()
    assert [logs["temperature"] for logs in steps.logs] == [0.0, 0.5, 1.0]
    for logs in steps.logs:
        assert logs["nll"] == pytest.approx(nll, rel=1e-4)
        assert logs["kl"] == pytest.approx(BATCH * kl, rel=1e-4)
        assert logs["elbo"] == pytest.approx(-(nll + kl), rel=1e-4)
        assert logs["loss"] == pytest.approx(nll + logs["temperature"] * kl, rel=1e-4)
    found = model.evaluate(INPUTS, LABELS, verbose=0, return_dict=True)
    marginal = special.logsumexp(special.log_softmax(prior, axis=-1) + log_likelihoods(layer), axis=-1)
    assert found["kl"] == 0.0
    assert found["nll"] == pytest.approx(-marginal.sum(axis=-1).mean(), rel=1e-4)
    assert -found["nll"] > -(nll + kl)  # the exact marginal is above the bound


def log_likelihoods(layer):
    """`log p(y | z = k, x)` of a Dense decoder, (batch, queries, keys), by NumPy."""
    kernel, bias = (array(weight).astype("float64") for weight in layer.decoder.weights)
    shape = (BATCH, QUERIES, KEYS, VALUE.shape[-1])
    pairs = [np.broadcast_to(VALUE[:, None], shape), np.broadcast_to(QUERY[:, :, None], shape)]
    logits = np.concatenate(pairs, axis=-1) @ kernel + bias
    labels = np.broadcast_to(LABELS[..., None, None], (BATCH, QUERIES, KEYS, 1))
    return np.take_along_axis(special.log_softmax(logits, axis=-1), labels, axis=-1)[..., 0]


@pytest.mark.core
@pytest.mark.parametrize("as_list", [False, True])
def test_the_elbo_as_a_keras_loss_counts_the_local_kl_once(as_list):
    layer, likelihood = built("enumerate"), Mixture(Categorical())
    outputs, kl = called(layer, INPUTS, training=True)
    expected = array(likelihood.nll(ops.convert_to_tensor(LABELS), outputs) + kl).mean()
    model = network(layer)
    loss = bdl.elbo.ELBO(likelihood, num_examples=BATCH, model=model)
    model.compile(keras.optimizers.SGD(0.0), loss=[loss] if as_list else loss)
    assert model.train_on_batch(data_of(model), LABELS) == pytest.approx(expected, rel=1e-4)


@pytest.mark.core
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_training_lowers_the_loss(estimator):
    """The label of a query is that of the value whose key it is nearest to."""
    random = np.random.default_rng(0)
    query, value = random.normal(size=(64, 2, 4)), random.normal(size=(64, 3, 4))
    nearest = np.argmax(query @ value.swapaxes(1, 2), axis=-1)
    labels = np.take_along_axis(np.argmax(value, axis=-1), nearest, axis=1)
    inputs = [keras.Input((2, 4)), keras.Input((3, 4)), keras.Input((2, 4))]
    keras.utils.set_random_seed(0)
    layer = latent(estimator, keras.layers.Dense(4))
    target = {"target": inputs[2]} if layer.is_variational else {}
    used = inputs if target else inputs[:2]
    model = quiet_model(keras.Model(used, layer(inputs[:2], **target)), Mixture(Categorical()), kl_weight=1.0)
    model.compile(keras.optimizers.Adam(0.05))
    data = [query, value, np.eye(4)[labels]][: len(used)]
    history = model.fit(data, labels, batch_size=64, epochs=8, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.core
def test_a_learned_scale_of_the_component_is_trained_and_predicts():
    layer = built("enumerate", keras.layers.Dense(1))
    model = bdl.VariationalModel(network(layer), Mixture(Normal()), kl_weight=1.0)
    model.compile(keras.optimizers.Adam(0.05))
    before = array(model.likelihood.component.raw_scale)
    model.fit(INPUTS, QUERY[..., :1], epochs=2, verbose=0)
    assert array(model.likelihood.component.raw_scale) != before
    assert model.predict_distribution(INPUTS, num_samples=2).variance.shape == (BATCH, QUERIES, 1)


# Blocks


def trained_step(estimator, block_size):
    """Outputs outside training, and the trained weights before and after a step of gradient descent."""
    hidden = keras.layers.Dense(3, activation="tanh", activity_regularizer=keras.regularizers.L2(0.1))
    decoder = keras.Sequential([hidden, keras.layers.Dense(CLASSES)])
    layer = built(estimator, decoder, block_size=block_size, score_mode="general")
    model = quiet_model(network(layer), Mixture(Categorical()), kl_weight=1.0, num_examples=BATCH)
    outputs, before = array(model(data_of(model.network))), [array(weight) for weight in layer.trainable_weights]
    model.compile(keras.optimizers.SGD(0.1))
    model.train_on_batch(data_of(model.network), LABELS)
    return outputs, before, [array(weight) for weight in layer.trainable_weights]


@pytest.mark.core
@pytest.mark.parametrize("estimator", ["marginal", "enumerate"])
def test_blocks_change_neither_outputs_nor_gradients(estimator):
    outputs, before, after = trained_step(estimator, None)
    moved = [np.abs(new - old).max() for new, old in zip(after, before, strict=True)]
    assert min(moved) > 1e-3
    for block_size in (2, 5):
        blocks = trained_step(estimator, block_size)
        assert_allclose(blocks[0], outputs, rtol=1e-5, atol=1e-6)
        for found, expected in zip(blocks[2], after, strict=True):
            assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Settings


@pytest.mark.core
@pytest.mark.parametrize("estimator", NEED_DECODER)
def test_a_missing_decoder_is_refused(estimator):
    with pytest.raises(ValueError, match=rf"`decoder` is None, but estimator='{estimator}' .*Mixture.*'gumbel'"):
        LatentAttention(estimator=estimator)


@pytest.mark.core
@pytest.mark.parametrize("estimator", ["soft", "marginal"])
def test_an_inference_network_without_use_is_refused(estimator):
    with pytest.raises(ValueError, match=rf"`inference_network` is not used by estimator='{estimator}'.*'enumerate'"):
        LatentAttention(estimator=estimator, decoder=keras.layers.Dense(2), inference_network="dense")


@pytest.mark.core
@pytest.mark.parametrize("block_size", [0, -1, 2.0, "all"])
def test_block_sizes_are_positive_integers(block_size):
    with pytest.raises(ValueError, match=r"`block_size` must be a positive integer or None, not "):
        LatentAttention(block_size=block_size)


@pytest.mark.core
def test_settings_of_the_estimator_are_checked():
    with pytest.raises(ValueError, match="`estimator` must be one of"):
        LatentAttention(estimator="hard")
    with pytest.raises(ValueError, match="`num_samples` must be at least 2"):
        latent("reinforce", num_samples=1)
    for estimator in NEED_DECODER:
        with pytest.raises(ValueError, match=r"`dropout=0.5` drops attention weights"):
            latent(estimator, dropout=0.5)


@pytest.mark.core
def test_an_inference_network_needs_the_target():
    with pytest.raises(ValueError, match=r"`target` is missing: estimator='enumerate' has an inference network"):
        latent("enumerate")([QUERY, VALUE])
    layer = built("enumerate")
    layer([QUERY, VALUE])  # outside training it is not read
    with pytest.raises(ValueError, match=r"`target` is None in training, but the inference network"):
        layer([QUERY, VALUE], training=True)


@pytest.mark.core
def test_an_inference_network_may_be_a_layer_of_ones_own():
    own = keras.Sequential([keras.layers.Dense(7, activation="tanh"), keras.layers.Dense(VALUE.shape[-1])])
    layer = latent("enumerate", inference_network=own)
    layer([QUERY, VALUE], target=TARGETS, training=True)
    assert layer.is_variational
    assert own.layers[0].kernel.shape == (QUERY.shape[-1] + TARGETS.shape[-1], 7)
    assert array(take_local_kl(layer)).min() > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_configurations_come_back(estimator):
    layer = latent(
        estimator, num_samples=3, temperature=0.7, baseline="soft", block_size=2, use_scale=True, name="align"
    )
    again = LatentAttention.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.is_variational == layer.is_variational
    assert isinstance(again.decoder, keras.layers.Dense)
    plain = LatentAttention.from_config(LatentAttention().get_config())
    assert (plain.decoder, plain.inference_network) == (None, None)


@pytest.mark.parametrize(
    "noisy",
    [keras.layers.Dropout(0.2), bdl.layers.DenseFlipout(3), keras.layers.BatchNormalization()],
    ids=lambda layer: type(layer).__name__,
)
def test_blocks_are_refused_where_computing_again_would_draw_again(noisy):
    decoder = keras.Sequential([noisy, keras.layers.Dense(2)])
    layer = LatentAttention(estimator="marginal", decoder=decoder, block_size=2)
    with pytest.raises(ValueError, match=r"`block_size=2` computes the decoder again.*Use\s+block_size=None"):
        layer([QUERY, VALUE])


def test_an_inference_network_of_another_dimension_is_refused():
    layer = LatentAttention(
        estimator="enumerate", decoder=keras.layers.Dense(2), inference_network=keras.layers.Dense(VALUE.shape[-1] + 1)
    )
    with pytest.raises(ValueError, match="`inference_network` must give queries of the keys' dimension"):
        layer([QUERY, VALUE], target=TARGETS)


def test_dropout_and_a_decoder_exclude_each_other():
    with pytest.raises(ValueError, match=r"`dropout=0.5` drops attention weights.*Use dropout=0"):
        LatentAttention(estimator="soft", decoder=keras.layers.Dense(2), dropout=0.5)


@pytest.mark.core
@pytest.mark.parametrize("estimator", ["marginal", "enumerate"])
def test_a_query_without_keys_does_not_see_masked_ones(estimator):
    """With a strictly causal mask the first query has no key: it must not see the future by way of masked values."""
    layer = bdl.layers.LatentMultiHeadAttention(
        1, VALUE.shape[-1], estimator=estimator, decoder=keras.layers.Dense(2), seed=0
    )
    mask = ops.convert_to_tensor(np.tril(np.ones((BATCH, QUERIES, KEYS), bool), k=-1))
    query = ops.convert_to_tensor(QUERY)
    other = np.concatenate([VALUE[:, :-1], VALUE[:, -1:] + 5.0], axis=1)
    one, two = (
        array(layer(query, ops.convert_to_tensor(each), attention_mask=mask, training=True)) for each in (VALUE, other)
    )
    assert_array_equal(one[:, 0], two[:, 0])


def test_what_follows_a_decoder_must_be_read_as_a_mixture():
    model = network(built("marginal", keras.layers.Dense(3)))
    with pytest.raises(ValueError, match=r"one output for each alignment.*Use bdl.likelihoods.Mixture\(Categorical"):
        bdl.VariationalModel(model, Categorical())


def test_a_softmax_in_the_decoder_is_seen():
    model = network(built("marginal", keras.layers.Dense(3, activation="softmax")))
    with pytest.raises(ValueError, match="ends in softmax"):
        bdl.VariationalModel(model, Mixture(Categorical(from_logits=True)))
    for likelihood in (Mixture(Categorical()), Mixture(Categorical(from_logits=False))):
        assert quiet_model(model, likelihood).likelihood.component.from_logits is False


class MadeLate(keras.Model):
    """Makes its attention when it is built."""

    def build(self, shapes):
        self.attention = LatentAttention(name="late", estimator="marginal", decoder=keras.layers.Dense(3))
        self.attention.build(shapes)
        self.built = True

    def call(self, inputs):
        return self.attention(inputs)


def test_figures_of_attention_that_is_made_late_are_in_the_logs():
    model = quiet_model(MadeLate(), Mixture(Categorical()), kl_weight=1.0)
    model.compile("adam")
    labels = np.zeros((BATCH, QUERIES), int)
    history = model.fit([QUERY, VALUE], labels, epochs=1, verbose=0).history
    assert history["late_alignment_entropy"][0] > 0.0


@pytest.mark.core
def test_the_mean_of_dirichlet_alignments_is_what_mean_weights_decodes():
    layer = built("dirichlet", keras.layers.Dense(3))
    with bdl.mean_weights(layer):
        first, second = (array(layer([QUERY, VALUE], target=TARGETS)) for _ in range(2))
    assert_array_equal(first, second)
    assert_array_equal(first[:, :, 0], first[:, :, 1])
