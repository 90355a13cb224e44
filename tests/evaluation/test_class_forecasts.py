"""`evaluate` of classes: what does not count, what logits mean, and which class is which."""

import keras
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.multiclass import OneVsRestClassifier

import bdl
from bdl.likelihoods import Bernoulli, Categorical

RANDOM = np.random.default_rng(3)
LOGITS = 2 * RANDOM.normal(size=(120, 3))
Y = np.argmax(LOGITS + RANDOM.gumbel(size=LOGITS.shape), axis=1)
P = softmax(LOGITS, axis=1)
KEPT = RANDOM.random(120) < 0.6
NAMES = np.array(["emu", "cat", "dog"])
QUICK = {"num_resamples": 20}


def scores(evaluation):
    """Every figure, intervals included; NaN where there is none."""
    return {name: (score.value, score.low, score.high) for name, score in evaluation.models["model"].scores.items()}


def assert_same(found, expected):
    assert found.num_events == expected.num_events
    assert_allclose(list(scores(found).values()), list(scores(expected).values()), rtol=1e-12, atol=1e-14)


# What does not count


@pytest.mark.parametrize("label", [-100, 255, np.nan], ids=str)
@pytest.mark.parametrize("form", ["probabilities", "logits"])
def test_what_the_mask_leaves_out_is_not_read(label, form):
    values = P if form == "probabilities" else LOGITS
    expected = bdl.evaluate(Y[KEPT], {form: values[KEPT]}, **QUICK)
    void, nan = np.where(KEPT, Y, label), np.where(KEPT[:, None], values, np.nan)
    assert_same(bdl.evaluate(void, {form: nan}, mask=KEPT, **QUICK), expected)
    assert_same(bdl.evaluate(np.ma.array(void, mask=~KEPT), {form: nan}, **QUICK), expected)
    if label == label:
        assert_same(bdl.evaluate(void, {form: nan}, ignore_class=label, **QUICK), expected)


def test_one_hot_labels_may_be_masked():
    expected = bdl.evaluate(Y[KEPT], P[KEPT], **QUICK)
    void = np.where(KEPT[:, None], np.eye(3)[Y], np.nan)
    for mask in (KEPT, np.repeat(KEPT[:, None], 3, axis=1)):
        assert_same(bdl.evaluate(void, P, mask=mask, **QUICK), expected)
    assert_same(bdl.evaluate(np.ma.array(void, mask=np.isnan(void)), P, **QUICK), expected)


def test_sequences_of_padding_alone_are_not_resampled():
    y, p, mask = np.full((30, 4), -1), np.full((30, 4, 3), np.nan), np.zeros((30, 4), bool)
    y[:5], p[:5], mask[:5] = Y[:20].reshape(5, 4), P[:20].reshape(5, 4, 3), True
    assert_same(bdl.evaluate(y, p, mask=mask, **QUICK), bdl.evaluate(y[:5], p[:5], **QUICK))
    mask[1:] = False  # a single example has no interval
    assert np.isnan(scores(bdl.evaluate(y, p, mask=mask, **QUICK))["accuracy"][1])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(3, bool), r"`mask` must have the shape of `y`, \(120,\), not shape \(3,\)"),
        (np.full(120, 2), r"`mask` must be True where an event counts"),
        (np.zeros(120, bool), r"`y` must hold a label that counts"),
    ],
)
def test_masks_that_keep_nothing_or_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        bdl.evaluate(Y, P, mask=mask, **QUICK)


def test_masked_targets_are_refused():
    target = np.ma.array([1.0, np.nan], mask=[False, True])
    with pytest.raises(ValueError, match=r"`y` must hold no masked entries here, not 1 of them"):
        bdl.evaluate(target, {"mean": [1.0, 2.0], "scale": [1.0, 1.0]})


