"""NUTS for a story: the posterior in closed form, by site."""

import keras
import numpy as np
import pytest
from standard_errors import assert_within_standard_errors
from stories import level, level_posterior

from bdl.svi import SVI, nuts

Y = np.random.default_rng(0).normal(2.0, 1.0, size=10).astype("float32")


@pytest.mark.core
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Torch has no NUTS")
def test_chains_find_a_conjugate_posterior_and_a_model_is_compared_with_them():
    if keras.backend.backend() == "jax":
        pytest.importorskip("numpyro")
    reference = nuts(level, {"y": Y}, num_samples=500, num_warmup=300, num_chains=2, seed=0)
    mean, sd, _ = level_posterior(Y.astype("float64"))
    assert list(reference) == ["mean"]
    assert reference["mean"].shape == (1000,)
    error = sd / np.sqrt(reference.chains.effective_sample_size[0])
    assert_within_standard_errors(reference["mean"].mean(), mean, error)
    model = SVI(level, "full_rank", seed=0)
    model.trace_on({"y": Y})
    model.guide_of("mean").start_at(np.array([mean + sd]), np.array([[sd]]))
    comparison = model.compare(reference)
    assert comparison.mean_error[0] == pytest.approx(1.0, abs=5 * (error / sd + 1 / np.sqrt(4000)))
    with pytest.raises(ValueError, match="`draws` must have the shapes of the sites \\['mean'\\]"):
        model.compare({"mean": np.zeros((10, 2))})
