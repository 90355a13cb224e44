"""One pass over the predictions gives the scores that each metric of `bdl.calibration` gives on its own."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import bdl
from bdl import calibration
from bdl.calibration import _events
from bdl.calibration.metrics import ranking

METRICS = {
    "accuracy": calibration.accuracy,
    "nll": calibration.negative_log_likelihood,
    "brier": calibration.brier_score,
    "ece": calibration.expected_calibration_error,
    "debiased_ce": calibration.debiased_calibration_error,
    "classwise_ece": calibration.classwise_calibration_error,
}
FORMS = ["classes", "label 1", "sequences", "independent labels"]


def predictions(form, seed, n, dtype, grid=None):
    """Labels, probabilities and a mask; on a grid of probabilities there are ties."""
    random = np.random.default_rng(seed)
    shape = (n, 3) if form in ("sequences", "independent labels") else (n,)
    if form in ("classes", "sequences"):
        p = random.dirichlet(np.ones(4), size=shape)
        if grid:
            p = random.multinomial(grid, np.ones(4) / 4, size=shape) / grid
        y = random.integers(0, 4, size=shape)
    else:
        p = random.uniform(size=shape) if grid is None else random.integers(0, grid + 1, shape) / grid
        y = (random.uniform(size=shape) < p).astype(int)
        y[0] = 1  # labels that are not one-hot by chance
    mask = random.random(shape) < 0.7
    mask.flat[:2] = True
    return y, p.astype(dtype), mask


@given(
    st.sampled_from(FORMS),
    st.integers(0, 2**32 - 1),
    st.integers(2, 30),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([None, 2, 5]),
    st.booleans(),
    st.sampled_from([1, 7, 2**20]),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_scores_are_those_of_the_metrics(form, seed, n, dtype, grid, is_masked, block_size):
    y, p, mask = predictions(form, seed, n, dtype, grid)
    mask = mask if is_masked else None
    with (
        mock.patch.object(_events, "BLOCK_SIZE", block_size),
        mock.patch.object(ranking, "_TIES_IN_A_BLOCK", block_size),
    ):
        model = bdl.evaluate(y, p, mask=mask, num_resamples=0).models["model"]
        for name, metric in METRICS.items():
            assert model.scores[name].value == metric(y, p, mask=mask), name
        assert_allclose(model.bins.count, calibration.reliability_bins(y, p, mask=mask).count)
    kept = np.ones(y.shape, bool) if mask is None else mask
    labels, kept_p = y[kept], p[kept].astype(float)
    confidence, said = kept_p.max(axis=-1), kept_p.argmax(axis=-1)
    if y.shape == p.shape:
        # What is not said about label 1 is rounded as the probabilities are.
        confidence = np.maximum(p[kept], 1 - p[kept]).astype(float)
        said = (p[kept] > 1 - p[kept]).astype(int)
    errors = said != labels
    curve = calibration.risk_coverage_curve(errors, -confidence)
    for name in ("coverage", "risk", "best_risk"):
        assert np.array_equal(getattr(model.risk_coverage, name), getattr(curve, name))
    assert model.scores["aurc"].value == curve.area
    if errors.any() and not errors.all():
        expected = calibration.out_of_distribution_auroc(-confidence[~errors], -confidence[errors])
        assert model.scores["error_auroc"].value == expected
    wrong = np.flatnonzero(errors)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")[:10]]
    assert [surprise.index for surprise in model.surprises] == np.flatnonzero(kept)[worst].tolist()
    assert [surprise.truth for surprise in model.surprises] == labels[worst].tolist()
    assert [surprise.said for surprise in model.surprises] == said[worst].tolist()
    assert_allclose([surprise.confidence for surprise in model.surprises], confidence[worst])


@pytest.mark.parametrize("form", FORMS)
def test_intervals_are_those_of_the_metrics(form):
    y, p, mask = predictions(form, 0, 60, "float32")
    scores = bdl.evaluate(y, p, mask=mask, num_resamples=100).models["model"].scores
    for name in ("accuracy", "nll", "brier"):
        expected = calibration.bootstrap_interval(METRICS[name], y, p, mask=mask, num_resamples=100)
        found = scores[name]
        assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-12)
    assert np.isnan(scores["aurc"].low) == (y.ndim > 1)


def test_arrays_on_disk_are_evaluated_as_those_in_memory(tmp_path):
    y, p, _ = predictions("classes", 1, 500, "float32")
    for name, array in (("y", y), ("p", p)):
        np.save(tmp_path / f"{name}.npy", array)
    on_disk = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("y", "p"))
    found, expected = bdl.evaluate(*on_disk, num_resamples=20), bdl.evaluate(y, p, num_resamples=20)
    assert found.to_dict() == expected.to_dict()


def test_the_table_is_read_once():
    read = []

    class Table(np.ndarray):
        def __getitem__(self, key):
            found = super().__getitem__(key)
            read.append(found.size)
            return found

    p = np.random.default_rng(0).dirichlet(np.ones(1000), size=3000)
    bdl.evaluate(np.arange(3000) % 1000, p.view(Table), num_resamples=10)
    assert p.size <= sum(read) < 1.01 * p.size  # the ten most confident errors are looked up


def test_the_temporary_memory_is_small(tmp_path):
    n = 400_000
    p = np.lib.format.open_memmap(tmp_path / "p.npy", "w+", np.float32, (n, 20))
    p[:] = np.random.default_rng(0).dirichlet(np.ones(20), size=1000).astype("float32")[np.arange(n) % 1000]
    y = np.arange(n) % 20
    tracemalloc.start()
    try:
        evaluation = bdl.evaluate(y, np.load(tmp_path / "p.npy", mmap_mode="r"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A block's temporaries (a million numbers of 8 bytes, of which a few live at once), and 150 bytes an event.
    assert peak < 60 * 2**20 + 150 * n
    assert "not resampled for an interval, as there are 400,000 examples, more than 200,000" in str(evaluation)


@pytest.mark.parametrize(
    ("y", "options", "reason"),
    [([0, 1, 1], {"num_resamples": 0}, "`num_resamples` is 0"), ([1], {}, "that needs two examples")],
)
def test_a_table_without_intervals_says_why(y, options, reason):
    evaluation = bdl.evaluate(y, np.full((len(y), 2), [0.4, 0.6]), **options)
    assert f"not resampled for an interval, as {reason}." in str(evaluation)
    assert "not resampled" not in str(bdl.evaluate([0, 1, 1], [[0.4, 0.6]] * 3, num_resamples=10))