# Logits


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("gap", [0.0, 1.0, 18.0, 500.0, 5000.0])
def test_the_loss_of_logits_is_exact_however_large_they_are(dtype, gap):
    expected = np.log1p(np.exp(-gap))  # of the label that is right; `gap` more of the other
    binary = np.array([gap], dtype)
    two = np.array([[0.0, gap]], dtype)
    for y, extra in ((1, 0.0), (0, gap)):
        assert_allclose(bdl.evaluate([y], {"logits": binary})["nll"], expected + extra, rtol=1e-14)
        assert_allclose(bdl.evaluate([y], {"logits": two})["nll"], expected + extra, rtol=1e-14)
        shifted = two.astype(np.float64) + 700
        assert_allclose(bdl.evaluate([y], {"logits": shifted})["nll"], expected + extra, rtol=1e-12)


def test_half_precision_logits_lose_nothing_more():
    half = LOGITS.astype(np.float16)
    expected = bdl.evaluate(Y, {"logits": half.astype(np.float64)}, **QUICK)
    assert_same(bdl.evaluate(Y, {"logits": half}, **QUICK), expected)
    assert_allclose(expected["nll"], -log_softmax(half.astype(float), axis=1)[np.arange(120), Y].mean(), rtol=1e-14)


def test_an_impossible_label_costs_what_a_probability_of_zero_costs():
    evaluation = bdl.evaluate([1, 0], {"logits": [[0.0, -np.inf], [0.0, -np.inf]]}, num_resamples=0)
    assert_allclose(evaluation["nll"], 1074 * np.log(2) / 2)


def test_a_prediction_keeps_its_log_probabilities():
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False)])
    network.layers[0].set_weights([100 * np.eye(3)])
    x = LOGITS.astype("float32")
    prediction = bdl.predict_distribution(network, x, Categorical(), num_samples=1)
    expected = -log_softmax(100 * x.astype(np.float64), axis=1)[np.arange(120), Y].mean()
    assert expected > 20
    assert_allclose(bdl.evaluate(Y, prediction, num_resamples=0)["nll"], expected, rtol=1e-5)
    single = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    single.layers[0].set_weights([np.full((1, 1), 300.0)])
    prediction = bdl.predict_distribution(single, np.array([[1.0], [1.0]]), Bernoulli(), num_samples=1)
    assert_allclose(bdl.evaluate([0, 1], prediction, num_resamples=0)["nll"], 150, rtol=1e-6)


BINARY, BINARY_Y = LOGITS[:, 0], (RANDOM.random(120) < expit(LOGITS[:, 0])).astype(int)
MANY_Y = (RANDOM.random((120, 3)) < expit(LOGITS)).astype(int)
MAP, MAP_Y = LOGITS.reshape(10, 4, 9), (RANDOM.random((10, 4, 9)) < expit(LOGITS.reshape(10, 4, 9))).astype(int)


@pytest.mark.parametrize(
    ("y", "logits", "label_of", "p"),
    [
        (BINARY_Y, BINARY, BINARY_Y, expit(BINARY)),
        (BINARY_Y, BINARY[:, None], BINARY_Y, expit(BINARY)),
        (BINARY_Y[:, None], BINARY[:, None], BINARY_Y, expit(BINARY)),
        (MANY_Y, LOGITS, MANY_Y.ravel(), expit(LOGITS).ravel()),
        (MAP_Y, MAP, MAP_Y.ravel(), expit(MAP).ravel()),
        (MAP_Y, MAP[..., None], MAP_Y.ravel(), expit(MAP).ravel()),
        (Y, LOGITS, Y, P),
        (Y.reshape(10, 12), LOGITS.reshape(10, 12, 3), Y, P),
        (Y.reshape(5, 4, 6), LOGITS.reshape(5, 4, 6, 3), Y, P),
    ],
    ids=["binary", "column", "both columns", "multilabel", "map", "map column", "classes", "sequences", "segmentation"],
)
def test_shape_and_labels_say_what_logits_mean(y, logits, label_of, p):
    found = bdl.evaluate(y, {"logits": logits}, num_resamples=0)
    classes = [0, 1] if p.ndim == 1 else [0, 1, 2]
    assert_allclose(found["nll"], log_loss(label_of, p, labels=classes), rtol=1e-12)
    assert_allclose(found["brier"], bdl.calibration.brier_score(label_of, p), rtol=1e-12)


