"""Weights of rows: a row of weight w counts as w rows, and N is the number of rows of the fit."""

import keras
import numpy as np
import pytest
from keras import ops
from stories import level

from bdl.svi import SVI, Amortized, Global, Local, Observed

Y = np.array([-1.0, 0.5, 2.0], "float32")
COUNTS = np.array([2.0, 3.0, 1.0], "float32")


def array(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def one_step(y, counts, story, guide="mean_field"):
    """The gradient, times N, and the logs of one step from the same variables with the same noise of the globals."""
    model = SVI(story, guide, averaging=False, seed=0)
    model.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    model.trace_on({"y": y})
    weights = model.guide_of("mean").trainable_weights
    before = [array(weight) for weight in weights]
    weighted = {} if counts is None else {"sample_weight": counts}
    logs = model.fit({"y": y}, batch_size="all", steps=1, verbose=0, **weighted).history
    return [(old - array(weight)) * len(y) for old, weight in zip(before, weights, strict=True)], logs


@pytest.mark.core
def test_rows_with_their_counts_give_the_gradient_of_all_rows():
    whole, logs = one_step(np.repeat(Y, COUNTS.astype(int)), None, level)
    weighted, weighted_logs = one_step(Y, COUNTS, level)
    for expected, found in zip(whole, weighted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.abs(whole[0]).max() > 0.1
    np.testing.assert_allclose(weighted_logs["kl"], logs["kl"], rtol=1e-5)
    np.testing.assert_allclose(3 * weighted_logs["elbo"][0], 6 * logs["elbo"][0], rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("start", ["map", "laplace"])
def test_a_start_at_the_mode_counts_rows_as_often_as_they_say(start):
    found = []
    for y, settings in ((np.repeat(Y, COUNTS.astype(int)), {}), (Y, {"sample_weight": COUNTS.astype("int32")})):
        model = SVI(level, "full_rank", start=start, averaging=False, seed=0)
        model.compile(keras.optimizers.SGD(0.0))
        model.fit({"y": y}, batch_size="all", steps=1, verbose=0, **settings)
        guide = model.guide_of("mean")
        found.append([array(guide.origin), array(guide.frame)])
    for expected, weighted in zip(*found, strict=True):
        np.testing.assert_allclose(weighted, expected, rtol=1e-4)


@pytest.mark.tensorflow
def test_the_local_divergence_of_a_row_counts_as_often_as_the_row():
    """In closed form given the globals' draw, which is the same: it does not depend on the rows' own noise."""
    from tensorflow_probability.python.distributions import Normal

    def groups(data):
        mean = yield Global("mean", Normal(0.0, 2.0))
        code = yield Local("code", Normal(mean, 1.5))
        yield Observed("y", Normal(code, 0.5), data["y"])

    def guide():
        network = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(seed=1))
        return {"code": Amortized(network, ["y"])}

    _, logs = one_step(np.repeat(Y, COUNTS.astype(int)), None, groups, guide())
    _, weighted = one_step(Y, COUNTS, groups, guide())
    np.testing.assert_allclose(weighted["kl_code"], logs["kl_code"], rtol=1e-5)
