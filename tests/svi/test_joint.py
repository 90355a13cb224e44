"""Joint distributions of TensorFlow Probability as stories: their log density, sites and errors."""

import collections

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose
from stories import level_posterior

from bdl.svi import SVI, Amortized, from_joint
from bdl.svi.story import Global, Local, Observed, run

tfp = pytest.importorskip("tensorflow_probability") if keras.backend.backend() == "tensorflow" else None
tensorflow = pytest.mark.skipif(tfp is None, reason="TensorFlow Probability computes with TensorFlow")

ROWS = 6
RANDOM = np.random.default_rng(0)
DATA = {"x": RANDOM.normal(size=ROWS).astype("float32"), "count": RANDOM.poisson(3.0, size=ROWS).astype("float32")}


def independent(distribution):
    return tfp.distributions.Independent(distribution, 1)


def named(data):
    tfd = tfp.distributions
    return tfd.JointDistributionNamed(
        {
            "count": lambda log_rate: independent(tfd.Poisson(log_rate=log_rate)),
            "log_rate": lambda spread, level: independent(tfd.Normal(level + data["x"], spread)),
            "level": tfd.Normal(0.0, 2.0),
            "spread": lambda: tfd.HalfNormal(1.0),
        }
    )


def named_tuple(data):
    tfd = tfp.distributions
    kind = collections.namedtuple("Model", ["level", "spread", "log_rate", "count"])
    makers = named(data).model
    return tfd.JointDistributionNamed(kind(**{name: makers[name] for name in kind._fields}))


def sequential(data):
    tfd = tfp.distributions
    return tfd.JointDistributionSequential(
        [
            tfd.Normal(0.0, 2.0),
            tfd.HalfNormal(1.0),
            lambda spread, level: independent(tfd.Normal(level + data["x"], spread)),
            lambda log_rate: independent(tfd.Poisson(log_rate=log_rate)),
        ]
    )


def _coroutine(data):
    tfd = tfp.distributions
    root = tfd.JointDistributionCoroutine.Root

    def model():
        level = yield root(tfd.Normal(0.0, 2.0, name="level"))
        spread = yield root(tfd.HalfNormal(1.0, name="spread"))
        log_rate = yield tfd.Independent(tfd.Normal(level + data["x"], spread), 1, name="log_rate")
        yield tfd.Independent(tfd.Poisson(log_rate=log_rate), 1, name="count")

    return model


def coroutine(data):
    return tfp.distributions.JointDistributionCoroutine(_coroutine(data))


def auto_batched(data):
    tfd = tfp.distributions

    def model():
        level = yield tfd.Normal(0.0, 2.0, name="level")
        spread = yield tfd.HalfNormal(1.0, name="spread")
        log_rate = yield tfd.Normal(level + data["x"], spread, name="log_rate")
        yield tfd.Poisson(log_rate=log_rate, name="count")

    return tfd.JointDistributionCoroutineAutoBatched(model)


def auto_batched_sequential(data):
    tfd = tfp.distributions
    return tfd.JointDistributionSequentialAutoBatched(sequential(data).model)


MAKERS = [named, named_tuple, sequential, coroutine, auto_batched, auto_batched_sequential]
SEQUENTIAL = {"level": "level", "spread": "spread", "log_rate": "log_rate", "count": "x"}
"""Names: TensorFlow Probability calls the last variable of a list x, for no other one depends on it."""


def names_of(make):
    return SEQUENTIAL if make in (sequential, auto_batched_sequential) else {name: name for name in SEQUENTIAL}


@tensorflow
@pytest.mark.parametrize("is_made_once", [False, True], ids=["function", "made once"])
@pytest.mark.parametrize("make", MAKERS)
def test_the_log_joint_is_that_of_tensorflow_probability(make, is_made_once):
    names = names_of(make)
    joint = make(DATA)
    story = from_joint(joint if is_made_once else make, observed={names["count"]: "count"}, local=["log_rate"])
    values = {
        "level": np.float32(0.7),
        "spread": np.float32(0.4),
        "log_rate": RANDOM.normal(size=ROWS).astype("float32"),
        names["count"]: DATA["count"],
    }
    visits = run(story, DATA, lambda variable: values[variable.name])
    kinds = {visit.name: type(visit.variable) for visit in visits}
    assert kinds == {"level": Global, "spread": Global, "log_rate": Local, names["count"]: Observed}
    assert all(visit.log_prob().shape == (ROWS,) for visit in visits if kinds[visit.name] is not Global)
    total = sum(float(np.sum(visit.log_prob())) for visit in visits)
    given = list(values.values()) if names is SEQUENTIAL else values
    if make in (named_tuple, coroutine, auto_batched):
        given = joint.dtype._replace(**values)
    assert_allclose(total, float(joint.log_prob(given)), rtol=2e-6)


