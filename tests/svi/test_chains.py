"""Several chains: each is the fit that it would be alone, and what they say of each other is right."""

import json
import zipfile

import keras
import numpy as np
import pytest
from keras import ops
from stories import HalfNormal, Normal, groups, level, level_posterior

from bdl import random
from bdl.elbo import LinearWarmup
from bdl.svi import SVI, Amortized, Global, Hierarchical, Observed
from bdl.svi.chains import MEMORY, Agreement, ChainLosses, copied, descended, scattered
from bdl.svi.comparison import NOBODY_LOOKED

Y = np.random.default_rng(0).normal(2.0, 1.0, size=40).astype("float32")
DATA = {"y": Y}


def array(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


@keras.saving.register_keras_serializable(package="tests")
def folded(data):
    """Two modes, at the mean of the data and at its negative, of which the prior makes the first higher."""
    mean = yield Global("mean", Normal(2.0, 2.0))
    yield Observed("y", Normal(ops.abs(mean), 1.0), data["y"])


def hierarchy(data):
    scale = yield Global("scale", HalfNormal(2.0))
    effect = yield Global("effect", Normal(ops.zeros(3), scale))
    yield Observed("y", Normal(effect[0] + 0.0 * ops.sum(effect), 1.0), data["y"])


def made(story=level, rate=0.05, eager=False, **settings):
    """Without a compiler where a few steps take less time than it does, as on TensorFlow."""
    model = SVI(story, **{"seed": 0, "num_chains": 3, **settings})
    model.compile(keras.optimizers.Adam(rate), run_eagerly=eager and keras.backend.backend() == "tensorflow")
    return model


def of_codes(**settings):
    """With weights of the networks that are the same on each call."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(4, activation="tanh")])
    return made(groups, guide={"code": Amortized(network, ["y"])}, **settings)


def fitted(model, steps, **settings):
    model.history_of_fit = model.fit(DATA, batch_size="all", steps=steps, verbose=0, **settings).history
    return model


@pytest.fixture(scope="module")
def two_modes():
    return fitted(made(folded, 0.1, guide="full_rank", num_samples=2, start={"mean": 0.2}, seed=0), 300)


def means(model):
    """Of the guide of each chain."""
    return np.array([array(model.guide_of("mean", chain).distribution().mean)[0] for chain in range(model.num_chains)])


@pytest.mark.core
@pytest.mark.parametrize("objective", ["elbo", "multi_sample"])
def test_the_first_chain_is_the_fit_of_one_chain(objective):
    """Same noise, same batches, same gradient: what the others do is nothing to it."""
    settings = {"objective": objective, "num_samples": 3, "eager": True}
    alone, first = of_codes(num_chains=1, **settings), of_codes(num_chains=2, **settings)
    for model in (alone, first):
        model.fit(DATA, batch_size=10, epochs=1, verbose=0)
    own = [weight for guide in first.guides_of(0) for weight in guide.weights]
    expected = [weight for guide in alone.guides for weight in guide.weights]
    assert len(own) == len(expected)
    for one, other in zip(own, expected, strict=True):
        np.testing.assert_allclose(array(one), array(other), rtol=1e-5, atol=1e-6)
    others = [weight for guide in first.guides_of(1) for weight in guide.trainable_weights]
    assert [tuple(weight.shape) for weight in others] == [
        tuple(weight.shape) for guide in alone.guides for weight in guide.trainable_weights
    ]
    kernels = [array(guide.network.weights[0]) for guide in first.guides if guide.is_local]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01  # networks of their own


@pytest.mark.core
def test_chains_of_a_gaussian_model_find_the_closed_form_and_agree():
    """Full rank sticks the landing: at the posterior there is no noise."""
    model = fitted(made(guide="full_rank"), 300)
    mean, sd, evidence = level_posterior(Y.astype("float64"))
    np.testing.assert_allclose(means(model), mean, atol=0.01 * sd)
    found = model.agreement()
    np.testing.assert_allclose(found.sds[:, 0], sd, rtol=0.1)  # of 1,000 draws, 4 standard errors are 9 %
    assert found.largest_r_hat < 1.01
    np.testing.assert_allclose(len(Y) * found.elbo, evidence, atol=0.2)
    assert found.is_reached
    assert "The 3 chains agree." in str(found)
    table = model.summary_table()
    assert table.remark == NOBODY_LOOKED
    assert str(table).splitlines()[0].split()[-1] == "r_hat"
    np.testing.assert_array_equal(table.r_hat, found.r_hat)


def test_chains_in_two_modes_disagree_and_the_table_says_so(two_modes):
    mean, sd, _ = level_posterior(Y.astype("float64"))
    np.testing.assert_allclose(np.abs(means(two_modes)), mean, atol=0.3 * sd)
    assert set(np.sign(means(two_modes))) == {-1.0, 1.0}
    table = two_modes.summary_table()
    assert table.r_hat[0] > 1.1
    assert "The chains disagree: local optima, or an unfinished fit. R-hat of mean is" in str(table)
    assert two_modes.agreement().worse == tuple(np.flatnonzero(means(two_modes) < 0))


@pytest.mark.core
def test_results_are_those_of_the_best_chain_or_of_the_one_picked(two_modes):
    """At the modes +-m the log prior N(2, 2) differs by 2 m / 2^2 * 2 = m nats, and so does the ELBO, about."""
    best, worst = int(np.argmax(means(two_modes))), int(np.argmin(means(two_modes)))
    assert means(two_modes)[two_modes.chain] > 0
    gap = two_modes.agreement().gap
    assert gap[two_modes.chain] == 0.0
    assert gap[worst] == pytest.approx(2 * means(two_modes)[best] * 2 / 4, rel=0.15)
    assert two_modes.posterior(num_samples=100)["mean"].mean() > 0
    assert two_modes.guide_of("mean") is two_modes.guides_of(two_modes.chain)[0]
    elbo = two_modes.evaluate(DATA, verbose=0, return_dict=True)["elbo"]
    two_modes.chain = worst
    try:
        assert two_modes.chain == worst
        assert two_modes.posterior(DATA, num_samples=100)["mean"].mean() < 0
        lower = two_modes.evaluate(DATA, verbose=0, return_dict=True)["elbo"]  # by a function compiled before
        assert len(Y) * (elbo - lower) == pytest.approx(gap[worst], abs=1.0)  # of one draw: e^2 / 2 has the sd .7
        assert two_modes.estimator.guides == two_modes.guides_of(worst)
        np.testing.assert_allclose(two_modes.summary_table().mean, means(two_modes)[worst], atol=0.05)
    finally:
        two_modes.chain = None
    assert means(two_modes)[two_modes.chain] > 0
    # Weights are those of one guide, within whose mode the posterior is Gaussian: they are even.
    assert two_modes.log_weights(DATA, num_samples=100, seed=0).std() < 0.3


@pytest.mark.core
def test_starts_are_around_the_first_and_the_seeds_own():
    def origins(**settings):
        model = made(**settings)
        model.trace_on(DATA)
        return np.array([array(model.guide_of("mean", chain).origin)[0] for chain in range(3)])

    start = {"mean": 5.0}
    one, again, other = origins(start=start), origins(start=start), origins(start=start, seed=1)
    assert one[0] == 5.0
    assert np.abs(one - 5.0).max() < 2.0
    assert len(set(one)) == 3
    np.testing.assert_array_equal(one, again)
    assert not set(one[1:]) & set(other[1:])


@pytest.mark.core
@pytest.mark.parametrize("start", ["map", "laplace"])
def test_each_chain_looks_for_the_mode_from_its_own_start(start):
    model = made(guide="full_rank", start=start, rate=0.0, eager=True)
    fitted(model, 1)
    np.testing.assert_allclose(means(model), level_posterior(Y)[0], rtol=1e-4)
    frames = [array(model.guide_of("mean", chain).frame)[0, 0] for chain in range(3)]
    np.testing.assert_allclose(frames, level_posterior(Y)[1] if start == "laplace" else 1.0, rtol=1e-3)


def test_a_chain_does_not_begin_where_the_density_is_not_finite():
    tried = []

    def log_density(point):
        tried.append(point["a"])
        return 0.0 if point["a"][0] > 1.0 else -np.inf

    moved = scattered({"a": np.zeros(2), "b": np.ones(1)}, ["a"], log_density, random.draw_key(0))
    assert len(tried) > 1
    assert moved["a"][0] > 1.0
    assert moved["b"] == 1.0
    with pytest.raises(ValueError, match=r"`start` must have a finite log joint .* at none of 100 points"):
        scattered({"a": np.zeros(2)}, ["a"], lambda point: np.nan, random.draw_key(0))


def test_starts_fill_their_interval_evenly():
    """A uniform number on (-2, 2) has the variance 4 / 3, whose own is 16 / 5 - 16 / 9 for its square."""
    moved = scattered({"a": np.zeros(20_000)}, ["a"], lambda point: 0.0, random.draw_key(0))["a"]
    assert np.abs(moved).max() <= 2.0
    assert abs(moved.mean()) < 4 * np.sqrt(4 / 3 / moved.size)
    assert abs((moved**2).mean() - 4 / 3) < 4 * np.sqrt((16 / 5 - 16 / 9) / moved.size)


@pytest.mark.core
def test_logs_are_means_over_the_chains_and_add_up():
    model = of_codes(eager=True, num_chains=2, kl_weight=LinearWarmup(steps=2))
    settings = {"batch_size": 20, "epochs": 2, "verbose": 0, "validation_data": DATA}
    logs = model.fit(DATA, sample_weight=np.full(len(Y), 2.0), **settings).history
    last = {name: values[-1] for name, values in logs.items()}
    assert last["temperature"] == 1.0
    assert last["loss"] == pytest.approx(last["nll"] + last["kl"] / len(Y), rel=1e-4)
    for prefix in ("", "val_"):
        assert last[f"{prefix}kl"] == pytest.approx(last[f"{prefix}kl_mean"] + last[f"{prefix}kl_code"], rel=1e-4)
    fitted(model, 1)
    assert np.mean(model.chain_losses.means) == pytest.approx(model.history_of_fit["loss"][0], rel=1e-5)


@pytest.mark.core
def test_the_loss_is_a_mean_with_the_gradient_of_a_sum():
    """Plain gradient descent shows the size of the gradient, which Adam hides."""
    found = []
    for chains in (1, 3):
        model = SVI(level, seed=0, num_chains=chains, averaging=False)
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=keras.backend.backend() == "tensorflow")
        fitted(model, 1)
        found.append(array(model.guide_of("mean", 0).shift)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert float(descended([ops.convert_to_tensor(1.0), ops.convert_to_tensor(4.0)])) == 2.5


@pytest.mark.core
def test_a_guide_of_one_chain_is_frozen_alone(tmp_path):
    model = made(eager=True)
    model.trace_on(DATA)
    model.guide_of("mean", 1).trainable = False
    fitted(model, 3)
    moved = [abs(array(model.guide_of("mean", chain).shift)[0]) > 0 for chain in range(3)]
    assert moved == [True, False, True]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [loaded.guide_of("mean", chain).trainable for chain in range(3)] == [True, False, True]


@pytest.mark.core
def test_a_file_has_all_chains(tmp_path):
    model = of_codes(eager=True, num_chains=2)
    model.fit(DATA, batch_size=20, epochs=1, verbose=0)
    model.chain = 1
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.num_chains, loaded.chain) == (2, 1)
    for one, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(array(one), array(other))
    for chain in (0, 1):
        model.chain = loaded.chain = chain
        expected, found = (each.posterior(DATA, num_samples=3, seed=1) for each in (model, loaded))
        np.testing.assert_allclose(found["code"], expected["code"], rtol=1e-5)
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert len(json.loads(file.read("config.json"))["build_config"]["others"]) == 2
    for each in (model, loaded):  # the optimizer goes on, too
        paths = [weight.path for weight in each.weights]
        assert len(set(paths)) == len(paths)  # Torch would not set gradients back
        each.fit(DATA, batch_size=20, epochs=1, verbose=0)
    for one, other in zip(model.trainable_weights, loaded.trainable_weights, strict=True):
        np.testing.assert_allclose(array(one), array(other), rtol=1e-4, atol=1e-6)


def test_weights_of_another_number_of_chains_are_refused(tmp_path):
    model, other = made(eager=True), made(eager=True, num_chains=1)
    for each in (model, other):
        each.trace_on(DATA)
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="must be of a model with num_chains=1, not 3"):
        other.load_weights(tmp_path / "model.weights.h5")
    again = made(eager=True, seed=5)
    again.trace_on(DATA)
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(means(again), means(model))


@pytest.mark.core
def test_several_steps_in_a_call_are_the_same_fit():
    found = []
    for steps in (1, 5):
        model = SVI(level, seed=0, num_chains=2)
        model.compile(keras.optimizers.Adam(0.05), steps_per_execution=steps)
        fitted(model, 10)
        found.append([*means(model), *model.chain_losses.means])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.core
def test_a_guide_that_follows_its_prior_has_chains():
    guide = {"scale": "full_rank", "effect": Hierarchical()}
    model = fitted(made(hierarchy, guide=guide, eager=True, num_chains=2), 2)
    model.chain = 1
    assert model.posterior(num_samples=5)["effect"].shape == (5, 3)
    assert model.predict(DATA, num_samples=2)["y"].shape == (2, 40)
    assert model.agreement(num_samples=20).means.shape == (2, 4)


@pytest.mark.core
def test_a_chain_that_has_diverged_leaves_the_others_alone():
    model = made(eager=True)
    model.trace_on(DATA)
    model.guide_of("mean", 1).shift.assign(np.full(1, np.nan))
    fitted(model, 2)
    assert np.isfinite(means(model)).tolist() == [True, False, True]
    assert model.chain != 1
    found = model.agreement()
    assert not found.is_reached
    assert 1 in found.worse
    assert np.isnan(model.history_of_fit["loss"][0])


def test_points_have_no_r_hat():
    model = fitted(made(eager=True, guide="delta", start="map"), 2)
    found = model.agreement()
    assert np.isnan(found.r_hat).all()
    assert "The ELBOs of the 3 chains agree. A point (Delta) has no R-hat" in str(found)
    assert str(model.summary_table()).splitlines()[1].split()[-1] == "-"


def test_losses_are_averaged_over_the_last_steps():
    losses = np.random.default_rng(0).normal(size=(300, 1)) * 5.0 + np.random.default_rng(1).normal(size=(300, 3))
    kept = ChainLosses(keras.Sequential(), 3)
    mean, square = np.zeros(3), np.zeros(3)
    apart = losses - losses.mean(axis=1, keepdims=True)
    for step in range(300):
        kept.update([ops.convert_to_tensor(loss, "float32") for loss in losses[step]])
        share = 1 / min(1 + step / 5, MEMORY)
        mean, square = mean + share * (losses[step] - mean), square + share * (apart[step] ** 2 - square)
    np.testing.assert_allclose(kept.means, mean, rtol=1e-4, atol=1e-5)
    best = mean.argmin()
    variance = square - (mean - mean.mean()) ** 2
    gap, error = kept.gaps(10)  # the last fifth of 300 steps, less than MEMORY
    np.testing.assert_allclose(gap, 10 * (mean - mean[best]), rtol=1e-3, atol=1e-4)
    others = np.arange(3) != best
    np.testing.assert_allclose(error[others], 10 * np.sqrt((variance + variance[best]) / 60.8)[others], rtol=1e-3)
    assert kept.chosen == best


def test_where_a_chain_began_is_forgotten():
    kept = ChainLosses(keras.Sequential(), 2)
    for step in range(600):
        kept.update([ops.convert_to_tensor(1e3 if step < 100 else 1.0), ops.convert_to_tensor(2.0)])
        if step in (299, 599):
            assert kept.means[0] == pytest.approx(1.0, abs=1e3 * 3.0**-5 * 1.1 if step == 299 else 0.2)


def test_a_gap_within_its_noise_or_below_a_nat_is_none():
    draws = [{"a": np.random.default_rng(chain).normal(size=400)} for chain in range(3)]

    def worse(gap, error):
        return Agreement.of(draws, -np.array(gap), np.array(gap), np.array(error)).worse

    assert worse([0.0, 5.0, 0.9], [0.0, 2.0, 0.1]) == ()
    assert worse([0.0, 7.0, 1.1], [0.0, 2.0, 0.1]) == (1, 2)
    found = Agreement.of(draws, np.zeros(3), np.array([0.0, 7.0, 0.0]), np.array([0.0, 2.0, 0.0]))
    assert "The ELBO is well below the best in chains (nats): 1 by 7." in found.verdict


@pytest.mark.core
def test_what_cannot_have_chains_says_so():
    with pytest.raises(ValueError, match="`num_chains` must be a positive integer, not 0"):
        SVI(level, num_chains=0)
    with pytest.raises(ValueError, match="`num_chains` must be 1 with `networks` in the story, not 2"):
        SVI(level, networks={"network": keras.layers.Dense(1)}, num_chains=2)
    model = made()
    with pytest.raises(ValueError, match="must be fitted before agreement is called"):
        model.agreement()
    with pytest.raises(ValueError, match="`chain` must be None before the story has been traced, not 1"):
        model.chain = 1
    model.trace_on(DATA)
    for wrong in (3, -1, 1.0, True):
        with pytest.raises(ValueError, match="`chain` must be an integer from 0 to 2, not"):
            model.chain = wrong
    with pytest.raises(ValueError, match="`chain` must be an integer from 0 to 2, not 3"):
        model.guide_of("mean", 3)
    single = made(num_chains=1)
    single.trace_on(DATA)
    single.chain = 0
    assert single.chain == 0
    assert single.summary_table().r_hat is None
    with pytest.raises(ValueError, match="`num_chains` must be 2 or more for chains to agree"):
        single.agreement()


def test_guides_that_cannot_be_copied_say_why():
    network = keras.layers.Dense(2)
    shared = [Amortized(network, ["y"]), Amortized(network, ["y"])]
    for guide, site in zip(shared, "ab", strict=True):
        guide.bind({site: 1}, DATA)
    with pytest.raises(ValueError, match=r"must have layers of its own for each guide .*\['dense"):
        copied(shared, 1)
    guide = Amortized(keras.layers.Dense(2), lambda data: data["y"][:, None])
    guide.bind({"a": 1}, DATA)
    with pytest.raises(ValueError, match="`guide` must be made again by its configuration where `num_chains`"):
        copied([guide], 1)
