"""Latent multi-head attention: equal to Keras' layer where it should be, an alignment a head, and one for a decoder."""

import keras
import numpy as np
import pytest
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose

import bdl
from bdl.latents import take_local_kl
from bdl.layers import Alignment, LatentMultiHeadAttention, collect_latents
from bdl.likelihoods import Categorical, Mixture

RNG = np.random.default_rng(0)
BATCH, QUERIES, KEYS, CLASSES = 4, 5, 7, 6
QUERY = RNG.normal(size=(BATCH, QUERIES, 8)).astype("float32")
VALUE = RNG.normal(size=(BATCH, KEYS, 6)).astype("float32")
KEY = RNG.normal(size=(BATCH, KEYS, 4)).astype("float32")
TARGET = RNG.normal(size=(BATCH, QUERIES, 3)).astype("float32")
LABELS = RNG.integers(0, CLASSES, size=(BATCH, QUERIES))
MASKS = {
    "none": {},
    "value": {"value_mask": np.arange(KEYS)[None] < np.array([[7], [5], [3], [1]])},
    "key": {"key_mask": np.arange(KEYS)[None] < np.array([[7], [5], [3], [1]])},
    "causal": {"use_causal_mask": True},
    "attention": {"attention_mask": RNG.random((BATCH, QUERIES, KEYS)) > 0.3},
    "attention of heads": {"attention_mask": RNG.random((BATCH, 2, QUERIES, KEYS)) > 0.3},
}


def tensors(values):
    return {name: value if isinstance(value, bool) else ops.convert_to_tensor(value) for name, value in values.items()}


def projections(layer):
    inside = (layer.query_projection, layer.key_projection, layer.value_projection, layer.output_projection)
    return [weight for each in inside for weight in each.weights]


@pytest.mark.core
@pytest.mark.parametrize("settings", [{}, {"use_bias": False, "value_dim": 5, "output_shape": 9}])
@pytest.mark.parametrize("mask", MASKS)
def test_soft_is_keras_multi_head_attention(mask, settings):
    theirs = keras.layers.MultiHeadAttention(2, 3, bias_initializer="ones", **settings)
    ours = LatentMultiHeadAttention(2, 3, bias_initializer="ones", **settings)
    inputs = [ops.convert_to_tensor(each) for each in (QUERY, VALUE, KEY)]
    expected = theirs(*inputs, return_attention_scores=True, **tensors(MASKS[mask]))
    ours.build(QUERY.shape, VALUE.shape, KEY.shape)
    for weight, value in zip(projections(ours), theirs.get_weights(), strict=True):
        weight.assign(value)
    found = ours(*inputs, return_attention_scores=True, **tensors(MASKS[mask]))
    for one, other in zip(found, expected, strict=True):
        assert_allclose(array(one), array(other), atol=1e-6)


def network(estimator, has_decoder=False, name="attention", **settings):
    """From queries, values and targets to logits, or to a mixture of them."""
    inputs = [keras.Input(each.shape[1:]) for each in (QUERY, VALUE, TARGET)]
    is_variational = estimator not in ("soft", "marginal")
    layer = LatentMultiHeadAttention(
        2,
        3,
        estimator=estimator,
        inference_network="dense" if is_variational else None,
        decoder=keras.layers.Dense(CLASSES) if has_decoder else None,
        share_alignment=has_decoder,
        seed=0,
        name=name,
        **settings,
    )
    outputs = layer(inputs[0], inputs[1], **({"target": inputs[2]} if is_variational else {}))
    return keras.Model(inputs, outputs if has_decoder else keras.layers.Dense(CLASSES)(outputs))


def trained(estimator, has_decoder, epochs=1, **settings):
    likelihood = Mixture(Categorical()) if has_decoder else Categorical()
    model = bdl.VariationalModel(network(estimator, has_decoder, **settings), likelihood, kl_weight=1.0)
    model.compile("adam")
    return model, model.fit([QUERY, VALUE, TARGET], LABELS, batch_size=BATCH, epochs=epochs, verbose=0).history


WITHOUT_DECODER, WITH_DECODER = ("gumbel", "dirichlet"), ("marginal", "enumerate", "reinforce", "gumbel", "dirichlet")


