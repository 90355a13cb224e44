"""`evaluate` of several outputs, of labels that do not count, and of one-hot labels."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import bdl
from bdl.evaluation.files import by_output
from bdl.likelihoods import Categorical, Normal

RNG = np.random.default_rng(0)
N = 40
X = RNG.normal(size=(N, 4)).astype("float32")
P = RNG.dirichlet(np.ones(3), size=N)
KIND, SIZE = RNG.integers(0, 3, N), RNG.normal(size=N)
Y = {"kind": KIND, "size": SIZE}
PREDICTIONS = {"kind": P, "size": {"mean": np.zeros(N), "scale": np.ones(N)}}
LIKELIHOODS = {"kind": Categorical(), "size": Normal(scale=1.0)}
QUICK = {"num_resamples": 20}


def network(kind):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(3, name="kind")(inputs), keras.layers.Dense(1, name="size")(inputs)
    return keras.Model(inputs, list(outputs) if kind == "list" else dict(zip(Y, outputs, strict=True)))


def scores(evaluation):
    return {name: score.value for name, score in evaluation.models["model"].scores.items()}


def test_each_output_has_the_scores_that_it_has_alone():
    evaluation = bdl.evaluate(Y, PREDICTIONS, **QUICK)
    assert list(evaluation) == ["kind", "size"]
    for name in Y:
        assert scores(evaluation[name]) == scores(bdl.evaluate(Y[name], PREDICTIONS[name], **QUICK))
    assert (evaluation["kind"].kind, evaluation["size"].kind) == ("classification", "regression")


@pytest.mark.parametrize("likelihood", [LIKELIHOODS, list(LIKELIHOODS.values())])
def test_models_of_several_outputs_are_compared_output_by_output(likelihood):
    model = network("list")
    options = {"likelihood": likelihood, "num_samples": 2, **QUICK}
    evaluation = bdl.evaluate(Y, {"one": model, "two": model}, X, **options)
    predicted = bdl.predict_distribution(model, X, likelihood, 2, seed=0)
    kind = predicted["kind"] if isinstance(predicted, dict) else predicted[0]
    expected = bdl.calibration.negative_log_likelihood(KIND, kind.probabilities)
    for name in ("one", "two"):
        assert evaluation["kind"].models[name].scores["nll"].value == pytest.approx(expected, rel=1e-6)
    of_predictions = bdl.evaluate(Y if isinstance(predicted, dict) else list(Y.values()), predicted, **QUICK)
    assert [each["nll"] for each in of_predictions.values()] == [
        each.models["one"].scores["nll"].value for each in evaluation.values()
    ]


def test_page_and_json_hold_every_output(tmp_path):
    evaluation = bdl.evaluate(Y, PREDICTIONS, **QUICK)
    evaluation.save_html(tmp_path / "page.html")
    evaluation.save_json(tmp_path / "page.json")
    page = (tmp_path / "page.html").read_text()
    for title in ("kind: All scores", "size: All scores", "kind: Do the probabilities", "size: Do the intervals"):
        assert title in page
    figures = json.loads((tmp_path / "page.json").read_text())["outputs"]
    assert figures["size"]["models"]["model"]["scores"]["nll"]["value"] == evaluation["size"]["nll"]
    assert str(evaluation).startswith("Output kind\n")


def test_each_sentence_on_a_page_names_its_output():
    page = bdl.evaluate(Y, {"a": PREDICTIONS, "b": PREDICTIONS}, **QUICK).page()
    beginnings = [line.split(":")[0] for line in page.summary.split("\n")]
    assert beginnings == ["Output kind. a", "Output kind. b", "Output size. a", "Output size. b"]


@pytest.mark.parametrize(
    ("y", "prediction", "options", "message"),
    [
        ({"kind": KIND}, PREDICTIONS, {}, r"`y` must have an entry for .* one for 'size'"),
        ({"knd": KIND, "size": SIZE}, network("dict"), {"x": X}, r"`y` .*\['kind', 'size'\], one for 'kind'"),
        (KIND, network("dict"), {"x": X}, r"`y` must be a dict by the prediction's outputs, .* not a ndarray"),
        (Y, P, {}, r"`y` must be one array for a prediction of one output, not a dict of \['kind', 'size'\]"),
        (Y, PREDICTIONS, {"mask": np.ones(N)}, r"`mask` must be a dict by the prediction's outputs"),
        ({**Y, "kind": KIND + 2}, PREDICTIONS, {}, r"Output 'kind': `y` must hold class indices"),
        (
            Y,
            {**PREDICTIONS, "size": {"mean": SIZE, "scale": -np.ones(N)}},
            {},
            r"Output 'size': `scale` must be positive",
        ),
        (Y, {"a": PREDICTIONS, "b": {**PREDICTIONS, "size": {"mean": SIZE}}}, {}, r"Model 'b': Output 'size': `pred"),
        (
            Y,
            {"a": PREDICTIONS, "b": {**PREDICTIONS, "kind": 0.9 * P}},
            {},
            r"Output 'kind': Model 'b': `probabilities`",
        ),
        (KIND, PREDICTIONS, {}, r"let `y` be a dict by the same names"),
    ],
)
def test_what_does_not_match_the_outputs_is_named(y, prediction, options, message):
    if isinstance(prediction, keras.Model):
        options = {**options, "likelihood": LIKELIHOODS, "num_samples": 2}
    with pytest.raises(ValueError, match=message):
        bdl.evaluate(y, prediction, **options, **QUICK)


def test_void_labels_are_left_out_of_all_scores():
    is_void = RNG.random(N) < 0.3
    void = np.where(is_void, 255, KIND)
    expected = bdl.evaluate(KIND[~is_void], P[~is_void], num_resamples=0)
    found = bdl.evaluate(void, P, ignore_class=255, num_resamples=0)
    assert found.num_events == np.sum(~is_void)
    assert scores(found) == pytest.approx(scores(expected))
    one_hot = np.where(is_void[:, None], 0.0, np.eye(3)[KIND])
    total = np.zeros(N)
    prediction = bdl.prediction.ClassificationPrediction(Categorical(ignore_class=255), P, total, total, 1)
    for labels in (void, one_hot):
        of_prediction = scores(bdl.evaluate(labels, prediction, num_resamples=0))
        assert {name: of_prediction[name] for name in scores(expected)} == pytest.approx(scores(expected))


def test_one_hot_labels_are_told_by_their_shape():
    expected = scores(bdl.evaluate(KIND, P, num_resamples=0))
    assert scores(bdl.evaluate(np.eye(3)[KIND], P, num_resamples=0)) == expected
    total = np.zeros(N)
    prediction = bdl.prediction.ClassificationPrediction(Categorical(), P, total, total, 1)
    with pytest.raises(ValueError, match=r"`y` must hold one-hot labels.*take y.argmax"):
        bdl.evaluate(P, prediction)


def test_arrays_of_a_file_belong_to_the_output_before_the_slash():
    content = {"kind/probabilities": P, "kind/y": KIND, "size/mean": SIZE}
    assert {output: list(arrays) for output, arrays in by_output(content, Path("a.npz")).items()} == {
        "kind": ["probabilities", "y"],
        "size": ["mean"],
    }
    with pytest.raises(ValueError, match=r"a\.npz must name the output of each array, as in 'kind/prob.*not have 'y'"):
        by_output({"kind/probabilities": P, "y": KIND}, Path("a.npz"))
