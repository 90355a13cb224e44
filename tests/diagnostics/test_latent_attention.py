"""Posterior collapse of an alignment: visible in the layer's figures, named by `diagnose`, mended by KL warm-up.

Each example has two keys with opposite symbols. The label is the symbol at one of them; which, the query's product with
the keys' other features tells, which are small, so that the prior learns it slowly. One symbol by itself says nothing
of the label, so that near the start the decoder has no reason to read it, nor the posterior to choose before the
decoder does. At T = 1 the divergence holds both there for this training. With T from 0 the posterior finds the symbol
that the target names, the decoder learns to read it, and the prior learns from the posterior.
"""

import keras
import numpy as np
import pytest
from keras import ops

import bdl
from bdl.diagnostics import diagnose
from bdl.layers import LatentAttention
from bdl.likelihoods import Categorical, Mixture

N, BATCH, EPOCHS = 10_240, 1_024, 10
DIM, SYMBOL, FEATURE = 4, 3.0, 0.3


def data():
    random = np.random.default_rng(0)
    query, features = random.normal(size=(N, 1, DIM)), random.normal(size=(N, 2, DIM))
    chosen = np.argmax((query * features).sum(axis=-1), axis=1)
    symbols = random.choice([-1.0, 1.0], size=(N, 1)) * np.array([1.0, -1.0])
    y = (symbols[np.arange(N), chosen] > 0).astype(int)[:, None]
    value = np.concatenate([SYMBOL * symbols[..., None], FEATURE * features], axis=-1)
    return [each.astype("float32") for each in (FEATURE * query, value, np.eye(2)[y])], y


def dense(units, seed):
    return keras.layers.Dense(units, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01, seed=seed))


def model_at(kl_weight):
    keras.utils.set_random_seed(0)
    query, value, target = keras.Input((1, DIM)), keras.Input((2, DIM + 1)), keras.Input((1, 2))
    layer = LatentAttention(
        estimator="enumerate", decoder=dense(2, 1), inference_network=dense(DIM + 1, 2), name="alignment", seed=0
    )
    network = keras.Model([query, value, target], layer([dense(DIM + 1, 3)(query), value], target=target))
    return compiled(bdl.VariationalModel(network, Mixture(Categorical()), kl_weight=kl_weight))


def compiled(model):
    model.compile(keras.optimizers.SGD(0.2))
    return model


def trained(model):
    """The history, and the layer's figures in the last batch: KL, entropy, information."""
    x, y = data()
    history = model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0).history
    return history, ops.convert_to_numpy(model.network.get_layer("alignment").statistics)[0]


def test_a_collapsed_alignment_is_seen_named_and_mended_by_warm_up():
    x, y = data()
    model = model_at(1.0)
    history, (kl, entropy, information) = trained(model)
    assert kl < 0.01
    assert information < 0.01
    assert entropy > 0.99 * np.log(2)
    assert history["elbo"][-1] == pytest.approx(-np.log(2), abs=0.005)
    report = diagnose(model, x, y)
    assert report.verdict == "collapsed"
    assert [remedy.name for remedy in report.remedies] == ["KL warm-up", "free bits"]

    mended = compiled(report.remedies[0].apply(model))
    assert mended.kl_weight == bdl.elbo.LinearWarmup(0.85)
    history, (kl, entropy, information) = trained(mended)
    assert history["temperature"][-1] == 1.0
    assert kl > 0.1
    assert information > 0.1
    assert entropy < 0.9 * np.log(2)
    assert history["elbo"][-1] > -np.log(2) + 0.01
    assert (
        model.evaluate(x, y, verbose=0, return_dict=True)["nll"]
        > mended.evaluate(x, y, verbose=0, return_dict=True)["nll"]
    )
    assert diagnose(mended, x, y).verdict != "collapsed"


def test_the_schedule_itself_mends_it_from_the_same_start():
    """Only T differs from the training that collapses."""
    history, (kl, _, information) = trained(model_at(bdl.elbo.LinearWarmup(0.85)))
    assert kl > 0.1
    assert information > 0.1
    assert history["elbo"][-1] > -np.log(2) + 0.01


def test_a_decoder_that_does_not_need_the_alignment_lets_it_go():
    """The query names the label: whatever q says is paid for and not used."""
    x, y = data()
    query = np.concatenate([2.0 * y[..., None] - 1.0, x[0][..., 1:]], axis=-1)
    model = model_at(1.0)
    inference = model.network.get_layer("alignment").inference_network
    inference.kernel.assign(np.random.default_rng(1).normal(size=inference.kernel.shape))
    history = model.fit([query, *x[1:]], y, batch_size=BATCH, epochs=EPOCHS, verbose=0).history
    assert history["kl"][0] / N > 0.05
    assert history["kl"][-1] / N < 0.01
    assert history["nll"][-1] < 0.1
