"""The learned baseline: unbiased gradients of one draw, what it learns, and where its weights are and are not."""

import keras
import numpy as np
import pytest
from distribution_libraries import array, single
from keras import ops
from scipy import special, stats
from standard_errors import assert_mean
from stories import Categorical, Normal
from two_switches import APART, COUPLED

import bdl
from bdl.svi import SVI, Amortized, Global, Local, Observed
from bdl.svi.baseline import MEMORY, LearnedBaseline

KINDS, NUM_ROWS = np.eye(3, dtype="float32"), 60
PLACES = np.array([0.0, 2.0, 5.0], "float32")


@keras.saving.register_keras_serializable(package="tests")
def switched(data):
    """A switch in each row, whose effect depends on the row's kind."""
    switch = yield Local("switch", Categorical(np.log([0.4, 0.6]).astype("float32")))
    place = ops.matmul(data["kind"], ops.convert_to_tensor(PLACES))
    yield Observed("y", Normal(place * ops.cast(switch, "float32"), 2.0), data["y"])


def rows():
    kind = np.arange(NUM_ROWS) % 3
    return {"kind": KINDS[kind], "y": PLACES[kind]}


def made(baseline="learned", rate=0.05, is_brief=True, **settings):
    keras.utils.set_random_seed(0)
    guide = {"switch": Amortized(keras.layers.Dense(6, "tanh"), ["kind", "y"], family="categories")}
    model = SVI(switched, guide, baseline=baseline, seed=0, **settings)
    is_eager = is_brief and keras.backend.backend() == "tensorflow"  # which takes longer to compile than a few steps
    model.compile(keras.optimizers.Adam(rate), run_eagerly=is_eager)
    return model


def costs(log_q):
    """NLL and divergence by kind and value of the switch, `(3, 2)`, at T = 1."""
    nll = -stats.norm.logpdf(PLACES[:, None], PLACES[:, None] * np.arange(2), 2.0)
    return nll + log_q - np.log([0.4, 0.6])


def expected_by(model, data):
    """What the baseline expects of rows."""
    [baseline] = model.baselines
    tensors = {name: ops.convert_to_tensor(each) for name, each in data.items()}
    mean, scale = baseline._moments()
    guess = baseline.head(model.guide_of("switch").features(tensors, None, baseline.network))
    return array(mean[0] + scale[0] * guess[:, 0])


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("switches", [COUPLED, APART], ids=["coupled", "apart"])
def test_one_draw_has_on_average_the_gradient_of_the_sum_over_all_values(switches, temperature):
    """Whatever the baseline says."""
    baselines = {}
    for place in range(2):
        baselines[place] = baseline = LearnedBaseline()
        baseline.build(1)
        baseline.head.bias.assign([0.7, -0.4])
        baseline._mean.assign([1.0, -2.0])
        baseline._variance.assign([4.0, 0.3])
        baseline._seen.assign(5)
    found = switches.gradients(1, temperature, baselines)
    for ours, expected in zip(found, switches.exact(temperature), strict=True):
        assert_mean(ours, expected, k=4)


@pytest.mark.core
def test_a_cost_is_measured_by_the_guess_and_by_the_other_rows():
    baseline = LearnedBaseline()
    baseline.build(2)
    baseline.head.kernel.assign([[0.5, 0.0], [-1.0, 2.0]])
    generator = np.random.default_rng(0)
    features = generator.normal(size=(1, 4, 2)).astype("float32")
    guess = features @ np.array([[0.5, 0.0], [-1.0, 2.0]])
    mean, variance = np.zeros(2), np.zeros(2)
    for step in range(1, MEMORY + 3):
        cost = generator.normal([3.0, -1.0], [2.0, 0.5], size=(3, 4, 2))
        after, before, error = (
            array(each) for each in baseline.advantages(single(cost[..., 0]), single(cost[..., 1]), single(features))
        )
        beyond = cost - mean - np.sqrt(variance) * guess
        others = np.stack([np.delete(beyond, row, axis=1).mean((0, 1)) for row in range(4)])
        np.testing.assert_allclose(np.stack([after, before], -1), beyond - others, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(error, np.zeros(4))
        share, change = 1 / min(step, MEMORY), cost.mean((0, 1)) - mean
        variance = (1 - share) * (variance + share * change**2) + share * cost.var((0, 1))
        mean = mean + share * change
    np.testing.assert_allclose(array(baseline._mean), mean, rtol=1e-4)


@pytest.mark.core
def test_a_single_row_has_no_others():
    baseline = LearnedBaseline()
    baseline.build(1)
    after, before, _ = baseline.advantages(single([[4.0]]), None, single([[[1.0]]]))
    assert before is None
    np.testing.assert_allclose(array(after), [[4.0]])
    np.testing.assert_allclose(array(baseline.advantages(single([[5.0]]), None, single([[[1.0]]]))[0]), [[1.0]])


@pytest.mark.core
def test_it_learns_the_expected_cost_of_a_row():
    """A guide that stays as it is, where all values are equally probable: means over values are exact.

    It reads the kind alone, in which the expected cost is linear. As the rate falls, the weights become averages over
    many steps, of 20 draws of each kind in each: by the bound over at least 20.
    """
    data, steps = rows(), 200
    guide = {"switch": Amortized(keras.layers.Identity(), ["kind"], family="categories")}
    model = SVI(switched, guide, baseline="learned", seed=0)
    model.trace_on(data)
    model.guide_of("switch").trainable = False
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, steps)), steps_per_execution=20)
    model.fit(data, batch_size="all", steps=steps, verbose=0)
    cost = costs(np.log(0.5))
    error = cost.std(1).max() / np.sqrt(20 * 20)
    np.testing.assert_allclose(expected_by(model, data)[:3], cost.mean(1), atol=4 * error)