def test_one_hot_labels_of_logits_are_asked_for():
    one_hot = np.eye(3)[Y]
    with pytest.raises(ValueError, match=r"`y` must say what `logits` of its own shape.*y\.argmax\(-1\).*Bernoulli"):
        bdl.evaluate(one_hot, {"logits": LOGITS}, **QUICK)
    of_classes = bdl.evaluate(one_hot, {"logits": LOGITS}, likelihood=Categorical(), **QUICK)
    assert_same(of_classes, bdl.evaluate(Y, {"logits": LOGITS}, **QUICK))
    independent = bdl.evaluate(one_hot, {"logits": LOGITS}, likelihood=Bernoulli(), num_resamples=0)
    assert_allclose(independent["nll"], log_loss(one_hot.ravel(), expit(LOGITS).ravel()), rtol=1e-12)
    outputs = {"y": {"a": one_hot}, "prediction": {"a": {"logits": LOGITS}}}
    found = bdl.evaluate(**outputs, likelihood={"a": Categorical()}, num_resamples=0)
    assert_allclose(found["a"]["nll"], of_classes["nll"])


# Which class is which


def test_a_classifier_is_judged_by_its_own_classes():
    x = LOGITS
    for labels in (np.array([1, 2, 3]), np.array([-1, 0, 1]), NAMES, np.array([10.0, 2.0, 5.0])):
        y = labels[Y]
        classifier = LogisticRegression().fit(x, y)
        for part in (slice(None), y != labels[0], y == labels[1]):
            found = bdl.evaluate(y[part], classifier, x[part], num_resamples=0)
            assert found["accuracy"] == classifier.score(x[part], y[part])
            expected = log_loss(y[part], classifier.predict_proba(x[part]), labels=classifier.classes_)
            assert_allclose(found["nll"], expected, rtol=1e-12)


@pytest.mark.parametrize("labels", [np.array([-1, 1]), np.array([1, 2]), np.array(["no", "yes"]), np.array([5, 3])])
def test_two_classes_of_any_name(labels):
    y, x = labels[BINARY_Y], LOGITS
    classifier = LogisticRegression().fit(x, y)
    for part in (slice(None), y == labels[1], y == labels[0]):
        found = bdl.evaluate(y[part], classifier, x[part], num_resamples=0)
        assert found["accuracy"] == classifier.score(x[part], y[part])
    p = expit(BINARY)
    expected = bdl.evaluate(BINARY_Y, p, **QUICK)
    assert_same(bdl.evaluate(y, p, classes=labels, **QUICK), expected)
    assert_same(
        bdl.evaluate(y, {"logits": BINARY, "classes": labels}, **QUICK),
        bdl.evaluate(BINARY_Y, {"logits": BINARY}, **QUICK),
    )
    if labels[0] < labels[1]:
        assert_same(bdl.evaluate(y, p, **QUICK), expected)


def test_several_labels_of_a_classifier_are_not_its_classes():
    classifier = OneVsRestClassifier(LogisticRegression()).fit(LOGITS, MANY_Y[:, :2])
    found = bdl.evaluate(MANY_Y[:, :2], classifier, LOGITS, num_resamples=0)
    expected = log_loss(MANY_Y[:, :2].ravel(), classifier.predict_proba(LOGITS).ravel())
    assert_allclose(found["nll"], expected, rtol=1e-12)


