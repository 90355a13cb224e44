"""A scikit-learn classifier around a Bayesian network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from bdl.likelihoods import Categorical, Likelihood
from bdl.model import VariationalModel
from bdl.prediction import ClassificationPrediction
from bdl.sklearn._base import BayesianEstimator, output_shape


class BayesianClassifier(ClassifierMixin, BayesianEstimator):
    """Bayesian network as a scikit-learn classifier.

    Args:
        network: Function `network(num_features, num_outputs)` that builds a Keras network which ends in one logit for
            each class; an argument `seed` gets an integer that follows from `random_state`. The network may be plain,
            have layers of bdl, or be a compiled `bdl.VariationalModel` around one. None is `default_network`.
        hidden: Units of each hidden layer of the default network.
        recipe: Name of one of `bdl.recipes`, or a function `recipe(network, likelihood)` that returns a compiled
            `bdl.VariationalModel`; an argument `seed` gets an integer. `"auto"` is `instead_of_ensemble`; of a
            network whose layers have posteriors it is Adam on the ELBO.
        epochs: Passes over the data. None makes at least 40 passes and at least 2,000 steps; recipes that average their
            iterates need a thousand.
        batch_size: Examples in a training step.
        num_samples: Samples behind a prediction.
        standardize_inputs: True to give each column of X a mean of 0 and a standard deviation of 1 in the training
            data, which the priors expect. False passes X on as it is (images that are scaled already, numbers of
            tokens).
        class_weight: None, `"balanced"`, or weights by class, as of `sklearn.linear_model.LogisticRegression`.
        random_state: Integer, `numpy.random.RandomState` or None. The same integer gives the same predictions; where a
            user's network draws its initial weights by itself, Python's `random` is seeded while it is built and then
            set back.
        verbose: As of `keras.Model.fit`; 0 is silent.

    Attributes:
        classes_: The labels, sorted; columns of `predict_proba` are in this order.
        model_: The trained `bdl.VariationalModel`; its inputs are standardised.
        history_: Its logs, an entry for about a hundred steps or for a pass, whichever is longer.
        n_iter_: Passes over the data.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, where X had any.
        input_scaler_: The `StandardScaler` of the inputs, if they are standardised.

    Predictions use one set of sampled functions, which follows from `random_state`: a row's prediction is the same
    whatever rows come with it, and at each call. A `sample_weight` of 2 is an example that is there twice,
    one of 0 an example that is not there.

    Example:
    >>> from sklearn.datasets import load_iris
    >>> x, y = load_iris(return_X_y=True)
    >>> classifier = BayesianClassifier(hidden=(8,), epochs=2, random_state=0).fit(x, y)
    >>> classifier.predict_proba(x[:2]).shape, classifier.predict_distribution(x[:2]).epistemic.shape
    ((2, 3), (2,))
    """

    classes_: NDArray[Any]

    def __init__(
        self,
        network: Callable[..., keras.Model] | None = None,
        *,
        hidden: tuple[int, ...] = (50,),
        recipe: str | Callable[..., VariationalModel] = "auto",
        epochs: int | None = None,
        batch_size: int = 32,
        num_samples: int = 100,
        standardize_inputs: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        random_state: Any = None,
        verbose: Any = 0,
    ) -> None:
        self.network = network
        self.hidden = hidden
        self.recipe = recipe
        self.epochs = epochs
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.standardize_inputs = standardize_inputs
        self.class_weight = class_weight
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Trains a new network.

        Args:
            X: Inputs, `(n, features)`.
            y: Labels of any kind, `(n,)`.
            sample_weight: Weights of the examples, `(n,)`, or None.

        Returns:
            The estimator.

        Raises:
            ValueError: if an argument does not fit, or there is only one class.
        """
        inputs, found, sample_weight = self._check_fit(X, y, sample_weight)
        found = column_or_1d(found, warn=True)
        check_classification_targets(found)
        self.classes_, labels = np.unique(found, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"`y` must hold two classes or more, not one class, {self.classes_[0]!r} alone.")
        if self.class_weight is not None:
            of_classes = compute_sample_weight(self.class_weight, found).astype(np.float32)
            sample_weight = of_classes if sample_weight is None else sample_weight * of_classes
        model = self._build(inputs, len(self.classes_), Categorical())
        _check_outputs(model, inputs, len(self.classes_))
        self._train(model, inputs, labels.astype(np.int32), sample_weight)
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class, `(n,)`.

        Args:
            X: Inputs, `(n, features)`.
        """
        chosen = self.predict_log_proba(X).argmax(axis=1)
        return self.classes_[chosen]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of the classes, `(n, classes)`, averaged over samples.

        Args:
            X: Inputs, `(n, features)`.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Logarithms of the probabilities, `(n, classes)`, exact where a probability is too small for a float.

        Args:
            X: Inputs, `(n, features)`.
        """
        log_p = np.asarray(self.predict_distribution(X).log_probabilities, np.float64)
        # In float32 the sum of probabilities is only nearly 1.
        return log_softmax(log_p.reshape(len(log_p), -1), axis=1)

    def predict_distribution(self, X: ArrayLike, num_samples: int | None = None) -> ClassificationPrediction:
        """Probabilities with their uncertainty, split into noise (aleatoric) and ignorance (epistemic), in nats.

        Args:
            X: Inputs, `(n, features)`.
            num_samples: Number of samples; None is the estimator's.

        Returns:
            Its classes are in the order of `classes_`. Its `log_prob` takes their places there:
            `numpy.searchsorted(classifier.classes_, y)`.
        """
        return self._sample(X, num_samples)


def _check_outputs(model: VariationalModel, inputs: np.ndarray, num_classes: int) -> None:
    """The model must give one probability for each class."""
    likelihood = model.likelihood
    if not isinstance(likelihood, Likelihood) or not likelihood.is_classifier:
        raise ValueError(
            f"`network` and `recipe` must build a model of classes, as with bdl.likelihoods.Categorical(), not of "
            f"{likelihood!r}. BayesianRegressor is for real targets and counts."
        )
    shape = output_shape(model, inputs)
    is_logit_of_second = not likelihood.has_class_axis and num_classes == 2
    if shape[1:] != ((1,) if is_logit_of_second else (num_classes,)):
        raise ValueError(
            f"`network` must build a network that ends in one logit for each of the {num_classes} classes, not in "
            f"outputs of shape {shape}. Take the number from its argument: network(num_features, num_outputs)."
        )
