"""Do bdl's metrics agree with those of other libraries? On predictions of real models, the largest differences.

Networks: three trained on scikit-learn's digits (a small, a wide and an overtrained one); classifiers and regressors on
scikit-learn's bundled sets (breast cancer, wine, diabetes). For each metric that netcal, torchmetrics, scikit-learn,
uncertainty-toolbox, scoringrules or TensorFlow Probability also has: the largest absolute difference over all
predictions; the same for weights, masks, logits and names of classes (calibration_labels.py) and for weights in
recalibrators (calibration_weights.py). Where another library defines a figure otherwise, a loop with its definition
stands beside it, too (calibration_definitions.py). Libraries that are not installed are left out, and named.

    pip install -e . torch==2.13.0 torchmetrics netcal uncertainty-toolbox scoringrules
    python benchmarks/calibration_parity.py
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import calibration_definitions
import calibration_labels
import calibration_weights
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bdl import calibration as bdl

SEED = 0


@dataclass(frozen=True)
class Problem:
    """Real predictions: labels and probabilities, or targets, means and scales."""

    name: str
    y: np.ndarray
    prediction: tuple[np.ndarray, ...]


def digits_networks() -> Iterator[Problem]:
    """Three networks on the digits; float32 probabilities as networks give them, made float64 and normalised."""
    import keras
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.3, stratify=y, random_state=SEED)
    for name, units, epochs in (("small", 16, 10), ("wide", 256, 30), ("overtrained", 64, 200)):
        keras.utils.set_random_seed(SEED)
        network = keras.Sequential(
            [keras.Input((64,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(10, "softmax")]
        )
        network.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
        network.fit(x_train, y_train, epochs=epochs, batch_size=64, verbose=0)
        p = network.predict(x_test, verbose=0).astype(np.float64)
        yield Problem(f"digits {name}", y_test, (p / p.sum(axis=1, keepdims=True),))


def classifiers() -> Iterator[Problem]:
    """Random forest and naive Bayes on wine, logistic regression on breast cancer (binary)."""
    from sklearn import datasets, ensemble, linear_model, model_selection, naive_bayes, pipeline, preprocessing

    logistic = pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression(C=10))
    for load, model in (
        (datasets.load_wine, ensemble.RandomForestClassifier(25, random_state=SEED)),
        (datasets.load_wine, naive_bayes.GaussianNB()),
        (datasets.load_breast_cancer, logistic),
    ):
        x, y = load(return_X_y=True)
        p = model_selection.cross_val_predict(model, x, y, method="predict_proba", cv=5)
        yield Problem(f"{load.__name__[5:]} {type(model).__name__}", y, (p,))


def regressors() -> Iterator[Problem]:
    """Bayesian ridge and a Gaussian process on diabetes, in two halves."""
    from sklearn import datasets, gaussian_process, linear_model

    x, y = datasets.load_diabetes(return_X_y=True)
    half = len(y) // 2
    kernel = gaussian_process.kernels.RBF(0.3) + gaussian_process.kernels.WhiteKernel(0.5)
    for model in (linear_model.BayesianRidge(), gaussian_process.GaussianProcessRegressor(kernel, normalize_y=True)):
        mean, scale = model.fit(x[:half], y[:half]).predict(x[half:], return_std=True)
        yield Problem(f"diabetes {type(model).__name__}", y[half:], (mean, scale))


# One comparison a metric: name, library, and a function that gives our value and theirs.
Comparison = tuple[str, str, Callable[[np.ndarray, Any], tuple[float, float]]]


def sklearn_comparisons() -> list[Comparison]:
    """Of probabilities with scikit-learn."""
    from sklearn import metrics

    def labels(p: np.ndarray) -> range:
        return range(p.shape[1])

    def detection(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        doubt = 1 - p.max(axis=1)
        wrong = p.argmax(axis=1) != y
        wrong[0], wrong[1] = True, False  # both kinds, also for a perfect model
        return wrong, doubt[~wrong], doubt[wrong]

    def auroc(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        wrong, inside, outside = detection(y, p)
        return bdl.out_of_distribution_auroc(inside, outside), metrics.roc_auc_score(wrong, 1 - p.max(axis=1))

    def aupr(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        wrong, inside, outside = detection(y, p)
        return bdl.out_of_distribution_aupr(inside, outside), metrics.average_precision_score(wrong, 1 - p.max(axis=1))

    return [
        ("NLL", "scikit-learn", lambda y, p: (bdl.negative_log_likelihood(y, p), metrics.log_loss(y, p))),
        (
            "Brier score",
            "scikit-learn",
            lambda y, p: (
                bdl.brier_score(y, p),
                metrics.brier_score_loss(y, p, labels=list(labels(p)), scale_by_half=False),
            ),
        ),
        ("accuracy", "scikit-learn", lambda y, p: (bdl.accuracy(y, p), metrics.accuracy_score(y, p.argmax(axis=1)))),
        ("AUROC", "scikit-learn", auroc),
        ("AUPR", "scikit-learn", aupr),
    ]


def torchmetrics_comparisons() -> list[Comparison]:
    """Of calibration errors with torchmetrics, which computes in the given float64."""
    import torch
    from torchmetrics.functional import calibration_error

    def error(norm: str) -> Callable[[np.ndarray, np.ndarray], float]:
        def computed(y: np.ndarray, p: np.ndarray) -> float:
            options = {"task": "multiclass", "num_classes": p.shape[1], "n_bins": 15, "norm": norm}
            return float(calibration_error(torch.as_tensor(p), torch.as_tensor(y), **options))

        return computed

    def binary(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        is_first, first = (y == 1).astype(int), p[:, 1]
        theirs = calibration_error(torch.as_tensor(first), torch.as_tensor(is_first), task="binary", n_bins=15)
        return bdl.classwise_calibration_error(is_first, first), float(theirs)

    return [
        ("ECE", "torchmetrics", lambda y, p: (bdl.expected_calibration_error(y, p), error("l1")(y, p))),
        ("MCE", "torchmetrics", lambda y, p: (bdl.maximum_calibration_error(y, p), error("max")(y, p))),
        ("RMS-CE", "torchmetrics", lambda y, p: (bdl.root_mean_square_calibration_error(y, p), error("l2")(y, p))),
        ("binary ECE (classwise)", "torchmetrics", binary),
    ]


def netcal_comparisons() -> list[Comparison]:
    """Of calibration errors with netcal."""
    from netcal.metrics import ECE, MCE

    def binary(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        is_first = (y == 1).astype(int)
        return bdl.classwise_calibration_error(is_first, p[:, 1]), float(ECE(15).measure(p[:, 1], is_first))

    return [
        ("ECE", "netcal", lambda y, p: (bdl.expected_calibration_error(y, p), float(ECE(15).measure(p, y)))),
        ("MCE", "netcal", lambda y, p: (bdl.maximum_calibration_error(y, p), float(MCE(15).measure(p, y)))),
        ("binary ECE (classwise)", "netcal", binary),
    ]


def netcal_regression_comparisons() -> list[Comparison]:
    """Of targets with netcal."""
    from netcal.metrics.regression import ENCE, NLL, PICP, QCE, PinballLoss

    levels = np.arange(1, 20) / 20

    def qce(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        pit = bdl.normal_probability_integral_transform(y, *prediction)
        theirs = QCE(bins=10, marginal=True).measure(prediction, y, q=levels, reduction="mean")
        return bdl.quantile_calibration_error(pit, levels, central=True), float(np.mean(theirs))

    def coverage(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        low, high = interval(prediction, 0.9)
        theirs = PICP().measure(prediction, y, q=[0.9], reduction="mean")
        return bdl.interval_coverage(y, low, high), float(np.mean(theirs[0] if isinstance(theirs, tuple) else theirs))

    def width(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        low, high = interval(prediction, 0.9)
        theirs = PICP().measure(prediction, y, q=[0.9], reduction="mean")
        return bdl.mean_interval_width(low, high), float(np.mean(theirs[1]))

    def pinball(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        from scipy.stats import norm

        theirs = PinballLoss().measure(prediction, y, q=np.array([0.8]), reduction="mean")
        return bdl.pinball_loss(y, norm(*prediction).ppf(0.8), 0.8), float(np.mean(theirs))

    def ence(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        ours = bdl.expected_normalized_calibration_error(y, *prediction, num_bins=10, binning="width")
        return ours, float(np.mean(ENCE(10).measure(prediction, y)))

    def nll(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        theirs = NLL().measure(prediction, y, reduction="mean")
        return bdl.normal_negative_log_likelihood(y, *prediction), float(np.mean(theirs))

    return [
        ("NLL", "netcal", nll),
        ("QCE", "netcal", qce),
        ("PICP", "netcal", coverage),
        ("MPIW", "netcal", width),
        ("pinball loss", "netcal", pinball),
        ("ENCE", "netcal", ence),
    ]


def interval(prediction: Any, coverage: float) -> tuple[np.ndarray, np.ndarray]:
    """Central interval of a Normal."""
    from scipy.stats import norm

    return norm(*prediction).interval(coverage)


def uncertainty_toolbox_comparisons() -> list[Comparison]:
    """Of targets with uncertainty-toolbox."""
    from uncertainty_toolbox import metrics_calibration, metrics_scoring_rule

    def calibration(prop_type: str) -> Callable[[np.ndarray, Any], tuple[float, float]]:
        def compared(y: np.ndarray, prediction: Any) -> tuple[float, float]:
            pit = bdl.normal_probability_integral_transform(y, *prediction)
            levels = np.linspace(0, 1, 100)
            ours = bdl.quantile_calibration_error(pit, levels, central=prop_type == "interval")
            theirs = metrics_calibration.mean_absolute_calibration_error(*prediction, y, 100, True, prop_type=prop_type)
            return ours, theirs

        return compared

    def score(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        levels = np.linspace(0.01, 0.99, 99)
        ours = np.mean([bdl.interval_score(y, *interval(prediction, level), coverage=level) for level in levels])
        return float(ours), metrics_scoring_rule.interval_score(*prediction, y)

    def pinball(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        from scipy.stats import norm

        levels = np.linspace(0.01, 0.99, 99)
        ours = np.mean([bdl.pinball_loss(y, norm(*prediction).ppf(level), level) for level in levels])
        return float(ours), metrics_scoring_rule.check_score(*prediction, y)

    name = "uncertainty-toolbox"
    return [
        (
            "NLL",
            name,
            lambda y, q: (bdl.normal_negative_log_likelihood(y, *q), metrics_scoring_rule.nll_gaussian(*q, y)),
        ),
        ("CRPS", name, lambda y, q: (bdl.normal_crps(y, *q), metrics_scoring_rule.crps_gaussian(*q, y))),
        ("QCE, central", name, calibration("interval")),
        ("QCE, quantiles", name, calibration("quantile")),
        ("interval score, mean of 99", name, score),
        ("pinball loss, mean of 99", name, pinball),
        ("sharpness", name, lambda y, q: (bdl.sharpness(q[1]), metrics_calibration.sharpness(q[1]))),
    ]


def scoringrules_comparisons() -> list[Comparison]:
    """Of targets with scoringrules."""
    import scoringrules

    def samples(y: np.ndarray, prediction: Any) -> np.ndarray:
        mean, scale = prediction
        return mean + scale * np.random.default_rng(SEED).normal(size=(50, len(y)))

    def sampled(fair: bool) -> Callable[[np.ndarray, Any], tuple[float, float]]:
        def compared(y: np.ndarray, prediction: Any) -> tuple[float, float]:
            draws = samples(y, prediction)
            theirs = scoringrules.crps_ensemble(y, draws, m_axis=0, estimator="fair" if fair else "nrg")
            return bdl.sample_crps(y, draws, fair=fair), float(np.mean(theirs))

        return compared

    def poisson(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        from scipy import stats

        counts, rate = np.round(y / 20), np.maximum(prediction[0] / 20, 0.1)
        theirs = float(np.mean(scoringrules.crps_poisson(counts, rate)))
        return bdl.ranked_probability_score(counts, stats.poisson(rate)), theirs

    def intervals(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        low, high = interval(prediction, 0.9)
        return bdl.interval_score(y, low, high, 0.9), float(np.mean(scoringrules.interval_score(y, low, high, 0.1)))

    def normal(y: np.ndarray, prediction: Any) -> tuple[float, float]:
        return bdl.normal_crps(y, *prediction), float(np.mean(scoringrules.crps_normal(y, *prediction)))

    return [
        ("CRPS", "scoringrules", normal),
        ("CRPS of samples", "scoringrules", sampled(False)),
        ("CRPS of samples, fair", "scoringrules", sampled(True)),
        ("RPS of counts", "scoringrules", poisson),
        ("interval score", "scoringrules", intervals),
    ]


def tfp_comparisons() -> list[Comparison]:
    """Of calibration with TensorFlow Probability, which computes in float32."""
    import tensorflow as tf
    import tensorflow_probability as tfp

    def ece(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        # The same float32 numbers for both: the softmax that TFP takes of the logits.
        logits = np.log(np.maximum(p, 1e-30)).astype(np.float32)
        theirs = tfp.stats.expected_calibration_error(15, logits=logits, labels_true=y)
        return bdl.expected_calibration_error(y, tf.nn.softmax(logits).numpy()), float(theirs)

    def brier(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        logits = np.log(np.maximum(p, 1e-30)).astype(np.float32)
        theirs = tfp.stats.brier_score(y, logits)  # without the 1 of |e_y|^2
        return bdl.brier_score(y, tf.nn.softmax(logits).numpy()), float(tf.reduce_mean(theirs)) + 1

    return [("ECE", "TFP", ece), ("Brier score", "TFP", brier)]


FAMILIES: list[tuple[str, bool, Callable[[], list[Comparison]]]] = [
    ("sklearn", True, sklearn_comparisons),
    ("torchmetrics", True, torchmetrics_comparisons),
    ("netcal", True, netcal_comparisons),
    ("tensorflow_probability", True, tfp_comparisons),
    ("netcal", False, netcal_regression_comparisons),
    ("uncertainty_toolbox", False, uncertainty_toolbox_comparisons),
    ("scoringrules", False, scoringrules_comparisons),
    *calibration_definitions.FAMILIES,
    *calibration_labels.FAMILIES,
    *calibration_weights.FAMILIES,
]


def main(output: Annotated[Path | None, typer.Option(help="JSON file for the differences.")] = None) -> None:
    """Compare and print the table."""
    problems = {True: [*digits_networks(), *classifiers()], False: list(regressors())}
    differences: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    missing: set[str] = set()
    for module, is_classification, comparisons in FAMILIES:
        if importlib.util.find_spec(module) is None:
            missing.add(module)
            continue
        for metric, library, compare in comparisons():
            for problem in problems[is_classification]:
                prediction = problem.prediction[0] if is_classification else problem.prediction
                ours, theirs = compare(problem.y, prediction)
                difference = float(abs(np.float64(ours) - np.float64(theirs)))
                differences[metric, library].append((problem.name, np.inf if np.isnan(difference) else difference))
    table = Table("metric", "library", "largest difference", "on")
    for (metric, library), found in differences.items():
        name, largest = max(found, key=lambda each: each[1])
        table.add_row(metric, library, f"{largest:.1e}", name if largest > 1e-6 else f"all {len(found)}")
    Console(width=110).print(table)
    if missing:
        Console(width=110).print(f"Not installed, and left out: {', '.join(sorted(missing))}.")
    if output is not None:
        rows = [{"metric": m, "library": lib, "differences": dict(found)} for (m, lib), found in differences.items()]
        output.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    typer.run(main)
