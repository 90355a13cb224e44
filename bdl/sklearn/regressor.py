"""A scikit-learn regressor around a Bayesian network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.preprocessing import StandardScaler

from bdl.likelihoods import Likelihood, Normal, StudentT
from bdl.model import VariationalModel
from bdl.prediction import RegressionPrediction
from bdl.sklearn._base import BayesianEstimator, output_shape

LIKELIHOODS: dict[str, type[Likelihood]] = {"student_t": StudentT, "normal": Normal}


class BayesianRegressor(RegressorMixin, MultiOutputMixin, BayesianEstimator):
    """Bayesian network as a scikit-learn regressor.

    Targets are standardised inside, and predictions come back in their own unit.

    Args:
        network: Function `network(num_features, num_outputs)` that builds a Keras network which ends in the
            likelihood's raw outputs (one for each target, two where it predicts scales as well); an argument `seed`
            gets an integer that follows from `random_state`. The network may be plain, have layers of bdl, or be a
            compiled `bdl.VariationalModel` around one. None is `default_network`.
        hidden: Units of each hidden layer of the default network.
        likelihood: `"student_t"` (one learned scale), `"normal"` (the same), or any `bdl.likelihoods.Likelihood` that
            is no classifier, of which each fit takes a copy. `Normal`, `StudentT` and others of a location and a
            scale see standardised targets, so that a `scale` of theirs is in standard deviations of y; others (counts)
            see the targets as they are.
        recipe: As of `BayesianClassifier`; `"auto"` follows `bdl.recipes.recommend`: `fully_gaussian` below 200
            examples, `small_data` above, and `regression` from 8,000 on where one scale is learned. With noisy targets
            `fully_gaussian` may be the better one above 200, too.
        epochs: As of `BayesianClassifier`.
        batch_size: As of `BayesianClassifier`.
        num_samples: As of `BayesianClassifier`.
        standardize_inputs: As of `BayesianClassifier`.
        random_state: As of `BayesianClassifier`.
        verbose: As of `BayesianClassifier`.

    Attributes:
        model_: The trained `bdl.VariationalModel`; its inputs and targets are standardised.
        history_: Its logs, in nats of standardised targets; entries as of `BayesianClassifier`.
        n_iter_: Passes over the data.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, where X had any.
        input_scaler_: The `StandardScaler` of the inputs, if they are standardised.
        target_scaler_: The `StandardScaler` of the targets, if they are standardised.

    Predictions and `sample_weight`: as of `BayesianClassifier`.

    Example:
    >>> from sklearn.datasets import load_diabetes
    >>> x, y = load_diabetes(return_X_y=True)
    >>> regressor = BayesianRegressor(hidden=(8,), epochs=2, random_state=0).fit(x, y)
    >>> mean, std = regressor.predict(x[:2], return_std=True)
    >>> mean.shape, std.shape, regressor.predict_distribution(x[:2]).log_prob(y[:2]).shape
    ((2,), (2,), (2,))
    """

    def __init__(
        self,
        network: Callable[..., keras.Model] | None = None,
        *,
        hidden: tuple[int, ...] = (50,),
        likelihood: str | Likelihood = "student_t",
        recipe: str | Callable[..., VariationalModel] = "auto",
        epochs: int | None = None,
        batch_size: int = 32,
        num_samples: int = 100,
        standardize_inputs: bool = True,
        random_state: Any = None,
        verbose: Any = 0,
    ) -> None:
        self.network = network
        self.hidden = hidden
        self.likelihood = likelihood
        self.recipe = recipe
        self.epochs = epochs
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.standardize_inputs = standardize_inputs
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Trains a new network.

        Args:
            X: Inputs, `(n, features)`.
            y: Targets, `(n,)` or `(n, targets)`.
            sample_weight: Weights of the examples, `(n,)`, or None.

        Returns:
            The estimator.

        Raises:
            ValueError: if an argument does not fit.
        """
        inputs, found, sample_weight = self._check_fit(X, y, sample_weight, multi_output=True, y_numeric=True)
        self._target_shape = found.shape[1:]
        targets = found.reshape(len(found), -1).astype(np.float64)
        likelihood = _fresh(self.likelihood)
        num_targets = targets.shape[1]
        model = self._build(inputs, _num_outputs(likelihood, num_targets), likelihood)
        _check_outputs(model, inputs, num_targets)
        if model.likelihood.is_location_scale:
            self.target_scaler_ = StandardScaler().fit(targets, sample_weight=sample_weight)
            targets = self.target_scaler_.transform(targets)
        elif hasattr(self, "target_scaler_"):
            del self.target_scaler_  # of an earlier fit
        self._train(model, inputs, targets.astype(np.float32), sample_weight)
        return self

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """Predictive mean, and on demand the standard deviation, noise of the data included.

        Args:
            X: Inputs, `(n, features)`.
            return_std: True to return both.

        Returns:
            Array of the targets' shape, or two of them.
        """
        prediction = self.predict_distribution(X)
        mean = prediction.mean.reshape(-1, *self._target_shape)
        return (mean, prediction.std.reshape(mean.shape)) if return_std else mean

    def predict_distribution(self, X: ArrayLike, num_samples: int | None = None) -> RegressionPrediction:
        """The whole predictive distribution in the targets' own unit: moments, densities, quantiles, draws.

        Args:
            X: Inputs, `(n, features)`.
            num_samples: Number of samples; None is the estimator's.

        Returns:
            Its variance is split into noise (aleatoric) and ignorance (epistemic). A single target has no axis.
        """
        prediction: RegressionPrediction = self._sample(X, num_samples)
        if not hasattr(self, "target_scaler_"):
            return prediction
        scale, shift = self.target_scaler_.scale_, self.target_scaler_.mean_
        return prediction.rescaled(scale, shift)


def _fresh(likelihood: str | Likelihood) -> Likelihood:
    """A likelihood by its name, or a copy that has learned nothing yet."""
    if isinstance(likelihood, str) and likelihood in LIKELIHOODS:
        return LIKELIHOODS[likelihood]()
    if not isinstance(likelihood, Likelihood) or likelihood.is_classifier:
        raise ValueError(
            f"`likelihood` must be one of {tuple(LIKELIHOODS)} or a bdl.likelihoods.Likelihood of real targets or "
            f"counts, not {likelihood!r}."
        )
    return type(likelihood).from_config(likelihood.get_config())


def _num_outputs(likelihood: Likelihood, num_targets: int) -> int:
    """How many raw outputs the likelihood reads for so many targets."""
    reads_two = likelihood.event_shape((None, 2 * num_targets))[-1] == num_targets
    return 2 * num_targets if reads_two else num_targets


def _check_outputs(model: VariationalModel, inputs: np.ndarray, num_targets: int) -> None:
    """The model must give a distribution for each target."""
    likelihood = model.likelihood
    if not isinstance(likelihood, Likelihood) or likelihood.is_classifier:
        raise ValueError(
            f"`network` and `recipe` must build a model of real targets or counts, not of {likelihood!r}. "
            "BayesianClassifier is for classes."
        )
    shape = output_shape(model, inputs)
    if likelihood.event_shape(shape)[1:] != (num_targets,):
        raise ValueError(
            f"`network` must build a network whose outputs {type(likelihood).__name__} can read for {num_targets} "
            f"targets, not one with outputs of shape {shape}. Take their number from its argument: "
            "network(num_features, num_outputs)."
        )
