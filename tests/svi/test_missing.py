"""Missing entries of observed sites: they count nothing, whatever is in their place, and are predicted."""

import keras
import numpy as np
import pytest
from gradients import gradients
from keras import ops
from scipy import stats
from standard_errors import assert_within_standard_errors
from stories import Binomial, HalfNormal, Normal, level_posterior

from bdl.svi import SVI, Global, Observed
from bdl.svi.story import Visit

RNG = np.random.default_rng(0)
Y = RNG.normal(2.0, 1.0, size=(8, 2)).astype("float32")
SEEN = np.array([[1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [1, 1], [0, 0], [1, 0]], bool)
DATA = {"y": np.where(SEEN, Y, -99.0).astype("float32"), "seen": SEEN}


def array(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, "float32"))


@keras.saving.register_keras_serializable(package="tests")
def pairs(data):
    mean = yield Global("mean", Normal(0.5, 3.0))
    yield Observed("y", Normal(mean, 1.0), data["y"], mask=data["seen"])


def log_prob(distribution, value, mask):
    value = tensor(value)
    return Visit(Observed("y", distribution, value, mask=mask), value, len(value)).log_prob()


@pytest.mark.core
def test_the_posterior_is_that_of_what_was_observed():
    model = SVI(pairs, "full_rank", start="laplace", num_samples=2, seed=0)
    model.compile(keras.optimizers.Adam(1e-3))
    logs = model.fit(DATA, batch_size="all", steps=10, verbose=0).history
    assert np.isfinite(logs["loss"][0])
    seen = Y[SEEN].astype("float64")
    mean, sd, evidence = level_posterior(seen)
    family = model.guide_of("mean").distribution()
    assert array(family.mean)[0] == pytest.approx(mean, abs=0.02 * sd)
    model.guide_of("mean").start_at(np.array([mean]), np.array([[sd]]))
    np.testing.assert_allclose(model.log_weights(DATA, num_samples=5), evidence, atol=1e-3)
    draws = model.posterior(num_samples=5, seed=1)["mean"]
    each = np.where(SEEN, stats.norm(draws[:, None, None], 1.0).logpdf(Y), 0.0)
    np.testing.assert_allclose(model.log_likelihood(DATA, 5, seed=1)["y"], each.sum(-1), rtol=1e-5, atol=1e-6)
    drawn = model.predict({"y": DATA["y"]}, num_samples=1000, seed=0)["y"]
    total = np.sqrt(sd**2 + 1)
    assert_within_standard_errors(drawn.mean(0), np.full((8, 2), mean), total / np.sqrt(1000))


@pytest.mark.core
def test_a_mask_of_rows_leaves_out_whole_rows():
    rows = SEEN[:, 0]
    expected = np.where(rows, stats.norm(0.0, 1.0).logpdf(Y).sum(-1), 0.0)
    np.testing.assert_allclose(array(log_prob(Normal(0.0, 1.0), Y, rows)), expected, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("filling", [np.nan, -1.0, np.inf])
def test_what_is_in_the_place_of_a_missing_entry_does_not_matter(filling):
    """Outside of the support and not a number: neither the density nor its gradient sees it."""
    value = np.where(SEEN[:, 0], np.abs(Y[:, 0]), filling)

    def total(scales):
        return ops.sum(log_prob(HalfNormal(scales[0]), value, SEEN[:, 0]))

    seen, scale = np.abs(Y[SEEN[:, 0], 0]).astype("float64"), 1.5
    assert float(total([tensor(scale)])) == pytest.approx(stats.halfnorm(scale=scale).logpdf(seen).sum(), rel=1e-5)
    expected = np.sum(seen**2 / scale**3 - 1 / scale)
    assert array(gradients(total, [tensor(scale)])[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.core
def test_missing_counts_are_taken_for_zeros():
    counts, total = np.array([3.0, -5.0, 2.0]), tensor([10.0, 4.0, 2.0])
    chance = tensor(np.full(3, 0.4))
    found = array(log_prob(Binomial(total, chance), counts, np.array([True, False, True])))
    expected = [stats.binom(10, 0.4).logpmf(3), 0.0, stats.binom(2, 0.4).logpmf(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (SEEN[:, 0].astype("float32"), "`mask` of site 'y' must be booleans with the rows .*, not float32"),
        (np.array(True), "must be booleans with the rows on their first axis, not bool of the shape \\(\\)"),
        (SEEN[:5], "mask of site 'y' must have the shape \\(8, 2\\) of its value or log density, .*, not \\(5, 2\\)"),
        (SEEN[:, :, None], "mask of site 'y' must have the shape \\(8, 2\\) .*, not \\(8, 2, 1\\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        log_prob(Normal(0.0, 1.0), Y, mask)


def test_a_part_of_an_event_cannot_be_missing():
    class Pair(Normal):
        event_shape = (2,)

        def log_prob(self, value):
            return ops.sum(super().log_prob(value), axis=-1)

    with pytest.raises(ValueError, match=r"mask of site 'y' must have the shape \(8,\) .* or of each event"):
        log_prob(Pair(np.zeros(()), 1.0), Y, SEEN)
