"""Predictions in parts, and summaries, against the prediction of everything at once."""

import keras
import numpy as np
import pytest

import bdl
from bdl.likelihoods import Bernoulli, Categorical, Normal, Poisson
from bdl.prediction import RegressionSummary, joined

pytestmark = pytest.mark.core

X = np.random.default_rng(0).normal(size=(45, 4)).astype("float32")
KINDS = {
    "classes": (3, Categorical()),
    "label": (1, Bernoulli()),
    "target": (2, Normal(heteroscedastic=True)),
    "targets": (2, Normal(scale=0.5)),
    "count": (1, Poisson()),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    units, likelihood = KINDS[request.param]
    network = keras.Sequential(
        [keras.Input((4,)), bdl.layers.DenseFlipout(5, "relu"), bdl.layers.DenseReparameterization(units, seed=1)]
    )
    return network, likelihood


def fields(prediction):
    """All arrays of a prediction by name."""
    if isinstance(prediction, bdl.prediction.RegressionPrediction):
        return prediction.parameters
    return {name: value for name, value in vars(prediction).items() if isinstance(value, np.ndarray)}


def assert_same(found, expected):
    assert fields(found).keys() == fields(expected).keys()
    for name, value in fields(expected).items():
        np.testing.assert_array_equal(fields(found)[name], value)


def test_the_parts_are_the_prediction_of_all(kind):
    network, likelihood = kind
    expected = bdl.predict_distribution(network, X, likelihood, 6, batch_size=8, seed=3)
    parts = list(bdl.predict_parts(network, X, likelihood, 6, batch_size=8, seed=3, part_size=15))
    assert [len(part.total_uncertainty) for part in parts] == [16, 16, 13]
    assert_same(joined(parts), expected)


def test_parts_of_the_data_predicted_apart_are_the_prediction_of_all(kind):
    """In whatever order: what counts is the place in the data."""
    network, likelihood = kind
    expected = bdl.predict_distribution(network, X, likelihood, 6, batch_size=8, seed=3)
    places = [(32, 45), (0, 8), (8, 32)]
    apart = {
        start: bdl.predict_distribution(network, X[start:end], likelihood, 6, batch_size=8, seed=3, first_row=start)
        for start, end in places
    }
    assert_same(joined([apart[start] for start in sorted(apart)]), expected)


def test_a_summary_is_that_of_the_samples(kind):
    network, likelihood = kind
    settings = {"num_samples": 40, "batch_size": 8, "seed": 3}
    full = bdl.predict_distribution([network, network], X, likelihood, **settings)
    summary = bdl.predict_distribution([network, network], X, likelihood, summary=(0.05, 0.5), **settings)
    if likelihood.is_classifier:
        assert_same(summary, full)
        return
    assert isinstance(summary, RegressionSummary)
    assert summary.num_samples == full.num_samples
    for name in ("mean", "aleatoric", "epistemic", "variance", "std"):
        np.testing.assert_allclose(getattr(summary, name), getattr(full, name), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(summary.quantile([0.5, 0.05]), full.quantile([0.5, 0.05]), rtol=1e-6)
    np.testing.assert_array_equal(summary.quantile(0.5), summary.quantiles[1])


def test_a_summary_without_levels_has_the_same_moments():
    network, likelihood = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(1)]), Normal()
    with_levels, without = (
        bdl.predict_distribution(network, X, likelihood, 8, seed=1, summary=summary) for summary in ((0.5,), True)
    )
    np.testing.assert_allclose(without.mean, with_levels.mean, rtol=1e-5, atol=1e-6)
    assert without.levels == ()
    assert without.quantiles.shape == (0, 45)
    with pytest.raises(ValueError, match=r"`q` must be of the levels that were kept, \[\], not \[0.5\]. Predict once"):
        without.quantile(0.5)