@pytest.mark.core
def test_one_draw_a_step_finds_the_exact_probabilities():
    data = rows()
    model = made(
        baseline=keras.layers.Dense(8, "tanh"), rate=keras.optimizers.schedules.CosineDecay(0.05, 300), is_brief=False
    )
    model.trace_on(data)
    assert model.estimator.num_draws == 1
    model.fit(data, batch_size="all", steps=300, verbose=0)
    exact = special.softmax(-costs(np.zeros(2)), axis=1)[:, 1]
    draws = model.posterior(data, num_samples=2000, seed=0)["switch"]
    found = draws.reshape(2000, -1, 3).mean((0, 1))
    np.testing.assert_allclose(found, exact, atol=0.03)  # 4 standard errors of the draws are .01


@pytest.mark.core
def test_it_is_in_no_figure_and_no_average():
    data = rows()
    ours, theirs = made(num_samples=2), made("leave_one_out", num_samples=2)
    tensors = {name: ops.convert_to_tensor(each) for name, each in data.items()}
    found = []
    for model in (ours, theirs):
        model.trace_on(data)
        model.num_examples = NUM_ROWS
        terms = model.estimator.terms(tensors, bdl.random.draw_key(1), 1.0)
        found.append([array(terms.nll), array(terms.local_kl["switch"])])
        logs = model.fit(data, batch_size="all", steps=1, verbose=0).history
        assert sorted(logs) == ["elbo", "kl", "kl_switch", "loss", "nll", "temperature"]
    np.testing.assert_array_equal(found[0], found[1])
    assert len(ours.average._variables) == len(theirs.average._variables)
    added = {id(weight) for weight in ours.baselines[0].trainable_weights}
    assert {id(weight) for weight in ours.trainable_weights} >= added
    assert len(ours.trainable_weights) - len(theirs.trainable_weights) == len(added) == 2


@pytest.mark.core
def test_the_recognition_network_gets_no_gradient_of_the_baselines_error(monkeypatch):
    """Two fits that differ in what the baseline learns, and not in what it says, have the same guide."""
    found = []
    for share in (1.0, 5.0):
        model = made(num_samples=2)
        advantages = LearnedBaseline.advantages

        def scaled(self, after, before, features, advantages=advantages, share=share):
            own, others, error = advantages(self, after, before, features)
            return ops.zeros_like(own), others, share * error

        with monkeypatch.context() as patch:
            patch.setattr(LearnedBaseline, "advantages", scaled)
            model.fit(rows(), batch_size="all", steps=3, verbose=0)
        found.append([array(weight) for weight in model.guide_of("switch").weights])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["learned", "network"])
def test_a_file_has_the_baseline(kind, tmp_path):
    data = rows()
    baseline = "learned" if kind == "learned" else keras.Sequential([keras.layers.Dense(5, "tanh")])
    model = made(baseline, num_chains=2)
    model.fit(data, batch_size=20, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.baselines) == 2
    for one, two in zip(model.baselines, loaded.baselines, strict=True):
        assert one is not two
        assert len(one.weights) == len(two.weights) == (5 if kind == "learned" else 7)
        for ours, theirs in zip(one.weights, two.weights, strict=True):
            np.testing.assert_array_equal(array(ours), array(theirs))
    if kind == "network":
        assert model.baselines[0].network is baseline
        assert model.baselines[1].network is not baseline
    for each in (model, loaded):
        each.fit(data, batch_size=20, epochs=1, verbose=0)
    for ours, theirs in zip(model.trainable_weights, loaded.trainable_weights, strict=True):
        np.testing.assert_allclose(array(ours), array(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_a_baseline_reads_the_global_draws_that_the_guide_reads():
    """And hands no gradient on to them."""

    def story(data):
        level = yield Global("level", Normal(0.0, 1.0))
        switch = yield Local("switch", Categorical(np.log([0.4, 0.6]).astype("float32")))
        yield Observed("y", Normal(level + ops.cast(switch, "float32"), 1.0), data["y"])

    guide = {"switch": Amortized(keras.layers.Dense(4), ["y"], given=["level"], family="categories")}
    model = SVI(story, guide, baseline=keras.layers.Dense(3), seed=0)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit({"y": np.linspace(-1.0, 2.0, 8).astype("float32")}, batch_size="all", steps=2, verbose=0)
    assert model.baselines[0].network.kernel.shape == (2, 3)


@pytest.mark.core
def test_what_cannot_be_a_baseline_is_refused():
    network = keras.layers.Dense(4)
    guide = {"switch": Amortized(network, ["kind", "y"], family="categories")}
    for wrong in ("vimco", 0, None):
        with pytest.raises(ValueError, match=r"`baseline` must be one of .*'leave_one_out', 'learned'.*, or a Keras"):
            SVI(switched, guide, baseline=wrong)
    with pytest.raises(ValueError, match="`baseline` is for guides of discrete local sites, of which there are none"):
        SVI(switched, baseline="learned")
    with pytest.raises(ValueError, match="`baseline` must be 'leave_one_out' with objective='multi_sample'"):
        SVI(switched, guide, baseline="learned", objective="multi_sample", num_samples=4)
    with pytest.raises(ValueError, match="`baseline` must have layers of its own"):
        SVI(switched, guide, baseline=network)
    with pytest.raises(ValueError, match="`baseline` must have layers of its own, without posteriors"):
        SVI(switched, guide, baseline=bdl.layers.DenseFlipout(3))