@pytest.mark.core
@pytest.mark.parametrize(
    ("estimator", "has_decoder"),
    [*((each, False) for each in WITHOUT_DECODER), *((each, True) for each in WITH_DECODER)],
)
def test_every_estimator_trains_predicts_and_is_saved(estimator, has_decoder, tmp_path):
    model, history = trained(estimator, has_decoder)
    assert np.isfinite(history["loss"]).all()
    prediction = model.predict_distribution([QUERY, VALUE, TARGET], num_samples=3, seed=0)
    assert prediction.probabilities.shape == (BATCH, QUERIES, CLASSES)
    assert_allclose(prediction.probabilities.sum(axis=-1), 1.0, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    repeated = again.predict_distribution([QUERY, VALUE, TARGET], num_samples=3, seed=0)
    assert_allclose(repeated.probabilities, prediction.probabilities, atol=1e-6)


def test_each_head_has_figures_of_its_own_in_the_logs():
    _, history = trained("gumbel", False)
    heads = [history[f"attention_head_{head}_kl"][0] for head in range(2)]
    assert heads[0] != heads[1]
    assert min(heads) > 0.0
    # `kl` is N times the mean local KL, here of one batch that holds all N examples.
    assert history["kl"][0] == pytest.approx(BATCH * sum(heads), rel=1e-5)
    for head in range(2):
        assert 0.0 < history[f"attention_head_{head}_alignment_entropy"][0] < np.log(KEYS)
        assert 0.0 < history[f"attention_head_{head}_mutual_information"][0] < np.log(BATCH)


@pytest.mark.core
def test_figures_are_those_of_the_diagnosis():
    """What the logs say of a batch is what `bdl.diagnostics` makes of the reported alignments."""
    from bdl.diagnostics.local import alignment_kl, attention_entropy, mutual_information

    model = network("gumbel")
    layer = model.get_layer("attention")
    with collect_latents() as reports:
        model([ops.convert_to_tensor(each) for each in (QUERY, VALUE, TARGET)], training=True)
    kl, uncertainty, information = array(layer.statistics).T
    latent = reports[0].latent
    assert kl.sum() == pytest.approx(alignment_kl(latent), rel=1e-5)
    assert float(array(take_local_kl(layer)).mean()) == pytest.approx(kl.sum(), rel=1e-5)
    assert uncertainty.mean() == pytest.approx(attention_entropy(latent) * np.log(KEYS), rel=1e-5)
    for head in range(2):
        single = [
            mutual_information(Alignment(latent.probabilities[:, head, query])) for query in range(QUERIES)
        ]  # of one query each, for the joint information of several is at most log(batch)
        assert information[head] == pytest.approx(np.mean(single), rel=1e-4)


def test_without_an_inference_network_there_is_no_kl():
    layer = LatentMultiHeadAttention(2, 3, estimator="gumbel", seed=0)
    layer(ops.convert_to_tensor(QUERY), ops.convert_to_tensor(VALUE), training=True)
    assert take_local_kl(layer) is None
    assert array(layer.statistics)[:, 0].tolist() == [0.0, 0.0]


@pytest.mark.core
def test_a_decoder_sees_the_projected_value_of_each_key():
    """With an identity for a decoder, the mixture's mean is what one shared soft alignment gives."""
    shared = {"share_alignment": True, "kernel_initializer": keras.initializers.GlorotUniform(seed=1), "seed": 0}
    inputs = [ops.convert_to_tensor(each) for each in (QUERY, VALUE)]
    soft = LatentMultiHeadAttention(2, 3, **shared)
    expected = array(soft(*inputs))
    width = QUERY.shape[-1]
    identity = keras.layers.Dense(width, use_bias=False)
    layer = LatentMultiHeadAttention(2, 3, estimator="marginal", decoder=identity, **shared)
    layer.build(QUERY.shape, VALUE.shape)
    identity.kernel.assign(np.concatenate([np.eye(width), np.zeros((width, width))]))
    for weight, value in zip(projections(layer), projections(soft), strict=True):
        weight.assign(value)
    packed = layer(*inputs)
    assert packed.shape == (BATCH, QUERIES, KEYS, width + 2)
    assert_allclose(array(Mixture(bdl.likelihoods.Normal(scale=1.0)).mean(packed)), expected, atol=1e-5)


def test_masked_queries_pay_no_kl():
    layer = LatentMultiHeadAttention(2, 3, estimator="gumbel", inference_network="dense", seed=0)
    inputs = [ops.convert_to_tensor(each) for each in (QUERY, VALUE)]
    target = ops.convert_to_tensor(TARGET)

    def kl(mask):
        layer(*inputs, query_mask=ops.convert_to_tensor(mask), target=target, training=True)
        return array(take_local_kl(layer))

    every, first = np.ones((BATCH, QUERIES), bool), np.arange(QUERIES)[None] < np.full((BATCH, 1), 2)
    assert_allclose(kl(every), kl(first) + kl(~first), rtol=1e-4)
    assert (kl(first) > 0).all()
    assert_allclose(kl(np.zeros((BATCH, QUERIES), bool)), 0.0)


@pytest.mark.parametrize("estimator", ["marginal", "enumerate", "reinforce", "soft", "gumbel"])
def test_heads_of_their_own_alignments_have_no_decoder(estimator):
    with pytest.raises(ValueError, match=r"`share_alignment` is False with 2 heads.*Use\s+share_alignment=True"):
        LatentMultiHeadAttention(2, 3, estimator=estimator, decoder=keras.layers.Dense(2))
    LatentMultiHeadAttention(1, 3, estimator=estimator, decoder=keras.layers.Dense(2))


@pytest.mark.parametrize(("argument", "value"), [("num_heads", 0), ("key_dim", 1.5), ("value_dim", -1)])
def test_numbers_must_be_positive(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be a positive integer"):
        LatentMultiHeadAttention(**{"num_heads": 2, "key_dim": 3, argument: value})


def test_configuration_is_complete():
    layer = LatentMultiHeadAttention(
        2,
        3,
        value_dim=4,
        use_bias=False,
        output_shape=5,
        share_alignment=True,
        kernel_initializer="he_normal",
        kernel_regularizer="l2",
        estimator="reinforce",
        decoder=keras.layers.Dense(2),
        inference_network="dense",
        baseline="soft",
        seed=3,
    )
    again = LatentMultiHeadAttention.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    outputs = again(ops.convert_to_tensor(QUERY), ops.convert_to_tensor(VALUE), target=ops.convert_to_tensor(TARGET))
    assert outputs.shape == (BATCH, QUERIES, KEYS, 4)