def test_a_prediction_without_samples_takes_memory_for_the_sums_alone():
    """The loop's own results, not what is thrown away at its end."""
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(1)])
    sampler = bdl.sampling.Sampler(network, Normal())
    run, values, _ = sampler.prepare(X, 50, False, 1, bdl.sampling.Kept(parameters=False, moments=True))
    _, results = run(values, X, keras.ops.convert_to_tensor(0, dtype="int32"))
    assert {name: tuple(value.shape) for name, value in results["None"].items()} == {
        name: (45, 1) for name in ("mean", "deviation", "noise")
    }


def test_raw_outputs_are_kept_where_they_are_asked_for_alone(kind):
    network, likelihood = kind
    assert bdl.predict_distribution(network, X, likelihood, 2).outputs is None
    assert bdl.predict_distribution(network, X, likelihood, 2, keep_outputs=True).outputs.shape[:2] == (2, 45)


def test_several_outputs_come_in_their_structure():
    inputs = keras.Input((4,))
    heads = {"kind": keras.layers.Dense(3)(inputs), "size": bdl.layers.DenseFlipout(1)(inputs)}
    likelihoods = {"kind": Categorical(), "size": Normal()}
    network = keras.Model(inputs, heads)
    parts = list(bdl.predict_parts(network, X, likelihoods, 2, seed=1, part_size=32, summary=True))
    assert [part["size"].mean.shape for part in parts] == [(32,), (13,)]
    assert joined(parts)["kind"].probabilities.shape == (45, 3)


def test_the_model_has_the_same_parts_and_shows_how_far_it_is(capsys):
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    model = bdl.VariationalModel(network, Categorical(), num_examples=45, kl_weight=1.0)
    parts = list(model.predict_parts(X, 4, seed=2, part_size=32, verbose=True))
    assert_same(joined(parts), model.predict_distribution(X, 4, seed=2))
    assert "45/45" in capsys.readouterr().out


def test_work_between_two_parts_has_its_gradients():
    """Torch's switch of gradients belongs to the thread, and a generator must not hold it."""
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    parts = bdl.predict_parts(network, X, Categorical(), 2, part_size=16)
    next(parts)
    if keras.backend.backend() == "torch":
        import torch

        assert torch.is_grad_enabled()
    assert len(list(parts)) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_memory_map_is_read_batch_by_batch(tmp_path, dtype):
    np.save(tmp_path / "x.npy", X.astype(dtype))
    data = np.load(tmp_path / "x.npy", mmap_mode="r")
    pick = bdl.keras_internals.row_picker(data)
    assert any(cell.cell_contents is data for cell in pick.__closure__)
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    assert_same(*(bdl.predict_distribution(network, x, Categorical(), 2, seed=1) for x in (data, X)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part_size": 0}, "`part_size` must be an integer of at least 1, not 0"),
        ({"first_row": -1}, "`first_row` must be an integer of at least 0, not -1"),
        ({"summary": (0.5, 1.0)}, r"`summary` must hold levels between 0 and 1, both excluded, not \(0.5, 1.0\)"),
        ({"summary": True, "keep_outputs": True}, "`keep_outputs` must be False with `summary`"),
        ({"first_row": 2**31}, "`first_row` must be at most 2,147,483,647, not 2147483648"),
        ({"summary": 0.05}, r"`summary` must be True, False, or levels such as \(0.05, 0.95\), not 0.05"),
        ({"seed": -1}, "`seed` must be an integer of at least 0, not -1"),
        ({"num_samples": 1.5}, "`num_samples` must be an integer of at least 1, not 1.5"),
    ],
)
def test_wrong_arguments_are_named_before_the_first_part(change, message):
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(1)])
    with pytest.raises(ValueError, match=message):
        bdl.predict_parts(network, X, Normal(), **change)


def test_a_stream_ends_before_its_places_overflow():
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(1)])
    with pytest.raises(ValueError, match="`x` must end with row 2,147,483,647 of the data"):
        bdl.predict_distribution(network, X, Normal(), 2, first_row=2**31 - 40)