@tensorflow
def test_repeated_variables_have_a_density_for_each_row():
    tfd = tfp.distributions
    joint = tfd.JointDistributionNamed(
        {
            "mean": tfd.Sample(tfd.Normal(0.0, 1.0), 2),
            "code": lambda mean: tfd.Sample(tfd.Normal(mean[0], 1.0), [ROWS, 3]),
            "y": lambda code: tfd.Independent(tfd.Normal(code, 0.5), 2),
        }
    )
    story = from_joint(joint, observed=["y"], local=["code"])
    values = {"mean": np.float32([0.1, 0.2]), "code": RANDOM.normal(size=(ROWS, 3)).astype("float32")}
    values["y"] = RANDOM.normal(size=(ROWS, 3)).astype("float32")
    visits = run(story, {"y": values["y"]}, lambda variable: values[variable.name])
    assert [visit.log_prob().shape for visit in visits] == [(), (ROWS,), (ROWS,)]
    assert_allclose(sum(float(np.sum(visit.log_prob())) for visit in visits), float(joint.log_prob(values)), rtol=2e-6)


@tensorflow
@pytest.mark.parametrize("make", [named, auto_batched])
def test_a_function_of_the_data_is_fitted_in_batches(make):
    guide = {"log_rate": Amortized(keras.layers.Dense(4, "relu"), ["x", "count"])}
    model = SVI(from_joint(make, observed=["count"], local=["log_rate"]), guide, seed=0)
    model.compile("adam")
    history = model.fit(DATA, batch_size=3, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert {"kl_level", "kl_spread", "kl_log_rate"} <= set(history)
    new = {name: np.repeat(each, 2) for name, each in DATA.items()}
    assert model.posterior(new, num_samples=3)["log_rate"].shape == (3, 2 * ROWS)


@tensorflow
def test_a_joint_made_once_has_its_exact_evidence_at_its_posterior():
    tfd = tfp.distributions
    y = RANDOM.normal(1.0, 1.0, size=8).astype("float32")
    joint = tfd.JointDistributionNamed(
        {"mean": tfd.Normal(0.5, 3.0), "y": lambda mean: tfd.Sample(tfd.Normal(mean, 1.0), 8)}
    )
    model = SVI(from_joint(joint, observed=["y"]), "full_rank", seed=0)
    model.trace_on({"y": y})
    mean, sd, evidence = level_posterior(y.astype("float64"))
    model.guide_of("mean").start_at(np.array([mean]), np.array([[sd]]))
    assert_allclose(model.log_weights({"y": y}, num_samples=5, seed=0), evidence, rtol=1e-4)


@tensorflow
def test_a_joint_made_once_is_not_fitted_in_batches():
    story = from_joint(named(DATA), observed=["count"], local=["log_rate"])
    batch = {name: each[:3] for name, each in DATA.items()}
    with pytest.raises(ValueError, match=r"`joint` must have the data's 3 rows on the first axis of 'log_rate', not 6"):
        SVI(story, {"log_rate": Amortized(keras.layers.Dense(2), ["x"])}).trace_on(batch)
    model = SVI(story, {"log_rate": Amortized(keras.layers.Dense(2), ["x"])})
    model.trace_on(DATA)
    assert {site.name: site.shape for site in model.sites}["log_rate"] == ()


@tensorflow
def test_bad_arguments_are_named():
    joint = named(DATA)
    with pytest.raises(ValueError, match=r"`observed` must name variables of `joint`, \[.*\], not \['y'\]"):
        from_joint(joint, observed=["y"])
    with pytest.raises(ValueError, match=r"`local` must name variables of `joint`, \[.*\], not \['z'\]"):
        from_joint(joint, observed=["count"], local=["z"])
    with pytest.raises(ValueError, match=r"none of `local`, not \['count'\] with \['count'\] in both"):
        from_joint(joint, observed=["count"], local=["count"])
    with pytest.raises(ValueError, match="at least one"):
        from_joint(joint, observed=[])
    for wrong in ("count", [3]):
        with pytest.raises(ValueError, match="`observed` must be a list of names"):
            from_joint(joint, observed=wrong)
    with pytest.raises(ValueError, match=r"`joint` must be a JointDistributionNamed, .*, not 3"):
        from_joint(3, observed=["count"])
    story = from_joint(lambda data: tfp.distributions.Normal(0.0, 1.0), observed=["count"])
    with pytest.raises(ValueError, match="`joint` must be a JointDistributionNamed"):
        run(story, DATA, lambda variable: None)


@pytest.mark.core
@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it works there")
def test_elsewhere_the_backend_is_named():
    with pytest.raises(ValueError, match="`joint` needs Keras' TensorFlow backend"):
        from_joint(lambda data: None, observed=["y"])