def test_columns_of_a_table_are_found_by_name():
    expected = bdl.evaluate(Y, P, **QUICK)
    table = pd.DataFrame(P, columns=[f"p_{name}" for name in NAMES])
    shuffled = table[["p_dog", "p_emu", "p_cat"]]
    for prediction in (table, shuffled, {"probabilities": shuffled}, {"probabilities": P, "classes": NAMES}):
        assert bdl.evaluate(NAMES[Y], prediction, **QUICK)["nll"] == pytest.approx(expected["nll"], rel=1e-13)
    part = Y != 1
    found = bdl.evaluate(NAMES[Y][part], shuffled[part], num_resamples=0)
    assert_allclose(found["accuracy"], bdl.calibration.accuracy(Y[part], P[part]))
    dummies = pd.get_dummies(NAMES[Y], dtype=int)  # in sorted order
    assert_allclose(bdl.evaluate(dummies, table.set_axis(NAMES, axis=1), num_resamples=0)["nll"], expected["nll"])
    with pytest.raises(ValueError, match=r"`y` must hold the classes \['emu', 'cat', 'dog'\], not 0"):
        bdl.evaluate(Y, table.set_axis(NAMES, axis=1))
    several = pd.DataFrame(MANY_Y, columns=["a", "b", "c"])
    said = pd.DataFrame(expit(LOGITS), columns=["a", "b", "c"])
    swapped = bdl.evaluate(several[["c", "a", "b"]], said, num_resamples=0)
    assert_allclose(swapped["nll"], log_loss(MANY_Y.ravel(), expit(LOGITS).ravel()), rtol=1e-12)
    with pytest.raises(ValueError, match=r"`y` must have the columns of the prediction"):
        bdl.evaluate(several.set_axis(["c", "a", "d"], axis=1), said)


def test_errors_are_shown_by_the_names_of_their_classes():
    evaluation = bdl.evaluate(NAMES[Y], P, classes=NAMES, num_resamples=0)
    model, (first, *_) = evaluation.models["model"], evaluation.models["model"].surprises
    assert model.classes == tuple(NAMES)
    assert evaluation.to_dict()["models"]["model"]["classes"] == list(NAMES)
    assert (NAMES[Y][first.index], NAMES[P[first.index].argmax()]) == tuple(
        model.classes[int(column)] for column in (first.truth, first.said)
    )
    table = evaluation.page("Title").sections[-1].blocks[0]
    assert list(table.rows[0].cells[:2]) == [NAMES[P[first.index].argmax()], NAMES[Y][first.index]]
    assert bdl.evaluate(Y, P, num_resamples=0).models["model"].classes is None


def test_void_labels_may_have_a_name():
    y = np.where(KEPT, NAMES[Y], "unknown")
    expected = bdl.evaluate(Y[KEPT], P[KEPT], **QUICK)
    assert_same(bdl.evaluate(y, P, ignore_class="unknown", classes=NAMES, **QUICK), expected)
    kind = {"y": {"kind": y}, "prediction": {"kind": P}, "classes": {"kind": NAMES}}
    assert_same(bdl.evaluate(**kind, ignore_class="unknown", **QUICK)["kind"], expected)


@pytest.mark.parametrize(
    ("y", "prediction", "options", "message"),
    [
        (NAMES[Y][Y > 0], P[Y > 0], {}, r"a different name for each of the 3 classes, not 2"),
        (NAMES[Y], P, {"classes": NAMES[:2]}, r"`classes` must name each of the 3 classes"),
        ([0.5], {"mean": [0.5], "scale": [1.0]}, {"classes": NAMES}, r"`classes` must be of labels, not of targets"),
        ({"a": Y}, {"a": P}, {"classes": NAMES}, r"`classes` must be a dict by the prediction's outputs, \['a'\]"),
        (Y + 1.5, P, {}, r"`prediction` must say how sure it is of real targets"),
        (Y + 0j, P, {}, r"`y` must hold class indices or names, not dtype complex128"),
    ],
)
def test_what_cannot_be_told_is_asked(y, prediction, options, message):
    with pytest.raises(ValueError, match=message):
        bdl.evaluate(y, prediction, **options)
